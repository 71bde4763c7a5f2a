"""Pickers that share their state through a real cluster of three NATS servers, while these stop and come back."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.factories import routing_constants
from tests.shared_state.test_shared_state import ENDPOINTS, LONG, Picker, together
from tests.waiting import eventually
from warmroute.pool.pool import Pool
from warmroute.routing.decision import Decision
from warmroute.routing.router import Router
from warmroute.shared_state.nats_log import LogOptions
from warmroute.shared_state.seal import Seal
from warmroute.shared_state.shared_state import SharedState
from warmroute.standalone.child import Child
from warmroute.standalone.nats import nats_server_path
from warmroute.standalone.ports import free_port

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MEMBERS = 3


class Cluster:
    """Three servers; a log of three copies."""

    def __init__(self, directory: Path) -> None:
        ports = [(free_port(), free_port()) for _ in range(MEMBERS)]
        routes = ", ".join(f'"nats://127.0.0.1:{route}"' for _, route in ports)
        self.urls = tuple(f"nats://127.0.0.1:{port}" for port, _ in ports)
        self.members: list[Child] = []
        for number, (port, route) in enumerate(ports):
            file = directory / f"nats-{number}.conf"
            file.write_text(
                f'server_name: nats-{number}\nlisten: "127.0.0.1:{port}"\n'
                f'jetstream {{ store_dir: "{directory / f"store-{number}"}", max_memory_store: 64M, max_file_store: 0 }}\n'
                f'cluster {{ name: test, listen: "127.0.0.1:{route}", routes: [{routes}] }}\n'
            )
            argv = [str(nats_server_path()), "--config", str(file)]
            self.members.append(Child(f"nats-{number}", argv, directory / f"nats-{number}.log"))

    async def start(self) -> None:
        for member in self.members:
            await member.start()

    async def kill(self) -> None:
        for member in self.members:
            os.kill(member.pid, signal.SIGKILL)
        for member in self.members:
            await member.wait()


class ClusterPicker(Picker):
    """Router and shared state of one picker that knows all members."""

    def __init__(self, urls: tuple[str, ...]) -> None:
        self.pool = Pool()
        options = LogOptions(urls, "warmroute.test", None, None, 600.0, 16 << 20, MEMBERS)
        self.shared = SharedState(options, Seal(b"0123456789abcdef", "test"), self.pool)
        constants, listeners = routing_constants(), (self.shared.outbox,)
        self.router = Router(
            self.pool, constants, rng=random.Random(0), now=self.now, listeners=listeners, name="picker"
        )
        self.pool.replace(ENDPOINTS, self.now)
        self.shared.start(self.router)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    it = Cluster(tmp_path)
    async with AsyncExitStack() as stack:
        for member in it.members:
            stack.push_async_callback(member.stop)
        await it.start()
        yield it


async def test_a_restart_of_all_members_loses_no_decision(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """The members remember the log that was made, not what was in it, so its numbers begin anew."""
    one, other = pickers = [ClusterPicker(cluster.urls) for _ in range(2)]
    decisions: list[Decision] = []

    async def decide(seconds: float) -> None:
        for _ in range(round(seconds / 0.05)):
            decisions.append(one.pick(f"{len(decisions)} {LONG}"))
            await asyncio.sleep(0.05)

    try:
        await together(*pickers)
        await decide(5.0)
        caplog.clear()
        await cluster.kill()
        await decide(1.0)
        await cluster.start()
        await eventually(lambda: all(picker.shared.connected for picker in pickers), "the log is there again")
        await decide(1.0)
        await eventually(lambda: all(map(other.holds, decisions)), "the other one knows all")
        assert caplog.text.count("shared state is away") == len(pickers)
    finally:
        for picker in pickers:
            await picker.shared.stop()
