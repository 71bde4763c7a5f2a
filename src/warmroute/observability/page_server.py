"""An HTTP server for operators' pages: one port, errors as JSON, work on the event loop in short slices."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from time import perf_counter

from aiohttp import web

from warmroute.errors import ConfigurationError

logger = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT = 1.0
"""Seconds that a response may take to finish when the server stops."""
MOST_REQUESTS = 4
"""Requests answered at once on one port; further ones get 503."""
SEND_SECONDS = 10.0
"""Longest time that a response takes to be read; then its connection is aborted."""
HEALTH = "/healthz"
SLICE_SECONDS = 0.002
"""Longest time that a page computes before other work of the event loop gets its turn."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PageServer:
    """Serves ``routes`` on ``host`` (empty: all interfaces) and ``port`` (0: any free port).

    ``port_flag`` is the setting that an error names.
    """

    def __init__(self, host: str, port: int, routes: list[web.RouteDef], *, port_flag: str) -> None:
        self._host = host
        self._port = port
        self._port_flag = port_flag
        self._runner: web.AppRunner | None = None
        self._places = asyncio.Semaphore(MOST_REQUESTS)
        self._app = web.Application(middlewares=[_errors_as_json, self._bounded])
        self._app.add_routes(routes)

    @property
    def port(self) -> int:
        """The port listened on; before the start the one asked for."""
        return self._port

    async def start(self) -> None:
        """Listen and serve. Raises ConfigurationError if the address is unavailable."""
        listener = _listen(self._host, self._port, self._port_flag)
        self._port = listener.getsockname()[1]
        self._runner = web.AppRunner(self._app, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT)
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def stop(self) -> None:
        """Close the port and every connection. May be called more than once."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    @web.middleware
    async def _bounded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer at most :data:`MOST_REQUESTS` at once, each until it is sent; not so the health check, which is cheap."""
        if request.path == HEALTH:
            return await handler(request)
        if self._places.locked():
            raise web.HTTPServiceUnavailable(
                reason=f"More than {MOST_REQUESTS} requests at once", headers={"Retry-After": "1"}
            )
        async with self._places:
            response = await handler(request)
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await response.prepare(request)
                    await response.write_eof()
            except TimeoutError:  # the reader does not read
                if request.transport is not None:
                    request.transport.abort()
            return response


class Slices:
    """Shares the event loop: a long computation calls :meth:`pause` between its steps."""

    def __init__(self) -> None:
        self._began = perf_counter()

    async def pause(self) -> None:
        """Let others run if this slice has lasted for :data:`SLICE_SECONDS`."""
        if perf_counter() - self._began >= SLICE_SECONDS:
            await asyncio.sleep(0)
            self._began = perf_counter()


def _listen(host: str, port: int, port_flag: str) -> socket.socket:
    """A listening socket; for the empty host one that takes IPv4 and IPv6, so that port 0 means one port."""
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, dualstack_ipv6=both)
    except OSError as error:
        where = f"{host or 'all interfaces'}, port {port} ({port_flag})"
        # create_server appends the address to the system's text
        text = (error.strerror or str(error)).split(" (while attempting")[0]
        raise ConfigurationError(f"cannot listen on {where}: {text}") from error


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors as JSON. A page that fails is a 500 for its reader and a line in the log."""
    headers: dict[str, str] = {}
    try:
        return await handler(request)
    except web.HTTPException as error:
        status, reason = error.status, error.reason
        if "Retry-After" in error.headers:
            headers["Retry-After"] = error.headers["Retry-After"]
    except Exception as error:
        logger.exception("a page failed", extra={"fields": {"path": request.path}})
        status, reason = 500, f"{type(error).__name__}; see the log"
    return web.json_response({"error": reason, "path": request.path}, status=status, headers=headers)
