"""Routing strategies: one value for each candidate; the lowest wins, ties go to the least recently chosen endpoint.

A custom strategy is a function of the request and the candidates, installed under the entry-point group
``warmroute.strategies``; docs/strategies.md has a worked example.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol

from warmroute.errors import ConfigurationError
from warmroute.pool.endpoint import Endpoint
from warmroute.request.inference import InferenceRequest
from warmroute.routing.cached_tokens import CachedTokens
from warmroute.routing.candidates import Candidates
from warmroute.routing.cost import CostConstants, RequestFactors

ENTRY_POINT_GROUP = "warmroute.strategies"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One endpoint, as a custom strategy sees it. Tokens are estimates unless the client sent token ids."""

    endpoint: Endpoint
    prompt_tokens: float
    """Tokens of the request's prompt."""
    cached_tokens: float
    """Tokens of the prompt that the endpoint probably holds in its KV cache."""
    pending_tokens: float
    """Prefill tokens that it has to compute before this request."""
    waiting: float
    """Requests that wait for their first token."""
    running: float
    """Requests that have their first token."""
    kv_usage: float
    """KV cache utilization at the last scrape, 0 to 1."""
    cost: float
    """The cost that PREFIX_CACHE uses, in seconds; for strategies that change only a detail."""


StrategyFunction = Callable[[InferenceRequest, Sequence[Candidate]], Sequence[float]]
"""One number for each candidate, in order; lower is better."""


@dataclass(slots=True)
class PickContext:
    """The input of a strategy: the request, the candidates and the tokens of the prompt that each holds."""

    request: InferenceRequest
    candidates: Candidates
    cached: CachedTokens
    factors: RequestFactors
    constants: CostConstants
    adapter_costs: Sequence[float] | None
    """Seconds of loading the request's LoRA adapter, by position; None if it asks for none."""

    def costs(self) -> list[float]:
        """The cost of every candidate in seconds (:mod:`warmroute.routing.cost`)."""
        costs = self.candidates.costs(self.factors, self.cached, self.constants)
        if self.adapter_costs is not None:
            costs = [cost + adapter for cost, adapter in zip(costs, self.adapter_costs, strict=True)]
        return costs


class Strategy(Protocol):
    """The interface of a strategy."""

    uses_prefix: bool
    """Whether prompts are to be hashed and matched."""

    def __call__(self, context: PickContext) -> Sequence[float]:
        """The value of every candidate, by position; lower is better."""


class MarginalCost:
    """The time that the request adds for all requests, cached prefixes counted (PREFIX_CACHE) or not (DEFAULT)."""

    def __init__(self, *, uses_prefix: bool) -> None:
        self.uses_prefix = uses_prefix

    def __call__(self, context: PickContext) -> Sequence[float]:
        return context.costs()


class LeastRequest:
    """The endpoint with the fewest requests in flight."""

    uses_prefix = False

    def __call__(self, context: PickContext) -> Sequence[float]:
        return context.candidates.total


class RoundRobin:
    """Each endpoint in turn: all values are equal, and ties go to the least recently chosen."""

    uses_prefix = False

    def __call__(self, context: PickContext) -> Sequence[float]:
        return [0.0] * len(context.candidates)


class Random:
    """A uniformly random endpoint."""

    uses_prefix = False

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def __call__(self, context: PickContext) -> Sequence[float]:
        return [self._rng.random() for _ in context.candidates.loads]


class Custom:
    """A custom strategy function. It gets one :class:`Candidate` for each endpoint; built-in strategies need none."""

    uses_prefix = True

    def __init__(self, name: str, function: StrategyFunction) -> None:
        self._name = name
        self._function = function

    def __call__(self, context: PickContext) -> Sequence[float]:
        """Raises ValueError for a wrong number of values or NaN, and whatever the function raises."""
        columns, factors = context.candidates, context.factors
        candidates = [
            Candidate(
                endpoint=load.endpoint,
                prompt_tokens=factors.prompt_tokens,
                cached_tokens=context.cached.at(k),
                pending_tokens=columns.pending(k, factors.now),
                waiting=columns.waiting[k],
                running=columns.running[k],
                kv_usage=load.kv_usage,
                cost=cost,
            )
            for k, (load, cost) in enumerate(zip(columns.loads, context.costs(), strict=True))
        ]
        values = self._function(context.request, candidates)
        if len(values) != len(candidates):
            raise ValueError(f"strategy {self._name} gave {len(values)} values for {len(candidates)} candidates")
        if any(value != value for value in values):  # noqa: PLR0124 -- NaN, which no comparison finds
            raise ValueError(f"strategy {self._name} gave a value that is not a number")
        return values


BUILT_IN: dict[str, Callable[[random.Random], Strategy]] = {
    "PREFIX_CACHE": lambda rng: MarginalCost(uses_prefix=True),
    "DEFAULT": lambda rng: MarginalCost(uses_prefix=False),
    "LEAST_REQUEST": lambda rng: LeastRequest(),
    "ROUND_ROBIN": lambda rng: RoundRobin(),
    "RANDOM": Random,
}
"""The built-in strategies: factories by name."""


def find(name: str, *, rng: random.Random) -> Strategy:
    """The strategy of that name (upper or lower case), built-in or installed.

    Raises ConfigurationError if there is none, with the names there are, or if an installed one cannot be loaded.
    """
    wanted = name.upper()
    if wanted in BUILT_IN:
        return BUILT_IN[wanted](rng)
    installed = {entry.name.upper(): entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if wanted not in installed:
        known = [*BUILT_IN, *sorted(installed)]
        raise ConfigurationError(f"there is no routing strategy {name!r}; known are {', '.join(known)}")
    try:
        function = installed[wanted].load()
    except Exception as error:  # a third-party module may raise anything when imported
        raise ConfigurationError(f"the routing strategy {name!r} cannot be loaded: {error!r}") from error
    if not callable(function):
        raise ConfigurationError(f"the routing strategy {name!r} is not a function")
    return Custom(wanted, function)
