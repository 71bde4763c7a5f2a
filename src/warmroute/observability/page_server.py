"""An HTTP server for operators' pages: GET and HEAD (and POST where a page takes a body) on one port, one request per
connection, errors as JSON.

The peer is not trusted: the connections, the request head and the time of every step are bounded. A general HTTP server
takes as many connections as come, and its import took a quarter of the picker's start. The grammar is that of
https://www.rfc-editor.org/rfc/rfc9112.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address
from time import perf_counter
from urllib.parse import parse_qsl

import orjson

from warmroute.errors import WarmrouteError
from warmroute.listener import listen
from warmroute.tasks import cancel

logger = logging.getLogger(__name__)

MOST_REQUESTS = 4
"""Requests answered at once on one port; further ones get 503."""
MOST_CONNECTIONS = 64
"""Connections of one port whose request has not arrived. One more ends the oldest of them, so that a health check gets
through while others hold connections open."""
MOST_HEAD_BYTES = 16 << 10
"""Bytes of request line and headers. Prometheus and browsers send about 1 kB."""
MOST_PARAMETERS = 32
"""Query parameters of a request."""
HEAD_SECONDS = 10.0
"""Longest time until a connection's request has arrived."""
SEND_SECONDS = 10.0
"""Longest time that a response takes to be read; then its connection is aborted."""
BODY_SECONDS = 10.0
"""Longest time until the body of a POST has arrived."""
HEALTH = "/healthz"
SLICE_SECONDS = 0.002
"""Longest time that a page computes before other work of the event loop gets its turn."""

_REQUEST_LINE = re.compile(r"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.[01]")


@dataclass(frozen=True, slots=True)
class Request:
    """A request's head; header names in lower case. The body of a POST is read when its page asks for it."""

    method: str
    path: str
    query: list[tuple[str, str]]
    headers: Mapping[str, str]
    _reader: asyncio.StreamReader | None = None

    async def body(self, most: int) -> bytes:
        """The body. Raises PageError if its length is not given or is above ``most`` bytes, or if part of it is missing."""
        length = self.headers.get("content-length", "")
        if self._reader is None or not (length.isascii() and length.isdigit() and len(length) < 16):
            raise PageError(HTTPStatus.LENGTH_REQUIRED)
        if int(length) > most:
            raise PageError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {most} bytes")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._reader.readexactly(int(length))
        except TimeoutError:
            raise PageError(HTTPStatus.REQUEST_TIMEOUT, f"the body did not arrive in {BODY_SECONDS:g} s") from None
        except asyncio.IncompleteReadError:
            raise PageError(HTTPStatus.BAD_REQUEST, "the connection ended within the body") from None


@dataclass(frozen=True, slots=True)
class Page:
    """A response."""

    body: bytes
    content_type: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class PageError(WarmrouteError):
    """A page that answers ``status`` with ``reason`` as JSON."""

    def __init__(self, status: HTTPStatus, reason: str = "", headers: Mapping[str, str] | None = None) -> None:
        self.status, self.reason, self.headers = status, reason or status.phrase, headers or {}
        super().__init__(self.reason)


Handler = Callable[[Request], Awaitable[Page]]
"""Makes a page. It may raise PageError."""
Routes = Mapping[str, Handler]
"""The pages by their paths."""


class PageServer:
    """Serves ``routes`` (GET, HEAD) and ``posts`` (POST) on ``host`` (empty: all interfaces) and ``port`` (0: any free one).

    ``port_flag`` is the setting that an error names. With ``only_local`` requests to other host names than localhost are
    refused: browsers send them for a web site whose name was made to lead here (DNS rebinding), and its scripts could read
    the pages. A POST that a page of another origin sends is always refused.
    """

    def __init__(
        self,
        host: str,
        port: int,
        routes: Routes,
        *,
        port_flag: str,
        posts: Routes | None = None,
        only_local: bool = False,
    ) -> None:
        self._host = host
        self._port = port
        self._port_flag = port_flag
        self._by_method = {"GET": routes, "HEAD": routes, "POST": posts or {}}
        self._only_local = only_local
        self._server: asyncio.Server | None = None
        self._places = asyncio.Semaphore(MOST_REQUESTS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._arriving: dict[asyncio.StreamWriter, None] = {}
        """Connections whose request has not arrived, the oldest first."""

    @property
    def port(self) -> int:
        """The port listened on; before the start the one asked for."""
        return self._port

    async def start(self) -> None:
        """Listen and serve. Raises ConfigurationError if the address is unavailable."""
        listener = listen(self._host, self._port, self._port_flag)
        self._port = listener.getsockname()[1]
        self._server = await asyncio.start_server(self._connected, sock=listener, limit=MOST_HEAD_BYTES)

    async def stop(self) -> None:
        """Close the port and every connection. May be called more than once."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await cancel(*self._tasks)
        await asyncio.sleep(0)  # the event loop closes aborted sockets in its next turn

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._arriving) >= MOST_CONNECTIONS:
            oldest = next(iter(self._arriving))
            del self._arriving[oldest]
            oldest.transport.abort()
        self._arriving[writer] = None
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close the connection."""
        try:
            request = await _request(reader)
            self._arriving.pop(writer, None)
            if isinstance(request, Request) and request.headers.get("expect", "").lower() == "100-continue":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await self._respond(request, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the peer hung up, or was too slow (TimeoutError)
        finally:
            self._arriving.pop(writer, None)
            writer.transport.abort()  # what was sent is with the kernel, see _send

    async def _respond(self, request: Request | PageError, writer: asyncio.StreamWriter) -> None:
        if isinstance(request, PageError):
            await _send(writer, _error("", request))
        elif request.path == HEALTH:  # cheap, and must not wait for others
            await _send(writer, await self._page(request), head_only=request.method == "HEAD")
        elif self._places.locked():
            reason = f"More than {MOST_REQUESTS} requests at once"
            busy = PageError(HTTPStatus.SERVICE_UNAVAILABLE, reason, {"Retry-After": "1"})
            await _send(writer, _error(request.path, busy))
        else:
            async with self._places:
                await _send(writer, await self._page(request), head_only=request.method == "HEAD")

    async def _page(self, request: Request) -> Page:
        """The page asked for. A page that fails is a 500 for its reader and a line in the log."""
        try:
            return await self._handler(request)(request)
        except PageError as error:
            return _error(request.path, error)
        except Exception as error:
            logger.exception("a page failed", extra={"fields": {"path": request.path}})
            reason = f"{type(error).__name__}; see the log"
            return _error(request.path, PageError(HTTPStatus.INTERNAL_SERVER_ERROR, reason))

    def _handler(self, request: Request) -> Handler:
        if self._only_local and not _local(request.headers.get("host", "")):
            reason = "this port answers to localhost and to addresses only; --debug-host opens it to other names"
            raise PageError(HTTPStatus.MISDIRECTED_REQUEST, reason)
        allowed = [method for method, routes in self._by_method.items() if request.path in routes]
        if not allowed:
            raise PageError(HTTPStatus.NOT_FOUND)
        if request.method == "POST" and _cross_origin(request.headers):
            raise PageError(HTTPStatus.FORBIDDEN, "sent by a page of another origin")
        if request.method not in allowed:
            raise PageError(HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": ", ".join(allowed)})
        return self._by_method[request.method][request.path]


class Slices:
    """Shares the event loop: a long computation calls :meth:`pause` between its steps."""

    def __init__(self) -> None:
        self._began = perf_counter()

    async def pause(self) -> None:
        """Let others run if this slice has lasted for :data:`SLICE_SECONDS`."""
        if perf_counter() - self._began >= SLICE_SECONDS:
            await asyncio.sleep(0)
            self._began = perf_counter()


async def _request(reader: asyncio.StreamReader) -> Request | PageError:
    """The request of a connection, or the error to answer. Raises TimeoutError if it does not arrive in time."""
    try:
        async with asyncio.timeout(HEAD_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        return PageError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    return _parsed(head, reader) or PageError(HTTPStatus.BAD_REQUEST, "not an HTTP/1.1 request")


def _parsed(head: bytes, reader: asyncio.StreamReader | None = None) -> Request | None:
    """The request; None if it is not one."""
    first, *fields = head.decode("latin-1").split("\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        return None
    path, _, query = line[2].partition("?")
    try:
        parameters = parse_qsl(query, keep_blank_values=True, max_num_fields=MOST_PARAMETERS)
    except ValueError:
        return None
    headers = {name.lower(): value.strip() for name, _, value in (text.partition(":") for text in fields)}
    return Request(line[1], path, parameters, headers, reader)


async def _send(writer: asyncio.StreamWriter, page: Page, *, head_only: bool = False) -> None:
    """Send a response and wait until the kernel has all of it. Raises TimeoutError if the peer does not read it."""
    headers = {
        "Content-Type": page.content_type,
        "Content-Length": str(len(page.body)),
        "Connection": "close",
        **page.headers,
    }
    lines = [f"HTTP/1.1 {page.status} {HTTPStatus(page.status).phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    writer.transport.set_write_buffer_limits(0)
    writer.write("\r\n".join([*lines, "\r\n"]).encode("latin-1") + (b"" if head_only else page.body))
    async with asyncio.timeout(SEND_SECONDS):
        await writer.drain()


def _local(host: str) -> bool:
    """Whether a ``Host`` header is absent, an address or localhost."""
    name = re.sub(r":\d*$", "", host).strip("[]").lower()
    return not name or name == "localhost" or name.endswith(".localhost") or _address(name) is not None


def _cross_origin(headers: Mapping[str, str]) -> bool:
    """Whether a browser sends the request for a page of another origin. The rule is that of
    https://pkg.go.dev/net/http#CrossOriginProtection."""
    if site := headers.get("sec-fetch-site", ""):
        return site not in ("same-origin", "none")
    origin = headers.get("origin", "")
    return bool(origin) and origin.partition("://")[2] != headers.get("host", "")


def is_loopback(host: str) -> bool:
    """Whether a host is reached from its own machine only."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _error(path: str, error: PageError) -> Page:
    body = orjson.dumps({"error": error.reason, "path": path})
    return Page(body, "application/json", error.status, error.headers)
