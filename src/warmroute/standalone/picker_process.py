"""``warmroute serve`` as a child process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from warmroute.http_client import Answer, exchange
from warmroute.observability.metrics_pages import READY, ready_body
from warmroute.standalone.child import PATIENCE, Child


@dataclass(frozen=True, slots=True)
class PickerPorts:
    """Where the endpoint picker listens."""

    grpc: int
    health: int
    metrics: int
    debug: int = 0
    """0: any free port."""


def own_flags(endpoints_file: Path, ports: PickerPorts) -> Mapping[str, object]:
    """The flags that every such picker gets, and their values."""
    return {
        "--endpoints-file": endpoints_file,
        "--grpc-port": ports.grpc,
        "--grpc-health-port": ports.health,
        "--metrics-port": ports.metrics,
        "--debug-port": ports.debug,
        "--secure-serving": "false",
        "--drain-quiet": "0s",
    }


def picker(
    endpoints_file: Path,
    ports: PickerPorts,
    log: Path | None,
    flags: Sequence[str] = (),
    *,
    environ: Mapping[str, str] | None = None,
    name: str = "warmroute serve",
) -> Child:
    """The picker over the endpoints of a file, without TLS. ``flags`` come last and so win. ``log``, ``environ`` and
    ``name`` are as :class:`Child` has them.

    It exits at once on SIGTERM (``--drain-quiet=0s``): by then its parent sends no more requests.
    """
    own = (f"{flag}={value}" for flag, value in own_flags(endpoints_file, ports).items())
    argv = [sys.executable, "-m", "warmroute", "serve", *own, *flags]
    return Child(name, argv, log, environ=environ)


async def start_picker(child: Child, ports: PickerPorts, patience: float = PATIENCE) -> None:
    """Start it and wait until it is ready; raises ChildError."""

    async def serving() -> bool:
        try:
            answer = await _readiness(ports, 5)
        except OSError:
            return False
        return answer.status == HTTPStatus.OK and answer.body == ready_body(child.pid)

    await child.start()
    await child.until(serving, "ready", patience)


async def hangs(ports: PickerPorts, seconds: float) -> bool:
    """Whether the picker takes a connection and says nothing for ``seconds``. One that has ended does not hang."""
    try:
        await _readiness(ports, seconds)
    except TimeoutError:
        return True
    except OSError:
        return False
    return False


async def _readiness(ports: PickerPorts, seconds: float) -> Answer:
    """The picker's readiness page. Raises OSError."""
    return await asyncio.to_thread(exchange, f"http://127.0.0.1:{ports.metrics}{READY}", seconds=seconds)
