"""Envoy traces requests, and the picker's span is a part of the same trace; log and decision record have its id."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.fixtures.envoy.apps import picker_app, target
from tests.fixtures.envoy.backends import backends
from tests.fixtures.envoy.http1 import exchange
from tests.fixtures.otlp import collector
from tests.waiting import eventually
from warmroute.observability.tracing import SPAN
from warmroute.standalone.bootstrap import bootstrap
from warmroute.standalone.envoy import EnvoyProcess
from warmroute.standalone.proxy_config import ProxyConfig

PROMPT = "Once upon a time there was a prompt. " * 200
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": PROMPT}]}).encode()
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def with_tracing(tree: dict[str, Any], url: str) -> dict[str, Any]:
    """The configuration with Envoy's own tracing on the listener that asks the picker."""
    address = urlsplit(url)
    resources = tree["static_resources"]
    manager = resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    uri = {"uri": f"{url}/v1/traces", "cluster": "collector", "timeout": "5s"}
    manager["tracing"] = {
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                "service_name": "envoy",
                "http_service": {"http_uri": uri},
            },
        }
    }
    host = {"endpoint": {"address": {"socket_address": {"address": address.hostname, "port_value": address.port}}}}
    endpoints = {"cluster_name": "collector", "endpoints": [{"lb_endpoints": [host]}]}
    resources["clusters"].append(
        {"name": "collector", "type": "STATIC", "connect_timeout": "5s", "load_assignment": endpoints}
    )
    return tree


@pytest.mark.parametrize("client_traces", [False, True], ids=["envoy-begins-the-trace", "the-client-does"])
async def test_the_picks_span_is_a_part_of_envoys_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, client_traces: bool
) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    caplog.set_level("INFO", logger="warmroute")
    async with collector() as (url, received):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")

        def spans() -> dict[str, list[Any]]:
            """All spans by the service's name."""
            found: dict[str, list[Any]] = {}
            for resource in [resource for request in received for resource in request.resource_spans]:
                (name,) = [one.value.string_value for one in resource.resource.attributes if one.key == "service.name"]
                found.setdefault(name, []).extend(span for scope in resource.scope_spans for span in scope.spans)
            return found

        async with backends(1) as pods, picker_app([pods[0].target], tmp_path, tracing=True) as app:
            tree = bootstrap(ProxyConfig(epp=(target(app),), endpoints=(pods[0].target,)))
            async with EnvoyProcess(with_tracing(tree, url), tmp_path) as proxy:
                headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"} if client_traces else {}
                for _ in range(2):
                    assert (await exchange(proxy.url, body=BODY, headers=headers)).status == 200
                await eventually(lambda: len(spans().get("warmroute", [])) == 2)
                ours = spans()["warmroute"]
                await eventually(
                    lambda: (
                        {span.parent_span_id for span in ours} <= {span.span_id for span in spans().get("envoy", [])}
                    ),
                )
            assert {span.name for span in ours} == {SPAN}
            traces = {span.trace_id.hex() for span in ours}
            assert traces == {TRACE} if client_traces else len(traces) == 2
            assert {record.trace_id for record in app.decisions.newest_first()} == traces
            (line,) = [record for record in caplog.records if record.message == "Do prefix-aware routing!"]
            assert line.__dict__["fields"]["trace"] in traces
