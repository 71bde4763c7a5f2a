"""Strategies: how to value the endpoints for a request. The lowest value wins; ties go to the least recently chosen.

A strategy of one's own is a function of the request and the candidates, installed under the entry-point group
``warmroute.strategies``; docs/strategies.md has a worked example.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import NamedTuple, Protocol

from warmroute.errors import ConfigurationError
from warmroute.pool.endpoint import Endpoint
from warmroute.request.inference import InferenceRequest
from warmroute.routing.load import Fleet

ENTRY_POINT_GROUP = "warmroute.strategies"


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a strategy of one's own sees of one endpoint. Tokens are estimates unless the client sent token ids."""

    endpoint: Endpoint
    prompt_tokens: float
    """Tokens of the request's prompt."""
    cached_tokens: float
    """Of these, what the endpoint probably holds in its KV cache."""
    pending_tokens: float
    """Prefill tokens that it has to compute before this request."""
    waiting: float
    """Requests that wait for their first token."""
    running: float
    """Requests that have it."""
    kv_usage: float
    """KV-cache blocks in use, 0 to 1."""
    cost: float
    """What PREFIX_CACHE would say, in prefill tokens; for strategies that only change a detail."""


StrategyFunction = Callable[[InferenceRequest, Sequence[Candidate]], Sequence[float]]
"""One number for each candidate, in order; lower is better."""


class Cached(NamedTuple):
    """Matched tokens of a prompt by position in the fleet: what is usual, and where it is another."""

    usual: float
    others: dict[int, float]

    def at(self, k: int) -> float:
        """Tokens that the endpoint at position ``k`` holds."""
        return self.others.get(k, self.usual)


NOTHING_CACHED = Cached(0.0, {})


@dataclass(slots=True)
class Offer:
    """One decision to be made: the request, the fleet and what each endpoint holds of the prompt."""

    request: InferenceRequest
    fleet: Fleet
    prompt: float
    """Tokens of the prompt, at least 1."""
    cached: Cached
    adapter_cost: Sequence[float] | None
    """Cost of loading the request's adapter at each position; None where no adapter is asked for."""
    queue_weight: float
    delay_weight: float
    balance_weight: float
    least_crowd: float
    now: float

    def costs(self) -> list[float]:
        """``J`` of every endpoint (:mod:`warmroute.routing.cost`)."""
        usual, others = self.cached
        costs = self.fleet.costs(
            self.prompt,
            usual,
            others,
            queue_weight=self.queue_weight,
            delay_weight=self.delay_weight,
            balance_weight=self.balance_weight,
            least_crowd=self.least_crowd,
            now=self.now,
        )
        if self.adapter_cost is not None:
            costs = [cost + load for cost, load in zip(costs, self.adapter_cost, strict=True)]
        return costs


class Strategy(Protocol):
    """What the router asks for a decision."""

    uses_prefix: bool
    """Whether prompts are to be hashed and matched."""

    def __call__(self, offer: Offer) -> Sequence[float]:
        """The value of every endpoint of ``offer.fleet``; lower is better."""


class MarginalCost:
    """The time that the request adds for everybody, the cached prefix counted (PREFIX_CACHE) or not (DEFAULT)."""

    def __init__(self, *, uses_prefix: bool) -> None:
        self.uses_prefix = uses_prefix

    def __call__(self, offer: Offer) -> Sequence[float]:
        return offer.costs()


class LeastRequest:
    """The endpoint with the fewest requests on it."""

    uses_prefix = False

    def __call__(self, offer: Offer) -> Sequence[float]:
        return offer.fleet.total


class RoundRobin:
    """Each in turn: all are equal, and ties go to the least recently chosen."""

    uses_prefix = False

    def __call__(self, offer: Offer) -> Sequence[float]:
        return [0.0] * len(offer.fleet.books)


class Random:
    """Any, evenly."""

    uses_prefix = False

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def __call__(self, offer: Offer) -> Sequence[float]:
        return [self._rng.random() for _ in offer.fleet.books]


class Custom:
    """A strategy function of somebody's own. It may be as slow as its author likes; the built-in ones do not pass here."""

    uses_prefix = True

    def __init__(self, name: str, function: StrategyFunction) -> None:
        self._name = name
        self._function = function

    def __call__(self, offer: Offer) -> Sequence[float]:
        fleet, now = offer.fleet, offer.now
        candidates = [
            Candidate(
                endpoint=book.endpoint,
                prompt_tokens=offer.prompt,
                cached_tokens=offer.cached.at(k),
                pending_tokens=fleet.pending(k, now) / book.tau,
                waiting=fleet.waiting[k],
                running=fleet.running[k],
                kv_usage=book.kv_usage,
                cost=cost,
            )
            for k, (book, cost) in enumerate(zip(fleet.books, offer.costs(), strict=True))
        ]
        values = self._function(offer.request, candidates)
        if len(values) != len(candidates):
            raise ValueError(f"strategy {self._name} gave {len(values)} values for {len(candidates)} candidates")
        if any(value != value for value in values):  # noqa: PLR0124 -- NaN, which no comparison finds
            raise ValueError(f"strategy {self._name} gave a value that is not a number")
        return values


def find(name: str, *, rng: random.Random) -> Strategy:
    """The strategy of that name (upper or lower case). Raises ConfigurationError that lists the known names."""
    wanted = name.upper()
    match wanted:
        case "PREFIX_CACHE" | "DEFAULT":
            return MarginalCost(uses_prefix=wanted == "PREFIX_CACHE")
        case "LEAST_REQUEST":
            return LeastRequest()
        case "ROUND_ROBIN":
            return RoundRobin()
        case "RANDOM":
            return Random(rng)
    installed = {entry.name.upper(): entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if wanted not in installed:
        known = ["PREFIX_CACHE", "DEFAULT", "LEAST_REQUEST", "ROUND_ROBIN", "RANDOM", *sorted(installed)]
        raise ConfigurationError(f"there is no routing strategy {name!r}; known are {', '.join(known)}")
    try:
        function = installed[wanted].load()
    except Exception as error:  # somebody else's module: whatever it raises, the name is unusable
        raise ConfigurationError(f"the routing strategy {name!r} cannot be loaded: {error!r}") from error
    if not callable(function):
        raise ConfigurationError(f"the routing strategy {name!r} is not a function")
    return Custom(wanted, function)
