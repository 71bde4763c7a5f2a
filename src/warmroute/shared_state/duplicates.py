"""Batches by picker and sequence number: which one comes for the second time. WITHOUT IO."""

from __future__ import annotations

from collections import OrderedDict

WINDOW = 1024
"""Batches of one picker before its latest that may still come, in any order. Older ones count as duplicates."""
MOST_PICKERS = 1024
"""Pickers whose sequence is remembered; those heard of last."""


class Duplicates:
    """For each picker the highest sequence number, and a bit for each of those before it."""

    def __init__(self) -> None:
        self._seen: OrderedDict[int, tuple[int, int]] = OrderedDict()

    def is_new(self, picker: int, sequence: int) -> bool:
        """Whether the batch comes for the first time; it counts as seen from now on."""
        highest, seen = self._seen.get(picker, (sequence - 1, 0))
        if sequence > highest:
            seen = (seen << (sequence - highest) if sequence - highest < WINDOW else 0) | 1
            highest = sequence
        else:
            bit = 1 << (highest - sequence)
            if highest - sequence >= WINDOW or seen & bit:
                return False
            seen |= bit
        self._seen[picker] = highest, seen & ((1 << WINDOW) - 1)
        self._seen.move_to_end(picker)
        if len(self._seen) > MOST_PICKERS:
            self._seen.popitem(last=False)
        return True
