"""Measures the delay of the event loop, which slows every request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

INTERVAL = 0.5
"""Seconds between two measurements."""


async def watch(observe: Callable[[float], None], *, interval: float = INTERVAL) -> None:
    """Every ``interval`` seconds call ``observe`` with the seconds by which the running loop woke late. Never returns."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval
        await asyncio.sleep(interval)
        observe(max(0.0, loop.time() - due))
