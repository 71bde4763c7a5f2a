"""The pages of the metrics port, over a real socket."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import aiohttp
import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from tests.factories import readings, registry_of
from warmroute.errors import ConfigurationError
from warmroute.observability import page_server
from warmroute.observability.endpoint_reading import EndpointReading
from warmroute.observability.metrics import Metrics
from warmroute.observability.metrics_pages import MetricsPages
from warmroute.observability.page_server import PageServer
from warmroute.observability.series import SAMPLES_AT_ONCE
from warmroute.settings import Settings

pytestmark = pytest.mark.integration

MANY = readings(SAMPLES_AT_ONCE * 2 + 1)


def pages(metrics: Metrics, host: str = "127.0.0.1", port: int = 0, *, ready: bool = True) -> PageServer:
    return PageServer(host, port, MetricsPages(metrics, ready=lambda: ready).routes(), port_flag="--metrics-port")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(Settings, lambda: MANY, clock=lambda: 0.0)


@pytest.fixture
async def client(metrics: Metrics) -> AsyncIterator[aiohttp.ClientSession]:
    server = pages(metrics)
    await server.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
            yield session
    finally:
        await server.stop()


def without_process(text: str) -> list[str]:
    """The lines without the figures of the process, which change by themselves."""
    return [line for line in text.splitlines() if not line.startswith(("process_", "python_"))]


async def test_metrics_as_text(client: aiohttp.ClientSession, metrics: Metrics) -> None:
    async with client.get("/metrics") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        assert without_process(await answer.text()) == without_process(generate_latest(registry_of(metrics)).decode())


async def test_metrics_as_openmetrics(client: aiohttp.ClientSession, metrics: Metrics) -> None:
    async with client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        text = await answer.text()
    assert without_process(text) == without_process(generate_openmetrics(registry_of(metrics)).decode())  # type: ignore[no-untyped-call]
    assert len(list(parse_openmetrics(text))) > 30  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("version", ["", "x", "1.x", "1..0", "9" * 5000, "1.0.0.0.0", "-1", ";"])
async def test_an_accepted_version_that_is_none_gets_metrics(client: aiohttp.ClientSession, version: str) -> None:
    headers = {"Accept": f"application/openmetrics-text; version={version}, text/plain;version={version};q=x"}
    async with client.get("/metrics", headers=headers) as response:
        assert response.status == 200


async def test_metrics_are_gzipped_if_asked(client: aiohttp.ClientSession) -> None:
    async with client.get("/metrics", headers={"Accept-Encoding": "gzip"}) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert "warmroute_streams_in_flight" in await answer.text()
    async with client.get("/metrics", headers={"Accept-Encoding": "identity"}) as answer:
        assert "Content-Encoding" not in answer.headers


async def test_the_metrics_port_has_no_debug_pages(client: aiohttp.ClientSession) -> None:
    for page in ("endpoints", "decisions", "settings"):
        async with client.get(f"/debug/{page}") as answer:
            assert answer.status == 404
            assert "--debug-port" in (await answer.json())["error"]
    async with client.get("/") as answer:
        text = await answer.text()
    assert "debug" not in text
    for path in ("/metrics", "/healthz", "/readyz"):
        assert f'href="{path}"' in text


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("POST", "/metrics", 405)])
async def test_wrong_requests_get_json(client: aiohttp.ClientSession, method: str, path: str, status: int) -> None:
    async with client.request(method, path) as answer:
        assert answer.status == status
        assert (await answer.json())["path"] == path


async def test_a_failing_view_of_the_endpoints_is_a_500() -> None:
    def fail() -> list[EndpointReading]:
        raise RuntimeError("secret")

    server = pages(Metrics(Settings, fail))
    await server.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
            for _ in range(6):
                async with session.get("/metrics") as answer:
                    assert answer.status == 500
                    assert (await answer.json())["error"] == "RuntimeError; see the log"
            async with session.get("/healthz") as answer:
                assert await answer.text() == "ok\n"
            async with session.get("/readyz") as answer:
                assert await answer.text() == f"ok\nprocess {os.getpid()}\n"
    finally:
        await server.stop()


@pytest.mark.parametrize(("ready", "status"), [(True, 200), (False, 503)])
async def test_readiness(metrics: Metrics, ready: bool, status: int) -> None:
    server = pages(metrics, ready=ready)
    await server.start()
    try:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{server.port}/readyz") as answer:
                assert answer.status == status
            async with session.get(f"http://127.0.0.1:{server.port}/healthz") as answer:
                assert answer.status == 200
    finally:
        await server.stop()


async def test_all_interfaces_means_one_port_for_ipv4(metrics: Metrics) -> None:
    server = pages(metrics, host="")
    await server.start()
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{server.port}/healthz") as answer,
        ):
            assert answer.status == 200
    finally:
        await server.stop()


async def test_a_taken_port_is_a_configuration_error(metrics: Metrics) -> None:
    first = pages(metrics)
    await first.start()
    try:
        for host in ("127.0.0.1", ""):
            with pytest.raises(
                ConfigurationError, match=rf"port {first.port} \(--metrics-port\): Address already in use$"
            ):
                await pages(metrics, host, first.port).start()
    finally:
        await first.stop()


async def test_the_port_is_free_after_the_stop(metrics: Metrics) -> None:
    server = pages(metrics)
    await server.start()
    await server.stop()
    await server.stop()
    again = pages(metrics, port=server.port)
    await again.start()
    await again.stop()


async def test_a_page_of_many_endpoints_leaves_the_event_loop_to_others(
    client: aiohttp.ClientSession, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others run after each reading of an endpoint and after each part of a metric."""
    pauses = 0

    async def pause(self: page_server.Slices) -> None:
        nonlocal pauses
        pauses += 1

    monkeypatch.setattr(page_server.Slices, "pause", pause)
    async with client.get("/metrics") as answer:
        await answer.read()
    parts = list(metrics.families(MANY))
    assert pauses == len(MANY) + len(parts)
    assert max(len(part.samples) for part in parts) == SAMPLES_AT_ONCE
