"""How late the event loop is: the one thing that slows every request at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

INTERVAL = 0.5
"""Seconds between two measurements."""


async def watch(observe: Callable[[float], None], *, interval: float = INTERVAL) -> None:
    """Tell ``observe``, every ``interval`` seconds, by how many seconds the running loop woke too late. Never returns."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval
        await asyncio.sleep(interval)
        observe(max(0.0, loop.time() - due))
