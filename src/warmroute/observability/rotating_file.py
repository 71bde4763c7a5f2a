"""A text file of bounded size: when it is full it is renamed and a new one is begun."""

from __future__ import annotations

import os
from pathlib import Path

from warmroute.errors import ConfigurationError

KEPT = 3
"""Full files that are kept: FILE.1 is the last one, FILE.3 the oldest."""


class RotatingFile:
    """Appends to ``path``; before that would make it longer than ``most_bytes``, the file becomes ``path.1``.

    A text longer than that has a file of its own. A file that ends within a line, as a full disk leaves it, gets a line
    break when it is opened. Not thread-safe. Raises ConfigurationError if the file cannot be opened;
    afterwards its methods raise OSError.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        self._path = path
        self._most_bytes = most_bytes
        try:
            self._file = path.open("ab", buffering=0)
            if _ends_within_a_line(path):
                self._file.write(b"\n")
        except OSError as error:
            raise ConfigurationError(f"cannot write to {path}: {error.strerror}") from error

    def write(self, text: str) -> None:
        """Append ``text``, whole in one file."""
        data = text.encode("utf-8", "backslashreplace")
        size = self._file.tell()
        if size and size + len(data) > self._most_bytes:
            self._rotate()
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _rotate(self) -> None:
        if self._path.exists():  # else another program moved it, or the last rotation failed after the renaming
            for number in range(KEPT - 1, 0, -1):
                older = self._numbered(number)
                if older.exists():
                    older.replace(self._numbered(number + 1))
            self._path.replace(self._numbered(1))
        fresh = self._path.open("ab", buffering=0)
        self._file.close()
        self._file = fresh

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _ends_within_a_line(path: Path) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
