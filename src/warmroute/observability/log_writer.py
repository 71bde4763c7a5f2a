"""A thread that formats and writes the lines of a log: a slow or unread log does not block the threads that log.

A pipe holds 64 KiB (pipe(7)); when it is full and not read, a write blocks. Here only the writer's thread blocks. The
records that wait are bounded; what comes beyond the bound is dropped and counted.

The process's log and the decision log each have one.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

BATCH_SECONDS = 0.02
"""Seconds that an ordinary record waits for others: to write ten lines together takes little longer than to write one."""
MOST_WAITING = 2000
"""Records that wait; further ones are dropped."""
FLUSH_SECONDS = 1.0
"""Longest time in seconds that a flush waits, also at exit."""

Record = TypeVar("Record")


class Stream(Protocol):
    """Where lines go. With a method ``fileno`` the descriptor is written, else ``write`` is called."""

    def write(self, text: str, /) -> object:
        """Write ``text``."""


class LogWriter(Generic[Record]):
    """Formats records and writes them to ``stream`` in a thread of its own.

    ``line_of`` gives a record's line, ``line_of_loss`` the line about a number of dropped records, both without the line
    break. The thread starts with the first record. It is a daemon: a blocked write does not keep the process from
    ending.
    """

    def __init__(self, line_of: Callable[[Record], str], stream: Stream, *, line_of_loss: Callable[[int], str]) -> None:
        self._line_of = line_of
        self._line_of_loss = line_of_loss
        self._stream = stream
        self._waiting: deque[Record | threading.Event] = deque()
        """Records, and an event for each flush that waits for the records before it."""
        self._wake = threading.Event()
        self._urgent = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._reported = 0
        self._broken = False
        """The last write failed, perhaps within a line."""
        self._beyond = 0
        """Records beyond the bound: counted by the thread that adds."""
        self._refused = 0
        """Records that the stream did not take: counted by the thread that writes."""

    @property
    def dropped(self) -> int:
        """Records that were lost: beyond the bound, or refused by the stream."""
        return self._beyond + self._refused

    def add(self, record: Record, *, urgent: bool = False) -> None:
        """Have a record written; an ``urgent`` one at once, with those before it. Never blocks. For one thread at a time."""
        if len(self._waiting) >= MOST_WAITING or self._closed:
            self._beyond += 1
            return
        self._waiting.append(record)
        if urgent:
            self._urgent.set()
        if not self._wake.is_set():
            self._wake.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
            self._thread.start()

    def flush(self) -> bool:
        """Wait until the records so far are written, at most :data:`FLUSH_SECONDS`. False: they are not."""
        if self._thread is None:
            return True
        written = threading.Event()
        self._waiting.append(written)
        self._urgent.set()
        self._wake.set()
        return written.wait(FLUSH_SECONDS)

    def close(self) -> bool:
        """Flush, and end the thread once it has nothing to write. False: some lines still wait."""
        written = self.flush()
        self._closed = True
        self._urgent.set()
        self._wake.set()
        return written

    def _run(self) -> None:
        while not self._closed or self._waiting:
            self._wake.wait()
            self._urgent.wait(BATCH_SECONDS)
            self._urgent.clear()
            self._wake.clear()
            self._write_waiting()

    def _write_waiting(self) -> None:
        """Write the records that wait now, and whether some before them were dropped."""
        lines: list[str] = []
        flushes: list[threading.Event] = []
        dropped, records = self.dropped, 0
        for _ in range(len(self._waiting)):
            item = self._waiting.popleft()
            if isinstance(item, threading.Event):
                flushes.append(item)
            else:
                lines.append(self._line(item))
                records += 1
        if dropped > self._reported:
            lines.append(self._line_of_loss(dropped - self._reported) + "\n")
        if self._broken and lines:
            lines.insert(0, "\n")
        try:
            self._write("".join(lines))
            self._reported = dropped
            self._broken = False
        except Exception:  # a closed or broken stream; there is nowhere else to report it
            self._broken = True
            self._refused += records
        for flush in flushes:
            flush.set()

    def _line(self, record: Record) -> str:
        try:
            return self._line_of(record) + "\n"
        except Exception as error:
            return f"a log line could not be formatted: {error!r}\n"

    def _write(self, text: str) -> None:
        if not text:
            return
        try:
            descriptor = self._stream.fileno()  # type: ignore[attr-defined]
        except (OSError, AttributeError):  # not a file: io.StringIO and its like
            self._stream.write(text)
            return
        # Not through the stream: a write that blocks would hold its lock, and the interpreter flushes stderr at exit.
        rest = memoryview(text.encode("utf-8", "backslashreplace"))
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:  # another process made the descriptor non-blocking
                select.select((), (descriptor,), ())
