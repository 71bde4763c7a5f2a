"""What the live page costs the picker: its samples, its counting of decisions, and two viewers."""

from __future__ import annotations

import asyncio
import http.client
import random
import tempfile
from pathlib import Path
from statistics import median
from time import monotonic, thread_time

from warmroute.observability.page_server import PageServer
from warmroute.picker import EndpointPicker
from warmroute.pool.endpoint import EndpointSpec, EngineState
from warmroute.request.inference import InferenceRequest, PromptPart
from warmroute.routing.decision import Decision
from warmroute.routing.decision_record import DecisionRecord
from warmroute.settings import Settings
from warmroute_lab.overhead.figure import Against, Figure
from warmroute_lab.overhead.options import MANY

REQUESTS = 300
"""Requests per second."""
VIEWERS = 2
BUDGET = 0.01
"""Cores."""
PATHS = ("/debug/live", "/debug/live/history")
"""What a viewer reads: the first each second, the second every :data:`HISTORY_EVERY` seconds."""
HISTORY_EVERY = 5
SYSTEM_PROMPTS = 20
WARM_UP = 70
"""Seconds before the measurement, so that all windows are full."""


class _World:
    """A picker that is not started, over a hundred endpoints, and its debug port."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        file = directory / "endpoints.yaml"
        file.write_text("endpoints: []\n", encoding="utf-8")
        self.picker = EndpointPicker(Settings(endpoints_file=file, routing_strategy="PREFIX_CACHE"), rng=rng)
        self.picker.pool.replace(
            [EndpointSpec("ns", f"pod-{k}", f"10.0.0.{k}", 8000) for k in range(MANY)], monotonic()
        )
        self.server = PageServer("127.0.0.1", 0, self.picker.live.routes(), port_flag="--debug-port")
        self._rng = rng
        self._prompts = [b"%d system " % k * 1200 for k in range(SYSTEM_PROMPTS)]
        self._serial = 0

    def decisions(self) -> list[tuple[Decision, DecisionRecord]]:
        """Make a second's decisions. The live page has not counted them yet."""
        made: list[tuple[Decision, DecisionRecord]] = []
        self.picker.router.listeners = (self.picker.decisions, _Collector(made))
        now = monotonic()
        for endpoint in self.picker.pool.endpoints.values():
            state = EngineState(now, running=5, waiting=0, kv_usage=0.5, first_tokens_total=float(self._serial))
            self.picker.pool.observed(endpoint, state, now)
        for _ in range(REQUESTS):
            self._serial += 1
            head, tail = self._rng.choice(self._prompts), b"question %d " % self._serial * 300
            request = InferenceRequest(
                model="qwen",
                seed=b"m",
                parts=(PromptPart(head, len(head)), PromptPart(tail, len(tail))),
                prompt_bytes=len(head) + len(tail),
            )
            decision = self.picker.router.pick(request, monotonic(), request_id=f"request-{self._serial}")
            assert isinstance(decision, Decision)
            self.picker.metrics.routed(decision, model="qwen", body_bytes=request.prompt_bytes)
            self.picker.metrics.picked(1e-4)
        return made


class _Collector:
    def __init__(self, made: list[tuple[Decision, DecisionRecord]]) -> None:
        self._made = made

    def decided(self, decision: Decision, record: DecisionRecord) -> None:
        self._made.append((decision, record))

    def measured(self, decision: Decision) -> None:
        pass


def _read(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == http.HTTPStatus.OK
        return answer.read()
    finally:
        connection.close()


async def _second(world: _World, number: int) -> float:
    """CPU seconds of the event loop's thread for one second of the page. The viewers run in other threads."""
    live = world.picker.live
    made = world.decisions()
    began = thread_time()
    for decision, record in made:
        live.decided(decision, record)
    await live.sample()
    for path in PATHS if number % HISTORY_EVERY == 0 else PATHS[:1]:
        await asyncio.gather(*[asyncio.to_thread(_read, world.server.port, path) for _ in range(VIEWERS)])
    return thread_time() - began


async def live_page(seconds: int, rng: random.Random) -> Figure:
    """The page's share of a core, with a hundred endpoints, 300 requests per second and two viewers. No floor."""
    with tempfile.TemporaryDirectory() as directory:
        world = _World(Path(directory), rng)
        await world.server.start()
        try:
            for _ in range(WARM_UP):
                await _second(world, 1)
            cost = [await _second(world, number) for number in range(seconds)]
        finally:
            await world.server.stop()
    return Figure(
        what=f"live page, {MANY} endpoints, {REQUESTS} requests per second, {VIEWERS} viewers",
        unit="core",
        picker=sum(cost) / len(cost),
        result=median(cost),
        spread=(min(cost), max(cost)),
        budget=BUDGET,
        against=Against.VALUE,
    )
