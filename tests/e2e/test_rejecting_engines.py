"""Simulated engines that fail or reject requests, behind a real Envoy and a real picker: what the other requests see.

The picker learns of the responses from ``http_requests_total`` on the engines' metrics pages.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import StartEnvoy
from tests.fixtures.envoy import NO_RETRIES
from tests.fixtures.envoy.pickers import warmroute_serve
from tests.waiting import LIMIT
from warmroute.standalone.ports import free_port
from warmroute_lab.simulator.options import SimulatorOptions
from warmroute_lab.simulator.server import SimulatorServer

pytestmark = pytest.mark.slow

MODEL = "m"
CLIENTS = 4
REQUESTS = 200


@dataclass(frozen=True)
class Answer:
    """One response: its status, the engine that sent it, and the prompt tokens found in the engine's cache."""

    status: int
    engine: str
    cached_tokens: int


@dataclass(frozen=True)
class Site:
    """Three simulated engines, a picker and an Envoy."""

    url: str
    debug_port: int
    engines: list[SimulatorServer]
    client: aiohttp.ClientSession

    async def ask(self, *messages: dict[str, str]) -> Answer:
        """Send a chat through Envoy."""
        body = {"model": MODEL, "messages": messages, "max_tokens": 4}
        async with self.client.post(self.url + "/v1/chat/completions", json=body) as response:
            content = json.loads(await response.read())
            usage: dict[str, Any] = content.get("usage") or {}
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            return Answer(response.status, response.headers["x-simulator-name"], cached)

    async def endpoint(self, number: int) -> dict[str, Any]:
        """What the picker's debug page shows of an engine."""
        url = f"http://127.0.0.1:{self.debug_port}/debug/endpoints?endpoint=pod-{number}"
        async with self.client.get(url) as response:
            (shown,) = await response.json()
            return dict(shown)

    async def idle(self) -> None:
        """Return once the picker expects no work on any engine."""
        async with asyncio.timeout(LIMIT):
            while any([(await self.endpoint(n))["router"]["pending_prefill_tokens"] for n in range(len(self.engines))]):
                await asyncio.sleep(0.05)

    async def set_faults(self, number: int, **faults: float) -> None:
        """Change the faults of an engine."""
        async with self.client.post(self.engines[number].url + "/simulator/faults", json=faults) as response:
            assert response.status == 200


@asynccontextmanager
async def site(envoy: StartEnvoy, directory: Path, **options: Any) -> AsyncIterator[Site]:
    """``options`` are the engines' :class:`SimulatorOptions`."""
    debug_port = free_port()
    async with AsyncExitStack() as stack:
        engines = [SimulatorServer(SimulatorOptions(name=f"pod-{n}", model=MODEL, **options)) for n in range(3)]
        for engine in engines:
            await engine.start()
            stack.push_async_callback(engine.stop)
        targets = [f"127.0.0.1:{engine.port}" for engine in engines]
        flags = ("--routing-strategy=PREFIX_CACHE", f"--debug-port={debug_port}")
        epp, _ = await stack.enter_async_context(warmroute_serve(targets, directory, *flags))
        proxy = await stack.enter_async_context(envoy(targets, epp, **NO_RETRIES))
        timeout = aiohttp.ClientTimeout(total=LIMIT)
        client = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        yield Site(proxy.url, debug_port, engines, client)


def distinct_prompts() -> Iterator[dict[str, str]]:
    """Messages without a common prefix, of about 200 tokens."""
    for number in count():
        yield {"role": "user", "content": f"Question {number}. " + "Please explain. " * 50}


async def test_an_engine_that_fails_at_once_gets_few_requests_and_comes_back(envoy: StartEnvoy, tmp_path: Path) -> None:
    """Without passive health, the failing engine gets 141 of 200 requests: it never has a queue."""
    prompts = distinct_prompts()
    async with site(envoy, tmp_path) as it:
        await it.set_faults(0, fail_rate=1.0)
        answers: list[Answer] = []

        async def client() -> None:
            while len(answers) < REQUESTS:
                answers.append(await it.ask(next(prompts)))

        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        failed = [answer for answer in answers if answer.status != 200]
        assert {(answer.engine, answer.status) for answer in failed} == {("pod-0", 500)}
        assert len(failed) < REQUESTS * 0.3
        assert (await it.endpoint(0))["state"] == "ejected"

        await it.set_faults(0, fail_rate=0.0)
        async with asyncio.timeout(LIMIT):
            while (answer := await it.ask(next(prompts))).engine != "pod-0":
                await asyncio.sleep(0.05)
        assert answer.status == 200
        async with asyncio.timeout(LIMIT):
            while (await it.endpoint(0))["state"] != "ready":
                await asyncio.sleep(0.05)


async def test_over_long_prompts_leave_warm_conversations_warm(envoy: StartEnvoy, tmp_path: Path) -> None:
    """Each engine holds 128,000 tokens and rejects prompts over 32,768 tokens. The 24 over-long prompts have 100,000 tokens
    each: counted as cached, they would displace every conversation from the picker's index."""
    conversations = [
        [{"role": "user", "content": f"Conversation {number}. " + "Please explain. " * 500}] for number in range(6)
    ]
    async with site(envoy, tmp_path, num_gpu_blocks=8001) as it:
        homes = [(await it.ask(*messages)).engine for messages in conversations]
        for number in range(24):
            rejected = await it.ask({"role": "user", "content": f"Over-long prompt {number}. " + "x" * 400_000})
            assert rejected.status == 400
        await it.idle()
        for messages, home in zip(conversations, homes, strict=True):
            answer = await it.ask(*messages, {"role": "user", "content": "And then?"})
            assert (answer.status, answer.engine) == (200, home)
            assert answer.cached_tokens > 1_900
