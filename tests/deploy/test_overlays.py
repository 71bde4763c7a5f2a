"""Every overlay renders, validates, and its parts fit one another and the real command line."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.deploy.manifests import (
    DEPLOY,
    OVERLAYS,
    PICKER,
    SAMPLES,
    label,
    overlay,
    pick,
    read_documents,
    validate,
    with_components,
)
from tests.deploy.memory_bound import memory_bound
from warmroute import cli
from warmroute.extproc import envoy_policy
from warmroute.extproc.headers import CONTROL
from warmroute.gateway_extension import hooks
from warmroute.kubernetes.discovery import MODEL_KINDS
from warmroute.kubernetes.inference_pool import VERSIONS
from warmroute.settings import Settings, go_flags

pytestmark = pytest.mark.integration

READ = {"list", "watch"}
READ_RESOURCES = (
    {("", "pods")}
    | {(group, "inferencepools") for group in VERSIONS}
    | {(group, kind) for kind, groups in MODEL_KINDS.items() for group in groups}
)
POOL_NAMESPACE = "default"
RULE = {"apiGroups", "resources", "verbs"}
Right = tuple[str, str, str, str]
"""Namespace, API group, resource and verb."""

every_overlay = pytest.mark.parametrize("name", OVERLAYS)


def container(deployment: dict[str, Any], name: str = "epp") -> dict[str, Any]:
    (found,) = [c for c in deployment["spec"]["template"]["spec"]["containers"] if c["name"] == name]
    return found


def settings_of(deployment: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that the picker's container starts with: its arguments through the real command line."""
    received: list[Settings] = []
    monkeypatch.setattr("warmroute.picker.serve", received.append)
    flags, warnings = go_flags.translated(container(deployment)["args"])
    assert not warnings
    CliRunner().invoke(cli.app, ["serve", *flags], catch_exceptions=False, standalone_mode=False)
    (settings,) = received
    return settings


def named_ports(deployment: dict[str, Any]) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"]
        for c in deployment["spec"]["template"]["spec"]["containers"]
        for port in c["ports"]
    }


def pool_of_the_walk_through() -> Any:
    return pick(read_documents((SAMPLES / "inference-pool.yaml").read_text()), "InferencePool")


# ---------------------------------------------------------------- all of them


def test_the_overlays_are_there() -> None:
    assert OVERLAYS == ("ack", "envoy-ai-gateway", "envoy-gateway", "envoy-gateway-extension", "sidecar")


@every_overlay
def test_every_document_validates(name: str) -> None:
    for document in overlay(name):
        validate(document)


@pytest.mark.parametrize(
    "base",
    ["base", "overlays/ack", "overlays/envoy-ai-gateway", "overlays/envoy-gateway", "overlays/envoy-gateway-extension"],
)
def test_components_go_with_it(base: Any, tmp_path: Path) -> None:
    documents = with_components(base, ("high-availability", "pod-monitor"), tmp_path)
    for document in documents:
        validate(document)
    deployment = pick(documents, "Deployment")
    namespace = deployment["metadata"]["namespace"]
    assert deployment["spec"]["replicas"] == 2
    assert container(deployment)["args"][-1] == "--ha-enable-leader-election"
    assert "lifecycle" not in container(deployment), "the Lease is given up at once"
    assert not [d for d in documents if d["kind"] == "PodDisruptionBudget"]
    monitor = pick(documents, "PodMonitor")
    assert monitor["metadata"]["namespace"] == namespace
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (scraped,) = monitor["spec"]["podMetricsEndpoints"]
    assert scraped["port"] in named_ports(deployment)
    assert {"action": "labeldrop", "regex": "endpoint"} in scraped["relabelings"], "else our `endpoint` is renamed"


@every_overlay
def test_every_port_of_the_pod_can_be_reached_by_whom_it_is_for(name: str) -> None:
    documents = overlay(name)
    opened = {p["port"] for rule in pick(documents, "NetworkPolicy")["spec"]["ingress"] for p in rule["ports"]}
    deployment = pick(documents, "Deployment")
    named = {p["name"] for c in deployment["spec"]["template"]["spec"]["containers"] for p in c["ports"]}
    within = {"grpc"} if name == "sidecar" else set()  # the sidecar's Envoy asks over the pod's own loopback
    probes_only = {"grpc-health"}  # the kubelet is not subject to policies
    assert opened == named - within - probes_only


@every_overlay
def test_the_arguments_are_those_of_the_command_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = pick(overlay(name), "Deployment")
    settings = settings_of(deployment, monkeypatch)
    assert (settings.pool_name, settings.pool_namespace) == ("vllm-qwen-pool", POOL_NAMESPACE)
    ports = named_ports(deployment)
    assert (ports["grpc"], ports["grpc-health"], ports["metrics"]) == (
        settings.grpc_port,
        settings.grpc_health_port,
        settings.metrics_port,
    )
    for probe, service in (("livenessProbe", "liveness"), ("readinessProbe", "readiness")):
        assert container(deployment)[probe]["grpc"] == {"port": settings.grpc_health_port, "service": service}
    pre_stop = container(deployment)["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > pre_stop + settings.drain_timeout


@pytest.mark.parametrize(
    ("name", "secure"),
    [
        ("ack", True),
        ("envoy-ai-gateway", True),
        ("envoy-gateway", False),
        ("envoy-gateway-extension", True),
        ("sidecar", False),
    ],
)
def test_tls_where_the_gateway_speaks_it(name: str, secure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(pick(overlay(name), "Deployment"), monkeypatch).secure_serving is secure


def test_leader_election_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = with_components("base", ("high-availability",), tmp_path)
    settings = settings_of(pick(documents, "Deployment"), monkeypatch)
    assert settings.ha_enable_leader_election is True


@every_overlay
def test_pods_are_restricted(name: str) -> None:
    pod = pick(overlay(name), "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for each in pod["containers"]:
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in each["resources"]["limits"]
        assert set(each["resources"]["requests"]) == {"cpu", "memory"}
    assert pod["containers"][0]["resources"]["requests"] == {"cpu": "100m", "memory": "160Mi"}


@every_overlay
def test_selectors_and_ports_meet(name: str) -> None:
    documents = overlay(name)
    deployment = pick(documents, "Deployment")
    namespace, labels = deployment["metadata"]["namespace"], deployment["spec"]["template"]["metadata"]["labels"]
    ports = named_ports(deployment)
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    services = [
        d
        for d in documents
        if d["kind"] == "Service" and "selector" in d["spec"] and d["spec"]["selector"].items() <= labels.items()
    ]
    assert services
    for service in services:
        assert service["metadata"]["namespace"] == namespace
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    budget, policy = pick(documents, "PodDisruptionBudget"), pick(documents, "NetworkPolicy")
    assert budget["metadata"]["namespace"] == policy["metadata"]["namespace"] == namespace
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    for rule in policy["spec"]["ingress"]:
        assert {port["port"] for port in rule["ports"]} <= set(ports)


@every_overlay
def test_the_picker_may_reach_the_pods_of_the_pool(name: str) -> None:
    pool = pool_of_the_walk_through()["spec"]
    to_pods = pick(overlay(name), "NetworkPolicy")["spec"]["egress"][0]
    assert to_pods["to"][0]["podSelector"]["matchLabels"] == pool["selector"]
    assert to_pods["to"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": POOL_NAMESPACE}
    assert to_pods["ports"] == [{"port": pool["targetPortNumber"]}]


# ---------------------------------------------------------------- RBAC


def granted(documents: tuple[dict[str, Any], ...]) -> set[Right]:
    """(namespace, API group, resource, verb) that the picker's service account gets; "*" for all namespaces.

    A right to objects of some names only has ``resource/name``.
    """
    deployment = pick(documents, "Deployment")
    account = (deployment["metadata"]["namespace"], deployment["spec"]["template"]["spec"]["serviceAccountName"])
    pick(documents, "ServiceAccount", account[1])
    result = set()
    for binding in documents:
        if binding["kind"] not in {"RoleBinding", "ClusterRoleBinding"}:
            continue
        if account not in {(s.get("namespace"), s["name"]) for s in binding["subjects"]}:
            continue
        role = pick(documents, binding["roleRef"]["kind"], binding["roleRef"]["name"])
        assert role["metadata"].get("namespace") == binding["metadata"].get("namespace")
        for rule in role["rules"]:
            assert RULE <= set(rule) <= RULE | {"resourceNames"}
            result |= {
                (role["metadata"].get("namespace", "*"), group, resource + name, verb)
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for name in [f"/{each}" for each in rule.get("resourceNames", ())] or [""]
                for verb in rule["verbs"]
            }
    return result


NEEDED = {(POOL_NAMESPACE, group, resource, verb) for group, resource in READ_RESOURCES for verb in READ} | {
    (POOL_NAMESPACE, "", "events", "create")
}


def lease_rights(namespace: str, name: str) -> set[Right]:
    """Create, which cannot be restricted by name, and get and update of the one Lease."""
    group = "coordination.k8s.io"
    return {(namespace, group, "leases", "create")} | {
        (namespace, group, f"leases/{name}", verb) for verb in ("get", "update")
    }


@every_overlay
def test_the_picker_may_do_what_it_needs_and_nothing_else(name: str) -> None:
    assert granted(overlay(name)) == NEEDED


@pytest.mark.parametrize(
    ("base", "namespace"), [("base", "envoy-gateway-system"), ("overlays/envoy-ai-gateway", "default")]
)
def test_leader_election_needs_a_lease_beside_the_picker(base: Any, namespace: str, tmp_path: Path) -> None:
    documents = with_components(base, ("high-availability",), tmp_path)
    assert granted(documents) == NEEDED | lease_rights(namespace, "warmroute-default-vllm-qwen-pool")


@pytest.mark.parametrize("base", ["base", "beside-pool"])
def test_the_lease_is_the_pickers_where_its_account_has_another_name_and_namespace(base: Any, tmp_path: Path) -> None:
    changes = {"namespace": "models", "nameSuffix": "-llama"}
    documents = with_components(base, ("high-availability",), tmp_path, **changes)
    leases = {right for right in granted(documents) if right[1] == "coordination.k8s.io"}
    assert leases == lease_rights("models", "warmroute-default-vllm-qwen-pool")


@every_overlay
def test_only_the_picker_gets_the_token(name: str) -> None:
    documents = overlay(name)
    assert pick(documents, "ServiceAccount")["automountServiceAccountToken"] is False
    pod = pick(documents, "Deployment")["spec"]["template"]["spec"]
    if len(pod["containers"]) == 1:
        assert pod["automountServiceAccountToken"] is True
        return
    assert pod["automountServiceAccountToken"] is False
    with_token = [c["name"] for c in pod["containers"] if "token" in {m["name"] for m in c["volumeMounts"]}]
    assert with_token == ["epp"]


# ---------------------------------------------------------------- gateways


GATEWAY_OVERLAYS = ("envoy-gateway", "envoy-ai-gateway")


@pytest.mark.parametrize("name", GATEWAY_OVERLAYS)
def test_references_of_routes_and_policies_lead_somewhere(name: str) -> None:
    samples = read_documents((SAMPLES / "vllm-service.yaml").read_text())
    documents = overlay(name)
    everything = {(d["kind"], d["metadata"]["name"]): d for d in (*samples, *documents)}
    for document in documents:
        spec = document.get("spec", {})
        for parent in spec.get("parentRefs", []):
            gateway = everything["Gateway", parent["name"]]
            assert parent["sectionName"] in {listener["name"] for listener in gateway["spec"]["listeners"]}
        for target in [*spec.get("targetRefs", []), *([spec["targetRef"]] if "targetRef" in spec else [])]:
            assert (
                everything[target["kind"], target["name"]]["metadata"]["namespace"] == document["metadata"]["namespace"]
            )
        processors = spec.get("extProc", [])
        for holder in [*spec.get("rules", []), *processors] if document["kind"] != "Role" else []:
            for backend in holder["backendRefs"]:
                found = everything[backend.get("kind") or "Service", backend["name"]]
                if found["kind"] == "Service":
                    assert backend["port"] in {port["port"] for port in found["spec"]["ports"]}, label(document)


@pytest.mark.parametrize("name", GATEWAY_OVERLAYS)
def test_the_gateway_is_that_of_the_walk_through(name: str) -> None:
    theirs = read_documents((SAMPLES / "inference-gateway.yaml").read_text())
    for kind in ("GatewayClass", "Gateway"):
        expected, ours = pick(theirs, kind), pick(overlay(name), kind)
        assert ours["metadata"]["name"] == expected["metadata"]["name"]
        assert ours["spec"] == expected["spec"]


@pytest.mark.parametrize("name", GATEWAY_OVERLAYS)
def test_control_headers_of_clients_are_removed(name: str) -> None:
    removed = pick(overlay(name), "ClientTrafficPolicy")["spec"]["headers"]["earlyRequestHeaders"]["remove"]
    assert removed == list(CONTROL)


@pytest.mark.parametrize("name", GATEWAY_OVERLAYS)
def test_slow_uploads_end_when_the_picker_ends_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = overlay(name)
    timeout = pick(documents, "ClientTrafficPolicy")["spec"]["timeout"]["http"]["requestReceivedTimeout"]
    assert timeout == f"{settings_of(pick(documents, 'Deployment'), monkeypatch).body_timeout:g}s"


@every_overlay
def test_metrics_are_open_to_one_namespace_only(name: str) -> None:
    (rule,) = [
        rule for rule in pick(overlay(name), "NetworkPolicy")["spec"]["ingress"] if {"port": "metrics"} in rule["ports"]
    ]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]


def quantity(text: str) -> int:
    return int(text[:-2]) << {"Ki": 10, "Mi": 20, "Gi": 30}[text[-2:]]


@every_overlay
def test_the_memory_limit_follows_from_the_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = pick(overlay(name), "Deployment")
    limit = quantity(container(deployment)["resources"]["limits"]["memory"])
    assert memory_bound(settings_of(deployment, monkeypatch)) < 0.95 * limit


def test_envoy_gateway_buffers_what_the_picker_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = overlay("envoy-gateway")
    limit = pick(documents, "ClientTrafficPolicy")["spec"]["connection"]["bufferLimit"]
    assert quantity(limit) == settings_of(pick(documents, "Deployment"), monkeypatch).max_body_bytes


def test_envoy_gateway_may_ask_the_picker_in_the_other_namespace() -> None:
    documents = overlay("envoy-gateway")
    policy, grant = pick(documents, "EnvoyExtensionPolicy"), pick(documents, "ReferenceGrant")
    (backend,) = policy["spec"]["extProc"][0]["backendRefs"]
    assert backend["namespace"] == grant["metadata"]["namespace"] != policy["metadata"]["namespace"]
    (granted_from,), (granted_to,) = grant["spec"]["from"], grant["spec"]["to"]
    assert granted_from["namespace"] == policy["metadata"]["namespace"]
    assert granted_from["kind"] == policy["kind"]
    assert policy["apiVersion"].startswith(granted_from["group"] + "/")
    assert granted_to["name"] == backend["name"]


def test_envoy_gateway_retries_a_stream_to_a_picker_as_the_extension_and_standalone_do() -> None:
    """Without the back-off Envoy waits half a second on average before its first retry."""
    (processor,) = pick(overlay("envoy-gateway"), "EnvoyExtensionPolicy")["spec"]["extProc"]
    retry = processor["backendSettings"]["retry"]
    assert ",".join(retry["retryOn"]["triggers"]) == envoy_policy.PICKER_RETRY_ON
    assert retry["numRetries"] == hooks.PICKER_RETRIES
    back_off = retry["perRetry"]["backOff"]
    milliseconds = [int(back_off[which].removesuffix("ms")) for which in ("baseInterval", "maxInterval")]
    assert milliseconds == list(envoy_policy.PICKER_BACK_OFF)


def test_envoy_gateway_knows_the_pods_of_the_pool() -> None:
    pool = pool_of_the_walk_through()
    service = pick(overlay("envoy-gateway"), "Service", pool["metadata"]["name"])
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == pool["spec"]["selector"]
    assert service["spec"]["ports"][0]["targetPort"] == pool["spec"]["targetPortNumber"]


def test_envoy_gateway_prefers_our_route_to_that_of_the_walk_through() -> None:
    """Equal paths: the one whose every match has a method goes first (HTTPRoute's precedence)."""
    theirs = pick(read_documents((SAMPLES / "inference-gateway.yaml").read_text()), "HTTPRoute", "qwen-backend")
    documents = overlay("envoy-gateway")
    route = pick(documents, "HTTPRoute", "qwen-backend-picked")
    (their_rule,), (rule,) = theirs["spec"]["rules"], route["spec"]["rules"]
    assert theirs["spec"]["parentRefs"] == route["spec"]["parentRefs"]
    assert [match["path"] for match in their_rule["matches"]] == [{"type": "PathPrefix", "value": "/"}]
    assert all(match["path"] == their_rule["matches"][0]["path"] and match["method"] for match in rule["matches"])
    assert not [d for d in documents if d["kind"] == "HTTPRoute" and d["metadata"]["name"] == "qwen-backend"]


def test_ack_finds_the_picker_where_the_pool_says() -> None:
    pool, service = pool_of_the_walk_through(), pick(overlay("ack"), "Service")
    assert service["metadata"]["name"] == pool["spec"]["extensionRef"]["name"]
    assert service["metadata"]["namespace"] == POOL_NAMESPACE
    assert service["spec"]["ports"][0]["port"] == 9002


def test_envoy_ai_gateway_finds_the_picker_where_the_pool_says() -> None:
    documents = overlay("envoy-ai-gateway")
    pool = pick(documents, "InferencePool")
    service = pick(documents, "Service", pool["spec"]["endpointPickerRef"]["name"])
    assert service["metadata"]["namespace"] == pool["metadata"]["namespace"]
    assert pool["spec"]["endpointPickerRef"]["port"]["number"] in {p["port"] for p in service["spec"]["ports"]}
    walk_through = pool_of_the_walk_through()
    assert pool["spec"]["selector"]["matchLabels"] == walk_through["spec"]["selector"]
    assert pool["spec"]["targetPorts"] == [{"number": walk_through["spec"]["targetPortNumber"]}]
    (access,) = pick(documents, "ClusterRoleBinding")["subjects"]
    assert access == {"kind": "ServiceAccount", "name": "envoy-gateway", "namespace": "envoy-gateway-system"}
    values = yaml.safe_load((DEPLOY / "overlays/envoy-ai-gateway/envoy-gateway-values.yaml").read_text())
    (resource,) = values["config"]["envoyGateway"]["extensionManager"]["backendResources"]
    assert f"{resource['group']}/{resource['version']}" == pool["apiVersion"]


def test_the_picker_has_the_name_that_the_walk_through_reads_the_log_of() -> None:
    deployment = pick(overlay("envoy-gateway"), "Deployment")
    assert (deployment["metadata"]["name"], deployment["metadata"]["namespace"]) == (PICKER, "envoy-gateway-system")


@every_overlay
def test_the_image_can_be_set(name: str) -> None:
    kustomization = yaml.safe_load((DEPLOY / "overlays" / name / "kustomization.yaml").read_text())
    assert "warmroute" in {image["name"] for image in kustomization["images"]}
    assert container(pick(overlay(name), "Deployment"))["image"] == "warmroute:0.1.0"
