"""Mean and percentiles of a list of durations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean and three percentiles in seconds, with linear interpolation; all 0 without values."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution:
        """The distribution of ``values``."""
        if not values:
            return cls(0.0, 0.0, 0.0, 0.0)
        if len(values) == 1:
            return cls(values[0], values[0], values[0], values[0])
        percentiles = quantiles(values, n=100, method="inclusive")
        return cls(fmean(values), percentiles[49], percentiles[89], percentiles[98])
