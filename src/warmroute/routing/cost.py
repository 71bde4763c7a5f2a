"""The cost of sending a request to an endpoint: the time that it adds for all requests, in prefill tokens.

::

    cost = w*wait + own*(1 + E) + own*(v*waiting*W + running*R*usage) + t*decode*R
        + balance*T*m*((1 - s)*C + s*least C)/(3 + mean C)*(1 + v)/2
        + slots*t*n*min(S/4, max(0, R + 1 - 0.95*S)) + kv*t*n*max(0, usage - 0.85) + adapter + stale      [seconds]

============  ====================================================================================================
``T``         seconds for a token of work at the pool's median prefill rate
``t``         the same on the endpoint: ``T`` times its slowness
``wait``      seconds until the endpoint has computed the prompts assigned to it
``own``       ``t`` times the uncached work: ``n`` less the work of the ``min(cached, prompt - 1)`` tokens that it holds
``n``         work of the prompt: its tokens, and their attention (:func:`~warmroute.pool.work.prefill_work`)
``m``         prompt tokens, at most 8,192
``W``         requests on the endpoint that wait for their first token
``R``         requests on the endpoint that have their first token
``C``         in-flight requests that are balanced: ``R``; ``R + W`` if more than two wait on some endpoint
``s``         three quarters of the share of the prompt that the endpoint holds
``least C``   least ``C`` of the endpoints that hold at least 0.9 of the most that any endpoint holds of the prompt
``w``         ``1 / (1 + min W)`` over the candidates, at least 0.8
``v``         ``1 / (1 + min W / 2)`` over the candidates
``E``         price of a new token in the KV cache: ``eviction * (0.05 + 0.95*fill*h)``
``fill``      share of the KV cache that holds prompts
``h``         hit rate: EWMA of the cached share of the prompts sent to the endpoint
``usage``     KV cache utilization, estimated between scrapes; at most 1, except for the KV guard
``S``         ``max_num_seqs``: requests that the engine runs at once
============  ====================================================================================================

Each term, what it models and when it acts: docs/cost.md. The formula stands here once, in two steps.
:func:`endpoint_factors` computes what does not depend on the request, when the endpoint's load changes.
:func:`cost_terms` adds the request. The debug page and the tests use both. A decision adds the request for all
endpoints in one pass over columns (:meth:`Candidates.costs <warmroute.routing.candidates.Candidates.costs>`): 12 us at 100
endpoints, where 100 calls of :func:`cost_terms` take 250 us (timeit, CPython 3.11). A property test holds the two equal
(tests/routing/test_cost.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from warmroute.pool.work import prefill_work

SLOTS_FROM = 0.95
"""Share of ``max_num_seqs`` from which the slot guard acts."""
SLOTS_CAP = 0.25
"""Share of ``max_num_seqs`` up to which the slot guard grows; what is estimated to run beyond that is a queue."""
KV_FROM = 0.85
"""KV cache utilization from which the KV guard acts."""
LEAST_QUEUE_WEIGHT = 0.8
"""Lower bound of ``w``. Chosen with ``warmroute bench standings``, load 1.1: 1 costs a tenth more mean TTFT, and with
0.65 the p99 differs by a fifth from seed to seed."""
DELAY_HALVED_AT = 2.0
"""``min W`` at which ``v`` is a half. Chosen with ``warmroute bench standings``, load 1.1: p99 of the TTFT a third
lower."""
BALANCE_FROM = 3.0
"""Mean ``C`` at which the balance term counts half. On an almost idle pool a single running request must not drive the
next turn of its own conversation away."""
MOST_IGNORED_WAITING = 2
"""Most waiting requests on any endpoint at which waiting requests are not balanced: one client that asks again at once
finds its endpoint. Chosen with ``warmroute bench standings --scenario hot-prefix``: with more waiting, counting them
spreads a hot prefix over a cold pool at once, and its p99 is up to half as high."""
BALANCE_TOKENS = 8192
"""Most prompt tokens that the balance term counts. Chosen with ``warmroute bench standings --scenario agents``: with
the whole prompt the p99 is a fifth higher."""
HOLDER_SHARE = 0.75
"""Share of ``C`` of an endpoint that holds the prompt for which ``least C`` counts instead. Chosen with ``warmroute
bench standings --scenario hot-prefix``: with 0 a dozen requests wait for the newest copy though other holders are idle;
with 1 the load is uneven."""
NEAR_BEST = 0.9
"""Share of the most cached tokens of any endpoint from which on an endpoint counts as a holder for ``least C``."""
EMPTY_SHARE = 0.05
"""Share of the eviction price in an empty cache: the cache fills up later, and computing a prefix twice wastes time."""
HIT_WINDOW = 0.25
"""Prompt tokens over which the hit rate is averaged, as a share of the KV cache's capacity."""


@dataclass(frozen=True, slots=True)
class CostConstants:
    """The weights of the terms; the settings ``cost_*`` say what each means."""

    eviction: float
    waiting: float
    running: float
    decode: float
    balance: float
    slots: float
    kv: float
    adapter: float
    stale: float


class EndpointFactors(NamedTuple):
    """The factors of one endpoint in the cost of any request."""

    waiting: float
    """``W``: requests without a first token."""
    running: float
    """``R``: requests that have their first token."""
    seconds_per_token: float
    """``t``: seconds of prefill for each token of work."""
    wait_at_zero: float
    """``wait`` at monotonic time ``now`` is ``wait_at_zero - now * wait_rate`` seconds."""
    wait_rate: float
    eviction: float
    """``E``."""
    kv_usage: float
    """``usage``, at most 1."""
    slots_guard: float
    """Seconds of the slot guard for each token of ``n``."""
    kv_guard: float
    """Seconds of the KV guard for each token of ``n``."""
    stale: float
    """The term ``stale``, in seconds."""

    def wait(self, now: float) -> float:
        """Seconds until the endpoint has computed the prompts assigned to it."""
        return self.wait_at_zero - now * self.wait_rate


class RequestFactors(NamedTuple):
    """The factors of one request, and of the candidates as a whole, in its cost on any endpoint."""

    prompt_tokens: float
    """At least 1."""
    queue_weight: float
    """``w``."""
    delay_weight: float
    """``v``."""
    balance_weight: float
    """``balance*T/(3 + mean C)*(1 + v)/2``."""
    waiting_counts: bool
    """Whether ``C`` is ``R + W``."""
    least_in_flight: float
    """``least C``."""
    now: float
    """Monotonic seconds."""


class CostTerms(NamedTuple):
    """The cost of one request on one endpoint, split; all in seconds."""

    wait: float
    """Waiting for the prompts assigned before: ``w*wait``."""
    prefill: float
    """Computing what the endpoint does not hold of the prompt: ``own``."""
    evict: float
    """Computing again what the new tokens evict: ``own*E``."""
    delay: float
    """The delay of other requests by this prefill: ``own*(v*waiting*W + running*R*usage)``."""
    decode: float
    """Sharing steps with running requests: ``t*decode*R``."""
    balance: float
    """In-flight requests: ``balance*T*m*((1 - s)*C + s*least C)/(3 + mean C)*(1 + v)/2``."""
    slots: float
    """The guard against more requests than the engine runs at once."""
    kv: float
    """The guard against a full KV cache."""
    adapter: float
    """Loading the LoRA adapter."""
    stale: float
    """Metrics older than the staleness threshold."""

    @property
    def total(self) -> float:
        """The cost in seconds."""
        return sum(self)


def endpoint_factors(
    constants: CostConstants,
    *,
    waiting: float,
    running: float,
    seconds_per_token: float,
    pending_at_zero: float,
    pending_rate: float,
    kv_usage: float,
    cache_fill: float,
    hit_rate: float,
    max_num_seqs: int,
    stale_seconds: float,
) -> EndpointFactors:
    """An endpoint's factors from its load. ``pending_*`` are in tokens of work."""
    return EndpointFactors(
        waiting,
        running,
        seconds_per_token,
        seconds_per_token * pending_at_zero,
        seconds_per_token * pending_rate,
        eviction_price(constants, cache_fill, hit_rate),
        min(1.0, kv_usage),
        seconds_per_token * constants.slots * slots_excess(running, max_num_seqs),
        seconds_per_token * constants.kv * max(0.0, kv_usage - KV_FROM),
        constants.stale * stale_seconds,
    )


def cost_terms(
    constants: CostConstants,
    endpoint: EndpointFactors,
    request: RequestFactors,
    *,
    cached_tokens: float,
    adapter: float = 0.0,
) -> CostTerms:
    """The cost of ``request`` on ``endpoint``, which holds ``cached_tokens`` of its prompt."""
    waiting, running, seconds_per_token = endpoint.waiting, endpoint.running, endpoint.seconds_per_token
    prompt_work = prefill_work(request.prompt_tokens)
    own = seconds_per_token * (prompt_work - prefill_work(cached_tokens))
    share = holder_share(request.prompt_tokens, cached_tokens)
    in_flight = waiting + running if request.waiting_counts else running
    balanced = (1 - share) * in_flight + share * request.least_in_flight
    balanced_tokens = min(request.prompt_tokens, BALANCE_TOKENS)
    delay = request.delay_weight * constants.waiting * waiting + constants.running * running * endpoint.kv_usage
    return CostTerms(
        wait=request.queue_weight * endpoint.wait(request.now),
        prefill=own,
        evict=own * endpoint.eviction,
        delay=own * delay,
        decode=seconds_per_token * constants.decode * running,
        balance=request.balance_weight * balanced_tokens * balanced,
        slots=prompt_work * endpoint.slots_guard,
        kv=prompt_work * endpoint.kv_guard,
        adapter=adapter,
        stale=endpoint.stale,
    )


def time_to_first_token(endpoint: EndpointFactors, request: RequestFactors, *, cached_tokens: float) -> float:
    """Predicted seconds until the first token of ``request`` on ``endpoint``: the prompts assigned before, then what the
    endpoint does not hold of its own. What either delays or evicts is in the cost only."""
    uncached_work = prefill_work(request.prompt_tokens) - prefill_work(cached_tokens)
    return max(0.0, endpoint.wait(request.now)) + endpoint.seconds_per_token * uncached_work


def eviction_price(constants: CostConstants, cache_fill: float, hit_rate: float) -> float:
    """``E``: the price of a new token in a cache of which the share ``cache_fill`` holds prompts."""
    return constants.eviction * (EMPTY_SHARE + (1 - EMPTY_SHARE) * cache_fill * hit_rate)


def slots_excess(running: float, max_num_seqs: int) -> float:
    """Requests beyond those that the slot guard allows if one more comes to ``running``, at most a quarter of the
    slots.

    Waiting requests do not count: mostly they wait for prefill, which is in ``P``. Chosen with ``warmroute bench
    standings --scenario long-among-short``, load 1.1: if they did, long prompts would leave endpoints with many short
    requests for a few that they fill, and the p99 be a fifth higher.
    """
    return min(SLOTS_CAP * max_num_seqs, max(0.0, running + 1 - SLOTS_FROM * max_num_seqs))


def saturation_weights(least_waiting: float) -> tuple[float, float]:
    """``w`` and ``v`` if every candidate has at least ``least_waiting`` requests waiting."""
    return max(LEAST_QUEUE_WEIGHT, 1 / (1 + least_waiting)), 1 / (1 + least_waiting / DELAY_HALVED_AT)


def holder_share(prompt_tokens: float, cached_tokens: float) -> float:
    """``s`` of an endpoint that holds ``cached_tokens`` of a prompt."""
    return HOLDER_SHARE * cached_tokens / prompt_tokens


def balance_weight(
    constants: CostConstants, mean_in_flight: float, delay_weight: float, seconds_per_token: float
) -> float:
    """``balance*T/(3 + mean C)*(1 + v)/2``: the seconds that each in-flight request costs for each of the prompt's ``m``
    tokens."""
    return constants.balance * seconds_per_token * (1 + delay_weight) / 2 / (BALANCE_FROM + mean_in_flight)
