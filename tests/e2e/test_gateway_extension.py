"""The gateway extension's configuration in a real Envoy: the walk-through's pool as a route's backend.

Envoy Gateway's part is played by the test: it calls the hooks over gRPC with messages of the full API and gives the result
to Envoy as files.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import betterproto2
import grpc
import pytest
import yaml
from envoy_data_plane.envoy.service.discovery import v3 as discovery_v3
from envoy_data_plane.google.protobuf import Any as PackedAny

from tests.fixtures import envoy_gateway as eg
from tests.fixtures.dns import dns_server
from tests.fixtures.envoy.apps import picker_app
from tests.fixtures.envoy.backends import Backend
from tests.fixtures.envoy.http1 import Message, exchange
from warmroute.extproc.headers import DESTINATION
from warmroute.gateway_extension import gateway_extension_pb2 as pb
from warmroute.gateway_extension.hooks import Options
from warmroute.gateway_extension.server import SERVICE, GatewayExtension, ServerOptions
from warmroute.picker import EndpointPicker
from warmroute.standalone.child import Child
from warmroute.standalone.envoy import envoy_path
from warmroute_lab.demo.rounds import ROUND1, ROUND2
from warmroute_lab.simulator.options import SimulatorOptions
from warmroute_lab.simulator.server import SimulatorServer

PLAIN, PICKED = "default/gateway/http", "default/gateway/llm"
PICKER, PODS = "inference-gateway-ext-proc.default.svc", "vllm-qwen-pool-pods.default.svc"


HOSTS = ["127.0.0.1", "127.0.0.2"]


class Pod(Protocol):
    """A server in the place of an engine."""

    @property
    def port(self) -> int: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


def recording_pod(name: str, host: str, port: int) -> Backend:
    """A server that records what it receives; it has no metrics."""
    pod = Backend(name, host)
    pod.port = port
    return pod


def simulated_engine(name: str, host: str, port: int) -> SimulatorServer:
    """A simulated engine."""
    return SimulatorServer(SimulatorOptions(host=host, port=port, name=name, model="/model/qwen"))


@dataclass
class Gateway:
    """Everything that runs."""

    plain: str
    """Base URL of the listener without a picker."""
    picked: str
    """Base URL of the listener whose route's backend is the pool."""
    targets: Sequence[str]
    """``address:port`` of the pods."""
    pods: Sequence[Pod]
    picker: EndpointPicker


async def call(channel: grpc.aio.Channel, hook: str, request: Any, response_type: Any) -> Any:
    """One call as Envoy Gateway makes it."""
    method = channel.unary_unary(
        f"/{SERVICE}/{hook}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response_type.FromString,
    )
    return await method(request)


async def translated(directory: Path, options: Options, pool: bytes, plain_pod: str) -> pb.PostTranslateModifyResponse:
    """The walk-through's gateway after all hooks."""
    extension = GatewayExtension(ServerOptions("127.0.0.1", 0, 0, 0), options)
    await extension.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{extension.port}") as channel:
            resource = pb.ExtensionResource(unstructured_bytes=pool)
            route = await call(
                channel,
                "PostRouteModify",
                pb.PostRouteModifyRequest(
                    route=pb.Route.FromString(eg.encoded(eg.route(eg.POOL_ROUTE, eg.POOL_CLUSTER))),
                    post_route_context=pb.PostRouteContext(extension_resources=[resource]),
                ),
                pb.PostRouteModifyResponse,
            )
            cluster = await call(
                channel,
                "PostClusterModify",
                pb.PostClusterModifyRequest(
                    cluster=pb.Cluster.FromString(eg.encoded(eg.pool_cluster())),
                    post_cluster_context=pb.PostClusterContext(backend_extension_resources=[resource]),
                ),
                pb.PostClusterModifyResponse,
            )
            picked_routes = pb.RouteConfiguration.FromString(eg.encoded(eg.routes(PICKED)))
            picked_routes.virtual_hosts[0].routes.append(route.route)
            plain_routes = eg.routes(PLAIN, eg.route("plain", eg.PLAIN_CLUSTER))
            listeners = [
                pb.Listener.FromString(eg.encoded(eg.listener(name, route_file=str(directory / f"routes-{number}.pb"))))
                for number, name in enumerate((PLAIN, PICKED))
            ]
            return await call(
                channel,
                "PostTranslateModify",
                pb.PostTranslateModifyRequest(
                    clusters=[pb.Cluster.FromString(eg.encoded(eg.plain_cluster(plain_pod))), cluster.cluster],
                    listeners=listeners,
                    routes=[pb.RouteConfiguration.FromString(eg.encoded(plain_routes)), picked_routes],
                ),
                pb.PostTranslateModifyResponse,
            )
    finally:
        await extension.stop()


def write_resources(path: Path, type_name: str, messages: Sequence[Any]) -> None:
    """An xDS file of these messages."""
    resources = [
        PackedAny(type_url=f"type.googleapis.com/{type_name}", value=message.SerializeToString())
        for message in messages
    ]
    response: betterproto2.Message = discovery_v3.DiscoveryResponse(version_info="1", resources=resources)
    path.write_bytes(bytes(response))


def bootstrap(directory: Path, dns_port: int) -> dict[str, Any]:
    """Envoy's bootstrap: everything comes from the files in ``directory``, names from the DNS server."""

    def from_file(name: str) -> dict[str, Any]:
        return {"resource_api_version": "V3", "path_config_source": {"path": str(directory / name)}}

    return {
        "node": {"id": "gateway", "cluster": "gateway"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "dynamic_resources": {"lds_config": from_file("listeners.pb"), "cds_config": from_file("clusters.pb")},
        "typed_dns_resolver_config": {
            "name": "envoy.network.dns_resolver.cares",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
                "resolvers": [{"socket_address": {"protocol": "UDP", "address": "127.0.0.1", "port_value": dns_port}}],
                "dns_resolver_options": {"no_default_search_domain": True},
            },
        },
    }


@asynccontextmanager
async def running_envoy(directory: Path, configuration: dict[str, Any]) -> AsyncIterator[dict[str, str]]:
    """An Envoy with this bootstrap; the base URLs of its listeners by name."""
    file, admin_file = directory / "envoy.yaml", directory / "admin.txt"
    file.write_text(yaml.safe_dump(configuration))
    argv = [str(envoy_path()), "-c", str(file), "--admin-address-path", str(admin_file), "--concurrency", "1"]
    async with Child("Envoy", [*argv, "--use-dynamic-base-id", "-l", "warning"], directory / "envoy.log") as child:
        urls: dict[str, str] = {}

        async def listening() -> bool:
            if not admin_file.exists() or not (admin := admin_file.read_text()):
                return False
            async with (
                aiohttp.ClientSession(f"http://{admin}") as session,
                session.get("/listeners?format=json") as page,
            ):
                statuses = (await page.json(content_type=None)).get("listener_statuses", [])
            for status in statuses:
                socket = status["local_address"]["socket_address"]
                urls[status["name"]] = f"http://{socket['address']}:{socket['port_value']}"
            return len(urls) == 2

        await child.until(listening, "listening")
        yield urls


@asynccontextmanager
async def gateway(
    directory: Path,
    options: Options,
    *,
    new_pod: Callable[[str, str, int], Pod] = recording_pod,
    failure_mode: str = "FailClose",
    picker_runs: bool = True,
) -> AsyncIterator[Gateway]:
    """The walk-through's gateway with two pods, which have one port at two addresses, as pods of a cluster have."""
    async with AsyncExitStack() as stack:
        pods: list[Pod] = []
        for number in range(2):
            pod = new_pod(f"pod-{number}", f"127.0.0.{number + 1}", pods[0].port if pods else 0)
            await pod.start()
            stack.push_async_callback(pod.stop)
            pods.append(pod)
        targets = [f"{host}:{pods[0].port}" for host in HOSTS]
        picker = await stack.enter_async_context(
            picker_app(
                targets,
                directory,
                secure_serving=options.picker_tls,
            )
        )
        names = {PICKER: ["127.0.0.1"] if picker_runs else [], PODS: HOSTS}
        dns_port = await stack.enter_async_context(dns_server(names))
        reference = {
            "kind": "Service",
            "name": "inference-gateway-ext-proc",
            "portNumber": picker.server.grpc_port,
            "failureMode": failure_mode,
        }
        pool = eg.pool_v1alpha2(targetPortNumber=pods[0].port, extensionRef=reference)
        result = await translated(directory, options, pool, targets[0])
        for number, configuration in enumerate(result.routes):
            write_resources(
                directory / f"routes-{number}.pb", "envoy.config.route.v3.RouteConfiguration", [configuration]
            )
        write_resources(directory / "listeners.pb", "envoy.config.listener.v3.Listener", list(result.listeners))
        write_resources(directory / "clusters.pb", "envoy.config.cluster.v3.Cluster", list(result.clusters))
        urls = await stack.enter_async_context(running_envoy(directory, bootstrap(directory, dns_port)))
        yield Gateway(urls[PLAIN], urls[PICKED], targets, pods, picker)


FORMS = [
    pytest.param(Options(), id="destination header"),
    pytest.param(Options(pods_service="{pool}-pods", picker_tls=False), id="Service of the pods"),
]


def served_by(message: Message) -> str:
    return message.headers.get("x-backend") or message.headers["x-simulator-name"]


async def first_round(url: str) -> str:
    """Which pod served the first request, once the picker takes its 130 tokens to be computed (`--prefill-rate`)."""
    pod = served_by(await exchange(url, body=ROUND1))
    await asyncio.sleep(0.2)
    return pod


@pytest.mark.parametrize("options", FORMS)
async def test_the_walk_through_works_unchanged(tmp_path: Path, options: Options) -> None:
    async with gateway(tmp_path, options, new_pod=simulated_engine) as running:
        first = await exchange(running.picked, body=ROUND1)
        second = await exchange(running.picked, body=ROUND2)
        assert (first.status, second.status) == (200, 200)
        assert served_by(first) == served_by(second)
        (newest, oldest) = running.picker.decisions.newest_first()[:2]
        assert (oldest.reason, newest.reason) == ("cold", "warm")
        plain = await exchange(running.plain, body=ROUND1)
        assert plain.status == 200
        assert len(running.picker.decisions.newest_first()) == 2


@pytest.mark.parametrize("options", FORMS)
async def test_a_client_cannot_choose_the_endpoint(tmp_path: Path, options: Options) -> None:
    async with gateway(tmp_path, options) as running:
        chosen = await first_round(running.picked)
        other = running.targets[chosen == "pod-0"]
        answer = await exchange(running.picked, body=ROUND1, headers={DESTINATION: other})
        assert served_by(answer) == chosen


@pytest.mark.parametrize("options", FORMS)
async def test_bodies_of_five_megabytes_pass(tmp_path: Path, options: Options) -> None:
    text = "long " * (1 << 20)
    body = json.dumps({"model": "/model/qwen", "messages": [{"role": "user", "content": text}]}).encode()
    async with gateway(tmp_path, options) as running:
        answer = await exchange(running.picked, body=body)
        assert answer.status == 200
        pods = [pod for pod in running.pods if isinstance(pod, Backend)]
        (request,) = (request for pod in pods for request in pod.requests if "POST" in request.start)
        assert len(request.body) == len(body)


async def test_without_a_picker_a_closed_pool_answers_an_error(tmp_path: Path) -> None:
    async with gateway(tmp_path, Options(), picker_runs=False) as running:
        assert (await exchange(running.picked, body=ROUND1)).status >= 500
        assert (await exchange(running.plain, body=ROUND1)).status == 200


async def test_without_a_picker_an_open_pool_is_balanced_over_its_pods(tmp_path: Path) -> None:
    options = Options(pods_service="{pool}-pods")
    async with gateway(tmp_path, options, failure_mode="FailOpen", picker_runs=False) as running:
        answers = [await exchange(running.picked, body=ROUND1) for _ in range(20)]
        assert {answer.status for answer in answers} == {200}


@pytest.mark.parametrize(
    ("options", "status"),
    [
        pytest.param(Options(), 503, id="destination header"),
        pytest.param(Options(pods_service="{pool}-pods", picker_tls=False), 200, id="Service of the pods"),
    ],
)
async def test_a_request_whose_pod_has_died_goes_to_another_pod_that_envoy_knows(
    tmp_path: Path, options: Options, status: int
) -> None:
    async with gateway(tmp_path, options) as running:
        chosen = await first_round(running.picked)
        (pod,) = (pod for pod in running.pods if isinstance(pod, Backend) and pod.name == chosen)
        await pod.stop()
        answer = await exchange(running.picked, body=ROUND1)
        assert answer.status == status
        if status == 200:
            assert served_by(answer) != chosen
