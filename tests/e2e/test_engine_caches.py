"""Simulated engines with other caches than usual, behind a real Envoy and a real picker: what requests find there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.e2e.conftest import StartEnvoy
from tests.e2e.test_rejecting_engines import Site, site
from tests.waiting import LIMIT

pytestmark = pytest.mark.slow

CONVERSATIONS = 8


def question(number: int) -> dict[str, str]:
    """The beginning of a conversation, about 500 tokens."""
    return {"role": "user", "content": f"Question {number}. " + "Please explain it in detail. " * 70}


async def until_shown(it: Site, endpoint: str, *, held: bool) -> None:
    """Return once the debug page shows that the index has some of the endpoint's prompts, or none."""
    url = f"http://127.0.0.1:{it.debug_port}/debug/endpoints?endpoint={endpoint}"
    async with asyncio.timeout(LIMIT):
        while True:
            async with it.client.get(url) as response:
                shown = await response.json()
            if shown and shown[0]["scrape"] is not None and bool(shown[0]["index"]["checkpoints"]) == held:
                return
            await asyncio.sleep(0.05)


async def test_each_conversation_stays_with_one_engine_behind_a_port(envoy: StartEnvoy, tmp_path: Path) -> None:
    """The server alone sends each request to the engine with the fewest, of two."""
    async with site(envoy, tmp_path, data_parallel_size=2, time_scale=20.0) as it:
        for pod in range(3):
            await until_shown(it, f"pod-{pod}-dp1", held=False)
        first = await asyncio.gather(*(it.ask(question(number)) for number in range(CONVERSATIONS)))
        assert {answer.status for answer in first} == {200}
        await it.idle()
        for number, before in enumerate(first):
            answer = await it.ask(question(number), {"role": "user", "content": "And then?"})
            assert answer.engine == before.engine
            assert answer.cached_tokens > 400
        used = [engine.rank(rank).counters.finished for engine in it.engines for rank in range(2)]
        assert min(used) > 0, used


async def test_a_slept_engine_is_cold(envoy: StartEnvoy, tmp_path: Path) -> None:
    async with site(envoy, tmp_path, time_scale=20.0) as it:
        for pod in range(3):
            await until_shown(it, f"pod-{pod}", held=False)
        answer = await it.ask(question(0))
        await until_shown(it, answer.engine, held=True)
        (engine,) = [engine for engine in it.engines if engine.name == answer.engine]
        async with it.client.post(engine.url + "/sleep?level=1") as response:
            assert response.status == 200
        await until_shown(it, answer.engine, held=False)
        other = await it.ask(question(0))
        assert (other.status, other.cached_tokens) == (200, 0)
        assert other.engine != answer.engine, "it sleeps"
        async with it.client.post(engine.url + "/wake_up") as response:
            assert response.status == 200
