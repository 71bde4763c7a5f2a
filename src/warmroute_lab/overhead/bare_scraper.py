"""The floor of watching pods: asks each for its metrics once a second and throws the answers away.

Raw connections on the picker's event loop, woken as often as the picker's scraper is.
``python -m warmroute_lab.overhead.bare_scraper PORT...``.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable
from itertools import cycle
from typing import cast

import uvloop

from warmroute.engines.scraper import TICK

INTERVAL = 1.0
"""Seconds between two requests to a pod."""
_REQUEST = (
    b"GET /metrics/?name[]=vllm:num_requests_running HTTP/1.1\r\nHost: pod\r\nAccept: text/plain\r\n"
    b"Accept-Encoding: identity\r\n\r\n"
)


class Connection(asyncio.Protocol):
    """A connection that stays open; what comes back is thrown away."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def ask(self) -> None:
        """Send one request."""
        self._transport.write(_REQUEST)


async def watch(ports: Iterable[int]) -> None:
    """Ask the pods on ``ports`` of this machine, a part of them at each tick; until cancelled."""
    loop = asyncio.get_running_loop()
    connections = [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for port in ports]
    ticks = round(INTERVAL / TICK)
    for part in cycle([connections[phase::ticks] for phase in range(ticks)]):
        for connection in part:
            connection.ask()
        await asyncio.sleep(TICK)


def main() -> None:
    """Command line of the child process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ports", type=int, nargs="+")
    uvloop.run(watch(parser.parse_args().ports))


if __name__ == "__main__":
    main()
