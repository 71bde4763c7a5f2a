"""How fast an engine prefills, from what it computed while it had work queued. WITHOUT IO."""

from __future__ import annotations

from collections import deque
from statistics import quantiles

WINDOW = 1.0
"""Least seconds of uninterrupted queue that make one measurement."""
LONGEST_WINDOW = 5.0
"""Seconds without a look at the engine after which nobody knows whether it was busy all the time."""
WINDOWS = 30
"""Measurements kept. The ninth decile of them counts: in the slower ones decoding or a full KV cache held prefill up."""
SMOOTHING = 0.2
"""Weight of a new measurement. The counter moves by whole prompts, so a single window may be far off."""


class PrefillRate:
    """Prefill tokens per second of one engine while it is busy."""

    def __init__(self) -> None:
        self.tokens_per_second: float | None = None
        """None until the engine has been seen busy for a whole window."""
        self._rates: deque[float] = deque(maxlen=WINDOWS)
        self._start: tuple[float, float] | None = None
        self._last = 0.0

    def observe(self, at: float, computed: float, waiting: int) -> None:
        """At ``at`` (seconds) the engine had computed ``computed`` prompt tokens in all and held ``waiting`` requests."""
        interrupted = waiting == 0 or at - self._last > LONGEST_WINDOW
        self._last = at
        if waiting == 0:
            self._start = None
            return
        if self._start is None or interrupted:
            self._start = (at, computed)
            return
        began, computed_before = self._start
        if at - began < WINDOW:
            return
        self._start = (at, computed)
        self._rates.append((computed - computed_before) / (at - began))
        rate = quantiles(self._rates, n=10, method="inclusive")[-1] if len(self._rates) > 1 else self._rates[0]
        if rate > 0:
            before = self.tokens_per_second
            self.tokens_per_second = rate if before is None else before + SMOOTHING * (rate - before)

    def interrupt(self) -> None:
        """The counter starts anew; what was measured stays true of the engine."""
        self._start = None
