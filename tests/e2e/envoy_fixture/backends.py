"""HTTP servers in the place of engines: they record what reaches them and do what request headers tell them.

=============================  ==========================================================================
``x-test-status: 503``         answer with that status
``x-test-sse: 3``              stream three server-sent events and ``[DONE]`` in place of the JSON answer
``x-test-hold: head``          wait for ``pod.release`` before the response's head
``x-test-hold: body``          wait for ``pod.release`` after the head and the first event (with ``x-test-sse``)
``x-test-trailers: name``      end the response with that trailer, its value is the pod's name
=============================  ==========================================================================
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from envoy_fixture.http1 import Message, encode, encode_chunk, encode_fields, read_message


class Backend:
    """One server. ``requests`` holds what it received, the whole body included."""

    def __init__(self, name: str, host: str = "127.0.0.1") -> None:
        self.host = host
        self.name = name
        self.requests: list[Message] = []
        self.status = 200
        """Answered to every request that does not ask for another."""
        self.release = asyncio.Event()
        self.arrived = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self.port = 0

    @property
    def target(self) -> str:
        """``address:port`` as Envoy and pickers want it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def start(self) -> None:
        """Listen: on a free port at first, then on the same again."""
        self._server = await asyncio.start_server(self._serve, self.host, self.port, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections and drop those that are open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._connections):
            writer.transport.abort()

    async def wait_for_requests(self, count: int) -> None:
        """Return once ``count`` requests in all have come."""
        async with asyncio.timeout(10), self.arrived:
            await self.arrived.wait_for(lambda: len(self.requests) >= count)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while request := await read_message(reader):
                self.requests.append(request)
                async with self.arrived:
                    self.arrived.notify_all()
                await self._answer(request, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _answer(self, request: Message, writer: asyncio.StreamWriter) -> None:
        wish = request.headers.get
        if wish("x-test-hold") == "head":
            await self.release.wait()
        start = f"HTTP/1.1 {wish('x-test-status') or self.status} X"
        trailers = {wish("x-test-trailers", ""): self.name} if wish("x-test-trailers") else None
        headers = {"x-backend": self.name, "content-type": "application/json"}
        if wish("x-test-sse") is None:
            answer = {
                "name": self.name,
                "request": request.start,
                "headers": request.headers,
                "trailers": request.trailers,
                "body_length": len(request.body),
                "body_sha256": hashlib.sha256(request.body).hexdigest(),
            }
            writer.write(encode(start, headers, json.dumps(answer).encode(), trailers=trailers))
            await writer.drain()
            return
        events = [b'data: {"index":%d}\n\n' % i for i in range(int(wish("x-test-sse", "0")))] + [b"data: [DONE]\n\n"]
        headers |= {"content-type": "text/event-stream", "transfer-encoding": "chunked"}
        writer.write(encode_fields(start, headers) + encode_chunk(events[0]))
        await writer.drain()
        if wish("x-test-hold") == "body":
            await self.release.wait()
        for event in events[1:]:
            writer.write(encode_chunk(event))
            await writer.drain()
        writer.write(encode_fields("0", trailers or {}))
        await writer.drain()


@asynccontextmanager
async def backends(count: int, host: str = "127.0.0.1") -> AsyncIterator[list[Backend]]:
    """``count`` servers on free ports of ``host``, called pod-0, pod-1, ..."""
    pods = [Backend(f"pod-{i}", host) for i in range(count)]
    try:
        for pod in pods:
            await pod.start()
        yield pods
    finally:
        for pod in pods:
            await pod.stop()
