"""The mean work of a request on one endpoint: prompt tokens that it has to compute."""

from __future__ import annotations

from typing import NamedTuple

from warmroute.pool.endpoint import EngineState

UNKNOWN_WORK = 500.0
"""Tokens of work assumed before any request was seen. An assumption; the first request replaces it."""
LEAST_WEIGHT = 0.1
"""Lower bound of the EWMA weight of the newest request: about the last ten requests count."""


class _TokenCounters(NamedTuple):
    """The engine's counters at one scrape. Tokens, 0 if not exported, and ``requests`` with a first token."""

    looked_up: float
    missed: float
    """Looked up and not found in the prefix cache."""
    computed: float
    prompt: float
    requests: float


_AT_START = _TokenCounters(0.0, 0.0, 0.0, 0.0, 0.0)


class MeanWork:
    """EWMA of the work of a request: of all on the engine if it exports the counters, else of this picker's requests.

    The work is what the prefix cache was asked for and did not have. An engine whose cache is off looks nothing up: there
    the tokens count that it computed, or those of its prompts.
    """

    __slots__ = ("_counters", "_requests", "tokens")

    def __init__(self) -> None:
        self.tokens = UNKNOWN_WORK
        """The mean, in tokens of work."""
        self._requests = 0.0
        self._counters: _TokenCounters | None = None
        """As of the last scrape that showed a new first token, since prompts are looked up some scrapes before it; None if
        the engine exports too few."""

    def forget_counters(self) -> None:
        """The engine is a new process: its counters begin at 0. The mean stays."""
        self._counters = None

    def observe(self, state: EngineState) -> None:
        """Learn from the engine's counters, which include requests of other clients."""
        requests, looked_up = state.first_tokens_total, state.prefix_queries_total
        if requests is None or looked_up is None or state.prefix_hits_total is None:
            return
        before = self._counters or _AT_START
        now = _TokenCounters(
            looked_up,
            looked_up - state.prefix_hits_total,
            state.computed_tokens_total or 0.0,
            state.prompt_tokens_total or 0.0,
            requests,
        )
        if self._counters is None or requests > before.requests:
            self._counters = now
        if requests <= before.requests:
            return
        if now.looked_up > before.looked_up:
            work = now.missed - before.missed
        elif now.computed > before.computed:
            work = now.computed - before.computed
        elif now.prompt > before.prompt:
            work = now.prompt - before.prompt
        else:
            return
        if work >= 0:
            self._add(work / (requests - before.requests), requests - before.requests)

    def assigned(self, work: float, *, requests: int = 1) -> None:
        """Learn from requests of this work each that pickers sent, unless the engine's counters include them."""
        if self._counters is None:
            self._add(work, float(requests))

    def _add(self, work: float, requests: float) -> None:
        self._requests += requests
        self.tokens += min(1.0, requests * max(LEAST_WEIGHT, 1 / self._requests)) * (work - self.tokens)
