"""A newcomer's first minutes: only Python, an empty folder, the wheel from the package index, two engines that run.

Dependencies are downloaded as `make` does, in the locked versions.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.browser.chromium import Chromium, chromium_path
from tests.packaging.test_distributions import ROOT, run
from tests.waiting import eventually
from warmroute import __version__
from warmroute.standalone.child import Child
from warmroute.standalone.ports import free_range

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@dataclass(frozen=True, slots=True)
class FirstMinutes:
    """`warmroute up` of the installed wheel, ready, and what it printed."""

    folder: Path
    warmroute: Path
    greeting: str
    engines: list[str]

    def said(self, pattern: str) -> str:
        """What it printed for the one group of ``pattern``."""
        match = re.search(pattern, self.greeting)
        assert match is not None, self.greeting
        return match[1]

    async def run(self, *argv: str | Path) -> str:
        """Output of a command in the folder."""
        return await asyncio.to_thread(run, *argv, cwd=self.folder)


@pytest.fixture(scope="module")
def warmroute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, installed from the wheel with its extra `standalone` into an empty environment."""
    directory = tmp_path_factory.mktemp("newcomer")
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", directory, ROOT)
    locked = (ROOT / "requirements/demo.txt").read_text(encoding="utf-8")
    constraints = directory / "constraints.txt"
    constraints.write_text("\n".join(re.findall(r"^\S+==\S+(?: ;[^\\]*)?", locked, re.MULTILINE)), encoding="utf-8")
    run(sys.executable, "-m", "venv", directory / "venv")
    wheel = f"{directory / f'warmroute-{__version__}-py3-none-any.whl'}[standalone]"
    # Without --no-compile pip compiles all modules of all packages, also the many that are never imported.
    run(directory / "venv/bin/pip", "install", "--no-compile", "--constraint", constraints, wheel, cwd=directory)
    return directory / "venv/bin/warmroute"


@asynccontextmanager
async def first_minutes(warmroute: Path, folder: Path) -> AsyncIterator[FirstMinutes]:
    """`warmroute up` before two simulated engines, in an empty folder."""
    port = free_range(2)
    simulate = [
        *(sys.executable, "-m", "warmroute", "simulate", "--model", "qwen"),
        "--count",
        "2",
        "--port",
        str(port),
    ]
    engines = [f"http://127.0.0.1:{port + k}" for k in range(2)]
    logs = folder.with_name(folder.name + "-logs")
    logs.mkdir()
    async with AsyncExitStack() as stack:
        simulators = await stack.enter_async_context(Child("warmroute simulate", simulate, logs / "simulators.log"))
        await eventually(lambda: simulators.tail().count("listens on") == 2, "two engines")
        argv = [str(warmroute), "up", *engines, "--port", "0"]
        up = await stack.enter_async_context(Child("warmroute up", argv, logs / "up.log"))
        await eventually(lambda: "Ctrl-C stops it" in up.tail(100) or up.returncode is not None, "warmroute up")
        assert up.returncode is None, up.tail(100)
        yield FirstMinutes(folder, warmroute, up.tail(100), engines)


async def sentence_on_the_page(url: str, request: str) -> str:
    """The sentence that the live page shows for the request."""
    row = f"[...document.querySelectorAll('.decision')].find(row => row.innerText.includes({request!r}))"
    async with Chromium() as page:
        await page.open(url)
        await page.until(f"{row} !== undefined")
        return str(await page.evaluate(f"{row}.querySelector('.sentence').innerText"))


async def test_from_an_empty_folder_to_an_answer_and_its_explanation(
    warmroute: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    folder = tmp_path / "empty"
    folder.mkdir()
    async with first_minutes(warmroute, folder) as minutes:
        assert "2 of 2 answer" in minutes.greeting
        curl = shlex.split(minutes.said(r"\n  (curl .*)\n"))
        answer = await asyncio.to_thread(
            subprocess.run, curl, cwd=folder, capture_output=True, text=True, timeout=60, check=True
        )
        head, _, body = answer.stdout.replace("\r\n", "\n").partition("\n\n")
        assert head.startswith("HTTP/1.1 200 OK"), answer.stdout
        assert '"choices"' in body
        headers = dict(line.lower().split(": ", 1) for line in head.split("\n")[1:])
        assert f"http://{headers['x-warmroute-endpoint']}" in minutes.engines
        explain = shlex.split(minutes.said(r"\n  (\S+ explain X-REQUEST-ID(?: --debug-url \S+)?)"))
        explained = await minutes.run(
            *(headers["x-request-id"] if word == "X-REQUEST-ID" else word for word in explain)
        )
        assert f"went to default/{headers['x-warmroute-endpoint']}" in explained
        assert "too short to show whether it was cached" in explained
        if chromium_path() is not None:
            sentence = await sentence_on_the_page(minutes.said(r"live page +(\S+)"), headers["x-request-id"])
            assert sentence
            assert sentence in explained
        assert list(folder.iterdir()) == []
