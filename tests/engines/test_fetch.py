"""Fetching a page from real sockets: the forms of HTTP/1.1 that servers use, and peers that would stall the event loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from warmroute.engines import fetch as fetch_module
from warmroute.engines.fetch import MOST_CHUNKS, MOST_HEAD_BYTES, MOST_INTERIM, PageFetcher
from warmroute.engines.scrape_target import ScrapeOutcome
from warmroute.engines.scraper import Scraper
from warmroute.errors import ScrapeError
from warmroute.pool.endpoint import Endpoint, EndpointSpec
from warmroute.pool.pool import Pool
from warmroute.settings import Settings

pytestmark = pytest.mark.integration

OK = b"HTTP/1.1 200 OK\r\n"
LIMIT = 4096


class Server:
    """Answers the n-th request of all connections with the n-th reply, the last one again and again."""

    def __init__(self, replies: list[bytes], hang_up: bool) -> None:
        self.replies = replies
        self.hang_up = hang_up
        self.requests: list[bytes] = []
        self.connections = 0
        self.port = 0
        self.closed = asyncio.Event()
        """Set when a connection has ended."""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self.replies.pop(0) if len(self.replies) > 1 else self.replies[0])
                await writer.drain()
                if self.hang_up:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.closed.set()
            writer.close()


@asynccontextmanager
async def listening(peer: Server) -> AsyncIterator[Server]:
    """Listen for ``peer``; its handlers end with the listener."""
    handlers: set[asyncio.Task[None]] = set()

    def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.create_task(peer.handle(reader, writer)))

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    peer.port = listener.sockets[0].getsockname()[1]
    try:
        yield peer
    finally:
        listener.close()
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await asyncio.sleep(0)  # the event loop closes the sockets


def server(*replies: bytes, hang_up: bool = False) -> AbstractAsyncContextManager[Server]:
    return listening(Server([*replies], hang_up))


@pytest.fixture
async def fetch() -> AsyncIterator[Callable[[Server], Awaitable[tuple[int, bytes]]]]:
    fetcher = PageFetcher(Settings(max_metrics_bytes=LIMIT))

    async def get(peer: Server) -> tuple[int, bytes]:
        async with asyncio.timeout(60):
            return await fetcher(f"http://127.0.0.1:{peer.port}/metrics/?name[]=a:b")

    yield get
    await fetcher.close()


Fetch = Callable[[Server], Awaitable[tuple[int, bytes]]]


async def test_the_token_of_a_file_is_sent_with_each_request(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    fetcher = PageFetcher(Settings(model_server_token_file=file))
    async with server(OK + b"content-length: 1\r\n\r\na", OK + b"content-length: 1\r\n\r\na") as peer:
        for _ in range(2):
            assert await fetcher(f"http://127.0.0.1:{peer.port}/metrics") == (200, b"a")
        await fetcher.close()
    assert all(b"\r\nAuthorization: Bearer s3cret\r\n" in request for request in peer.requests)


@pytest.mark.parametrize("content", [None, b"", b"two words", b"line\r\nfeed", b"x" * (17 << 10)])
async def test_a_token_that_cannot_be_used_is_no_request(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ScrapeError, match="token"):
        await PageFetcher(Settings(model_server_token_file=file))("http://127.0.0.1:1/metrics")


@pytest.mark.parametrize(
    ("reply", "hang_up", "answer"),
    [
        (OK + b"content-length: 3\r\n\r\nabc", False, (200, b"abc")),
        (OK + b"Content-Length:3 \r\nconnection: close\r\n\r\nabc", True, (200, b"abc")),
        (OK + b"content-length: 0\r\n\r\n", False, (200, b"")),
        (OK + b"\r\nabc", True, (200, b"abc")),
        (b"HTTP/1.0 200 OK\n\nabc", True, (200, b"abc")),
        (OK + b"Transfer-Encoding: Chunked\r\n\r\n1\r\na\r\n2;x=y\r\nbc\r\n0\r\nt: 1\r\n\r\n", False, (200, b"abc")),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno", False, (404, b"no")),
        (b"HTTP/1.1 204 \r\n\r\n", False, (204, b"")),
        (b"HTTP/1.1 200\r\ncontent-length: 1\r\n\r\na", False, (200, b"a")),
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK + b"content-length: 1\r\n\r\na", False, (200, b"a")),
    ],
)
async def test_the_forms_of_a_response(fetch: Fetch, reply: bytes, hang_up: bool, answer: tuple[int, bytes]) -> None:
    async with server(reply, hang_up=hang_up) as peer:
        assert await fetch(peer) == answer
        assert await fetch(peer) == answer
        assert peer.connections == (2 if hang_up else 1)
        assert (
            peer.requests[0]
            == (
                f"GET /metrics/?name[]=a:b HTTP/1.1\r\nHost: 127.0.0.1:{peer.port}\r\nAccept: text/plain\r\n"
                "Accept-Encoding: identity\r\n\r\n"
            ).encode()
        )


CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"x" * 200_000,
        OK + b"content-length: x\r\n\r\nabc",
        OK + b"content-length: -1\r\n\r\n",
        OK + b"content-length: 10\r\n\r\nabc",
        OK + b"content-length: %d\r\n\r\n" % (LIMIT + 1),
        OK + b"\r\n" + b"x" * (LIMIT + 1),
        OK + b"a: " + b"x" * 200_000,
        OK + b"a: b\r\n" * (MOST_HEAD_BYTES // 6 + 1) + b"\r\n",
        CHUNKED + b"zzz\r\n",
        CHUNKED + b"-1\r\n",
        CHUNKED + b"fffffffff\r\n",
        CHUNKED + b"%x\r\n" % (LIMIT + 1),
        CHUNKED + b"800\r\n" + b"x" * 0x800 + b"\r\n801\r\n",
        CHUNKED + (b"1;" + b"x" * 60_000 + b"\r\na\r\n") * 3 + b"0\r\n\r\n",
        CHUNKED + (b"1\r\na" + b"y" * 60_000 + b"\r\n") * 3 + b"0\r\n\r\n",
        CHUNKED + b"1\r\na\r\n" * MOST_CHUNKS + b"0\r\n\r\n",
        CHUNKED + b"0\r\n" + b"a: b\r\n" * (MOST_HEAD_BYTES // 6 + 1),
        INTERIM * (MOST_INTERIM + 1) + OK + b"content-length: 0\r\n\r\n",
    ],
)
async def test_an_answer_out_of_bounds_is_refused(fetch: Fetch, reply: bytes) -> None:
    async with server(reply, hang_up=True) as peer:
        with pytest.raises(ScrapeError):
            await fetch(peer)


@pytest.mark.parametrize(
    "reply",
    [
        OK + b"content-length: %d\r\n\r\n" % LIMIT + b"x" * LIMIT,
        OK + b"\r\n" + b"x" * LIMIT,
        CHUNKED + b"800\r\n" + b"x" * 0x800 + b"\r\n800\r\n" + b"x" * 0x800 + b"\r\n0\r\n\r\n",
    ],
)
async def test_a_page_of_exactly_the_limit_is_read(fetch: Fetch, reply: bytes) -> None:
    async with server(reply, hang_up=True) as peer:
        assert await fetch(peer) == (200, b"x" * LIMIT)


async def test_a_peer_that_hangs_up_at_once_is_a_connection_error(fetch: Fetch) -> None:
    async with server(b"", hang_up=True) as peer:
        with pytest.raises(ConnectionError):
            await fetch(peer)


async def test_a_connection_that_the_server_closed_while_idle_is_replaced(fetch: Fetch) -> None:
    async with server(OK + b"content-length: 1\r\n\r\na", hang_up=True) as peer:
        for _ in range(3):
            assert await fetch(peer) == (200, b"a")


class HangsUpOnTheSecond(Server):
    """Hangs up on the second request of each connection, as a server does that closes it just then."""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self.replies[0])
            await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


async def test_a_request_that_meets_the_end_of_a_kept_connection_is_sent_again(fetch: Fetch) -> None:
    async with listening(HangsUpOnTheSecond([OK + b"content-length: 1\r\n\r\na"], hang_up=False)) as peer:
        assert await fetch(peer) == (200, b"a")
        assert await fetch(peer) == (200, b"a")
        assert peer.connections == 2


async def test_idle_connections_are_closed_after_a_while(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "KEEP_ALIVE", 0.01)
    async with server(OK + b"content-length: 1\r\n\r\na") as peer:
        await fetch(peer)
        async with asyncio.timeout(60):
            await peer.closed.wait()


# ---------------------------------------------------------------- peers that would stall the event loop

HOSTILE_PROGRAM = """
import socket, sys, threading

HEAD = b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n"
PAGE = b"vllm:num_requests_running 1\\nvllm:num_requests_waiting 1\\n"
NAME = b"vllm:prompt_tokens_by_source_total"
SIZE = 2 << 20

def page(body):
    return [HEAD % SIZE + (PAGE + body * (SIZE // len(body) + 1))[:SIZE - 1] + b"\\n"]

PARTS = {
    "interim": lambda: iter(lambda: b"HTTP/1.1 100 Continue\\r\\n\\r\\n" * 10_000, None),
    "headers": lambda: [b"HTTP/1.1 200 OK\\r\\n", *[b"a: b\\r\\n" * 50_000] * 100],
    "chunks": lambda: [b"HTTP/1.1 200 OK\\r\\ntransfer-encoding: chunked\\r\\n\\r\\n", *[b"1\\r\\na\\r\\n" * 50_000] * 100],
    "endless": lambda: iter([b"HTTP/1.1 200 OK\\r\\n\\r\\n", *[b"x" * 1_000_000] * 1000]),
    "repeated": lambda: page(NAME + b" 1\\n"),
    "lines": lambda: page(b"\\n"),
    "label": lambda: page(NAME + b'{a="' + b"x" * (SIZE - 200) + b'"} 1\\n'),
    "letters": lambda: page(NAME + b"{" + b"a" * (SIZE - 200) + b"} 1\\n"),
    "quotes": lambda: page(NAME + b"{" + b'a="",' * 25_000 + b"} 1\\n#" + b"x" * SIZE),
    "digits": lambda: page(NAME + b" " + b"1" * (SIZE - 200) + b"\\n"),
}

def serve(connection):
    try:
        while connection.recv(65536):
            for part in PARTS[sys.argv[1]]():
                connection.sendall(part)
    except OSError:
        pass
    finally:
        connection.close()

with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


@contextmanager
def hostile(kind: str) -> Iterator[int]:
    """A peer in a process of its own, so that its work is not counted; gives its port."""
    process = subprocess.Popen([sys.executable, "-c", HOSTILE_PROGRAM, kind], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Lag:
    """The CPU seconds that this thread spends between two turns of a task: the lag of the event loop, apart from what other
    processes take. Each scrape has its longest one; a stall is in all of them, other work of the test's process in few."""

    def __init__(self, scrapes: int) -> None:
        self.of_scrapes: list[float] = []
        self._scrapes = scrapes
        self._longest = 0.0

    def scraped(self) -> None:
        self.of_scrapes.append(self._longest)
        self._longest = 0.0

    async def measure(self) -> None:
        before = time.thread_time()
        while len(self.of_scrapes) < self._scrapes:
            await asyncio.sleep(0)
            now = time.thread_time()
            self._longest = max(self._longest, now - before)
            before = now


KINDS = ["interim", "headers", "chunks", "endless", "repeated", "lines", "label", "letters", "quotes", "digits"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_hostile_peer_stalls_nobody(kind: str) -> None:
    lag = Lag(scrapes=4)
    outcomes: set[ScrapeOutcome] = set()

    def result(endpoint: Endpoint, outcome: ScrapeOutcome) -> None:
        outcomes.add(outcome)
        lag.scraped()

    pool = Pool()
    settings = Settings(idle_metrics_interval=0.01, refresh_metrics_interval=0.01, metrics_rate=1000)
    scraper = Scraper(pool, settings, on_result=result)
    with hostile(kind) as port:
        pool.upsert(EndpointSpec("default", "a", "127.0.0.1", port), time.monotonic())
        await scraper.start()
        try:
            async with asyncio.timeout(60):
                await lag.measure()
        finally:
            await scraper.stop()
    most = 0.05 if sys.gettrace() is None else 0.5  # measuring coverage multiplies the CPU
    assert min(lag.of_scrapes[1:]) < most
    assert ScrapeOutcome.INTERNAL not in outcomes
