"""Simulated engines, the picker, a real Envoy and a load of chats and documents, for the pictures of the live page."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import orjson
import yaml

from warmroute.standalone.bootstrap import bootstrap
from warmroute.standalone.child import Child
from warmroute.standalone.envoy import EnvoyProcess
from warmroute.standalone.picker_process import PickerPorts, picker, start_picker
from warmroute.standalone.ports import free_range
from warmroute.standalone.proxy_config import ProxyConfig
from warmroute_lab.load.chat_client import ChatClient

HOST = "127.0.0.1"
MODEL = "qwen2.5-7b-instruct"
WORDS = [
    "the",
    "engine",
    "holds",
    "a",
    "prompt",
    "when",
    "its",
    "cache",
    "has",
    "blocks",
    "for",
    "each",
    "token",
    "of",
    "it",
    "and",
    "no",
    "other",
    "request",
    "needs",
    "room",
]


def text(name: str, words: int) -> str:
    """Prose that is the same for the same name."""
    rng = random.Random(name)
    return f"{name}: " + " ".join(rng.choice(WORDS) for _ in range(words))


class Load:
    """Requests at a constant rate: chats that go on, questions about documents, and prompts that come once."""

    def __init__(self, rate: float, *, assistants: int, documents: int, answer_tokens: int) -> None:
        self._rate = rate
        self._assistants = [text(f"assistant {k}", 1200 + 900 * k) for k in range(assistants)]
        self._documents = [text(f"document {k}", 4000 + 2500 * (k % 6)) for k in range(documents)]
        self._answer_tokens = answer_tokens
        self._rng = random.Random(5)
        self._chats: list[list[dict[str, str]]] = []
        self._serial = 0

    def body(self) -> bytes:
        """The next request."""
        rng = self._rng
        self._serial += 1
        kind = rng.random()
        if kind < 0.55:
            if not self._chats or (len(self._chats) < 60 and rng.random() < 0.3):
                self._chats.append([{"role": "system", "content": rng.choice(self._assistants)}])
            chat = rng.choice(self._chats)
            if len(chat) > 12:
                self._chats.remove(chat)
            chat.append({"role": "user", "content": text(f"question {self._serial}", 60)})
            messages = list(chat)
            chat.append({"role": "assistant", "content": text(f"answer {self._serial}", 120)})
        elif kind < 0.92:
            document = self._documents[min(int(rng.expovariate(0.25)), len(self._documents) - 1)]
            messages = [{"role": "user", "content": document}, {"role": "user", "content": f"Question {self._serial}"}]
        else:
            messages = [{"role": "user", "content": text(f"once {self._serial}", 1500)}]
        return orjson.dumps(
            {
                "model": MODEL,
                "messages": messages,
                "stream": True,
                "stream_options": {"include_usage": True},
                "max_tokens": rng.randint(self._answer_tokens // 2, 2 * self._answer_tokens),
            }
        )

    async def run(self, base_url: str) -> None:
        """Send until cancelled."""
        async with ChatClient(base_url) as client, asyncio.TaskGroup() as group:
            while True:
                group.create_task(client.ask(self.body()))
                await asyncio.sleep(self._rng.expovariate(self._rate))


@dataclass(frozen=True, slots=True)
class Scene:
    """A fleet and its load."""

    engines: int
    load: Load
    dead: int
    """Engines that do not listen."""
    time_scale: float
    """Speed of the others relative to real ones."""
    kv_blocks: int
    """Blocks of 16 tokens in the KV cache of each."""


@asynccontextmanager
async def running(scene: Scene, directory: Path) -> AsyncIterator[str]:
    """The address of the live page, while the fleet runs and the load is sent."""
    engines, dead = scene.engines, scene.dead
    first = free_range(engines + 4)
    names = [f"vllm-{k}" for k in range(engines)]
    targets = [f"{HOST}:{first + k}" for k in range(engines)]
    alive = engines - dead
    argv = [
        *(sys.executable, "-m", "warmroute", "simulate", "--count", str(alive), "--port", str(first)),
        *("--name", "vllm", "--model", MODEL, "--time-scale", str(scene.time_scale)),
        *("--num-gpu-blocks", str(scene.kv_blocks)),
    ]
    simulators = Child("warmroute simulate", argv, directory / "simulators.log")
    entries = [
        {"name": name, "namespace": "serving", "address": HOST, "port": first + k} for k, name in enumerate(names)
    ]
    endpoints_file = directory / "endpoints.yaml"
    endpoints_file.write_text(yaml.safe_dump({"endpoints": entries}), encoding="utf-8")
    grpc, health, metrics, debug = range(first + engines, first + engines + 4)
    ports = PickerPorts(grpc, health, metrics, debug)
    # One process simulates all engines, so it answers late where the machine is busy.
    flags = ("--routing-strategy", "PREFIX_CACHE", "--metrics-timeout", "10s", "--refresh-metrics-interval", "1s")
    child = picker(endpoints_file, ports, directory / "picker.log", flags)
    envoy = EnvoyProcess(bootstrap(ProxyConfig(epp=(f"{HOST}:{ports.grpc}",), endpoints=tuple(targets))), directory)
    try:
        await simulators.start()
        await _healthy(simulators, targets[:alive])
        await start_picker(child, ports)
        await envoy.start()
        await envoy.wait_for_stat("cluster.epp.membership_healthy", 1)
        sending = asyncio.create_task(scene.load.run(envoy.url + "/v1"))
        try:
            yield f"http://{HOST}:{ports.debug}/"
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    finally:
        await envoy.stop()
        await child.stop()
        await simulators.stop()


async def _healthy(simulators: Child, targets: list[str]) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:

        async def healthy() -> bool:
            for target in targets:
                try:
                    async with session.get(f"http://{target}/health") as response:
                        if response.status != 200:
                            return False
                except (aiohttp.ClientError, TimeoutError):
                    return False
            return True

        await simulators.until(healthy, "healthy")
