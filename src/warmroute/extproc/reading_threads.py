"""Threads that read long bodies while the event loop serves other streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

THREADS = 2
"""Long bodies that are read at the same time. More threads would only compete for the interpreter lock."""

T = TypeVar("T")


class ReadingThreads:
    """Runs long steps of sessions, :data:`THREADS` at a time."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="read-body")

    async def run(self, step: Callable[[], T]) -> T:
        """The result of ``step``, which runs in a thread. Raises what it raises.

        The thread alone uses the session meanwhile: if the caller is cancelled, this returns when the thread is done, or at
        once if it has not begun.
        """
        work = self._threads.submit(step)
        done = asyncio.wrap_future(work)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            work.cancel()
            while not done.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait((done,))
            if not done.cancelled():
                done.exception()  # retrieved, or asyncio would log it; the caller is cancelled and does not need it
            raise

    async def stop(self) -> None:
        """Drop the steps that have not begun and wait for the others. Safe to call again."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
