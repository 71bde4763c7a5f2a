"""Log lines that could come with every request. WITHOUT IO: the time is passed in."""

from __future__ import annotations


class LogThrottle:
    """Counts occurrences, and says when a line about them is due: at most one in ``interval`` seconds."""

    __slots__ = ("_count", "_due", "_interval")

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._count = 0
        self._due = float("-inf")

    def add(self, now: float) -> int:
        """Count one. Returns the occurrences since the last line, this one included, if a line is due; else 0."""
        self._count += 1
        if now < self._due:
            return 0
        count, self._count, self._due = self._count, 0, now + self._interval
        return count
