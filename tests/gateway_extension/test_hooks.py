"""The hooks on messages of Envoy's full API: what they change, and that everything else survives."""

from __future__ import annotations

from typing import Any

import pytest
from envoy_data_plane.envoy.config.cluster import v3 as cluster_v3
from envoy_data_plane.envoy.config.listener import v3 as listener_v3
from envoy_data_plane.envoy.config.route import v3 as route_v3
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm_v3
from envoy_data_plane.google.protobuf import Any as PackedAny

from tests.fixtures import envoy_gateway as eg
from warmroute.errors import ConfigurationError
from warmroute.extproc import envoy_policy
from warmroute.extproc.headers import CONTROL, DESTINATION
from warmroute.gateway_extension import gateway_extension_pb2 as pb
from warmroute.gateway_extension import hooks
from warmroute.gateway_extension.hooks import Options
from warmroute.gateway_extension.picked_pool import PickedPool, picked_pools

X_VERSION = "inference.networking.x-k8s.io/v1alpha2"
FILTER = "envoy.filters.http.ext_proc/inferencepool/inference.networking.x-k8s.io/default/vllm-qwen-pool"
PICKER_CLUSTER = "inferencepool-picker/inference.networking.x-k8s.io/default/vllm-qwen-pool"


def test_a_v1alpha2_pool_names_its_picker_by_extension_ref() -> None:
    assert picked_pools([eg.pool_v1alpha2()]) == [
        PickedPool(X_VERSION, "default", "vllm-qwen-pool", (8000,), "inference-gateway-ext-proc", 9002, fail_open=False)
    ]


def test_a_v1_pool_names_its_picker_by_endpoint_picker_ref() -> None:
    (pool,) = picked_pools([eg.pool_v1()])
    assert (pool.picker_host, pool.picker_port, pool.fail_open) == ("picker.default.svc", 9102, True)


def test_other_resources_are_no_pools_and_a_pool_named_twice_is_one() -> None:
    other = b'{"kind": "Backend", "metadata": {"name": "x"}}'
    assert len(picked_pools([other, eg.pool_v1alpha2(), eg.pool_v1alpha2()])) == 1


@pytest.mark.parametrize(
    "resource",
    [
        eg.pool_v1alpha2(extensionRef=None),
        eg.pool_v1alpha2(extensionRef={"name": "x", "kind": "Deployment"}),
        eg.pool_v1(endpointPickerRef={}),
        eg.pool_v1(endpointPickerRef={"name": ""}),
        eg.pool_v1(endpointPickerRef={"name": {"a": 1}}),
        eg.pool_v1(endpointPickerRef={"name": "x", "port": {"number": -1}}),
        eg.pool_v1(endpointPickerRef={"name": "x", "port": {"number": 70_000}}),
        eg.pool_v1alpha2(extensionRef={"name": "x", "portNumber": "9002x"}),
        eg.pool_v1alpha2(extensionRef={"name": "x", "portNumber": 10**12}),
        eg.pool_v1(targetPorts=[]),
        eg.pool_v1(targetPorts=[{"number": 70_000}]),
    ],
)
def test_a_pool_that_cannot_be_used_is_named(resource: bytes) -> None:
    with pytest.raises(ValueError, match="default/vllm-qwen-pool"):
        picked_pools([resource])


@pytest.mark.parametrize("resource", [b"", b"null", b"[]", b"7", b"{", b'{"kind":"InferencePool","metadata":"x"}'])
def test_what_is_no_object_is_refused(resource: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        picked_pools([eg.pool_v1alpha2(), resource])


def test_pools_of_one_name_in_both_api_groups_are_two() -> None:
    both = picked_pools([eg.pool_v1(), eg.pool_v1alpha2()])
    assert [pool.picker for pool in both] == ["picker", "inference-gateway-ext-proc"]
    routes = []
    for number, pool in enumerate(both):
        route = pb.Route.FromString(eg.encoded(eg.route(f"route-{number}", f"cluster-{number}")))
        hooks.modify_route(route, [pool], Options())
        routes.append(route_v3.Route().parse(route.SerializeToString()))
    request = pb.PostTranslateModifyRequest(
        listeners=[pb.Listener.FromString(eg.encoded(eg.listener("default/gw/llm")))],
        routes=[pb.RouteConfiguration.FromString(eg.encoded(eg.routes("default/gw/llm", *routes)))],
    )
    response = hooks.modify_translation(request, Options())
    assert len(response.clusters) == 2
    filters = [one.name for one in manager_of(response.listeners[0]).http_filters]
    assert [*routes[0].typed_per_filter_config, *routes[1].typed_per_filter_config] == filters[:2]


@pytest.mark.parametrize(
    "changes", [{"pods_service": "{name}-pods"}, {"pods_service": "Pods_"}, {"request_body_limit": 2**32}]
)
def test_options_that_no_envoy_takes_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Options(**changes)


def test_a_pool_survives_the_way_through_route_metadata() -> None:
    (pool,) = picked_pools([eg.pool_v1()])
    assert PickedPool.of_json(pool.to_json()) == pool


def modified_route(pools: list[PickedPool], options: Options = Options()) -> route_v3.Route:  # noqa: B008
    route = pb.Route.FromString(eg.encoded(eg.route(eg.POOL_ROUTE, eg.POOL_CLUSTER)))
    hooks.modify_route(route, pools, options)
    return route_v3.Route().parse(route.SerializeToString())


def test_a_route_gets_the_filter_and_keeps_everything_else() -> None:
    before = eg.route(eg.POOL_ROUTE, eg.POOL_CLUSTER)
    after = modified_route(picked_pools([eg.pool_v1alpha2()]), Options(request_body_limit=12345))
    assert list(after.typed_per_filter_config) == [FILTER]
    assert after.request_body_buffer_limit == 12345
    assert after.route is not None
    assert before.route is not None
    assert after.route.host_rewrite_literal is None
    assert after.route.cluster == eg.POOL_CLUSTER
    assert after.route.timeout == before.route.timeout
    assert after.route.upgrade_configs == before.route.upgrade_configs
    assert (after.match, after.stat_prefix) == (before.match, before.stat_prefix)
    assert after.metadata is not None
    assert set(after.metadata.filter_metadata) == {"envoy-gateway", hooks.ROUTE_METADATA}


def test_a_route_retries_on_other_pods_where_envoy_knows_them() -> None:
    pools = picked_pools([eg.pool_v1alpha2()])
    without, with_pods = (modified_route(pools, Options(pods_service=name)).route for name in ("", "{pool}-pods"))
    assert without is not None
    assert with_pods is not None
    assert without.retry_policy is None
    assert with_pods.retry_policy is not None
    assert (with_pods.retry_policy.retry_on, with_pods.retry_policy.num_retries) == (envoy_policy.ENGINE_RETRY_ON, 2)
    assert [predicate.name for predicate in with_pods.retry_policy.retry_host_predicate] == [
        envoy_policy.PREVIOUS_HOSTS
    ]


def test_a_routes_own_retry_policy_stays() -> None:
    own = route_v3.RetryPolicy(retry_on="5xx", num_retries=7, retriable_status_codes=[503])
    before = eg.route(eg.POOL_ROUTE, eg.POOL_CLUSTER)
    assert before.route is not None
    before.route.retry_policy = own
    route = pb.Route.FromString(eg.encoded(before))
    hooks.modify_route(route, picked_pools([eg.pool_v1alpha2()]), Options(pods_service="{pool}-pods"))
    after = route_v3.Route().parse(route.SerializeToString()).route
    assert after is not None
    assert after.retry_policy == own


def test_a_route_without_a_pool_stays_as_it_is() -> None:
    assert modified_route([]) == eg.route(eg.POOL_ROUTE, eg.POOL_CLUSTER)


def test_a_rule_with_two_pools_answers_with_an_error_that_names_them() -> None:
    (one,) = picked_pools([eg.pool_v1alpha2()])
    two = PickedPool(X_VERSION, "default", "other", (8000,), "picker", 9002, fail_open=False)
    route = modified_route([one, two])
    assert route.direct_response is not None
    assert route.direct_response.status == 500
    assert route.direct_response.body is not None
    assert "default/vllm-qwen-pool, default/other" in str(route.direct_response.body.inline_string)


def test_a_reason_is_no_longer_than_envoy_takes() -> None:
    names = [f"é{number:0252}" for number in range(16)]
    route = modified_route([PickedPool(X_VERSION, "default", n, (8000,), "p", 9002, fail_open=False) for n in names])
    assert route.direct_response is not None
    assert route.direct_response.body is not None
    assert 4000 < len(str(route.direct_response.body.inline_string).encode()) <= 4096


def modified_cluster(options: Options, pools: list[PickedPool] | None = None) -> cluster_v3.Cluster:
    cluster = pb.Cluster.FromString(eg.encoded(eg.pool_cluster()))
    hooks.modify_cluster(cluster, picked_pools([eg.pool_v1alpha2()]) if pools is None else pools, options)
    return cluster_v3.Cluster().parse(cluster.SerializeToString())


def test_a_cluster_obeys_the_destination_header_and_keeps_the_rest() -> None:
    before, after = eg.pool_cluster(), modified_cluster(Options())
    assert after.type is cluster_v3.ClusterDiscoveryType.ORIGINAL_DST
    assert after.lb_policy is cluster_v3.ClusterLbPolicy.CLUSTER_PROVIDED
    assert after.original_dst_lb_config == cluster_v3.ClusterOriginalDstLbConfig(
        use_http_header=True, http_header_name=DESTINATION
    )
    assert after.eds_cluster_config is None
    assert after.circuit_breakers is not None
    (threshold,) = after.circuit_breakers.thresholds
    assert (threshold.max_requests, threshold.max_retries) == (envoy_policy.MAX_REQUESTS, envoy_policy.MAX_REQUESTS)
    assert (after.name, after.connect_timeout) == (before.name, before.connect_timeout)
    assert after.per_connection_buffer_limit_bytes == 32768
    assert after.ignore_health_on_host_removal


def test_a_cluster_with_a_service_for_its_pods_balances_over_them() -> None:
    after = modified_cluster(Options(pods_service="{pool}-pods"))
    assert after.type is cluster_v3.ClusterDiscoveryType.STRICT_DNS
    assert after.load_assignment is not None
    (endpoint,) = after.load_assignment.endpoints[0].lb_endpoints
    assert endpoint.endpoint is not None
    assert endpoint.endpoint.address is not None
    socket = endpoint.endpoint.address.socket_address
    assert socket is not None
    assert (socket.address, socket.port_value) == ("vllm-qwen-pool-pods.default.svc", 8000)
    assert after.load_balancing_policy is not None
    assert after.original_dst_lb_config is None


def test_a_cluster_without_a_pool_stays_as_it_is() -> None:
    assert modified_cluster(Options(), pools=[]) == eg.pool_cluster()


def translation(options: Options = Options()) -> pb.PostTranslateModifyResponse:  # noqa: B008
    pooled = pb.Route.FromString(eg.encoded(eg.route(eg.POOL_ROUTE, eg.POOL_CLUSTER)))
    hooks.modify_route(pooled, picked_pools([eg.pool_v1alpha2()]), options)
    request = pb.PostTranslateModifyRequest(
        clusters=[
            pb.Cluster.FromString(eg.encoded(eg.plain_cluster("10.0.0.1:8000"))),
            pb.Cluster.FromString(eg.encoded(eg.pool_cluster())),
        ],
        secrets=[pb.Secret.FromString(b"\x0a\x04cert")],
        listeners=[
            pb.Listener.FromString(eg.encoded(eg.listener(name))) for name in ("default/gw/http", "default/gw/llm")
        ],
        routes=[
            pb.RouteConfiguration.FromString(
                eg.encoded(eg.routes("default/gw/http", eg.route("plain", eg.PLAIN_CLUSTER)))
            ),
            pb.RouteConfiguration.FromString(
                eg.encoded(eg.routes("default/gw/llm", route_v3.Route().parse(pooled.SerializeToString())))
            ),
        ],
    )
    received = pb.PostTranslateModifyRequest.FromString(request.SerializeToString())
    return hooks.modify_translation(received, options)


def manager_of(listener: pb.Listener) -> hcm_v3.HttpConnectionManager:
    full = listener_v3.Listener().parse(listener.SerializeToString())
    assert full.default_filter_chain is not None
    packed = full.default_filter_chain.filters[0].typed_config
    assert packed is not None
    return hcm_v3.HttpConnectionManager().parse(packed.value)


def test_only_the_listener_with_a_pools_route_gets_its_filter() -> None:
    plain, llm = translation().listeners
    assert listener_v3.Listener().parse(plain.SerializeToString()) == eg.listener("default/gw/http")
    manager = manager_of(llm)
    assert [(one.name, one.disabled) for one in manager.http_filters] == [
        (FILTER, True),
        ("envoy.filters.http.router", False),
    ]
    assert manager.normalize_path
    assert manager.use_remote_address
    (mutation,) = manager.early_header_mutation_extensions
    assert mutation.typed_config is not None
    removed = pb.EarlyHeaderMutation.FromString(mutation.typed_config.value)
    assert [one.remove for one in removed.mutations] == list(CONTROL)


def test_the_pickers_cluster_is_added_once_and_everything_else_comes_back() -> None:
    response = translation()
    assert [cluster.name for cluster in response.clusters] == [
        eg.PLAIN_CLUSTER,
        eg.POOL_CLUSTER,
        PICKER_CLUSTER,
    ]
    assert response.clusters[0].SerializeToString() == eg.encoded(eg.plain_cluster("10.0.0.1:8000"))
    assert [secret.SerializeToString() for secret in response.secrets] == [b"\x0a\x04cert"]
    assert len(response.routes) == 2
    picker = cluster_v3.Cluster().parse(response.clusters[2].SerializeToString())
    assert picker.type is cluster_v3.ClusterDiscoveryType.STRICT_DNS
    assert picker.transport_socket is not None


def test_a_second_pass_over_the_result_changes_nothing() -> None:
    first = translation()
    again = pb.PostTranslateModifyRequest(
        clusters=first.clusters, secrets=first.secrets, listeners=first.listeners, routes=first.routes
    )
    second = hooks.modify_translation(again, Options())
    assert second.SerializeToString(deterministic=True) == first.SerializeToString(deterministic=True)


@pytest.mark.parametrize("raised", [False, True])
def test_the_listeners_buffer_is_raised_for_old_envoys_only(raised: bool) -> None:
    plain, llm = translation(Options(request_body_limit=1 << 20, listener_body_limit=raised)).listeners
    assert plain.per_connection_buffer_limit_bytes.value == 32768
    assert llm.per_connection_buffer_limit_bytes.value == (1 << 20 if raised else 32768)


def test_the_gateway_of_each_pool_is_known() -> None:
    pools = picked_pools([eg.pool_v1alpha2()])
    assert hooks.pools_by_gateway(translation().routes) == {hooks.Gateway("default", "gw"): set(pools)}


# ---------------------------------------------------------------- beside Envoy AI Gateway


AI_FILTER = "envoy.filters.http.ext_proc/endpointpicker/vllm-qwen-pool_default_ext_proc"


def ai_gateway_route() -> route_v3.Route:
    """A route of a v1 pool after Envoy AI Gateway's hook."""
    route = eg.route("httproute/default/ai/rule/0/match/0/*", "httproute/default/ai/rule/0")
    assert route.metadata is not None
    mark = eg.betterproto2_struct({hooks.AI_GATEWAY_POOL: "default/vllm-qwen-pool/picker/9002/duplex/false"})
    route.metadata.filter_metadata[hooks.AI_GATEWAY_METADATA] = mark
    return route


def ai_gateway_cluster() -> cluster_v3.Cluster:
    """The cluster of that route after Envoy AI Gateway's hook."""
    return cluster_v3.Cluster(
        name="httproute/default/ai/rule/0",
        type=cluster_v3.ClusterDiscoveryType.ORIGINAL_DST,
        lb_policy=cluster_v3.ClusterLbPolicy.CLUSTER_PROVIDED,
        original_dst_lb_config=cluster_v3.ClusterOriginalDstLbConfig(
            use_http_header=True, http_header_name=DESTINATION
        ),
    )


def ai_gateway_listener(name: str) -> listener_v3.Listener:
    """A listener with Envoy AI Gateway's filter for the pool, enabled."""
    listener = eg.listener(name)
    assert listener.default_filter_chain is not None
    (network_filter,) = listener.default_filter_chain.filters
    assert network_filter.typed_config is not None
    manager = hcm_v3.HttpConnectionManager().parse(network_filter.typed_config.value)
    manager.http_filters.insert(0, hcm_v3.HttpFilter(name=AI_FILTER))
    network_filter.typed_config = PackedAny.pack(manager)
    return listener


both_forms = pytest.mark.parametrize("options", [Options(), Options(pods_service="{pool}-pods")], ids=["dst", "dns"])


@both_forms
def test_what_the_ai_gateway_serves_stays_as_it_is(options: Options) -> None:
    pools = picked_pools([eg.pool_v1()])
    route = pb.Route.FromString(eg.encoded(ai_gateway_route()))
    assert hooks.modify_route(route, pools, options) == ""
    assert route_v3.Route().parse(route.SerializeToString()) == ai_gateway_route()
    cluster = pb.Cluster.FromString(eg.encoded(ai_gateway_cluster()))
    hooks.modify_cluster(cluster, pools, options)
    assert cluster_v3.Cluster().parse(cluster.SerializeToString()) == ai_gateway_cluster()


def test_a_route_of_the_ai_gateway_without_a_pool_of_its_is_served() -> None:
    """Its other marks say nothing about a pool."""
    before = eg.route(eg.POOL_ROUTE, eg.POOL_CLUSTER)
    assert before.metadata is not None
    before.metadata.filter_metadata[hooks.AI_GATEWAY_METADATA] = eg.betterproto2_struct({"backend_name": "x"})
    route = pb.Route.FromString(eg.encoded(before))
    hooks.modify_route(route, picked_pools([eg.pool_v1alpha2()]), Options())
    assert list(route.typed_per_filter_config) == [FILTER]


@both_forms
def test_one_listener_serves_a_pool_of_ours_and_one_of_the_ai_gateway(options: Options) -> None:
    ours = pb.Route.FromString(eg.encoded(eg.route(eg.POOL_ROUTE, eg.POOL_CLUSTER)))
    theirs = pb.Route.FromString(eg.encoded(ai_gateway_route()))
    hooks.modify_route(ours, picked_pools([eg.pool_v1alpha2()]), options)
    hooks.modify_route(theirs, picked_pools([eg.pool_v1()]), options)
    configuration = pb.RouteConfiguration.FromString(eg.encoded(eg.routes("default/gw/llm")))
    configuration.virtual_hosts[0].routes.extend([ours, theirs])
    request = pb.PostTranslateModifyRequest(
        clusters=[pb.Cluster.FromString(eg.encoded(ai_gateway_cluster()))],
        listeners=[pb.Listener.FromString(eg.encoded(ai_gateway_listener("default/gw/llm")))],
        routes=[configuration],
    )
    response = hooks.modify_translation(request, options)
    filters = manager_of(response.listeners[0]).http_filters
    assert [(one.name, one.disabled) for one in filters] == [
        (AI_FILTER, False),
        (FILTER, True),
        ("envoy.filters.http.router", False),
    ]
    assert [cluster.name for cluster in response.clusters] == [
        "httproute/default/ai/rule/0",
        PICKER_CLUSTER,
    ]
    assert route_v3.Route().parse(response.routes[0].virtual_hosts[0].routes[1].SerializeToString()) == (
        ai_gateway_route()
    )


@both_forms
def test_a_second_call_for_a_route_or_a_cluster_changes_nothing(options: Options) -> None:
    pools = picked_pools([eg.pool_v1alpha2()])
    route = pb.Route.FromString(eg.encoded(eg.route(eg.POOL_ROUTE, eg.POOL_CLUSTER)))
    cluster = pb.Cluster.FromString(eg.encoded(eg.pool_cluster()))
    results = []
    for _ in range(2):
        hooks.modify_route(route, pools, options)
        hooks.modify_cluster(cluster, pools, options)
        results.append((route.SerializeToString(deterministic=True), cluster.SerializeToString(deterministic=True)))
    assert results[0] == results[1]
