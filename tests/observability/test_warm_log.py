"""The log line of warm requests: its text, and that it is written without a record of the standard library."""

from __future__ import annotations

import io
import logging
import random
import re

import pytest

from tests.factories import routing_constants
from warmroute import runtime
from warmroute.observability import logs
from warmroute.observability.warm_log import WarmLog
from warmroute.pool.endpoint import EndpointSpec
from warmroute.pool.pool import Pool
from warmroute.request.inference import InferenceRequest, PromptPart
from warmroute.routing.router import Router
from warmroute.settings import Settings


@pytest.fixture
def router() -> Router:
    pool = Pool()
    pool.replace([EndpointSpec("default", "a", "10.0.0.1", 8000)], 0.0)
    return Router(pool, routing_constants(), rng=random.Random(1), now=0.0, listeners=(WarmLog(),), name="p")


def prompt(*texts: str) -> InferenceRequest:
    parts = tuple(PromptPart(text.encode(), len(text)) for text in texts)
    return InferenceRequest(model="m", parts=parts, prompt_bytes=sum(len(text) for text in texts))


def three_requests(router: Router) -> None:
    router.pick(prompt("a" * 540), 0.0)
    router.pick(prompt("a" * 540, "b" * 460), 5.0, request_id="r-1")
    router.pick(prompt("c" * 540, "b" * 460), 5.0, request_id="r-2")


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_the_line(router: Router, log_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logging.getLogger().handlers[:] = []
    stream = io.StringIO()
    logs.configure(Settings(log_format=log_format), stream=stream)
    monkeypatch.setattr(logging.LogRecord, "__init__", None)  # it takes longer than the line may
    three_requests(router)
    logging.getLogger().handlers[0].flush()
    if log_format == "json":
        pattern = (
            r'\{"ts": "[-0-9]+T[:.0-9]+Z", "level": "INFO", "caller": "routing/router.pyLINE", '
            r'"msg": "Do prefix-aware routing!", "request": "r-1", "matching ratio": " 0.54 > 0.50"\}\n'
        )
    else:
        pattern = (
            r"[-0-9]+T[:0-9]+Z\tINFO\trouting/router.pyLINE\tDo prefix-aware routing!\t"
            r'\{"request": "r-1", "matching ratio": " 0.54 > 0.50"\}\n'
        )
    assert re.fullmatch(pattern.replace("LINE", "" if runtime.compiled() else ":[0-9]+"), stream.getvalue())


def test_no_line_above_its_level(router: Router) -> None:
    logging.getLogger().handlers[:] = []
    stream = io.StringIO()
    logs.configure(Settings(log_level="warning"), stream=stream)
    three_requests(router)
    logging.getLogger().handlers[0].flush()
    assert stream.getvalue() == ""


def test_programs_that_embed_the_picker_get_a_record(router: Router, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "warmroute"):
        three_requests(router)
    (record,) = caplog.records
    assert record.getMessage() == "Do prefix-aware routing!"
    assert record.fields == {"request": "r-1", "matching ratio": " 0.54 > 0.50"}  # type: ignore[attr-defined]


def test_the_line_has_the_id_of_the_requests_trace(router: Router, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "warmroute"):
        router.pick(prompt("a" * 540), 0.0)
        router.pick(prompt("a" * 540), 1.0, traceparent=f"00-{5:032x}-{7:016x}-01")
    (record,) = caplog.records
    assert record.fields["trace"] == f"{5:032x}"  # type: ignore[attr-defined]
