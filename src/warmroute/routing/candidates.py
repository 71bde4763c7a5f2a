"""The endpoints that a request can go to, as columns: one list for each figure, one position for each endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

from warmroute.pool.work import prefill_work
from warmroute.routing.cached_tokens import CachedTokens
from warmroute.routing.cost import (
    BALANCE_TOKENS,
    MOST_IGNORED_WAITING,
    NEAR_BEST,
    CostConstants,
    EndpointFactors,
    RequestFactors,
    balance_weight,
    holder_share,
    saturation_weights,
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


class Candidates:
    """The figures of every candidate that the cost needs; costs and their factors are in seconds.

    A decision over a hundred endpoints is one pass over these lists (:meth:`costs`).
    """

    __slots__ = (
        "_base",
        "_delay",
        "_fixed",
        "_guarded",
        "_guards",
        "_per_token",
        "_per_uncached",
        "_queueing",
        "_wait_at_zero",
        "_wait_rate",
        "_waiting_and_running",
        "factors",
        "members",
        "running",
        "seconds_per_token",
        "total",
        "waiting",
    )
    _COLUMNS = tuple(
        name for name in __slots__ if name not in ("_guarded", "_queueing", "members", "seconds_per_token")
    )

    def __init__(self, members: Members) -> None:
        self.members = members
        size = len(members.loads)
        self.seconds_per_token = 1.0
        """Seconds for a token of work at the pool's median prefill rate."""
        self.factors: list[EndpointFactors] = [_NO_FACTORS] * size
        """What the other columns are computed from, by endpoint; a decision's record keeps a copy of this list."""
        self.waiting: list[float] = [0.0] * size
        """``W``."""
        self.running: list[float] = [0.0] * size
        """``R``."""
        self.total: list[float] = [0.0] * size
        """Requests in flight."""
        self._waiting_and_running: list[float] = [0.0] * size
        self._wait_at_zero: list[float] = [0.0] * size
        self._wait_rate: list[float] = [0.0] * size
        self._per_uncached: list[float] = [0.0] * size
        """Cost of each token of uncached work, but for the delay of waiting requests."""
        self._delay: list[float] = [0.0] * size
        """Cost of each token of uncached work by the delay of waiting requests, before ``v``."""
        self._per_token: list[float] = [0.0] * size
        """``_per_uncached + _delay``."""
        self._guards: list[float] = [0.0] * size
        """Cost of each token of the prompt's work by the guards."""
        self._fixed: list[float] = [0.0] * size
        """Cost that depends on no request: ``decode`` and ``stale``."""
        self._base: list[float] = [0.0] * size
        """``_wait_at_zero + _fixed``."""
        self._queueing: set[int] = set()
        """Positions at which more than :data:`MOST_IGNORED_WAITING` requests wait."""
        self._guarded: set[int] = set()
        """Positions whose guards are not 0; usually none."""

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
        self._waiting_and_running[k] = waiting + running
        if waiting > MOST_IGNORED_WAITING:
            self._queueing.add(k)
        else:
            self._queueing.discard(k)
        self._wait_at_zero[k], self._wait_rate[k] = factors.wait_at_zero, factors.wait_rate
        per_uncached = seconds_per_token * (1 + factors.eviction + constants.running * running * factors.kv_usage)
        delay = seconds_per_token * constants.waiting * waiting
        fixed = seconds_per_token * constants.decode * running + factors.stale
        self._per_uncached[k], self._delay[k], self._fixed[k] = per_uncached, delay, fixed
        self._base[k], self._per_token[k] = factors.wait_at_zero + fixed, per_uncached + delay
        self._guards[k] = guards = factors.kv_guard + factors.slots_guard
        if guards > 0:
            self._guarded.add(k)
        else:
            self._guarded.discard(k)

    def only(self, members: Members, selected: Sequence[bool]) -> Candidates:
        """A copy of the columns of the ``members`` at the ``selected`` positions, for one decision."""
        part: Candidates = object.__new__(Candidates)
        for name in self._COLUMNS:
            setattr(part, name, list(compress(getattr(self, name), selected)))
        part.members, part.seconds_per_token = members, self.seconds_per_token
        part._queueing = (
            {k for k, n in enumerate(part.waiting) if n > MOST_IGNORED_WAITING} if self._queueing else set()
        )
        part._guarded = {k for k, guards in enumerate(part._guards) if guards > 0} if self._guarded else set()
        return part

    # ---------------------------------------------------------------- a request's cost

    def pending(self, k: int, now: float) -> float:
        """Tokens of work that the endpoint at position ``k`` has to compute."""
        factors = self.factors[k]
        return factors.wait(now) / factors.seconds_per_token

    @property
    def least_waiting(self) -> float:
        """``min W``."""
        return 0.0 if 0.0 in self.waiting else min(self.waiting)

    @property
    def in_flight(self) -> Sequence[float]:
        """``C`` of every candidate."""
        return self._waiting_and_running if self._queueing else self.running

    def least_in_flight(self, cached: CachedTokens) -> float:
        """``least C``; 0 if no candidate holds any of the prompt."""
        default, overrides = cached
        best = max(default, max(overrides.values(), default=0.0))
        if not best:
            return 0.0
        in_flight, enough = self.in_flight, NEAR_BEST * best
        if default < enough:
            return min([in_flight[k] for k, tokens in overrides.items() if tokens >= enough])
        least = min(in_flight)
        if overrides.get(in_flight.index(least), default) >= enough:  # the usual case: few hold less than the default
            return least
        return min([here for k, here in enumerate(in_flight) if overrides.get(k, default) >= enough])

    def request_factors(
        self, prompt_tokens: float, cached: CachedTokens, now: float, constants: CostConstants
    ) -> RequestFactors:
        """The factors of a request of ``prompt_tokens`` tokens, of which the candidates hold ``cached``."""
        queue_weight, delay_weight = saturation_weights(self.least_waiting)
        in_flight = self.in_flight
        return RequestFactors(
            prompt_tokens,
            queue_weight,
            delay_weight,
            balance_weight(constants, sum(in_flight) / len(in_flight), delay_weight, self.seconds_per_token),
            bool(self._queueing),
            self.least_in_flight(cached),
            now,
        )

    def costs(self, request: RequestFactors, cached: CachedTokens) -> list[float]:
        """Seconds that the request costs on every candidate, without the term ``adapter``: the totals of
        :func:`~warmroute.routing.cost.cost_terms`.

        All are priced as if they held the default number of cached tokens, in one pass; the few others are then
        corrected by the difference.
        """
        tokens, (default, overrides) = request.prompt_tokens, cached
        prompt_work, spared, share = prefill_work(tokens), prefill_work(default), holder_share(tokens, default)
        balance = request.balance_weight * min(tokens, BALANCE_TOKENS)
        costs = self._equal_costs(
            request,
            prompt_work,
            prompt_work - spared,
            balance=(1 - share) * balance,
            constant=share * balance * request.least_in_flight,
        )
        if overrides:
            per_uncached, delay, in_flight = self._per_uncached, self._delay, self.in_flight
            delay_weight, least_in_flight = request.delay_weight, request.least_in_flight
            for k, held in overrides.items():
                costs[k] -= (prefill_work(held) - spared) * (per_uncached[k] + delay_weight * delay[k])
                costs[k] -= (holder_share(tokens, held) - share) * balance * (in_flight[k] - least_in_flight)
        return costs

    def _equal_costs(
        self, request: RequestFactors, prompt_work: float, uncached_work: float, *, balance: float, constant: float
    ) -> list[float]:
        """The cost of every candidate if all hold equally many tokens of the prompt."""
        queue_weight, delay_weight, now = request.queue_weight, request.delay_weight, request.now
        if queue_weight == delay_weight == 1 and not self._guarded:
            # The usual case: no endpoint is full and one has no queue. `_base` and `_per_token` hold the sums then.
            return [
                base - now * rate + uncached_work * per_token + balance * in_flight + constant
                for base, rate, per_token, in_flight in zip(
                    self._base, self._wait_rate, self._per_token, self.in_flight, strict=True
                )
            ]
        time, delayed = queue_weight * now, delay_weight * uncached_work
        return [
            queue_weight * wait
            - time * rate
            + uncached_work * per_uncached
            + delayed * delay
            + prompt_work * guards
            + balance * in_flight
            + constant
            + fixed
            for wait, rate, per_uncached, delay, guards, in_flight, fixed in zip(
                self._wait_at_zero,
                self._wait_rate,
                self._per_uncached,
                self._delay,
                self._guards,
                self.in_flight,
                self._fixed,
                strict=True,
            )
        ]


_NO_FACTORS = EndpointFactors(*[0.0] * 10)
