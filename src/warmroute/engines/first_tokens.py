"""How many requests of an engine have no token yet. WITHOUT IO.

vLLM's gauge of waiting requests leaves out those that are being prefilled, often most of those that have no token yet.
Two counters tell them apart: a request that got its first token and has not finished decodes; the others on the engine await
theirs.
"""

from __future__ import annotations


class FirstTokens:
    """The requests of one engine that await their first token, from counters whose difference may drift."""

    def __init__(self) -> None:
        self._vanished = 0.0
        """Requests that had their first token and never finished, so far as is known: their clients went away."""

    def awaiting(self, first_tokens: float, finished: float, running: int, waiting: int) -> int:
        """Requests without a token, at least ``waiting``, at most ``running + waiting``; both counters count from the start.

        A request whose client goes away while it decodes leaves the difference of the counters too high for good. That
        shows, and is corrected, whenever more would decode than the engine has: at the latest when it has none, and mostly
        as soon as nothing is being prefilled.
        """
        total = running + waiting
        decoding = first_tokens - finished - self._vanished
        if not 0 <= decoding <= total:
            possible = min(max(decoding, 0), total)
            self._vanished += decoding - possible
            decoding = possible
        return max(waiting, round(total - decoding))

    def interrupt(self) -> None:
        """The counters start anew."""
        self._vanished = 0.0
