"""The gateway extension's manifests fit the command line, Envoy Gateway, the picker and the walk-through's documents."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.deploy.manifests import (
    DEPLOY,
    PICKER,
    SAMPLES,
    is_of_gateway_extension,
    overlay,
    pick,
    read_documents,
    render,
    validate,
)
from tests.deploy.test_overlays import container, named_ports, settings_of
from tests.recordings import walk_through_manifests
from warmroute import cli
from warmroute.gateway_extension.hooks import Options
from warmroute.gateway_extension.picked_pool import picked_pools
from warmroute.gateway_extension.server import MAX_MESSAGE_BYTES, ServerOptions

pytestmark = pytest.mark.integration

EXTENSION = DEPLOY / "gateway-extension"
OVERLAY = DEPLOY / "overlays" / "envoy-gateway-extension"
NAME = "warmroute-gateway-extension"
NAMESPACE = "envoy-gateway-system"


def extension() -> tuple[dict[str, Any], ...]:
    return tuple(document for document in render(OVERLAY) if is_of_gateway_extension(document))


def started_with(deployment: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[ServerOptions, Options, bool]:
    """What the extension's container starts with: its arguments through the real command line."""
    received: list[tuple[ServerOptions, Options, bool]] = []

    def serve(listen: ServerOptions, options: Options, *, write_pool_status: bool) -> None:
        received.append((listen, options, write_pool_status))

    monkeypatch.setattr("warmroute.gateway_extension.server.serve", serve)
    found = container(deployment, "gateway-extension")
    command = [*found["command"], *found["args"]]
    assert command[0] == "/opt/warmroute/bin/warmroute", "as the image has it"
    CliRunner().invoke(cli.app, command[1:], catch_exceptions=False, standalone_mode=False)
    (options,) = received
    return options


def envoy_gateway_configuration() -> dict[str, Any]:
    values = yaml.safe_load((EXTENSION / "envoy-gateway-values.yaml").read_text())
    configuration: dict[str, Any] = values["config"]["envoyGateway"]
    return configuration


def test_every_document_validates() -> None:
    assert len(extension()) == len(render(EXTENSION)) == 9
    for document in render(OVERLAY):
        validate(document)


def test_the_image_is_that_of_the_picker() -> None:
    documents = render(OVERLAY)
    images = {
        container(pick(documents, "Deployment", name), which)["image"]
        for name, which in ((PICKER, "epp"), (NAME, "gateway-extension"))
    }
    assert images == {"warmroute:0.1.0"}
    entry_point = [line for line in (DEPLOY.parent / "Dockerfile").read_text().splitlines() if "ENTRYPOINT" in line]
    assert entry_point
    assert all("/opt/warmroute/bin/warmroute" in line for line in entry_point)


def test_the_arguments_are_those_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = pick(extension(), "Deployment")
    listen, options, write_pool_status = started_with(deployment, monkeypatch)
    assert write_pool_status
    assert options.pods_service
    assert named_ports(deployment) == {
        "grpc": listen.port,
        "grpc-health": listen.health_port,
        "metrics": listen.metrics_port,
    }
    found = container(deployment, "gateway-extension")
    for probe, service in (("livenessProbe", "liveness"), ("readinessProbe", "readiness")):
        assert found[probe]["grpc"] == {"port": listen.health_port, "service": service}


def test_two_replicas_with_an_account_of_their_own_and_restricted_pods() -> None:
    deployment = pick(extension(), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert deployment["spec"]["replicas"] == 2
    assert pod["serviceAccountName"] == NAME
    assert pick(extension(), "ServiceAccount")["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container(deployment, "gateway-extension")["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_selectors_and_ports_meet() -> None:
    documents = extension()
    deployment = pick(documents, "Deployment")
    template = deployment["spec"]["template"]
    labels, ports = template["metadata"]["labels"], named_ports(deployment)
    policy = pick(documents, "NetworkPolicy")["spec"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        pick(documents, "Service")["spec"]["selector"],
        pick(documents, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        policy["podSelector"]["matchLabels"],
        template["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    picker = pick(overlay("envoy-gateway-extension"), "Deployment")
    assert not deployment["spec"]["selector"]["matchLabels"].items() <= (
        picker["spec"]["template"]["metadata"]["labels"].items()
    )
    (port,) = pick(documents, "Service")["spec"]["ports"]
    assert ports[port["targetPort"]] == port["port"]
    opened = {p["port"] for rule in policy["ingress"] for p in rule["ports"]}
    assert opened == {"grpc", "metrics"}


def test_envoy_gateway_finds_the_extension_and_may_read_both_kinds_of_pools() -> None:
    manager = envoy_gateway_configuration()["extensionManager"]
    service = pick(extension(), "Service")
    assert manager["service"]["fqdn"] == {
        "hostname": f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.cluster.local",
        "port": service["spec"]["ports"][0]["port"],
    }
    installed = {
        (crd["spec"]["group"], version["name"])
        for crd in render(DEPLOY / "crds")
        if crd["spec"]["names"]["kind"] == "InferencePool"
        for version in crd["spec"]["versions"]
    }
    listed = {(one["group"], one["version"]) for one in manager["backendResources"]}
    assert listed == installed
    (rule,) = pick(extension(), "ClusterRole", "envoy-gateway-inference-pools")["rules"]
    assert set(rule["apiGroups"]) == {group for group, _ in listed}
    assert set(rule["verbs"]) == {"get", "list", "watch"}
    hooks = manager["hooks"]["xdsTranslator"]
    assert set(hooks["post"]) == {"Route", "Cluster", "Translation"}
    assert all(hooks["translation"][part]["includeAll"] for part in ("listener", "route", "cluster"))
    assert manager["maxMessageSize"] == f"{MAX_MESSAGE_BYTES >> 20}Mi"


def test_beside_envoy_ai_gateway_each_extension_has_pools_of_its_own() -> None:
    values = yaml.safe_load((EXTENSION / "envoy-gateway-values-beside-ai-gateway.yaml").read_text())
    configuration = values["config"]["envoyGateway"]
    assert configuration["extensionManager"] is None, "Envoy Gateway refuses both"
    theirs, ours = configuration["extensionManagers"]
    assert (theirs.pop("name"), ours.pop("name")) == ("ai-gateway", "warmroute")
    alone = envoy_gateway_configuration()["extensionManager"]
    both = [*theirs.pop("backendResources"), *ours.pop("backendResources")]
    assert sorted(both, key=str) == sorted(alone.pop("backendResources"), key=str)
    assert ours == alone
    path = DEPLOY / "overlays" / "envoy-ai-gateway" / "envoy-gateway-values.yaml"
    ai_gateway = yaml.safe_load(path.read_text())["config"]["envoyGateway"]["extensionManager"]
    del ai_gateway["backendResources"]
    for manager in (theirs, ai_gateway):
        manager["hooks"]["xdsTranslator"]["post"].sort()
    assert theirs == ai_gateway


def test_the_extension_may_write_the_status_of_pools_and_nothing_else() -> None:
    role = pick(extension(), "ClusterRole", NAME)
    rights = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    assert rights == {("inferencepools", "get"), ("inferencepools/status", "update"), ("services", "get")}
    (subject,) = pick(extension(), "ClusterRoleBinding", NAME)["subjects"]
    assert (subject["namespace"], subject["name"]) == (NAMESPACE, NAME)


def test_the_picker_is_where_the_walk_throughs_pool_says(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = overlay("envoy-gateway-extension")
    _, options, _ = started_with(pick(extension(), "Deployment"), monkeypatch)
    (raw,) = [d for d in walk_through_manifests() if d["kind"] == "InferencePool"]
    raw = raw | {"metadata": raw["metadata"] | {"namespace": "default"}}
    (pool,) = picked_pools([json.dumps(raw).encode()])
    named = pick(documents, "Service", pool.picker)
    behind = pick(documents, "Service", PICKER)
    assert named["metadata"]["namespace"] == pool.namespace
    where = f"{behind['metadata']['name']}.{behind['metadata']['namespace']}.svc.cluster.local"
    assert named["spec"]["externalName"] == where
    assert pool.picker_port in {port["port"] for port in behind["spec"]["ports"]}
    settings = settings_of(pick(documents, "Deployment"), monkeypatch)
    assert (settings.pool_name, settings.pool_namespace) == (pool.name, pool.namespace)
    assert settings.secure_serving is options.picker_tls
    assert settings.max_body_bytes == options.request_body_limit
    assert settings.max_endpoints == 2, "the first retry goes to the second-best pod"


def test_envoy_knows_the_pods_of_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    _, options, _ = started_with(pick(extension(), "Deployment"), monkeypatch)
    pool = pick(read_documents((SAMPLES / "inference-pool.yaml").read_text()), "InferencePool")
    service = pick(
        overlay("envoy-gateway-extension"), "Service", options.pods_service.format(pool=pool["metadata"]["name"])
    )
    assert service["metadata"]["namespace"] == "default"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == pool["spec"]["selector"]
    assert service["spec"]["ports"][0]["targetPort"] == pool["spec"]["targetPortNumber"]


def test_the_walk_throughs_documents_apply_beside_it() -> None:
    """None of them is in the overlay under the same name, so each stays as the walk-through has it."""
    ours = {(d["kind"], d["metadata"]["name"]) for d in render(OVERLAY)}
    theirs = {(d["kind"], d["metadata"]["name"]) for d in walk_through_manifests()}
    assert len(theirs) == 10
    assert not ours & theirs


def test_the_picker_has_the_name_that_the_walk_through_reads_the_log_of() -> None:
    deployment = pick(overlay("envoy-gateway-extension"), "Deployment")
    assert (deployment["metadata"]["name"], deployment["metadata"]["namespace"]) == (PICKER, NAMESPACE)
