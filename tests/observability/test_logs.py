"""Log lines as operators read and grep them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import sys
import tracemalloc
import warnings
from collections.abc import Iterator

import pytest

import warmroute
from warmroute.observability import logs
from warmroute.settings import Settings

PATH = warmroute.__file__.replace("__init__.py", "routing/router.py")


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    """Leave the process's logging as it was."""
    root, package = logging.getLogger(), logging.getLogger("warmroute")
    handlers, levels = root.handlers[:], (root.level, package.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    package.setLevel(levels[1])
    logging.captureWarnings(False)


def configured(**settings: str) -> io.StringIO:
    stream = io.StringIO()
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


async def test_in_an_event_loop_lines_wait_for_each_other_but_not_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "PATIENCE", 0.02)
    stream = configured()
    logger = logging.getLogger("warmroute.test")
    logger.info("one")
    logger.info("two")
    assert not stream.getvalue()
    async with asyncio.timeout(5):
        while not stream.getvalue():
            await asyncio.sleep(0.005)
    assert [line.split("\t")[3] for line in stream.getvalue().splitlines()] == ["one", "two"]
    logger.info("three")
    logger.warning("four")
    assert [line.split("\t")[3] for line in stream.getvalue().splitlines()] == ["one", "two", "three", "four"]


async def test_lines_that_wait_are_bounded_and_written_when_logging_ends() -> None:
    stream = configured()
    logger = logging.getLogger("warmroute.test")
    for number in range(logs.MOST_WAITING + 1):
        logger.info("%d", number)
    assert len(stream.getvalue().splitlines()) == logs.MOST_WAITING
    logs.configure(Settings(), stream=io.StringIO())
    assert len(stream.getvalue().splitlines()) == logs.MOST_WAITING + 1
