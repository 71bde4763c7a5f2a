"""The CRDs are structural schemas that an API server takes, and judge objects as the published field tables say."""

import copy
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from tests.deploy.manifests import (
    DEPLOY,
    SAMPLES,
    custom_resource_definitions,
    defaulted,
    read_documents,
    render,
    stored,
    strict,
    walk,
)

pytestmark = pytest.mark.integration

V1, V1ALPHA2 = "inference.networking.k8s.io/v1", "inference.networking.x-k8s.io/v1alpha2"
CRDS = {f"{crd['spec']['names']['kind']}-{crd['spec']['group']}": crd for crd in custom_resource_definitions()}

STRUCTURAL_KEYWORDS = {
    "type", "description", "default", "format", "enum", "pattern", "required", "properties", "additionalProperties", "items",
    "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
    "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations",
}  # fmt: skip


def schema_of(crd: dict[str, Any]) -> Any:
    (version,) = crd["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]


def test_the_kinds_that_the_picker_reads_are_there() -> None:
    assert {
        (c["spec"]["group"], c["spec"]["versions"][0]["name"], c["spec"]["names"]["kind"]) for c in CRDS.values()
    } == {
        ("inference.networking.k8s.io", "v1", "InferencePool"),
        ("inference.networking.x-k8s.io", "v1alpha2", "InferencePool"),
        ("inference.networking.x-k8s.io", "v1alpha2", "InferenceModel"),
        ("inference.networking.x-k8s.io", "v1alpha2", "InferenceObjective"),
        ("inference.networking.x-k8s.io", "v1alpha2", "InferenceModelRewrite"),
    }


def test_kustomize_renders_all_of_them() -> None:
    assert len(render(DEPLOY / "crds")) == len(CRDS)


@pytest.mark.parametrize("crd", CRDS.values(), ids=CRDS)
def test_the_api_server_takes_it(crd: dict[str, Any]) -> None:
    kubernetes_validate.validate(crd, kubernetes_validate.latest_version(), strict=True)
    names, group = crd["spec"]["names"], crd["spec"]["group"]
    assert crd["metadata"]["name"] == f"{names['plural']}.{group}"
    if group.endswith(".k8s.io"):
        assert crd["metadata"]["annotations"]["api-approved.kubernetes.io"].startswith("https://")
    (version,) = crd["spec"]["versions"]
    assert version["served"]
    assert version["storage"]
    assert version["subresources"] == {"status": {}}


@pytest.mark.parametrize("crd", CRDS.values(), ids=CRDS)
def test_its_schema_is_structural(crd: dict[str, Any]) -> None:
    schema = schema_of(crd)
    nodes = dict(walk(schema))
    for path, node in nodes.items():
        assert "type" in node, path
        assert set(node) <= STRUCTURAL_KEYWORDS, path
        assert not {"properties", "additionalProperties"} <= set(node), path
        for name in node.get("required", []):
            assert name in node["properties"], path
        if node.get("x-kubernetes-list-type") == "map":
            item = node["items"]
            assert set(node["x-kubernetes-list-map-keys"]) <= set(item["required"]), path
        if "default" in node:
            jsonschema.validate(defaulted(node, copy.deepcopy(node["default"])), strict(node))
    for column in crd["spec"]["versions"][0]["additionalPrinterColumns"]:
        assert column["jsonPath"] in nodes or column["jsonPath"] == ".metadata.creationTimestamp"


def test_rules_beyond_the_schema() -> None:
    """CEL is not evaluated here; this keeps the rules in their places."""
    rules = {
        (name.split("-")[0], path): validation["rule"]
        for name, crd in CRDS.items()
        for path, node in walk(schema_of(crd))
        for validation in node.get("x-kubernetes-validations", [])
    }
    assert rules == {
        ("InferencePool", ".spec.targetPorts"): "self.all(p1, self.exists_one(p2, p1.number == p2.number))",
        ("InferencePool", ".spec.endpointPickerRef"): "self.kind != 'Service' || has(self.port)",
        ("InferenceModel", ".spec.modelName"): "self == oldSelf",
        ("InferenceModel", ".spec.targetModels"): "self.all(m, has(m.weight)) || self.all(m, !has(m.weight))",
    }


def test_short_names() -> None:
    names = {name: crd["spec"]["names"].get("shortNames", []) for name, crd in CRDS.items()}
    assert {name: short for name, short in names.items() if short} == {
        "InferencePool-inference.networking.k8s.io": ["infpool"],
        "InferencePool-inference.networking.x-k8s.io": ["xinfpool"],
    }


# ---------------------------------------------------------------- objects


def instance(api_version: str, kind: str, spec: dict[str, Any]) -> Any:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": "it"}, "spec": spec}


POOL_V1: dict[str, Any] = {"selector": {"matchLabels": {"app": "qwen"}}, "targetPorts": [{"number": 8000}]}
POOL_V1ALPHA2: dict[str, Any] = {"selector": {"app": "qwen"}, "targetPortNumber": 8000, "extensionRef": {"name": "epp"}}
MODEL = {"modelName": "m", "poolRef": {"name": "p"}}
REWRITE = {"poolRef": {"name": "p"}, "rules": [{"targets": [{"modelRewrite": "b"}]}]}
MATCH_A = {"model": {"value": "a"}}
REF_V1 = {"name": "epp", "port": {"number": 9002}}


@pytest.mark.parametrize(
    ("api_version", "kind", "spec"),
    [
        (V1, "InferencePool", POOL_V1),
        (V1, "InferencePool", {**POOL_V1, "targetPorts": [{"number": n} for n in range(8000, 8008)]}),
        (V1, "InferencePool", {**POOL_V1, "appProtocol": "kubernetes.io/h2c", "endpointPickerRef": REF_V1}),
        (V1, "InferencePool", {**POOL_V1, "endpointPickerRef": {**REF_V1, "failureMode": "FailOpen"}}),
        (V1ALPHA2, "InferencePool", POOL_V1ALPHA2),
        (V1ALPHA2, "InferencePool", {**POOL_V1ALPHA2, "extensionRef": {"name": "epp", "portNumber": 9002}}),
        (V1ALPHA2, "InferenceModel", MODEL),
        (
            V1ALPHA2,
            "InferenceModel",
            {**MODEL, "targetModels": [{"name": "a", "weight": 1}, {"name": "b", "weight": 9}]},
        ),
        (V1ALPHA2, "InferenceObjective", {"poolRef": {"name": "p"}, "priority": -1}),
        (V1ALPHA2, "InferenceModelRewrite", REWRITE),
        (
            V1ALPHA2,
            "InferenceModelRewrite",
            {**REWRITE, "rules": [{"matches": [MATCH_A], "targets": [{"modelRewrite": "b", "weight": 3}]}]},
        ),
    ],
)
def test_good_objects_pass(api_version: str, kind: str, spec: dict[str, Any]) -> None:
    stored(instance(api_version, kind, spec))


@pytest.mark.parametrize(
    ("api_version", "kind", "spec"),
    [
        (V1, "InferencePool", {"targetPorts": [{"number": 8000}]}),
        (V1, "InferencePool", {**POOL_V1, "selector": {"app": "qwen"}}),
        (V1, "InferencePool", {**POOL_V1, "selector": {"matchLabels": {}}}),
        (V1, "InferencePool", {**POOL_V1, "selector": {"matchLabels": {"app": "-no-label-"}}}),
        (V1, "InferencePool", {**POOL_V1, "targetPorts": []}),
        (V1, "InferencePool", {**POOL_V1, "targetPorts": [{"number": 0}]}),
        (V1, "InferencePool", {**POOL_V1, "targetPorts": [{"number": n} for n in range(1, 10)]}),
        (V1, "InferencePool", {**POOL_V1, "appProtocol": "h2"}),
        (V1, "InferencePool", {**POOL_V1, "endpointPickerRef": {**REF_V1, "failureMode": "failOpen"}}),
        (V1, "InferencePool", {**POOL_V1, "endpointPickerRef": {"port": {"number": 9002}}}),
        (V1, "InferencePool", POOL_V1ALPHA2),
        (V1ALPHA2, "InferencePool", POOL_V1),
        (V1ALPHA2, "InferencePool", {**POOL_V1ALPHA2, "targetPortNumber": "8000"}),
        (V1ALPHA2, "InferencePool", {**POOL_V1ALPHA2, "targetPortNumber": 65536}),
        (V1ALPHA2, "InferencePool", {**POOL_V1ALPHA2, "extensionRef": {"name": ""}}),
        (V1ALPHA2, "InferenceModel", {"modelName": "m"}),
        (V1ALPHA2, "InferenceModel", {**MODEL, "modelName": "m" * 257}),
        (V1ALPHA2, "InferenceModel", {**MODEL, "criticality": "critical"}),
        (V1ALPHA2, "InferenceModel", {**MODEL, "targetModels": [{"name": "a", "weight": 0}]}),
        (V1ALPHA2, "InferenceModel", {**MODEL, "targetModels": [{"name": str(n)} for n in range(11)]}),
        (V1ALPHA2, "InferenceObjective", {"priority": 1}),
        (V1ALPHA2, "InferenceObjective", {"poolRef": {"name": "p"}, "priority": "high"}),
        (V1ALPHA2, "InferenceModelRewrite", {"poolRef": {"name": "p"}}),
        (V1ALPHA2, "InferenceModelRewrite", {**REWRITE, "rules": [{"targets": []}]}),
        (V1ALPHA2, "InferenceModelRewrite", {**REWRITE, "rules": [{"matches": [{"model": {"value": ""}}]}]}),
        (V1ALPHA2, "InferenceModelRewrite", {**REWRITE, "rules": [{"target": [{"modelRewrite": "b"}]}]}),
    ],
)
def test_bad_objects_are_refused(api_version: str, kind: str, spec: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        stored(instance(api_version, kind, spec))


def test_the_walk_through_pool_and_model_get_their_defaults() -> None:
    pool, model = map(stored, read_documents((SAMPLES / "inference-pool.yaml").read_text()))
    assert pool["spec"]["extensionRef"] == {
        "group": "",
        "kind": "Service",
        "name": "inference-gateway-ext-proc",
        "failureMode": "FailClose",
    }
    assert model["spec"]["poolRef"]["group"] == "inference.networking.x-k8s.io"


def test_defaults() -> None:
    pool = stored(instance(V1, "InferencePool", {**POOL_V1, "endpointPickerRef": REF_V1}))["spec"]
    assert pool["appProtocol"] == "http"
    assert (pool["endpointPickerRef"]["kind"], pool["endpointPickerRef"]["failureMode"]) == ("Service", "FailClose")
    rewrite = stored(
        instance(V1ALPHA2, "InferenceModelRewrite", {**REWRITE, "rules": [{"matches": [{"model": {"value": "a"}}]}]})
    )
    assert rewrite["spec"]["rules"][0]["matches"][0]["model"]["type"] == "Exact"
    assert rewrite["spec"]["poolRef"]["group"] == "inference.networking.k8s.io"
    old = stored(instance(V1ALPHA2, "InferencePool", POOL_V1ALPHA2))
    assert old["status"]["parent"][0]["parentRef"]["kind"] == "Status"
    assert old["status"]["parent"][0]["conditions"][0]["reason"] == "Pending"
