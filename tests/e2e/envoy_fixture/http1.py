"""HTTP/1.1 over raw sockets: what client and server libraries hide (chunk boundaries, trailers) is visible here."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(slots=True)
class Message:
    """A request or a response. Header names are lower case; of equal names the last counts."""

    start: str
    headers: dict[str, str]
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """The status of a response."""
        return int(self.start.split()[1])


async def read_message(reader: asyncio.StreamReader) -> Message | None:
    """The next message, or None at the end of the connection. Raises IncompleteReadError for a message cut short."""
    head = await _read_head(reader)
    if head is None:
        return None
    message = Message(*head)
    if "chunked" in message.headers.get("transfer-encoding", ""):
        body = bytearray()
        while size := int((await _line(reader)).partition(";")[0], 16):
            body += await reader.readexactly(size)
            await _line(reader)
        message.trailers = await _read_fields(reader)
        message.body = bytes(body)
    elif length := int(message.headers.get("content-length", "0")):
        message.body = await reader.readexactly(length)
    return message


def encode(
    start: str,
    headers: Mapping[str, str],
    body: bytes = b"",
    *,
    chunks: Sequence[bytes] | None = None,
    trailers: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes of a message: ``body`` with its content-length or, if ``chunks`` or ``trailers`` are given, chunked."""
    fields = dict(headers)
    if chunks is None and trailers is None:
        fields.setdefault("content-length", str(len(body)))
        return encode_fields(start, fields) + body
    fields["transfer-encoding"] = "chunked"
    pieces = [body] if chunks is None else chunks
    coded = b"".join(encode_chunk(piece) for piece in pieces if piece)
    return encode_fields(start, fields) + coded + encode_fields("0", trailers or {})


def encode_chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


async def exchange(
    url: str,
    path: str = "/v1/chat/completions",
    body: bytes = b"",
    *,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    chunks: Sequence[bytes] | None = None,
    trailers: Mapping[str, str] | None = None,
) -> Message:
    """Send one request to ``http://host:port`` on a connection of its own; the response. See :func:`encode`."""
    reader, writer = await connect(url)
    try:
        fields = {"host": "test", "content-type": "application/json", **(headers or {})}
        writer.write(encode(f"{method} {path} HTTP/1.1", fields, body, chunks=chunks, trailers=trailers))
        response = await read_message(reader)
    finally:
        writer.close()
    if response is None:
        raise ConnectionError("closed without a response")
    return response


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A raw connection to ``http://host:port``, for a client that misbehaves."""
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 20)


def encode_fields(start: str, fields: Mapping[str, str]) -> bytes:
    """The head of a message or, with ``0`` as ``start``, the end of a chunked body."""
    lines = [start, *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]] | None:
    try:
        start = await _line(reader)
    except asyncio.IncompleteReadError as end:
        if end.partial:
            raise
        return None
    return start, await _read_fields(reader)


async def _read_fields(reader: asyncio.StreamReader) -> dict[str, str]:
    fields = {}
    while line := await _line(reader):
        name, _, value = line.partition(":")
        fields[name.lower()] = value.strip()
    return fields


async def _line(reader: asyncio.StreamReader) -> str:
    return (await reader.readuntil(b"\r\n"))[:-2].decode("latin-1")
