"""Memory for request bodies, shared by all streams. Without IO."""

from __future__ import annotations

SPARE = 4
"""A fraction of 1/SPARE of the limit is kept for bodies that are here: announced ones cannot take it."""


class BodyBudget:
    """Bytes of memory that request bodies may take at once: while they come in and while they are read."""

    __slots__ = ("_announced_limit", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """Most bytes at once."""
        self._announced_limit = limit - limit // SPARE
        self.used = 0
        """Bytes taken now."""

    def take(self, size: int) -> bool:
        """Take ``size`` bytes for what is here. False, and nothing is taken, where they are not left."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True

    def reserve(self, size: int) -> bool:
        """Take ``size`` bytes for a body that is announced and has not come. False where they are not left.

        A client that announces a large body and does not send it keeps out other large bodies, until its time is over, but
        no small ones.
        """
        return self.used + size <= self._announced_limit and self.take(size)

    def give(self, size: int) -> None:
        """Give ``size`` bytes back."""
        self.used -= size
