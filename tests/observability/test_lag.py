"""The measurement of the event loop's lag."""

from __future__ import annotations

import asyncio
import time

from warmroute.observability import lag


async def test_a_blocked_loop_shows() -> None:
    seen: asyncio.Queue[float] = asyncio.Queue()
    watching = asyncio.create_task(lag.watch(seen.put_nowait, interval=0.001))
    try:
        assert await seen.get() >= 0
        time.sleep(0.05)  # noqa: ASYNC251 (blocking is the point)
        assert max([await seen.get(), await seen.get()]) > 0.04
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
