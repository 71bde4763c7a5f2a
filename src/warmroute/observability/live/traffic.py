"""The traffic of the last five minutes: totals once a second, and what follows from their differences. WITHOUT IO."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple

SECONDS_KEPT = 300
"""Totals that are kept, one for each second."""
RATE_SECONDS = 10
"""Window of the request rate."""
WINDOW_SECONDS = 60
"""Window of ratios, percentiles and errors."""
LEAST_PROMPTS = 5
"""Prompts in the window from which hit ratios are shown; fewer say little."""
LEAST_OF_ARM = 20
"""Requests of each arm from which predicted times are shown: each counts with an error of up to 1,024 tokens."""


class Arm(NamedTuple):
    """Requests of one arm of a holdout, and the sum of their predicted times to the first token."""

    requests: int
    ttft_seconds: float


NO_REQUESTS = Arm(0, 0.0)


NO_FAILURES: Mapping[str, int] = MappingProxyType({})


class Totals(NamedTuple):
    """Counters at one time, since the picker's start."""

    at: float
    """Monotonic seconds."""
    requests: float = 0.0
    booked: int = 0
    """Requests that were given an endpoint, by this picker or by others that it knows of."""
    errors: float = 0.0
    prompts: int = 0
    """Requests whose prompt was matched; the tokens are theirs."""
    prompt_tokens: float = 0.0
    cached_tokens: float = 0.0
    random_cached_tokens: float = 0.0
    chosen_arm: Arm = NO_REQUESTS
    """Requests that the strategy routed, while a share is held out."""
    held_out_arm: Arm = NO_REQUESTS
    """Requests that were held out (``--holdout``)."""
    picks: tuple[int, ...] = ()
    """Picks by bucket of their seconds."""
    computing: int = 0
    """Endpoints whose engine's counters grew, summed over the seconds."""
    strategy_failures: Mapping[str, int] = NO_FAILURES
    """Requests for which a strategy failed, by its name."""


class HitComparison(NamedTuple):
    """Cached shares of the prompt tokens, 0 to 1: as chosen, and at random."""

    chosen: float
    """On the chosen endpoints."""
    random: float
    """Where random choice would have sent the requests."""
    saved_per_second: float
    """Prefill tokens per second that the choice saved against random choice."""


class Traffic:
    """The totals of the last five minutes. ``bounds`` are the upper bounds in seconds of the buckets of ``Totals.picks``."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._totals: deque[Totals] = deque(maxlen=SECONDS_KEPT + 1)

    def add(self, totals: Totals) -> None:
        """The totals of the next second."""
        self._totals.append(totals)

    def requests_per_second(self) -> float:
        """Of the last ten seconds."""
        before, after = self._between(RATE_SECONDS)
        return _rate(before.requests, after.requests, before, after)

    def request_rates(self, seconds: int) -> list[float]:
        """Requests per second for each ``seconds`` of the last five minutes, the oldest first."""
        kept = list(self._totals)[-1::-seconds][::-1]
        return [_rate(before.requests, after.requests, before, after) for before, after in pairwise(kept)]

    def errors_per_second(self) -> float:
        """Of the last minute."""
        before, after = self._between(WINDOW_SECONDS)
        return _rate(before.errors, after.errors, before, after)

    def error_share(self) -> float:
        """Share of the last minute's requests that were answered with an error."""
        before, after = self._between(WINDOW_SECONDS)
        requests = after.requests - before.requests
        return (after.errors - before.errors) / requests if requests > 0 else 0.0

    def strategy_failures(self) -> dict[str, int]:
        """The last minute's requests for which a strategy failed, by its name; none without any."""
        before, after = self._between(WINDOW_SECONDS)
        counts = {name: n - before.strategy_failures.get(name, 0) for name, n in after.strategy_failures.items()}
        return {name: count for name, count in counts.items() if count}

    def hit_ratios(self) -> HitComparison | None:
        """Of the last minute; None if it had too few prompts."""
        before, after = self._between(WINDOW_SECONDS)
        tokens = after.prompt_tokens - before.prompt_tokens
        if after.prompts - before.prompts < LEAST_PROMPTS or tokens <= 0:
            return None
        chosen = after.cached_tokens - before.cached_tokens
        random = after.random_cached_tokens - before.random_cached_tokens
        return HitComparison(
            _share(chosen, tokens),
            _share(random, tokens),
            max(0.0, _rate(random, chosen, before, after)),
        )

    def predicted_ttft(self) -> tuple[float, float] | None:
        """Mean predicted seconds to the first token in five minutes, of the strategy's requests and of those held out.

        None if either had too few.
        """
        before, after = self._between(SECONDS_KEPT)
        means = []
        for former, latter in ((before.chosen_arm, after.chosen_arm), (before.held_out_arm, after.held_out_arm)):
            requests = latter.requests - former.requests
            if requests < LEAST_OF_ARM:
                return None
            means.append(max(0.0, (latter.ttft_seconds - former.ttft_seconds) / requests))
        chosen, held_out = means
        return chosen, held_out

    def pick_seconds(self, quantile: float) -> float | None:
        """This quantile of the last minute's picks, interpolated within its bucket; None if there were none."""
        before, after = self._between(WINDOW_SECONDS)
        counts = [
            count - former for count, former in zip(after.picks, before.picks or [0] * len(after.picks), strict=True)
        ]
        total = sum(counts)
        if total <= 0:
            return None
        rank, below, lower = quantile * total, 0, 0.0
        for count, upper in zip(counts, self._bounds, strict=False):
            if count and below + count >= rank:
                return lower + (upper - lower) * (rank - below) / count
            below, lower = below + count, upper
        return self._bounds[-1]

    def seconds_without_requests(self) -> float:
        """Seconds since the last request was given an endpoint or got an error, at most those that are kept."""
        latest = self._totals[-1]
        for totals in reversed(self._totals):
            if totals.requests < latest.requests or totals.booked < latest.booked:
                break
            since = totals.at
        return latest.at - since

    def computing(self, seconds: int) -> bool:
        """Whether any engine's counters grew in the last ``seconds``."""
        before, after = self._between(seconds)
        return after.computing > before.computing

    def _between(self, seconds: int) -> tuple[Totals, Totals]:
        """The totals ``seconds`` ago, or the oldest, and the latest."""
        totals = self._totals
        return totals[max(0, len(totals) - 1 - seconds)], totals[-1]


def _rate(before_value: float, after_value: float, before: Totals, after: Totals) -> float:
    seconds = after.at - before.at
    return (after_value - before_value) / seconds if seconds > 0 else 0.0


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole))
