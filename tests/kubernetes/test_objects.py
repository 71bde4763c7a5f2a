"""What Kubernetes objects mean: pods to endpoints, pools of both groups, models, rewrites and objectives. Pure functions."""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.factories import routing_constants
from tests.fixtures.kubernetes.objects import MODEL, POOL, POOL_REF, X, changed, pod
from warmroute.kubernetes.annotations import AnnotatedSettings
from warmroute.kubernetes.inference_pool import read_pool
from warmroute.kubernetes.models import (
    InferenceModel,
    models_of,
    priorities_of,
    read_model,
    read_objective,
    read_rewrite,
)
from warmroute.kubernetes.pods import read_pod
from warmroute.pool.endpoint import EndpointSpec
from warmroute.pool.models import Criticality, Model, ModelTable, ModelTarget
from warmroute.pool.pool import Pool
from warmroute.routing.router import Router
from warmroute.settings import Settings

NAME = "vllm-qwen-pool"


def endpoints(item: dict[str, Any], *ports: int) -> list[EndpointSpec]:
    return list(read_pod(uid(item)).endpoints(ports or (8000,)))


def uid(item: dict[str, Any], value: str = "u-1") -> dict[str, Any]:
    return changed(item, metadata__uid=value)


# ------------------------------------------------------------------------------------------------ pods


def test_a_ready_pod_is_one_endpoint_for_each_target_port() -> None:
    (one,) = endpoints(pod("a", "10.0.0.1"))
    assert (one.id, one.target, dict(one.labels)) == ("default/a", "10.0.0.1:8000", {"app": "qwen"})
    assert [(e.id, e.target) for e in endpoints(pod("a", "10.0.0.1"), 8000, 8001)] == [
        ("default/a-rank-0", "10.0.0.1:8000"),
        ("default/a-rank-1", "10.0.0.1:8001"),
    ]


def test_ipv6() -> None:
    assert endpoints(pod("a", "2001:db8::1"))[0].target == "[2001:db8::1]:8000"


@pytest.mark.parametrize(
    "paths",
    [
        {"status__conditions": [{"type": "Ready", "status": "False"}]},
        {"status__conditions": [{"type": "ContainersReady", "status": "True"}]},
        {"status__conditions": None},
        {"status": {}},
        {"status__podIP": None},
        {"status__podIP": ""},
        {"metadata__deletionTimestamp": "2026-01-01T00:00:00Z"},
    ],
)
def test_pods_that_are_not_ready_or_are_going_or_have_no_address_are_none(paths: Any) -> None:
    assert endpoints(pod("a", "10.0.0.1", **paths)) == []


@pytest.mark.parametrize(
    ("annotations", "ranks"),
    [
        ({}, [0, 1, 2]),
        ({"llm-d.ai/active-ports": "8000, 8002"}, [0, 2]),
        ({"inference.networking.k8s.io/active-ports": "8001"}, [1]),
        ({"llm-d.ai/active-ports": "8002", "inference.networking.k8s.io/active-ports": "8001"}, [2]),
        ({"llm-d.ai/active-ports": "9999,nonsense,8001"}, [1]),
        ({"llm-d.ai/active-ports": ""}, []),
    ],
)
def test_active_ports_keep_the_ranks_names(annotations: Any, ranks: Any) -> None:
    found = endpoints(pod("a", "10.0.0.1", metadata__annotations=annotations), 8000, 8001, 8002)
    assert [e.name for e in found] == [f"a-rank-{rank}" for rank in ranks]


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ({"llm-d.ai/role": "prefill"}, 0),
        ({"llmd.org/role": "prefill"}, 0),
        ({"llm-d.ai/role": "encode"}, 0),
        ({"llm-d.ai/role": "decode", "llmd.org/role": "prefill"}, 1),
        ({"llm-d.ai/role": "both"}, 1),
        ({"llm-d.ai/role": "prefill-decode"}, 1),
        ({}, 1),
    ],
)
def test_pods_that_work_for_other_pods_are_no_endpoints(labels: dict[str, str], found: int) -> None:
    assert len(endpoints(pod("a", "10.0.0.1", metadata__labels=labels))) == found


def test_the_cache_generation_is_an_annotation() -> None:
    annotations = {"warmroute/cache-generation": "17"}
    (one,) = endpoints(pod("a", "10.0.0.1", metadata__annotations=annotations))
    assert one.cache_generation == "17"
    assert endpoints(pod("a", "10.0.0.1"))[0].cache_generation == ""


def test_the_incarnation_is_the_engines_process() -> None:
    first = endpoints(pod("a", "10.0.0.1"))[0].incarnation
    assert endpoints(pod("a", "10.0.0.1"))[0].incarnation == first
    assert endpoints(pod("a", "10.0.0.1", restarts=1))[0].incarnation != first
    assert next(read_pod(uid(pod("a", "10.0.0.1"), "u-2")).endpoints([8000])).incarnation != first


def test_a_sidecars_restart_is_not_the_engines() -> None:
    def with_sidecar(restarts: int, ports: list[dict[str, int]]) -> str:
        item = pod("a", "10.0.0.1")
        item["spec"]["containers"].append({"name": "proxy", "ports": ports})
        item["status"]["containerStatuses"].append(
            {"name": "proxy", "containerID": f"containerd://p-{restarts}", "restartCount": restarts}
        )
        return endpoints(item)[0].incarnation

    assert with_sidecar(0, []) == with_sidecar(1, [])
    assert with_sidecar(0, [{"containerPort": 8000}]) != with_sidecar(1, [{"containerPort": 8000}])
    undeclared: dict[str, Any] = {"spec__containers": [{"name": "vllm"}]}
    assert endpoints(pod("a", "1.1.1.1", **undeclared)) != endpoints(pod("a", "1.1.1.1", restarts=1, **undeclared))


# ------------------------------------------------------------------------------------------------ pools


def placed(item: dict[str, Any]) -> dict[str, Any]:
    return changed(item, metadata__namespace="default")


def test_pools_of_both_groups() -> None:
    old = read_pool(placed(POOL))
    assert (old.label_selector, old.ports) == ("app=qwen", (8000,))
    spec = {"selector": {"matchLabels": {"b": "2", "a": "1"}}, "targetPorts": [{"number": 8000}, {"number": 8001}]}
    new = read_pool(placed(changed(POOL, apiVersion="inference.networking.k8s.io/v1", spec=spec)))
    assert (new.label_selector, new.ports) == ("a=1,b=2", (8000, 8001))


@pytest.mark.parametrize("paths", [{"spec__selector": {}}, {"spec__selector": None}, {"spec": {}}])
def test_pools_without_selector_are_none(paths: Any) -> None:
    with pytest.raises((ValueError, LookupError)):
        read_pool(placed(changed(POOL, **paths)))


# ------------------------------------------------------------------------------------------------ models


def model(name: str = "m", created: str = "2026-01-01T00:00:00Z", **paths: Any) -> dict[str, Any]:
    made = {"metadata__name": name, "metadata__creationTimestamp": created, "metadata__namespace": "default"}
    return changed(MODEL, **{**made, "spec__modelName": "chat", "spec__targetModels": [{"name": name}], **paths})


def rewrite(name: str, *rules: tuple[list[str], list[dict[str, Any]]], created: str = "2026-01-01T00:00:00Z") -> Any:
    return read_rewrite(
        {
            "metadata": {"name": name, "namespace": "default", "creationTimestamp": created},
            "spec": {
                "poolRef": POOL_REF,
                "rules": [
                    {"matches": [{"model": {"type": "Exact", "value": m}} for m in matches], "targets": targets}
                    for matches, targets in rules
                ],
            },
        }
    )


def test_the_oldest_model_of_a_name_wins_whatever_the_order() -> None:
    items = [
        model("younger", "2026-01-02T00:00:00Z"),
        model("oldest"),
        model("as-old"),
        model("other-pool", "2020-01-01T00:00:00Z", spec__poolRef={"name": "else"}),
        model("going", "2020-01-01T00:00:00Z", metadata__deletionTimestamp="2026-01-03T00:00:00Z"),
    ]
    for order in itertools.permutations(items):
        (found,), any_model = models_of(NAME, map(read_model, order), ())
        assert found.targets == (ModelTarget("as-old"),)  # of two as old as each other the first by name
        assert any_model is None


def test_weights_and_criticality() -> None:
    def only(**paths: Any) -> Model:
        ((found,), _) = models_of(NAME, [read_model(model(**paths))], ())
        return found

    assert only(spec__targetModels=[{"name": "a", "weight": 9}, {"name": "b", "weight": 1}]).targets == (
        ModelTarget("a", 9),
        ModelTarget("b", 1),
    )
    assert only(spec__targetModels=[{"name": "a"}, {"name": "b"}]).targets == (ModelTarget("a", 1), ModelTarget("b", 1))
    assert only(spec__targetModels=None).draw(0.5) == "chat"
    assert only(spec__criticality="Sheddable").criticality is Criticality.SHEDDABLE
    assert only(spec__criticality="Critical").criticality is Criticality.CRITICAL
    assert only(spec__criticality=None).criticality is Criticality.STANDARD


def test_an_exact_rewrite_beats_the_model_and_the_model_beats_the_generic_rewrite() -> None:
    models = [read_model(model(spec__criticality="Sheddable"))]
    generic = rewrite("g", ([], [{"modelRewrite": "base"}]), created="2020-01-01T00:00:00Z")
    exact = rewrite("e", (["chat", "talk"], [{"modelRewrite": "v1", "weight": 1}, {"modelRewrite": "v2", "weight": 3}]))
    table, any_model = models_of(NAME, models, [generic, exact])
    weighted = (ModelTarget("v1", 1), ModelTarget("v2", 3))
    assert {m.name: (m.targets, m.criticality) for m in table} == {
        "chat": (weighted, Criticality.SHEDDABLE),
        "talk": (weighted, Criticality.STANDARD),
    }
    assert any_model is not None
    assert any_model.draw(0.3) == "base"
    table, _ = models_of(NAME, models, [generic])
    assert [m.draw(0.0) for m in table] == ["m"]


def test_of_rewrites_the_oldest_object_wins_then_the_first_rule() -> None:
    young = rewrite("a", (["chat"], [{"modelRewrite": "young"}]), created="2026-01-02T00:00:00Z")
    old = rewrite("b", (["chat"], [{"modelRewrite": "first"}]), (["chat"], [{"modelRewrite": "second"}]))
    generic = rewrite("c", ([], [{"modelRewrite": "x"}]), ([], [{"modelRewrite": "y"}]))
    (found,), any_model = models_of(NAME, (), [young, old, generic])
    assert found.targets == (ModelTarget("first"),)
    assert any_model is not None
    assert any_model.targets == (ModelTarget("x"),)


def objective(name: str, priority: int | None, **paths: Any) -> Any:
    spec = {"poolRef": POOL_REF} | ({} if priority is None else {"priority": priority})
    item = {"apiVersion": f"{X}/v1alpha2", "metadata": {"name": name, "namespace": "default"}, "spec": spec}
    return read_objective(changed(item, **paths))


def test_objectives() -> None:
    claims = [
        objective("batch", -1),
        objective("plain", None),
        objective("else", 5, spec__poolRef={"name": "another"}),
        objective("batch", 7, metadata__creationTimestamp="2026-01-01T00:00:00Z"),
    ]
    assert priorities_of(NAME, claims) == {"batch": -1, "plain": 0}


@pytest.mark.parametrize("targets", [[], [{"modelRewrite": ""}], [{"modelRewrite": "a"}, {"modelRewrite": ""}]])
def test_a_rewrite_to_nothing_is_refused(targets: Any) -> None:
    with pytest.raises(ValueError, match="target"):
        read_rewrite(changed(REWRITE, **OWN, spec__rules=[{"targets": targets}]))


@pytest.mark.parametrize("names", [[""], ["a", ""]])
def test_a_target_without_a_name_is_refused(names: list[str]) -> None:
    """Requests would name no model to the engine."""
    targets = [{"name": name, "weight": 1} for name in names]
    with pytest.raises(ValueError, match="a target needs the name of a model"):
        read_model(changed(MODEL, **OWN, spec__targetModels=targets))


# ------------------------------------------------------------------------------------------------ fields of wrong types

ODD: list[Any] = [None, 7, -1, 99_999, 1.5, True, "", "x", [], [1], ["x"], [None], {}, {"a": 1}, {"a": None}]
CREATED = "2026-01-01T00:00:00Z"
OWN = {"metadata__namespace": "default", "metadata__uid": "u", "metadata__creationTimestamp": CREATED}
POD = pod(
    "a",
    "10.0.0.1",
    metadata__labels={"app": "qwen", "llm-d.ai/role": "decode", "llm-d.ai/engine-type": "vllm"},
    metadata__annotations={"llm-d.ai/active-ports": "8000", "warmroute/cache-generation": "1"},
)
V1_SPEC = {"selector": {"matchLabels": {"app": "q"}}, "targetPorts": [{"number": 8000}, {"number": 8001}]}
REWRITE = {
    "spec": {
        "poolRef": POOL_REF,
        "rules": [
            {"matches": [{"model": {"value": "m"}}], "targets": [{"modelRewrite": "base", "weight": 3}]},
            {"targets": [{"modelRewrite": "other"}]},
        ],
    },
    "metadata": {"name": "r"},
}
OBJECTIVE = {"metadata": {"name": "o"}, "spec": {"poolRef": POOL_REF, "priority": 1}}


def places(item: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each field."""
    if path:
        yield path
    for key, value in item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ():
        yield from places(value, (*path, key))


def replaced(item: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy in which another value is at that path."""
    result = place = copy.deepcopy(item)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return result


def use_pod(read: Any) -> None:
    pool = Pool()
    Router(pool, routing_constants(), rng=random.Random(1), now=0.0)
    pool.replace(read.endpoints((8000, 8001)), 0.0)
    for endpoint in pool.endpoints.values():
        json.dumps([endpoint.id, endpoint.target, endpoint.engine, dict(endpoint.spec.labels)])


def use_pool(read: Any) -> None:
    assert all(0 < port < 65536 for port in read.ports)
    assert all(isinstance(value, str) for value in (*read.selector.values(), *read.annotations.values()))
    AnnotatedSettings(Settings(pool_name="p"), lambda _: None, lambda *_: None).update(read.annotations)


def use_models(read: Any) -> None:
    models = [read_model(changed(MODEL, **OWN)), *([read] if isinstance(read, InferenceModel) else [])]
    rewrites = [read_rewrite(changed(REWRITE, **OWN)), *([] if isinstance(read, InferenceModel) else [read])]
    table = ModelTable()
    table.replace(*models_of(NAME, models, rewrites))
    for name in ("m", "/model/qwen", "any"):
        model = table.get(name)
        assert model is not None
        assert model.draw(0.5) in {"base", "/model/qwen", "other", "x"}


def use_objective(read: Any) -> None:
    table = ModelTable()
    table.replace_objectives(priorities_of(NAME, [read, read_objective(changed(OBJECTIVE, **OWN))]))
    table.objective("o")


@pytest.mark.parametrize(
    ("item", "read", "use"),
    [
        (POD, read_pod, use_pod),
        (POOL, read_pool, use_pool),
        (changed(POOL, apiVersion="inference.networking.k8s.io/v1", spec=V1_SPEC), read_pool, use_pool),
        (MODEL, read_model, use_models),
        (REWRITE, read_rewrite, use_models),
        (OBJECTIVE, read_objective, use_objective),
    ],
)
def test_whatever_a_field_holds_an_object_is_refused_or_can_be_used(item: Any, read: Any, use: Any) -> None:
    whole = changed(item, **OWN)
    for path in places(whole):
        for value in ODD:
            try:
                result = read(replaced(whole, path, value))
            except (LookupError, TypeError, ValueError, AttributeError):
                continue
            try:
                use(result)
            except Exception as error:
                raise AssertionError(f"{path} = {value!r}") from error
