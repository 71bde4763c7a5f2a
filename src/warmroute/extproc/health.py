"""The gRPC health service (grpc.health.v1), under the names that gateways and probes use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

EXT_PROC_SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
LIVENESS = "liveness"
"""The service that is SERVING as long as the process runs. All others (``readiness``, ``inference-extension``, the ext_proc
service, the empty name) are SERVING while requests can be routed."""

_SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
_NOT_SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
_LISTED = (LIVENESS, "readiness", "inference-extension", EXT_PROC_SERVICE)


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the package has no types
    """The health service. ``ready``, called at each check, returns whether requests can be routed."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready

    def _status(self, service: str) -> health_pb2.HealthCheckResponse:
        return _SERVING if service == LIVENESS or self._ready() else _NOT_SERVING

    async def Check(  # noqa: N802  # the protocol's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """One service's status."""
        return self._status(request.service)

    async def List(  # noqa: N802
        self, request: health_pb2.HealthListRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthListResponse:
        """The status of every service."""
        return health_pb2.HealthListResponse(statuses={name: self._status(name) for name in _LISTED})

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Not implemented, as in other pickers. Clients treat UNIMPLEMENTED as healthy."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "use Check")


def add(server: grpc.aio.Server, ready: Callable[[], bool]) -> None:
    """Serve health on ``server``."""
    health_pb2_grpc.add_HealthServicer_to_server(Health(ready), server)
