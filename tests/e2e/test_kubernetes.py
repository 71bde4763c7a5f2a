"""`warmroute serve --pool-name` between a Kubernetes API server, a real Envoy and simulated engines.

The walk-through runs against the API server of the tests and, with `make e2e-kubernetes`, against the cluster of KUBECONFIG.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.conftest import StartEnvoy
from tests.fixtures.envoy.http1 import exchange
from tests.fixtures.kubernetes.clusters import Cluster, EmulatedCluster, cluster
from tests.fixtures.kubernetes.objects import MODEL, POOL, annotated, changed, pod
from tests.waiting import LIMIT, eventually
from warmroute.errors import ConfigurationError
from warmroute.standalone.child import Child
from warmroute.standalone.picker_process import PickerPorts, start_picker
from warmroute.standalone.ports import free_port
from warmroute.standalone.proxy_config import Picking
from warmroute_lab.demo.rounds import ROUND1, ROUND2
from warmroute_lab.simulator.options import SimulatorOptions
from warmroute_lab.simulator.server import SimulatorServer

POOL_NAME = POOL["metadata"]["name"]


@asynccontextmanager
async def engines(count: int) -> AsyncIterator[list[SimulatorServer]]:
    """Simulated engines as pods have them: all on the same port, each on an address of its own."""
    servers: list[SimulatorServer] = []
    for _ in range(10):
        port = free_port()
        try:
            for i in range(count):
                options = SimulatorOptions(
                    host=f"127.0.0.{i + 1}", port=port, name=f"qwen-{i}", model="/model/qwen", time_scale=50
                )
                server = SimulatorServer(options)
                await server.start()
                servers.append(server)
            break
        except ConfigurationError:
            await asyncio.gather(*(server.stop() for server in servers))
            servers.clear()
    if not servers:
        pytest.skip("127.0.0.2 and following are not there: ip address add, or run on Linux")
    try:
        yield servers
    finally:
        await asyncio.gather(*(server.stop() for server in servers))


def pod_of(engine: SimulatorServer) -> dict[str, Any]:
    return pod(engine.options.name, engine.options.host, port=engine.port)


def pool_of(servers: list[SimulatorServer]) -> dict[str, Any]:
    return changed(POOL, spec__targetPortNumber=servers[0].port)


class Picker:
    """A `warmroute serve` that follows the pool."""

    def __init__(self, where: Cluster, log: Path, *flags: str) -> None:
        self.ports = PickerPorts(grpc=free_port(), health=free_port(), metrics=free_port(), debug=free_port())
        argv = [sys.executable, "-m", "warmroute", "serve", "--secure-serving=false"]
        argv += ["--pool-name", POOL_NAME, "--pool-namespace", where.namespace]
        argv += ["--grpc-port", str(self.ports.grpc), "--grpc-health-port", str(self.ports.health)]
        argv += ["--metrics-port", str(self.ports.metrics), "--debug-port", str(self.ports.debug), *flags]
        self.child = Child("warmroute serve", argv, log)
        self.target = f"127.0.0.1:{self.ports.grpc}"

    async def page(self, path: str) -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.ports.debug}{path}") as answer,
        ):
            return await answer.json()

    async def last_decision(self) -> dict[str, Any]:
        decisions = await self.page("/debug/decisions")
        return min(decisions, key=lambda decision: decision["seconds_ago"])

    async def members(self) -> set[str]:
        return {entry["endpoint"] for entry in await self.page("/debug/endpoints") if entry["state"] != "gone"}

    async def ready(self) -> bool:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.ports.health}") as channel:
            request = health_pb2.HealthCheckRequest(service="readiness")
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=1)
            except grpc.aio.AioRpcError:
                return False
            return answer.status == health_pb2.HealthCheckResponse.SERVING


@asynccontextmanager
async def serving(
    where: Cluster, directory: Path, monkeypatch: pytest.MonkeyPatch, *flags: str
) -> AsyncIterator[Picker]:
    monkeypatch.setenv("KUBECONFIG", where.kubeconfig)
    picker = Picker(where, directory / "epp.log", *flags)
    try:
        await start_picker(picker.child, picker.ports)
        yield picker
    finally:
        await picker.child.stop()


async def ask(url: str, body: bytes) -> str:
    """The name of the engine that answered."""
    answer = await exchange(url, body=body)
    assert answer.status == 200, answer.body
    return answer.headers["x-simulator-name"]


async def becomes(condition: Any, what: str, seconds: float = LIMIT) -> None:
    """Return once the coroutine function ``condition`` says True."""
    try:
        async with asyncio.timeout(seconds):
            while not await condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {seconds} s") from None


@pytest.mark.parametrize("kind", ["emulated", "real"])
async def test_the_walk_through(envoy: StartEnvoy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    async with (
        cluster(kind, tmp_path) as where,
        engines(5) as servers,
        AsyncExitStack() as stack,
    ):
        await where.apply(pool_of(servers), MODEL, *(pod_of(engine) for engine in servers))
        picker = await stack.enter_async_context(serving(where, tmp_path, monkeypatch))
        targets = [f"{engine.options.host}:{engine.port}" for engine in servers]
        proxy = await stack.enter_async_context(envoy(targets, picker.target, picking=Picking.ORIGINAL_DST))
        assert len(await picker.members()) == 5

        first = await ask(proxy.url, ROUND1)
        await asyncio.sleep(0.1)  # a person's next turn comes later than the virtual queue takes for the first
        assert await ask(proxy.url, ROUND2) == first
        log = picker.child.tail
        await becomes(lambda: asyncio.to_thread(lambda: "Do prefix" in log(1000)), "the log line")
        (line,) = [text for text in log(1000).splitlines() if "Do prefix" in text]
        assert '"matching ratio": " 0.54 > 0.50"' in line

        await where.apply(annotated(pool_of(servers), routing_strategy="DEFAULT"))

        async def strategy_is_another() -> bool:
            await ask(proxy.url, ROUND2)
            return (await picker.last_decision())["strategy"] == "DEFAULT"

        await becomes(strategy_is_another, "the annotation is in force")
        await where.apply(annotated(pool_of(servers), routing_strategy="PREFIX_CACHE"))

        async def strategy_is_back() -> bool:
            await ask(proxy.url, ROUND2)
            return (await picker.last_decision())["strategy"] == "PREFIX_CACHE"

        await becomes(strategy_is_back, "PREFIX_CACHE again")

        warm = next(engine for engine in servers if engine.options.name == first)
        await where.delete(pod_of(warm))

        async def it_is_gone() -> bool:
            return f"{where.namespace}/{first}" not in await picker.members()

        await becomes(it_is_gone, "the deleted pod is known to be gone")
        answered = [await ask(proxy.url, ROUND2) for _ in range(20)]
        assert first not in answered

        await where.apply(annotated(pool_of(servers), routing_strategy="FASTEST"))
        await becomes(
            lambda: asyncio.to_thread(lambda: "annotation not used" in picker.child.tail(1000)), "the warning"
        )
        await ask(proxy.url, ROUND2)
        assert (await picker.last_decision())["strategy"] == "PREFIX_CACHE"


async def test_requests_do_not_notice_that_the_api_server_dies_and_returns(
    envoy: StartEnvoy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        cluster("emulated", tmp_path) as where,
        engines(3) as servers,
        AsyncExitStack() as stack,
    ):
        assert isinstance(where, EmulatedCluster)
        await where.apply(pool_of(servers), MODEL, *(pod_of(engine) for engine in servers[:2]))
        picker = await stack.enter_async_context(serving(where, tmp_path, monkeypatch))
        targets = [f"{engine.options.host}:{engine.port}" for engine in servers]
        proxy = await stack.enter_async_context(envoy(targets, picker.target, picking=Picking.ORIGINAL_DST))
        answered: list[str] = []
        done = asyncio.Event()

        async def load(client: int) -> None:
            for i in range(1_000_000):
                if done.is_set():
                    return
                body = {"model": "/model/qwen", "messages": [{"role": "user", "content": f"{client}-{i} " * 50}]}
                answered.append(await ask(proxy.url, json.dumps(body | {"max_tokens": 4}).encode()))

        clients = [asyncio.create_task(load(client)) for client in range(4)]
        try:
            await eventually(lambda: len(answered) > 20, "answers")
            for round_number in range(2):
                await where.server.stop()
                before = len(answered)
                await eventually(lambda before=before: len(answered) > before + 30, "answers while it is away")  # type: ignore[misc]
                assert await picker.ready()
                if round_number == 0:
                    await where.apply(pod_of(servers[2]))
                else:
                    await where.delete(pod_of(servers[2]))
                    where.server.compact()
                await where.server.start()
                expected = {f"default/{engine.options.name}" for engine in servers[: 3 - round_number]}

                async def followed(expected: set[str] = expected) -> bool:
                    return await picker.members() == expected

                await becomes(followed, "the pool after the return")
        finally:
            done.set()
            await asyncio.gather(*clients)
        assert set(answered) == {"qwen-0", "qwen-1", "qwen-2"}


async def test_of_two_pickers_one_is_ready_and_the_other_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster("emulated", tmp_path) as where:
        await where.apply(POOL, pod("a", "127.0.0.1", port=free_port()))
        monkeypatch.setenv("KUBECONFIG", where.kubeconfig)
        flags = ("--ha-enable-leader-election",)
        monkeypatch.setenv("POD_NAME", "epp-1")
        first = Picker(where, tmp_path / "epp-1.log", *flags)
        second = Picker(where, tmp_path / "epp-2.log", *flags)
        try:
            await start_picker(first.child, first.ports)
            monkeypatch.setenv("POD_NAME", "epp-2")
            await second.child.start()
            await second.child.until(lambda: _synced(second), "synced")
            assert (await first.ready(), await second.ready()) == (True, False)
            await first.child.stop()
            assert first.child.returncode == 0
            await becomes(second.ready, "the second one leads")
        finally:
            await first.child.stop()
            await second.child.stop()


async def _synced(picker: Picker) -> bool:
    try:
        return await picker.members() == {"default/a"}
    except aiohttp.ClientError:
        return False
