"""How fast an engine prefills. WITHOUT IO.

Two measurements, both from below, of which the higher counts: what a busy engine computes each second, and how long its
requests took from their first step to their first token. The first fails on an engine that never queues, the second on one
that computes many prompts side by side. Both are in tokens of work
(:func:`~warmroute.pool.work.prefill_work`): an engine that gets the long prompts is not slower for it.
"""

from __future__ import annotations

from warmroute.engines.measured import Measured
from warmroute.pool.work import prefill_work

WINDOW = 1.0
"""Least seconds of uninterrupted queue that make one measurement."""
WINDOW_REQUESTS = 8
"""Least requests that make one measurement: the counter moves by whole prompts, and of windows that one long prompt more or
less falls into, the faster ones would count."""
LONGEST_GAP = 5.0
"""Seconds without a look at the engine after which nobody knows whether it was busy all the time."""
REQUEST_TOKENS = 4096
"""Least prompt tokens of finished requests that make one measurement: what a step costs by itself must not count much."""


class PrefillRate:
    """How many tokens of prefill work one engine does in a second."""

    def __init__(self) -> None:
        self._busy = Measured()
        self._requests = Measured()
        self._start: tuple[float, float, float] | None = None
        self._last = 0.0
        self._finished: tuple[float, float, float] | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """None until there was something to measure."""
        return max((each.rate for each in (self._busy, self._requests) if each.rate is not None), default=None)

    def observe(self, at: float, computed: float, requests: float, waiting: int) -> None:
        """At ``at`` (seconds) the engine had computed ``computed`` prompt tokens of ``requests`` requests in all, and held
        ``waiting`` requests."""
        interrupted = waiting == 0 or at - self._last > LONGEST_GAP
        self._last = at
        if waiting == 0:
            self._start = None
            return
        if self._start is None or interrupted:
            self._start = (at, computed, requests)
            return
        began, computed_before, requests_before = self._start
        if at - began < WINDOW or requests - requests_before < WINDOW_REQUESTS:
            return
        self._start = (at, computed, requests)
        self._busy.add(_work(computed - computed_before, requests - requests_before) / (at - began))

    def observe_requests(self, computed: float, requests: float, seconds: float) -> None:
        """The ``requests`` that finished computed so many prompt tokens and were so many seconds in prefill, all in all."""
        if self._finished is None or computed < self._finished[0]:
            self._finished = (computed, requests, seconds)
            return
        computed_before, requests_before, seconds_before = self._finished
        if computed - computed_before >= REQUEST_TOKENS and seconds > seconds_before and requests > requests_before:
            self._finished = (computed, requests, seconds)
            work = _work(computed - computed_before, requests - requests_before)
            self._requests.add(work / (seconds - seconds_before))

    def interrupt(self) -> None:
        """The counters start anew; what was measured stays true of the engine."""
        self._start = self._finished = None


def _work(computed: float, requests: float) -> float:
    """The least work that so many computed tokens of so many prompts can have been: equal prompts, nothing cached."""
    return requests * prefill_work(computed / requests)
