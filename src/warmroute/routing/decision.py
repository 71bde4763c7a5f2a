"""A decision: where a request goes and why; and its record, which can explain the cost of every candidate later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

from warmroute.pool.endpoint import Endpoint
from warmroute.prefix.chain import Chain
from warmroute.routing.cached_tokens import CachedTokens
from warmroute.routing.confirmation import SentPrompt
from warmroute.routing.cost import CostConstants, EndpointFactors, RequestFactors, cost_terms
from warmroute.routing.endpoint_load import EndpointLoad
from warmroute.routing.strategies import PickContext

CACHED_STEP = 1024
"""Cached tokens are shown rounded down to a multiple of this.

Exact figures would let a reader of the debug page guess another client's prompt, message by message: a right guess shows as
a few more cached tokens. The step is absolute: a share of the prompt could be moved by what follows the guess.
"""
COST_STRATEGIES = frozenset({"PREFIX_CACHE", "DEFAULT"})
"""Strategies whose values are costs; the terms explain no other strategy."""


@dataclass(slots=True)
class Decision:
    """Where a request goes and why."""

    load: EndpointLoad
    """The load of the endpoint that the request is booked on."""
    targets: str
    """``ip:port``, or several separated by commas, best first: the value of the destination header."""
    strategy: str
    reason: str
    """See :func:`reason_of`."""
    prompt_tokens: float
    """At least 1."""
    cached_tokens: float
    """Tokens of the prompt that the endpoint probably holds."""
    random_cached_tokens: float
    """Tokens of the prompt that a candidate chosen at random would hold: the mean over all candidates."""
    chain: Chain
    adapter: str
    """The LoRA adapter that the request asks for; empty if none."""
    held: int = 0
    """Checkpoints of the chain that the endpoint had before."""
    sent: SentPrompt | None = None
    """The prompt as it waits for the engine's counters."""

    @property
    def endpoint(self) -> Endpoint:
        """The chosen endpoint."""
        return self.load.endpoint

    @property
    def match_ratio(self) -> float:
        """Share of the prompt that the endpoint probably holds."""
        return self.cached_tokens / self.prompt_tokens


def reason_of(cached_tokens: float, *, best: float, threshold: float, has_prompt: bool) -> str:
    """Why an endpoint was chosen that holds ``cached_tokens`` of the prompt.

    ``warm``: it holds more than ``threshold`` tokens; ``partial``: it holds some; ``spread``: another one holds more
    (``best``), but this one is cheaper; ``cold``: nobody holds any; ``no-prompt``: there was nothing to match.
    """
    if not has_prompt:
        return "no-prompt"
    if cached_tokens > threshold:
        return "warm"
    if cached_tokens < best:
        return "spread"
    return "partial" if cached_tokens else "cold"


@dataclass(slots=True)
class DecisionRecord:
    """A decision and all that its costs were computed from; they are split into terms only when a page asks for it.

    It keeps neither the request nor its chain: a hundred records would hold a hundred prompts in memory.
    """

    request_id: str
    model: str
    strategy: str
    reason: str
    """The exact one; see :attr:`coarse_reason`."""
    chosen: str
    targets: str
    warm_from: float
    """Cached tokens above which the reason is ``warm``."""
    constants: CostConstants
    request: RequestFactors
    names: tuple[str, ...]
    endpoints: list[EndpointFactors]
    values: list[float]
    cached: CachedTokens
    adapter_costs: Sequence[float] | None

    @classmethod
    def of(
        cls,
        request_id: str,
        decision: Decision,
        context: PickContext,
        values: Sequence[float],
        constants: CostConstants,
        *,
        warm_from: float,
    ) -> DecisionRecord:
        """The record of a decision; ``values`` are what the strategy gave, by position."""
        return cls(
            request_id=request_id,
            model=context.request.model,
            strategy=decision.strategy,
            reason=decision.reason,
            chosen=decision.endpoint.id,
            targets=decision.targets,
            warm_from=warm_from,
            constants=constants,
            request=context.factors,
            names=context.candidates.members.names,
            endpoints=context.candidates.factors[:],
            values=list(values),
            cached=context.cached,
            adapter_costs=context.adapter_costs,
        )

    @property
    def coarse_reason(self) -> str:
        """The reason that follows from the coarse cached tokens: ``warm`` means that a share of the prompt is cached."""
        if self.reason == "no-prompt":
            return self.reason
        best = max([self.cached.default, *self.cached.overrides.values()])
        return reason_of(
            self._cached_tokens(self.names.index(self.chosen)),
            best=_coarse(best),
            threshold=self.warm_from,
            has_prompt=True,
        )

    def explain(self, now: float, most_candidates: int) -> dict[str, Any]:
        """The decision as data for JSON, with the cost of the chosen endpoint and of the next best ones.

        Shows no prompt text, and cached tokens no finer than :data:`CACHED_STEP`.
        """
        chosen = self.names.index(self.chosen)
        others = nsmallest(most_candidates, range(len(self.names)), key=self.values.__getitem__)
        shown = [chosen, *(k for k in others if k != chosen)][:most_candidates]
        return {
            "request": self.request_id,
            "seconds_ago": round(now - self.request.now, 3),
            "model": self.model,
            "strategy": self.strategy,
            "reason": self.coarse_reason,
            "chosen": self.chosen,
            "targets": self.targets,
            "prompt_tokens": round(self.request.prompt_tokens),
            "cached_tokens": self._cached_tokens(chosen),
            "candidates": len(self.names),
            "endpoints": [self._explain(k) for k in shown],
        }

    def _explain(self, k: int) -> dict[str, Any]:
        endpoint, cached_tokens = self.endpoints[k], self._cached_tokens(k)
        explained: dict[str, Any] = {
            "endpoint": self.names[k],
            "cached_tokens": cached_tokens,
            "waiting": round(endpoint.waiting, 1),
            "running": round(endpoint.running, 1),
        }
        if self.strategy.upper() not in COST_STRATEGIES:
            return explained | {"value": float(f"{self.values[k]:.2g}")}
        adapter = self.adapter_costs[k] if self.adapter_costs is not None else 0.0
        terms = cost_terms(self.constants, endpoint, self.request, cached_tokens=cached_tokens, adapter=adapter)
        return explained | {
            "cost_ms": round(1000 * terms.total, 3),
            "terms_ms": {term: round(1000 * value, 3) for term, value in terms._asdict().items()},
        }

    def _cached_tokens(self, k: int) -> int:
        return _coarse(self.cached.at(k))


def _coarse(cached_tokens: float) -> int:
    return int(cached_tokens) // CACHED_STEP * CACHED_STEP
