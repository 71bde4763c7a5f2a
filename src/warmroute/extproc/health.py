"""The gRPC health service (grpc.health.v1), under the names that gateways and probes use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from warmroute.extproc.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListResponse
from warmroute.grpc_server.connection import IGNORE, Call, Handler, Method
from warmroute.grpc_server.frames import Status
from warmroute.grpc_server.unary import unary

EXT_PROC_SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
LIVENESS = "liveness"
"""The service that is SERVING as long as the process runs. All others (``readiness``, ``inference-extension``, the ext_proc
service, the empty name) are SERVING while requests can be routed."""

_SERVING = HealthCheckResponse(status=HealthCheckResponse.SERVING)
_NOT_SERVING = HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)
_LISTED = (LIVENESS, "readiness", "inference-extension", EXT_PROC_SERVICE)


def methods(ready: Callable[[], bool]) -> Mapping[str, Method]:
    """The methods of the health service. ``ready``, called at each check, returns whether requests can be routed."""

    def status(service: str) -> HealthCheckResponse:
        return _SERVING if service == LIVENESS or ready() else _NOT_SERVING

    def check(request: bytes) -> bytes:
        answer: bytes = status(HealthCheckRequest.FromString(request).service).SerializeToString()
        return answer

    def list_all(request: bytes) -> bytes:
        statuses = {name: status(name) for name in _LISTED}
        answer: bytes = HealthListResponse(statuses=statuses).SerializeToString()
        return answer

    return {
        "/grpc.health.v1.Health/Check": unary(check),
        "/grpc.health.v1.Health/List": unary(list_all),
        "/grpc.health.v1.Health/Watch": _watch,
    }


def _watch(call: Call) -> Handler:
    """Not implemented, as in other pickers. Clients treat UNIMPLEMENTED as healthy."""
    call.finish(Status.UNIMPLEMENTED, "use Check")
    return IGNORE
