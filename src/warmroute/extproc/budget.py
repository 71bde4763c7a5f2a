"""Budgets of memory that all streams share: one for request bodies, one for the headers of requests."""

from __future__ import annotations

from threading import Lock

SPARE = 4
"""A fraction of 1/SPARE of the limit is kept for bodies that have arrived: announced ones cannot take it."""


class MemoryBudget:
    """Bytes of memory that may be taken at once: by request bodies while they come in and while they are read, or by the
    headers of requests that have not come completely.

    Thread-safe, since long bodies are read in threads.
    """

    __slots__ = ("_announced_limit", "_lock", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """Most bytes at once."""
        self._announced_limit = limit - limit // SPARE
        self._lock = Lock()
        self.used = 0
        """Bytes taken now."""

    def take(self, size: int) -> bool:
        """Take ``size`` bytes for what has arrived. False, and nothing is taken, if too few are left."""
        return self._take(size, self.limit)

    def reserve(self, size: int) -> bool:
        """Take ``size`` bytes for a body that is announced and has not arrived. False if too few are left.

        A client that announces a large body and does not send it keeps out other large bodies until its request times
        out, but no small ones.
        """
        return self._take(size, self._announced_limit)

    def give(self, size: int) -> None:
        """Give ``size`` bytes back."""
        with self._lock:
            self.used -= size

    def _take(self, size: int, limit: int) -> bool:
        with self._lock:
            if self.used + size > limit:
                return False
            self.used += size
        return True
