"""Waiting for conditions. A limit only ends a test that hangs: it is far above what a loaded machine needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LIMIT = 60.0
"""Seconds."""


async def eventually(condition: Callable[[], object], what: str = "the condition", seconds: float = LIMIT) -> None:
    """Return once ``condition`` holds; it is asked every 5 ms. Raises AssertionError after ``seconds``."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {seconds} s") from None
