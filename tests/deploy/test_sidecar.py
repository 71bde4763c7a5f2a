"""The sidecar's Envoy: judged by a real Envoy, and the same as the one that `warmroute demo` configures."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import overlay, pick
from warmroute.settings import Settings
from warmroute.standalone.bootstrap import bootstrap
from warmroute.standalone.envoy import envoy_path
from warmroute.standalone.proxy_config import Picking, ProxyConfig

pytestmark = pytest.mark.integration


def configuration() -> dict[str, Any]:
    (text,) = pick(overlay("sidecar"), "ConfigMap")["data"].values()
    return yaml.safe_load(text)


def expected() -> dict[str, Any]:
    config = ProxyConfig(
        epp=("127.0.0.1:9002",),
        endpoints=("unused:1",),
        host="0.0.0.0",
        port=8081,
        plain_port=None,
        picking=Picking.ORIGINAL_DST,
        failure_mode_allow=False,
    )
    return bootstrap(config)


def by_name(items: Any) -> Any:
    return {item["name"]: item for item in items}


def manager(listener: Any) -> Any:
    ((filter_,),) = [chain["filters"] for chain in listener["filter_chains"]]
    return filter_["typed_config"]


def without_defaults(tree: Any) -> Any:
    """Drops what says the same as nothing: zero, false, NONE, and what is empty then."""
    if isinstance(tree, dict):
        kept = {key: without_defaults(value) for key, value in tree.items()}
        return {key: value for key, value in kept.items() if value not in (0, False, "NONE", []) or key == "value"}
    return [without_defaults(item) for item in tree] if isinstance(tree, list) else tree


def test_envoy_accepts_it(tmp_path: Path) -> None:
    (text,) = pick(overlay("sidecar"), "ConfigMap")["data"].values()
    (tmp_path / "envoy.yaml").write_text(text)
    argv = [
        str(envoy_path()),
        "--mode",
        "validate",
        "--log-level",
        "error",
        "--config-path",
        str(tmp_path / "envoy.yaml"),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_it_is_the_envoy_of_the_demo() -> None:
    ours, theirs = configuration()["static_resources"], expected()["static_resources"]
    our_manager, their_manager = manager(by_name(ours["listeners"])["picked"]), manager(theirs["listeners"][0])
    assert set(our_manager) - {"codec_type"} == set(without_defaults(their_manager)) - {"codec_type"}
    own = {"stat_prefix", "codec_type"}
    assert without_defaults({k: v for k, v in our_manager.items() if k not in own}) == without_defaults(
        {k: v for k, v in their_manager.items() if k not in own}
    )
    our_clusters, their_clusters = by_name(ours["clusters"]), by_name(theirs["clusters"])
    assert set(our_clusters) == {*their_clusters, "admin"}
    for name, theirs_named in their_clusters.items():
        assert our_clusters[name] == theirs_named


def test_bodies_are_buffered_up_to_what_the_picker_takes() -> None:
    routes = manager(by_name(configuration()["static_resources"]["listeners"])["picked"])["route_config"]
    (route,) = routes["virtual_hosts"][0]["routes"]
    assert route["request_body_buffer_limit"] == Settings().max_body_bytes


def test_the_containers_use_the_ports_of_the_configuration() -> None:
    listeners = by_name(configuration()["static_resources"]["listeners"])
    ports = {name: item["address"]["socket_address"]["port_value"] for name, item in listeners.items()}
    (envoy,) = [
        c
        for c in pick(overlay("sidecar"), "Deployment")["spec"]["template"]["spec"]["containers"]
        if c["name"] == "envoy"
    ]
    assert [port["containerPort"] for port in envoy["ports"]] == [ports["picked"], ports["status"]]
    assert pick(overlay("sidecar"), "Service", "qwen-inference-gateway")["spec"]["ports"][0]["port"] == ports["picked"]


def test_the_admin_page_stays_inside() -> None:
    address = configuration()["admin"]["address"]["socket_address"]["address"]
    assert address == "127.0.0.1"


def test_a_changed_configuration_starts_new_pods() -> None:
    config = pick(overlay("sidecar"), "ConfigMap")["metadata"]["name"]
    volumes = pick(overlay("sidecar"), "Deployment")["spec"]["template"]["spec"]["volumes"]
    assert config != "envoy"
    assert config in {volume.get("configMap", {}).get("name") for volume in volumes}


@pytest.mark.parametrize("path", ["/ready", "/stats/prometheus"])
def test_the_status_listener_shows_this_page(path: Any) -> None:
    routes = manager(by_name(configuration()["static_resources"]["listeners"])["status"])["route_config"]
    assert path in {route["match"]["path"] for route in routes["virtual_hosts"][0]["routes"]}
