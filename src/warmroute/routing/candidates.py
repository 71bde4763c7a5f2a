"""The endpoints that a request can go to, as columns: one list for each figure, one position for each endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from statistics import median_low

from warmroute.routing.cached_tokens import CachedTokens
from warmroute.routing.cost import (
    FULL_HIT_RATIO,
    LEFT_OUT,
    CostConstants,
    EndpointFactors,
    RequestFactors,
    balance_weight,
    most_direct,
)
from warmroute.routing.endpoint_load import EndpointLoad


class Members:
    """The endpoints of the columns, by position. Shared by all Candidates of these endpoints."""

    __slots__ = ("loads", "mask", "names", "position")

    def __init__(self, loads: Sequence[EndpointLoad]) -> None:
        self.loads = tuple(loads)
        self.names = tuple(load.endpoint.id for load in loads)
        self.position = {load.holder: k for k, load in enumerate(loads)}
        """Positions by number in the prefix index."""
        self.mask = sum(1 << load.holder for load in loads)
        """Their numbers in the prefix index, as its bit mask."""


_NO_MEMBERS = Members(())
_COLUMNS = (
    "_base",
    "_delay",
    "_per_token",
    "_pool_delay",
    "_requests_seconds",
    "_wait_rate",
    "factors",
    "running",
    "total",
    "waiting",
)
"""Attributes of :class:`Candidates` with one figure for each endpoint."""


class Candidates:
    """The figures of every candidate that the cost needs; costs and their factors are in seconds.

    A decision over a hundred endpoints is one pass over these lists (:meth:`costs`).
    """

    __slots__ = (*_COLUMNS, "members")

    def __init__(self, members: Members) -> None:
        self.members = members
        size = len(members.loads)
        self.factors: list[EndpointFactors] = [_NO_FACTORS] * size
        """What the other columns are computed from, by endpoint; a decision's record keeps a copy of this list."""
        self.waiting: list[float] = [0.0] * size
        """Requests without a first token."""
        self.running: list[float] = [0.0] * size
        """Requests that have their first token."""
        self.total: list[float] = [0.0] * size
        """Requests in flight."""
        self._base: list[float] = [0.0] * size
        """Cost that depends on no request, at time 0: ``wait`` and ``stale``."""
        self._wait_rate: list[float] = [0.0] * size
        self._per_token: list[float] = [0.0] * size
        """Cost of each token of uncached work: ``prefill`` and ``evict``."""
        self._delay: list[float] = [0.0] * size
        """``delay`` for each token of uncached work."""
        self._pool_delay: list[float] = [0.0] * size
        """Cost of each token of uncached work for each request that waits at the median candidate; 0 on an idle endpoint."""
        self._requests_seconds: list[float] = [0.0] * size
        """Requests in flight times the endpoint's seconds per token."""

    def __len__(self) -> int:
        return len(self.members.loads)

    @property
    def loads(self) -> Sequence[EndpointLoad]:
        """The candidates' loads, by position."""
        return self.members.loads

    def store(self, k: int, factors: EndpointFactors, total: float, constants: CostConstants) -> None:
        """Replace the figures at position ``k``; ``total`` are its requests in flight."""
        waiting, running, seconds_per_token = factors.waiting, factors.running, factors.seconds_per_token
        self.factors[k] = factors
        self.waiting[k], self.running[k], self.total[k] = waiting, running, total
        self._base[k] = factors.wait_at_zero + factors.stale
        self._wait_rate[k] = factors.wait_rate
        self._per_token[k] = seconds_per_token * (1 + factors.eviction)
        self._delay[k] = seconds_per_token * (
            constants.waiting * factors.queued + constants.running * running * factors.kv_usage
        )
        self._pool_delay[k] = seconds_per_token * constants.pool_waiting * min(1.0, waiting + running)
        self._requests_seconds[k] = seconds_per_token * total

    def only(self, members: Members, selected: Sequence[bool]) -> Candidates:
        """A copy of the columns of the ``members`` at the ``selected`` positions, for one decision."""
        part = Candidates(_NO_MEMBERS)  # its columns are replaced
        for name in _COLUMNS:
            setattr(part, name, list(compress(getattr(self, name), selected)))
        part.members = members
        return part

    # ---------------------------------------------------------------- a request's cost

    def pending(self, k: int, now: float) -> float:
        """Tokens of work that the endpoint at position ``k`` has to compute."""
        factors = self.factors[k]
        return max(0.0, factors.wait(now)) / factors.seconds_per_token

    def request_factors(
        self, prompt_tokens: float, now: float, *, prompts: float = 1.0, hit_ratio: float = FULL_HIT_RATIO
    ) -> RequestFactors:
        """The factors of a request of ``prompt_tokens`` tokens, which are of ``prompts`` prompts."""
        mean_requests = sum(self.total) / len(self.total)
        return RequestFactors(prompt_tokens, mean_requests, median_low(self.waiting), now, prompts, hit_ratio)

    def costs(
        self,
        request: RequestFactors,
        cached: CachedTokens,
        constants: CostConstants,
        adapter_costs: Sequence[float] | None = None,
    ) -> list[float]:
        """Seconds that the request costs on every candidate: the totals of :func:`~warmroute.routing.cost.cost_terms`.
        ``adapter_costs``: the term ``adapter``, by position. If the direct cost of the cheapest candidate is above
        :func:`~warmroute.routing.cost.most_direct`, it and all others of which that is so are left out: they cost
        :data:`~warmroute.routing.cost.LEFT_OUT` more.

        All are priced as if they held the default number of cached tokens, in one pass; the few others are then
        corrected by the difference.
        """
        now, (default, overrides) = request.now, cached
        work, pool_waiting = request.uncached_work(default), request.pool_waiting
        balance = request.prompt_tokens * balance_weight(constants, request)
        per_token, pool_delay, delay = self._per_token, self._pool_delay, self._delay
        if not pool_waiting:
            direct = [
                base - now * rate + work * own + balance * requests
                for base, rate, own, requests in zip(
                    self._base, self._wait_rate, per_token, self._requests_seconds, strict=True
                )
            ]
        else:
            queued = work * pool_waiting
            direct = [
                base - now * rate + work * own + queued * pool + balance * requests
                for base, rate, own, pool, requests in zip(
                    self._base, self._wait_rate, per_token, pool_delay, self._requests_seconds, strict=True
                )
            ]
        other_work = {k: request.uncached_work(held) for k, held in overrides.items()}
        for k, uncached_work in other_work.items():
            direct[k] -= (work - uncached_work) * (per_token[k] + pool_waiting * pool_delay[k])
        if adapter_costs is not None:
            direct = [cost + adapter for cost, adapter in zip(direct, adapter_costs, strict=True)]
        if not any(delay):
            return direct
        costs = [cost + work * each for cost, each in zip(direct, delay, strict=True)]
        for k, uncached_work in other_work.items():
            costs[k] = direct[k] + uncached_work * delay[k]
        most = most_direct(constants, min(direct))
        if direct[costs.index(min(costs))] > most:
            return [cost if own <= most else cost + LEFT_OUT for cost, own in zip(costs, direct, strict=True)]
        return costs


_NO_FACTORS = EndpointFactors(*[0.0] * 10)
