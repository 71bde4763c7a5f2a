"""Three pickers that share their state over a real NATS, behind a real Envoy, under 100 conversation turns a second.

Each case is compared with one picker that never stops: how many requests fail, and which share of the prompts the engines
find in their caches. ``WARMROUTE_SHARED_STATE_SECONDS`` (15) is how long each load lasts at least.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.fixtures.envoy.http1 import exchange
from tests.fixtures.envoy.picker_endpoints import Pickers, follow_pickers
from tests.fixtures.envoy.pickers import warmroute_serve
from warmroute.standalone.bootstrap import bootstrap
from warmroute.standalone.child import Child
from warmroute.standalone.envoy import EnvoyProcess
from warmroute.standalone.nats import NatsProcess
from warmroute.standalone.ports import free_range
from warmroute.standalone.proxy_config import ProxyConfig

ENGINES = 4
RATE = 100.0
"""Requests a second."""
CLIENTS = 8
SLOWEST_RATE = 5.0
"""Requests a second below which a wait for more of them is given up."""
SECONDS = float(os.environ.get("WARMROUTE_SHARED_STATE_SECONDS", "15"))
CONVERSATIONS = 60
TURNS = 12
FORGOTTEN = 0.02
"""Least loss of hit ratio that counts: runs with nothing lost differ by 0.001 (0.842), and three pickers that share nothing
lose 0.16."""
MODEL = "m"
KEY = "0123456789abcdef"

pytestmark = pytest.mark.slow


class Conversations:
    """Clients that go on with one of their conversations, :data:`RATE` requests a second together, or as many as the machine
    answers.

    A user reads an answer before the next turn: a turn goes to one of the :data:`CONVERSATIONS` / 2 conversations whose last
    answer is oldest, so about 0.3 s pass between two turns of one conversation. That is more than a decision takes through
    NATS on a loaded machine; what a longer way costs is measured by ``bench replay --pickers``.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._rng = random.Random(1)
        self._quiet: deque[list[dict[str, str]]] = deque([] for _ in range(CONVERSATIONS))
        """The messages of each conversation that waits for no answer; the one answered last is the last."""
        self._number = 0
        self.answered = 0
        self.failed: list[int] = []

    async def client(self, number: int) -> None:
        """One of the clients, which send in turn; each waits for its answer."""
        loop = asyncio.get_running_loop()
        due = loop.time() + number / RATE
        while True:
            due = max(due + CLIENTS / RATE, loop.time())
            await asyncio.sleep(due - loop.time())
            place = self._rng.randrange(CONVERSATIONS // 2)
            conversation = self._quiet[place]
            del self._quiet[place]
            await self._send(self._next_turn(conversation))
            self._quiet.append(conversation)

    @property
    def counted(self) -> int:
        return self.answered + len(self.failed)

    async def more(self, requests: float) -> None:
        """Return after that many more answers."""
        goal = self.counted + requests
        async with asyncio.timeout(60 + requests / SLOWEST_RATE):
            while self.counted < goal:
                await asyncio.sleep(0.01)

    def _next_turn(self, messages: list[dict[str, str]]) -> bytes:
        """A conversation's next request: all its messages so far and a new one."""
        if len(messages) >= 2 * TURNS:
            messages.clear()
        self._number += 1
        text = " ".join(self._rng.choices(("alpha", "beta", "gamma", "delta", "epsilon"), k=100))
        messages.append({"role": "user", "content": f"{self._number} {text}"})
        body = json.dumps({"model": MODEL, "messages": messages, "max_tokens": 1}).encode()
        messages.append({"role": "assistant", "content": "yes"})
        return body

    async def _send(self, body: bytes) -> None:
        try:
            status = (await exchange(self._url, body=body)).status
        except (OSError, asyncio.IncompleteReadError):
            status = 0
        if status == 200:
            self.answered += 1
        else:
            self.failed.append(status)


class Site:
    """Engines, NATS, pickers, Envoy and a load."""

    def __init__(self, directory: Path, stack: AsyncExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._started = 0
        first = free_range(ENGINES)
        self.engines = [f"127.0.0.1:{first + k}" for k in range(ENGINES)]
        self.nats = NatsProcess(directory)
        self.pickers = Pickers(directory / "pickers.yaml")
        self.running: list[tuple[str, Child]] = []
        self.load: Conversations
        self._key = directory / "key"
        self._key.write_text(KEY)

    async def start_engines(self) -> None:
        port = self.engines[0].rpartition(":")[2]
        argv = [sys.executable, "-m", "warmroute", "simulate", "--count", str(ENGINES), "--port", port]
        argv += ["--model", MODEL]
        engines = await self._stack.enter_async_context(
            Child("warmroute simulate", argv, self._directory / "engines.log")
        )

        async def all_listen() -> bool:
            return engines.tail(ENGINES + 10).count("listens on") == ENGINES

        await engines.until(all_listen, "listening")

    async def start_picker(self, *flags: str) -> None:
        """A picker that is ready, and that Envoy knows."""
        self._started += 1
        directory = self._directory / f"picker-{self._started}"
        directory.mkdir()
        picker = await self._stack.enter_async_context(
            warmroute_serve(
                self.engines,
                directory,
                "--routing-strategy=PREFIX_CACHE",
                "--drain-quiet=1s",
                "--log-level=info",
                *flags,
            )
        )
        self.running.append(picker)
        self.pickers.healthy.append(picker[0])
        if self.pickers.proxy is not None:
            await self.pickers.tell()

    async def start_sharing_picker(self) -> None:
        await self.start_picker("--shared-state", self.nats.url, "--shared-state-key-path", str(self._key))

    async def end_picker(self, address: str, child: Child) -> None:
        """A pod's end: SIGTERM, DRAINING, and gone once the process is."""
        os.kill(child.pid, signal.SIGTERM)
        self.running.remove((address, child))
        self.pickers.healthy.remove(address)
        self.pickers.draining.append(address)
        await self.pickers.tell()
        async with asyncio.timeout(60):
            assert await child.wait() == 0
        self.pickers.draining.remove(address)
        await self.pickers.tell()

    async def start_envoy(self) -> EnvoyProcess:
        await self.pickers.tell()
        config = ProxyConfig(epp=("127.0.0.1:1",), endpoints=tuple(self.engines), failure_mode_allow=False)
        tree = bootstrap(config)
        follow_pickers(tree, self.pickers.file)
        self.pickers.proxy = await self._stack.enter_async_context(EnvoyProcess(tree, self._directory))
        return self.pickers.proxy

    async def cached(self) -> tuple[float, float]:
        """Tokens that the engines looked up in their caches, and found there."""
        totals = [0.0, 0.0]
        for engine in self.engines:
            page = (await exchange(f"http://{engine}", "/metrics", method="GET")).body.decode()
            for place, name in enumerate(("queries", "hits")):
                totals[place] += sum(map(float, re.findall(rf"^vllm:prefix_cache_{name}_total\S* (\S+)$", page, re.M)))
        return totals[0], totals[1]


@asynccontextmanager
async def site(directory: Path, *, sharing: int) -> AsyncIterator[Site]:
    """A site under load, with ``sharing`` pickers that share or, with 0, one that does not."""
    async with AsyncExitStack() as stack:
        it = Site(directory, stack)
        await it.start_engines()
        if sharing:
            await stack.enter_async_context(it.nats)
        for _ in range(sharing):
            await it.start_sharing_picker()
        if not sharing:
            await it.start_picker()
        it.load = Conversations((await it.start_envoy()).url)
        clients = [asyncio.create_task(it.load.client(number)) for number in range(CLIENTS)]
        try:
            await it.load.more(3 * RATE)
            yield it
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)


async def hit_ratio(it: Site, while_running: Callable[[], Awaitable[None]]) -> float:
    """The share of prompt tokens that the engines found in their caches meanwhile, and for :data:`SECONDS` at least."""
    queries, hits = await it.cached()
    began, start = it.load.counted, asyncio.get_running_loop().time()
    await while_running()
    await it.load.more(max(RATE, SECONDS * RATE - (it.load.counted - began)))
    queries_now, hits_now = await it.cached()
    seconds = asyncio.get_running_loop().time() - start
    requests = it.load.counted - began
    print(f"{requests} requests in {seconds:.1f} s, {len(it.load.failed)} failed", end="; ")
    return (hits_now - hits) / (queries_now - queries)


_STEADY: dict[str, float] = {}


@pytest.fixture
async def expected(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The hit ratio of one picker that never stops, measured once."""
    if "ratio" not in _STEADY:
        async with site(tmp_path_factory.mktemp("one-picker"), sharing=0) as it:
            _STEADY["ratio"] = await hit_ratio(it, lambda: asyncio.sleep(0))
            assert it.load.failed == []
    return _STEADY["ratio"]


async def test_a_rolling_restart_of_all_three_fails_nothing_and_forgets_nothing(
    tmp_path: Path, expected: float
) -> None:
    async with site(tmp_path, sharing=3) as it:

        async def roll() -> None:
            for address, child in list(it.running):
                await it.start_sharing_picker()
                await it.end_picker(address, child)

        measured = await hit_ratio(it, roll)
    print(f"hit ratio {measured:.4f}, of one picker {expected:.4f}")
    assert it.load.failed == []
    assert measured > expected - FORGOTTEN


async def test_a_picker_that_is_killed_costs_its_open_streams_at_most(tmp_path: Path, expected: float) -> None:
    async with site(tmp_path, sharing=3) as it:

        async def kill() -> None:
            address, child = it.running.pop()
            os.kill(child.pid, signal.SIGKILL)
            await it.load.more(3 * RATE)  # Envoy does not know yet
            it.pickers.healthy.remove(address)
            await it.pickers.tell()

        measured = await hit_ratio(it, kill)
    print(f"hit ratio {measured:.4f}, of one picker {expected:.4f}")
    assert len(it.load.failed) <= CLIENTS  # each has one request open at most
    assert measured > expected - FORGOTTEN


async def test_nats_may_die_and_come_back(tmp_path: Path, expected: float) -> None:
    async with site(tmp_path, sharing=3) as it:

        async def away() -> None:
            os.kill(it.nats.child.pid, signal.SIGKILL)
            await it.nats.child.wait()
            await it.load.more(3 * RATE)
            await it.nats.start()
            await it.load.more(3 * RATE)

        measured = await hit_ratio(it, away)
        for k in range(3):
            log = (tmp_path / f"picker-{k + 1}" / "epp.log").read_text()
            assert log.count("shared state is away") == 1
            assert log.count("shared state connected") == 2
    print(f"hit ratio {measured:.4f}, of one picker {expected:.4f}")
    assert it.load.failed == []
