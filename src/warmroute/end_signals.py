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
