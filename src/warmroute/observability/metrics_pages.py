"""The pages of the metrics port: Prometheus metrics and health."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from aiohttp import web
from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder

from warmroute.observability.metrics import Metrics
from warmroute.observability.page_server import HEALTH, Slices

SAMPLES_AT_ONCE = 200
"""Samples encoded without a pause: about 1 ms."""
COMPRESSED_IN_A_THREAD = 64 << 10
"""Bytes from which a page is compressed in a thread: on the event loop 2 MB would hold it for 30 ms."""

_END = b"# EOF\n"
"""Last line of OpenMetrics."""


class MetricsPages:
    """``/metrics`` and ``/healthz``. One page is rendered at a time."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._rendering = asyncio.Lock()

    def routes(self) -> list[web.RouteDef]:
        """The routes for a :class:`~warmroute.observability.page_server.PageServer`."""
        return [
            web.get("/", _index),
            web.get("/metrics", self._exposition),
            web.get(HEALTH, _healthz),
            web.get("/debug/{page}", _moved),
        ]

    async def _exposition(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        async with self._rendering:
            body = await self._render(encode)
        response = web.Response(
            body=body, headers={"Content-Type": content_type}, zlib_executor_size=COMPRESSED_IN_A_THREAD
        )
        if "gzip" in request.headers.get("Accept-Encoding", "").lower():
            response.enable_compression(web.ContentCoding.gzip)
        return response

    async def _render(self, encode: Callable[..., bytes]) -> bytes:
        """The page, encoded in parts: with 1,000 endpoints it has 20,000 samples."""
        slices = Slices()
        parts: list[bytes] = []
        ended = False
        for metric in self._metrics.registry.collect():
            for number, part in enumerate(_parts(metric)):
                text = encode(_Registry(part))
                ended = ended or text.endswith(_END)
                text = text.removesuffix(_END)
                parts.append(_without_head(text) if number else text)
                await slices.pause()
        return b"".join([*parts, _END] if ended else parts)


class _Registry:
    """One metric, as the encoders take it."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> list[Metric]:
        return [self._metric]


def _parts(metric: Metric) -> Iterator[Metric]:
    """The metric in parts of at most :data:`SAMPLES_AT_ONCE` samples."""
    samples = metric.samples
    if len(samples) <= SAMPLES_AT_ONCE:
        yield metric
        return
    for first in range(0, len(samples), SAMPLES_AT_ONCE):
        part = Metric(metric.name, metric.documentation, metric.type, metric.unit)
        part.samples = samples[first : first + SAMPLES_AT_ONCE]
        yield part


def _without_head(text: bytes) -> bytes:
    """The text without its HELP, TYPE and UNIT lines."""
    while text.startswith(b"# "):
        text = text.partition(b"\n")[2]
    return text


async def _healthz(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def _index(_: web.Request) -> web.Response:
    rows = (
        '<li><a href="/metrics">/metrics</a>: Prometheus metrics, as text or OpenMetrics</li>'
        '<li><a href="/healthz">/healthz</a>: 200 while the process answers; readiness is on the gRPC health port</li>'
    )
    page = f"<!doctype html><title>Warmroute</title><h1>Warmroute</h1><ul>{rows}</ul>"
    return web.Response(text=page, content_type="text/html")


async def _moved(_: web.Request) -> web.Response:
    raise web.HTTPNotFound(reason="The debug pages have a port of their own: see --debug-port and --debug-host")
