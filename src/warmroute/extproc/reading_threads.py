"""Threads that read long bodies while the event loop serves other streams."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from warmroute.extproc.session import Session

THREADS = 2
"""Long bodies that are read at the same time. More threads would only compete for the interpreter lock."""

SWITCH_INTERVAL = 0.0005
"""Seconds after which a thread that reads a long body hands the GIL to the event loop (:func:`sys.setswitchinterval`). With
Python's default, 5 ms, every request waits that long each time it continues. It is in force only while a body is read: at
all times it costs an ordinary request 3 % more CPU."""

T = TypeVar("T")


class ReadingThreads:
    """Runs long steps of sessions, :data:`THREADS` at a time."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="read-body")
        self._steps = 0
        self._ordinary_interval = sys.getswitchinterval()

    async def run(self, step: Callable[[], T]) -> T:
        """The result of ``step``, which runs in a thread. Raises what it raises.

        The thread alone uses the session meanwhile: if the caller is cancelled, this returns when the thread is done, or at
        once if it has not begun.
        """
        self._begin()
        work = self._threads.submit(step)
        done = asyncio.wrap_future(work)
        done.add_done_callback(self._end)
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

    async def parse(self, session: Session) -> None:
        """Read the session's body: in a thread if that takes long."""
        if session.takes_long:
            await self.run(session.parse)
        else:
            session.parse()

    def _begin(self) -> None:
        self._steps += 1
        sys.setswitchinterval(SWITCH_INTERVAL)

    def _end(self, _: object) -> None:
        self._steps -= 1
        if not self._steps:
            sys.setswitchinterval(self._ordinary_interval)

    async def stop(self) -> None:
        """Drop the steps that have not begun and wait for the others. Safe to call again."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
