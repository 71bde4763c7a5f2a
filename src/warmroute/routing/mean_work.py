"""The mean work of a request on one endpoint: prompt tokens that it has to compute."""

from __future__ import annotations

from warmroute.pool.endpoint import EngineState

UNKNOWN_WORK = 500.0
"""Tokens of work assumed before any request was seen. An assumption; the first request replaces it."""
LEAST_WEIGHT = 0.1
"""Lower bound of the EWMA weight of the newest request: about the last ten requests count."""


class MeanWork:
    """EWMA of the work of a request: of all on the engine if it exports the counters, else of this picker's requests."""

    __slots__ = ("_counters", "_requests", "tokens")

    def __init__(self) -> None:
        self.tokens = UNKNOWN_WORK
        """The mean, in tokens of work."""
        self._requests = 0.0
        self._counters: tuple[float, float] | None = None
        """Tokens computed and requests with a first token, as of the last scrape; None if the engine exports
        neither."""

    def forget_counters(self) -> None:
        """The engine is a new process: its counters begin at 0. The mean stays."""
        self._counters = None

    def observe(self, state: EngineState) -> None:
        """Learn from the engine's counters, which include requests of other clients."""
        lookups, hits, requests = state.prefix_queries_total, state.prefix_hits_total, state.first_tokens_total
        if lookups is None or hits is None or requests is None:
            return
        computed = lookups - hits
        computed_before, requests_before = self._counters or (0.0, 0.0)
        self._counters = computed, requests
        if requests > requests_before and computed >= computed_before:
            self._add((computed - computed_before) / (requests - requests_before), requests - requests_before)

    def assigned(self, work: float) -> None:
        """Learn from one of this picker's requests, unless the engine's counters include it."""
        if self._counters is None:
            self._add(work, 1.0)

    def _add(self, work: float, requests: float) -> None:
        self._requests += requests
        self.tokens += min(1.0, requests * max(LEAST_WEIGHT, 1 / self._requests)) * (work - self.tokens)
