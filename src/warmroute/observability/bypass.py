"""A hint in the log while engines work on requests that no picker has chosen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

INTERVAL = 10.0
"""Seconds between two looks."""
LOG_INTERVAL = 600.0
"""Seconds without a look after a hint."""

logger = logging.getLogger(__name__)


async def watch(
    bypassed: Callable[[], bool], *, interval: float = INTERVAL, log_interval: float = LOG_INTERVAL
) -> None:
    """Look every ``interval`` seconds and warn at most once in ``log_interval``. Never returns."""
    while True:
        await asyncio.sleep(interval)
        if bypassed():
            logger.warning(
                "engines compute, but no request has reached this picker for a minute",
                extra={"fields": {"causes": "another picker serves them, or the gateway does not ask the picker"}},
            )
            await asyncio.sleep(log_interval)
