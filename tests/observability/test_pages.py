"""The pages of the metrics port, over a real socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from warmroute.errors import ConfigurationError
from warmroute.observability.metrics import Metrics
from warmroute.observability.pages import PAGES, Pages
from warmroute.settings import Settings

pytestmark = pytest.mark.integration


def pages(host: str = "127.0.0.1", port: int = 0, **data: Any) -> Pages:
    settings = Settings()
    sources = {
        "endpoints": lambda: [{"endpoint": "default/a"}],
        "decisions": lambda: [{"request": "1", "costs": {"default/a": 12.5}}],
        "settings": lambda: settings.model_dump(mode="json"),
    }
    return Pages(host, port, Metrics(lambda: settings, list), **(sources | data))


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    server = pages()
    await server.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
            yield session
    finally:
        await server.stop()


async def test_metrics_as_text(client: aiohttp.ClientSession) -> None:
    async with client.get("/metrics") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        assert "warmroute_streams_in_flight 0.0" in await answer.text()


async def test_metrics_as_openmetrics(client: aiohttp.ClientSession) -> None:
    async with client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        assert (await answer.text()).endswith("# EOF\n")


async def test_metrics_are_gzipped_if_asked(client: aiohttp.ClientSession) -> None:
    async with client.get("/metrics", headers={"Accept-Encoding": "gzip"}) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert "warmroute_streams_in_flight" in await answer.text()
    async with client.get("/metrics", headers={"Accept-Encoding": "identity"}) as answer:
        assert "Content-Encoding" not in answer.headers


async def test_debug_pages(client: aiohttp.ClientSession) -> None:
    for page, name in (("endpoints", "endpoint"), ("decisions", "request"), ("settings", "routing_strategy")):
        async with client.get(f"/debug/{page}") as short, client.get(f"/debug/{page}?pretty=1") as pretty:
            assert short.content_type == "application/json"
            text = await short.text()
            assert text.count("\n") == 1
            data = json.loads(text)
            assert name in (data[0] if isinstance(data, list) else data)
            indented = await pretty.text()
            assert indented.count("\n") > 1
            assert json.loads(indented) == data


async def test_the_index_names_every_page(client: aiohttp.ClientSession) -> None:
    async with client.get("/") as answer:
        assert answer.content_type == "text/html"
        text = await answer.text()
    for path in PAGES:
        assert f'href="{path}"' in text
        async with client.get(path) as answer:
            assert answer.status == 200


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("POST", "/metrics", 405)])
async def test_wrong_requests_get_json(client: aiohttp.ClientSession, method: str, path: str, status: int) -> None:
    async with client.request(method, path) as answer:
        assert answer.status == status
        assert (await answer.json())["path"] == path


async def test_a_page_that_fails_harms_no_other() -> None:
    def fail() -> None:
        raise KeyError("secret")

    server = pages(endpoints=fail)
    await server.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
            for _ in range(3):
                async with session.get("/debug/endpoints") as answer:
                    assert answer.status == 500
                    assert (await answer.json())["error"] == "KeyError; the log tells more"
            async with session.get("/healthz") as answer:
                assert await answer.text() == "ok\n"
    finally:
        await server.stop()


async def test_a_failing_view_of_the_endpoints_is_a_500_on_the_metrics_page() -> None:
    def fail() -> list[Any]:
        raise RuntimeError

    server = Pages("127.0.0.1", 0, Metrics(Settings, fail), endpoints=list, decisions=list, settings=dict)
    await server.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
            async with session.get("/metrics") as answer:
                assert answer.status == 500
            async with session.get("/debug/endpoints") as answer:
                assert answer.status == 200
    finally:
        await server.stop()


async def test_all_interfaces_means_one_port_for_ipv4() -> None:
    server = pages(host="")
    await server.start()
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{server.port}/healthz") as answer,
        ):
            assert answer.status == 200
    finally:
        await server.stop()


async def test_a_taken_port_is_a_configuration_error() -> None:
    first = pages()
    await first.start()
    try:
        for host in ("127.0.0.1", ""):
            with pytest.raises(ConfigurationError, match=rf"port {first.port} \(--metrics-port\): "):
                await pages(host, first.port).start()
    finally:
        await first.stop()


async def test_the_port_is_free_after_the_stop() -> None:
    server = pages()
    await server.start()
    await server.stop()
    await server.stop()
    again = pages(port=server.port)
    await again.start()
    await again.stop()
