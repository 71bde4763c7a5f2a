"""ext_proc load on a picker that costs the client a tenth of what the picker spends, so that a core is enough to keep
several pickers busy.

It speaks HTTP/2 by hand, and only as far as the picker's own server needs it: the picker lets a client have 16 MiB under
way and 256 KiB in each stream, so windows are not counted, and bodies have :data:`LONGEST_BODY` at most.
"""

from __future__ import annotations

import asyncio
from typing import cast

from hpack import Encoder

from warmroute.extproc.ext_proc_pb2 import HttpBody, ProcessingRequest
from warmroute.extproc.headers import DESTINATION
from warmroute.grpc_server.frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEAD,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME,
    MAX_WINDOW,
    PING,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    prefixed,
    setting,
)
from warmroute_lab.overhead.bare_server import METHOD
from warmroute_lab.overhead.picker_load import Chats, LoadError, request_headers

LONGEST_BODY = 200_000
"""Bytes of a request's body, at most."""
_WINDOW = (MAX_WINDOW - 65_535).to_bytes(4, "big")


class _Connection(asyncio.Protocol):
    """One connection with a number of streams that are always open while requests are left."""

    def __init__(self, load: SaturatingLoad) -> None:
        self._load = load
        self.lost = False
        """The picker is gone."""
        self._stream = -1
        self._rest = b""
        self._bodies: dict[int, bytes] = {}
        """Bodies of the streams whose headers were not answered yet."""
        self._answers: dict[int, bytes] = {}
        encoder = Encoder()
        headers = [
            *((":method", "POST"), (":scheme", "http"), (":path", METHOD), (":authority", "picker")),
            *(("content-type", "application/grpc"), ("te", "trailers")),
        ]
        self._first_block = encoder.encode(headers)
        self._block = encoder.encode(headers)
        """The headers once they are in the server's table, as of every call but the first."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the connection."""
        self._transport = cast(asyncio.Transport, transport)
        begin = frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW_SIZE, MAX_WINDOW)) + frame(WINDOW_UPDATE, 0, 0, _WINDOW)
        self._transport.write(PREFACE + begin)

    def connection_lost(self, exc: Exception | None) -> None:
        """The picker is gone."""
        self.lost = True
        self._load.failed("the connection ended")

    def open(self, body: bytes) -> bytes:
        """The frames that open a stream: headers, and ext_proc's message with the request's headers."""
        self._stream += 2
        block = self._block if self._stream > 1 else self._first_block
        self._bodies[self._stream] = body
        message = prefixed(request_headers(len(body)))
        return frame(HEADERS, END_HEADERS, self._stream, block) + frame(DATA, 0, self._stream, message)

    def start(self, bodies: list[bytes]) -> None:
        """Open a stream for each of the bodies."""
        self._transport.write(b"".join([self.open(body) for body in bodies]))

    def data_received(self, data: bytes) -> None:
        """Answer frames; open a stream for each that has ended."""
        data = self._rest + data
        position, out = 0, list[bytes]()
        while len(data) - position >= HEAD.size:
            high, low, kind, flags, stream = HEAD.unpack_from(data, position)
            end = position + HEAD.size + (high << 8 | low)
            if end > len(data):
                break
            if kind == DATA:
                body = self._bodies.pop(stream, None)
                if body is None:
                    self._answers[stream] = data[position:end]
                else:
                    out.append(_body_frames(stream, body))
            elif kind == HEADERS and flags & END_STREAM:
                following = self._load.ended(self._answers.pop(stream, b""))
                if following is not None:
                    out.append(self.open(following))
            elif kind in (SETTINGS, PING) and not flags & ACK:
                payload = data[position + HEAD.size : end] if kind == PING else b""
                out.append(frame(kind, ACK, 0, payload))
            elif kind == GOAWAY:
                self._load.failed("the picker ends the connection")
            position = end
        self._rest = data[position:]
        if out:
            self._transport.write(b"".join(out))

    def close(self) -> None:
        """Disconnect."""
        self._transport.close()


class SaturatingLoad:
    """A client of one picker with ``connections``, each with ``streams`` requests under way."""

    def __init__(self, host: str, port: int, *, connections: int, streams: int) -> None:
        self._host, self._port = host, port
        self._streams = streams
        self._count = connections
        self._connections: list[_Connection] = []
        self._chats: Chats | None = None
        self._unsent = self._left = 0
        self._done: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Connect. Raises OSError."""
        loop = asyncio.get_running_loop()
        for _ in range(self._count):
            _, connection = await loop.create_connection(lambda: _Connection(self), self._host, self._port)
            self._connections.append(connection)

    def close(self) -> None:
        """Disconnect."""
        for connection in self._connections:
            connection.close()

    async def run(self, chats: Chats, requests: int) -> None:
        """Send that many requests, a new one for each that has ended. Raises LoadError if one fails."""
        self._chats = chats
        self._done = asyncio.get_running_loop().create_future()
        self._unsent = self._left = requests
        if any(connection.lost for connection in self._connections):
            raise self._error("the connection ended")
        for connection in self._connections:
            count = min(self._streams, self._unsent)
            self._unsent -= count
            connection.start([chats.next() for _ in range(count)])
        await self._done

    def ended(self, answer: bytes) -> bytes | None:
        """A request has ended; the body of the next one, if there is one."""
        if DESTINATION.encode() not in answer:
            self.failed("the picker chose no endpoint")
        self._left -= 1
        if not self._left and self._done is not None and not self._done.done():
            self._done.set_result(None)
        if not self._unsent or self._chats is None:
            return None
        self._unsent -= 1
        return self._chats.next()

    def failed(self, why: str) -> None:
        """No more requests can be sent, or one was not answered as it should be."""
        if self._done is not None and not self._done.done():
            self._done.set_exception(self._error(why))

    def _error(self, why: str) -> LoadError:
        return LoadError(f"the picker at {self._host}:{self._port}: {why}")


def _body_frames(stream: int, body: bytes) -> bytes:
    if len(body) > LONGEST_BODY:
        raise LoadError(f"a body of {len(body)} bytes is longer than {LONGEST_BODY}")
    message = prefixed(ProcessingRequest(request_body=HttpBody(body=body, end_of_stream=True)).SerializeToString())
    pieces = [message[start : start + MAX_FRAME] for start in range(0, len(message), MAX_FRAME)]
    return b"".join([frame(DATA, 0, stream, piece) for piece in pieces])
