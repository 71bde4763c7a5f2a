"""Background tasks end when their owner says so, and never before."""

from __future__ import annotations

import asyncio

import pytest

from tests.waiting import eventually
from warmroute import tasks
from warmroute.tasks import BackgroundTask, cancel


class Work:
    """Counts how often it began and ended."""

    def __init__(self) -> None:
        self.begun = self.ended = 0

    async def run(self) -> None:
        self.begun += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.ended += 1


async def test_work_runs_from_start_to_stop() -> None:
    work = Work()
    task = BackgroundTask(work.run, "work")
    task.start()
    await eventually(lambda: work.begun)
    assert work.ended == 0
    await task.stop()
    assert work.ended == 1


async def test_work_that_fails_or_ends_is_started_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tasks, "RESTART_DELAY", 0.0)
    begun = 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            raise RuntimeError("once")
        if begun > 2:
            await asyncio.Event().wait()

    task = BackgroundTask(work, "work")
    task.start()
    await eventually(lambda: begun == 3)
    await task.stop()
    assert [record.message for record in caplog.records] == ["background task failed and is started again"]


async def test_it_can_be_stopped_before_it_is_started_and_twice() -> None:
    work = Work()
    task = BackgroundTask(work.run, "work")
    await task.stop()
    task.start()
    await task.stop()
    await task.stop()
    assert work.begun == work.ended


async def test_it_can_be_started_again() -> None:
    work = Work()
    task = BackgroundTask(work.run, "work")
    for times in (1, 2):
        task.start()
        await eventually(lambda times=times: work.begun == times)  # type: ignore[misc]
        await task.stop()
    assert work.ended == 2


async def test_the_end_of_tasks_that_fail_raises_nothing() -> None:
    async def fails() -> None:
        raise ValueError

    task = asyncio.create_task(fails())
    await cancel(task)
    assert task.done()
