"""The configuration of an Envoy with an endpoint picker, as plain data with the names of Envoy's documentation.

:func:`bootstrap` builds it from a :class:`~warmroute.standalone.proxy_config.ProxyConfig`, :func:`to_yaml` writes the file
that ``envoy -c`` reads. Every field is described under https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/api; the tests
validate every combination with a real Envoy 1.40.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from warmroute.errors import ConfigurationError
from warmroute.extproc.envoy_policy import (
    HOST_SELECTIONS,
    MAX_REQUESTS,
    PICKER_BACK_OFF,
    PICKER_RETRY_ON,
    PREVIOUS_HOSTS,
)
from warmroute.extproc.headers import (
    CACHED_SHARE,
    CONTROL,
    DECISION_NAMESPACE,
    DESTINATION,
    LB_NAMESPACE,
    REASON,
    SERVED,
    SUBSET_NAMESPACE,
)
from warmroute.extproc.health import EXT_PROC_SERVICE
from warmroute.standalone.proxy_config import Picking, ProxyConfig

PICKED_LISTENER = "picked"
"""The listener whose requests go through the endpoint picker."""
PLAIN_LISTENER = "plain"
"""The listener that balances by least requests over the same endpoints."""
POOL_CLUSTER = "pool"
"""The engines, the picked one first."""
PLAIN_POOL_CLUSTER = "plain_pool"
ORIGINAL_DST_CLUSTER = "picked_endpoint"
"""The address in the destination header."""
EPP_CLUSTER = "epp"
"""The endpoint pickers."""
ENDPOINTS_NAME = "endpoints"
"""Name of the one assignment in an endpoints file; both clusters of engines read it."""

OVERWRITE = "OVERWRITE_IF_EXISTS_OR_ADD"

ENDPOINT_HEADER = "x-warmroute-endpoint"
"""Response header with the address of the engine that answered."""
ACCESS_LOG_LINE = {
    "time": "%START_TIME%",
    "request": "%REQ(X-REQUEST-ID)%",
    "path": "%REQ(:PATH)%",
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "endpoint": "%UPSTREAM_HOST%",
    "milliseconds": "%DURATION%",
    "milliseconds_to_headers": "%RESPONSE_DURATION%",
    REASON: f"%DYNAMIC_METADATA({DECISION_NAMESPACE}:{REASON})%",
    CACHED_SHARE: f"%DYNAMIC_METADATA({DECISION_NAMESPACE}:{CACHED_SHARE})%",
}
"""A line of the access log; https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/observability/access_log/usage
describes the operators."""

Tree = dict[str, Any]
"""A message of Envoy as YAML and JSON have it."""


def bootstrap(config: ProxyConfig) -> Tree:
    """Envoy's bootstrap for ``config``. Raises ConfigurationError for an address without a port."""
    # override_host falls back to least requests by itself; ORIGINAL_DST has nothing to fall back to.
    by_header = config.picking is Picking.ORIGINAL_DST
    pool = ORIGINAL_DST_CLUSTER if by_header else POOL_CLUSTER
    listeners = [_listener(config, PICKED_LISTENER, config.port, pool, [_ext_proc(config)])]
    clusters = [_original_dst_cluster() if by_header else _override_host_cluster(config)]
    if config.plain_port is not None:
        listeners.append(_listener(config, PLAIN_LISTENER, config.plain_port, PLAIN_POOL_CLUSTER, []))
        clusters.append(_pool_cluster(config, PLAIN_POOL_CLUSTER, _least_request()))
    clusters.append(_epp_cluster(config))
    return {
        "node": {"id": "warmroute-standalone", "cluster": "warmroute"},  # file-based discovery wants a node id
        "admin": {"address": _address(f"127.0.0.1:{config.admin_port}")},
        "overload_manager": {"resource_monitors": [_connection_limit()]},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }


def endpoint_discovery(endpoints: Iterable[str], *, version: str = "1") -> Tree:
    """The content of ``ProxyConfig.endpoints_file``."""
    assignment = _assignment(ENDPOINTS_NAME, endpoints)
    return {
        "version_info": version,
        "resources": [_typed("envoy.config.endpoint.v3.ClusterLoadAssignment", assignment)],
    }


def to_yaml(tree: Mapping[str, Any], comment: str = "") -> str:
    """The YAML that Envoy reads, with ``comment`` before it, a ``#`` on each of its lines."""
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    return head + yaml.safe_dump(dict(tree), sort_keys=False, width=120)


# ---------------------------------------------------------------- listeners


def _connection_limit() -> Tree:
    name = "resource_monitors.global_downstream_max_connections"
    kind = "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
    limit = {"max_active_downstream_connections": MAX_REQUESTS}
    return _extension(f"envoy.{name}", kind, limit)


def _listener(config: ProxyConfig, name: str, port: int, cluster: str, filters: list[Tree]) -> Tree:
    manager = {
        "stat_prefix": name,
        "generate_request_id": True,
        "request_headers_timeout": _seconds(config.request_headers_timeout),
        "request_timeout": _seconds(config.request_timeout),
        "stream_idle_timeout": "0s",  # an answer may pause longer than the default of 5 minutes
        "http_protocol_options": {"enable_trailers": True},
        "early_header_mutation_extensions": _early_mutations(config),
        "route_config": {
            "name": name,
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [_route(config, cluster)]}],
        },
        "always_set_request_id_in_response": config.name_endpoint,
        "access_log": _access_log(config),
        "upgrade_configs": [{"upgrade_type": "websocket"}],  # realtime APIs
        "http_filters": [*filters, _extension("envoy.filters.http.router", "filters.http.router.v3.Router", {})],
    }
    return {
        "name": name,
        "address": _address(f"{_bracketed(config.host)}:{port}"),
        "enable_reuse_port": False,  # else two Envoys would silently share one port
        "per_connection_buffer_limit_bytes": config.connection_buffer_bytes,
        "filter_chains": [
            {
                "filters": [
                    _extension(
                        "envoy.filters.network.http_connection_manager",
                        "filters.network.http_connection_manager.v3.HttpConnectionManager",
                        manager,
                    )
                ]
            }
        ],
    }


def _route(config: ProxyConfig, cluster: str) -> Tree:
    retry: Tree = {"retry_on": config.retry_on, "num_retries": config.retries}
    if cluster != ORIGINAL_DST_CLUSTER:  # there the header leaves no choice
        retry |= _on_another_host()
    names = [{"header": {"key": ENDPOINT_HEADER, "value": "%UPSTREAM_HOST%"}, "append_action": OVERWRITE}]
    return {
        "match": {"prefix": "/"},
        "response_headers_to_add": names if config.name_endpoint else [],
        "request_body_buffer_limit": config.request_body_buffer_bytes,  # in place of the connection's, for this route
        "route": {"cluster": cluster, "timeout": "0s", "retry_policy": retry},
    }


def _access_log(config: ProxyConfig) -> list[Tree]:
    if not config.access_log:
        return []
    fields = {"path": config.access_log, "log_format": {"json_format": ACCESS_LOG_LINE}}
    return [_extension("envoy.access_loggers.file", "access_loggers.file.v3.FileAccessLog", fields)]


def _early_mutations(config: ProxyConfig) -> list[Tree]:
    """Removes the control headers that a client sends, before any filter sees them: clients may not say where a request
    goes, how important it is or which model it is for."""
    mutations = [{"remove": name} for name in CONTROL if name not in config.client_headers]
    if not mutations:
        return []
    name = "http.early_header_mutation.header_mutation"
    return [_extension(f"envoy.{name}", f"{name}.v3.HeaderMutation", {"mutations": mutations})]


def _ext_proc(config: ProxyConfig) -> Tree:
    grpc_service: Tree = {"envoy_grpc": {"cluster_name": EPP_CLUSTER}}
    if config.epp_retries:
        base, longest = (_seconds(one / 1000) for one in PICKER_BACK_OFF)
        grpc_service["retry_policy"] = {
            "retry_on": PICKER_RETRY_ON,
            "num_retries": config.epp_retries,
            "retry_back_off": {"base_interval": base, "max_interval": longest},
            **_on_another_host(),
        }
    fields = {
        "grpc_service": grpc_service,
        "failure_mode_allow": config.failure_mode_allow,
        "message_timeout": _seconds(config.message_timeout),
        # For those who change the body mode to FULL_DUPLEX_STREAMED: it keeps the length, which the picker sets right there.
        "allow_content_length_header": True,
        "processing_mode": {
            "request_header_mode": "SEND",
            "request_body_mode": "BUFFERED",
            "request_trailer_mode": "SKIP",
            "response_header_mode": "SEND" if config.response_headers else "SKIP",
            "response_body_mode": "NONE",
            "response_trailer_mode": "SKIP",
        },
        "metadata_options": {
            "forwarding_namespaces": {"untyped": [LB_NAMESPACE, SUBSET_NAMESPACE]},
            "receiving_namespaces": {"untyped": [LB_NAMESPACE, DECISION_NAMESPACE]},
        },
    }
    return _extension("envoy.filters.http.ext_proc", "filters.http.ext_proc.v3.ExternalProcessor", fields)


def _on_another_host() -> Tree:
    """Part of a retry policy: the retry goes to a host that has not failed this request."""
    return {
        "retry_host_predicate": [_extension(PREVIOUS_HOSTS, "retry.host.previous_hosts.v3.PreviousHostsPredicate", {})],
        "host_selection_retry_max_attempts": HOST_SELECTIONS,
    }


# ---------------------------------------------------------------- clusters


def _override_host_cluster(config: ProxyConfig) -> Tree:
    policy = {
        "override_host_sources": [{"header": DESTINATION}, {"metadata": _metadata_key(DESTINATION)}],
        "selected_host_key": _metadata_key(SERVED),
        "fallback_policy": _least_request(),
    }
    return _pool_cluster(config, POOL_CLUSTER, _policy("override_host", "OverrideHost", policy))


def _pool_cluster(config: ProxyConfig, name: str, policy: Tree) -> Tree:
    cluster = {
        "name": name,
        "connect_timeout": "2s",
        "load_balancing_policy": policy,
        "circuit_breakers": _circuit_breakers(),
        "typed_extension_protocol_options": _http1(),
    }
    if config.endpoints_file is None:
        return cluster | {"type": "STATIC", "load_assignment": _assignment(name, config.endpoints)}
    source = {"path_config_source": {"path": str(config.endpoints_file)}, "resource_api_version": "V3"}
    return cluster | {"type": "EDS", "eds_cluster_config": {"service_name": ENDPOINTS_NAME, "eds_config": source}}


def _original_dst_cluster() -> Tree:
    return {
        "name": ORIGINAL_DST_CLUSTER,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "2s",
        "original_dst_lb_config": {"use_http_header": True, "http_header_name": DESTINATION},
        "circuit_breakers": _circuit_breakers(),
        "typed_extension_protocol_options": _http1(),
    }


def _epp_cluster(config: ProxyConfig) -> Tree:
    cluster: Tree = {
        "name": EPP_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": _assignment(EPP_CLUSTER, config.epp),
        "circuit_breakers": _circuit_breakers(),
        "typed_extension_protocol_options": _upstream_http({"http2_protocol_options": {}}),
    }
    if config.epp_health_check:
        # Without panic mode, in which Envoy would send to a picker that is down: fail-open needs that.
        cluster["common_lb_config"] = {"healthy_panic_threshold": {"value": 0}}
        cluster["health_checks"] = [
            {
                "timeout": "0.5s",
                "interval": "0.5s",
                "no_traffic_interval": "0.5s",  # default: a minute, until the first request
                "no_traffic_healthy_interval": "0.5s",
                "unhealthy_threshold": 2,  # checks without an answer; NOT_SERVING counts at once
                "healthy_threshold": 1,
                "grpc_health_check": {"service_name": EXT_PROC_SERVICE},
            }
        ]
    if config.epp_tls:
        context = {"common_tls_context": {"validation_context": {}, "alpn_protocols": ["h2"]}}
        cluster["transport_socket"] = _extension(
            "envoy.transport_sockets.tls", "transport_sockets.tls.v3.UpstreamTlsContext", context
        )
    return cluster


def _http1() -> Tree:
    """HTTP/1.1 to the engines, trailers passed on."""
    return _upstream_http({"http_protocol_options": {"enable_trailers": True}})


def _upstream_http(explicit: Tree) -> Tree:
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {name: _typed(name, {"explicit_http_config": explicit})}


def _circuit_breakers() -> Tree:
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), MAX_REQUESTS)
    return {"thresholds": [limits]}


def _least_request() -> Tree:
    return _policy("least_request", "LeastRequest", {})


def _policy(name: str, message: str, fields: Tree) -> Tree:
    kind = f"load_balancing_policies.{name}"
    extension = _extension(f"envoy.{kind}", f"{kind}.v3.{message}", fields)
    return {"policies": [{"typed_extension_config": extension}]}


def _metadata_key(name: str) -> Tree:
    return {"key": LB_NAMESPACE, "path": [{"key": name}]}


# ---------------------------------------------------------------- parts of both


def _extension(name: str, kind: str, fields: Tree) -> Tree:
    """An extension of Envoy; ``kind`` is its message below ``envoy.extensions``."""
    return {"name": name, "typed_config": _typed(f"envoy.extensions.{kind}", fields)}


def _typed(kind: str, fields: Tree) -> Tree:
    return {"@type": f"type.googleapis.com/{kind}", **fields}


def _assignment(cluster: str, targets: Iterable[str]) -> Tree:
    hosts = [{"endpoint": {"address": _address(target)}} for target in targets]
    return {"cluster_name": cluster, "endpoints": [{"lb_endpoints": hosts}]}


def _address(target: str) -> Tree:
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigurationError(f"{target!r} is not address:port")
    return {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _seconds(value: float) -> str:
    return f"{value:g}s"
