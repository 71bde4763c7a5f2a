"""The hooks of Envoy Gateway's translation: each takes a message and changes it in place. WITHOUT IO.

Envoy Gateway calls them in this order for every translation:

1. :func:`modify_route`, for each route whose backend is an InferencePool: the pool's ext_proc filter is enabled on it.
2. :func:`modify_cluster`, for the cluster of such a route: it obeys the picker's destination header.
3. :func:`modify_translation`, once with everything: the filter and the picker's cluster are added.

Nothing is remembered between calls, so any replica can answer any call: step 1 writes the pool into the route's metadata,
and step 3 reads it there. The measured behaviour of Envoy Gateway is described in docs/envoy-gateway-extension.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from google.protobuf import json_format
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import UInt32Value, UInt64Value

from warmroute.errors import ConfigurationError
from warmroute.extproc.envoy_policy import (
    ENGINE_RETRIES,
    ENGINE_RETRY_ON,
    HOST_SELECTIONS,
    MAX_REQUESTS,
    MESSAGE_TIMEOUT,
    PICKER_BACK_OFF,
    PICKER_RETRY_ON,
    PREVIOUS_HOSTS,
)
from warmroute.extproc.headers import CONTROL, DESTINATION
from warmroute.gateway_extension import gateway_extension_pb2 as pb
from warmroute.gateway_extension.picked_pool import PickedPool

ROUTE_METADATA = "warmroute.inference_pool"
"""Key of a route's filter metadata: the struct's field ``pool`` is the route's :class:`PickedPool` as JSON."""
ENVOY_GATEWAY_METADATA = "envoy-gateway"
"""Key of the filter metadata in which Envoy Gateway names the Kubernetes objects that a part was made of."""
AI_GATEWAY_METADATA = "aigateway.envoy.io"
"""Key of the filter metadata in which Envoy AI Gateway's extension notes the pool of a route that it serves."""
AI_GATEWAY_POOL = "per_route_rule_inference_pool"
"""Field of that metadata: https://github.com/envoyproxy/ai-gateway/blob/main/internal/extensionserver/inferencepool.go."""
HTTP_CONNECTION_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER_FILTER = "envoy.filters.http.router"
EARLY_HEADER_MUTATION = "envoy.http.early_header_mutation.header_mutation"
UPSTREAM_HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
PICKER_RETRIES = 10
"""In a rollout several pickers are away at once, so a few retries are not enough."""
MOST_BODY = 2**32 - 1
"""Bytes that a listener's buffer holds at most: Envoy's field has 32 bits."""
MOST_ANSWER = 4096
"""Bytes of a direct response: if one has more, Envoy refuses all routes of its listener."""
SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Gateway:
    """A Gateway object."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Options:
    """How pools are served. All are flags of ``warmroute gateway-extension``."""

    request_body_limit: int = 32 << 20
    """Bytes of a request body that Envoy buffers for the picker; it should equal the picker's ``--max-body-bytes``."""
    listener_body_limit: bool = False
    """Envoy before 1.36 (Envoy Gateway 1.5) has no limit per route: raise the listener's buffer instead."""
    picker_tls: bool = True
    """Speak TLS to pickers, without verification: they have self-signed certificates by default."""
    pods_service: str = ""
    """Name of the headless Service of a pool's pods, with ``{pool}`` for the pool's name; empty: there is none."""

    def __post_init__(self) -> None:
        """Raises ConfigurationError for what no Envoy takes."""
        if self.pods_service and not SERVICE_NAME.fullmatch(self.pods_service_of("pool")):
            raise ConfigurationError(
                f"--pods-service must be the name of a Service, with {{pool}} for that of the pool"
                f" (given: {self.pods_service!r})"
            )
        if self.request_body_limit > MOST_BODY:
            raise ConfigurationError(f"--request-body-limit must be at most {MOST_BODY}")

    def pods_service_of(self, pool: str) -> str:
        """The name of the headless Service of a pool's pods."""
        return self.pods_service.replace("{pool}", pool)


def modify_route(route: pb.Route, pools: list[PickedPool], options: Options) -> str:
    """Enable the pool's filter on a route. Returns why the route cannot be served, or an empty text.

    A rule has one cluster, so a rule with two pools answers with an error. Where Envoy knows the pool's pods, a route
    without a retry policy of its own gets one: a request that a pod did not take goes to another pod. A route that Envoy
    AI Gateway serves stays as it is: a second picker call would choose a second time.
    """
    if not pools or _is_served_by_ai_gateway(route):
        return ""
    if len(pools) > 1:
        names = ", ".join(f"{pool.namespace}/{pool.name}" for pool in pools)
        reason = f"one HTTPRoute rule cannot have two InferencePools: {names}"
        answer_with_error(route, reason)
        return reason
    (pool,) = pools
    route.typed_per_filter_config[pool.filter_name].CopyFrom(
        _packed("envoy.config.route.v3.FilterConfig", pb.FilterConfig(config=Any()))
    )
    route.metadata.filter_metadata[ROUTE_METADATA]["pool"] = pool.to_json()
    route.request_body_buffer_limit.CopyFrom(UInt64Value(value=options.request_body_limit))
    specifier = route.route.WhichOneof("host_rewrite_specifier")
    if specifier is not None:
        route.route.ClearField(specifier)
    if options.pods_service and not route.route.HasField("retry_policy"):
        route.route.retry_policy.CopyFrom(_pod_retries())
    return ""


def answer_with_error(route: pb.Route, message: str) -> None:
    """Make the route answer 500 with ``message``: the rule cannot be served."""
    body = message.encode(errors="replace")[:MOST_ANSWER].decode(errors="ignore")
    route.direct_response.CopyFrom(pb.DirectResponseAction(status=500, body=pb.DataSource(inline_string=body)))


def modify_cluster(cluster: pb.Cluster, pools: list[PickedPool], options: Options) -> None:
    """Make the cluster of a pool's rule obey the picker's destination header.

    With a headless Service for the pods, Envoy knows them by DNS: the override_host policy takes the picked one, a retry
    may go to another one, and without a destination (FailOpen) requests are balanced. Without the Service, Envoy connects
    to the address in the header and knows no other. A cluster that obeys the header already, as another extension or an
    earlier call made it, stays as it is.
    """
    if not pools or _obeys_destination(cluster):
        return
    for field in ("eds_cluster_config", "load_assignment", "load_balancing_policy", "lb_policy"):
        cluster.ClearField(field)
    pool = pools[0]
    if options.pods_service:
        host = f"{options.pods_service_of(pool.name)}.{pool.namespace}.svc"
        cluster.type = pb.Cluster.STRICT_DNS
        cluster.load_assignment.CopyFrom(_assignment(cluster.name, host, pool.ports))
        cluster.load_balancing_policy.CopyFrom(_override_host())
    else:
        cluster.type = pb.Cluster.ORIGINAL_DST
        cluster.lb_policy = pb.Cluster.CLUSTER_PROVIDED
        cluster.original_dst_lb_config.use_http_header = True
        cluster.original_dst_lb_config.http_header_name = DESTINATION
    _raise_circuit_breakers(cluster)


def modify_translation(request: pb.PostTranslateModifyRequest, options: Options) -> pb.PostTranslateModifyResponse:
    """Everything that came in, with the pools' filters on their listeners and a cluster for each picker."""
    pools_of = {configuration.name: _pools_of(configuration) for configuration in request.routes}
    for listener in request.listeners:
        _modify_listener(listener, pools_of, options)
    clusters = {cluster.name: cluster for cluster in request.clusters}
    for pools in pools_of.values():
        for pool in pools:
            clusters[pool.picker_cluster] = _picker_cluster(pool, options)
    return pb.PostTranslateModifyResponse(
        clusters=clusters.values(), secrets=request.secrets, listeners=request.listeners, routes=request.routes
    )


def pools_by_gateway(routes: Iterable[pb.RouteConfiguration]) -> dict[Gateway, set[PickedPool]]:
    """The pools that each Gateway serves. Envoy Gateway writes a virtual host's Gateway into its metadata."""
    found: dict[Gateway, set[PickedPool]] = {}
    for virtual_host in (one for configuration in routes for one in configuration.virtual_hosts):
        pools = set(_pools_of_virtual_host(virtual_host))
        if ENVOY_GATEWAY_METADATA not in virtual_host.metadata.filter_metadata:
            continue
        described = json_format.MessageToDict(virtual_host.metadata.filter_metadata[ENVOY_GATEWAY_METADATA])
        for resource in described.get("resources", []):
            if resource.get("kind") == "Gateway":
                gateway = Gateway(str(resource.get("namespace")), str(resource.get("name")))
                found.setdefault(gateway, set()).update(pools)
    return found


def _pod_retries() -> pb.RouteRetryPolicy:
    predicate = pb.RouteRetryPolicy.RetryHostPredicate(name=PREVIOUS_HOSTS, typed_config=_previous_hosts())
    return pb.RouteRetryPolicy(
        retry_on=ENGINE_RETRY_ON,
        num_retries=UInt32Value(value=ENGINE_RETRIES),
        retry_host_predicate=[predicate],
        host_selection_retry_max_attempts=HOST_SELECTIONS,
    )


def _is_served_by_ai_gateway(route: pb.Route) -> bool:
    marks = route.metadata.filter_metadata
    return AI_GATEWAY_METADATA in marks and AI_GATEWAY_POOL in marks[AI_GATEWAY_METADATA]


def _obeys_destination(cluster: pb.Cluster) -> bool:
    return cluster.type == pb.Cluster.ORIGINAL_DST and cluster.original_dst_lb_config.http_header_name == DESTINATION


def _pools_of(configuration: pb.RouteConfiguration) -> list[PickedPool]:
    """The pools of a route configuration, each once."""
    found: dict[str, PickedPool] = {}
    for virtual_host in configuration.virtual_hosts:
        for pool in _pools_of_virtual_host(virtual_host):
            found[pool.filter_name] = pool
    return list(found.values())


def _pools_of_virtual_host(virtual_host: pb.VirtualHost) -> Iterator[PickedPool]:
    for route in virtual_host.routes:
        if ROUTE_METADATA in route.metadata.filter_metadata:
            yield PickedPool.of_json(str(route.metadata.filter_metadata[ROUTE_METADATA]["pool"]))


def _modify_listener(listener: pb.Listener, pools_of: dict[str, list[PickedPool]], options: Options) -> None:
    chains = [*listener.filter_chains]
    if listener.HasField("default_filter_chain"):
        chains.append(listener.default_filter_chain)
    for chain in chains:
        for network_filter in chain.filters:
            if network_filter.typed_config.type_url.rpartition("/")[2] != HTTP_CONNECTION_MANAGER:
                continue
            manager = pb.HttpConnectionManager.FromString(network_filter.typed_config.value)
            pools = pools_of.get(manager.rds.route_config_name, [])
            if not pools:
                continue
            _add_filters(manager, pools)
            _strip_control_headers(manager)
            network_filter.typed_config.CopyFrom(_packed(HTTP_CONNECTION_MANAGER, manager))
            if options.listener_body_limit:
                listener.per_connection_buffer_limit_bytes.CopyFrom(UInt32Value(value=options.request_body_limit))


def _add_filters(manager: pb.HttpConnectionManager, pools: Iterable[PickedPool]) -> None:
    """The pools' filters before the router, disabled: routes enable them."""
    ours = {pool.filter_name: pool for pool in pools}
    filters = [one for one in manager.http_filters if one.name not in ours]
    at = next((place for place, one in enumerate(filters) if one.name == ROUTER_FILTER), len(filters))
    filters[at:at] = [
        pb.HttpFilter(
            name=name,
            typed_config=_packed("envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor", _ext_proc(pool)),
            disabled=True,
        )
        for name, pool in ours.items()
    ]
    del manager.http_filters[:]
    manager.http_filters.extend(filters)


def _picker_retries() -> pb.RetryPolicy:
    base, longest = PICKER_BACK_OFF
    predicate = pb.RetryPolicy.RetryHostPredicate(name=PREVIOUS_HOSTS, typed_config=_previous_hosts())
    return pb.RetryPolicy(
        retry_on=PICKER_RETRY_ON,
        num_retries=UInt32Value(value=PICKER_RETRIES),
        retry_back_off=pb.BackoffStrategy(
            base_interval=Duration(nanos=base * 1_000_000), max_interval=Duration(nanos=longest * 1_000_000)
        ),
        retry_host_predicate=[predicate],
        host_selection_retry_max_attempts=HOST_SELECTIONS,
    )


def _previous_hosts() -> Any:
    kind = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    return _packed(kind, pb.PreviousHostsPredicate())


def _ext_proc(pool: PickedPool) -> pb.ExternalProcessor:
    mode = pb.ProcessingMode
    return pb.ExternalProcessor(
        grpc_service=pb.GrpcService(
            envoy_grpc=pb.GrpcService.EnvoyGrpc(cluster_name=pool.picker_cluster, authority=pool.picker_host),
            retry_policy=_picker_retries(),
        ),
        failure_mode_allow=pool.fail_open,
        message_timeout=Duration(seconds=MESSAGE_TIMEOUT),
        allow_content_length_header=True,
        processing_mode=pb.ProcessingMode(
            request_header_mode=mode.SEND,
            request_body_mode=mode.BUFFERED,
            request_trailer_mode=mode.SKIP,
            response_header_mode=mode.SKIP,
            response_body_mode=mode.NONE,
            response_trailer_mode=mode.SKIP,
        ),
    )


def _strip_control_headers(manager: pb.HttpConnectionManager) -> None:
    """Remove the headers with which a client could choose endpoint, priority or model."""
    mutation = pb.EarlyHeaderMutation(mutations=[pb.EarlyHeaderMutation.Mutation(remove=name) for name in CONTROL])
    packed = _packed("envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation", mutation)
    if all(one.typed_config != packed for one in manager.early_header_mutation_extensions):
        manager.early_header_mutation_extensions.append(
            pb.TypedExtensionConfig(name=EARLY_HEADER_MUTATION, typed_config=packed)
        )


def _picker_cluster(pool: PickedPool, options: Options) -> pb.Cluster:
    http2 = pb.HttpProtocolOptions(
        explicit_http_config=pb.HttpProtocolOptions.ExplicitHttpConfig(
            http2_protocol_options=pb.HttpProtocolOptions.Http2ProtocolOptions()
        )
    )
    cluster = pb.Cluster(
        name=pool.picker_cluster,
        type=pb.Cluster.STRICT_DNS,
        connect_timeout=Duration(seconds=1),
        load_assignment=_assignment(pool.picker_cluster, pool.picker_host, [pool.picker_port]),
    )
    cluster.typed_extension_protocol_options[UPSTREAM_HTTP].CopyFrom(_packed(UPSTREAM_HTTP, http2))
    if options.picker_tls:
        context = pb.UpstreamTlsContext(
            common_tls_context=pb.UpstreamTlsContext.CommonTlsContext(alpn_protocols=["h2"])
        )
        tls = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
        cluster.transport_socket.CopyFrom(
            pb.TransportSocket(name="envoy.transport_sockets.tls", typed_config=_packed(tls, context))
        )
    _raise_circuit_breakers(cluster)
    return cluster


def _raise_circuit_breakers(cluster: pb.Cluster) -> None:
    if not cluster.circuit_breakers.thresholds:
        cluster.circuit_breakers.thresholds.add()
    most = UInt32Value(value=MAX_REQUESTS)
    for threshold in cluster.circuit_breakers.thresholds:
        threshold.max_connections.CopyFrom(most)
        threshold.max_pending_requests.CopyFrom(most)
        threshold.max_requests.CopyFrom(most)
        threshold.max_retries.CopyFrom(most)


def _override_host() -> pb.LoadBalancingPolicy:
    fallback = _policy(
        "envoy.load_balancing_policies.least_request",
        _packed("envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest", pb.LeastRequest()),
    )
    override = pb.OverrideHost(
        override_host_sources=[pb.OverrideHost.OverrideHostSource(header=DESTINATION)], fallback_policy=fallback
    )
    return _policy(
        "envoy.load_balancing_policies.override_host",
        _packed("envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost", override),
    )


def _policy(name: str, config: Any) -> pb.LoadBalancingPolicy:
    extension = pb.TypedExtensionConfig(name=name, typed_config=config)
    return pb.LoadBalancingPolicy(policies=[pb.LoadBalancingPolicy.Policy(typed_extension_config=extension)])


def _assignment(cluster: str, host: str, ports: Iterable[int]) -> pb.ClusterLoadAssignment:
    endpoints = [
        pb.LbEndpoint(
            endpoint=pb.Endpoint(address=pb.Address(socket_address=pb.SocketAddress(address=host, port_value=port)))
        )
        for port in ports
    ]
    return pb.ClusterLoadAssignment(cluster_name=cluster, endpoints=[pb.LocalityLbEndpoints(lb_endpoints=endpoints)])


def _packed(type_name: str, message: Message) -> Any:
    return Any(type_url=f"type.googleapis.com/{type_name}", value=message.SerializeToString())
