"""Envoy itself judges the configurations."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from warmroute.errors import ConfigurationError
from warmroute.extproc.envoy_policy import MAX_REQUESTS
from warmroute.extproc.headers import CONTROL, OBJECTIVES
from warmroute.standalone.bootstrap import bootstrap, endpoint_discovery, to_yaml
from warmroute.standalone.envoy import envoy_path
from warmroute.standalone.proxy_config import Picking, ProxyConfig

pytestmark = pytest.mark.integration

ENDPOINTS = ("127.0.0.1:8000", "[::1]:8001")


def assert_valid(config: ProxyConfig, tmp_path: Path) -> None:
    file = tmp_path / "envoy.yaml"
    file.write_text(to_yaml(bootstrap(config), "said before"))
    argv = [str(envoy_path()), "--mode", "validate", "--log-level", "error", "--config-path", str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "options",
    [
        {"epp_tls": True, "epp": ("127.0.0.1:9002", "[::1]:9002")},
        {"plain_port": None, "failure_mode_allow": False, "epp_health_check": True},
        {"response_headers": True},
        {"picking": Picking.ORIGINAL_DST},
        {"host": "::1", "message_timeout": 0.2, "retry_on": "5xx", "retries": 3},
        {"epp_retries": 0, "request_timeout": 0.5, "request_headers_timeout": 0.25},
        {"client_headers": CONTROL},
        {"name_endpoint": True, "access_log": "/dev/stdout"},
    ],
)
def test_envoy_accepts_the_options(options: Any, tmp_path: Path) -> None:
    assert_valid(ProxyConfig(**{"epp": ("127.0.0.1:9002",), "endpoints": ENDPOINTS, **options}), tmp_path)


def test_envoy_accepts_endpoints_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    file.write_text(to_yaml(endpoint_discovery(ENDPOINTS)))
    assert_valid(ProxyConfig(epp=("127.0.0.1:9002",), endpoints_file=file), tmp_path)


@pytest.mark.parametrize("picking", Picking)
def test_no_default_of_envoy_ends_a_long_answer_or_refuses_one_of_many_requests(picking: Picking) -> None:
    """The defaults: 15 s for an answer, 5 min between two chunks, 1024 requests, 3 retries at one time."""
    config = ProxyConfig(epp=("127.0.0.1:9002",), endpoints=ENDPOINTS, picking=picking)
    resources = bootstrap(config)["static_resources"]
    for listener in resources["listeners"]:
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        assert manager["stream_idle_timeout"] == "0s"
        (route,) = manager["route_config"]["virtual_hosts"][0]["routes"]
        assert route["route"]["timeout"] == "0s"
    limits = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    for cluster in resources["clusters"]:
        assert cluster["circuit_breakers"]["thresholds"] == [dict.fromkeys(limits, MAX_REQUESTS)]


def removed_headers(config: ProxyConfig) -> list[list[str]]:
    """What each listener removes from a client's request."""
    removed = []
    for listener in bootstrap(config)["static_resources"]["listeners"]:
        (network_filter,) = listener["filter_chains"][0]["filters"]
        (early,) = network_filter["typed_config"]["early_header_mutation_extensions"]
        removed.append([mutation["remove"] for mutation in early["typed_config"]["mutations"]])
    return removed


def test_control_headers_of_clients_are_removed_on_every_listener() -> None:
    config = ProxyConfig(epp=("127.0.0.1:9002",), endpoints=ENDPOINTS)
    assert removed_headers(config) == [list(CONTROL)] * 2


def test_a_client_may_send_the_control_headers_that_are_allowed() -> None:
    config = ProxyConfig(epp=("127.0.0.1:9002",), endpoints=ENDPOINTS, client_headers=OBJECTIVES)
    assert removed_headers(config) == [[name for name in CONTROL if name not in OBJECTIVES]] * 2


def test_a_comment_stays_a_comment() -> None:
    config = ProxyConfig(epp=("127.0.0.1:9002",), endpoints=ENDPOINTS)
    text = to_yaml(bootstrap(config), "one: two\n\nthree")
    assert text.startswith("# one: two\n#\n# three\n")
    assert yaml.safe_load(text)["admin"]["address"]["socket_address"]["port_value"] == 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({}, "endpoints"),
        ({"endpoints": ENDPOINTS, "endpoints_file": "x"}, "endpoints"),
    ],
)
def test_what_envoy_would_refuse_is_refused_with_a_reason(options: Any, word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        ProxyConfig(epp=("127.0.0.1:9002",), **options)


@pytest.mark.parametrize("target", ["localhost", ":80", "127.0.0.1:http", "127.0.0.1:"])
def test_an_address_without_a_port_is_a_configuration_error(target: Any) -> None:
    with pytest.raises(ConfigurationError, match="address:port"):
        bootstrap(ProxyConfig(epp=("127.0.0.1:9002",), endpoints=(target,)))
