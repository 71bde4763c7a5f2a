"""The gRPC server of the gateway extension: Envoy Gateway's calls to the hooks, health, TLS and metrics.

A call that fails returns what it was given and is logged and counted: Envoy Gateway would otherwise stop all
configuration of the gateway, also of routes that have nothing to do with an InferencePool.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest

from warmroute.end_signals import on_end_signal
from warmroute.errors import ConfigurationError
from warmroute.extproc import health
from warmroute.gateway_extension import gateway_extension_pb2 as pb
from warmroute.gateway_extension import hooks
from warmroute.gateway_extension.picked_pool import picked_pools
from warmroute.grpc_server.connection import Limits, Method
from warmroute.grpc_server.server import GrpcServer
from warmroute.grpc_server.unary import unary
from warmroute.observability.page_server import Page, PageServer, Request

if TYPE_CHECKING:  # it needs the Kubernetes client
    from warmroute.gateway_extension.status import StatusWriter

logger = logging.getLogger(__name__)

SERVICE = "envoygateway.extension.EnvoyGatewayExtension"
MAX_MESSAGE_BYTES = 64 << 20
"""Largest message either way: the whole configuration of a gateway. Envoy Gateway's ``maxMessageSize`` must allow it."""
MOST_CALLS = 100
"""Calls at once on one port."""
GRACE = 5.0
"""Seconds that calls in progress have to end after SIGTERM."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where the extension listens; port 0 is any free one."""

    host: str = ""
    port: int = 5005
    health_port: int = 5006
    metrics_port: int = 9090
    cert_path: Path | None = None
    """Directory with tls.crt and tls.key; None: no TLS."""


class GatewayExtension:
    """The extension service. ``run`` is its life; ``start`` and ``stop`` are for those who embed it."""

    def __init__(self, listen: ServerOptions, options: hooks.Options, status: StatusWriter | None = None) -> None:
        self._listen = listen
        self._options = options
        self._status = status
        self._registry = CollectorRegistry()
        self._calls = Counter(
            "warmroute_gateway_extension_calls",
            "Calls of Envoy Gateway by hook and outcome (ok, rejected: a route that cannot be served, failed: a bug).",
            ["hook", "outcome"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "warmroute_gateway_extension_call_seconds",
            "Duration of a call in seconds.",
            ["hook"],
            registry=self._registry,
        )
        checks = health.methods(lambda: True)
        limits = Limits(MAX_MESSAGE_BYTES, MOST_CALLS)
        self._server = GrpcServer({**self._methods(), **checks}, limits)
        self._health = GrpcServer(checks, limits)
        pages = {"/metrics": self._metrics_page}
        self._metrics = PageServer(listen.host, listen.metrics_port, pages, port_flag="--metrics-port")
        self.port = 0
        """The port of the service in use once started."""
        self.health_port = 0
        """The port of the health service in use once started."""
        self.metrics_port = 0
        """The port of the metrics page in use once started."""

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or SIGHUP."""
        stopped = asyncio.Event()
        on_end_signal(stopped.set)
        try:
            await self.start()
            await stopped.wait()
        finally:
            await self.stop()

    async def start(self) -> None:
        """Listen. Raises ConfigurationError if a port is taken or a certificate cannot be used."""
        listen = self._listen
        tls = None
        if listen.cert_path is not None:
            from warmroute.extproc.tls import from_directory

            tls = from_directory(listen.cert_path)
        self.port = await self._server.start(listen.host, listen.port, "--port", tls)
        self.health_port = await self._health.start(listen.host, listen.health_port, "--health-port")
        await self._metrics.start()
        self.metrics_port = self._metrics.port
        if self._status is not None:
            self._status.start()
        logger.info(
            "serving the gateway extension",
            extra={
                "fields": {
                    "port": self.port,
                    "health-port": self.health_port,
                    "metrics-port": self.metrics_port,
                    "secure": listen.cert_path is not None,
                }
            },
        )

    async def stop(self) -> None:
        """Stop listening and let calls in progress end; safe after a failed start."""
        if self._status is not None:
            await self._status.stop()
        await asyncio.gather(self._server.stop(GRACE), self._health.stop(GRACE))
        await self._metrics.stop()

    async def _metrics_page(self, request: Request) -> Page:
        return Page(generate_latest(self._registry), CONTENT_TYPE_LATEST)

    # ---------------------------------------------------------------- calls

    def _methods(self) -> Mapping[str, Method]:
        return {
            f"/{SERVICE}/PostRouteModify": self._method("PostRouteModify", pb.PostRouteModifyRequest, self._route),
            f"/{SERVICE}/PostClusterModify": self._method(
                "PostClusterModify", pb.PostClusterModifyRequest, self._cluster
            ),
            f"/{SERVICE}/PostTranslateModify": self._method(
                "PostTranslateModify", pb.PostTranslateModifyRequest, self._translation
            ),
        }

    def _method(self, hook: str, request_type: Any, answer: Callable[[Any], tuple[Any, str]]) -> Method:
        def call(request: bytes) -> bytes:
            began = perf_counter()
            response, outcome = answer(request_type.FromString(request))
            self._calls.labels(hook, outcome).inc()
            self._seconds.labels(hook).observe(perf_counter() - began)
            serialised: bytes = response.SerializeToString()
            return serialised

        return unary(call, long_messages=True)

    def _route(self, request: pb.PostRouteModifyRequest) -> tuple[pb.PostRouteModifyResponse, str]:
        route = pb.Route()
        route.CopyFrom(request.route)
        try:
            pools = picked_pools([one.unstructured_bytes for one in request.post_route_context.extension_resources])
            rejected = hooks.modify_route(route, pools, self._options)
        except ValueError as error:
            rejected = str(error)
            hooks.answer_with_error(route, rejected)
        except Exception:
            logger.exception("hook failed", extra={"fields": {"hook": "PostRouteModify", "route": route.name}})
            return pb.PostRouteModifyResponse(route=request.route), "failed"
        if rejected:
            logger.warning("route not served", extra={"fields": {"route": route.name, "reason": rejected}})
        return pb.PostRouteModifyResponse(route=route), "rejected" if rejected else "ok"

    def _cluster(self, request: pb.PostClusterModifyRequest) -> tuple[pb.PostClusterModifyResponse, str]:
        cluster = pb.Cluster()
        cluster.CopyFrom(request.cluster)
        resources = [one.unstructured_bytes for one in request.post_cluster_context.backend_extension_resources]
        try:
            hooks.modify_cluster(cluster, picked_pools(resources), self._options)
        except ValueError:  # PostRouteModify has said so
            return pb.PostClusterModifyResponse(cluster=request.cluster), "rejected"
        except Exception:
            logger.exception("hook failed", extra={"fields": {"hook": "PostClusterModify", "cluster": cluster.name}})
            return pb.PostClusterModifyResponse(cluster=request.cluster), "failed"
        return pb.PostClusterModifyResponse(cluster=cluster), "ok"

    def _translation(self, request: pb.PostTranslateModifyRequest) -> tuple[pb.PostTranslateModifyResponse, str]:
        changed = pb.PostTranslateModifyRequest()
        changed.CopyFrom(request)
        try:
            response = hooks.modify_translation(changed, self._options)
        except Exception:
            logger.exception("hook failed", extra={"fields": {"hook": "PostTranslateModify"}})
            unchanged = pb.PostTranslateModifyResponse(
                clusters=request.clusters, secrets=request.secrets, listeners=request.listeners, routes=request.routes
            )
            return unchanged, "failed"
        self._note_served_pools(response)
        return response, "ok"

    def _note_served_pools(self, response: pb.PostTranslateModifyResponse) -> None:
        """Tell the status writer what is served. Its faults do not touch the answer."""
        if self._status is None:
            return
        try:
            self._status.translated(hooks.pools_by_gateway(response.routes))
        except Exception:
            logger.exception("status not noted")


def serve(listen: ServerOptions, options: hooks.Options, *, write_pool_status: bool = False) -> None:
    """Serve until a signal. Raises ConfigurationError, also if there is no cluster whose pools have a status."""
    import uvloop

    uvloop.run(_run(listen, options, write_pool_status=write_pool_status))


async def _run(listen: ServerOptions, options: hooks.Options, *, write_pool_status: bool) -> None:
    if not write_pool_status:
        await GatewayExtension(listen, options).run()
        return
    from warmroute.gateway_extension.status import StatusWriter
    from warmroute.kubernetes.api import Cluster

    cluster = Cluster()
    try:
        cluster.find()
    except ConfigurationError as error:
        raise ConfigurationError(f"--write-pool-status: {error}") from error
    try:
        await GatewayExtension(listen, options, StatusWriter(cluster)).run()
    finally:
        await cluster.close()
