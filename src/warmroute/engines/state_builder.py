"""EngineState from the figures of one page and of those before it. WITHOUT IO."""

from __future__ import annotations

from collections.abc import Mapping

from warmroute.engines.adapters import AdaptersInUse
from warmroute.engines.figures import Constants, Figures
from warmroute.engines.rates import DecodeRate, FirstTokens, PrefillRate
from warmroute.pool.endpoint import MOST_ADAPTERS, MOST_COUNTED, EngineState


class StateBuilder:
    """Builds the states of one engine. It keeps the rate estimators from page to page."""

    def __init__(self) -> None:
        self._prefill = PrefillRate()
        self._decode = DecodeRate()
        self._first_tokens = FirstTokens()
        self._adapters = AdaptersInUse()

    def interrupt(self) -> None:
        """The engine is a new process: its counters begin again at 0. Estimated speeds stay."""
        self._prefill.interrupt()
        self._decode.interrupt()
        self._first_tokens.interrupt()
        self._adapters.interrupt()

    def build(self, figures: Figures, constants: Constants, at: float) -> EngineState:
        """The state at monotonic time ``at``. Updates the estimators; figures are within their bounds, so nothing fails."""
        counters = figures.counters
        lookups, hits = _prefix_cache(counters)
        self._measure(figures, hits or 0.0, at)
        adapters = self._adapters.observe(figures.adapter_sets) | figures.loaded_adapters
        return EngineState(
            observed_at=at,
            running=figures.running,
            waiting=figures.waiting,
            awaiting_first_token=self._awaiting_first_token(figures),
            kv_usage=figures.kv_usage,
            capacity_tokens=constants.capacity_tokens,
            max_num_seqs=constants.max_num_seqs,
            max_model_len=constants.max_model_len,
            block_size=constants.block_size,
            prefix_caching=constants.prefix_caching,
            tier_tokens=constants.tier_tokens,
            loaded_adapters=adapters if len(adapters) <= MOST_ADAPTERS else frozenset(),
            max_adapters=figures.max_adapters,
            first_tokens_total=counters.get("first_tokens"),
            first_token_seconds_total=counters.get("first_token_seconds"),
            prompt_tokens_total=counters.get("prompt_tokens"),
            prompt_requests_total=counters.get("prompt_requests"),
            computed_tokens_total=counters.get("computed_tokens"),
            prefix_queries_total=lookups,
            prefix_hits_total=hits,
            tier_queries_total=counters.get("external_queries"),
            tier_hits_total=counters.get("external_hits"),
            responses_total=counters.get("responses"),
            rejected_responses_total=counters.get("rejected_responses"),
            failed_responses_total=counters.get("failed_responses"),
            prefill_rate=self._prefill.tokens_per_second,
            decode_rate=self._decode.tokens_per_second,
            sleeping=figures.sleeping,
        )

    def _measure(self, figures: Figures, hits: float, at: float) -> None:
        """Update the speeds. ``hits``: prompt tokens found in the prefix cache."""
        counters = figures.counters
        finished = counters.get("prompt_requests")
        computed = counters.get("computed_tokens")
        if finished is not None and computed is not None:
            self._prefill.observe(at, computed, hits, counters.get("first_tokens", finished), figures.waiting)
        computed, seconds = counters.get("request_computed_tokens"), counters.get("request_prefill_seconds")
        if finished is not None and computed is not None and seconds is not None:
            cached = counters.get("prompt_tokens", computed) - computed
            self._prefill.observe_requests(computed, cached, finished, seconds)
        tokens, seconds = counters.get("later_tokens"), counters.get("later_token_seconds")
        if tokens is not None and seconds is not None:
            self._decode.observe(at, tokens, seconds)

    def _awaiting_first_token(self, figures: Figures) -> int | None:
        first_tokens, finished = figures.counters.get("first_tokens"), figures.counters.get("prompt_requests")
        if first_tokens is None or finished is None:
            return None
        return self._first_tokens.awaiting(first_tokens, finished, figures.running, figures.waiting)


def _prefix_cache(counters: Mapping[str, float]) -> tuple[float | None, float | None]:
    """Prompt tokens looked up in the prefix cache and found there, in any tier.

    The second tier looks up what the first has not found. An engine whose first tier is off counts the second tier alone.
    """
    lookups, hits = counters.get("prefix_queries"), counters.get("prefix_hits")
    if lookups is not None:
        lookups = max(lookups, counters.get("external_queries", 0.0))
    if hits is not None:
        hits = min(hits + counters.get("external_hits", 0.0), MOST_COUNTED)
    return lookups, hits
