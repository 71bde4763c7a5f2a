"""The record of a decision: what its costs were computed from, and the explanation that is made of it when it is read.

The decision log, the debug pages, `warmroute explain` and traces all show this record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

from warmroute.pool.endpoint import EndpointState, endpoint_state
from warmroute.routing.cached_tokens import CachedTokens
from warmroute.routing.cost import (
    CostConstants,
    CostTerms,
    EndpointFactors,
    RequestFactors,
    cost_terms,
    plain_cost,
    time_to_first_token,
)
from warmroute.routing.decision import Decision, reason_of
from warmroute.routing.strategies import PickContext

CACHED_STEP = 1024
"""Pages show cached tokens rounded down to a multiple of this.

Exact figures would let a reader of the debug page guess another client's prompt, message by message: a right guess shows as
a few more cached tokens. The step is absolute: a share of the prompt could be moved by what follows the guess.
Costs and times that follow from rounded tokens are upper bounds.
"""
COST_STRATEGIES = frozenset({"PREFIX_CACHE", "DEFAULT"})
"""Strategies whose values are costs; the terms explain no other strategy. DEFAULT's are the costs if nothing is cached."""


@dataclass(slots=True)
class DecisionRecord:
    """A decision and all that its costs were computed from; they are split into terms only when the record is read.

    It keeps neither the request nor its chain: a hundred records would hold a hundred prompts in memory. Cached tokens, and
    what follows from them, are exact where ``exact`` is given, else coarse (:data:`CACHED_STEP`).
    """

    model: str
    strategy: str
    reason: str
    """The exact one; see :attr:`coarse_reason`."""
    chosen: str
    """Id of the chosen endpoint."""
    targets: str
    warm_from: float
    """Cached tokens above which the reason is ``warm``."""
    constants: CostConstants
    request: RequestFactors
    names: tuple[str, ...]
    """Ids of the candidates; the other sequences are by their positions."""
    endpoints: list[EndpointFactors]
    values: list[float]
    """What the strategy gave; the lowest wins."""
    cached: CachedTokens
    adapter_costs: Sequence[float] | None
    held_out: bool = False
    """``--holdout-strategy`` chose."""
    failed_strategy: str = ""
    """The strategy in force if it failed, and ``strategy`` chose in its place; else empty."""
    states: Sequence[EndpointState] = ()
    """Of the candidates, where the chosen one is not ready: none is ready then. Empty: all are ready."""
    id: str = ""
    """Unique among the decisions of all pickers; empty if nothing was decided (:meth:`Router.preview
    <warmroute.routing.router.Router.preview>`), as are the next two."""
    request_id: str = ""
    """The gateway's ``x-request-id``; clients may choose it and it may be empty."""
    traceparent: str = ""
    """The request's W3C trace context (https://www.w3.org/TR/trace-context/); empty if it has none."""

    @classmethod
    def of(
        cls, decision: Decision, context: PickContext, values: Sequence[float], *, warm_from: float
    ) -> DecisionRecord:
        """The record of a decision; ``values`` are what the strategy gave, by position."""
        return cls(
            model=context.request.model,
            strategy=decision.strategy,
            reason=decision.reason,
            chosen=decision.endpoint.id,
            targets=decision.targets,
            warm_from=warm_from,
            constants=context.constants,
            request=context.factors,
            names=context.candidates.members.names,
            endpoints=context.candidates.factors[:],
            values=list(values),
            cached=context.cached,
            adapter_costs=context.adapter_costs,
            held_out=decision.held_out,
            failed_strategy=decision.failed_strategy,
            states=()
            if decision.endpoint.available
            else [endpoint_state(load.endpoint) for load in context.candidates.loads],
        )

    @property
    def trace_id(self) -> str:
        """The trace's id; empty if the request has none."""
        return self.traceparent[3:35]

    @property
    def at(self) -> float:
        """When it was made, in monotonic seconds."""
        return self.request.now

    @property
    def by_cost(self) -> bool:
        """The strategy's values are the costs, with what is cached."""
        return self._has_costs and (self.strategy != "DEFAULT" or not self._most_cached)

    @property
    def _has_costs(self) -> bool:
        return self.strategy in COST_STRATEGIES

    @property
    def coarse_reason(self) -> str:
        """The reason that follows from the coarse cached tokens: ``warm`` means that a share of the prompt is cached."""
        if self.reason in ("no-prompt", "state"):
            return self.reason
        return reason_of(
            self.cached_tokens(self.position),
            best=_coarse(self._most_cached),
            threshold=self.warm_from,
            has_prompt=True,
        )

    @property
    def position(self) -> int:
        """Position of the chosen endpoint."""
        return self.names.index(self.chosen)

    # ---------------------------------------------------------------- one candidate

    def cached_tokens(self, k: int, *, exact: bool = False) -> float:
        """Tokens of the prompt that the candidate probably holds."""
        cached = self.cached.at(k)
        return cached if exact else _coarse(cached)

    def terms(self, k: int, *, exact: bool = False) -> CostTerms:
        """The terms of the candidate's cost in seconds."""
        adapter = self.adapter_costs[k] if self.adapter_costs is not None else 0.0
        cached = self.cached_tokens(k, exact=exact)
        return cost_terms(self.constants, self.endpoints[k], self.request, cached_tokens=cached, adapter=adapter)

    def cost(self, k: int, *, exact: bool = False) -> float:
        """The candidate's cost in seconds."""
        return self.terms(k, exact=exact).total

    def left_out(self, k: int) -> bool:
        """The candidate costs less than the chosen one, but the request itself would wait too long there
        (:func:`~warmroute.routing.cost.most_direct`)."""
        return self.values[k] > self.values[self.position] and self.value(k) < self.value(self.position)

    def value(self, k: int) -> float:
        """What the strategy gave the candidate, also if it was left out."""
        return plain_cost(self.values[k]) if self._has_costs else self.values[k]

    def predicted_ttft(self, k: int, *, exact: bool = False) -> float:
        """Seconds until the first token if the candidate gets the request, as predicted."""
        return self.predicted_ttft_holding(k, self.cached_tokens(k, exact=exact))

    def predicted_ttft_holding(self, k: int, cached_tokens: float) -> float:
        """As :meth:`predicted_ttft`, if the candidate holds ``cached_tokens`` tokens of the prompt."""
        return time_to_first_token(self.endpoints[k], self.request, cached_tokens=cached_tokens)

    def next_best(self, most: int) -> list[int]:
        """Positions of the candidates with the lowest values, without the chosen one."""
        chosen = self.position
        others = nsmallest(most + 1, range(len(self.names)), key=self.values.__getitem__)
        return [k for k in others if k != chosen][:most]

    # ---------------------------------------------------------------- the explanation

    def explain(
        self, now: float, most_candidates: int, *, exact: bool = False, all_terms: bool = True
    ) -> dict[str, Any]:
        """The decision as data for JSON, with the chosen endpoint and the next best ones. Shows no prompt text.

        ``all_terms``: the cost of each endpoint is split, not only the chosen one's.
        """
        chosen = self.position
        shown = [chosen, *self.next_best(most_candidates - 1)]
        return {
            "decision": self.id,
            "request": self.request_id,
            "trace": self.trace_id,
            "seconds_ago": round(now - self.at, 3),
            "model": self.model,
            "strategy": self.strategy,
            "failed_strategy": self.failed_strategy,
            "reason": self.reason if exact else self.coarse_reason,
            "chosen": self.chosen,
            "targets": self.targets,
            "sentence": self.sentence(exact=exact),
            "prompt_tokens": round(self.request.prompt_tokens),
            "cached_tokens": round(self.cached_tokens(chosen, exact=exact)),
            "rounded_to": CACHED_STEP if self._rounded(exact=exact) else 1,
            "predicted_ttft_ms": _milliseconds(self.predicted_ttft(chosen, exact=exact)),
            "candidates": len(self.names),
            "endpoints": [self._explain(k, exact=exact, split=all_terms or k == chosen) for k in shown],
        }

    def _explain(self, k: int, *, exact: bool, split: bool) -> dict[str, Any]:
        endpoint = self.endpoints[k]
        explained: dict[str, Any] = {
            "endpoint": self.names[k],
            "state": self.states[k] if self.states else "ready",
            "cached_tokens": round(self.cached_tokens(k, exact=exact)),
            "predicted_ttft_ms": _milliseconds(self.predicted_ttft(k, exact=exact)),
            "waiting": round(endpoint.waiting, 1),
            "queued": round(endpoint.queued, 1),
            "running": round(endpoint.running, 1),
        }
        if self._shows_left_out(exact=exact):
            explained["left_out"] = self.left_out(k)
        if not self.by_cost:
            return explained | {"value": float(f"{self.value(k):.2g}")}
        terms = self.terms(k, exact=exact)
        explained["cost_ms"] = _milliseconds(terms.total)
        if split:
            explained["terms_ms"] = {term: _milliseconds(value) for term, value in terms._asdict().items()}
        return explained

    def sentence(self, *, exact: bool = False) -> str:
        """Why the request went there, in one line: ``holds 2,116 of 2,240 tokens; cost 142 ms; next best
        vllm-2: 2.4 s``.

        ``at most`` where cached tokens are coarse. Of a strategy without costs, its own values.
        """
        chosen = self.position
        parts = [self._holding(chosen, exact=exact), self._worth(chosen, exact=exact)]
        parts[1] = f"cost {parts[1]}" if self.by_cost else f"{short_strategy(self.strategy)} gives it {parts[1]}"
        if self.held_out:
            parts[1] = f"held out (--holdout): {parts[1]}"
        if self.failed_strategy:
            parts[1] = f"{short_strategy(self.failed_strategy)} failed, {self.strategy} chose: {parts[1]}"
        parts += [f"next best {_short(self.names[k])}{self._worth_of_next(k, exact=exact)}" for k in self.next_best(1)]
        if len(self.names) == 1:
            parts.append("the only candidate")
        elif (self.reason if exact else self.coarse_reason) == "spread" and self.by_cost:
            fullest = max(range(len(self.names)), key=self.cached.at)
            name, held = _short(self.names[fullest]), self.cached_tokens(fullest, exact=exact)
            worth = self._worth(fullest, exact=exact)
            if not exact:
                parts.append(f"{name} holds at least {held:,.0f}, but costs more or is left out, {worth}")
            else:
                parts.append(
                    f"{name} holds {held:,.0f}, but {'is left out' if self.left_out(fullest) else f'costs {worth}'}"
                )
        if self.states:
            parts.insert(0, f"{self.states[chosen]}, and no candidate is ready")
        return "; ".join(parts)

    def _holding(self, k: int, *, exact: bool) -> str:
        if self.reason == "no-prompt":
            return "no prompt to look for"
        if self.reason == "state":
            return "keeps what the request goes on with"
        prompt, cached = round(self.request.prompt_tokens), self.cached_tokens(k, exact=exact)
        tokens = f"{prompt:,} token{'s' * (prompt != 1)}"
        if exact:
            return f"holds {cached:,.0f} of {tokens}"
        if prompt < CACHED_STEP:
            return f"a prompt of {tokens}, too short to show what is cached"
        return f"holds {f'at least {cached:,.0f}' if cached else f'less than {CACHED_STEP:,}'} of {tokens}"

    def _worth_of_next(self, k: int, *, exact: bool) -> str:
        if not self.by_cost and self.values[k] == self.values[self.position]:
            return ": as much, chosen later"
        if self._hides_costs(exact=exact) and self.reason != "state" and self.cost(k) < self.cost(self.position):
            return ""  # its bound is lower, though it costs more or was left out
        return f": {self._worth(k, exact=exact)}"

    def _worth(self, k: int, *, exact: bool) -> str:
        if not self.by_cost:
            worth = f"{self.value(k):.2g}"
        else:
            at_most = "at most " if self._rounded(exact=exact) else ""
            worth = f"{at_most}{duration(self.cost(k, exact=exact))}"
        return f"{worth}, left out" if self._shows_left_out(exact=exact) and self.left_out(k) else worth

    def _shows_left_out(self, *, exact: bool) -> bool:
        """Whether to show which candidates were left out: not where it follows from cached tokens that are rounded."""
        return self._has_costs and not self._hides_costs(exact=exact)

    def _hides_costs(self, *, exact: bool) -> bool:
        """Whether only upper bounds of the costs are shown."""
        return self.by_cost and self._rounded(exact=exact)

    def _rounded(self, *, exact: bool) -> bool:
        """Whether cached tokens are shown coarse; a request without a prompt has none."""
        return not exact and self.reason != "no-prompt"

    @property
    def _most_cached(self) -> float:
        return max([self.cached.default, *self.cached.overrides.values()])


def duration(seconds: float) -> str:
    """``seconds`` for people, two significant digits or whole milliseconds: ``0.4 ms``, ``142 ms``, ``2.4 s``."""
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def short_strategy(strategy: str) -> str:
    """The strategy's name; of one from a file, without the file's directory."""
    return strategy.rpartition("/")[2]


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _coarse(cached_tokens: float) -> int:
    return int(cached_tokens) // CACHED_STEP * CACHED_STEP


def _short(endpoint_id: str) -> str:
    """The endpoint's name without its namespace."""
    return endpoint_id.partition("/")[2] or endpoint_id
