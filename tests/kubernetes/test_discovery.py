"""Discovery over real HTTP from an API server that behaves, and misbehaves, as Kubernetes does."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.fixtures.kubernetes.api_server import ApiServer, api_server, status
from tests.fixtures.kubernetes.objects import MODEL, POOL, POOL_REF, X, annotated, changed, pod
from tests.waiting import eventually
from warmroute.errors import ConfigurationError
from warmroute.kubernetes import api as api_module
from warmroute.kubernetes import informer as watch_module
from warmroute.kubernetes.api import ApiError, Cluster
from warmroute.kubernetes.discovery import KubernetesDiscovery
from warmroute.kubernetes.informer import Backoff
from warmroute.pool.endpoint import Endpoint
from warmroute.pool.models import Criticality
from warmroute.pool.pool import Pool, PoolListener
from warmroute.settings import Settings

pytestmark = pytest.mark.integration

QUICK = Backoff(first=0.01, most=0.05, missing=0.05, settle=0.3)
V1 = "inference.networking.k8s.io/v1"
V1_SPEC = {"selector": {"matchLabels": {"app": "qwen"}}, "targetPorts": [{"number": 9000}]}
V1_POOL = changed(POOL, apiVersion=V1, metadata__annotations=None, spec=V1_SPEC)
STRATEGIES = ("PREFIX_CACHE", "DEFAULT", "RANDOM")


class Restarts(PoolListener):
    def __init__(self) -> None:
        self.ids: list[str] = []

    def endpoint_restarted(self, endpoint: Endpoint, now: float) -> None:
        self.ids.append(endpoint.id)


class Dropped(PoolListener):
    def __init__(self) -> None:
        self.ids: list[str] = []

    def endpoint_changed(self, endpoint: Endpoint, now: float) -> None:
        if not endpoint.ready:
            self.ids.append(endpoint.id)


class Picker:
    """A pool with its discovery, and the settings as they are in force."""

    def __init__(self, server: ApiServer, kubeconfig: str, backoff: Backoff = QUICK, **settings: Any) -> None:
        self.server = server
        self.settings = Settings(**{"pool_name": "vllm-qwen-pool"} | settings)
        self.pool = Pool()
        self.restarts = Restarts()
        self.pool.subscribe(self.restarts, 0.0)
        self.reloads: list[bool] = []
        cluster = Cluster()
        cluster.find({"KUBECONFIG": kubeconfig})
        self.discovery = KubernetesDiscovery(
            cluster, self.settings, self.pool, apply=self.apply, reloaded=self.reloads.append, backoff=backoff
        )

    def apply(self, settings: Settings) -> None:
        if settings.routing_strategy not in STRATEGIES:
            raise ConfigurationError(f"there is no strategy {settings.routing_strategy}")
        self.settings = settings
        self.pool.default_engine = settings.model_server_runtime

    def targets(self) -> list[str]:
        """Where requests may go."""
        return sorted(e.target for e in self.pool.endpoints.values() if e.ready)


@asynccontextmanager
async def picking(server: ApiServer, tmp_path: Any, *, synced: bool = True, **settings: Any) -> AsyncIterator[Picker]:
    kubeconfig = server.write_kubeconfig(tmp_path / "kubeconfig", settings.pop("token", "the-token-of-this-test"))
    picker = Picker(server, str(kubeconfig), **settings)
    await picker.discovery.start()
    try:
        if synced:
            await eventually(lambda: picker.pool.synced)
        yield picker
    finally:
        await picker.discovery.stop()


def cluster_of(*pods: Any) -> Any:
    return api_server(POOL, MODEL, *(pods or (pod("a", "10.0.0.1"), pod("b", "10.0.0.2"))))


# ------------------------------------------------------------------------------------------------ pods


async def test_pods_come_change_and_go(tmp_path: Path) -> None:
    async with cluster_of() as server, picking(server, tmp_path) as picker:
        assert picker.targets() == ["10.0.0.1:8000", "10.0.0.2:8000"]
        server.apply(pod("c", "10.0.0.3"))
        await eventually(lambda: len(picker.targets()) == 3)
        server.apply(pod("c", "10.0.0.3", ready=False))
        await eventually(lambda: len(picker.targets()) == 2)
        server.delete(pod("b", ""))
        await eventually(lambda: picker.targets() == ["10.0.0.1:8000"])
        server.apply(pod("a", "10.0.0.1", metadata__labels={"app": "other"}))
        await eventually(lambda: picker.targets() == [])
        assert server.lists == 8, "each kind is listed once, everything else comes by watch"


async def test_flapping_keeps_what_is_known_and_a_new_process_does_not(tmp_path: Path) -> None:
    async with cluster_of() as server, picking(server, tmp_path) as picker:
        member = picker.pool.endpoints["default/a"]

        async def becomes(*objects: Any, target: str | None = "10.0.0.1:8000") -> list[str]:
            """The restarts seen until the pool has followed the objects."""
            picker.restarts.ids.clear()
            server.apply(*objects, pod("marker", f"10.9.0.{server.version % 250}"))
            marker = f"10.9.0.{(server.version - len(objects) - 1) % 250}:8000"
            await eventually(lambda: marker in picker.targets())
            assert picker.pool.endpoints["default/a"] is member
            assert member.ready == (target is not None)
            assert target in {None, member.target}
            return [i for i in picker.restarts.ids if i == "default/a"]

        assert await becomes(pod("a", "10.0.0.1", ready=False), target=None) == []
        assert await becomes(pod("a", "10.0.0.1")) == []
        assert await becomes(pod("a", "10.0.0.1", metadata__annotations={"x": "y"})) == []
        assert await becomes(pod("a", "10.0.0.1", restarts=1)) == ["default/a"]
        assert await becomes(pod("a", "10.0.0.9", restarts=1), target="10.0.0.9:8000") == ["default/a"]
        server.delete(pod("a", ""))
        assert await becomes(target=None) == []
        assert await becomes(pod("a", "10.0.0.9", restarts=1), target="10.0.0.9:8000") == ["default/a"]  # another uid


async def test_labels_reach_the_pool(tmp_path: Path) -> None:
    labels = {"app": "qwen", "llm-d.ai/engine-type": "sglang"}
    async with cluster_of(pod("a", "10.0.0.1", metadata__labels=labels)) as server, picking(server, tmp_path) as picker:
        assert picker.pool.endpoints["default/a"].engine == "sglang"


async def test_a_pool_with_more_pods_than_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "PAGE_SIZE", 7)
    pods = [pod(f"p{i:02}", f"10.0.0.{i}") for i in range(30)]
    async with cluster_of(*pods) as server, picking(server, tmp_path) as picker:
        assert len(picker.targets()) == 30


async def test_a_pod_whose_annotation_lists_none_of_the_ports_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def odd(listed: str, number: int) -> Any:
        return pod("odd", f"10.0.0.{number}", metadata__annotations={"llm-d.ai/active-ports": listed})

    async with cluster_of() as server, picking(server, tmp_path) as picker:
        for number in range(50, 55):
            server.apply(odd("8000;8001", number), pod("b", f"10.0.1.{number}"))
            await eventually(lambda last=f"10.0.1.{number}:8000": last in picker.targets())  # type: ignore[misc]
        (told,) = [vars(r)["fields"] for r in caplog.records if "active-ports" in r.message]
        assert told == {"pod": "odd", "listed": "8000;8001", "ports": (8000,)}
        assert len(picker.targets()) == 2
        server.apply(odd("8000", 60))
        await eventually(lambda: len(picker.targets()) == 3)
        server.apply(odd("", 60))  # meant: it serves none
        await eventually(lambda: len(picker.targets()) == 2)
        assert caplog.text.count("active-ports") == 1


# ------------------------------------------------------------------------------------------------ pool


async def test_selector_and_port_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "warmroute")
    blue = pod("blue", "10.0.0.7", metadata__labels={"app": "blue"})
    async with cluster_of(pod("a", "10.0.0.1"), blue) as server, picking(server, tmp_path) as picker:
        server.apply(changed(POOL, spec__targetPortNumber=8001))
        await eventually(lambda: picker.targets() == ["10.0.0.1:8001"])
        assert "the InferencePool has changed" in caplog.text
        server.apply(changed(POOL, spec__selector={"app": "blue"}))
        await eventually(lambda: picker.targets() == ["10.0.0.7:8000"])
        server.apply(changed(blue, status__podIP="10.0.0.8"))
        await eventually(lambda: picker.targets() == ["10.0.0.8:8000"])


@pytest.mark.parametrize(("group", "port"), [(None, 9000), ("inference.networking.k8s.io", 9000), (X, 8000)])
async def test_of_two_pools_the_v1_one_counts_unless_told(tmp_path: Path, group: str, port: int) -> None:
    async with cluster_of(pod("a", "10.0.0.1")) as server:
        server.apply(V1_POOL)
        async with picking(server, tmp_path, pool_group=group) as picker:
            assert picker.targets() == [f"10.0.0.1:{port}"]


async def test_ranks(tmp_path: Path) -> None:
    spec = {"selector": {"matchLabels": {"app": "qwen"}}, "targetPorts": [{"number": 8000}, {"number": 8001}]}
    six = pod("a", "2001:db8::1")
    async with api_server(changed(V1_POOL, spec=spec), six) as server, picking(server, tmp_path) as picker:
        assert set(picker.pool.endpoints) == {"default/a-rank-0", "default/a-rank-1"}
        assert picker.targets() == ["[2001:db8::1]:8000", "[2001:db8::1]:8001"]
        server.delete(six)
        await eventually(lambda: picker.targets() == [])


async def test_without_the_pool_it_is_not_ready_and_a_pool_that_goes_takes_its_pods_along(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with api_server(pod("a", "10.0.0.1")) as server, picking(server, tmp_path, synced=False) as picker:
        await eventually(lambda: server.watches >= 6)
        assert not picker.pool.synced
        assert caplog.text.count("the InferencePool cannot be found or read") == 1
        server.apply(POOL)
        await eventually(lambda: picker.pool.synced)
        assert picker.targets() == ["10.0.0.1:8000"]
        server.delete(POOL)
        await eventually(lambda: not picker.pool.synced)
        assert picker.targets() == []
        assert caplog.text.count("the InferencePool is gone") == 1
        server.apply(POOL)
        await eventually(lambda: picker.targets() == ["10.0.0.1:8000"])
        assert picker.pool.synced
        assert picker.restarts.ids == []


async def test_a_pool_that_makes_no_sense_leaves_the_last_one_in_force(tmp_path: Path) -> None:
    async with cluster_of(pod("a", "10.0.0.1")) as server, picking(server, tmp_path) as picker:
        server.apply(changed(POOL, spec__selector={}))
        server.apply(pod("b", "10.0.0.2"))
        await eventually(lambda: picker.targets() == ["10.0.0.1:8000", "10.0.0.2:8000"])


# ------------------------------------------------------------------------------------------------ models


async def test_models_follow_and_a_deleted_one_is_succeeded_by_the_next_oldest(tmp_path: Path) -> None:
    younger = changed(MODEL, metadata__name="younger", metadata__creationTimestamp="2099-01-01T00:00:00Z")
    younger = changed(younger, spec__criticality="Sheddable", spec__targetModels=[{"name": "v2"}])
    async with cluster_of() as server, picking(server, tmp_path) as picker:
        server.apply(younger, changed(MODEL, metadata__name="else", spec__modelName="else"))
        table = picker.pool.models
        await eventually(lambda: len(table) == 2)
        found = table.get("/model/qwen")
        assert found is not None
        assert (found.draw(0.5), found.criticality) == ("/model/qwen", Criticality.CRITICAL)
        server.delete(MODEL)
        await eventually(lambda: table.get("/model/qwen") != found)
        successor = table.get("/model/qwen")
        assert successor is not None
        assert (successor.draw(0.5), successor.criticality) == ("v2", Criticality.SHEDDABLE)
        server.delete(younger)
        await eventually(lambda: table.get("/model/qwen") is None)


@pytest.mark.parametrize("group", [X, "llm-d.ai"])
async def test_objectives_and_rewrites_of_both_groups(tmp_path: Path, group: str) -> None:
    def made(kind: str, name: str, **spec: Any) -> Any:
        head = {"apiVersion": f"{group}/v1alpha2", "kind": kind, "metadata": {"name": name}}
        return head | {"spec": {"poolRef": POOL_REF, **spec}}

    async with cluster_of() as server:
        server.apply(made("InferenceObjective", "batch", priority=-1))
        async with picking(server, tmp_path) as picker:
            table = picker.pool.models
            assert table.objective("batch") is Criticality.SHEDDABLE
            server.apply(made("InferenceObjective", "batch", priority=1))
            server.apply(made("InferenceModelRewrite", "any", rules=[{"targets": [{"modelRewrite": "base"}]}]))
            await eventually(lambda: table.objective("batch") is Criticality.CRITICAL)
            await eventually(lambda: table.get("whatever") is not None)


# ------------------------------------------------------------------------------------------------ annotations


async def test_annotations_change_settings_and_their_removal_restores_the_flags(tmp_path: Path) -> None:
    async with cluster_of() as server, picking(server, tmp_path, cost_waiting=2.0) as picker:
        assert picker.settings.routing_strategy == "PREFIX_CACHE"
        server.apply(annotated(POOL, routing_strategy="RANDOM", COST_WAITING="3.5", WARMROUTE_QUEUE_SLACK="7"))
        await eventually(lambda: picker.settings.routing_strategy == "RANDOM")
        assert (picker.settings.cost_waiting, picker.settings.queue_slack) == (3.5, 7)
        server.apply(annotated(POOL, runtime="sglang", **{"cost-waiting": "4", "SD_QUEUE_DEPTH_THRESHOLD": "9"}))
        await eventually(lambda: picker.settings.model_server_runtime == "sglang")
        settings = picker.settings
        assert (settings.routing_strategy, settings.cost_waiting, settings.queue_slack) == ("DEFAULT", 4.0, 2)
        assert settings.saturation_queue_depth == 9
        assert {e.engine for e in picker.pool.endpoints.values()} == {"sglang"}
        server.apply(annotated(POOL))
        await eventually(lambda: picker.settings.model_server_runtime == "vllm")
        assert picker.settings == Settings(pool_name="vllm-qwen-pool", cost_waiting=2.0)
        assert {e.engine for e in picker.pool.endpoints.values()} == {"vllm"}
        assert all(picker.reloads)


async def test_a_bad_annotation_keeps_the_last_good_value_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster_of() as server, picking(server, tmp_path) as picker:
        bad = {"routing_strategy": "FASTEST", "cost-waiting": "much", "experimental-use-queueing": "true"}
        with caplog.at_level(logging.WARNING, "warmroute"):
            server.apply(annotated(POOL, **bad, QUEUE_SLACK="5"))
            server.apply(annotated(POOL, **bad, QUEUE_SLACK="6"))
            await eventually(lambda: picker.settings.queue_slack == 6)
        assert (picker.settings.routing_strategy, picker.settings.cost_waiting) == ("PREFIX_CACHE", 0.5)
        told = [vars(r)["fields"]["annotation"] for r in caplog.records if r.message == "annotation not used"]
        assert sorted(key.rpartition("/")[2] for key in told) == sorted(key.replace("_", "-") for key in bad)
        await eventually(lambda: len(server.all("/api/v1/namespaces/default/events")) == 3)
        events = server.all("/api/v1/namespaces/default/events")
        assert {e["involvedObject"]["name"] for e in events} == {"vllm-qwen-pool"}
        assert {e["type"] for e in events} == {"Warning"}
        assert any("FASTEST" in e["message"] for e in events)
        assert picker.reloads.count(False) == 3
        server.apply(annotated(POOL, routing_strategy="RANDOM"))
        await eventually(lambda: picker.settings.routing_strategy == "RANDOM")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("inference.networking.k8s.io/routing-strategy", f"{X}/routing-strategy"),
        (f"{X}/Routing-Strategy", f"{X}/routing-strategy"),
        (f"{X}/model-server-runtimes", f"{X}/model-server-runtime"),
        ("inference-epp-env.networking.k8s.io/COST_WAITING", "inference-epp-env.networking.x-k8s.io/COST_WAITING"),
    ],
)
async def test_a_misspelt_annotation_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, meant: str
) -> None:
    async with cluster_of() as server, picking(server, tmp_path):
        others = {
            f"{X}/other": "x",
            "inference.networking.k8s.io/active-ports": "x",
            "example.com/routing-strategy": "x",
        }
        server.apply(changed(POOL, metadata__annotations={key: "RANDOM", **others}))
        await eventually(lambda: "annotation not used" in caplog.text)
        (told,) = [vars(r)["fields"] for r in caplog.records if r.message == "annotation not used"]
        assert told == {"annotation": key, "error": f"unknown annotation: did you mean {meant}?"}


# ------------------------------------------------------------------------------------------------ trouble


async def test_dropped_connections_and_compacted_history_lose_nothing(tmp_path: Path) -> None:
    async with cluster_of(pod("a", "10.0.0.1")) as server, picking(server, tmp_path) as picker:
        for i in range(2, 12):
            server.drop_connections()
            server.apply(pod("a", f"10.0.0.{i}"))
            if i % 3 == 0:
                server.compact()
            server.apply(pod(f"p{i}", f"10.0.1.{i}"))
            if i % 2:
                server.delete(pod(f"p{i}", ""))
        wanted = ["10.0.0.11:8000", *(f"10.0.1.{i}:8000" for i in range(2, 12, 2))]
        await eventually(lambda: picker.targets() == sorted(wanted))


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_in_whatever_order_the_pool_ends_up_right(tmp_path: Path, seed: Any) -> None:
    chance = random.Random(seed)
    async with cluster_of() as server, picking(server, tmp_path) as picker:
        port = 8000
        for _ in range(150):
            name = f"p{chance.randrange(12)}"
            match chance.randrange(20):
                case 0:
                    server.drop_connections()
                case 1:
                    server.compact()
                case 2:
                    await server.stop()
                    await server.start()
                case 3:
                    port = 8000 + chance.randrange(3)
                    server.apply(changed(POOL, spec__targetPortNumber=port))
                case 4 | 5 | 6:
                    if server.get(pod(name, "")) is not None:
                        server.delete(pod(name, ""))
                case 7:
                    server.apply(pod(name, "10.0.3.1", metadata__labels={"app": "other"}))
                case 8:
                    await asyncio.sleep(0.02)
                case _:
                    address = f"10.0.1.{chance.randrange(250)}"
                    server.apply(pod(name, address, ready=chance.random() < 0.8, restarts=chance.randrange(2)))
        wanted = sorted(
            f"{item['status']['podIP']}:{port}"
            for item in server.all("/api/v1/namespaces/default/pods")
            if item["metadata"]["labels"] == {"app": "qwen"} and item["status"]["conditions"][0]["status"] == "True"
        )
        await eventually(lambda: picker.targets() == wanted)


async def test_bookmarks_spare_the_list_after_a_compaction(tmp_path: Path) -> None:
    async with cluster_of() as server:
        server.bookmark_interval = 0.02
        async with picking(server, tmp_path) as picker:
            await eventually(lambda: server.watches == 8)
            for i in range(5):
                server.apply(changed(MODEL, metadata__name=f"m{i}", spec__modelName=f"m{i}"))
            await eventually(lambda: len(picker.pool.models) == 6)
            await asyncio.sleep(0.1)  # some bookmarks
            lists = server.lists
            server.compact()
            server.drop_connections()
            await eventually(lambda: server.watches == 16)
            server.apply(pod("c", "10.0.0.3"))
            await eventually(lambda: len(picker.targets()) == 3)
            assert server.lists == lists


async def test_a_server_that_is_away_at_the_start_and_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with cluster_of(pod("a", "10.0.0.1")) as server:
        await server.stop()
        with caplog.at_level(logging.INFO, "warmroute"):
            async with picking(server, tmp_path, synced=False) as picker:
                await eventually(lambda: "cannot be reached" in caplog.text)
                assert not picker.pool.synced
                await server.start()
                await eventually(lambda: picker.pool.synced)
                await server.stop()
                server.apply(pod("b", "10.0.0.2"), annotated(POOL, routing_strategy="RANDOM"))
                server.delete(pod("a", ""))
                await asyncio.sleep(0.2)
                assert picker.pool.synced
                assert picker.targets() == ["10.0.0.1:8000"]
                await server.start()
                await eventually(lambda: picker.targets() == ["10.0.0.2:8000"])
                await eventually(lambda: picker.settings.routing_strategy == "RANDOM")
    told = [r.message for r in caplog.records if "cannot be reached" in r.message or "reached again" in r.message]
    assert len(told) == 4, "once for each time it went and came back"


async def test_a_kubeconfig_that_cannot_be_used_is_no_server_that_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kubeconfig").write_text("apiVersion: v1\nkind: Config\n")
    cluster = Cluster()
    cluster.find({"KUBECONFIG": str(tmp_path / "kubeconfig")})
    with pytest.raises(ApiError):
        await cluster.get("/version")
    await cluster.close()
    assert "the configuration of the cluster cannot be used" in caplog.text
    assert "cannot be reached" not in caplog.text


@pytest.mark.parametrize("how", ["missing", "forbidden"])
async def test_kinds_that_are_missing_or_forbidden_are_told_once_and_picked_up_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: Any
) -> None:
    async with cluster_of() as server:
        kinds = {f"inferencemodels.{X}", f"inferenceobjectives.{X}", "inferencepools.inference.networking.k8s.io"}
        getattr(server, how).update(kinds)
        with caplog.at_level(logging.INFO, "warmroute"):
            async with picking(server, tmp_path) as picker:
                assert len(picker.targets()) == 2
                assert picker.pool.models.get("/model/qwen") is None
                await asyncio.sleep(0.3)  # several attempts
                getattr(server, how).clear()
                await eventually(lambda: picker.pool.models.get("/model/qwen") is not None)
                await eventually(lambda: caplog.text.count("can be read now") == 3)
    text = "may not be read" if how == "forbidden" else "is not installed"
    assert sorted(r.getMessage().split()[0] for r in caplog.records if text in r.getMessage()) == sorted(kinds)
    assert "inferencemodels.inference.networking.x-k8s.io can be read now" in caplog.text


async def test_a_kind_that_is_not_installed_may_look_forbidden_but_is_not_called_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster_of() as server:
        kinds = {f"{plural}.llm-d.ai" for plural in ("inferenceobjectives", "inferencemodelrewrites")}
        server.missing |= kinds
        server.forbidden |= kinds
        with caplog.at_level(logging.WARNING, "warmroute"):
            async with picking(server, tmp_path):
                pass
        assert not caplog.records


@pytest.mark.parametrize("code", [500, 503])
async def test_one_kind_that_the_server_fails_to_list_does_not_hold_up_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, code: Any
) -> None:
    async with cluster_of() as server:
        server.failing[f"inferencemodels.{X}"] = code
        async with picking(server, tmp_path) as picker:
            assert len(picker.targets()) == 2
            assert caplog.text.count("inferencemodels.inference.networking.x-k8s.io cannot be listed") == 1
            server.failing.clear()
            await eventually(lambda: picker.pool.models.get("/model/qwen") is not None)


@pytest.mark.parametrize(
    "body",
    [
        "<html>log in</html>",
        "[]",
        "{}",
        '{"items": []}',
        '{"items": 7, "metadata": {"resourceVersion": "1"}}',
        "x" * 9_000,
    ],
)
async def test_one_kind_that_is_answered_with_nonsense_does_not_hold_up_the_start_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.setattr(api_module, "MAX_ANSWER_BYTES", 8_000)

    async def nonsense(request: web.Request) -> web.StreamResponse:
        return web.Response(text=body)

    async with cluster_of() as server:
        server.answers[f"inferencemodels.{X}"] = nonsense
        async with picking(server, tmp_path) as picker:
            assert len(picker.targets()) == 2
            await asyncio.sleep(0.2)  # several attempts
            assert caplog.text.count("inferencemodels.inference.networking.x-k8s.io cannot be watched") == 1
            assert "Traceback" not in caplog.text
            server.answers.clear()
            await eventually(lambda: picker.pool.models.get("/model/qwen") is not None)


async def test_one_kind_that_is_never_answered_does_not_hold_up_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "REQUEST_TIMEOUT", aiohttp.ClientTimeout(total=QUICK.settle, connect=5))
    asked = 0

    async def silence(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        await asyncio.sleep(60)
        raise AssertionError

    async with cluster_of() as server:
        server.answers[f"inferencemodels.{X}"] = silence
        async with picking(server, tmp_path) as picker:
            assert asked == 1
            assert len(picker.targets()) == 2
            assert any(f"no answer within {QUICK.settle:g} s" in str(vars(r).get("fields")) for r in caplog.records)
            assert "cannot be reached" not in caplog.text


@pytest.mark.parametrize("code", [401, 403, 404, 500])
async def test_a_watch_that_is_refused_while_the_list_works_is_told_once_and_drops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, code: Any
) -> None:
    dropped = Dropped()

    async def refused(request: web.Request) -> web.StreamResponse | None:
        return status(code, "Refused", "no watch") if request.query.get("watch") else None

    async with cluster_of() as server:
        server.answers["pods"] = refused
        with caplog.at_level(logging.INFO, "warmroute"):
            async with picking(server, tmp_path) as picker:
                picker.pool.subscribe(dropped, 0.0)
                server.apply(pod("c", "10.0.0.3"))
                await eventually(lambda: len(picker.targets()) == 3)
                await asyncio.sleep(0.2)
                told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("pods ")]
                assert len(told) == 1
                server.answers.clear()
                await eventually(lambda: "pods can be read now" in caplog.text)
    assert dropped.ids == []


async def test_a_kind_that_is_not_found_for_a_moment_keeps_its_objects_and_one_that_is_uninstalled_does_not(
    tmp_path: Path,
) -> None:
    async with cluster_of() as server, picking(server, tmp_path) as picker:
        server.missing.add(f"inferencepools.{X}")
        server.drop_connections()
        requests = server.refused
        await eventually(lambda: server.refused > requests + 2)
        assert len(picker.targets()) == 2
        await eventually(lambda: picker.targets() == [])
        server.missing.clear()
        await eventually(lambda: len(picker.targets()) == 2)


async def test_a_line_that_is_no_event_or_never_ends_is_told_once_and_the_kind_is_listed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "MAX_EVENT_BYTES", 100_000)
    lines = [b'{"type": "ADDED", "object": null}', b"null", b"nonsense", b'{"type": "BOOKMARK"}', b"x" * 200_000]

    async def odd(request: web.Request) -> web.StreamResponse | None:
        if not request.query.get("watch"):
            return None
        response = web.StreamResponse()
        await response.prepare(request)
        lines.append(lines.pop(0))
        await response.write(lines[-1] + b"\n")
        await asyncio.sleep(5)
        return response

    async with cluster_of() as server:
        server.answers["pods"] = odd
        async with picking(server, tmp_path) as picker:
            for i in range(3, 12):
                server.apply(pod(f"p{i}", f"10.0.0.{i}"))
                await eventually(lambda count=i: len(picker.targets()) == count)  # type: ignore[misc]
        assert caplog.text.count("pods cannot be watched") == 1
        assert "Traceback" not in caplog.text


async def test_watches_that_the_server_ends_at_once_are_begun_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "STEADY", 0.2)
    begun: list[float] = []

    async def ended(request: web.Request) -> web.StreamResponse | None:
        if not request.query.get("watch"):
            return None
        begun.append(asyncio.get_running_loop().time())
        return web.Response()

    async with cluster_of() as server:
        server.answers["pods"] = ended
        async with picking(server, tmp_path):
            await eventually(lambda: len(begun) > 8)
    assert begun[8] - begun[7] > 0.1


async def test_a_server_that_asks_to_wait_is_asked_again_no_sooner(tmp_path: Path) -> None:
    asked: list[float] = []

    async def busy(request: web.Request) -> web.StreamResponse | None:
        asked.append(asyncio.get_running_loop().time())
        return web.Response(status=429, headers={"Retry-After": "1"}) if len(asked) == 1 else None

    async with cluster_of() as server:
        server.answers["pods"] = busy
        async with picking(server, tmp_path):
            pass
    assert asked[1] - asked[0] >= 1.0


async def test_rights_withdrawn_later_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with cluster_of() as server, picking(server, tmp_path) as picker:
        server.forbidden |= {"pods", f"inferencepools.{X}", f"inferencemodels.{X}"}
        server.drop_connections()
        await eventually(lambda: "may not be read" in caplog.text)
        assert picker.pool.synced
        assert len(picker.targets()) == 2
        assert picker.pool.models.get("/model/qwen") is not None
        server.forbidden.clear()
        server.apply(pod("c", "10.0.0.3"))
        await eventually(lambda: len(picker.targets()) == 3)


async def test_after_a_restart_of_the_server_403_is_retried_as_any_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An API server answers 403 until its RBAC caches are filled; an unreadable kind may be retried much less often."""
    backoff = Backoff(first=0.01, most=0.05, missing=3600)
    async with cluster_of() as server, picking(server, tmp_path, backoff=backoff) as picker:
        await server.stop()
        server.forbidden |= {"pods", f"inferencepools.{X}", f"inferencemodels.{X}"}
        await server.start()
        await eventually(lambda: caplog.text.count("may not be read") == 3)
        server.forbidden.clear()
        server.apply(pod("c", "10.0.0.3"))
        await eventually(lambda: len(picker.targets()) == 3)


async def test_without_the_right_to_read_pods_it_is_not_ready(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with cluster_of() as server:
        server.forbidden.add("pods")
        async with picking(server, tmp_path, synced=False) as picker:
            await eventually(lambda: "pods may not be read" in caplog.text)
            assert not picker.pool.synced
            server.forbidden.clear()
            await eventually(lambda: picker.pool.synced)


async def test_wrong_credentials_are_read_again(tmp_path: Path) -> None:
    async with cluster_of() as server, picking(server, tmp_path, synced=False, token="expired") as picker:
        await eventually(lambda: server.unauthorized)
        assert not picker.pool.synced
        server.write_kubeconfig(tmp_path / "kubeconfig")
        await eventually(lambda: picker.pool.synced)


async def test_one_object_that_makes_no_sense_harms_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = [changed(MODEL, metadata__name="odd", spec=None), pod("odd", "10.0.0.9", status__conditions=[{}])]
    async with api_server(POOL, MODEL, *odd, pod("a", "10.0.0.1")) as server, picking(server, tmp_path) as picker:
        assert picker.targets() == ["10.0.0.1:8000"]
        assert picker.pool.models.get("/model/qwen") is not None
        server.apply(changed(odd[0], spec={"modelName": 7}))
        server.apply(pod("b", "10.0.0.2"))
        await eventually(lambda: len(picker.targets()) == 2)


async def test_an_object_that_cannot_be_read_is_told_once_while_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster_of() as server, picking(server, tmp_path) as picker:
        for i in range(10):
            server.apply(pod("odd", "10.0.0.9", status__conditions=[{}], metadata__annotations={"i": str(i)}))
            server.apply(pod("c", f"10.0.0.{100 + i}"))
            await eventually(lambda last=f"10.0.0.{100 + i}:8000": last in picker.targets())  # type: ignore[misc]
            if i % 4 == 0:
                server.compact()
                server.drop_connections()
        assert caplog.text.count("an object cannot be read") == 1
        server.apply(pod("odd", "10.0.0.9"))
        await eventually(lambda: len(picker.targets()) == 4)
        server.apply(pod("odd", "10.0.0.9", status__conditions=[{}]))
        await eventually(lambda: caplog.text.count("an object cannot be read") == 2)
        assert len(picker.targets()) == 4


async def test_items_of_a_list_without_a_name_harm_no_other(tmp_path: Path) -> None:
    async def odd(request: web.Request) -> web.StreamResponse | None:
        if request.query.get("watch"):
            return None
        items = [None, {}, {"metadata": None}, {"metadata": {"name": 7}}, pod("c", "10.0.0.3", metadata__uid="u")]
        return web.json_response({"metadata": {"resourceVersion": "5"}, "items": items})

    async with cluster_of() as server:
        server.answers["pods"] = odd
        async with picking(server, tmp_path) as picker:
            assert picker.targets() == ["10.0.0.3:8000"]


def test_no_cluster_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no cluster found"):
        Cluster().find({"KUBECONFIG": str(tmp_path / "none")})
    settings = Settings(pool_name="p", pool_group="example.com")
    with pytest.raises(ConfigurationError, match="pool-group"):
        KubernetesDiscovery(Cluster(), settings, Pool(), apply=lambda _: None, reloaded=lambda _: None)
