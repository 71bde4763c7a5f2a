"""The life of background tasks: each has an owner that starts and stops it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

logger = logging.getLogger(__name__)

RESTART_DELAY = 1.0
"""Seconds until work that ended or failed is started again."""


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended. What they return or raise is dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class BackgroundTask:
    """One task that its owner starts and stops; it may be started again after it was stopped.

    ``work`` should never end. Whenever it ends or fails it is started again; a failure is logged.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._work = work
        self._name = name
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Run the work on the running event loop."""
        self._task = asyncio.create_task(self._keep_running(), name=self._name)

    async def stop(self) -> None:
        """Cancel the work and wait until it has ended. Safe before :meth:`start` and a second time."""
        task, self._task = self._task, None
        if task is not None:
            await cancel(task)

    async def _keep_running(self) -> None:
        while True:
            try:
                await self._work()
            except Exception:
                logger.exception("background task failed and is started again", extra={"fields": {"task": self._name}})
            await asyncio.sleep(RESTART_DELAY)
