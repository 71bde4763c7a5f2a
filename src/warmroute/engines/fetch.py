"""GET of a metrics page over HTTP/1.1, on connections that stay open.

The peer is not trusted: every part of its answer has a bound, and no step runs long without yielding to the event loop. A
general HTTP client parses all bytes of a read at once, before its limits and timeouts can act; thousands of ``100 Continue``
responses or of chunks of one byte then stall the event loop. The grammar is that of https://www.rfc-editor.org/rfc/rfc9112.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from math import inf
from pathlib import Path
from time import monotonic
from typing import NamedTuple
from urllib.parse import urlsplit

from warmroute.errors import ConfigurationError, ScrapeError
from warmroute.settings import Settings
from warmroute.token_file import read_token

KEEP_ALIVE = 30.0
"""Seconds until an unused connection is closed: longer than the default interval between scrapes of an idle engine."""
MOST_HEAD_BYTES = 16 << 10
"""Bytes of status line and headers, or of a chunked body's trailers. nginx and uvicorn allow 8 to 64 kB of headers."""
MOST_INTERIM = 4
"""Responses with status 1xx before the final one. None is expected: they answer ``Expect``, which is not sent."""
MOST_FRAMING_BYTES = 128 << 10
"""Bytes of an answer beside its page: heads, lines of chunks with their extensions, trailers. The lines of 4,096 chunks have
40 kB; an extension is rarely sent."""
MOST_CHUNKS = 4_096
"""Chunks of a chunked body. A page of 2 MiB in chunks of 512 bytes; servers send it in one or in chunks of 4 kB and more."""
CONNECT_SHARE = 0.8
"""Share of ``--metrics-timeout`` within which a connection must be established."""
TOKEN_SECONDS = 30.0
"""Seconds after which a token's file is read again: kubelets renew tokens in place."""
READ_BYTES = 64 << 10
"""Bytes that a connection buffers before it stops reading from the socket (asyncio allows twice as many)."""

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n]*)?\r?\n")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_LENGTH = re.compile(rb"[0-9]{1,12}")


def reason(error: OSError) -> str:
    """The system's wording for an error of a connection; that of the event loops differs."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error) or type(error).__name__


class NoConnectionError(OSError):
    """The peer does not answer the attempt to connect: its machine or its network is gone, or its kernel is overloaded."""


class PageFetcher:
    """Fetches pages; at most one request to an endpoint at a time is expected. Use it in one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._most_bytes = settings.max_metrics_bytes
        self.apply(settings)
        self._tls: ssl.SSLContext | None = None
        if settings.model_server_metrics_scheme == "https":
            self._tls = ssl.create_default_context()
            if settings.model_server_metrics_https_insecure_skip_verify:
                self._tls.check_hostname = False
                self._tls.verify_mode = ssl.CERT_NONE
        self._idle: dict[tuple[str, int], _Connection] = {}
        self._token = _Token(settings.model_server_token_file)

    def apply(self, settings: Settings) -> None:
        """Change the hot settings."""
        self._connect_seconds = CONNECT_SHARE * settings.metrics_timeout

    async def __call__(self, url: str) -> tuple[int, bytes]:
        """Status and body of ``url``; redirects are not followed. The caller sets the deadline of the whole exchange.

        Raises OSError if the peer cannot be reached or hangs up before its answer, NoConnectionError if it does not answer
        the attempt to connect. Raises ScrapeError if its answer is not HTTP, its certificate is not trusted or its page is
        larger than ``--max-metrics-bytes``.
        """
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        request = (
            f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: text/plain\r\n"
            # The whole page costs the engine less without compression, and the network is near.
            f"Accept-Encoding: identity\r\n{self._token.header()}\r\n"
        ).encode()
        try:
            idle = self._idle.pop((host, port), None)
            if idle is not None and idle.take():
                try:
                    return await self._exchange(idle, (host, port), request)
                except ConnectionError:
                    pass  # closed by the server while it was idle
            tls = self._tls if parts.scheme == "https" else None
            return await self._exchange(await self._connect(host, port, tls), (host, port), request)
        except ssl.SSLError as error:
            raise ScrapeError(f"no TLS connection to the metrics page: {error}") from error

    async def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle.values():
            connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)  # the event loop closes aborted sockets in its next turn

    async def _connect(self, host: str, port: int, tls: ssl.SSLContext | None) -> _Connection:
        try:
            async with asyncio.timeout(self._connect_seconds):
                return _Connection(*await asyncio.open_connection(host, port, ssl=tls, limit=READ_BYTES))
        except TimeoutError:
            raise NoConnectionError(f"no connection within {self._connect_seconds:g} s") from None

    async def _exchange(self, connection: _Connection, key: tuple[str, int], request: bytes) -> tuple[int, bytes]:
        reusable = False
        try:
            connection.writer.write(request)
            answer = _Answer(connection.reader)
            head = await _final_head(answer)
            body = await _body(answer, head, self._most_bytes)
            reusable = head.keep_alive
            return head.status, body
        except asyncio.IncompleteReadError as error:
            raise ScrapeError("the engine hangs up during its answer") from error
        except asyncio.LimitOverrunError as error:
            raise ScrapeError("the engine's answer has a line that is too long") from error
        finally:
            if reusable:
                connection.rest(self._idle, key)
            else:
                connection.abort()


class _Token:
    """A bearer token in a file, or none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._header = ""
        self._read_at = -inf

    def header(self) -> str:
        """The header line with its line end; empty without a token. Raises ScrapeError if the file cannot be used."""
        if self._path is not None and monotonic() - self._read_at >= TOKEN_SECONDS:
            try:
                self._header = f"Authorization: Bearer {read_token(self._path)}\r\n"
            except ConfigurationError as error:
                raise ScrapeError(str(error)) from error
            self._read_at = monotonic()
        return self._header


class _Connection:
    """An open connection. While it is idle a timer closes it."""

    __slots__ = ("_timer", "reader", "writer")

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._timer: asyncio.TimerHandle | None = None

    def rest(self, idle: dict[tuple[str, int], _Connection], key: tuple[str, int]) -> None:
        """Keep the connection in ``idle`` for :data:`KEEP_ALIVE` seconds."""
        if (other := idle.pop(key, None)) is not None:
            other.abort()
        idle[key] = self

        def expire() -> None:
            if idle.get(key) is self:
                del idle[key]
            self.abort()

        self._timer = asyncio.get_running_loop().call_later(KEEP_ALIVE, expire)

    def take(self) -> bool:
        """Stop the timer. False, and closed, if the server has closed the connection."""
        if self._timer is not None:
            self._timer.cancel()
        if self.reader.at_eof() or self.writer.is_closing():
            self.abort()
            return False
        return True

    def abort(self) -> None:
        """Close at once, without flushing."""
        if self._timer is not None:
            self._timer.cancel()
        self.writer.transport.abort()


class _Answer:
    """The bytes of one answer, as they come. Those beside the page are counted, however they are framed."""

    __slots__ = ("_left", "_reader")

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._left = MOST_FRAMING_BYTES

    async def line(self) -> bytes:
        """The next line, with its end."""
        line = await self._reader.readuntil(b"\n")
        self._left -= len(line)
        if self._left < 0:
            raise ScrapeError(f"the engine's answer has more than {MOST_FRAMING_BYTES} bytes beside its page")
        return line

    async def exactly(self, size: int) -> bytes:
        """The next ``size`` bytes of the page."""
        return await self._reader.readexactly(size)

    async def some(self) -> bytes:
        """The next bytes of the page; empty at the end of the connection."""
        return await self._reader.read(READ_BYTES)


class _Head(NamedTuple):
    """Status and framing of a response."""

    status: int
    length: int | None
    """Bytes of the body; None: until the connection ends, or chunked."""
    chunked: bool
    keep_alive: bool


async def _final_head(answer: _Answer) -> _Head:
    """The head of the first response that is not interim."""
    for _ in range(MOST_INTERIM + 1):
        head = await _head(answer)
        if head.status >= 200:
            return head
    raise ScrapeError(f"the engine sends more than {MOST_INTERIM} interim responses")


async def _head(answer: _Answer) -> _Head:
    line = await _first_line(answer)
    status_line = _STATUS_LINE.fullmatch(line)
    if status_line is None:
        raise ScrapeError(f"the engine does not answer in HTTP: {line[:40]!r}")
    headers = await _headers(answer)
    status = int(status_line[2])
    chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
    length: int | None = None
    if status < 200 or status in (204, 304):
        length = 0
    elif not chunked and b"transfer-encoding" not in headers and b"content-length" in headers:
        if not _LENGTH.fullmatch(headers[b"content-length"]):
            raise ScrapeError("the engine's answer has a content-length that is not a number")
        length = int(headers[b"content-length"])
    closes = status_line[1] == b"0" or b"close" in headers.get(b"connection", b"").lower()
    return _Head(status, length, chunked, keep_alive=not closes and (chunked or length is not None))


async def _first_line(answer: _Answer) -> bytes:
    try:
        return await answer.line()
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            raise ConnectionError("the engine hangs up without an answer") from error
        raise ScrapeError(f"the engine does not answer in HTTP: {error.partial[:40]!r}") from error


async def _headers(answer: _Answer) -> dict[bytes, bytes]:
    """Header fields up to the empty line, names in lower case; of several with one name the last counts."""
    headers: dict[bytes, bytes] = {}
    size = 0
    while (line := await answer.line()) not in (b"\r\n", b"\n"):
        size += len(line)
        if size > MOST_HEAD_BYTES:
            raise ScrapeError(f"the headers of the engine's answer exceed {MOST_HEAD_BYTES} bytes")
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    return headers


async def _body(answer: _Answer, head: _Head, most: int) -> bytes:
    if head.chunked:
        return await _chunks(answer, most)
    if head.length is not None:
        _check(head.length, most)
        return await answer.exactly(head.length)
    body = bytearray()
    while data := await answer.some():
        body += data
        _check(len(body), most)
    return bytes(body)


async def _chunks(answer: _Answer, most: int) -> bytes:
    body = bytearray()
    for _ in range(MOST_CHUNKS):
        match = _CHUNK_SIZE.fullmatch(await answer.line())
        if match is None:
            raise ScrapeError("the engine's answer has a chunk without a size")
        size = int(match[1], 16)
        if size == 0:
            await _headers(answer)
            return bytes(body)
        _check(len(body) + size, most)
        body += await answer.exactly(size)
        await answer.line()
    raise ScrapeError(f"the metrics page comes in more than {MOST_CHUNKS} chunks")


def _check(size: int, most: int) -> None:
    if size > most:
        raise ScrapeError(f"the metrics page is larger than {most} bytes")
