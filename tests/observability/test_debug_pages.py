"""The pages of the debug port, over a real socket: paging, filters, bounds and cost."""

from __future__ import annotations

import asyncio
import io
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import aiohttp
import pytest

from tests.factories import readings, routing_constants, session_rules
from warmroute.extproc.budget import MemoryBudget
from warmroute.extproc.dry_run import DryRun
from warmroute.extproc.reading_threads import ReadingThreads
from warmroute.extproc.session import Session
from warmroute.observability import page_server
from warmroute.observability.debug_pages import PAGES, TOTAL_HEADER, DebugPages, Number
from warmroute.observability.page_server import MOST_REQUESTS, PageServer
from warmroute.observability.recent_decisions import RecentDecisions
from warmroute.pool.endpoint import EndpointSpec, Health
from warmroute.pool.pool import Pool
from warmroute.request.inference import InferenceRequest, PromptPart
from warmroute.routing.confirmation import HitRatios
from warmroute.routing.router import Router
from warmroute.settings import Settings

pytestmark = pytest.mark.integration


class World:
    """A router over ``endpoints``, with ``decisions`` made, and its debug pages."""

    def __init__(self, endpoints: int = 3, decisions: int = 3) -> None:
        self.pool = Pool()
        self.pool.replace(
            [EndpointSpec("ns", f"e{k}", f"10.0.{k // 250}.{k % 250}", 8000) for k in range(endpoints)], 0.0
        )
        recent = RecentDecisions(max(1, decisions))
        self.router = Router(self.pool, routing_constants(), rng=random.Random(1), now=0.0, listeners=(recent,))
        self.readings = {reading.endpoint.id: reading for reading in readings(endpoints, self.pool)}
        for k in range(decisions):
            request = InferenceRequest(model=f"m{k % 2}", parts=(PromptPart(b"x" * 5000, 5000),), prompt_bytes=5000)
            self.router.pick(request, float(k), request_id=f"r{k}")
        self.threads, self.budget = ReadingThreads(), MemoryBudget(4 << 20)
        self.pages = DebugPages(
            loads=lambda: list(self.router.loads),
            reading=lambda load, now: self.readings[load.endpoint.id],
            decisions=recent.newest_first,
            dry_run=DryRun(self.new_session, self.threads, lambda: 10.0).run,
            settings=lambda: Settings(max_body_bytes=1 << 20),
            clock=lambda: 10.0,
        )

    def new_session(self) -> Session:
        return Session(
            self.router,
            session_rules(max_body_bytes=1 << 20, body_memory=4 << 20),
            models=self.pool.models,
            budget=self.budget,
            headers_budget=MemoryBudget(1 << 20),
            chance=random.Random(1).random,
        )


@asynccontextmanager
async def serving(world: World) -> AsyncIterator[aiohttp.ClientSession]:
    server = PageServer("127.0.0.1", 0, world.pages.routes(), port_flag="--debug-port", posts=world.pages.posts())
    await server.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
            yield session
    finally:
        await server.stop()
        await world.threads.stop()


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with serving(World()) as session:
        yield session


async def read(client: aiohttp.ClientSession, path: str) -> Any:
    async with client.get(path) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.content_type == "application/json"
        return json.loads(await answer.text())


@pytest.mark.parametrize(
    ("query", "requests"),
    [
        ("", ["r2", "r1", "r0"]),
        ("limit=2", ["r2", "r1"]),
        ("limit=1&offset=1", ["r1"]),
        ("offset=9", []),
        ("request=r1", ["r1"]),
        ("request=r9", []),
        ("model=m0", ["r2", "r0"]),
        ("reason=cold", ["r0"]),
        ("reason=warm&model=m1", ["r1"]),
        ("since=9", ["r2", "r1"]),
        ("since=8", ["r2"]),
    ],
)
async def test_decisions_are_paged_and_filtered(client: aiohttp.ClientSession, query: str, requests: list[str]) -> None:
    assert [decision["request"] for decision in await read(client, f"/debug/decisions?{query}")] == requests


async def test_decisions_are_filtered_by_the_chosen_endpoint(client: aiohttp.ClientSession) -> None:
    decisions = await read(client, "/debug/decisions")
    chosen = decisions[0]["chosen"]
    wanted = [decision["request"] for decision in decisions if decision["chosen"] == chosen]
    for name in (chosen, chosen.partition("/")[2]):
        assert [d["request"] for d in await read(client, f"/debug/decisions?endpoint={name}")] == wanted


async def test_a_decision_shows_the_chosen_endpoint_and_few_others() -> None:
    async with serving(World(endpoints=60, decisions=1)) as client:
        for query, shown in (("", 5), ("candidates=1", 1), ("candidates=50", 50)):
            (decision,) = await read(client, f"/debug/decisions?{query}")
            assert decision["candidates"] == 60
            assert len(decision["endpoints"]) == shown
            assert decision["endpoints"][0]["endpoint"] == decision["chosen"]


@pytest.mark.parametrize(
    ("query", "endpoints"),
    [
        ("", ["ns/e0", "ns/e1", "ns/e2"]),
        ("limit=1&offset=2", ["ns/e2"]),
        ("endpoint=e1", ["ns/e1"]),
        ("endpoint=ns/e1", ["ns/e1"]),
        ("state=ready", ["ns/e0", "ns/e1", "ns/e2"]),
        ("state=gone", []),
    ],
)
async def test_endpoints_are_paged_and_filtered(
    client: aiohttp.ClientSession, query: str, endpoints: list[str]
) -> None:
    assert [endpoint["endpoint"] for endpoint in await read(client, f"/debug/endpoints?{query}")] == endpoints


async def test_the_number_of_matches_is_told(client: aiohttp.ClientSession) -> None:
    for path, total in (("decisions?limit=1", 3), ("decisions?model=m1", 1), ("endpoints?limit=1", 3)):
        async with client.get(f"/debug/{path}") as answer:
            assert answer.headers[TOTAL_HEADER] == str(total)


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_can_be_indented(client: aiohttp.ClientSession, path: str) -> None:
    assert await read(client, path) == await read(client, f"{path}?pretty=1")
    async with client.get(f"{path}?pretty=1") as answer:
        assert (await answer.text()).count("\n") > 10


BAD_QUERIES = [
    ("decisions?requst=r1", "unknown parameter; the parameters are limit, offset, since, "),
    ("decisions?limit=0", "limit must be a whole number from 1 to 100"),
    ("decisions?limit=101", "limit must be"),
    ("decisions?limit=" + "9" * 200, "limit must be"),
    ("decisions?limit=%D9%A1", "limit must be"),
    ("decisions?candidates=51", "candidates must be a whole number from 1 to 50"),
    ("decisions?offset=-1", "offset must be"),
    ("decisions?since=x", "since must be"),
    ("decisions?model=" + "m" * 257, "model is longer than 256 characters"),
    ("decisions?limit=1&limit=2", "limit is given twice"),
    ("decisions?reason=Warm", "reason must be warm, partial, spread, cold, no-prompt or state"),
    ("endpoints?state=down", "state must be ready, unreachable, ejected, sleeping or gone"),
    ("endpoints?limit=201", "limit must be a whole number from 1 to 200"),
    ("endpoints?%0d%0ax=1", "unknown parameter"),
    ("settings?limit=1", "unknown parameter; the parameters are pretty"),
]


@pytest.mark.parametrize(("path", "complaint"), BAD_QUERIES)
async def test_a_bad_query_is_a_400_that_says_why(client: aiohttp.ClientSession, path: str, complaint: str) -> None:
    async with client.get(f"/debug/{path}") as answer:
        assert answer.status == 400
        assert (await answer.json())["error"].startswith(complaint)


async def test_the_index_names_every_page_and_parameter(client: aiohttp.ClientSession) -> None:
    async with client.get("/debug") as answer:
        text = await answer.text()
    for path, (_, parameters) in PAGES.items():
        assert f'href="{path[1:]}?pretty=1"' in text
        for name, kind in parameters.items():
            assert f"<code>{name}</code>" in text
            if isinstance(kind, Number):
                assert kind.least <= kind.default <= kind.most


async def test_the_index_names_the_dry_run(client: aiohttp.ClientSession) -> None:
    async with client.get("/debug") as answer:
        assert "POST /debug/explain" in await answer.text()


def chat(text: str, **fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]} | fields).encode()


async def explain(client: aiohttp.ClientSession, body: bytes, query: str = "", **headers: str) -> Any:
    headers = {"content-type": "application/json"} | headers
    async with client.post(f"/debug/explain{query}", data=io.BytesIO(body), headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return json.loads(await answer.text())


async def test_a_dry_run_says_where_a_request_would_go_and_books_nothing() -> None:
    world = World(decisions=0)
    async with serving(world) as client:
        for _ in range(3):
            would = await explain(client, chat("x" * 9000), "?candidates=2")
            assert would["chosen"] == "ns/e0"
            assert would["sentence"].startswith("holds less than 1,024 of 2,25")
            assert [endpoint["endpoint"] for endpoint in would["endpoints"]] == ["ns/e0", "ns/e1"]
        assert all(world.router.held(load) == (0, 0.0) for load in world.router.loads)
        assert await read(client, "/debug/decisions") == []
        assert world.budget.used == 0


async def test_a_dry_run_reads_path_and_headers_as_requests_do(client: aiohttp.ClientSession) -> None:
    rerank = await explain(client, b'{"query": "q", "documents": ["d"]}', "?path=/v1/rerank")
    assert rerank["reason"] == "cold"
    assert (await explain(client, b"hello", **{"content-type": "text/plain"}))["reason"] == "no-prompt"
    rewritten = await explain(client, chat("x"), **{"x-gateway-model-name-rewrite": "other"})
    assert rewritten["model"] == "other"


@pytest.mark.parametrize(
    ("body", "reason", "status"),
    [(b"{", "malformed", 400), (b"x" * ((1 << 20) + 1), "body-too-large", 413)],
    ids=["malformed", "too-large"],
)
async def test_a_dry_run_of_a_request_that_would_be_rejected_says_so(
    client: aiohttp.ClientSession, body: bytes, reason: str, status: int
) -> None:
    rejected = (await explain(client, body))["rejected"]
    assert (rejected["reason"], rejected["status"]) == (reason, status)


async def test_a_dry_run_has_the_memory_limit_of_requests() -> None:
    world = World()
    assert world.budget.take(4 << 20)
    async with serving(world) as client:
        assert (await explain(client, chat("x" * 900_000)))["rejected"]["reason"] == "overloaded"
        assert (await explain(client, chat("x")))["chosen"]


async def test_a_dry_run_is_a_post(client: aiohttp.ClientSession) -> None:
    async with client.get("/debug/explain") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    async with client.post("/debug/decisions", data=b"x") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


async def test_index_figures_are_coarse(client: aiohttp.ClientSession) -> None:
    (endpoint, *_) = await read(client, "/debug/endpoints")
    assert (endpoint["index"]["checkpoints"], endpoint["index"]["tokens"]) == (1200, 120000)


async def test_an_endpoint_shows_its_health_and_its_expected_and_measured_hits() -> None:
    world = World(endpoints=2)
    first, second = world.readings.values()
    first.endpoint.health = Health.TRIAL
    first.confirmation.trust = 0.212
    first.confirmation.last_window = HitRatios(0.8049, 0.4)
    async with serving(world) as client:
        shown, other = await read(client, "/debug/endpoints")
        assert [item["endpoint"] for item in await read(client, "/debug/endpoints?state=ejected")] == ["ns/e0"]
    assert (shown["state"], shown["health"]) == ("ejected", "trial")
    index = shown["index"]
    assert (index["trust"], index["factor"]) == (0.21, 0.21)
    assert (index["expected_hit_ratio"], index["measured_hit_ratio"]) == (0.8, 0.4)
    assert (other["state"], other["health"]) == ("ready", "healthy")
    assert other["index"]["trust"] == second.confirmation.trust == 1
    assert other["index"]["expected_hit_ratio"] is None


class Steps:
    """Counts how often the event loop runs other work, and the longest time between."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.count = 0

    async def run(self) -> None:
        last = monotonic()
        while True:
            await asyncio.sleep(0)
            now = monotonic()
            self.longest, last = max(self.longest, now - last), now
            self.count += 1


async def test_the_largest_pages_leave_the_event_loop_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 1,000 endpoints and 100 decisions, each page is rendered in slices: others run between any two items."""
    monkeypatch.setattr(page_server, "SLICE_SECONDS", 0.0)
    world = World(endpoints=1000, decisions=100)
    async with serving(world) as client:
        for path, least in (
            ("/debug/decisions?limit=100&candidates=50", 200),
            ("/debug/endpoints?limit=200", 1200),
        ):
            steps = Steps()
            task = asyncio.create_task(steps.run())
            page = await read(client, path)
            task.cancel()
            assert steps.count >= least
            assert len(json.dumps(page)) < 3_000_000


async def test_requests_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    go_on, entered = asyncio.Event(), asyncio.Semaphore(0)

    async def pause(self: page_server.Slices) -> None:
        entered.release()
        await go_on.wait()

    monkeypatch.setattr(page_server.Slices, "pause", pause)
    async with serving(world) as client:
        held = [asyncio.create_task(read(client, "/debug/endpoints")) for _ in range(MOST_REQUESTS)]
        async with asyncio.timeout(60):
            for _ in held:
                await entered.acquire()
        async with client.get("/debug/decisions") as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        go_on.set()
        assert all(len(page) == 3 for page in await asyncio.gather(*held))
        await read(client, "/debug/decisions")


async def test_a_reader_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_server, "SEND_SECONDS", 0.2)
    big = Settings(decision_log="y" * 20_000_000)
    world = World()
    world.pages._settings = lambda: big
    server = PageServer("127.0.0.1", 0, world.pages.routes(), port_flag="--debug-port")
    writers: list[asyncio.StreamWriter] = []
    await server.start()
    try:
        for _ in range(MOST_REQUESTS):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1)
            writer.write(b"GET /debug/settings HTTP/1.1\r\nHost: x\r\n\r\n")
            await writer.drain()
            writers.append(writer)
        async with asyncio.timeout(60), aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
            status = 503
            while status == 503:
                async with session.get("/debug/endpoints") as answer:
                    status = answer.status
        assert status == 200
    finally:
        await server.stop()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)
