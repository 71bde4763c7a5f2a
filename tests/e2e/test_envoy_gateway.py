"""The walk-through's documents, unchanged, on a real kube-apiserver and a real Envoy Gateway (`make e2e-gateway`).

Envoy Gateway runs here with its Kubernetes provider and makes the Deployment of its Envoy; the test takes Envoy's
command line from there, in the place of a kubelet. Pods are objects; their engines are simulated, on loopback addresses. The
picker and the extension have the tokens of their service accounts, so their rights are those of the manifests. The plain
route of port 8080 is not asked: an EndpointSlice may not have loopback addresses.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import DEPLOY, PICKER, SAMPLES
from tests.fixtures.dns import dns_server
from tests.fixtures.envoy.http1 import Message, exchange
from tests.fixtures.kubernetes.control_plane import ADMIN, ControlPlane, binary, control_plane
from tests.fixtures.own_network import in_own_network
from warmroute.standalone.child import Child
from warmroute.standalone.envoy import envoy_path
from warmroute.standalone.picker_process import PickerPorts, start_picker
from warmroute.standalone.ports import free_port
from warmroute_lab.demo.rounds import ROUND1, ROUND2
from warmroute_lab.simulator.options import SimulatorOptions
from warmroute_lab.simulator.server import SimulatorServer

NAMESPACE = "envoy-gateway-system"
OF_THE_GATEWAY = ("-n", NAMESPACE, "-l", "gateway.envoyproxy.io/owning-gateway-name=qwen-inference-gateway")
"""Arguments of kubectl for what Envoy Gateway makes for the walk-through's Gateway."""
EXTENSION_ACCOUNT, PICKER_ACCOUNT = f"{NAMESPACE}/warmroute-gateway-extension", f"{NAMESPACE}/{PICKER}"
ENGINES = 3
AI_GATEWAY_NAMESPACE = "envoy-ai-gateway-system"
AI_GATEWAY_WEBHOOK = {
    "apiVersion": "admissionregistration.k8s.io/v1",
    "kind": "MutatingWebhookConfiguration",
    "metadata": {"name": f"envoy-ai-gateway-gateway-pod-mutator.{AI_GATEWAY_NAMESPACE}"},
    "webhooks": [
        {
            "name": "unused.example.com",
            "clientConfig": {"url": "https://127.0.0.1:1/mutate"},
            "rules": [
                {"apiGroups": ["none.example.com"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["x"]}
            ],
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        }
    ],
}
"""Envoy AI Gateway's controller does not start without it. It adds a container to Envoy's pods, which do not exist here."""
V1_POOL = {
    "apiVersion": "inference.networking.k8s.io/v1",
    "kind": "InferencePool",
    "metadata": {"name": "vllm-qwen-v1", "namespace": "default"},
    "spec": {
        "selector": {"matchLabels": {"app": "qwen"}},
        "targetPorts": [{"number": 8000}],
        "endpointPickerRef": {"name": "inference-gateway-ext-proc", "port": {"number": 9002}},
    },
}
V1_HEADER = {"x-pool": "v1"}
V1_ROUTE = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "HTTPRoute",
    "metadata": {"name": "qwen-v1", "namespace": "default"},
    "spec": {
        "parentRefs": [{"name": "qwen-inference-gateway", "sectionName": "llm-gw"}],
        "rules": [
            {
                "matches": [{"headers": [{"name": "x-pool", "value": "v1"}]}],
                "filters": [
                    {
                        "type": "ResponseHeaderModifier",
                        "responseHeaderModifier": {"add": [{"name": "x-pool", "value": "v1"}]},
                    }
                ],
                "backendRefs": [
                    {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "vllm-qwen-v1"}
                ],
            }
        ],
    },
}
"""A second pool over the pods, in v1, with a route on the listener of the walk-through's pool. The first extension serves
it."""
IN_A_ROOT_WITH_CERTS = """
mount -t tmpfs tmpfs "$1"
for entry in /*; do
  if [ -L "$entry" ]; then
    cp -a "$entry" "$1/"
  elif [ -d "$entry" ]; then
    mkdir "$1$entry"
    mount --rbind "$entry" "$1$entry"
  fi
done
mkdir "$1/certs"
cp "$2"/* "$1/certs/"
root=$1
shift 2
exec chroot "$root" "$@"
"""
"""Shell script that runs a command in a root directory like this machine's, with certificates in /certs: an Envoy Gateway
that reads a Kubernetes API looks for them there. It needs a mount namespace of its own."""
GATEWAY_LIMIT = 120.0
"""Seconds for Envoy Gateway to translate and for Envoy to start."""


@dataclass
class Walk:
    """Everything that runs."""

    cluster: ControlPlane
    picked: str
    """Base URL of the walk-through's port 8081."""
    picker_log: Path
    envoy_gateway: Child


def gateway_configuration(values_file: str, extension_ports: list[int]) -> dict[str, Any]:
    """Values of deploy/gateway-extension for an Envoy Gateway that runs here, with its extensions on these ports."""
    values = yaml.safe_load((DEPLOY / "gateway-extension" / values_file).read_text())
    configuration: dict[str, Any] = values["config"]["envoyGateway"]
    managers = configuration.get("extensionManagers") or [configuration["extensionManager"]]
    for manager, port in zip(managers, extension_ports, strict=True):
        manager["service"] = {"ip": {"address": "127.0.0.1", "port": port}}
    kubernetes = {"leaderElection": {"disable": True}, "proxyTopologyInjector": {"disable": True}}
    return {
        **configuration,
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "EnvoyGateway",
        "extensionApis": {**configuration.get("extensionApis", {}), "enableEnvoyPatchPolicy": True},
        "provider": {"type": "Kubernetes", "kubernetes": kubernetes},
    }


async def write_secret(cluster: ControlPlane, name: str, directory: Path) -> None:
    """The Secret's files in ``directory``, as a mounted volume has them."""
    secret = json.loads(await cluster.kubectl("get", "secret", name, "-n", NAMESPACE, "-o", "json"))
    for file, content in secret["data"].items():
        (directory / file).write_bytes(base64.b64decode(content))


async def envoy_of_the_gateway(cluster: ControlPlane, directory: Path, dns_port: int) -> Child:
    """Envoy as the Deployment that Envoy Gateway made for the walk-through's Gateway would run it."""
    (deployment,) = json.loads(await cluster.kubectl("get", "deployment", *OF_THE_GATEWAY, "-o", "json"))["items"]
    (files,) = json.loads(await cluster.kubectl("get", "configmap", *OF_THE_GATEWAY, "-o", "json"))["items"]
    certificates = directory / "envoy-certs"
    await write_secret(cluster, "envoy", certificates)
    for name, content in files["data"].items():
        (directory / name).write_text(content.replace("/certs/", f"{certificates}/"))
    containers = deployment["spec"]["template"]["spec"]["containers"]
    (container,) = [container for container in containers if container["name"] == "envoy"]
    arguments = [one.replace("$(ENVOY_POD_NAME)", "envoy-0") for one in container["args"]]
    at = next(i for i, one in enumerate(arguments) if one.startswith("--config-yaml"))
    option, _, joined = arguments[at].partition(" ")
    text = joined or arguments[at + 1]
    bootstrap = yaml.safe_load(text.replace("/sds/", f"{directory}/").replace("$(ENVOY_SERVICE_ZONE)", "zone"))
    bootstrap["admin"]["address"]["socket_address"]["port_value"] = 0
    bootstrap["admin"].pop("access_log", None)
    bootstrap["typed_dns_resolver_config"] = {
        "name": "envoy.network.dns_resolver.cares",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [{"socket_address": {"protocol": "UDP", "address": "127.0.0.1", "port_value": dns_port}}],
            "dns_resolver_options": {"no_default_search_domain": True},
        },
    }
    for listener in bootstrap["static_resources"].get("listeners", []):
        listener["address"]["socket_address"]["port_value"] = 0
    arguments[at : at + (1 if joined else 2)] = [option, yaml.safe_dump(bootstrap)]
    return Child("Envoy", [str(envoy_path()), *arguments, "--use-dynamic-base-id"], directory / "envoy.log")


def listener_ports(ports: dict[str, int]) -> dict[str, Any]:
    """Envoy Gateway itself takes port 8081 of the host, so the listeners get free ports."""
    return {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "EnvoyPatchPolicy",
        "metadata": {"name": "ports", "namespace": "default"},
        "spec": {
            "targetRef": {
                "group": "gateway.networking.k8s.io",
                "kind": "Gateway",
                "name": "qwen-inference-gateway",
            },
            "type": "JSONPatch",
            "jsonPatches": [
                {
                    "type": "type.googleapis.com/envoy.config.listener.v3.Listener",
                    "name": f"default/qwen-inference-gateway/{section}",
                    "operation": {"op": "replace", "path": "/address/socket_address/port_value", "value": port},
                }
                for section, port in ports.items()
            ],
        },
    }


def pod(engine: SimulatorServer) -> dict[str, Any]:
    """A running pod of the walk-through's Deployment."""
    conditions = [{"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady", "Initialized")]
    host = engine.options.host
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": engine.options.name, "namespace": "default", "labels": {"app": "qwen"}},
        "spec": {"containers": [{"name": "custom-serving", "image": "none"}]},
        "status": {"phase": "Running", "podIP": host, "podIPs": [{"ip": host}], "conditions": conditions},
    }


def extension(cluster: ControlPlane, port: int, log: Path) -> Child:
    """Warmroute's gateway extension."""
    return Child(
        "warmroute gateway-extension",
        [
            *("env", f"KUBECONFIG={cluster.kubeconfig(EXTENSION_ACCOUNT)}", sys.executable, "-m", "warmroute"),
            *("gateway-extension", "--port", str(port), "--health-port=0", "--metrics-port=0"),
            *("--pods-service={pool}-pods", "--write-pool-status"),
        ],
        log,
    )


@asynccontextmanager
async def ai_gateway(cluster: ControlPlane, directory: Path, port: int) -> AsyncIterator[Child]:
    """The controller of Envoy AI Gateway, whose extension server listens on ``port``. It takes ports of Envoy Gateway's."""
    path = binary("WARMROUTE_AI_GATEWAY", "a controller of Envoy AI Gateway")
    crds = binary("WARMROUTE_AI_GATEWAY_CRDS", "a directory with the CRDs of Envoy AI Gateway")
    await cluster.kubectl("create", "namespace", AI_GATEWAY_NAMESPACE)
    await cluster.kubectl("apply", "--server-side", "-f", crds)
    await cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
    await cluster.apply(AI_GATEWAY_WEBHOOK)
    argv = [
        *("env", f"KUBECONFIG={cluster.kubeconfig(ADMIN)}", f"POD_NAMESPACE={AI_GATEWAY_NAMESPACE}", path),
        *("--enableLeaderElection=false", f"--port=127.0.0.1:{port}"),
        f"--tlsCertDir={directory / 'envoy-gateway-certs'}",
    ]
    async with in_own_network("ai-gateway", argv, directory, serves=port, needs=cluster.port) as child:
        yield child


@asynccontextmanager
async def walk(directory: Path, values_file: str, extensions: int) -> AsyncIterator[Walk]:
    """The walk-through up to its requests; of several extensions the last one serves its pool."""
    gateway_path = binary("WARMROUTE_ENVOY_GATEWAY", "an envoy-gateway")
    gateway_crds = binary("WARMROUTE_ENVOY_GATEWAY_CRDS", "a directory with the CRDs of Envoy Gateway and Gateway API")
    for name in ("root", "envoy-certs", "envoy-gateway-certs"):
        (directory / name).mkdir()
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(control_plane(directory, [EXTENSION_ACCOUNT, PICKER_ACCOUNT]))
        await cluster.kubectl("create", "namespace", NAMESPACE)
        await cluster.kubectl("apply", "--server-side", "-R", "-f", gateway_crds)
        await cluster.kubectl("apply", "--server-side", "-k", str(DEPLOY / "crds"))
        await cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
        await cluster.kubectl("apply", "-k", str(DEPLOY / "overlays" / "envoy-gateway-extension"))

        engines = [
            SimulatorServer(
                SimulatorOptions(
                    host=f"127.0.0.{i + 1}", port=8000, name=f"qwen-{i}", model="/model/qwen", time_scale=50
                )
            )
            for i in range(ENGINES)
        ]
        for engine in engines:
            await engine.start()
            stack.push_async_callback(engine.stop)
            await cluster.apply(pod(engine))
        names = {
            "inference-gateway-ext-proc.default.svc": ["127.0.0.1"],
            f"envoy-gateway.{NAMESPACE}.svc.cluster.local": ["127.0.0.1"],
            **{
                f"{pool}-pods.default.svc": [engine.options.host for engine in engines]
                for pool in ("vllm-qwen-pool", "vllm-qwen-v1")
            },
        }
        dns_port = await stack.enter_async_context(dns_server(names))

        max_endpoints = 2 if extensions == 1 else 1  # Envoy AI Gateway's clusters take no list
        picker_ports = PickerPorts(grpc=9002, health=free_port(), metrics=free_port(), debug=free_port())
        picker = Child(
            "warmroute serve",
            [
                *(
                    "env",
                    f"KUBECONFIG={cluster.kubeconfig(PICKER_ACCOUNT)}",
                    sys.executable,
                    "-m",
                    "warmroute",
                    "serve",
                ),
                *("--pool-name=vllm-qwen-pool", "--pool-namespace=default", f"--max-endpoints={max_endpoints}"),
                *("--grpc-port", str(picker_ports.grpc), "--grpc-health-port", str(picker_ports.health)),
                *("--metrics-port", str(picker_ports.metrics), "--debug-port", str(picker_ports.debug)),
            ],
            directory / "picker.log",
        )
        stack.push_async_callback(picker.stop)
        gateway_environment = [
            "env",
            f"KUBECONFIG={cluster.kubeconfig(ADMIN)}",
            f"ENVOY_GATEWAY_NAMESPACE={NAMESPACE}",
        ]
        certificates = Child(
            "certgen",
            [*gateway_environment, gateway_path, "certgen", "--disable-topology-injector"],
            directory / "certgen.log",
        )
        await certificates.start()
        assert await certificates.wait() == 0, certificates.tail()
        await write_secret(cluster, "envoy-gateway", directory / "envoy-gateway-certs")
        extension_ports = [free_port() for _ in range(extensions)]
        for number, port in enumerate(extension_ports):
            if number < extensions - 1 and "WARMROUTE_AI_GATEWAY" in os.environ:
                await stack.enter_async_context(ai_gateway(cluster, directory, port))
            else:
                await stack.enter_async_context(extension(cluster, port, directory / f"extension-{number}.log"))

        configuration = directory / "envoy-gateway.yaml"
        configuration.write_text(yaml.safe_dump(gateway_configuration(values_file, extension_ports)))
        ports = {"http": free_port(), "llm-gw": free_port()}
        await cluster.apply(listener_ports(ports))
        envoy_gateway = await stack.enter_async_context(
            Child(
                "Envoy Gateway",
                [
                    *(
                        "unshare",
                        "--map-root-user",
                        "--mount",
                        "sh",
                        "-ec",
                        IN_A_ROOT_WITH_CERTS,
                        "sh",
                        str(directory / "root"),
                    ),
                    str(directory / "envoy-gateway-certs"),
                    *(*gateway_environment, gateway_path, "server", "--config-path", str(configuration)),
                ],
                directory / "envoy-gateway.log",
            )
        )

        for name in ("vllm-service.yaml", "inference-pool.yaml", "inference-gateway.yaml"):
            await cluster.kubectl("apply", "-f", str(SAMPLES / name))

        async def deployed() -> bool:
            made = await cluster.kubectl("get", "deployment,configmap", *OF_THE_GATEWAY, "-o", "name")
            return "deployment" in made and "configmap" in made

        await envoy_gateway.until(deployed, "deploying its Envoy", GATEWAY_LIMIT)
        await stack.enter_async_context(await envoy_of_the_gateway(cluster, directory, dns_port))
        await start_picker(picker, picker_ports)
        assert picker.log is not None
        yield Walk(cluster, f"http://127.0.0.1:{ports['llm-gw']}", picker.log, envoy_gateway)


def before_1_8() -> bool:
    """Whether WARMROUTE_ENVOY_GATEWAY_VERSION says so; without it the Envoy Gateway is taken for a newer one."""
    version = os.environ.get("WARMROUTE_ENVOY_GATEWAY_VERSION", "1.8")
    return tuple(int(part) for part in version.removeprefix("v").split(".")[:2]) < (1, 8)


async def ask(url: str, body: bytes, headers: dict[str, str]) -> Message | None:
    """The answer, or None while nothing listens."""
    try:
        return await exchange(url, body=body, headers=headers)
    except (ConnectionError, OSError, EOFError):
        return None


@pytest.mark.skipif(
    not os.environ.get("WARMROUTE_ENVOY_GATEWAY"), reason="run `make e2e-gateway` with the paths that it asks for"
)
@pytest.mark.parametrize(
    ("values_file", "extensions"),
    [
        pytest.param("envoy-gateway-values.yaml", 1, id="alone"),
        pytest.param(
            *("envoy-gateway-values-beside-ai-gateway.yaml", 2),
            id="beside-another-extension",
            marks=pytest.mark.skipif(before_1_8(), reason="Envoy Gateway before 1.8 has one extension"),
        ),
    ],
)
async def test_the_walk_through_works_unchanged_on_a_real_envoy_gateway(
    tmp_path: Path, values_file: str, extensions: int
) -> None:
    """Beside another one: an extension that is given the v1 pools takes the place of Envoy AI Gateway's."""
    async with walk(tmp_path, values_file, extensions) as running:

        async def served() -> bool:
            answer = await ask(
                running.picked, b'{"model": "/model/qwen", "messages": [{"role": "user", "content": "?"}]}', {}
            )
            return answer is not None and answer.status == 200

        await running.envoy_gateway.until(served, "serving the pool's route", GATEWAY_LIMIT)
        first = await exchange(running.picked, body=ROUND1)
        await asyncio.sleep(0.5)  # a person's next turn comes later than the virtual queue takes for the first
        second = await exchange(running.picked, body=ROUND2)
        assert (first.status, second.status) == (200, 200)
        assert first.headers["x-simulator-name"] == second.headers["x-simulator-name"]
        line = '"matching ratio": " 0.54 > 0.50"'

        async def logged() -> bool:
            return line in running.picker_log.read_text()

        await running.envoy_gateway.until(logged, "followed by the picker's log line", GATEWAY_LIMIT)

        async def accepted() -> bool:
            status = await running.cluster.kubectl(
                "get", "xinfpool", "vllm-qwen-pool", "-o", "jsonpath={.status.parent[*].conditions[*].status}"
            )
            return status == "True True"

        await running.envoy_gateway.until(accepted, "the gateway of a pool with a status", GATEWAY_LIMIT)
        resolved = await running.cluster.kubectl(
            *("get", "httproute", "qwen-backend", "-o"),
            'jsonpath={.status.parents[*].conditions[?(@.type=="ResolvedRefs")].status}',
        )
        assert resolved == "True"
        if extensions > 1:
            await running.cluster.apply(V1_POOL)
            await running.cluster.apply(V1_ROUTE)

            async def v1_served() -> bool:
                answer = await ask(running.picked, ROUND1, V1_HEADER)
                return answer is not None and answer.status == 200 and answer.headers.get("x-pool") == "v1"

            await running.envoy_gateway.until(v1_served, "serving the v1 pool", GATEWAY_LIMIT)
            assert await served(), "the walk-through's pool beside it"
