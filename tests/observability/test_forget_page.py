"""POST /debug/forget over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from warmroute.observability.forget_page import ForgetPage
from warmroute.observability.page_server import PageServer
from warmroute.pool.endpoint import Endpoint, EndpointSpec
from warmroute.pool.pool import Pool

pytestmark = pytest.mark.integration

TOKEN = "s3cret"


@asynccontextmanager
async def door(token_file: Path | None) -> AsyncIterator[tuple[str, list[str]]]:
    """The page over a pool of three; gives its URL and the endpoints that were forgotten."""
    pool, forgotten = Pool(), []
    pool.replace([EndpointSpec("ns", f"e{k}", f"10.0.0.{k}", 8000) for k in range(3)], 0.0)

    def forget(endpoint: Endpoint) -> None:
        forgotten.append(endpoint.id)

    page = ForgetPage(token_file, endpoints=lambda: list(pool.endpoints.values()), forget=forget)
    server = PageServer("127.0.0.1", 0, {}, port_flag="--debug-port", posts=page.posts())
    await server.start()
    try:
        yield f"http://127.0.0.1:{server.port}/debug/forget", forgotten
    finally:
        await server.stop()


async def post(url: str, token: str | None = TOKEN) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession() as client, client.post(url, headers=headers) as response:
        return response.status


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    return file


async def test_the_named_endpoints_are_forgotten(token_file: Path) -> None:
    async with door(token_file) as (url, forgotten):
        assert await post(f"{url}?endpoint=ns/e1") == 200
        assert await post(f"{url}?endpoint=e2") == 200
        assert forgotten == ["ns/e1", "ns/e2"]
        assert await post(f"{url}?endpoint=*") == 200
        assert forgotten[2:] == ["ns/e0", "ns/e1", "ns/e2"]


@pytest.mark.parametrize(
    ("query", "status"), [("", 400), ("?endpoint=e0&endpoint=e1", 400), ("?pod=e0", 400), ("?endpoint=e9", 404)]
)
async def test_what_names_no_endpoint_forgets_nothing(token_file: Path, query: str, status: int) -> None:
    async with door(token_file) as (url, forgotten):
        assert await post(url + query) == status
        assert forgotten == []


@pytest.mark.parametrize("token", [None, "", "other", "s3cret2"])
async def test_nobody_gets_in_without_the_token(token_file: Path, token: str | None) -> None:
    async with door(token_file) as (url, forgotten):
        assert await post(f"{url}?endpoint=e0", token) == 401
        assert forgotten == []


@pytest.mark.parametrize("content", [None, "", "two words"])
async def test_without_a_usable_token_file_the_door_is_shut(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    for given in (None, file):
        async with door(given) as (url, forgotten):
            assert await post(f"{url}?endpoint=e0", content or "") == 403
            assert forgotten == []
