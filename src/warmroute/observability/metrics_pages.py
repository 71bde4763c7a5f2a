"""The pages of the metrics port: Prometheus metrics and health."""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import Callable
from http import HTTPStatus

from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder

from warmroute.observability.metrics import Metrics
from warmroute.observability.page_server import HEALTH, Page, PageError, Request, Routes, Slices

COMPRESSED_IN_A_THREAD = 64 << 10
"""Bytes from which a page is compressed in a thread: on the event loop 2 MB would hold it for 6 ms."""
GZIP_LEVEL = 1
"""Half the time of the default level, for a page that is 7 % longer (1,000 endpoints)."""

READY = "/readyz"
"""Path of the page that says whether requests can be routed."""
DEBUG_PATHS = ("/debug/endpoints", "/debug/decisions", "/debug/settings")
"""Pages that were on this port once."""

_END = b"# EOF\n"
"""Last line of OpenMetrics."""


def ready_body(pid: int) -> bytes:
    """The body of :data:`READY` when the process of that id is ready: another one may have the port that it was to have."""
    return f"ok\nprocess {pid}\n".encode()


class MetricsPages:
    """``/metrics``, ``/healthz`` and ``/readyz``. One page of metrics is rendered at a time.

    ``ready`` returns whether requests can be routed: what the gRPC health service calls readiness.
    """

    def __init__(self, metrics: Metrics, *, ready: Callable[[], bool]) -> None:
        self._metrics = metrics
        self._ready = ready
        self._rendering = asyncio.Lock()

    def routes(self) -> Routes:
        """The routes for a :class:`~warmroute.observability.page_server.PageServer`."""
        return {
            "/": _index,
            "/metrics": self._exposition,
            HEALTH: self._healthz,
            READY: self._readyz,
            **dict.fromkeys(DEBUG_PATHS, _moved),
        }

    async def _exposition(self, request: Request) -> Page:
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except (TypeError, ValueError):  # a version that is no number
            encode, content_type = choose_encoder("")
        async with self._rendering:
            body = await self._render(encode)
        if "gzip" not in request.headers.get("accept-encoding", "").lower():
            return Page(body, content_type)
        if len(body) < COMPRESSED_IN_A_THREAD:
            body = _gzipped(body)
        else:
            body = await asyncio.to_thread(_gzipped, body)
        return Page(body, content_type, headers={"Content-Encoding": "gzip"})

    async def _healthz(self, _: Request) -> Page:
        shared_state = self._metrics.shared_state
        detail = "" if shared_state is None else f"{shared_state().health()}\n"
        return Page(f"ok\n{detail}".encode(), "text/plain; charset=utf-8")

    async def _readyz(self, _: Request) -> Page:
        if not self._ready():
            raise PageError(HTTPStatus.SERVICE_UNAVAILABLE, "not ready")
        return Page(ready_body(os.getpid()), "text/plain; charset=utf-8")

    async def _render(self, encode: Callable[..., bytes]) -> bytes:
        """The page, read and encoded in parts: with 1,000 endpoints it has 20,000 samples."""
        slices = Slices()
        readings = []
        for reading in self._metrics.readings():
            readings.append(reading)
            await slices.pause()
        texts: list[bytes] = []
        ended, name = False, ""
        for part in self._metrics.families(readings):
            text = encode(_Registry(part))
            ended = ended or text.endswith(_END)
            text = text.removesuffix(_END)
            texts.append(_without_head(text) if part.name == name else text)
            name = part.name
            await slices.pause()
        return b"".join([*texts, _END] if ended else texts)


class _Registry:
    """One metric in the form that the encoders take."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> list[Metric]:
        return [self._metric]


def _without_head(text: bytes) -> bytes:
    """The text without its HELP, TYPE and UNIT lines."""
    while text.startswith(b"# "):
        text = text.partition(b"\n")[2]
    return text


def _gzipped(body: bytes) -> bytes:
    return zlib.compress(body, GZIP_LEVEL, wbits=16 + zlib.MAX_WBITS)


async def _index(_: Request) -> Page:
    rows = (
        '<li><a href="/metrics">/metrics</a>: Prometheus metrics, as text or OpenMetrics</li>'
        '<li><a href="/healthz">/healthz</a>: 200 while the process answers</li>'
        '<li><a href="/readyz">/readyz</a>: 200 while requests can be routed, as on the gRPC health port; else 503</li>'
    )
    page = f"<!doctype html><title>Warmroute</title><h1>Warmroute</h1><ul>{rows}</ul>"
    return Page(page.encode(), "text/html; charset=utf-8")


async def _moved(_: Request) -> Page:
    reason = "The debug pages have a port of their own: see --debug-port and --debug-host"
    raise PageError(HTTPStatus.NOT_FOUND, reason)
