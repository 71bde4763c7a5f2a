"""The scraper against real sockets: engines that answer as vLLM does, hang, vanish, come back or talk nonsense."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from warmroute.engines import scrape_target
from warmroute.engines import scraper as scraper_module
from warmroute.engines.scrape_target import ScrapeOutcome
from warmroute.engines.scraper import Scraper
from warmroute.extproc.tls import self_signed
from warmroute.pool.endpoint import Endpoint, EndpointSpec, ServedModels
from warmroute.pool.pool import Pool, PoolListener
from warmroute.settings import Settings

pytestmark = pytest.mark.integration


class FakeVllm:
    """Two handlers as in vLLM: ``/metrics`` ignores its query, ``/metrics/`` honours ``name[]``."""

    def __init__(self) -> None:
        self.samples = {
            "vllm:num_requests_running": '{engine="0"} 2.0',
            "vllm:num_requests_waiting": '{engine="0"} 1.0',
            "vllm:kv_cache_usage_perc": '{engine="0"} 0.5',
            "vllm:cache_config_info": '{block_size="16",num_gpu_blocks="100"} 1.0',
            "vllm:request_prompt_tokens_sum": '{engine="0"} 1000.0',
            "process_start_time_seconds": " 1000.0",
            "vllm:time_to_first_token_seconds_sum": '{engine="0"} 12.5',
        }
        self.multi_process = False
        """Several API servers share a registry: the filtered page is empty and tells no start time."""
        self.bare = False
        """There is no metrics page."""
        self.hung: asyncio.Event | None = None
        self.paths: list[str] = []
        self.connections: set[object] = set()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.paths.append(request.path)
        self.connections.add(request.transport)
        if self.hung is not None:
            await self.hung.wait()
        if self.bare:
            raise web.HTTPNotFound
        samples = dict(self.samples)
        if self.multi_process:
            del samples["process_start_time_seconds"]
        if request.path == "/metrics/":
            wanted = set() if self.multi_process else set(request.query.getall("name[]", []))
            samples = {name: rest for name, rest in samples.items() if name in wanted}
        return web.Response(text="".join(f"# TYPE {name} gauge\n{name}{rest}\n" for name, rest in samples.items()))


@asynccontextmanager
async def serving(
    handler: Callable[[web.BaseRequest], object], port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve on 127.0.0.1; gives the port."""
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)  # type: ignore[arg-type]
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls)
    try:
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class Scene(PoolListener):
    """A pool that is scraped quickly, and a way to wait for what it should come to."""

    def __init__(self) -> None:
        self.pool = Pool()
        self.results: list[tuple[str, ScrapeOutcome]] = []
        self.restarts: list[str] = []
        self._news = asyncio.Event()
        self.pool.subscribe(self, 0.0)

    def endpoint_restarted(self, endpoint: Endpoint, now: float) -> None:
        self.restarts.append(endpoint.spec.name)

    def add(self, port: int, name: str = "a") -> Endpoint:
        return self.pool.upsert(EndpointSpec("default", name, "127.0.0.1", port), 0.0)

    def heard(self, endpoint: Endpoint, outcome: ScrapeOutcome) -> None:
        self.results.append((endpoint.spec.name, outcome))
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds after some scrape."""
        async with asyncio.timeout(60):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def scrapes(self, count: int, name: str = "a") -> list[ScrapeOutcome]:
        """The outcomes of the next scrapes of an endpoint."""
        before = len(self.results)

        def news() -> list[ScrapeOutcome]:
            return [outcome for who, outcome in self.results[before:] if who == name]

        await self.until(lambda: len(news()) >= count)
        return news()[:count]


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraper_module, "TICK", 0.005)
    monkeypatch.setattr(scrape_target, "BACKOFF", (0.02, 0.04))


@pytest.fixture
async def scene(quick_retries: None) -> AsyncIterator[Scene]:
    async with scraping() as scene:
        yield scene


@asynccontextmanager
async def scraping(**changes: object) -> AsyncIterator[Scene]:
    settings = Settings(
        **{
            "refresh_metrics_interval": 0.02,
            "idle_metrics_interval": 0.04,
            "metrics_timeout": 20.0,
            "model_list_interval": 0.0,
            **changes,
        }
    )
    scene = Scene()
    scraper = Scraper(scene.pool, settings, on_result=scene.heard)
    await scraper.start()
    try:
        yield scene
    finally:
        await scraper.stop()


async def test_only_what_counts_is_asked_for_on_one_connection(scene: Scene) -> None:
    vllm = FakeVllm()
    async with serving(vllm) as port:
        endpoint = scene.add(port)
        assert set(await scene.scrapes(5)) == {ScrapeOutcome.OK}
        state = endpoint.state
        assert state is not None
        assert (state.running, state.waiting, state.kv_usage, state.capacity_tokens) == (2, 1, 0.5, 1600)
        assert state.prompt_tokens_total == 1000.0
        assert set(vllm.paths) == {"/metrics/"}
        assert len(vllm.connections) == 1


async def test_a_multi_process_engine_is_asked_for_the_whole_page(scene: Scene) -> None:
    vllm = FakeVllm()
    vllm.multi_process = True
    async with serving(vllm) as port:
        endpoint = scene.add(port)
        await scene.scrapes(3)
        assert vllm.paths[0] == "/metrics/"
        assert set(vllm.paths[1:]) == {"/metrics"}
        assert endpoint.state is not None
        assert endpoint.state.capacity_tokens == 1600


async def test_an_engine_without_metrics_stays_reachable(scene: Scene) -> None:
    vllm = FakeVllm()
    vllm.bare = True
    async with serving(vllm) as port:
        endpoint = scene.add(port)
        assert set(await scene.scrapes(3)) == {ScrapeOutcome.STATUS}
        assert endpoint.available
        vllm.bare = False
        await scene.until(lambda: endpoint.state is not None)


async def test_an_engine_that_hangs_is_left_out_and_comes_back_by_itself(
    quick_retries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrape_target, "LONGEST_SILENCE", 3.0)
    hung, well = FakeVllm(), FakeVllm()
    async with serving(hung) as port, serving(well) as other_port, scraping(metrics_timeout=1.0) as scene:
        endpoint, other = scene.add(port), scene.add(other_port, "b")
        await scene.until(lambda: endpoint.state is not None)
        hung.hung = asyncio.Event()
        await scene.until(lambda: ("a", ScrapeOutcome.TIMEOUT) in scene.results)
        assert endpoint.reachable, "once may happen"
        await scene.until(lambda: not endpoint.reachable)
        assert set(await scene.scrapes(10, "b")) == {ScrapeOutcome.OK}
        assert other.available
        hung.hung.set()
        hung.hung = None
        await scene.until(lambda: endpoint.available)
        assert scene.restarts == []


async def test_hung_engines_do_not_starve_those_that_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraper_module, "CONCURRENCY", 6)
    monkeypatch.setattr(scraper_module, "SILENT_CONCURRENCY", 2)
    hung = FakeVllm()
    hung.hung = asyncio.Event()
    async with serving(hung) as port, serving(FakeVllm()) as other_port, scraping(metrics_timeout=0.5) as scene:
        for i in range(24):
            scene.add(port, f"hung{i}")
        scene.add(other_port, "well")
        await scene.until(lambda: len({name for name, _ in scene.results}) == 25)
        before = len(scene.results)
        await scene.until(lambda: sum(name != "well" for name, _ in scene.results[before:]) >= 12)
        names = [name for name, _ in scene.results[before:]]
        assert names.count("well") >= 10, "in turn with 24 hung engines it would be scraped once"
        hung.hung.set()


async def test_the_log_tells_which_page_could_not_be_had_and_why(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        scene.add(port)
        await scene.scrapes(2)
    (record,) = caplog.records
    fields = vars(record)["fields"]
    assert fields["url"] == f"http://127.0.0.1:{port}/metrics"
    assert fields["error"] == os.strerror(errno.ECONNREFUSED)


async def test_an_engine_that_is_not_there_yet_comes_by_itself(scene: Scene) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        endpoint = scene.add(port)
        assert set(await scene.scrapes(3)) == {ScrapeOutcome.UNREACHABLE}
        assert not endpoint.reachable
    async with serving(FakeVllm(), port):
        await scene.until(lambda: endpoint.available and endpoint.state is not None)
    assert scene.restarts == []


@pytest.mark.parametrize("multi_process", [False, True])
async def test_a_restart_on_the_same_port_is_noticed(scene: Scene, multi_process: bool) -> None:
    old, new = FakeVllm(), FakeVllm()
    old.multi_process = new.multi_process = multi_process
    new.samples |= {
        "vllm:cache_config_info": '{block_size="16",num_gpu_blocks="200"} 1.0',
        "vllm:request_prompt_tokens_sum": '{engine="0"} 10.0',
        "process_start_time_seconds": " 2000.0",
    }
    async with serving(old) as port:
        endpoint = scene.add(port)
        await scene.until(lambda: endpoint.state is not None)
    await scene.until(lambda: not endpoint.reachable)
    async with serving(new, port):
        await scene.until(lambda: endpoint.available)
        assert endpoint.state is not None
        assert endpoint.state.capacity_tokens == 3200
        await scene.scrapes(3)
    assert scene.restarts == ["a"]


@asynccontextmanager
async def answering(reply: bytes) -> AsyncIterator[int]:
    """A peer that says ``reply`` to whatever it hears and hangs up."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.parametrize(
    ("reply", "outcome", "reachable"),
    [
        (b"", ScrapeOutcome.UNREACHABLE, False),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ScrapeOutcome.PAGE, True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nvllm:num", ScrapeOutcome.PAGE, True),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzzz\r\n", ScrapeOutcome.PAGE, True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", ScrapeOutcome.PAGE, True),
        (
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
            ScrapeOutcome.STATUS,
            True,
        ),
    ],
)
async def test_peers_that_talk_nonsense(scene: Scene, reply: bytes, outcome: ScrapeOutcome, reachable: bool) -> None:
    async with answering(reply) as port:
        endpoint = scene.add(port)
        assert set(await scene.scrapes(2)) == {outcome}
        assert endpoint.reachable is reachable
        assert endpoint.state is None


@pytest.mark.parametrize(("verify", "outcome"), [(False, ScrapeOutcome.OK), (True, ScrapeOutcome.PAGE)])
async def test_tls_with_and_without_verification(verify: bool, outcome: ScrapeOutcome) -> None:
    async with (
        serving(FakeVllm(), tls=self_signed()) as port,
        scraping(
            model_server_metrics_scheme="https",
            model_server_metrics_https_insecure_skip_verify=not verify,
        ) as scene,
    ):
        endpoint = scene.add(port)
        assert await scene.scrapes(1) == [outcome]
        assert endpoint.available


async def test_the_models_are_listed_without_tls_at_an_endpoint_whose_metrics_have_a_port_of_their_own() -> None:
    async def models(request: web.BaseRequest) -> web.Response:
        return web.Response(text='{"data": [{"id": "m"}]}')

    async with (
        serving(FakeVllm(), tls=self_signed()) as metrics_port,
        serving(models) as port,
        scraping(
            model_server_metrics_scheme="https", model_server_metrics_port=metrics_port, model_list_interval=0.01
        ) as scene,
    ):
        endpoint = scene.add(port)
        assert set(await scene.scrapes(2)) == {ScrapeOutcome.OK}
        assert endpoint.models == ServedModels(frozenset({"m"}))
