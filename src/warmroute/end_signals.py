"""The signals that ask a command to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable


def on_end_signal(handler: Callable[[], None]) -> None:
    """Call ``handler`` in the running event loop for each SIGINT, SIGTERM and SIGHUP.

    A SIGHUP that is ignored stays so: ``nohup`` ignores it.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, handler)


def end_events() -> tuple[asyncio.Event, asyncio.Event]:
    """For a command that ends in order: the first end signal sets the first event, each further one the second."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (hurry if stop.is_set() else stop).set()

    on_end_signal(signalled)
    return stop, hurry
