"""The cost of sending a request to an endpoint: the seconds that it adds for all requests.

::

    cost   = direct + own*(WAITING*queued + RUNNING*running*usage)
    direct = wait + own + own*EVICTION*fill + own*POOL*pool waiting*busy
             + BALANCE*returning*prompt*requests/(FROM + mean requests) + adapter + stale

The cheapest endpoint gets the request, unless its direct cost is more than ``1 + DETOUR`` times the least one. Then it is
left out, with all others of which that is so, and the cheapest of the rest gets it.

================  =================================================================================================
``wait``          seconds until the endpoint has computed the prompts assigned to it
``own``           seconds of computing the tokens of this prompt that it does not hold, at its speed
``prompt``        tokens of the whole prompt times its seconds per token; without attention, which ``own`` includes
``waiting``       requests there without a first token
``queued``        those of them that wait for their prefill: none while they wait for sequence slots or KV blocks
``running``       requests there that have their first token
``requests``      both together; ``mean requests`` is over the candidates
``returning``     share of the requests that are expected to come back: twice the hit ratio, at least 0.3, at most 1
``pool waiting``  requests without a first token at the median candidate (the lower of two)
``busy``          its requests, at most 1: computing on an idle endpoint takes time from nobody who waits elsewhere
``fill``          share of its KV cache that holds prompts, by the prefix index
``usage``         its KV cache utilization, estimated between scrapes, at most 1
================  =================================================================================================

Each term, what it models, when it acts and what breaks without it: docs/cost.md. The formula stands here once, in two steps.
:func:`endpoint_factors` computes what does not depend on the request, when the endpoint's load changes.
:func:`cost_terms` adds the request. The debug page and the tests use both. A decision adds the request for all
endpoints in one pass over columns (:meth:`Candidates.costs <warmroute.routing.candidates.Candidates.costs>`), which a
property test holds equal (tests/routing/test_cost.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from warmroute.pool.work import prefill_work

HIT_RATIO_MEMORY = 100.0
"""Requests after which earlier ones count 1/e as much in the hit ratio. With 200, replays are equal within noise."""
LEAST_HIT_RATIO = 0.15
"""What a lower hit ratio counts as: without balance, bursts of prompts that share nothing pile up."""
FULL_HIT_RATIO = 0.5
"""From this hit ratio on balance counts in full. Also the hit ratio until prompts are looked up. How the three numbers were
chosen: docs/cost-experiments.md."""
LEFT_OUT = 1e9
"""Seconds that an endpoint costs more if it is left out: it comes behind all others. Several keep their order."""


@dataclass(frozen=True, slots=True)
class CostConstants:
    """The weights of the terms; the settings ``cost_*`` say what each means."""

    eviction: float
    waiting: float
    pool_waiting: float
    running: float
    balance: float
    balance_from: float
    detour: float
    adapter: float
    stale: float


class EndpointFactors(NamedTuple):
    """The factors of one endpoint in the cost of any request."""

    waiting: float
    """Requests without a first token."""
    queued: float
    """Those of them that wait for their prefill, so that one more delays them."""
    running: float
    """Requests that have their first token."""
    seconds_per_token: float
    """Seconds of prefill for each token of work: the pool's median, times the endpoint's slowness."""
    wait_at_zero: float
    """``wait`` at monotonic time ``now`` is ``wait_at_zero - now * wait_rate`` seconds."""
    wait_rate: float
    eviction: float
    """``EVICTION*fill``: what a new token evicts, as a share of computing it."""
    kv_usage: float
    """KV cache utilization, at most 1."""
    stale: float
    """The term ``stale``, in seconds."""
    correction: float
    """Measured over predicted time to first token (:mod:`~warmroute.routing.prediction`): multiplies predictions, not the
    cost."""

    def wait(self, now: float) -> float:
        """Seconds until the endpoint has computed the prompts assigned to it."""
        return self.wait_at_zero - now * self.wait_rate


class RequestFactors(NamedTuple):
    """The factors of one request, and of the candidates as a whole, in its cost on any endpoint."""

    prompt_tokens: float
    """At least 1."""
    mean_requests: float
    """Requests in flight of a candidate, on average."""
    pool_waiting: float
    """Requests without a first token at the median candidate: at least half of the candidates have as many."""
    now: float
    """Monotonic seconds."""
    prompts: float = 1.0
    """Prompts of equal length that the tokens are of (:attr:`~warmroute.routing.decision.Decision.prompts`)."""
    hit_ratio: float = FULL_HIT_RATIO
    """Share of the tokens of earlier prompts that the candidate that held most of each held (:data:`HIT_RATIO_MEMORY`)."""

    def uncached_work(self, cached_tokens: float) -> float:
        """Work of the tokens beyond ``cached_tokens``."""
        return prefill_work(self.prompt_tokens, self.prompts) - prefill_work(cached_tokens, self.prompts)


class CostTerms(NamedTuple):
    """The cost of one request on one endpoint, split; all in seconds."""

    wait: float
    """Waiting for the prompts assigned before."""
    prefill: float
    """Computing what the endpoint does not hold of the prompt: ``own``."""
    evict: float
    """Computing again what the new tokens evict: ``own * EVICTION*fill``."""
    delay: float
    """The delay of the requests there by this prefill: ``own * (WAITING*queued + RUNNING*running*usage)``."""
    pool_delay: float
    """The delay of the pool's waiting requests by this prefill: ``own * POOL*pool waiting*busy``."""
    balance: float
    """Requests come back to where they were: ``BALANCE*returning * prompt * requests / (FROM + mean requests)``."""
    adapter: float
    """Loading the LoRA adapter."""
    stale: float
    """Metrics older than the staleness threshold."""

    @property
    def total(self) -> float:
        """The cost in seconds."""
        return sum(self)

    @property
    def direct(self) -> float:
        """The cost without the delay of the requests there."""
        return sum(self) - self.delay


def endpoint_factors(
    constants: CostConstants,
    *,
    waiting: float,
    queued: float,
    running: float,
    seconds_per_token: float,
    pending_at_zero: float,
    pending_rate: float,
    kv_usage: float,
    cache_fill: float,
    stale_seconds: float,
    correction: float = 1.0,
) -> EndpointFactors:
    """An endpoint's factors from its load. ``pending_*`` are in tokens of work."""
    return EndpointFactors(
        waiting,
        queued,
        running,
        seconds_per_token,
        seconds_per_token * pending_at_zero,
        seconds_per_token * pending_rate,
        constants.eviction * cache_fill,
        min(1.0, kv_usage),
        constants.stale * stale_seconds,
        correction,
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
    own = endpoint.seconds_per_token * request.uncached_work(cached_tokens)
    prompt = endpoint.seconds_per_token * request.prompt_tokens
    busy = min(1.0, endpoint.waiting + endpoint.running)
    return CostTerms(
        wait=endpoint.wait(request.now),
        prefill=own,
        evict=own * endpoint.eviction,
        delay=own * (constants.waiting * endpoint.queued + constants.running * endpoint.running * endpoint.kv_usage),
        pool_delay=own * constants.pool_waiting * request.pool_waiting * busy,
        balance=prompt * balance_weight(constants, request) * (endpoint.waiting + endpoint.running),
        adapter=adapter,
        stale=endpoint.stale,
    )


def most_direct(constants: CostConstants, least: float) -> float:
    """The direct cost above which an endpoint may be left out; ``least`` is that of the candidate with the least."""
    return least + constants.detour * max(0.0, least)


def is_left_out(cost: float) -> bool:
    """Whether the cost has :data:`LEFT_OUT` in it. Without it, a cost may be a little less than nothing by rounding."""
    return cost > LEFT_OUT / 2


def plain_cost(cost: float) -> float:
    """The cost of an endpoint without :data:`LEFT_OUT`."""
    return cost - LEFT_OUT if is_left_out(cost) else cost


def time_to_first_token(endpoint: EndpointFactors, request: RequestFactors, *, cached_tokens: float) -> float:
    """Predicted seconds until the first token of ``request`` on ``endpoint``: the prompts assigned before, then what the
    endpoint does not hold of its own, corrected by what the engine measured. What either delays or evicts is in the cost
    only."""
    own = endpoint.seconds_per_token * request.uncached_work(cached_tokens)
    return endpoint.correction * (max(0.0, endpoint.wait(request.now)) + own)


def balance_weight(constants: CostConstants, request: RequestFactors) -> float:
    """``BALANCE*returning/(FROM + mean requests)``: the share of the prompt that each request in flight costs."""
    returning = min(1.0, max(LEAST_HIT_RATIO, request.hit_ratio) / FULL_HIT_RATIO)
    return constants.balance * returning / (constants.balance_from + request.mean_requests)
