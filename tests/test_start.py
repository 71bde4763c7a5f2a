"""What the start of ``warmroute serve`` costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROUNDS = 5
MOST_TIMES_FLOOR = 4.6
"""CPU time of start and stop, at most, in units of ``import grpc, pydantic``. It is 3.7."""
HEAVY = {"aiohttp", "kubernetes", "rich.console", "warmroute.kubernetes.api", "warmroute.standalone.envoy"}
"""Modules that take long to import and that a picker with an endpoints file does not need."""


def cpu_seconds(bytecode: Path, *arguments: str, until: str = "") -> float:
    """CPU time of a Python process that runs until it ends, or is ended once its output contains ``until``.

    ``bytecode`` is the folder of its compiled modules: without one each start compiles all of our source
    where ``PYTHONDONTWRITEBYTECODE`` is set, and the figure grows with the number of lines.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = {**kept, "PYTHONPYCACHEPREFIX": str(bytecode)}
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        if until:
            assert any(until in line for line in process.stderr)
            process.terminate()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


@pytest.fixture
def serve(tmp_path: Path) -> list[str]:
    file = tmp_path / "endpoints.yaml"
    file.write_text("endpoints: []")
    ports = [f"--{name}-port=0" for name in ("grpc", "grpc-health", "metrics", "debug")]
    return ["serve", f"--endpoints-file={file}", "--host=127.0.0.1", "--drain-quiet=0", *ports]


def test_the_start_takes_a_few_times_the_import_of_grpc_and_pydantic(serve: list[str], tmp_path: Path) -> None:
    floors, starts = [], []
    for _ in range(ROUNDS):  # in turns, so that other load on the machine meets both
        floors.append(cpu_seconds(tmp_path, "-c", "import grpc, pydantic"))
        starts.append(cpu_seconds(tmp_path, "-m", "warmroute", *serve, until="serving"))
    assert min(starts) < MOST_TIMES_FLOOR * min(floors), f"{min(starts):.3f} s of {min(floors):.3f} s"


def test_the_picker_imports_nothing_heavy_that_it_does_not_need() -> None:
    code = "import sys; from warmroute import cli, picker; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert not HEAVY & set(done.stdout.split())
