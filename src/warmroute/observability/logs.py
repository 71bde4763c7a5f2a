"""Log lines: tab-separated columns, or one JSON object per line.

The line of a warm request goes through :func:`write`. All other call sites use the standard library and pass the line's
fields as ``fields``::

    logger.info("draining", extra={"fields": {"streams": 12}})

which reads, with tabs between the columns::

    2026-11-22T10:00:00Z  INFO  picker.py:120  draining  {"streams": 12}

On the request path a call site asks ``logger.isEnabledFor`` first, so that a level that is off builds no fields.

Lines are formatted and written by a thread (:mod:`warmroute.observability.log_writer`): a log pipe that nobody reads
loses lines, and stops nothing.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import PurePath
from typing import Any, Literal, NamedTuple, TextIO, cast

import warmroute
from warmroute.observability.log_writer import LogWriter
from warmroute.settings import Settings

logger = logging.getLogger(__name__)

PACKAGE = "warmroute"

LONGEST_TEXT = 1024
"""Characters of a message or of a field; clients choose some of them."""
LONGEST_TRACEBACK = 16_384
"""Characters of a traceback; the last ones are kept."""
LONGEST_FIELDS = 16_384
"""Characters of all fields as JSON."""

_ROOT = PurePath(warmroute.__file__).parent

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str).encode


def configure(settings: Settings, *, stream: TextIO | None = None) -> None:
    """Log to ``stream`` (default: stderr) in ``settings.log_format``, from ``settings.log_level`` on.

    Libraries log in the same format, from WARNING on. A second call replaces what the first set up.
    """
    handler = LogHandler(stream, JsonFormatter() if settings.log_format == "json" else ConsoleFormatter())
    root = logging.getLogger()
    for old in _handlers():
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    logging.captureWarnings(True)
    # No line has these, and looking them up takes a fifth of the time of a line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    set_level(settings.log_level)


def set_level(level: Literal["debug", "info", "warning", "error"]) -> None:
    """Change the lowest level that is logged."""
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger(PACKAGE).setLevel(number)
    logging.getLogger().setLevel(max(number, logging.WARNING))


def dropped_lines() -> int:
    """Lines lost since :func:`configure` because the log could not take them."""
    return sum(handler.writer.dropped for handler in _handlers())


def _handlers() -> list[LogHandler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, LogHandler)]


class LogHandler(logging.Handler):
    """Hands records to a :class:`LogWriter`, without references to anything large."""

    def __init__(self, stream: TextIO | None, formatter: LineFormatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._lines = formatter
        self.writer = LogWriter(self._line, sys.stderr if stream is None else stream, line_of_loss=self._line_of_loss)

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record; called with the handler's lock held, so it must not block."""
        if record.args:
            record.msg, record.args = _shortened(_message(record)), None
        if record.exc_info:  # its frames would keep a request's data alive
            record.exc_text, record.exc_info = logging.Formatter().formatException(record.exc_info), None
        fields = _fields(record)
        if any(type(value) is str and len(value) > LONGEST_TEXT for value in fields.values()):
            record.fields = {key: _shortened(value) if type(value) is str else value for key, value in fields.items()}
        self.writer.add(record, urgent=record.levelno >= logging.WARNING)

    def _line(self, item: logging.LogRecord | Line) -> str:
        return self._lines.line(item) if type(item) is Line else self._lines.format(cast(logging.LogRecord, item))

    def _line_of_loss(self, lines: int) -> str:
        """The line about lines that were dropped."""
        fields = {"lines": lines}
        return self.format(
            logger.makeRecord(
                __name__, logging.WARNING, __file__, 0, "log lines dropped", (), None, None, {"fields": fields}
            )
        )

    def flush(self) -> None:
        """Wait, for a bounded time, until the lines so far are written."""
        self.writer.flush()

    def close(self) -> None:
        """Write what waits, for a bounded time, and end the thread."""
        self.writer.close()
        super().close()


class Line(NamedTuple):
    """A log line before it is formatted."""

    created: float
    """Unix seconds."""
    level: str
    caller: str
    message: str
    fields: Mapping[str, Any]
    traceback: str | None = None


def write(log: logging.Logger, caller: str, message: str, fields: Mapping[str, Any]) -> None:
    """Log at INFO, for the line that requests write: a record of the standard library takes four times as long.

    ``message`` and ``fields`` must be short (:data:`LONGEST_TEXT`). If anybody else handles the program's records, it is
    ``log.info``.
    """
    handlers = logging.getLogger().handlers
    handler = handlers[0] if len(handlers) == 1 else None
    if type(handler) is not LogHandler:
        log.info(message, extra={"fields": fields})
    elif log.isEnabledFor(logging.INFO):
        handler.writer.add(Line(time.time(), "INFO", caller, message, fields))


class LineFormatter(logging.Formatter):
    """Formats lines, and the standard library's records as lines."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        message, traceback = _shortened(_message(record)), _traceback(self, record)
        return self.line(Line(record.created, record.levelname, _caller(record), message, _fields(record), traceback))

    def line(self, line: Line) -> str:
        """The text of a line, without the line break."""
        raise NotImplementedError


class ConsoleFormatter(LineFormatter):
    """UTC time, level, caller, message and fields (if any), tab-separated; a traceback on indented lines below."""

    def line(self, line: Line) -> str:
        """One line, or several if there is a traceback."""
        columns = [_second(int(line.created)) + "Z", line.level, line.caller, one_line(line.message)]
        if line.fields:
            columns.append(_json(line.fields))
        text = "\t".join(columns)
        if line.traceback is None:
            return text
        return text + "".join(f"\n\t{one_line(row)}" for row in line.traceback.splitlines())


class JsonFormatter(LineFormatter):
    """An object with ts (UTC, milliseconds), level, caller, msg, the fields, and traceback if there is one.

    A field named like one of those keys gets an underscore in front.
    """

    def line(self, line: Line) -> str:
        """One line."""
        plain: dict[str, Any] = {
            "ts": f"{_second(int(line.created))}.{int(line.created % 1 * 1000):03d}Z",
            "level": line.level,
            "caller": line.caller,
            "msg": line.message,
        }
        if line.traceback is not None:
            plain["traceback"] = line.traceback
        plain.update({f"_{key}" if key in plain else key: value for key, value in line.fields.items()})
        return _json(plain)


@lru_cache(maxsize=2)
def _second(timestamp: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(timestamp))


def _caller(record: logging.LogRecord) -> str:
    path = _short_path(record.pathname)
    if _is_compiled(record.name) and path != module_path(record.name):
        return module_path(record.name)  # it has no frame: the record names the line that called it
    return f"{path}:{record.lineno}"


@lru_cache(maxsize=1024)
def _is_compiled(module: str) -> bool:
    """Whether the module of that name is loaded from a shared library."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and not file.endswith(".py")


def module_path(name: str) -> str:
    """The path inside the package of the module ``warmroute.a.b``: ``a/b.py``."""
    return name.removeprefix(f"{PACKAGE}.").replace(".", "/") + ".py"


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


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}... ({len(text)} characters)"


def one_line(text: str) -> str:
    """``text`` without control characters of any kind (C0, C1, bidirectional, line separators): they are escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    return getattr(record, "fields", None) or {}


def _json(value: Mapping[str, Any]) -> str:
    try:
        text = _encode(value)
    except (TypeError, ValueError):  # a key that is no string, a cycle, a NaN
        text = _encode({str(key): item if isinstance(item, str) else repr(item) for key, item in value.items()})
    if len(text) > LONGEST_FIELDS + LONGEST_TRACEBACK:
        text = _encode({"fields": f"{text[:LONGEST_FIELDS]}... ({len(text)} characters)"})
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] if ord(c) != 0x7F else "\\u007f" for c in text)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    parts = []
    if record.exc_info:
        parts.append(formatter.formatException(record.exc_info))
    elif record.exc_text:
        parts.append(record.exc_text)
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)[-LONGEST_TRACEBACK:] or None
