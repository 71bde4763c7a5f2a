"""docs/kubernetes.md says what is so: its paths, its lists of objects, its example, its reasons and flags."""

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import DEPLOY, ROOT, SAMPLES, label, overlay, pick, read_documents, render, validate
from tests.deploy.test_overlays import granted, lease_rights, settings_of
from warmroute.settings import Settings

pytestmark = pytest.mark.integration

DOC = ROOT / "docs" / "kubernetes.md"
TEXT = DOC.read_text()


def printed_by(command: str) -> list[str]:
    """The lines after ``$ command`` in a console block, up to the next prompt or the block's end."""
    (output,) = re.findall(rf"^ *\$ {re.escape(command)}\n((?: *[^\s$`].*\n)*)", TEXT, re.MULTILINE)
    return [line.strip() for line in output.splitlines()]


def created(documents: Iterable[dict[str, Any]]) -> list[str]:
    """What ``kubectl apply`` prints of new objects."""
    lines = []
    for document in documents:
        group = document["apiVersion"].rpartition("/")[0]
        kind = document["kind"].lower() + (f".{group}" if group else "")
        lines.append(f"{kind}/{document['metadata']['name']} created")
    return lines


@pytest.mark.parametrize("directory", ["crds", "overlays/envoy-gateway", "overlays/envoy-gateway-extension"])
def test_what_apply_k_prints(directory: str) -> None:
    assert printed_by(f"kubectl apply -k deploy/{directory}") == created(render(DEPLOY / directory))


@pytest.mark.parametrize("name", ["vllm-service.yaml", "inference-pool.yaml", "inference-gateway.yaml"])
def test_what_apply_f_prints(name: str) -> None:
    assert printed_by(f"kubectl apply -f deploy/samples/{name}") == created(
        read_documents((SAMPLES / name).read_text())
    )


def test_paths_and_links_lead_somewhere() -> None:
    paths = set(re.findall(r"\b(deploy/(?:base|beside-pool|components|crds|overlays|samples)[\w./-]*)\b", TEXT))
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", TEXT):
        assert (DOC.parent / link).exists(), link
    for component in re.findall(r"`\.\./\.\./(components/[\w-]+)`", TEXT):
        assert (DEPLOY / component / "kustomization.yaml").exists(), component


def test_flags_and_environment_names_are_settings() -> None:
    flags = set(re.findall(r"`--([a-z][a-z-]+)", TEXT))
    assert {"pool-name", "max-body-bytes", "drain-timeout"} <= flags
    assert {flag.replace("-", "_") for flag in flags} <= set(Settings.model_fields)
    for name in re.findall(r"WARMROUTE_([A-Z_]+)", TEXT):
        assert name.lower() in Settings.model_fields


def test_restarts_are_described_with_their_flags_and_times() -> None:
    (paragraph,) = re.findall(r"^\* \*\*Restarts\.\*\*.*?(?=^\* \*\*)", TEXT, re.MULTILINE | re.DOTALL)
    flags = {
        *("drain-timeout", "drain-quiet", "observe-responses"),
        *("ha-enable-leader-election", "shared-state", "cert-path"),
    }
    assert set(re.findall(r"`--([a-z-]+)`", paragraph)) == flags
    (container,) = pick(render(DEPLOY / "base"), "Deployment")["spec"]["template"]["spec"]["containers"]
    times = {
        "preStop": container["lifecycle"]["preStop"]["sleep"]["seconds"],
        "--drain-quiet": Settings().drain_quiet,
        "--drain-timeout": Settings().drain_timeout,
    }
    for name, seconds in times.items():
        assert re.search(rf"`{name}`\s\({seconds:g} s[;)]", paragraph), name
    (container,) = pick(render(DEPLOY / "beside-pool"), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert "--drain-timeout=120s" in container["args"]
    assert "sets 120 s" in paragraph


def another_pool(directory: Path, *components: Any) -> Any:
    """The example's objects, rendered beside deploy/ in ``directory``."""
    (example,) = re.findall(r"```yaml\n# llama/kustomization.yaml:[^\n]*\n(.*?)```", TEXT, re.DOTALL)
    (directory / "deploy").symlink_to(DEPLOY)
    (directory / "llama").mkdir()
    added = "".join(f"  - ../deploy/components/{name}\n" for name in components)
    (directory / "llama" / "kustomization.yaml").write_text(example + (f"components:\n{added}" if added else ""))
    return render(directory / "llama")


def test_the_example_of_another_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = another_pool(tmp_path)
    for document in documents:
        validate(document)
        assert document["metadata"]["name"].endswith("-llama"), label(document)
    deployment = pick(documents, "Deployment")
    settings = settings_of(deployment, monkeypatch)
    assert (settings.pool_name, settings.pool_namespace) == ("llama", "models")
    assert {namespace for namespace, *_ in granted(documents)} == {"models"}
    theirs = pick(overlay("envoy-gateway"), "Deployment")["spec"]["template"]["metadata"]["labels"]
    ours = deployment["spec"]["template"]["metadata"]["labels"]
    for kind in ("Service", "NetworkPolicy", "PodDisruptionBudget"):
        spec = pick(documents, kind)["spec"]
        selector = spec.get("podSelector", spec.get("selector"))
        selector = selector.get("matchLabels", selector)
        assert selector.items() <= ours.items(), kind
        assert not selector.items() <= theirs.items(), f"{kind} selects the pods of another picker"
    policy, base = pick(documents, "NetworkPolicy")["spec"], pick(render(DEPLOY / "base"), "NetworkPolicy")["spec"]
    assert policy["ingress"] == base["ingress"]
    assert policy["egress"][0]["to"][0] == {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "models"}},
        "podSelector": {"matchLabels": {"app": "llama"}},
    }


def test_the_components_go_with_the_example_of_another_pool(tmp_path: Path) -> None:
    documents = another_pool(tmp_path, "high-availability", "pod-monitor")
    for document in documents:
        validate(document)
    deployment = pick(documents, "Deployment")
    beside_the_picker = deployment["metadata"]["namespace"]
    rights = granted(documents)
    leases = {right for right in rights if right[1] == "coordination.k8s.io"}
    assert leases == lease_rights(beside_the_picker, "warmroute-models-llama")
    assert {namespace for namespace, *_ in rights - leases} == {"models"}
    pod = deployment["spec"]["template"]
    (spread,) = pod["spec"]["topologySpreadConstraints"]
    for selector in (spread["labelSelector"], pick(documents, "PodMonitor")["spec"]["selector"]):
        assert selector["matchLabels"].items() <= pod["metadata"]["labels"].items()


def test_the_example_of_another_pool_works_behind_plain_envoy_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = another_pool(tmp_path)
    settings, theirs = (
        settings_of(pick(found, "Deployment"), monkeypatch) for found in (documents, overlay("envoy-gateway"))
    )
    assert (settings.secure_serving, settings.max_endpoints) == (theirs.secure_serving, theirs.max_endpoints)
    picker = pick(documents, "Service")
    assert picker["spec"]["ports"][0]["appProtocol"] == "kubernetes.io/h2c"
    (script,) = re.findall(r"```bash\n(mkdir llama-route\n.*?)```", TEXT, re.DOTALL)
    subprocess.run(["sh", "-ec", script], cwd=tmp_path, check=True, timeout=120)
    route_side = tuple(
        document
        for file in sorted((tmp_path / "llama-route").iterdir())
        for document in read_documents(file.read_text())
    )
    for document in route_side:
        validate(document)
        assert document["metadata"]["namespace"] == ("envoy-gateway-system" if is_grant(document) else "models")
    pods, route = pick(route_side, "Service"), pick(route_side, "HTTPRoute")
    assert pods["spec"]["selector"] == {"app": "llama"}
    names = {d["metadata"]["name"] for d in overlay("envoy-gateway")}
    assert not names & {d["metadata"]["name"] for d in (pods, route, *filter(is_grant, route_side))}
    (backend,) = route["spec"]["rules"][0]["backendRefs"]
    assert backend == {"name": pods["metadata"]["name"], "port": pods["spec"]["ports"][0]["port"]}
    for kind in ("EnvoyExtensionPolicy", "BackendTrafficPolicy"):
        (target,) = pick(route_side, kind)["spec"]["targetRefs"]
        assert target["name"] == route["metadata"]["name"], kind
    (parent,) = route["spec"]["parentRefs"]
    assert parent["name"] == pick(route_side, "ClientTrafficPolicy")["spec"]["targetRefs"][0]["name"]
    assert f"Gateway `{parent['name']}` in `models` with a listener `{parent['sectionName']}`" in TEXT
    (asked,) = pick(route_side, "EnvoyExtensionPolicy")["spec"]["extProc"][0]["backendRefs"]
    assert (asked["namespace"], asked["name"]) == (picker["metadata"]["namespace"], picker["metadata"]["name"])
    grant = pick(route_side, "ReferenceGrant")["spec"]
    assert (grant["from"][0]["namespace"], grant["to"][0]["name"]) == ("models", asked["name"])


def is_grant(document: Any) -> Any:
    return document["kind"] == "ReferenceGrant"
