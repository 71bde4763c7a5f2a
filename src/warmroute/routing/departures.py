"""How fast requests leave one endpoint, by the counts of consecutive scrapes, and how many of those sent since are left."""

from __future__ import annotations

from collections import deque
from math import exp

from warmroute.pool.endpoint import MOST_REQUESTS

MEMORY = 32.0
"""Departures after which earlier ones count 1/e as much. Nothing is forgotten while nobody leaves: then the rate falls with
the time since, however often the engine is scraped. Chosen with ``warmroute bench standings bursts
--seed 31 --seed 32``: above saturation the p99 is 1.5 times as high with 10, and 1.2 times with 16."""
SHORTEST = 0.01
"""Seconds that a request is taken to last at least. Of requests that begin and end between two scrapes, no count shows
how long they last."""


class DepartureRate:
    """Requests that finished for each request-second spent on the endpoint, both as EWMA over the requests that finished."""

    __slots__ = ("_counted", "_finished", "_request_seconds", "per_second")

    def __init__(self) -> None:
        self._finished = self._request_seconds = 0.0
        self._counted: float | None = None
        """The engine's own count of finished requests at the last scrape."""
        self.per_second = 0.0
        """Share of its requests that the endpoint finishes each second; 0 until scrapes have shown it."""

    def observe(self, *, before: int, sent: int, after: int, seconds: float, counted: float | None = None) -> None:
        """Two scrapes ``seconds`` apart counted ``before`` and ``after`` requests; ``sent`` were sent between them.

        ``counted``: the engine's own count of finished requests. It knows those of other senders, and vLLM's does not know
        those whose client has gone, so the larger of the two figures counts."""
        finished = float(max(0, before + sent - after))
        if counted is not None and self._counted is not None:
            finished = max(finished, min(counted - self._counted, float(before + sent + after)))
        self._counted = counted
        kept = exp(-finished / MEMORY)
        self._finished = kept * self._finished + finished
        self._request_seconds = kept * self._request_seconds + seconds * (before + after) / 2
        request_seconds = max(self._request_seconds, SHORTEST * self._finished)
        self.per_second = self._finished / request_seconds if request_seconds else 0.0


class SentSinceScrape:
    """Requests sent to one endpoint since its last scrape. Each is left after ``t`` seconds with probability
    ``exp(-t * per_second)``. Times are monotonic seconds."""

    __slots__ = ("_left", "_left_at", "times")

    def __init__(self) -> None:
        self.times: deque[float] = deque(maxlen=MOST_REQUESTS)
        """When each was sent, in order; the latest if there are more than an engine can have."""
        self._left = 0.0
        self._left_at = 0.0

    def __len__(self) -> int:
        return len(self.times)

    def add(self, at: float, per_second: float, *, requests: int = 1) -> None:
        """More are sent at ``at``, not before the latest."""
        self._left = self.left(at, per_second) + requests
        self._left_at = at
        self.times.extend([at] * requests)

    def left(self, now: float, per_second: float) -> float:
        """Expected requests of these that are still there at ``now``."""
        return self._left * exp(-per_second * max(0.0, now - self._left_at)) if self.times else 0.0

    def count_again(self, per_second: float) -> None:
        """The departure rate is another one."""
        times, self.times = self.times, deque(maxlen=MOST_REQUESTS)
        for at in times:
            self.add(at, per_second)

    def forget_until(self, past: float, per_second: float) -> None:
        """Drop those sent by ``past``."""
        times = self.times
        while times and times[0] <= past:
            self._left = max(0.0, self._left - exp(-per_second * (self._left_at - times.popleft())))
