"""The status of served pools: what is written, and what is left to others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.deploy.manifests import stored
from tests.fixtures import envoy_gateway as eg
from tests.fixtures.kubernetes.api_server import ApiServer, api_server
from tests.waiting import eventually
from warmroute.gateway_extension import gateway_extension_pb2 as pb
from warmroute.gateway_extension import hooks
from warmroute.gateway_extension.hooks import Gateway, Options
from warmroute.gateway_extension.picked_pool import PickedPool, picked_pools
from warmroute.gateway_extension.server import SERVICE, GatewayExtension, ServerOptions
from warmroute.gateway_extension.status import StatusWriter, with_status
from warmroute.kubernetes.api import Cluster

LISTEN = ServerOptions("127.0.0.1", 0, 0, 0)
GATEWAY, OTHER = Gateway("default", "gw"), Gateway("elsewhere", "gw")
NOW, LATER = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
SERVICE_OBJECT = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "inference-gateway-ext-proc"}}
FIELDS = [(eg.pool_v1alpha2, "parent"), (eg.pool_v1, "parents")]

both_versions = pytest.mark.parametrize(("made", "field"), FIELDS)


def read(made: Any) -> tuple[dict[str, Any], PickedPool]:
    """A pool as stored, without status, and as the hooks see it."""
    raw = made()
    item = json.loads(raw)
    del item["status"]
    (pool,) = picked_pools([raw])
    return item, pool


def written(
    item: Any,
    pool: PickedPool,
    *gateways: Gateway,
    others: Sequence[Gateway] = (),
    picker_found: bool = True,
    now: datetime = NOW,
) -> Any:
    return with_status(item, pool, gateways, others, picker_found=picker_found, now=now)


@both_versions
def test_a_served_pool_is_accepted_and_its_references_are_resolved(made: Any, field: str) -> None:
    item, pool = read(made)
    after = written(item, pool, GATEWAY)
    (entry,) = after["status"][field]
    assert (entry["parentRef"]["namespace"], entry["parentRef"]["name"]) == ("default", "gw")
    assert [(one["type"], one["status"]) for one in entry["conditions"]] == [
        ("Accepted", "True"),
        ("ResolvedRefs", "True"),
    ]
    assert stored(after)["status"] == after["status"], "the CRD takes it as it is"
    assert written(after, pool, GATEWAY, now=LATER) is None, "nothing is written twice"


@both_versions
def test_a_missing_picker_shows_and_a_transition_has_its_own_time(made: Any, field: str) -> None:
    item, pool = read(made)
    first = written(item, pool, GATEWAY)
    second = written(first, pool, GATEWAY, picker_found=False, now=LATER)
    accepted, resolved = second["status"][field][0]["conditions"]
    assert (resolved["status"], resolved["reason"]) == ("False", "InvalidExtensionRef")
    assert (accepted["lastTransitionTime"], resolved["lastTransitionTime"]) == (
        "2026-01-01T00:00:00Z",
        "2026-01-02T00:00:00Z",
    )


def test_the_placeholder_of_the_crd_goes() -> None:
    item, pool = read(eg.pool_v1alpha2)
    waiting = {
        "type": "Accepted",
        "status": "Unknown",
        "reason": "Pending",
        "message": "Waiting for controller",
        "lastTransitionTime": "1970-01-01T00:00:00Z",
    }
    item["status"] = {"parent": [{"parentRef": {"kind": "Status", "name": "default"}, "conditions": [waiting]}]}
    (entry,) = written(item, pool, GATEWAY)["status"]["parent"]
    assert entry["parentRef"]["name"] == "gw"


@both_versions
def test_the_entry_of_another_controller_is_left_as_it_is(made: Any, field: str) -> None:
    item, pool = read(made)
    condition = {
        "type": "Accepted",
        "status": "True",
        "reason": "Accepted",
        "message": "by another controller",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    theirs = {"parentRef": {"kind": "Gateway", "name": "gw"}, "conditions": [condition]}
    item["status"] = {field: [theirs]}
    assert written(item, pool, GATEWAY) is None
    assert written(item, pool, others=[GATEWAY]) is None
    after = written(item, pool, OTHER)
    assert after["status"][field][0] == theirs
    assert len(after["status"][field]) == 2


@both_versions
def test_only_a_gateway_known_not_to_serve_the_pool_loses_its_entry(made: Any, field: str) -> None:
    item, pool = read(made)
    both = written(item, pool, GATEWAY, OTHER)
    assert written(both, pool, GATEWAY) is None, "the other replica may know that Gateway"
    (entry,) = written(both, pool, GATEWAY, others=[OTHER])["status"][field]
    assert entry["parentRef"]["namespace"] == "default"


# ---------------------------------------------------------------- against an API server


@asynccontextmanager
async def writer(
    server: ApiServer, directory: Path, period: float = 60.0, pause: float = 0.0
) -> AsyncIterator[StatusWriter]:
    cluster = Cluster()
    cluster.find({"KUBECONFIG": str(server.write_kubeconfig(directory / "kubeconfig"))})
    status = StatusWriter(cluster, period=period, pause=pause)
    status.start()
    try:
        yield status
    finally:
        await status.stop()
        await cluster.close()


def resolved(server: ApiServer, item: Any) -> str | None:
    """The status of ResolvedRefs."""
    entries = ((server.get(item) or {}).get("status") or {}).get("parent") or []
    return next((c["status"] for entry in entries for c in entry["conditions"] if c["type"] == "ResolvedRefs"), None)


@pytest.mark.integration
async def test_a_translation_writes_the_status_and_its_end_removes_it(tmp_path: Path) -> None:
    item, pool = read(eg.pool_v1alpha2)
    async with api_server(item, SERVICE_OBJECT) as server, writer(server, tmp_path) as status:
        status.translated({GATEWAY: {pool}})
        await eventually(lambda: resolved(server, item) == "True")
        status.translated({GATEWAY: set()})
        await eventually(lambda: (server.get(item) or {})["status"]["parent"] == [])


@pytest.mark.integration
async def test_a_picker_that_comes_later_and_a_right_given_later_show(tmp_path: Path) -> None:
    item, pool = read(eg.pool_v1alpha2)
    async with api_server(item) as server, writer(server, tmp_path, period=0.01) as status:
        server.forbidden = {"inferencepools.inference.networking.x-k8s.io"}
        status.translated({GATEWAY: {pool}})
        server.forbidden = set()
        await eventually(lambda: resolved(server, item) == "False")
        server.apply(SERVICE_OBJECT)
        await eventually(lambda: resolved(server, item) == "True")


@pytest.mark.parametrize("turns", range(6))
async def test_the_writer_ends_also_while_a_translation_arrives(turns: int) -> None:
    """Python 3.11's asyncio.wait_for loses a cancellation that comes as what it waits for ends: the writer went on, and
    nothing ended it."""
    status = StatusWriter(Cluster(), period=1e6, pause=0.0)
    status.start()
    for _ in range(10):  # it waits for a translation now
        await asyncio.sleep(0)
    status.translated({})
    for _ in range(turns):
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await status.stop()


@pytest.mark.integration
async def test_many_translations_are_few_requests(tmp_path: Path) -> None:
    item, pool = read(eg.pool_v1alpha2)
    async with api_server(item, SERVICE_OBJECT) as server, writer(server, tmp_path, pause=0.5) as status:
        for _ in range(50):
            status.translated({GATEWAY: {pool}})
            await asyncio.sleep(0.01)
        await eventually(lambda: resolved(server, item) == "True")
    assert server.reads <= 8


@pytest.mark.integration
async def test_a_pool_that_fails_or_is_gone_keeps_no_other_from_its_status(tmp_path: Path) -> None:
    item, pool = read(eg.pool_v1alpha2)
    broken, gone = (picked_pools([eg.pool_v1().replace(b"vllm-qwen-pool", name)])[0] for name in (b"broken", b"gone"))
    without_metadata = {"apiVersion": broken.api_version, "kind": "InferencePool", "metadata": {"name": "broken"}}
    async with api_server(item, SERVICE_OBJECT, without_metadata) as server, writer(server, tmp_path) as status:
        server.forbidden = {"inferencepools.inference.networking.k8s.io"}
        status.translated({OTHER: {broken, gone}, GATEWAY: {pool}})
        await eventually(lambda: resolved(server, item) == "True")


def routes_of(pool: PickedPool) -> pb.RouteConfiguration:
    """A listener's routes, one of which has the pool as its backend."""
    route = pb.Route.FromString(eg.encoded(eg.route(eg.POOL_ROUTE, eg.POOL_CLUSTER)))
    hooks.modify_route(route, [pool], Options())
    routes = pb.RouteConfiguration.FromString(eg.encoded(eg.routes("default/gw/llm")))
    routes.virtual_hosts[0].routes.append(route)
    return routes


@pytest.mark.integration
async def test_the_extension_writes_the_status_of_what_envoy_gateway_translates(tmp_path: Path) -> None:
    item, pool = read(eg.pool_v1alpha2)
    async with api_server(item, SERVICE_OBJECT) as server:
        cluster = Cluster()
        cluster.find({"KUBECONFIG": str(server.write_kubeconfig(tmp_path / "kubeconfig"))})
        await translated_by(GatewayExtension(LISTEN, Options(), status := StatusWriter(cluster)), routes_of(pool))
        status.start()
        try:
            await eventually(lambda: resolved(server, item) == "True")
        finally:
            await status.stop()
            await cluster.close()


@pytest.mark.integration
async def test_a_fault_of_the_status_does_not_touch_the_translation() -> None:
    _, pool = read(eg.pool_v1alpha2)
    routes = routes_of(pool)
    routes.virtual_hosts[0].metadata.filter_metadata[hooks.ENVOY_GATEWAY_METADATA]["resources"] = ["not an object"]
    answer = await translated_by(GatewayExtension(LISTEN, Options(), StatusWriter(Cluster())), routes)
    assert [cluster.name for cluster in answer.clusters] == [pool.picker_cluster]


async def translated_by(extension: GatewayExtension, *routes: pb.RouteConfiguration) -> pb.PostTranslateModifyResponse:
    """What the extension makes of these routes."""
    await extension.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{extension.port}") as channel:
            method = channel.unary_unary(
                f"/{SERVICE}/PostTranslateModify",
                pb.PostTranslateModifyRequest.SerializeToString,
                pb.PostTranslateModifyResponse.FromString,
            )
            answer: pb.PostTranslateModifyResponse = await method(
                pb.PostTranslateModifyRequest(routes=routes), timeout=60
            )
            return answer
    finally:
        await extension.stop()
