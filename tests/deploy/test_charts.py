"""The Helm charts: they render what the kustomize bases render, validate, and refuse wrong values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import DEPLOY, PICKER, Manifest, overlay, pick, read_documents, render, validate
from tests.deploy.manifests import with_components as with_components_in
from warmroute import __version__

helm = pytest.importorskip("helm_python", reason="there is no Helm here: pip install helm-python-sdk")
pytestmark = pytest.mark.integration

CHARTS = DEPLOY / "charts"
EXTENSION = "warmroute-gateway-extension"
NAMESPACE = "envoy-gateway-system"
POOL = {"name": "vllm-qwen-pool", "namespace": "default", "selector": {"app": "qwen"}}

LINT_INFO = 1

both_charts = pytest.mark.parametrize("chart", ["warmroute", EXTENSION])


def rendered(chart: str, values: Manifest, name: str, namespace: str = NAMESPACE) -> tuple[Manifest, ...]:
    """What ``helm template NAME deploy/charts/CHART`` prints, as documents."""
    with helm.Chart.load(str(CHARTS / chart)) as loaded:
        loaded.validate_schema(values)
        files = loaded.render(values, name=name, namespace=namespace)
    return tuple(
        document for path in sorted(files) if path.endswith(".yaml") for document in read_documents(files[path])
    )


def picker(**values: Any) -> tuple[Manifest, ...]:
    return rendered("warmroute", {"pool": POOL} | values, PICKER)


def extension(**values: Any) -> tuple[Manifest, ...]:
    return rendered(EXTENSION, values, EXTENSION)


def without_labels(documents: tuple[Manifest, ...]) -> dict[tuple[str, str, str], Manifest]:
    """The documents by kind, namespace and name, without labels of the objects themselves: Helm adds its own."""
    result = {}
    for document in documents:
        metadata = {key: value for key, value in document["metadata"].items() if key != "labels"}
        key = document["kind"], metadata.get("namespace", ""), metadata["name"]
        result[key] = document | {"metadata": metadata}
    return result


def assert_equal(ours: tuple[Manifest, ...], theirs: tuple[Manifest, ...]) -> None:
    left, right = without_labels(ours), without_labels(theirs)
    assert sorted(left) == sorted(right)
    for key, document in left.items():
        assert document == right[key], key


# ---------------------------------------------------------------- equality with the kustomize bases


def test_the_picker_is_that_of_the_base() -> None:
    assert_equal(picker(), render(DEPLOY / "base"))


def test_the_picker_is_that_of_the_base_with_high_availability_and_a_pod_monitor(tmp_path: Path) -> None:
    expected = with_components_in("base", ("high-availability", "pod-monitor"), tmp_path)
    assert_equal(picker(highAvailability=True, podMonitor={"enabled": True}), expected)


def test_the_picker_is_that_of_the_overlay_beside_the_gateway_extension() -> None:
    values = {"poolServices": {"enabled": True}, "extraFlags": ["--max-endpoints=2"]}
    assert_equal(picker(**values), overlay("envoy-gateway-extension"))


def test_the_extension_is_that_of_the_base() -> None:
    assert_equal(extension(), render(DEPLOY / "gateway-extension"))


# ---------------------------------------------------------------- values


EVERYTHING_ON: Manifest = {
    "secureServing": False,
    "service": {"appProtocol": "kubernetes.io/h2c"},
    "poolServices": {"enabled": True, "picker": "", "pods": "pods"},
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboard": {"enabled": True},
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "priorityClassName": "high",
}


def test_everything_that_can_be_turned_on_validates() -> None:
    for document in picker(**EVERYTHING_ON):
        validate(document)
    for document in extension(tls={"secret": "certificate"}, podMonitor={"enabled": True}, replicas=3):
        validate(document)


@both_charts
@pytest.mark.parametrize("own_volume", [False, True])
def test_files_that_flags_name_are_mounted(chart: str, own_volume: bool) -> None:
    volume = {"name": "tokens", "secret": {"secretName": "engine-token"}}
    mount = {"name": "tokens", "mountPath": "/etc/warmroute/tokens", "readOnly": True}
    variable = {"name": "WARMROUTE_LOG_LEVEL", "value": "debug"}
    values: Manifest = {"extraVolumes": [volume], "extraVolumeMounts": [mount], "extraEnv": [variable]}
    if own_volume:
        values |= {"activeActive": {"enabled": True}} if chart == "warmroute" else {"tls": {"secret": "certificate"}}
    (deployment,) = [
        document
        for document in (picker(**values) if chart == "warmroute" else extension(**values))
        if document["kind"] == "Deployment" and not document["metadata"]["name"].endswith("nats")
    ]
    validate(deployment)
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["env"] == [variable]
    assert container["volumeMounts"][own_volume:] == [mount]
    assert pod["volumes"][own_volume:] == [volume]


def test_the_notes_configure_envoy_gateway_as_the_values_file_does() -> None:
    values = yaml.safe_load((DEPLOY / "gateway-extension" / "envoy-gateway-values.yaml").read_text())
    theirs, ours = values["config"]["envoyGateway"]["extensionManager"], extension_manager({})
    assert sorted(theirs.pop("backendResources"), key=str) == sorted(ours.pop("backendResources"), key=str)
    assert ours == theirs


def test_the_extension_serves_one_group_of_pools_if_told_so() -> None:
    group = "inference.networking.x-k8s.io"
    roles = [d for d in extension(poolGroups=[group]) if d["kind"] == "ClusterRole"]
    rules = [rule for role in roles for rule in role["rules"] if rule["resources"][0].startswith("inferencepools")]
    assert len(rules) == 3
    assert all(rule["apiGroups"] == [group] for rule in rules)
    (resource,) = extension_manager({"poolGroups": [group]})["backendResources"]
    assert resource["group"] == group


def extension_manager(values: Manifest) -> Manifest:
    """What the extension's notes say to put into Envoy Gateway's configuration."""
    with helm.Chart.load(str(CHARTS / EXTENSION)) as loaded:
        (notes,) = [
            text
            for path, text in loaded.render(values, name=EXTENSION, namespace=NAMESPACE).items()
            if path.endswith("NOTES.txt")
        ]
    configuration: Manifest = yaml.safe_load(notes[notes.index("extensionManager:\n") :])
    return configuration["extensionManager"]


def test_rules_and_dashboard_are_those_of_the_project() -> None:
    documents = picker(
        prometheusRule={"enabled": True, "labels": {"release": "prometheus"}}, dashboard={"enabled": True}
    )
    rule = pick(documents, "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    dashboard = json.loads(pick(documents, "ConfigMap")["data"]["warmroute.json"])
    assert dashboard == json.loads((DEPLOY / "grafana" / "warmroute.json").read_text())


def test_a_second_pool_is_a_second_release_in_the_same_namespace() -> None:
    one = picker()
    two = rendered("warmroute", {"pool": {"name": "llama", "selector": {"app": "llama"}}}, "llama", NAMESPACE)
    assert not without_labels(one).keys() & without_labels(two).keys()
    selector = pick(one, "Deployment")["spec"]["selector"]["matchLabels"]
    assert not selector.items() <= pick(two, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    assert {d["metadata"]["namespace"] for d in two} == {NAMESPACE}, "the pool's namespace is the release's by default"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"pool": {"name": ""}},
        {"pool": POOL | {"port": 70000}},
        {"pool": POOL | {"morePorts": ["http"]}},
        {"pool": POOL, "replicas": 3},
        {"pool": POOL, "extraFlags": ["max-endpoints=2"]},
        {"pool": POOL, "podMonitor": {"interval": "soon"}},
        {"pool": POOL, "extraVolumeMounts": [{"name": "tokens"}]},
    ],
)
def test_wrong_values_are_refused(values: Manifest) -> None:
    with pytest.raises(helm.HelmError):
        rendered("warmroute", values, "x")


def test_the_picker_reaches_all_target_ports_and_what_else_it_is_told() -> None:
    collector = {"ports": [{"port": 4318}]}
    documents = picker(
        pool=POOL | {"morePorts": [8001, 8002]},
        networkPolicy={"extraEgress": [collector]},
        poolServices={"enabled": True},
    )
    for document in documents:
        validate(document)
    egress = pick(documents, "NetworkPolicy")["spec"]["egress"]
    assert [rule["port"] for rule in egress[0]["ports"]] == [8000, 8001, 8002]
    assert egress[-1] == collector
    pods = next(d for d in documents if d["metadata"]["name"] == "vllm-qwen-pool-pods")
    assert [port["port"] for port in pods["spec"]["ports"]] == [8000, 8001, 8002]


def test_a_network_policy_without_the_pools_selector_is_refused() -> None:
    with pytest.raises(helm.HelmError, match=r"pool\.selector is required"):
        rendered("warmroute", {"pool": {"name": "x"}}, "x")


@both_charts
def test_helm_lint_finds_nothing(chart: str) -> None:
    report = helm.lint(str(CHARTS / chart), values={"pool": POOL} if chart == "warmroute" else {})
    assert report["total_charts_linted"] == 1
    assert not report["errors"]
    assert not [message for message in report["messages"] if message["severity"] != LINT_INFO]


@both_charts
def test_the_version_is_that_of_the_project(chart: str) -> None:
    described = yaml.safe_load((CHARTS / chart / "Chart.yaml").read_text())
    assert (described["version"], described["appVersion"]) == (__version__, __version__)


@both_charts
def test_every_value_is_in_the_schema_and_the_other_way_round(chart: str) -> None:
    values = yaml.safe_load((CHARTS / chart / "values.yaml").read_text())
    schema = json.loads((CHARTS / chart / "values.schema.json").read_text())
    assert set(schema["properties"]) - {"global"} == set(values)
    for name, value in values.items():
        fields = schema["properties"][name].get("properties")
        if fields is not None:
            assert set(fields) == set(value), name
