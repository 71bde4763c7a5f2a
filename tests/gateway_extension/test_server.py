"""The extension's server over gRPC: calls, two pools in one rule, faults of a hook, TLS, health and metrics."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.fixtures import envoy_gateway as eg
from warmroute.errors import ConfigurationError
from warmroute.extproc import tls
from warmroute.gateway_extension import gateway_extension_pb2 as pb
from warmroute.gateway_extension import hooks
from warmroute.gateway_extension.hooks import Options
from warmroute.gateway_extension.server import SERVICE, GatewayExtension, ServerOptions

pytestmark = pytest.mark.integration

ROUTE = pb.Route.FromString(eg.encoded(eg.route(eg.POOL_ROUTE, eg.POOL_CLUSTER)))
CLUSTER = pb.Cluster.FromString(eg.encoded(eg.pool_cluster()))


@asynccontextmanager
async def extension(cert_path: Path | None = None) -> AsyncIterator[GatewayExtension]:
    """A running extension on free ports of 127.0.0.1."""
    running = GatewayExtension(ServerOptions("127.0.0.1", 0, 0, 0, cert_path), Options())
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


async def call(channel: grpc.aio.Channel, hook: str, request: Any, response_type: Any) -> Any:
    method = channel.unary_unary(
        f"/{SERVICE}/{hook}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response_type.FromString,
    )
    return await method(request, wait_for_ready=True, timeout=60)


def resources(*pools: bytes) -> list[pb.ExtensionResource]:
    return [pb.ExtensionResource(unstructured_bytes=pool) for pool in pools]


def route_request(*pools: bytes) -> pb.PostRouteModifyRequest:
    context = pb.PostRouteContext(extension_resources=resources(*pools))
    return pb.PostRouteModifyRequest(route=ROUTE, post_route_context=context)


def cluster_request(*pools: bytes) -> pb.PostClusterModifyRequest:
    context = pb.PostClusterContext(backend_extension_resources=resources(*pools))
    return pb.PostClusterModifyRequest(cluster=CLUSTER, post_cluster_context=context)


async def calls_counted(running: GatewayExtension, host: str = "127.0.0.1") -> dict[tuple[str, str], float]:
    """``warmroute_gateway_extension_calls_total`` by hook and outcome, from the metrics page."""
    url = f"http://{host}:{running.metrics_port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as page:
        text = await page.text()
    counted = {}
    for line in text.splitlines():
        if line.startswith("warmroute_gateway_extension_calls_total{"):
            labels, value = line.partition("{")[2].split("} ")
            by_name = dict(label.split("=") for label in labels.split(","))
            counted[by_name["hook"].strip('"'), by_name["outcome"].strip('"')] = float(value)
    return counted


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
async def test_every_port_takes_ipv6_and_ipv4_if_no_host_is_named() -> None:
    running = GatewayExtension(ServerOptions("", 0, 0, 0), Options())
    await running.start()
    try:
        for host in ("127.0.0.1", "[::1]"):
            for port in (running.port, running.health_port):
                async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
                    check = health_pb2_grpc.HealthStub(channel).Check
                    await check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=60)
            assert await calls_counted(running, host) == {}
    finally:
        await running.stop()


async def test_a_rule_with_two_pools_is_refused_and_counted() -> None:
    async with extension() as running, grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        request = route_request(eg.pool_v1alpha2(), eg.pool_v1().replace(b"vllm-qwen-pool", b"other"))
        answer = await call(channel, "PostRouteModify", request, pb.PostRouteModifyResponse)
        assert answer.route.direct_response.status == 500
        assert "default/vllm-qwen-pool, default/other" in answer.route.direct_response.body.inline_string
        assert await calls_counted(running) == {("PostRouteModify", "rejected"): 1}


async def test_a_pool_that_cannot_be_used_is_refused_with_its_name() -> None:
    broken = eg.pool_v1alpha2(extensionRef={"name": "x", "kind": "Deployment"})
    async with extension() as running, grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        answer = await call(channel, "PostRouteModify", route_request(broken), pb.PostRouteModifyResponse)
        assert "default/vllm-qwen-pool" in answer.route.direct_response.body.inline_string
        cluster = await call(channel, "PostClusterModify", cluster_request(broken), pb.PostClusterModifyResponse)
        assert cluster.cluster == CLUSTER
        assert set(await calls_counted(running)) == {("PostRouteModify", "rejected"), ("PostClusterModify", "rejected")}


async def test_a_fault_of_a_hook_changes_nothing_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def half_done(message: Any, *_: Any) -> None:
        message.Clear()
        raise RuntimeError("a bug")

    for name in ("modify_route", "modify_cluster", "modify_translation"):
        monkeypatch.setattr(hooks, name, half_done)
    translation = pb.PostTranslateModifyRequest(clusters=[CLUSTER], routes=[pb.RouteConfiguration(name="kept")])
    async with extension() as running, grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        pool = eg.pool_v1alpha2()
        route = await call(channel, "PostRouteModify", route_request(pool), pb.PostRouteModifyResponse)
        cluster = await call(channel, "PostClusterModify", cluster_request(pool), pb.PostClusterModifyResponse)
        everything = await call(channel, "PostTranslateModify", translation, pb.PostTranslateModifyResponse)
        assert (route.route, cluster.cluster) == (ROUTE, CLUSTER)
        assert everything == pb.PostTranslateModifyResponse(clusters=translation.clusters, routes=translation.routes)
        hooks_called = ("PostRouteModify", "PostClusterModify", "PostTranslateModify")
        assert await calls_counted(running) == {(hook, "failed"): 1 for hook in hooks_called}


async def test_tls_with_a_certificate(tmp_path: Path) -> None:
    key, certificate = tls.new_pair("localhost")
    (tmp_path / "tls.key").write_bytes(key)
    (tmp_path / "tls.crt").write_bytes(certificate)
    credentials = grpc.ssl_channel_credentials(certificate)
    async with extension(tmp_path) as running:
        options = [("grpc.ssl_target_name_override", "localhost")]
        async with grpc.aio.secure_channel(f"127.0.0.1:{running.port}", credentials, options) as channel:
            answer = await call(
                channel, "PostRouteModify", route_request(eg.pool_v1alpha2()), pb.PostRouteModifyResponse
            )
        assert hooks.ROUTE_METADATA in answer.route.metadata.filter_metadata
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(f"/{SERVICE}/PostRouteModify", bytes, bytes)(b"", timeout=60)


async def test_health_is_answered_on_a_port_of_its_own() -> None:
    async with extension() as running, grpc.aio.insecure_channel(f"127.0.0.1:{running.health_port}") as channel:
        for service in ("", "liveness", "readiness"):
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=60
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_port_that_is_taken_is_a_configuration_error() -> None:
    async with extension() as running:
        second = GatewayExtension(ServerOptions("127.0.0.1", running.port, 0, 0), Options())
        with pytest.raises(ConfigurationError, match=f"port {running.port} \\(--port\\)"):
            await second.start()
        await second.stop()
