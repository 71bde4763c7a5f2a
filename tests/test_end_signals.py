"""The signals that end a command."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from tests.waiting import eventually
from warmroute.end_signals import on_end_signal

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("ignored", [False, True], ids=["terminal", "nohup"])
async def test_a_hangup_that_is_ignored_stays_so(ignored: bool) -> None:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    heard: list[None] = []
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
        on_end_signal(lambda: heard.append(None))
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        await eventually(lambda: len(heard) == (1 if ignored else 2))
        os.kill(os.getpid(), signal.SIGTERM)
        await eventually(lambda: len(heard) == (2 if ignored else 3))
    finally:
        for number, handler in before.items():
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, handler)
