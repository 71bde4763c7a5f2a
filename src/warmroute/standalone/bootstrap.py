"""The configuration of an Envoy that asks an endpoint picker, built with Envoy's own message types.

:class:`ProxyConfig` says what is wanted, :func:`bootstrap` turns it into Envoy's bootstrap message, :func:`to_yaml` into a
file that ``envoy -c`` reads. What each part is for is said where it is built; all of it is accepted by Envoy 1.40.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

import yaml

from warmroute.errors import ConfigurationError
from warmroute.extproc.headers import DESTINATION, LB_NAMESPACE, SERVED, SUBSET_KEY, SUBSET_NAMESPACE

try:
    import betterproto2
    from envoy_data_plane.envoy.config.bootstrap import v3 as bootstrap_v3
    from envoy_data_plane.envoy.config.cluster import v3 as cluster_v3
    from envoy_data_plane.envoy.config.common.mutation_rules import v3 as mutation_rules_v3
    from envoy_data_plane.envoy.config.core import v3 as core_v3
    from envoy_data_plane.envoy.config.endpoint import v3 as endpoint_v3
    from envoy_data_plane.envoy.config.listener import v3 as listener_v3
    from envoy_data_plane.envoy.config.route import v3 as route_v3
    from envoy_data_plane.envoy.extensions.filters.http.ext_proc import v3 as ext_proc_v3
    from envoy_data_plane.envoy.extensions.filters.http.router import v3 as router_v3
    from envoy_data_plane.envoy.extensions.filters.http.set_metadata import v3 as set_metadata_v3
    from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm_v3
    from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation import v3 as early_mutation_v3
    from envoy_data_plane.envoy.extensions.load_balancing_policies.least_request import v3 as least_request_v3
    from envoy_data_plane.envoy.extensions.load_balancing_policies.override_host import v3 as override_host_v3
    from envoy_data_plane.envoy.extensions.retry.host.previous_hosts import v3 as previous_hosts_v3
    from envoy_data_plane.envoy.extensions.transport_sockets.tls import v3 as tls_v3
    from envoy_data_plane.envoy.extensions.upstreams.http import v3 as upstream_http_v3
    from envoy_data_plane.envoy.service.discovery import v3 as discovery_v3
    from envoy_data_plane.envoy.type import v3 as type_v3
    from envoy_data_plane.envoy.type.metadata import v3 as metadata_v3
    from envoy_data_plane.google.protobuf import Any, Struct
except ModuleNotFoundError as missing:
    raise ConfigurationError(
        f"building an Envoy configuration needs {missing.name}: install Warmroute with its extra `standalone`"
    ) from missing

PICKED_LISTENER = "picked"
"""The listener whose requests go through the endpoint picker."""

PLAIN_LISTENER = "plain"
"""The listener that balances by least requests over the same endpoints."""

EPP_CLUSTER = "epp"

ORIGINAL_DST_CLUSTER = "picked_endpoint"
"""Whatever address the picker names."""

ENDPOINTS_NAME = "endpoints"
"""Name of the one assignment in an endpoints file; both clusters of engines read it."""

SELECTIONS = 20
"""Most draws of a retry until it has an engine that has not failed yet; with two engines every second draw is the same."""
PREVIOUS_HOSTS = "envoy.retry_host_predicates.previous_hosts"
UPSTREAM_HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


class BodyMode(StrEnum):
    """How ext_proc sees a body; the names are Envoy's."""

    NONE = "NONE"
    STREAMED = "STREAMED"
    BUFFERED = "BUFFERED"
    BUFFERED_PARTIAL = "BUFFERED_PARTIAL"
    FULL_DUPLEX_STREAMED = "FULL_DUPLEX_STREAMED"


class Picking(StrEnum):
    """How Envoy obeys the endpoint picker."""

    OVERRIDE_HOST = "override_host"
    """The picked endpoint if Envoy knows it, else least requests: lists, retries, fail-open, no way out of the pool."""
    ORIGINAL_DST = "ORIGINAL_DST"
    """Connect to whatever address the header names: Envoy need not know the endpoints, and cannot do without the picker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """What one standalone Envoy shall do. Addresses are ``address:port``, IPv6 in brackets; port 0 takes any free port."""

    epp: tuple[str, ...]
    """Endpoint pickers (ext_proc servers); several are used in turn."""
    endpoints: tuple[str, ...] = ()
    """The engines. Exactly one of this and ``endpoints_file`` is given."""
    endpoints_file: Path | None = None
    """A file of :func:`endpoint_discovery`, which Envoy reloads when another file is renamed over it."""
    host: str = "127.0.0.1"
    """Address that the listeners and the admin page bind."""
    port: int = 0
    """The picked listener's port; it takes HTTP/1.1 and HTTP/2 without TLS."""
    plain_port: int | None = 0
    """The plain least-request listener's port; None: no such listener."""
    admin_port: int = 0

    picking: Picking = Picking.OVERRIDE_HOST
    retry_on: str = "connect-failure,refused-stream,reset-before-request"
    """When the next endpoint is tried; Envoy's ``x-envoy-retry-on`` words."""
    retries: int = 2

    epp_tls: bool = False
    """Speak TLS to the picker; its certificate is not verified, as pickers sign their own."""
    epp_health_check: bool = True
    """Ask the picker's gRPC health service each second, so that its death is noticed before a request is sent to it."""
    failure_mode_allow: bool = True
    """FailOpen: without an answer from the picker go on without it."""
    message_timeout: float = 5.0
    """Seconds the picker has for each answer; Envoy has no such limit in FULL_DUPLEX_STREAMED."""

    request_body_mode: BodyMode = BodyMode.BUFFERED
    request_trailers: bool = False
    """Show request trailers to the picker; always so in FULL_DUPLEX_STREAMED, which requires it."""
    response_headers: bool = False
    """Show response headers to the picker."""
    response_body_mode: BodyMode = BodyMode.NONE
    response_trailers: bool = False
    """As ``request_trailers``, for responses."""
    observability_mode: bool = False
    """Shadow run: the picker sees every message and its answers are ignored."""
    allow_mode_override: bool = False
    """Let the picker change the body modes of a request in its first answer."""
    forwarding_namespaces: tuple[str, ...] = (LB_NAMESPACE, SUBSET_NAMESPACE)
    """Metadata that the picker sees."""
    receiving_namespaces: tuple[str, ...] = (LB_NAMESPACE,)
    """Metadata that the picker may set."""
    subset_hint: str | tuple[str, ...] | None = None
    """Sent with every request as the subset to choose from: a list, or one comma-separated string as gateways write it."""

    connection_buffer_bytes: int = 1 << 20
    request_body_buffer_bytes: int = 32 << 20
    """Largest body in BUFFERED mode; Envoy answers 413 to larger ones."""

    def __post_init__(self) -> None:
        if bool(self.endpoints) == (self.endpoints_file is not None):
            raise ConfigurationError("Envoy needs either a list of endpoints or a file of them")
        shadowable = {BodyMode.NONE, BodyMode.STREAMED}
        if self.observability_mode and not {self.request_body_mode, self.response_body_mode} <= shadowable:
            raise ConfigurationError("observability_mode goes with the body modes NONE and STREAMED only")


def bootstrap(config: ProxyConfig) -> bootstrap_v3.Bootstrap:
    """Envoy's bootstrap for ``config``."""
    # With override_host the policy itself falls back to least requests; ORIGINAL_DST has nothing to fall back to.
    pool = ORIGINAL_DST_CLUSTER if config.picking is Picking.ORIGINAL_DST else "pool"
    listeners = [_listener(config, PICKED_LISTENER, config.port, pool, _picked_filters(config))]
    clusters = [
        _original_dst_cluster(pool) if config.picking is Picking.ORIGINAL_DST else _override_host_cluster(config, pool)
    ]
    if config.plain_port is not None:
        listeners.append(_listener(config, PLAIN_LISTENER, config.plain_port, "plain_pool", []))
        clusters.append(_pool_cluster(config, "plain_pool", _least_request()))
    clusters.append(_epp_cluster(config))
    return bootstrap_v3.Bootstrap(
        node=core_v3.Node(id="warmroute-standalone", cluster="warmroute"),  # file-based discovery wants a node id
        admin=bootstrap_v3.Admin(address=_address(f"{_bracketed(config.host)}:{config.admin_port}")),
        static_resources=bootstrap_v3.BootstrapStaticResources(listeners=listeners, clusters=clusters),
    )


def endpoint_discovery(endpoints: Iterable[str], *, version: str = "1") -> discovery_v3.DiscoveryResponse:
    """The content of ``ProxyConfig.endpoints_file``."""
    resources = [Any.pack(_assignment(ENDPOINTS_NAME, endpoints))]
    return discovery_v3.DiscoveryResponse(version_info=version, resources=resources)


def to_yaml(message: betterproto2.Message, comment: str = "") -> str:
    """The YAML that Envoy reads, with ``comment`` before it, a ``#`` on each of its lines."""
    tree = message.to_dict(casing=betterproto2.Casing.SNAKE)
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    return head + yaml.safe_dump(tree, sort_keys=False, width=120)


def _listener(
    config: ProxyConfig, name: str, port: int, cluster: str, filters: list[hcm_v3.HttpFilter]
) -> listener_v3.Listener:
    manager = hcm_v3.HttpConnectionManager(
        stat_prefix=name,
        codec_type=hcm_v3.HttpConnectionManagerCodecType.AUTO,
        generate_request_id=True,
        stream_idle_timeout=timedelta(0),  # a long answer may pause longer than the default
        http_protocol_options=core_v3.Http1ProtocolOptions(enable_trailers=True),
        early_header_mutation_extensions=[_strip_destination()],
        route_config=route_v3.RouteConfiguration(
            name=name,
            virtual_hosts=[
                route_v3.VirtualHost(
                    name="all",
                    domains=["*"],
                    routes=[
                        route_v3.Route(
                            match=route_v3.RouteMatch(prefix="/"),
                            # lifts the connection's buffer limit for BUFFERED bodies on this route
                            request_body_buffer_limit=config.request_body_buffer_bytes,
                            route=route_v3.RouteAction(
                                cluster=cluster,
                                timeout=timedelta(0),
                                retry_policy=_retry_policy(config, cluster),
                            ),
                        )
                    ],
                )
            ],
        ),
        http_filters=[*filters, _filter("envoy.filters.http.router", router_v3.Router())],
    )
    return listener_v3.Listener(
        name=name,
        address=_address(f"{_bracketed(config.host)}:{port}"),
        enable_reuse_port=False,  # else two Envoys would silently share one port
        per_connection_buffer_limit_bytes=config.connection_buffer_bytes,
        filter_chains=[
            listener_v3.FilterChain(
                filters=[
                    listener_v3.Filter(
                        name="envoy.filters.network.http_connection_manager", typed_config=Any.pack(manager)
                    )
                ]
            )
        ],
    )


def _retry_policy(config: ProxyConfig, cluster: str) -> route_v3.RetryPolicy:
    """Try again, and elsewhere: least requests alone would choose the engine that has just failed as readily as another."""
    policy = route_v3.RetryPolicy(retry_on=config.retry_on, num_retries=config.retries)
    if cluster != ORIGINAL_DST_CLUSTER:  # there the header leaves no choice
        previous = Any.pack(previous_hosts_v3.PreviousHostsPredicate())
        policy.retry_host_predicate = [
            route_v3.RetryPolicyRetryHostPredicate(name=PREVIOUS_HOSTS, typed_config=previous)
        ]
        policy.host_selection_retry_max_attempts = SELECTIONS
    return policy


def _strip_destination() -> core_v3.TypedExtensionConfig:
    """Removes the destination headers that a client sends: only the picker says where a request goes."""
    return _extension(
        "envoy.http.early_header_mutation.header_mutation",
        early_mutation_v3.HeaderMutation(
            mutations=[mutation_rules_v3.HeaderMutation(remove=name) for name in (DESTINATION, SERVED)]
        ),
    )


def _picked_filters(config: ProxyConfig) -> list[hcm_v3.HttpFilter]:
    filters = []
    if config.subset_hint is not None:
        hint = config.subset_hint if isinstance(config.subset_hint, str) else list(config.subset_hint)
        value = Struct.from_dict({SUBSET_KEY: hint})
        metadata = set_metadata_v3.Metadata(metadata_namespace=SUBSET_NAMESPACE, value=value)
        filters.append(_filter("envoy.filters.http.set_metadata", set_metadata_v3.Config(metadata=[metadata])))
    filters.append(_filter("envoy.filters.http.ext_proc", _ext_proc(config)))
    return filters


def _ext_proc(config: ProxyConfig) -> ext_proc_v3.ExternalProcessor:
    modes = ext_proc_v3.ProcessingModeBodySendMode
    shown = {
        True: ext_proc_v3.ProcessingModeHeaderSendMode.SEND,
        False: ext_proc_v3.ProcessingModeHeaderSendMode.SKIP,
    }
    duplex = BodyMode.FULL_DUPLEX_STREAMED
    namespaces = ext_proc_v3.MetadataOptionsMetadataNamespaces
    return ext_proc_v3.ExternalProcessor(
        grpc_service=core_v3.GrpcService(envoy_grpc=core_v3.GrpcServiceEnvoyGrpc(cluster_name=EPP_CLUSTER)),
        failure_mode_allow=config.failure_mode_allow,
        message_timeout=timedelta(seconds=config.message_timeout),
        allow_mode_override=config.allow_mode_override,
        observability_mode=config.observability_mode,
        allow_content_length_header=True,  # keeps the length in FULL_DUPLEX_STREAMED, where the picker sets it right
        processing_mode=ext_proc_v3.ProcessingMode(
            request_header_mode=shown[True],
            request_body_mode=modes[config.request_body_mode],
            request_trailer_mode=shown[config.request_trailers or config.request_body_mode is duplex],
            response_header_mode=shown[config.response_headers or config.response_body_mode is duplex],
            response_body_mode=modes[config.response_body_mode],
            response_trailer_mode=shown[config.response_trailers or config.response_body_mode is duplex],
        ),
        metadata_options=ext_proc_v3.MetadataOptions(
            forwarding_namespaces=namespaces(untyped=list(config.forwarding_namespaces)),
            receiving_namespaces=namespaces(untyped=list(config.receiving_namespaces)),
        ),
    )


def _override_host_cluster(config: ProxyConfig, name: str) -> cluster_v3.Cluster:
    policy = override_host_v3.OverrideHost(
        override_host_sources=[
            override_host_v3.OverrideHostOverrideHostSource(header=DESTINATION),
            override_host_v3.OverrideHostOverrideHostSource(metadata=_load_balancer_key(DESTINATION)),
        ],
        selected_host_key=_load_balancer_key(SERVED),
        fallback_policy=_least_request(),
    )
    return _pool_cluster(config, name, _policy("envoy.load_balancing_policies.override_host", policy))


def _pool_cluster(config: ProxyConfig, name: str, policy: cluster_v3.LoadBalancingPolicy) -> cluster_v3.Cluster:
    cluster = cluster_v3.Cluster(
        name=name,
        connect_timeout=timedelta(seconds=2),
        load_balancing_policy=policy,
        circuit_breakers=_no_circuit_breaking(),
        typed_extension_protocol_options=_http1_upstream(),
    )
    if config.endpoints_file is None:
        cluster.type = cluster_v3.ClusterDiscoveryType.STATIC
        cluster.load_assignment = _assignment(name, config.endpoints)
    else:
        cluster.type = cluster_v3.ClusterDiscoveryType.EDS
        cluster.eds_cluster_config = cluster_v3.ClusterEdsClusterConfig(
            service_name=ENDPOINTS_NAME,
            eds_config=core_v3.ConfigSource(
                path_config_source=core_v3.PathConfigSource(path=str(config.endpoints_file)),
                resource_api_version=core_v3.ApiVersion.V3,
            ),
        )
    return cluster


def _original_dst_cluster(name: str) -> cluster_v3.Cluster:
    return cluster_v3.Cluster(
        name=name,
        type=cluster_v3.ClusterDiscoveryType.ORIGINAL_DST,
        lb_policy=cluster_v3.ClusterLbPolicy.CLUSTER_PROVIDED,
        connect_timeout=timedelta(seconds=2),
        original_dst_lb_config=cluster_v3.ClusterOriginalDstLbConfig(
            use_http_header=True, http_header_name=DESTINATION
        ),
        circuit_breakers=_no_circuit_breaking(),
        typed_extension_protocol_options=_http1_upstream(),
    )


def _epp_cluster(config: ProxyConfig) -> cluster_v3.Cluster:
    http2 = upstream_http_v3.HttpProtocolOptions(
        explicit_http_config=upstream_http_v3.HttpProtocolOptionsExplicitHttpConfig(
            http2_protocol_options=core_v3.Http2ProtocolOptions()
        )
    )
    cluster = cluster_v3.Cluster(
        name=EPP_CLUSTER,
        type=cluster_v3.ClusterDiscoveryType.STATIC,
        connect_timeout=timedelta(seconds=1),
        load_assignment=_assignment(EPP_CLUSTER, config.epp),
        circuit_breakers=_no_circuit_breaking(),
        # A picker that is down must count as absent, not as "send to it all the same": that is what fail-open needs.
        common_lb_config=cluster_v3.ClusterCommonLbConfig(healthy_panic_threshold=type_v3.Percent(value=0.0)),
        typed_extension_protocol_options={UPSTREAM_HTTP: Any.pack(http2)},
    )
    if config.epp_health_check:
        second = timedelta(seconds=1)
        cluster.health_checks = [
            core_v3.HealthCheck(
                timeout=second,
                interval=second,
                no_traffic_interval=second,  # default: a minute, until the first request
                no_traffic_healthy_interval=second,
                unhealthy_threshold=1,
                healthy_threshold=1,
                grpc_health_check=core_v3.HealthCheckGrpcHealthCheck(
                    service_name="envoy.service.ext_proc.v3.ExternalProcessor"
                ),
            )
        ]
    if config.epp_tls:
        context = tls_v3.UpstreamTlsContext(
            common_tls_context=tls_v3.CommonTlsContext(
                validation_context=tls_v3.CertificateValidationContext(), alpn_protocols=["h2"]
            )
        )
        cluster.transport_socket = core_v3.TransportSocket(
            name="envoy.transport_sockets.tls", typed_config=Any.pack(context)
        )
    return cluster


def _http1_upstream() -> dict[str, Any]:
    """HTTP/1.1 to the engines, trailers passed on."""
    options = upstream_http_v3.HttpProtocolOptions(
        explicit_http_config=upstream_http_v3.HttpProtocolOptionsExplicitHttpConfig(
            http_protocol_options=core_v3.Http1ProtocolOptions(enable_trailers=True)
        )
    )
    return {UPSTREAM_HTTP: Any.pack(options)}


def _no_circuit_breaking() -> cluster_v3.CircuitBreakers:
    """Envoy's default of 1,024 requests is less than a busy pool has in flight."""
    most = 40_000
    return cluster_v3.CircuitBreakers(
        thresholds=[
            cluster_v3.CircuitBreakersThresholds(max_connections=most, max_pending_requests=most, max_requests=most)
        ]
    )


def _least_request() -> cluster_v3.LoadBalancingPolicy:
    return _policy("envoy.load_balancing_policies.least_request", least_request_v3.LeastRequest())


def _policy(name: str, message: betterproto2.Message) -> cluster_v3.LoadBalancingPolicy:
    return cluster_v3.LoadBalancingPolicy(
        policies=[cluster_v3.LoadBalancingPolicyPolicy(typed_extension_config=_extension(name, message))]
    )


def _extension(name: str, message: betterproto2.Message) -> core_v3.TypedExtensionConfig:
    return core_v3.TypedExtensionConfig(name=name, typed_config=Any.pack(message))


def _filter(name: str, message: betterproto2.Message) -> hcm_v3.HttpFilter:
    return hcm_v3.HttpFilter(name=name, typed_config=Any.pack(message))


def _load_balancer_key(name: str) -> metadata_v3.MetadataKey:
    return metadata_v3.MetadataKey(key=LB_NAMESPACE, path=[metadata_v3.MetadataKeyPathSegment(key=name)])


def _assignment(cluster: str, targets: Iterable[str]) -> endpoint_v3.ClusterLoadAssignment:
    hosts = [endpoint_v3.LbEndpoint(endpoint=endpoint_v3.Endpoint(address=_address(target))) for target in targets]
    return endpoint_v3.ClusterLoadAssignment(
        cluster_name=cluster, endpoints=[endpoint_v3.LocalityLbEndpoints(lb_endpoints=hosts)]
    )


def _address(target: str) -> core_v3.Address:
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigurationError(f"{target!r} is not address:port")
    return core_v3.Address(socket_address=core_v3.SocketAddress(address=host.strip("[]"), port_value=int(port)))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
