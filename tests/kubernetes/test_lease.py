"""Leader election: one leads, the others follow soon; an API server that is away takes nobody's lead."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.fixtures.kubernetes.api_server import ApiServer, api_server
from tests.waiting import eventually
from warmroute.kubernetes.api import Cluster
from warmroute.kubernetes.lease import LeaderElection, own_identity, own_namespace

pytestmark = pytest.mark.integration

LEASE = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "picker", "namespace": "system"}}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def candidate(server: ApiServer, tmp_path: Any, identity: str, clock: Clock) -> AsyncIterator[LeaderElection]:
    cluster = Cluster()
    cluster.find({"KUBECONFIG": str(server.write_kubeconfig(tmp_path / "kubeconfig"))})
    election = LeaderElection(
        cluster, "system", "picker", identity, clock=clock, duration=15, retry_interval=0.01, renew_timeout=1.0
    )
    election.start()
    try:
        yield election
    finally:
        await election.stop()
        await cluster.close()


async def looked(server: ApiServer) -> None:
    """Wait until the Lease has been read at least once more, and the answer handled."""
    reads = server.reads
    await eventually(lambda: server.reads > reads + 2)


def holder(server: ApiServer) -> str | None:
    lease = server.get(LEASE)
    return None if lease is None else lease["spec"]["holderIdentity"]


async def test_one_leads_and_a_release_hands_over_at_once(tmp_path: Path) -> None:
    async with api_server() as server, AsyncExitStack() as stack:
        first = await stack.enter_async_context(candidate(server, tmp_path, "a", Clock()))
        await eventually(lambda: first.leading)
        second = await stack.enter_async_context(candidate(server, tmp_path, "b", Clock()))
        version = server.version
        await eventually(lambda: server.version > version + 5)  # a has given signs of life
        assert (holder(server), first.leading, second.leading) == ("a", True, False)
        await first.stop()
        await eventually(lambda: second.leading)
        assert (holder(server), first.leading) == ("b", False)
        lease = server.get(LEASE)
        assert lease is not None
        assert lease["spec"]["leaseTransitions"] == 2
        assert lease["spec"]["leaseDurationSeconds"] == 15


async def test_two_that_start_together_do_not_both_lead(tmp_path: Path) -> None:
    async with (
        api_server() as server,
        candidate(server, tmp_path, "a", Clock()) as first,
        candidate(server, tmp_path, "b", Clock()) as second,
    ):
        await eventually(lambda: first.leading or second.leading)
        await asyncio.sleep(0.1)
        assert [first.leading, second.leading].count(True) == 1


async def test_a_holder_that_died_is_succeeded_when_its_lease_expires_by_the_own_clock(tmp_path: Path) -> None:
    async with api_server() as server:
        spec = {"holderIdentity": "dead", "leaseDurationSeconds": 30, "renewTime": "1999-01-01T00:00:00.000000Z"}
        server.apply(LEASE | {"spec": spec})
        clock = Clock()
        async with candidate(server, tmp_path, "a", clock) as election:
            for now in (0.0, 29.0, 30.0):
                clock.now = now
                await looked(server)
                assert not election.leading
            clock.now = 30.1
            await eventually(lambda: election.leading)


async def test_a_lease_that_its_holder_renews_is_never_taken_over(tmp_path: Path) -> None:
    def renew(number: int) -> None:
        renewed = f"1999-01-01T00:00:{number:02}.000000Z"
        spec = {"holderIdentity": "a", "leaseDurationSeconds": 15, "renewTime": renewed}
        server.apply(LEASE | {"spec": spec})

    clock = Clock()
    async with api_server() as server:
        renew(0)
        async with candidate(server, tmp_path, "b", clock) as election:
            for number in range(1, 20):  # ten durations in all, never a whole one without a renewal
                await looked(server)
                assert (holder(server), election.leading) == ("a", False)
                clock.now += 8.0
                renew(number)
            await looked(server)
            clock.now += 15.1
            await eventually(lambda: election.leading)


async def test_the_same_pod_after_a_restart_takes_its_own_lease(tmp_path: Path) -> None:
    async with api_server() as server:
        server.apply(LEASE | {"spec": {"holderIdentity": "a", "leaseDurationSeconds": 15, "leaseTransitions": 4}})
        async with candidate(server, tmp_path, "a", Clock()) as election:
            await eventually(lambda: election.leading)
            lease = server.get(LEASE)
            assert lease is not None
            assert lease["spec"]["leaseTransitions"] == 4


async def test_a_leader_stays_so_while_the_server_is_away_and_until_it_sees_another(tmp_path: Path) -> None:
    async with api_server() as server, candidate(server, tmp_path, "a", Clock()) as election:
        await eventually(lambda: election.leading)
        await server.stop()
        await asyncio.sleep(0.1)
        assert election.leading
        server.apply(LEASE | {"spec": {"holderIdentity": "b", "leaseDurationSeconds": 15}})
        await server.start()
        await eventually(lambda: not election.leading)
        assert holder(server) == "b"


async def test_a_connection_that_hangs_does_not_cost_the_lease(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = 0

    async def hang_once(request: web.Request) -> web.StreamResponse | None:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.sleep(60)
        return None

    async with api_server() as server, candidate(server, tmp_path, "a", Clock()) as election:
        await eventually(lambda: election.leading)
        server.answers["leases.coordination.k8s.io"] = hang_once
        await eventually(lambda: asked > 5)
        assert election.leading
        assert "the Lease is unavailable" in caplog.text


async def test_a_lease_that_somebody_emptied_holds_up_no_stop(tmp_path: Path) -> None:
    async with api_server() as server, candidate(server, tmp_path, "a", Clock()) as election:
        await eventually(lambda: election.leading)

        async def emptied(request: web.Request) -> web.StreamResponse | None:
            return web.json_response(LEASE | {"spec": None}) if request.method == "GET" else None

        server.answers["leases.coordination.k8s.io"] = emptied
        await election.stop()
        assert not election.leading


async def test_a_lease_that_makes_no_sense_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def odd(request: web.Request) -> web.StreamResponse | None:
        return web.json_response(LEASE | {"spec": "nobody"})

    async with api_server() as server, candidate(server, tmp_path, "a", Clock()) as election:
        await eventually(lambda: election.leading)
        server.answers["leases.coordination.k8s.io"] = odd
        await eventually(lambda: caplog.text.count("leader election failed and goes on") > 1)
        assert election.leading
        server.answers.clear()


async def test_a_leader_that_cannot_release_its_lease_says_so_and_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with api_server() as server, candidate(server, tmp_path, "a", Clock()) as first:
        await eventually(lambda: first.leading)
        async with candidate(server, tmp_path, "b", Clock()) as second:
            await looked(server)
            await server.stop()
            await second.stop()
            assert "the Lease is not released" not in caplog.text, "it had none"
            await first.stop()
        assert "the Lease is not released; it expires" in caplog.text
        assert not first.leading


async def test_without_the_right_it_does_not_lead_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with api_server() as server:
        server.forbidden.add("leases.coordination.k8s.io")
        async with candidate(server, tmp_path, "a", Clock()) as election:
            await eventually(lambda: "the Lease is unavailable" in caplog.text)
            await asyncio.sleep(0.1)
            assert not election.leading
            assert caplog.text.count("the Lease is unavailable") == 1
            server.forbidden.clear()
            await eventually(lambda: election.leading)
            server.forbidden.add("leases.coordination.k8s.io")
            await eventually(lambda: caplog.text.count("the Lease is unavailable") == 2)


def test_who_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAME", "epp-1")
    monkeypatch.setenv("POD_NAMESPACE", "system")
    assert (own_identity(), own_namespace("default")) == ("epp-1", "system")
    monkeypatch.delenv("POD_NAMESPACE")
    assert own_namespace("default") == "default"
    monkeypatch.delenv("POD_NAME")
    assert own_identity() == socket.gethostname()
