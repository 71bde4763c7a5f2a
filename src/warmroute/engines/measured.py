"""A speed that is measured from below, again and again. WITHOUT IO."""

from __future__ import annotations

from collections import deque
from statistics import quantiles

MEASUREMENTS = 30
"""Measurements kept. The ninth decile of them counts: in the slower ones something else held the engine up."""
SMOOTHING = 0.2
"""Weight of a new measurement."""


class Measured:
    """A high quantile of the last measurements, smoothed."""

    def __init__(self) -> None:
        self.rate: float | None = None
        """None until there was something to measure."""
        self._rates: deque[float] = deque(maxlen=MEASUREMENTS)

    def add(self, rate: float) -> None:
        """Take a measurement, per second."""
        self._rates.append(rate)
        high = quantiles(self._rates, n=10, method="inclusive")[-1] if len(self._rates) > 1 else rate
        if high > 0:
            self.rate = high if self.rate is None else self.rate + SMOOTHING * (high - self.rate)
