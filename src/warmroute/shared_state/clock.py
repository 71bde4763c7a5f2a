"""The offset between this process's monotonic clock and the log's clock. WITHOUT IO.

The log stamps each batch with its server's clock. A batch of one's own gives two bounds: it was stamped after it was sent
and before it was received back. So pickers need not know each other's clocks.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

KEPT = 32
"""Samples that are kept."""
LONGEST = 60.0
"""Seconds for which a sample counts: clocks drift apart, and another server of a cluster may take over the stream."""


class _Sample(NamedTuple):
    at: float
    low: float
    high: float


class ClockOffset:
    """Own clock minus the log's clock, in seconds, from the narrowest of the latest samples."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=KEPT)
        self.offset: float | None = None
        """None before the first sample."""
        self.error = 0.0
        """By how much the offset may be wrong, in seconds."""

    def add(self, *, sent_at: float, stamped_at: float, received_at: float) -> None:
        """A batch of one's own came back. ``stamped_at`` is of the log's clock, the others are of one's own."""
        sample = _Sample(received_at, sent_at - stamped_at, received_at - stamped_at)
        samples = self._samples
        if any(sample.high < other.low or sample.low > other.high for other in samples):
            samples.clear()  # a clock was set, or another server stamps
        samples.append(sample)
        while samples[0].at < received_at - LONGEST:
            samples.popleft()
        best = min(samples, key=lambda each: each.high - each.low)
        self.offset = (best.low + best.high) / 2
        self.error = (best.high - best.low) / 2

    def own_time(self, stamped_at: float) -> float:
        """A time of the log's clock in one's own. Raises ValueError before the first sample."""
        if self.offset is None:
            raise ValueError("the clock offset is not known yet")
        return stamped_at + self.offset

    def log_time(self, own: float) -> float:
        """A time of one's own in the log's clock; 0 before the first sample."""
        return 0.0 if self.offset is None else own - self.offset
