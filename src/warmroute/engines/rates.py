"""Estimators of an engine's speeds and of its requests without a token, from its counters. WITHOUT IO.

The speeds are measured over windows. Other work of the engine in a window lowers the measurement, so each estimate is a high
percentile of the last windows. Times are in seconds; rates are in tokens per second.
"""

from __future__ import annotations

from collections import deque
from statistics import quantiles
from typing import NamedTuple

from warmroute.pool.endpoint import RATES
from warmroute.pool.work import prefill_work

MEASUREMENTS = 30
"""Windows of which the 90th percentile is taken."""
SMOOTHING = 0.2
"""EWMA weight of the newest percentile."""
SLOWEST, FASTEST = RATES
"""A faster measurement comes from wrong counters. A slower one counts as a window in which the engine was held up."""

PREFILL_WINDOW = 1.0
"""Shortest window, in seconds of uninterrupted queueing."""
PREFILL_WINDOW_REQUESTS = 8
"""Fewest requests in a window. The counter moves by whole prompts: with fewer, one long prompt more or less decides the rate
of a window, and the percentile would prefer the windows that got one more."""
LONGEST_GAP = 5.0
"""Seconds between two observations beyond which the engine may have been idle in between."""
REQUEST_TOKENS = 4096
"""Fewest prompt tokens of finished requests in a measurement."""
LEAST_COMPUTED = 256
"""Fewest tokens that the prompts of a measurement computed, on average. A step lasts about as long for one token as for some
hundred, so shorter prompts measure the steps of an engine and not its speed: a prompt that is all in the cache computes one
token in 10 to 100 ms."""

DECODE_WINDOW = 1.0
"""Shortest window in seconds."""
DECODE_WINDOW_TOKENS = 256
"""Fewest tokens in a window."""
DOUBLED_AT = 64.0
"""Number of concurrent answers at which a decode step takes twice as long as with one: reading their contexts (a few
thousand tokens each) then takes as long as reading the weights."""


class RateEstimate:
    """EWMA of the 90th percentile of the last measurements, for measurements that err on the low side."""

    def __init__(self) -> None:
        self.rate: float | None = None
        """The estimate in tokens per second, within :data:`SLOWEST` and :data:`FASTEST`; None before the first one."""
        self._rates: deque[float] = deque(maxlen=MEASUREMENTS)

    def add(self, rate: float) -> None:
        """Take a measurement in tokens per second; one that is negative, not finite or too fast is ignored."""
        if not 0 <= rate <= FASTEST:
            return
        self._rates.append(rate)
        high = quantiles(self._rates, n=10, method="inclusive")[-1] if len(self._rates) > 1 else rate
        if high >= SLOWEST:
            self.rate = high if self.rate is None else self.rate + SMOOTHING * (high - self.rate)


class _Prompts(NamedTuple):
    """Counters of prompts: their tokens and their number."""

    computed: float
    cached: float
    requests: float

    def work_since(self, before: _Prompts) -> float | None:
        """The prefill work of the prompts since then, as if all were equal; None if they computed too few tokens each.
        Computed tokens attend to cached ones, too: the next turn of a long conversation takes several times the work of its
        tokens."""
        requests = self.requests - before.requests
        computed = (self.computed - before.computed) / requests
        if computed < LEAST_COMPUTED:
            return None
        cached = max(0.0, self.cached - before.cached) / requests
        return requests * (prefill_work(cached + computed) - prefill_work(cached))


class PrefillRate:
    """Prefill work per second of one engine: the higher of two estimates.

    One measures what a busy engine computes per second; it needs an engine that queues. The other measures the time from the
    first step to the first token of finished requests; it is too low where many prompts are computed side by side. Both are
    in tokens of work (:func:`~warmroute.pool.work.prefill_work`), so that long prompts do not make an engine look slow.
    """

    def __init__(self) -> None:
        self._busy = RateEstimate()
        self._requests = RateEstimate()
        self._start: tuple[float, _Prompts] | None = None
        self._last = 0.0
        self._finished: tuple[_Prompts, float] | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """The estimate; None before the first measurement."""
        return max((each.rate for each in (self._busy, self._requests) if each.rate is not None), default=None)

    def observe(self, at: float, computed: float, cached: float, requests: float, waiting: int) -> None:
        """Counters at time ``at``: prompt tokens ``computed`` and ``cached`` for ``requests`` requests; ``waiting`` requests
        are queued."""
        interrupted = waiting == 0 or at - self._last > LONGEST_GAP
        self._last = at
        if waiting == 0:
            self._start = None
            return
        prompts = _Prompts(computed, cached, requests)
        if self._start is None or interrupted:
            self._start = (at, prompts)
            return
        began, before = self._start
        if at - began < PREFILL_WINDOW or requests - before.requests < PREFILL_WINDOW_REQUESTS:
            return
        self._start = (at, prompts)
        if (work := prompts.work_since(before)) is not None:
            self._busy.add(work / (at - began))

    def observe_requests(self, computed: float, cached: float, requests: float, seconds: float) -> None:
        """Counters of finished requests: prompt tokens ``computed`` and ``cached`` for ``requests`` requests, which spent
        ``seconds`` in prefill."""
        prompts = _Prompts(computed, cached, requests)
        if self._finished is None or computed < self._finished[0].computed:
            self._finished = (prompts, seconds)
            return
        before, seconds_before = self._finished
        if computed - before.computed >= REQUEST_TOKENS and seconds > seconds_before and requests > before.requests:
            self._finished = (prompts, seconds)
            if (work := prompts.work_since(before)) is not None:
                self._requests.add(work / (seconds - seconds_before))

    def interrupt(self) -> None:
        """The counters begin again at 0; the estimate stays."""
        self._start = self._finished = None


class DecodeRate:
    """Tokens per second of one answer on an otherwise idle engine.

    It distinguishes a slow GPU from a busy one: prefill rates of equal GPUs differ several times with their prompts; decode
    rates hardly differ at equal concurrency, and the counters show the concurrency.
    """

    def __init__(self) -> None:
        self._estimate = RateEstimate()
        self._start: tuple[float, float, float] | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """The estimate; None before the first measurement."""
        return self._estimate.rate

    def observe(self, at: float, tokens: float, seconds: float) -> None:
        """Counters at time ``at``: output ``tokens`` after the first of each answer, and the sum of their inter-token
        latencies in ``seconds``."""
        if self._start is None or tokens < self._start[1]:
            self._start = at, tokens, seconds
            return
        began, tokens_before, seconds_before = self._start
        spent = seconds - seconds_before
        if at - began >= DECODE_WINDOW and tokens - tokens_before >= DECODE_WINDOW_TOKENS and spent > 0:
            self._start = at, tokens, seconds
            at_once = spent / (at - began)
            self._estimate.add((tokens - tokens_before) / spent * (1 + at_once / DOUBLED_AT))

    def interrupt(self) -> None:
        """The counters begin again at 0; the estimate stays."""
        self._start = None


class FirstTokens:
    """The number of requests on one engine that have no token yet.

    vLLM's gauge of waiting requests leaves out those in prefill. Two counters include them: a request that got its first
    token and has not finished is decoding; the rest wait for their first token.
    """

    def __init__(self) -> None:
        self._vanished = 0.0
        """Requests that got a first token and are not counted as finished although they left: their clients disconnected."""

    def awaiting(self, first_tokens: float, finished: float, running: int, waiting: int) -> int:
        """Requests without a token, in ``waiting..running + waiting``. ``first_tokens`` and ``finished`` are counters.

        A client that disconnects during decoding leaves the difference of the counters too high for good. This is corrected
        whenever more requests would be decoding than the engine has: at the latest when it is idle.
        """
        total = running + waiting
        decoding = first_tokens - finished - self._vanished
        if not 0 <= decoding <= total:
            possible = min(max(decoding, 0), total)
            self._vanished += decoding - possible
            decoding = possible
        return max(waiting, round(total - decoding))

    def interrupt(self) -> None:
        """The counters begin again at 0."""
        self._vanished = 0.0
