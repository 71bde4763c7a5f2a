"""How fast requests leave one endpoint, from the counts of consecutive scrapes."""

from __future__ import annotations

KEPT = 0.9
"""EWMA weight that earlier scrapes keep at each new one: about the last ten scrapes count."""


class DepartureRate:
    """Requests that finished for each request-second spent on the endpoint, both as EWMA."""

    __slots__ = ("_finished", "_request_seconds", "per_second")

    def __init__(self) -> None:
        self._finished = self._request_seconds = 0.0
        self.per_second = 0.0
        """Share of its requests that the endpoint finishes each second; 0 until scrapes have shown it."""

    def observe(self, *, before: int, sent: int, after: int, seconds: float) -> None:
        """Two scrapes ``seconds`` apart counted ``before`` and ``after`` requests; ``sent`` were sent between them."""
        self._finished = KEPT * self._finished + max(0, before + sent - after)
        self._request_seconds = KEPT * self._request_seconds + seconds * (before + after) / 2
        self.per_second = self._finished / self._request_seconds if self._request_seconds else 0.0
