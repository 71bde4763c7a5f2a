"""Pickers that share their state: the components active-active and nats-cluster, and the chart's value activeActive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import Manifest, pick, validate, with_components
from tests.deploy.memory_bound import memory_bound
from tests.deploy.test_charts import picker
from tests.deploy.test_overlays import container, settings_of

pytestmark = pytest.mark.integration

BASES = ("base", "overlays/envoy-gateway", "overlays/envoy-ai-gateway", "overlays/envoy-gateway-extension")


def labels_of(workload: Manifest) -> Any:
    return workload["spec"]["template"]["metadata"]["labels"]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("components", [("active-active",), ("active-active", "nats-cluster")], ids=["one", "three"])
def test_it_goes_with_every_gateway(
    base: Any, components: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = with_components(base, components, tmp_path)
    for document in documents:
        validate(document)
    deployment, nats = pick(documents, "Deployment"), pick(documents, "StatefulSet", "warmroute-nats")
    namespace = deployment["metadata"]["namespace"]
    members = [d for d in documents if d["metadata"]["name"] == "warmroute-nats"]
    assert {document["metadata"]["namespace"] for document in members} == {namespace}
    assert deployment["spec"]["replicas"] == 3
    assert deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert pick(documents, "PodDisruptionBudget", deployment["metadata"]["name"])["spec"]["maxUnavailable"] == 1
    assert "lifecycle" in container(deployment), "gateways leave a picker before it ends"
    settings = settings_of(deployment, monkeypatch)
    replicas = 3 if "nats-cluster" in components else 1
    assert nats["spec"]["replicas"] == settings.shared_state_replicas == replicas
    assert settings.shared_state == "nats://warmroute-nats:4222"
    assert settings.shared_state_key_path is not None
    (mount,) = container(deployment)["volumeMounts"][-1:]
    assert str(settings.shared_state_key_path.parent) == mount["mountPath"]
    limit = int(container(deployment)["resources"]["limits"]["memory"].removesuffix("Mi")) << 20
    assert memory_bound(settings) < limit


@pytest.mark.parametrize("components", [("active-active",), ("active-active", "nats-cluster")], ids=["one", "three"])
def test_pickers_reach_nats_and_nobody_else_does(components: Any, tmp_path: Path) -> None:
    documents = with_components("base", components, tmp_path)
    deployment, nats = pick(documents, "Deployment"), pick(documents, "StatefulSet", "warmroute-nats")
    name = deployment["metadata"]["name"]
    (out,) = [
        rule for rule in pick(documents, "NetworkPolicy", name)["spec"]["egress"] if {"port": 4222} in rule["ports"]
    ]
    assert out["to"][0]["podSelector"]["matchLabels"].items() <= labels_of(nats).items()
    ingress = pick(documents, "NetworkPolicy", "warmroute-nats")["spec"]["ingress"]
    assert ingress[0]["from"][0]["podSelector"]["matchLabels"].items() <= labels_of(deployment).items()
    senders = [tuple(peer["podSelector"]["matchLabels"].items()) for rule in ingress for peer in rule["from"]]
    assert len(senders) == len(components)
    named = {port["name"] for c in nats["spec"]["template"]["spec"]["containers"] for port in c["ports"]}
    assert {port["port"] for rule in ingress for port in rule["ports"]} == named - {"monitor"}


@pytest.mark.parametrize("members", [1, 3])
def test_the_chart_has_it_too(members: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = picker(activeActive={"enabled": True, "nats": {"members": members}})
    for document in documents:
        validate(document)
    components = ("active-active", "nats-cluster") if members == 3 else ("active-active",)
    expected = with_components("base", components, tmp_path)
    ours, theirs = pick(documents, "Deployment"), pick(expected, "Deployment")
    assert ours["spec"]["replicas"] == theirs["spec"]["replicas"]
    mine, other = settings_of(ours, monkeypatch), settings_of(theirs, monkeypatch)
    assert mine.shared_state == f"nats://{ours['metadata']['name']}-nats:4222"
    assert mine.model_copy(update={"shared_state": other.shared_state}) == other
    ours, theirs = pick(documents, "StatefulSet"), pick(expected, "StatefulSet")
    for each in (ours, theirs):
        each["spec"]["template"]["spec"].pop("topologySpreadConstraints", None)
    named = ours["spec"]["template"]["spec"]
    named["volumes"][0]["configMap"]["name"] = "warmroute-nats"
    assert named == theirs["spec"]["template"]["spec"]
    assert ours["spec"]["replicas"] == members


def test_the_chart_takes_a_nats_that_is_there() -> None:
    documents = picker(activeActive={"enabled": True, "nats": {"servers": "tls://nats.messaging:4222"}})
    assert not [document for document in documents if document["kind"] == "StatefulSet"]
    assert "--shared-state=tls://nats.messaging:4222" in container(pick(documents, "Deployment"))["args"]


def test_the_chart_refuses_both_forms_of_availability() -> None:
    with pytest.raises(Exception, match="exclude each other"):
        picker(activeActive={"enabled": True}, highAvailability=True)


def test_nats_is_restricted(tmp_path: Path) -> None:
    pod = pick(with_components("base", ("active-active",), tmp_path), "StatefulSet")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for each in pod["containers"]:
        assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in each["resources"]["limits"]


def test_a_member_is_ready_when_its_copy_of_the_log_is_current(tmp_path: Path) -> None:
    """A rollout goes on to the next member then: without that, three new members had replaced the log within 6 s."""
    (nats,) = pick(with_components("base", ("active-active", "nats-cluster"), tmp_path), "StatefulSet")["spec"][
        "template"
    ]["spec"]["containers"]
    assert nats["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": "monitor"}
    assert nats["livenessProbe"]["httpGet"]["path"] == "/healthz?js-enabled-only=true"  # none is killed for that


def test_the_servers_configuration_is_one_that_a_server_takes(tmp_path: Path) -> None:
    """The server checks it: ``nats-server -t``."""
    import subprocess

    from warmroute.standalone.nats import nats_server_path

    for components in (("active-active",), ("active-active", "nats-cluster")):
        documents = with_components("base", components, tmp_path)
        file = tmp_path / "nats.conf"
        file.write_text(pick(documents, "ConfigMap", "warmroute-nats")["data"]["nats.conf"])
        argv = [str(nats_server_path()), "-t", "--config", str(file)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
