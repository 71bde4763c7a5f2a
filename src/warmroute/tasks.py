"""The life of background tasks: each has an owner that starts and stops it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

logger = logging.getLogger(__name__)

RESTART_DELAY = 1.0
"""Seconds until work that ended or failed is started again."""


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended. What they return or raise is dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def keep_running(work: Callable[[], Awaitable[None]], name: str) -> None:
    """Run ``work``, which should never end, and start it again whenever it ends or fails. A failure is logged."""
    while True:
        try:
            await work()
        except Exception:
            logger.exception("background task failed and is started again", extra={"fields": {"task": name}})
        await asyncio.sleep(RESTART_DELAY)


class BackgroundTask:
    """One task, ``work``, that its owner starts and stops, and that :func:`keep_running` runs. It may be started again after
    it was stopped."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._work = work
        self._name = name
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Run the work on the running event loop."""
        self._task = asyncio.create_task(keep_running(self._work, self._name), name=self._name)

    async def stop(self) -> None:
        """Cancel the work and wait until it has ended. Safe before :meth:`start` and a second time."""
        task, self._task = self._task, None
        if task is not None:
            await cancel(task)
