"""Log lines: tab-separated for people and grep, or one JSON object a line.

Call sites use the standard library alone and pass what belongs to the line as ``fields``::

    logger.info("Do prefix-aware routing!", extra={"fields": {"request": request_id, "matching ratio": ratio}})

which reads, with tabs between the columns::

    2026-11-22T10:00:00Z  INFO  routing/router.py:120  Do prefix-aware routing!  {"request": "7f3", "matching ratio": ...}

On the request path a call site asks ``logger.isEnabledFor`` first, so that a line that is not wanted builds no fields.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache
from pathlib import PurePath
from typing import Any, Literal, TextIO

import warmroute
from warmroute.settings import Settings

PACKAGE = "warmroute"

_ROOT = PurePath(warmroute.__file__).parent

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), 127)} | {9: "\\t", 10: "\\n", 13: "\\r"}
"""Control characters of a message, written out: one record is one line, whatever a client sent."""

PATIENCE = 0.02
"""Seconds for which a line below WARNING waits for others before they are written together."""
MOST_WAITING = 1000
"""Lines that wait at the most."""

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str).encode


def configure(settings: Settings, *, stream: TextIO | None = None) -> None:
    """Log to ``stream`` (stderr by default) in ``settings.log_format``, from ``settings.log_level`` on.

    Libraries log through the same format, but from WARNING on only. Calling it again replaces what it set up before.
    """
    handler = _Handler(stream)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else ConsoleFormatter())
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(old)
        old.flush()
    root.addHandler(handler)
    logging.captureWarnings(True)
    # No line of ours tells them, and looking them up is a fifth of what a line costs.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    set_level(settings.log_level)


def set_level(level: Literal["debug", "info", "warning", "error"]) -> None:
    """Change the least level that is logged."""
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger(PACKAGE).setLevel(number)
    logging.getLogger().setLevel(max(number, logging.WARNING))


class ConsoleFormatter(logging.Formatter):
    """UTC time, level, caller, message and fields (if any), tab-separated; a traceback on indented lines below."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, or several where there is a traceback."""
        columns = [
            _second(int(record.created)) + "Z",
            record.levelname,
            _caller(record),
            _one_line(_message(record)),
        ]
        fields = _fields(record)
        if fields:
            columns.append(_json(fields))
        line = "\t".join(columns)
        traceback = _traceback(self, record)
        return line if traceback is None else line + "".join(f"\n\t{text}" for text in traceback.splitlines())


class JsonFormatter(logging.Formatter):
    """An object with ts (UTC, milliseconds), level, caller, msg, the fields, and traceback where there is one.

    A field that is called like one of those keys gets an underscore in front.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "ts": f"{_second(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "caller": _caller(record),
            "msg": _message(record),
        }
        traceback = _traceback(self, record)
        if traceback is not None:
            line["traceback"] = traceback
        line.update({f"_{key}" if key in line else key: value for key, value in _fields(record).items()})
        return _json(line)


class _Handler(logging.StreamHandler[TextIO]):
    """Writes lines; a stream that is closed, full or broken loses them, and nobody else is bothered.

    In an event loop the lines below WARNING wait for each other for ``PATIENCE`` seconds: to format and write ten together
    costs little more than to do it with one.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream)
        self._waiting: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record; called with the handler's lock held."""
        self._waiting.append(record)
        if record.levelno < logging.WARNING:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                pass
            else:
                if len(self._waiting) == 1:
                    loop.call_later(PATIENCE, self.flush)
                if len(self._waiting) < MOST_WAITING:
                    return
        self.flush()

    def flush(self) -> None:
        """Write what waits."""
        with self.lock or nullcontext():
            waiting, self._waiting = self._waiting, []
            try:
                self.stream.write("".join([self.format(record) + self.terminator for record in waiting]))
                super().flush()
            except Exception:
                if waiting:
                    self.handleError(waiting[-1])

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Logging must not fail the caller, and stderr is where a complaint would go."""


@lru_cache(maxsize=2)
def _second(timestamp: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(timestamp))


def _caller(record: logging.LogRecord) -> str:
    return f"{_short_path(record.pathname)}:{record.lineno}"


@lru_cache(maxsize=1024)
def _short_path(pathname: str) -> str:
    """The path inside the package; for other code the file and its directory."""
    path = PurePath(pathname)
    return path.relative_to(_ROOT).as_posix() if path.is_relative_to(_ROOT) else "/".join(path.parts[-2:])


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # a call site's wrong format must not lose the line
        return f"{record.msg} {record.args!r}"


def _one_line(text: str) -> str:
    return text if text.isprintable() else text.translate(_ESCAPES)


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    return getattr(record, "fields", None) or {}


def _json(value: Mapping[str, Any]) -> str:
    try:
        return _encode(value)
    except (TypeError, ValueError):  # a key that is no string, a cycle, a NaN
        return json.dumps({str(key): item if isinstance(item, str) else repr(item) for key, item in value.items()})


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    parts = []
    if record.exc_info:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts) or None
