"""Pickers come and go under load, as a rollout, a deletion, a scale-up and a crash have it: how many requests fail.

Envoy learns of the pickers as Envoy Gateway tells it: endpoints that are not ready or are ending are DRAINING, and are
removed once they are gone. Its retries of a stream to a picker are those of deploy/overlays/envoy-gateway. Each case counts
at least ``WARMROUTE_AVAILABILITY_REQUESTS`` requests (1,000).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from tests.fixtures.envoy.backends import backends
from tests.fixtures.envoy.http1 import exchange
from tests.fixtures.envoy.picker_endpoints import Pickers, epp_cluster, follow_pickers
from tests.fixtures.envoy.pickers import dying_picker, scripted_picker, warmroute_serve
from warmroute.standalone.bootstrap import bootstrap
from warmroute.standalone.child import Child
from warmroute.standalone.envoy import EnvoyProcess
from warmroute.standalone.proxy_config import ProxyConfig

OVERLAY = Path(__file__).parents[2] / "deploy" / "overlays" / "envoy-gateway" / "picked-route.yaml"
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello " * 200}]}).encode()
CLIENTS = 4
REQUESTS = int(os.environ.get("WARMROUTE_AVAILABILITY_REQUESTS", "1000"))
"""Least requests of each case, from the load's start."""
SLOWEST_RATE = 5.0
"""Requests a second below which a wait for more of them is given up."""

pytestmark = pytest.mark.slow


def overlay_settings() -> dict[str, Any]:
    """``backendSettings`` of the overlay's EnvoyExtensionPolicy."""
    documents = yaml.safe_load_all(OVERLAY.read_text())
    (policy,) = [document for document in documents if document["kind"] == "EnvoyExtensionPolicy"]
    settings: dict[str, Any] = policy["spec"]["extProc"][0]["backendSettings"]
    return settings


def apply_overlay(tree: dict[str, Any]) -> None:
    """Put the overlay's settings for pickers in place of ours, as Envoy Gateway translates them."""
    settings = overlay_settings()
    assert set(settings) == {"circuitBreaker", "loadBalancer", "retry"}
    back_off = settings["retry"]["perRetry"]["backOff"]
    manager = tree["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"][0]["typed_config"]["grpc_service"]["retry_policy"] = {
        "retry_on": ",".join(settings["retry"]["retryOn"]["triggers"]),
        "num_retries": settings["retry"]["numRetries"],
        "retry_back_off": {
            "base_interval": _envoy_duration(back_off["baseInterval"]),
            "max_interval": _envoy_duration(back_off["maxInterval"]),
        },
    }
    cluster = epp_cluster(tree)
    cluster["lb_policy"] = {"RoundRobin": "ROUND_ROBIN"}[settings["loadBalancer"]["type"]]
    retries = settings["circuitBreaker"]["maxParallelRetries"]
    cluster["circuit_breakers"] = {"thresholds": [{"max_retries": retries}]}


def _envoy_duration(milliseconds: str) -> str:
    """``25ms`` in Envoy's form of a duration."""
    return f"{int(milliseconds.removesuffix('ms')) / 1000}s"


class Load:
    """Clients that ask without a pause; counts what they are answered."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.answered = 0
        self.failed: list[int] = []
        self.in_flight = 0

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            self.in_flight += 1
            try:
                status = (await exchange(self._url, body=BODY)).status
            finally:
                self.in_flight -= 1
            if status == 200:
                self.answered += 1
            else:
                self.failed.append(status)

    async def more(self, count: int) -> None:
        """Return after ``count`` more answers."""
        await self._until(self.counted + count)

    async def enough(self) -> None:
        """Return after at least a hundred more answers and ``REQUESTS`` in all."""
        await self._until(max(REQUESTS, self.counted + 100))

    @property
    def counted(self) -> int:
        """Requests that were answered or failed."""
        return self.answered + len(self.failed)

    async def _until(self, goal: int) -> None:
        async with asyncio.timeout(60 + (goal - self.counted) / SLOWEST_RATE):
            while self.counted < goal:
                await asyncio.sleep(0.01)


class Site:
    """Two engines, an Envoy and pickers that are started and ended by the test, under load."""

    def __init__(self, directory: Path, targets: Iterable[str], stack: AsyncExitStack) -> None:
        self._directory = directory
        self._targets = list(targets)
        self._stack = stack
        self._number = 0
        self.pickers = Pickers(directory / "pickers.yaml")

    async def start_picker(self, *flags: str) -> tuple[str, Child]:
        """A picker that is ready."""
        self._number += 1
        directory = self._directory / f"picker-{self._number}"
        directory.mkdir()
        return await self._stack.enter_async_context(
            warmroute_serve(self._targets, directory, "--drain-quiet=1s", *flags)
        )

    async def add(self, address: str) -> None:
        """Envoy learns of a picker."""
        self.pickers.healthy.append(address)
        await self.pickers.tell()

    async def remove(self, address: str) -> None:
        """Envoy learns that the picker is gone."""
        self.pickers.healthy.remove(address)
        await self.pickers.tell()

    async def start_envoy(self, *, overlay: bool) -> EnvoyProcess:
        """The Envoy, which follows the file of pickers, with the overlay's settings or with those of standalone/."""
        await self.pickers.tell()
        config = ProxyConfig(epp=("127.0.0.1:1",), endpoints=tuple(self._targets), failure_mode_allow=False)
        tree = bootstrap(config)
        follow_pickers(tree, self.pickers.file)
        if overlay:
            apply_overlay(tree)
        self.pickers.proxy = await self._stack.enter_async_context(EnvoyProcess(tree, self._directory))
        return self.pickers.proxy


@asynccontextmanager
async def site(
    directory: Path, pickers: int, *, overlay: bool = True
) -> AsyncIterator[tuple[Site, list[tuple[str, Child]], Load]]:
    """A site with ``pickers`` pickers under load; the load ends with it."""
    async with AsyncExitStack() as stack:
        pods = await stack.enter_async_context(backends(2))
        it = Site(directory, [pod.target for pod in pods], stack)
        started = [await it.start_picker() for _ in range(pickers)]
        it.pickers.healthy = [address for address, _ in started]
        proxy = await it.start_envoy(overlay=overlay)
        load = Load(proxy.url)
        clients = [asyncio.create_task(load.run()) for _ in range(CLIENTS)]
        try:
            await load.more(50)
            yield it, started, load
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
            print(f"{load.counted} requests, {len(load.failed)} failed")


async def end(it: Site, address: str, child: Child, load: Load) -> None:
    """A pod's end: SIGTERM, DRAINING, and gone once the process is."""
    os.kill(child.pid, signal.SIGTERM)
    it.pickers.healthy.remove(address)
    it.pickers.draining.append(address)
    await it.pickers.tell()
    async with asyncio.timeout(60):
        assert await child.wait() == 0
    await load.more(20)
    it.pickers.draining.remove(address)
    await it.pickers.tell()


both_forms = pytest.mark.parametrize("overlay", [True, False], ids=["envoy-gateway", "standalone"])


@both_forms
async def test_a_rolling_restart_fails_no_request(tmp_path: Path, overlay: bool) -> None:
    async with site(tmp_path, 2, overlay=overlay) as (it, started, load):
        for address, child in started:
            successor, _ = await it.start_picker()
            await it.add(successor)
            await end(it, address, child, load)
        await load.enough()
        assert load.failed == []


@both_forms
async def test_a_scale_up_fails_no_request(tmp_path: Path, overlay: bool) -> None:
    async with site(tmp_path, 1, overlay=overlay) as (it, _, load):
        for _ in range(2):
            address, _ = await it.start_picker()
            await it.add(address)
            await load.more(50)
        await load.enough()
        assert load.failed == []


@both_forms
async def test_a_deletion_fails_no_request(tmp_path: Path, overlay: bool) -> None:
    async with site(tmp_path, 2, overlay=overlay) as (it, started, load):
        await end(it, *started[0], load)
        await load.enough()
        assert load.failed == []


async def test_a_rollout_of_a_single_picker_fails_no_request(tmp_path: Path) -> None:
    """maxSurge 1, maxUnavailable 0: the new one is ready before the old one ends."""
    async with site(tmp_path, 1) as (it, started, load):
        successor, _ = await it.start_picker()
        await it.add(successor)
        await end(it, *started[0], load)
        await load.enough()
        assert load.failed == []


@both_forms
async def test_a_picker_that_ends_under_load_before_envoy_learns_of_it_fails_no_request(
    tmp_path: Path, overlay: bool
) -> None:
    """Nothing is DRAINING: requests come until the picker's --drain-timeout is over and it stops listening."""
    async with site(tmp_path, 1, overlay=overlay) as (it, _, load):
        address, child = await it.start_picker("--drain-timeout=1s")
        await it.add(address)
        await load.more(50)
        os.kill(child.pid, signal.SIGTERM)
        async with asyncio.timeout(60):
            await child.wait()
        await load.enough()
        assert load.failed == []


async def test_a_picker_that_does_not_know_its_pool_yet_fails_no_request(tmp_path: Path) -> None:
    """Envoy may learn of a picker before it has synced: it answers UNAVAILABLE, and Envoy asks another one."""
    asked = 0

    async def not_yet(context: grpc.aio.ServicerContext[Any, Any]) -> None:
        nonlocal asked
        asked += 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the pool is not known yet")

    async with site(tmp_path, 2) as (it, _, load), scripted_picker(not_yet) as starting:
        await it.add(starting)
        await load.enough()
        assert asked > 10
        await it.remove(starting)
        assert load.failed == []


@both_forms
async def test_a_picker_that_dies_before_it_has_answered_the_headers_fails_no_request(
    tmp_path: Path, overlay: bool
) -> None:
    """Envoy has sent the first message already: it repeats the stream at another picker."""
    deaths = 0

    def died() -> None:
        nonlocal deaths
        deaths += 1

    async with site(tmp_path, 2, overlay=overlay) as (it, _, load), dying_picker(died) as dying:
        await it.add(dying)
        await load.enough()
        assert deaths > 10
        await it.remove(dying)
        assert load.failed == []


async def test_an_address_where_nobody_listens_yet_fails_no_request(tmp_path: Path) -> None:
    async with site(tmp_path, 2) as (it, _, load):
        await it.add("127.0.0.1:1")
        await load.enough()
        assert load.failed == []


@both_forms
async def test_a_killed_picker_fails_at_most_the_requests_in_the_air(tmp_path: Path, overlay: bool) -> None:
    async with site(tmp_path, 2, overlay=overlay) as (it, started, load):
        address, child = started[0]
        in_the_air = load.in_flight
        os.kill(child.pid, signal.SIGKILL)
        await load.more(200)
        it.pickers.healthy.remove(address)
        await it.pickers.tell()
        await load.enough()
        assert len(load.failed) <= in_the_air


async def test_after_a_moment_without_a_picker_requests_pass_at_once(tmp_path: Path) -> None:
    async with site(tmp_path, 1) as (it, started, load):
        address, child = started[0]
        os.kill(child.pid, signal.SIGKILL)
        await child.wait()
        it.pickers.healthy.remove(address)
        it.pickers.draining.append(address)
        await it.pickers.tell()
        await load.more(1)
        successor, _ = await it.start_picker()
        it.pickers.healthy, it.pickers.draining = [successor], []
        await it.pickers.tell()
        failed, waiting_for_a_retry = len(load.failed), load.in_flight
        await load.enough()
        assert len(load.failed) - failed <= waiting_for_a_retry
