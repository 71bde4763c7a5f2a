"""The hint that requests go past the picker."""

from __future__ import annotations

import asyncio

import pytest

from warmroute.observability import bypass

LONG = 3600.0


async def looks(answers: list[bool], *, log_interval: float) -> int:
    """How many looks there were once the watch has answered all or, after a hint, waits."""
    seen = 0
    answered = asyncio.Event()

    def bypassed() -> bool:
        nonlocal seen
        seen += 1
        if seen >= len(answers) or (answers[seen - 1] and log_interval == LONG):
            answered.set()
        return answers[min(seen, len(answers)) - 1]

    watching = asyncio.create_task(bypass.watch(bypassed, interval=0.0, log_interval=log_interval))
    await answered.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return seen


async def test_a_picker_that_serves_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert await looks([False] * 5, log_interval=LONG) >= 5
    assert caplog.messages == []


async def test_a_bypassed_picker_says_so_once_for_long(caplog: pytest.LogCaptureFixture) -> None:
    assert await looks([False, True, True, True], log_interval=LONG) == 2
    assert caplog.messages == ["engines compute, but no request has reached this picker for a minute"]


async def test_it_says_so_again_later(caplog: pytest.LogCaptureFixture) -> None:
    await looks([True, True, True], log_interval=0.0)
    assert len(caplog.messages) >= 3
