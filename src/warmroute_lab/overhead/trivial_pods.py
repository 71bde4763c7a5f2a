"""Pods with little CPU cost: a small metrics page for every GET, an empty completion for every POST.

Run them with ``python -m warmroute_lab.overhead.trivial_pods --first-port N --count M``. ``--running`` requests make
them busy: pickers scrape busy engines more often.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from time import monotonic
from typing import cast

import uvloop

_SERIES = {
    "vllm:num_requests_waiting": "0.0",
    "vllm:kv_cache_usage_perc": "0.1",
    "vllm:request_prompt_tokens_sum": "100000.0",
    "vllm:request_prompt_tokens_count": "100.0",
    "vllm:prompt_tokens_by_source_total": "50000.0",
    "vllm:cache_config_info": "1.0",
}
_LOOKED_UP = 1_000_000
"""Prompt tokens that each pod looks up in its cache, a second; it finds half of them. More than any load sends, so that the
picker takes every prompt as accepted."""
_LABELS = '{engine="0",model_name="model",source="local_compute",block_size="16",num_gpu_blocks="31250"}'


def _answer(content_type: str, body: str) -> bytes:
    return (f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n{body}").encode()


def _series(name: str, value: str) -> str:
    return f"# HELP {name} A help text of the usual length.\n# TYPE {name} gauge\n{name}{_LABELS} {value}\n"


def _page(constant: str) -> bytes:
    tokens = monotonic() * _LOOKED_UP
    queries, hits = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"
    page = constant + _series(queries, f"{tokens:.0f}.0") + _series(hits, f"{tokens / 2:.0f}.0")
    return _answer("text/plain; version=0.0.4", page)


_COMPLETION = _answer("application/json", '{"object":"chat.completion","choices":[]}')
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"transfer-encoding: *chunked", re.IGNORECASE)
_LAST_CHUNK = b"0\r\n\r\n"


class Pod(asyncio.Protocol):
    """One connection, without pipelining: proxies and scrapers send one request at a time."""

    def __init__(self, constant: str) -> None:
        self._constant = constant
        """What does not change on the page."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.WriteTransport, transport)
        self._received = bytearray()

    def data_received(self, data: bytes) -> None:
        """Answer when the request is complete."""
        received = self._received
        received += data
        head = received.find(b"\r\n\r\n") + 4
        if head < 4:
            return
        if length := _LENGTH.search(received, 0, head):
            complete = len(received) >= head + int(length[1])
        else:
            complete = received.endswith(_LAST_CHUNK) or not _CHUNKED.search(received, 0, head)
        if complete:
            self._transport.write(_page(self._constant) if received.startswith(b"GET") else _COMPLETION)
            received.clear()


async def serve(first_port: int, count: int, running: int) -> None:
    """Serve ``count`` pods on consecutive ports, each with ``running`` requests, until cancelled."""
    loop = asyncio.get_running_loop()
    series = {"vllm:num_requests_running": f"{running}.0", **_SERIES}
    constant = "".join(_series(name, value) for name, value in series.items())
    for port in range(first_port, first_port + count):
        await loop.create_server(lambda: Pod(constant), "127.0.0.1", port)
    await loop.create_future()


def main() -> None:
    """Entry point of the child process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first-port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--running", type=int, default=0)
    options = parser.parse_args()
    uvloop.run(serve(options.first_port, options.count, options.running))


if __name__ == "__main__":
    main()
