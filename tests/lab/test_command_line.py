"""The laboratory's commands as users type them: help, defaults, Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from warmroute.cli import app
from warmroute.errors import ConfigurationError
from warmroute.standalone.program import program
from warmroute_lab.load import multi_round
from warmroute_lab.load.workload import Workload
from warmroute_lab.replay.baselines import BASELINES
from warmroute_lab.replay.scenarios import SCENARIOS
from warmroute_lab.simulator.profile import PROFILES

pytestmark = pytest.mark.integration

COMMANDS = [
    ["simulate"],
    ["demo"],
    ["bench", "multi-round"],
    ["bench", "validate"],
    ["bench", "cost"],
    ["bench", "replay"],
    ["bench", "standings"],
]


def shown_help(*command: str, width: int = 100) -> str:
    result = CliRunner().invoke(app, [*command, "--help"], terminal_width=width)
    assert result.exit_code == 0
    return result.output


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("command", [["bench"], *COMMANDS], ids=" ".join)
def test_every_help_has_an_example_of_its_command(command: list[str]) -> None:
    assert re.search(rf"Example: warmroute {' '.join(command)} \S", shown_help(*command))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_breaks_no_word_on_a_narrow_terminal(command: list[str]) -> None:
    narrow = set(shown_help(*command, width=60).split())
    wide = {word for word in shown_help(*command, width=400).split() if "--" in word}
    assert wide <= narrow


def test_help_lists_the_names_that_options_take() -> None:
    for command in (["simulate"], ["demo"], ["bench", "validate"], ["bench", "replay"]):
        assert all(name in shown_help(*command) for name in PROFILES)
    for command in (["bench", "replay"], ["bench", "standings"]):
        text = shown_help(*command)
        assert all(re.search(rf"^  {name}  ", text, re.MULTILINE) for name in SCENARIOS)
        assert all(name in text for name in BASELINES)
        assert "mean by more than one standard deviation." in " ".join(text.split()), "aibrix's sentence, to its end"


# ---------------------------------------------------------------- bench multi-round


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Workload]:
    """The loads that ``bench multi-round`` would run; nothing is sent."""
    given: list[Workload] = []

    async def bench(workload: Workload, base_url: str, console: Console, **_: Any) -> bool:
        given.append(workload)
        return True

    monkeypatch.setattr(multi_round, "bench", bench)
    return given


def test_multi_round_runs_without_arguments(loads: list[Workload]) -> None:
    result = CliRunner().invoke(app, ["bench", "multi-round"])
    assert result.exit_code == 0, result.exception
    assert loads[0].num_users == 8


@pytest.mark.parametrize("arguments", [["--sharegpt"], ["--sharegpt", "--qps", "2"], ["--qps", "2", "--sharegpt"]])
def test_sharegpt_may_stand_without_a_file(loads: list[Workload], arguments: list[str]) -> None:
    assert CliRunner().invoke(app, ["bench", "multi-round", *arguments]).exit_code == 0
    assert loads[0].conversations == ()


def test_each_run_has_a_salt_of_its_own_unless_one_is_given(loads: list[Workload]) -> None:
    for arguments in ([], [], ["--salt", "mine"], ["--salt", ""]):
        CliRunner().invoke(app, ["bench", "multi-round", *arguments])
    first, second, given, without = (load.salt for load in loads)
    assert first != second
    assert min(len(first), len(second)) >= 8
    assert (given, without) == ("mine", "")


# ---------------------------------------------------------------- values that cannot be used


@pytest.mark.parametrize("flag", ["--fail-rate", "--stall-rate", "--reset-rate"])
def test_a_share_that_is_none_is_told_by_its_flag(flag: str) -> None:
    result = CliRunner().invoke(app, ["simulate", flag, "7"])
    assert result.exit_code == 2
    assert f"Invalid value for '{flag}': " in result.output


def test_a_directory_is_no_trace(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "replay", str(tmp_path)])
    assert isinstance(result.exception, ConfigurationError)
    assert str(result.exception) == f"{tmp_path} is a directory: name one trace file"


# ---------------------------------------------------------------- Ctrl-C


@pytest.mark.usefixtures("a_terminal")
@pytest.mark.parametrize("module", ["typer", "aiohttp", "rich", "yaml", "asyncio"])
def test_ctrl_c_during_an_import_ends_without_a_traceback(tmp_path: Path, module: str) -> None:
    (tmp_path / f"{module}.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)")
    search = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "warmroute", "demo", "--once", "--no-load"],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in {-signal.SIGINT, 130}
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- commands that are printed


def test_printed_commands_name_the_running_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "a folder" / "warmroute"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(script), "demo"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program() == f"'{script}'"
    monkeypatch.setenv("PATH", str(script.parent))
    assert program() == "warmroute"
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "__main__.py"), "demo"])
    assert program() == f"{sys.executable} -m warmroute"
