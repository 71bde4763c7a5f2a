"""The floor of scraping: requests each pod's metrics page once a second and discards the answers.

It uses raw connections on uvloop and wakes up as often as the picker's scraper. Run it with
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
    """A connection that stays open; received data is discarded."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def request(self) -> None:
        """Send one request for the metrics page."""
        self._transport.write(_REQUEST)


async def scrape(ports: Iterable[int]) -> None:
    """Scrape the pods on these ports of this machine until cancelled; an equal part of them at each tick."""
    loop = asyncio.get_running_loop()
    connections = [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for port in ports]
    ticks = round(INTERVAL / TICK)
    for part in cycle([connections[phase::ticks] for phase in range(ticks)]):
        for connection in part:
            connection.request()
        await asyncio.sleep(TICK)


def main() -> None:
    """Entry point of the child process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ports", type=int, nargs="+")
    uvloop.run(scrape(parser.parse_args().ports))


if __name__ == "__main__":
    main()
