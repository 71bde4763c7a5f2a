"""Objects that tests of several rooms need, with the defaults of the settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from warmroute import picker_options
from warmroute.extproc.server import ServerOptions
from warmroute.extproc.session import SessionRules
from warmroute.observability.endpoint_reading import EndpointReading
from warmroute.observability.metrics import Metrics
from warmroute.pool.endpoint import Endpoint, EndpointSpec, EngineState
from warmroute.pool.pool import Pool
from warmroute.routing.confirmation import Confirmation
from warmroute.routing.endpoint_load import EndpointLoad
from warmroute.routing.router import RoutingConstants
from warmroute.settings import Settings

LOCAL: dict[str, Any] = {
    "host": "127.0.0.1",
    "grpc_port": 0,
    "grpc_health_port": 0,
    "debug_port": 0,
    "secure_serving": False,
}
"""Settings of a server on loopback, on any free ports, without TLS."""


def routing_constants(**settings: Any) -> RoutingConstants:
    """The router's constants as ``settings`` give them, by their names; strategy PREFIX_CACHE unless they name another."""
    return picker_options.routing_constants(Settings(**{"routing_strategy": "PREFIX_CACHE", **settings}))


def session_rules(**settings: Any) -> SessionRules:
    """A session's rules as ``settings`` give them, by their names."""
    return picker_options.session_rules(Settings(**settings))


def server_options(**settings: Any) -> ServerOptions:
    """A server's options as ``settings`` give them, and LOCAL."""
    return picker_options.server_options(Settings(**{**LOCAL, **settings}))


def idle_load(name: str = "a", holder: int = 0, now: float = 0.0) -> EndpointLoad:
    """The load of an endpoint that was added at ``now`` and has no request."""
    return EndpointLoad(Endpoint(EndpointSpec("default", name, "10.0.0.1", 8000), engine="vllm", now=now), holder, now)


def engine_state(at: float = 0.0, **figures: Any) -> EngineState:
    """What a scrape of an idle engine gave at ``at``, but for ``figures``, by the names of the fields."""
    idle: dict[str, Any] = {"running": 0, "waiting": 0, "kv_usage": 0.0}
    return EngineState(observed_at=at, **(idle | figures))


def readings(count: int, pool: Pool | None = None) -> list[EndpointReading]:
    """Readings of ``count`` endpoints, or of the members of ``pool``."""
    endpoints = (
        [Endpoint(EndpointSpec("ns", f"e{k}", "10.0.0.1", 8000 + k), engine="vllm", now=0.0) for k in range(count)]
        if pool is None
        else list(pool.endpoints.values())
    )
    return [
        EndpointReading(
            endpoint,
            waiting=1.0,
            running=2.0,
            pending_tokens=300.0,
            slowness=1.0,
            prefill_rate=9000.0,
            checkpoints=1234,
            index_tokens=123_456.0,
            confirmation=Confirmation(),
        )
        for endpoint in endpoints
    ]


class _Whole(Collector):
    """The metrics of a picker, each in one part."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        whole: dict[str, Metric] = {}
        for part in self._metrics.families(list(self._metrics.readings())):
            if part.name in whole:
                whole[part.name].samples += part.samples
            else:
                whole[part.name] = part
        return iter(whole.values())


def registry_of(metrics: Metrics) -> CollectorRegistry:
    """A registry with the present metrics of a picker, to look samples up and to encode them."""
    registry = CollectorRegistry()
    registry.register(_Whole(metrics))
    return registry
