"""JSON files of figures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson

from warmroute.errors import ConfigurationError


def require_place(path: Path | None) -> None:
    """Raise ConfigurationError if no file can be written at ``path``. Called before long measurements."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise ConfigurationError(f"the directory of {path} does not exist")
    if path.is_dir():
        raise ConfigurationError(f"{path} is a directory: name a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigurationError(f"cannot write {path}: you may not, or its file system is read-only")


def write(path: Path, figures: Any) -> None:
    """Write ``figures``, which must be serialisable, to ``path``. Raises ConfigurationError."""
    try:
        path.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error


def read(path: Path) -> Any:
    """The content of a JSON file. Raises ConfigurationError."""
    try:
        return orjson.loads(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise ConfigurationError(f"{path} is not JSON: {error}") from error
