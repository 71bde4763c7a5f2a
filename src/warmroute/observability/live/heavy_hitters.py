"""The most frequent keys of a stream in bounded memory, older occurrences counting less. WITHOUT IO.

Space-Saving (Metwally, Agrawal, El Abbadi: Efficient Computation of Frequent and Top-k Elements in Data Streams, 2005,
https://doi.org/10.1007/978-3-540-30570-5_27), with evictions in batches: the summary grows to twice its size, then half of
the entries go at once. That is O(1) per occurrence on average, without a heap.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import nlargest
from operator import attrgetter
from typing import Generic, TypeVar

Detail = TypeVar("Detail")

FORGOTTEN = 0.01
"""Decayed count below which an entry goes."""


@dataclass(slots=True)
class Hitter(Generic[Detail]):
    """A key that is counted."""

    key: int
    detail: Detail
    """Given with the key's first occurrence."""
    count: float
    """At least the decayed number of its occurrences."""
    error: float
    """``count`` is too high by at most this."""

    @property
    def least(self) -> float:
        """At most the decayed number of its occurrences."""
        return self.count - self.error


class HeavyHitters(Generic[Detail]):
    """Counts at most ``2 * size`` keys. A key that is not counted has occurred at most ``floor`` times."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._hitters: dict[int, Hitter[Detail]] = {}
        self.floor = 0.0

    def count(self, key: int) -> bool:
        """One occurrence of the key, if it is counted; False: it is not."""
        hitter = self._hitters.get(key)
        if hitter is None:
            return False
        hitter.count += 1
        return True

    def add(self, key: int, detail: Detail) -> None:
        """One occurrence of the key; ``detail`` is kept if it is the first one."""
        if self.count(key):
            return
        if len(self._hitters) >= 2 * self._size:
            self._evict()
        self._hitters[key] = Hitter(key, detail, self.floor + 1, self.floor)

    def decay(self, factor: float) -> None:
        """Multiply all counts."""
        self.floor *= factor
        for hitter in self._hitters.values():
            hitter.count *= factor
            hitter.error *= factor
        if any(hitter.count < FORGOTTEN for hitter in self._hitters.values()):
            self.floor = max(self.floor, FORGOTTEN)
            self._hitters = {key: hitter for key, hitter in self._hitters.items() if hitter.count >= FORGOTTEN}

    def hitters(self) -> list[Hitter[Detail]]:
        """The keys that are counted, in no order."""
        return list(self._hitters.values())

    def _evict(self) -> None:
        kept = nlargest(self._size, self._hitters.values(), key=attrgetter("count"))
        self.floor = max(self.floor, kept[-1].count)
        self._hitters = {hitter.key: hitter for hitter in kept}
