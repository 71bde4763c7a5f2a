"""Spans of picks: their parent, attributes and export."""

from __future__ import annotations

import os
import random
import sys
import threading
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from tests.factories import routing_constants
from tests.fixtures.otlp import collector
from tests.waiting import eventually
from warmroute.errors import ConfigurationError
from warmroute.observability.tracing import SPAN, PickSpans, pick_spans
from warmroute.picker import EndpointPicker
from warmroute.pool.endpoint import EndpointSpec
from warmroute.pool.pool import Pool
from warmroute.request.inference import InferenceRequest
from warmroute.request.parse import parse
from warmroute.routing.decision import Decision
from warmroute.routing.decision_listener import DecisionListener
from warmroute.routing.router import Router
from warmroute.settings import Settings

NOW = 1000.0
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


def router(listener: DecisionListener) -> Router:
    pool = Pool()
    pool.upsert(EndpointSpec("default", "a", "10.0.0.1", 8000), NOW)
    return Router(pool, routing_constants(), rng=random.Random(1), now=NOW, listeners=(listener,), name="p")


def request() -> InferenceRequest:
    body = b'{"model": "qwen", "messages": [{"role": "user", "content": "%s"}]}' % (b"hello " * 2000)
    parsed = parse("/v1/chat/completions", "application/json", body)
    assert isinstance(parsed, InferenceRequest)
    return parsed


def spans(traceparent: str, picks: int = 1) -> tuple[list[ReadableSpan], list[Decision]]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    routing = router(PickSpans(provider, clock=lambda: NOW + 0.25))
    decisions = [routing.pick(request(), NOW, request_id="r-1", traceparent=traceparent) for _ in range(picks)]
    return list(exporter.get_finished_spans()), [d for d in decisions if isinstance(d, Decision)]


def test_a_pick_is_a_span_under_the_requests_trace() -> None:
    (span,), (decision,) = spans(SAMPLED)
    assert (span.name, span.kind) == (SPAN, SpanKind.SERVER)
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.end_time - span.start_time == 250_000_000
    assert dict(span.attributes or {}) == {
        "gen_ai.request.model": "qwen",
        "warmroute.decision": decision.id,
        "warmroute.request_id": "r-1",
        "warmroute.strategy": decision.strategy,
        "warmroute.reason": "cold",
        "warmroute.endpoint": "default/a",
        "warmroute.targets": "10.0.0.1:8000",
        "warmroute.candidates": 1,
        "warmroute.prompt_tokens": round(decision.prompt_tokens),
        "warmroute.cached_tokens": 0,
    }


def test_a_warm_pick_says_how_much_is_cached() -> None:
    (_, span), (_, decision) = spans(SAMPLED, picks=2)
    attributes = span.attributes or {}
    assert attributes["warmroute.reason"] == "warm"
    assert attributes["warmroute.cached_tokens"] == round(decision.cached_tokens) > 1000


@pytest.mark.parametrize("traceparent", ["", "nonsense"])
def test_without_a_trace_context_a_pick_is_a_trace_of_its_own(traceparent: str) -> None:
    (span,), _ = spans(traceparent)
    assert span.parent is None


def test_a_trace_that_is_not_sampled_has_no_span() -> None:
    assert spans(NOT_SAMPLED)[0] == []


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.integration
@pytest.mark.parametrize(("named", "name"), [({}, "warmroute"), ({"OTEL_SERVICE_NAME": "picker"}, "picker")])
async def test_spans_reach_a_collector_as_the_standard_variables_say(
    environment: pytest.MonkeyPatch, named: dict[str, str], name: str
) -> None:
    async with collector() as (url, received):
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        for variable, value in named.items():
            environment.setenv(variable, value)
        environment.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
        made = pick_spans(clock=lambda: NOW)
        router(made).pick(request(), NOW, traceparent=SAMPLED)
        await made.stop()
        await eventually(lambda: bool(received))
        (resource,) = received[0].resource_spans
        attributes = {one.key: one.value.string_value for one in resource.resource.attributes}
        assert attributes["service.name"] == name
        assert attributes["deployment.environment"] == "test"
        (span,) = resource.scope_spans[0].spans
        assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == (SPAN, TRACE, PARENT)


@pytest.mark.integration
async def test_a_collector_that_is_away_costs_the_spans_only(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    environment.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    made = pick_spans(clock=lambda: NOW)
    assert isinstance(router(made).pick(request(), NOW), Decision)
    await made.stop()


async def test_a_collector_that_does_not_answer_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    answered, ended = threading.Event(), threading.Event()

    class Provider(TracerProvider):
        def shutdown(self) -> None:
            answered.wait()
            ended.set()

    monkeypatch.setattr("warmroute.observability.tracing.STOP_SECONDS", 0.01)
    await PickSpans(Provider(shutdown_on_exit=False), clock=lambda: NOW).stop()
    assert not ended.is_set()
    answered.set()
    await eventually(ended.is_set)


def test_without_the_extra_the_flag_says_what_to_install(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setitem(sys.modules, "warmroute.observability.tracing", None)
    with pytest.raises(ConfigurationError, match="extra `otel`"):
        EndpointPicker(Settings(endpoints_file=tmp_path / "endpoints.yaml", tracing=True))


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"])
def test_a_protocol_without_an_exporter_is_refused(environment: pytest.MonkeyPatch, variable: str) -> None:
    environment.setenv(variable, "grpc")
    with pytest.raises(ConfigurationError, match=variable):
        pick_spans(clock=lambda: NOW)
