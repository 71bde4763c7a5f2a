"""What `make` says of the variable PYTHON."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.integration


def make(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the Makefile without doing anything, in a directory of its own."""
    shutil.copy(ROOT / "Makefile", directory)
    environ = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "PYTHON"}}
    argv = ["make", "--dry-run", "help", *arguments]
    return subprocess.run(argv, cwd=directory, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_a_python_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = make(tmp_path, "PYTHON=/nope")
    assert done.returncode == 2
    assert "PYTHON=/nope: there is no such program" in done.stderr


def test_an_environment_that_is_there_is_used_and_make_says_so(tmp_path: Path) -> None:
    told = ".venv is there and is used"
    assert told not in make(tmp_path, f"PYTHON={sys.executable}").stdout
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").touch()
    assert told in make(tmp_path, f"PYTHON={sys.executable}").stdout
    done = make(tmp_path)
    assert done.returncode == 0
    assert told not in done.stdout
