"""The last five minutes of one endpoint: requests in flight for a sparkline, and picks for its share. WITHOUT IO."""

from __future__ import annotations

from collections import deque

POINT_SECONDS = 5
"""Seconds of one point of a sparkline."""
POINTS = 60
"""Points of a sparkline: five minutes."""
SHARE_SECONDS = 60
"""Window of an endpoint's picks per second."""


class EngineHistory:
    """Fed once a second."""

    __slots__ = ("_in_flight", "_picks", "_sum", "_summed", "_work", "computing")

    def __init__(self) -> None:
        self._in_flight: deque[float] = deque(maxlen=POINTS)
        self._sum = 0.0
        self._summed = 0
        self._picks: deque[int] = deque(maxlen=SHARE_SECONDS + 1)
        self._work: float | None = None
        self.computing = False
        """Whether the engine's counters grew in the last second."""

    def add(self, *, in_flight: float, picks: int, work: float | None) -> None:
        """The next second. ``picks`` counts since the endpoint joined; ``work`` is the sum of the engine's counters."""
        self._sum += in_flight
        self._summed += 1
        if self._summed == POINT_SECONDS:
            self._in_flight.append(round(self._sum / POINT_SECONDS, 1))
            self._sum, self._summed = 0.0, 0
        if self._picks and picks < self._picks[-1]:
            self._picks.clear()
        self._picks.append(picks)
        self.computing = work is not None and self._work is not None and work > self._work
        self._work = work

    @property
    def recent_picks(self) -> int:
        """Picks of the last minute."""
        return self._picks[-1] - self._picks[0] if self._picks else 0

    @property
    def picks_per_second(self) -> float:
        """Of the last minute."""
        return self.recent_picks / max(1, len(self._picks) - 1)

    def in_flight(self) -> list[float]:
        """Mean requests in flight of each five seconds, the oldest first."""
        return list(self._in_flight)
