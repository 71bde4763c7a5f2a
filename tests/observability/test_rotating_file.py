"""A file that is renamed when it is full."""

from __future__ import annotations

from pathlib import Path

import pytest

from warmroute.errors import ConfigurationError
from warmroute.observability.rotating_file import KEPT, RotatingFile


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_a_full_file_is_renamed_and_the_oldest_goes(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "log", 10)
    for k in range(KEPT + 3):
        file.write(f"{k}234567\n")
    file.close()
    assert contents(tmp_path) == {
        "log": "5234567\n",
        "log.1": "4234567\n",
        "log.2": "3234567\n",
        "log.3": "2234567\n",
    }


def test_a_file_is_appended_to_and_filled(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("old\n")
    file = RotatingFile(tmp_path / "log", 10)
    for text in ("one\n", "x\n", "two\n", "longer than a file\n", "three\n"):
        file.write(text)
    file.close()
    assert contents(tmp_path) == {
        "log": "three\n",
        "log.1": "longer than a file\n",
        "log.2": "two\n",
        "log.3": "old\none\nx\n",
    }


def test_a_file_that_cannot_be_opened_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot write to .*/missing/log: No such file or directory"):
        RotatingFile(tmp_path / "missing" / "log", 10)
