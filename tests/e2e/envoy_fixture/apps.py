"""The endpoint picker in the test's own process, so that a test can look into it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from envoy_fixture.pickers import endpoints_document
from warmroute.picker import EndpointPicker
from warmroute.settings import Settings


@asynccontextmanager
async def picker_app(
    targets: Iterable[str], directory: Path, models: str = "", **settings: Any
) -> AsyncIterator[EndpointPicker]:
    """A running picker over ``targets``; everything listens on free ports of 127.0.0.1."""
    endpoints = directory / "endpoints.yaml"
    endpoints.write_text(endpoints_document(targets) if not models else endpoints_document(targets)[:-1] + models + "}")
    defaults = {
        "endpoints_file": endpoints,
        "host": "127.0.0.1",
        "grpc_port": 0,
        "grpc_health_port": 0,
        "metrics_port": 0,
        "secure_serving": False,
        "routing_strategy": "PREFIX_CACHE",
    }
    app = EndpointPicker(Settings(**defaults | settings))
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


def target(app: EndpointPicker) -> str:
    """``address:port`` of the app's ext_proc service."""
    return f"127.0.0.1:{app.server.grpc_port}"


async def eventually(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Return once ``condition`` holds."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {seconds} s") from None
