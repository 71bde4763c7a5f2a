"""The pages of the metrics port: Prometheus metrics, health, and what the router sees, as JSON."""

from __future__ import annotations

import html
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from warmroute.errors import ConfigurationError
from warmroute.observability.metrics import Metrics

logger = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT = 1.0
"""Seconds that a page being sent may take to finish when the server stops."""

PAGES = {
    "/metrics": "Prometheus metrics, as text or OpenMetrics",
    "/healthz": "200 while the process answers; readiness is on the gRPC health port",
    "/debug/endpoints": "every endpoint: its state, its load as the router sees it, its part of the prefix index",
    "/debug/decisions": "the last decisions, each with the terms of every endpoint's cost",
    "/debug/settings": "the settings in force",
}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Pages:
    """An HTTP server for operators, not for clients: keep its port inside the cluster.

    ``endpoints``, ``decisions`` and ``settings`` give plain data (what JSON knows) for the pages under ``/debug``; they
    are called for each request. ``host`` is an address, or empty for all interfaces; ``port`` 0 takes any free port.
    """

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Metrics,
        *,
        endpoints: Callable[[], Any],
        decisions: Callable[[], Any],
        settings: Callable[[], Any],
    ) -> None:
        self._host = host
        self._port = port
        self._metrics = metrics
        self._runner: web.AppRunner | None = None
        self._app = web.Application(middlewares=[_errors_as_json])
        self._app.add_routes(
            [
                web.get("/", _index),
                web.get("/metrics", self._exposition),
                web.get("/healthz", _healthz),
                web.get("/debug/endpoints", _json_page(endpoints)),
                web.get("/debug/decisions", _json_page(decisions)),
                web.get("/debug/settings", _json_page(settings)),
            ]
        )

    @property
    def port(self) -> int:
        """The port listened on; before the start the one asked for."""
        return self._port

    async def start(self) -> None:
        """Listen and serve. Raises ConfigurationError where the address cannot be listened on."""
        listener = _listen(self._host, self._port)
        self._port = listener.getsockname()[1]
        self._runner = web.AppRunner(self._app, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT)
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def stop(self) -> None:
        """Close the port and every connection. May be called more than once."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def _exposition(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        response = web.Response(body=encode(self._metrics.registry), headers={"Content-Type": content_type})
        if "gzip" in request.headers.get("Accept-Encoding", "").lower():
            response.enable_compression(web.ContentCoding.gzip)
        return response


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; for the empty host one that takes IPv4 and IPv6, so that port 0 means one port."""
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, dualstack_ipv6=both)
    except OSError as error:
        where = f"{host or 'all interfaces'}, port {port} (--metrics-port)"
        raise ConfigurationError(f"cannot listen on {where}: {error.strerror or error}") from error


def _json_page(data: Callable[[], Any]) -> _Handler:
    async def page(request: web.Request) -> web.Response:
        pretty = request.query.get("pretty", "") not in ("", "0", "false")
        options = orjson.OPT_NON_STR_KEYS | (orjson.OPT_INDENT_2 if pretty else 0)
        body = orjson.dumps(data(), default=str, option=options | orjson.OPT_APPEND_NEWLINE)
        return web.Response(body=body, content_type="application/json")

    return page


async def _healthz(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def _index(_: web.Request) -> web.Response:
    rows = "".join(f'<li><a href="{path}">{path}</a>: {html.escape(text)}</li>' for path, text in PAGES.items())
    note = "Add <code>?pretty=1</code> to the pages under /debug to read them with your own eyes."
    page = f"<!doctype html><title>Warmroute</title><h1>Warmroute</h1><ul>{rows}</ul><p>{note}</p>"
    return web.Response(text=page, content_type="text/html")


@web.middleware
async def _errors_as_json(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """A page that fails is a 500 for its reader and a line in the log; the other pages do not notice."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        status, reason = error.status, error.reason
    except Exception as error:
        logger.exception("A page failed", extra={"fields": {"path": request.path}})
        status, reason = 500, f"{type(error).__name__}; the log tells more"
    return web.json_response({"error": reason, "path": request.path}, status=status)
