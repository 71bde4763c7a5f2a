"""A span for each pick, sent to an OpenTelemetry collector: ``--tracing``, extra ``otel``.

OpenTelemetry's own environment variables set it up: ``OTEL_EXPORTER_OTLP_ENDPOINT`` and the other ``OTEL_EXPORTER_OTLP_*``,
``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_TRACES_SAMPLER``, ``OTEL_BSP_*``, ``OTEL_SDK_DISABLED``
(https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from warmroute import __version__
from warmroute.errors import ConfigurationError
from warmroute.routing.decision import Decision
from warmroute.routing.decision_listener import DecisionListener
from warmroute.routing.decision_record import DecisionRecord

SPAN = "pick endpoint"
PROTOCOL = "http/protobuf"
"""The one OTLP protocol that the extra installs; it is OpenTelemetry's default."""
STOP_SECONDS = 5.0
"""Longest wait at the end for spans that are not sent yet."""

_PROPAGATOR = TraceContextTextMapPropagator()


class PickSpans(DecisionListener):
    """Makes a span of each decision, as a child of the request's trace context.

    ``clock`` must be the one that stamps decisions. The provider's processor must not block.
    """

    def __init__(self, provider: TracerProvider, *, clock: Callable[[], float]) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("warmroute", __version__)
        self._clock = clock

    def decided(self, decision: Decision, record: DecisionRecord) -> None:
        """Make the span, from the time of the decision until now. A trace that is not sampled costs little."""
        parent = _PROPAGATOR.extract({"traceparent": record.traceparent})
        now = time.time_ns()
        span = self._tracer.start_span(
            SPAN, parent, kind=SpanKind.SERVER, start_time=now - round((self._clock() - record.at) * 1e9)
        )
        if span.is_recording():
            span.set_attributes(
                {
                    "gen_ai.request.model": record.model,
                    "warmroute.decision": record.id,
                    "warmroute.request_id": record.request_id,
                    "warmroute.strategy": record.strategy,
                    "warmroute.reason": record.reason,
                    "warmroute.endpoint": record.chosen,
                    "warmroute.targets": record.targets,
                    "warmroute.candidates": len(record.names),
                    "warmroute.prompt_tokens": round(decision.prompt_tokens),
                    "warmroute.cached_tokens": round(decision.cached_tokens),
                }
            )
        span.end(now)

    def measured(self, decision: Decision) -> None:
        """Nothing: the span ends with the pick."""

    async def stop(self) -> None:
        """Send what waits, for a bounded time."""
        thread = threading.Thread(target=self._provider.shutdown, name="tracing", daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, STOP_SECONDS)


def pick_spans(*, clock: Callable[[], float]) -> PickSpans:
    """Spans that are sent by OTLP in the background. Raises ConfigurationError for another protocol than HTTP."""
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if os.environ.get(variable, PROTOCOL) != PROTOCOL:
            raise ConfigurationError(f"{variable} must be {PROTOCOL}: the extra `otel` has no other exporter")
    ours = Resource({SERVICE_NAME: "warmroute", SERVICE_VERSION: __version__})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return PickSpans(provider, clock=clock)
