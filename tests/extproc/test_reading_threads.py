"""The threads that read long bodies: results, errors, and how the GIL is shared meanwhile."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator

import pytest

from tests.waiting import eventually
from warmroute.extproc.reading_threads import SWITCH_INTERVAL, ReadingThreads


@pytest.fixture
async def threads() -> AsyncIterator[ReadingThreads]:
    threads = ReadingThreads()
    yield threads
    await threads.stop()


async def test_a_step_runs_in_another_thread_and_gives_its_result(threads: ReadingThreads) -> None:
    assert await threads.run(threading.get_ident) != threading.get_ident()


async def test_what_a_step_raises_is_raised(threads: ReadingThreads) -> None:
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 / 0)


async def test_the_gil_changes_hands_faster_only_while_a_step_runs(threads: ReadingThreads) -> None:
    ordinary = sys.getswitchinterval()
    assert await threads.run(sys.getswitchinterval) == pytest.approx(SWITCH_INTERVAL)
    await eventually(lambda: sys.getswitchinterval() == pytest.approx(ordinary), "the ordinary interval is back")


async def test_a_cancelled_step_gives_the_ordinary_interval_back(threads: ReadingThreads) -> None:
    ordinary = sys.getswitchinterval()
    begun, release = threading.Event(), threading.Event()

    def step() -> None:
        begun.set()
        release.wait(60)

    task = asyncio.create_task(threads.run(step))
    await asyncio.to_thread(begun.wait, 60)
    task.cancel()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: sys.getswitchinterval() == pytest.approx(ordinary), "the ordinary interval is back")
