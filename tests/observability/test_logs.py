"""Log lines as operators read and grep them."""

from __future__ import annotations

import errno
import gc
import io
import json
import logging
import os
import re
import sys
import threading
import tracemalloc
import warnings
import weakref
from collections.abc import Iterator
from types import ModuleType

import pytest

import warmroute
from warmroute.observability import log_writer, logs
from warmroute.settings import Settings

PATH = warmroute.__file__.replace("__init__.py", "routing/router.py")


class Log(io.StringIO):
    """What was logged so far."""

    def getvalue(self) -> str:
        for handler in logging.getLogger().handlers:
            handler.flush()
        return super().getvalue()


def configured(**settings: str) -> io.StringIO:
    stream = Log()
    logs.configure(Settings(**settings), stream=stream)
    return stream


def record(message: str, *args: object, level: int = logging.INFO, fields: object = None) -> logging.LogRecord:
    made = logging.LogRecord("warmroute.routing.router", level, PATH, 120, message, args, None)
    made.created, made.msecs = 1795255200.25, 250.0
    if fields is not None:
        made.fields = fields
    return made


def test_the_line_of_a_prefix_aware_decision() -> None:
    line = logs.ConsoleFormatter().format(
        record("Do prefix-aware routing!", fields={"request": "v68m4zx472", "matching ratio": " 0.54 > 0.50"})
    )
    assert line == (
        "2026-11-21T10:00:00Z\tINFO\trouting/router.py:120\tDo prefix-aware routing!"
        '\t{"request": "v68m4zx472", "matching ratio": " 0.54 > 0.50"}'
    )


def test_a_line_without_fields_has_four_columns() -> None:
    line = logs.ConsoleFormatter().format(record("listening on %d", 9002, level=logging.WARNING))
    assert line == "2026-11-21T10:00:00Z\tWARNING\trouting/router.py:120\tlistening on 9002"


def test_a_line_as_an_object() -> None:
    line = logs.JsonFormatter().format(record("Do it", fields={"request": "a", "ratio": 0.5}))
    assert json.loads(line) == {
        "ts": "2026-11-21T10:00:00.250Z",
        "level": "INFO",
        "caller": "routing/router.py:120",
        "msg": "Do it",
        "request": "a",
        "ratio": 0.5,
    }


def test_a_field_cannot_replace_the_line_s_own_keys() -> None:
    line = json.loads(logs.JsonFormatter().format(record("true", fields={"msg": "false", "level": "x"})))
    assert (line["msg"], line["_msg"], line["level"], line["_level"]) == ("true", "false", "INFO", "x")


def test_the_caller_is_the_line_that_logs() -> None:
    stream = configured()
    logging.getLogger("warmroute.test").info("here")
    assert stream.getvalue().split("\t")[2].startswith("observability/test_logs.py:")


def test_the_caller_is_the_module_where_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = ModuleType("warmroute.routing.compiled")
    compiled.__file__ = "/x/warmroute/routing/compiled.cpython-311-x86_64-linux-gnu.so"
    monkeypatch.setitem(sys.modules, compiled.__name__, compiled)
    stream = configured()
    logging.getLogger(compiled.__name__).info("here")
    assert stream.getvalue().split("\t")[2] == "routing/compiled.py"


@pytest.mark.parametrize("text", ["a\nb", "a\tb", "a\r\nb", "a\x1b[31mb", "a\x00b\x7f"])
def test_no_text_can_forge_a_line_or_a_column(text: str) -> None:
    stream = configured()
    logging.getLogger("warmroute.test").warning("got %s", text, extra={"fields": {"text": text, text: 1}})
    line = stream.getvalue().removesuffix("\n")
    assert len(line.split("\t")) == 5
    assert re.fullmatch(r"[^\x00-\x08\x0a-\x1f]*", line)
    assert json.loads(line.split("\t")[4])["text"] == text


def test_a_traceback_belongs_to_its_record() -> None:
    stream = configured()
    try:
        raise ValueError("first\n2026-11-21T10:00:00Z\tINFO\tforged")
    except ValueError:
        logging.getLogger("warmroute.test").exception("failed", extra={"fields": {"request": "a"}})
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith('failed\t{"request": "a"}')
    assert rest[0] == "\tTraceback (most recent call last):"
    assert all(line.startswith("\t") for line in rest)


def test_a_traceback_is_a_field_of_the_object() -> None:
    stream = configured(log_format="json")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("warmroute.test").exception("failed")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["traceback"].endswith("ValueError: broken")


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_no_field_can_break_a_line(log_format: str) -> None:
    stream = configured(log_format=log_format)
    cycle: list[object] = []
    cycle.append(cycle)
    fields = {"nan": float("nan"), "set": {1}, "cycle": cycle, ("a", "tuple"): 1}
    logging.getLogger("warmroute.test").info("odd", extra={"fields": fields})
    line = json.loads(stream.getvalue().split("\t")[-1])
    assert line["nan"] == "nan"
    assert line["set"] == "{1}"


def test_a_wrong_format_still_gives_a_line() -> None:
    assert logs.ConsoleFormatter().format(record("%d and %d", 1)).endswith("\t%d and %d (1,)")


def test_the_level_can_change() -> None:
    stream = configured(log_level="warning")
    logger = logging.getLogger("warmroute.test")
    logger.info("unheard")
    logs.set_level("debug")
    logger.debug("heard")
    logs.set_level("error")
    logger.warning("unheard")
    assert [line.split("\t")[3] for line in stream.getvalue().splitlines()] == ["heard"]


def test_libraries_are_heard_from_warning_on_in_the_same_format() -> None:
    stream = configured(log_level="debug")
    for name in ("grpc", "aiohttp.server", "kubernetes.client"):
        logging.getLogger(name).info("unheard")
        logging.getLogger(name).warning("heard")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("a warning\nof two lines", stacklevel=1)
    lines = stream.getvalue().splitlines()
    assert [line.split("\t")[3] for line in lines[:3]] == ["heard"] * 3
    assert len(lines) == 4
    assert "a warning\\nof two lines" in lines[3]


def test_configuring_twice_writes_once() -> None:
    configured()
    stream = configured()
    logging.getLogger("warmroute.test").info("once")
    assert len(stream.getvalue().splitlines()) == 1


def test_a_broken_stream_bothers_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Broken())
    logs.configure(Settings())
    logging.getLogger("warmroute.test").error("lost")
    configured().close()
    logging.getLogger("warmroute.test").error("lost too")


def test_a_level_that_is_off_allocates_nothing() -> None:
    configured(log_level="warning")
    logger = logging.getLogger("warmroute.test")

    def call() -> None:
        if logger.isEnabledFor(logging.INFO):
            logger.info("Do it", extra={"fields": {"request": "a", "ratio": 0.5}})

    call()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(100):
            call()
        assert tracemalloc.get_traced_memory()[1] - before < 1000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.parametrize(
    "character",
    ["\x85", "\x9b", "\u200e", "\u200f", "\u202a", "\u202e", "\u2028", "\u2066", "\u2069", "\x7f", "\ud800"],
)
def test_no_text_can_change_what_a_terminal_shows(log_format: str, character: str) -> None:
    stream = configured(log_format=log_format)
    logging.getLogger("warmroute.test").warning("a%sb", character, extra={"fields": {"id": character, character: 1}})
    try:
        raise ValueError(character)
    except ValueError:
        logging.getLogger("warmroute.test").exception("failed")
    text = stream.getvalue()
    assert text.replace("\n", "").replace("\t", "").isprintable()
    first = text.splitlines()[0]
    assert json.loads(first.split("\t")[-1])["id"] == character
    assert f"a{character}b".encode("unicode_escape").decode() in first.replace("\\u00", "\\x")


def test_letters_of_every_script_stay() -> None:
    stream = configured()
    logging.getLogger("warmroute.test").warning("Grüße 世界", extra={"fields": {"name": "مرحبا"}})
    assert 'Grüße 世界\t{"name": "مرحبا"}' in stream.getvalue()


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_line_is_bounded_whatever_a_client_sends(log_format: str) -> None:
    stream = configured(log_format=log_format)
    huge = "x" * 1_000_000
    fields = {"request": huge, "list": [huge], huge: 1}
    logging.getLogger("warmroute.test").warning("%s", huge, extra={"fields": {"request": huge}})
    logging.getLogger("warmroute.test").warning("odd", extra={"fields": fields})
    try:
        raise ValueError(huge)
    except ValueError:
        logging.getLogger("warmroute.test").exception("failed")
    lines = stream.getvalue().splitlines()
    assert "... (1000000 characters)" in lines[0]
    assert max(map(len, lines)) < 40_000
    if log_format == "json":
        assert all(json.loads(line) for line in lines)


def test_what_waits_to_be_written_keeps_no_request_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    class Body:
        pass

    def fail(body: Body) -> None:
        raise ValueError

    monkeypatch.setattr(log_writer, "BATCH_SECONDS", 3600)
    body = Body()
    gone = weakref.ref(body)
    configured()
    try:
        fail(body)
    except ValueError:
        logging.getLogger("warmroute.test").info("failed", exc_info=True)
    del body
    gc.collect()
    assert gone() is None


# ---------------------------------------------------------------- the writer


class Pipe:
    """A log whose reader does not read."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        self.stream = os.fdopen(writer, "w")
        logs.configure(Settings(), stream=self.stream)
        self.logger = logging.getLogger("warmroute.test")
        self.unread = ""

    def fill(self, lines: int) -> None:
        for number in range(lines):
            self.logger.info("%d %s", number, "x" * 100)

    def read_until(self, text: str) -> str:
        """Read on to the end of ``text``."""
        while text not in self.unread:
            self.unread += os.read(self.reader, 1 << 20).decode()
        before, _, self.unread = self.unread.partition(text)
        return before + text


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.reader)
    configured()
    pipe.stream.close()


def test_an_unread_pipe_blocks_nobody_and_the_lost_lines_are_told_once(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "FLUSH_SECONDS", 0.05)
    lines = 3 * log_writer.MOST_WAITING
    pipe.fill(lines)  # would block for ever
    dropped = logs.dropped_lines()
    assert 0 < dropped < lines
    text = ""
    told: list[int] = []
    # Told by one line, or by two if the writer began before the last line was dropped. Lines that fit again follow.
    while sum(told) < dropped or text.count("xxx\n") < lines - dropped:
        text += pipe.read_until("\n")
        told = [int(count) for count in re.findall(r'log lines dropped\t{"lines": (\d+)}\n', text)]
    assert sum(told) == dropped
    assert len(told) <= 2
    assert text.count("xxx\n") == lines - dropped
    pipe.logger.warning("after")
    assert "dropped" not in pipe.read_until("after")
    assert logs.dropped_lines() == dropped


def test_a_flush_of_an_unread_pipe_ends(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "FLUSH_SECONDS", 0.05)
    pipe.fill(1000)
    (handler,) = logs._handlers()
    assert not handler.writer.flush()
    drain = threading.Thread(target=pipe.read_until, args=("999 xxx",))
    drain.start()
    drain.join(60)
    monkeypatch.setattr(log_writer, "FLUSH_SECONDS", 60)
    assert handler.writer.flush()


def test_lines_that_a_stream_refused_are_told_once_it_takes_lines_again() -> None:
    class Stream:
        full = True
        text = ""

        def write(self, text: str) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.text += text

    stream = Stream()
    writer = log_writer.LogWriter[str](str, stream, line_of_loss=lambda lines: f"lost {lines}")
    for record in "abc":
        writer.add(record)
        assert writer.flush()
    stream.full = False
    for record in "de":
        writer.add(record)
        assert writer.flush()
    assert writer.close()
    assert (stream.text, writer.dropped) == ("\nd\nlost 3\ne\n", 3)


def test_a_pipe_without_a_reader_loses_lines_and_counts_them() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        logs.configure(Settings(), stream=stream)
        os.close(reader)
        logging.getLogger("warmroute.test").warning("lost")
        (handler,) = logs._handlers()
        assert handler.writer.flush()
        assert logs.dropped_lines() == 1
        configured()


def test_a_non_blocking_descriptor_takes_all_lines(pipe: Pipe) -> None:
    os.set_blocking(pipe.stream.fileno(), False)
    pipe.fill(1500)
    assert pipe.read_until("\t1499 ").count("xxx\n") == 1499


def test_an_ordinary_line_waits_for_others_but_a_warning_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "BATCH_SECONDS", 3600)
    writes: list[str] = []
    written = threading.Event()

    class Recorder(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            written.set()
            return len(text)

    logs.configure(Settings(), stream=Recorder())
    logger = logging.getLogger("warmroute.test")
    logger.info("one")
    logger.info("two")
    assert not written.wait(0.05)
    logger.warning("three")
    assert written.wait(60)
    assert [line.split("\t")[3] for line in "".join(writes).splitlines()] == ["one", "two", "three"]
    assert len(writes) == 1
