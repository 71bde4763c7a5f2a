"""Replays in parallel, each in a process of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from time import monotonic
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

from warmroute.errors import WarmrouteError
from warmroute_lab import terminal

LOG_INTERVAL = 30.0
"""Seconds between two lines of progress where there is no terminal."""

Result = TypeVar("Result")


def replay_all(
    replay: Callable[..., Result], arguments: Sequence[tuple[Any, ...]], console: Console, *, jobs: int
) -> list[Result]:
    """The results of ``replay`` for each tuple of arguments, in their order.

    Prints progress as a bar or, without a terminal, as a line every :data:`LOG_INTERVAL` seconds. Raises what a replay
    raises, and WarmrouteError if a process was killed.
    """
    columns = MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with (
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_end_with_parent) as workers,
        terminal.progress(console, *columns, description="replays") as progress,
    ):
        task, said_at, done = progress.add_task("", total=len(arguments)), monotonic(), 0
        running = [workers.submit(replay, *each) for each in arguments]
        try:
            for finished in as_completed(running):
                finished.result()
                done += 1
                progress.advance(task)
                if not console.is_terminal and monotonic() >= said_at + LOG_INTERVAL:
                    said_at = monotonic()
                    console.print(f"{done} of {len(arguments)} replays", highlight=False)
        except BrokenProcessPool as error:
            raise WarmrouteError("a replay's process was killed; possibly the machine has too little memory") from error
        except BaseException:
            for worker in active_children():  # else the exit waits for their replays, which may take minutes
                worker.terminate()
            raise
    return [each.result() for each in running]


def _end_with_parent() -> None:
    """Let this worker end at once on Ctrl-C and at the end of its parent."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
