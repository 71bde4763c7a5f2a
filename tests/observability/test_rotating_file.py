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


def test_a_file_that_ends_within_a_line_goes_on_with_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("whole\nhal")
    file = RotatingFile(tmp_path / "log", 100)
    file.write("next\n")
    file.close()
    file = RotatingFile(tmp_path / "log", 100)
    file.write("last\n")
    file.close()
    assert contents(tmp_path) == {"log": "whole\nhal\nnext\nlast\n"}


def test_a_file_that_was_moved_is_begun_anew_when_it_is_full(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "log", 10)
    file.write("1234567\n")
    (tmp_path / "log").rename(tmp_path / "elsewhere")
    for k in range(2, 4):
        file.write(f"{k}234567\n")
    file.close()
    assert contents(tmp_path) == {"elsewhere": "1234567\n", "log": "3234567\n", "log.1": "2234567\n"}


def test_a_rotation_that_failed_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor was left, say, or no space for a name: no full file is lost for it."""
    file = RotatingFile(tmp_path / "log", 10)
    file.write("1234567\n")

    def full(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        for _ in range(3):
            with pytest.raises(OSError, match="Too many open files"):
                file.write("lost\n")
    file.write("2234567\n")
    file.close()
    assert contents(tmp_path) == {"log": "2234567\n", "log.1": "1234567\n"}


def test_a_file_that_cannot_be_opened_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot write to .*/missing/log: No such file or directory"):
        RotatingFile(tmp_path / "missing" / "log", 10)
