"""``warmroute serve`` as a child process."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from warmroute.standalone.child import PATIENCE, Child


@dataclass(frozen=True, slots=True)
class PickerPorts:
    """Where the endpoint picker listens."""

    grpc: int
    health: int
    metrics: int
    debug: int = 0
    """0: any free port."""


def picker(
    endpoints_file: Path,
    ports: PickerPorts,
    log: Path | None,
    flags: Sequence[str] = (),
    *,
    environ: Mapping[str, str] | None = None,
) -> Child:
    """The picker over the endpoints of a file, without TLS. ``flags`` come last and so win. ``log`` and ``environ`` are as
    :class:`Child` has them.

    It exits at once on SIGTERM (``--drain-quiet=0s``): by then its parent sends no more requests.
    """
    argv = [
        *(sys.executable, "-m", "warmroute", "serve"),
        *("--endpoints-file", str(endpoints_file)),
        *("--grpc-port", str(ports.grpc)),
        *("--grpc-health-port", str(ports.health)),
        *("--metrics-port", str(ports.metrics)),
        *("--debug-port", str(ports.debug)),
        *("--secure-serving=false", "--drain-quiet=0s"),
        *flags,
    ]
    return Child("warmroute serve", argv, log, environ=environ)


async def start_picker(child: Child, ports: PickerPorts, patience: float = PATIENCE) -> None:
    """Start it and wait until its health service says that it is ready; raises ChildError."""
    await child.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports.health}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def serving() -> bool:
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(service="readiness"), timeout=5)
            except grpc.aio.AioRpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        await child.until(serving, "ready", patience)
