"""The cost formula, and that a decision's pass over the columns gives its sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.factories import routing_constants
from warmroute.pool.endpoint import Endpoint, EndpointSpec
from warmroute.pool.work import prefill_work
from warmroute.routing.cached_tokens import NOTHING_CACHED, CachedTokens
from warmroute.routing.candidates import Candidates, Members
from warmroute.routing.cost import (
    LEFT_OUT,
    CostConstants,
    CostTerms,
    EndpointFactors,
    RequestFactors,
    balance_weight,
    cost_terms,
    endpoint_factors,
    is_left_out,
    most_direct,
    plain_cost,
    time_to_first_token,
)
from warmroute.routing.endpoint_load import EndpointLoad

CONSTANTS = routing_constants().load.cost
NOW = 1000.0
SECONDS_PER_TOKEN = 1 / 5000


def factors(**changes: Any) -> EndpointFactors:
    """An idle endpoint's, but for ``changes``. Who waits, waits for a prefill."""
    idle: dict[str, Any] = {
        "waiting": 0.0,
        "queued": changes.get("waiting", 0.0),
        "running": 0.0,
        "seconds_per_token": SECONDS_PER_TOKEN,
        "pending_at_zero": 0.0,
        "pending_rate": 0.0,
        "kv_usage": 0.0,
        "cache_fill": 1.0,
        "stale_seconds": 0.0,
    }
    return endpoint_factors(CONSTANTS, **(idle | changes))


def request(
    prompt_tokens: float, *, mean_requests: float = 0.0, pool_waiting: float = 0.0, hit_ratio: float = 0.5
) -> RequestFactors:
    """A request on a pool with that many requests on each endpoint, and of them waiting."""
    return RequestFactors(prompt_tokens, mean_requests, pool_waiting, NOW, hit_ratio=hit_ratio)


def candidates(endpoints: list[EndpointFactors]) -> Candidates:
    """Candidates with these factors."""
    loads = [
        EndpointLoad(Endpoint(EndpointSpec("ns", str(k), f"10.0.0.{k}", 8000), engine="vllm", now=0.0), k, 0.0)
        for k in range(len(endpoints))
    ]
    result = Candidates(Members(loads))
    for k, one in enumerate(endpoints):
        result.store(k, one, one.waiting + one.running, CONSTANTS)
    return result


anything = st.builds(
    factors,
    waiting=st.integers(0, 3) | st.floats(0, 50),
    queued=st.just(0.0) | st.floats(0, 50),
    running=st.floats(0, 300),
    seconds_per_token=st.floats(1e-6, 1e-2),
    pending_at_zero=st.floats(0, 1e8),
    pending_rate=st.floats(0, 1e5),
    kv_usage=st.floats(0, 1.5),
    cache_fill=st.floats(0, 1),
    stale_seconds=st.just(0.0) | st.floats(0, 60),
)


@given(
    st.lists(anything, min_size=1, max_size=6),
    st.floats(1, 1e4) | st.floats(1, 1e6),
    st.floats(0, 1),
    st.dictionaries(st.integers(0, 5), st.floats(0, 1)),
    st.floats(0, 1),
)
@example([factors(waiting=2.0), factors(waiting=3.0, running=1.0), factors()], 1000.0, 0.0, {0: 0.5}, 1.0)
def test_a_decision_prices_every_candidate_as_the_formula_does(
    endpoints: list[EndpointFactors], prompt_tokens: float, default: float, shares: dict[int, float], hit_ratio: float
) -> None:
    columns = candidates(endpoints)
    overrides = {k: share * (prompt_tokens - 1) for k, share in shares.items() if k < len(endpoints) - 1}
    cached = CachedTokens(default * (prompt_tokens - 1), overrides)
    one = columns.request_factors(prompt_tokens, NOW, hit_ratio=hit_ratio)
    adapters = [CONSTANTS.adapter * (k % 2) for k in range(len(endpoints))]
    expected = [
        cost_terms(CONSTANTS, endpoint, one, cached_tokens=cached.at(k), adapter=adapter)
        for k, (endpoint, adapter) in enumerate(zip(endpoints, adapters, strict=True))
    ]
    costs = columns.costs(one, cached, CONSTANTS, adapters)
    error = max(1e-6 * sum(map(abs, terms)) + 1e-6 for terms in expected)
    for cost, terms in zip(costs, expected, strict=True):
        assert plain_cost(cost) == pytest.approx(terms.total, rel=1e-6, abs=error)
    most = most_direct(CONSTANTS, min(terms.direct for terms in expected))
    if all(abs(terms.direct - most) > error for terms in expected):
        within = [terms.direct <= most for terms in expected]
        chosen = costs.index(min(costs))
        assert within[chosen]
        assert expected[chosen].total <= min(compress((terms.total for terms in expected), within)) + 2 * error
        if any(map(is_left_out, costs)):
            assert [not is_left_out(cost) for cost in costs] == within


@given(st.lists(anything, min_size=1, max_size=6), st.data())
def test_a_part_of_the_candidates_is_priced_as_if_there_were_no_others(
    endpoints: list[EndpointFactors], data: st.DataObject
) -> None:
    selected = data.draw(st.lists(st.booleans(), min_size=len(endpoints), max_size=len(endpoints)).filter(any))
    columns = candidates(endpoints)
    members = Members([load for load, chosen in zip(columns.loads, selected, strict=True) if chosen])
    part = columns.only(members, selected)
    alone = candidates([endpoint for endpoint, chosen in zip(endpoints, selected, strict=True) if chosen])
    cached = CachedTokens(100.0, {0: 900.0})
    one = part.request_factors(1000.0, NOW)
    assert one == alone.request_factors(1000.0, NOW)
    assert part.costs(one, cached, CONSTANTS) == alone.costs(one, cached, CONSTANTS)


@pytest.mark.parametrize(
    ("weight", "term", "per_weight"),
    [
        ("eviction", "evict", 0.4),
        ("waiting", "delay", 3.0),
        ("pool_waiting", "pool_delay", 2.0),
        ("running", "delay", 5.0 * 0.5),
        ("balance", "balance", 8.0 / (3 + 4.0) / 0.9),
        ("stale", "stale", 10.0 / 0.9),
    ],
)
def test_each_weight_scales_its_own_term(weight: str, term: str, per_weight: float) -> None:
    """``per_weight`` is for each second of ``own``, which is 0.9 s: nine tokens of ten are computed."""
    one = request(10.0, mean_requests=4.0, pool_waiting=2.0)

    def priced(constants: CostConstants) -> CostTerms:
        loaded = {
            "waiting": 3.0,
            "queued": 3.0,
            "running": 5.0,
            "kv_usage": 0.5,
            "cache_fill": 0.4,
            "stale_seconds": 10.0,
        }
        idle = {"seconds_per_token": 0.1, "pending_at_zero": 0.0, "pending_rate": 0.0}
        endpoint = endpoint_factors(constants, **loaded, **idle)
        columns = candidates([endpoint])
        columns.store(0, endpoint, 8.0, constants)
        terms = cost_terms(constants, endpoint, one, cached_tokens=1.0)
        assert columns.costs(one, CachedTokens(1.0, {}), constants) == [pytest.approx(terms.total)]
        return terms

    before = priced(CONSTANTS)
    value = getattr(CONSTANTS, weight)
    after = priced(replace(CONSTANTS, **{weight: 3 * value}))
    grown = {
        name: more - less for (name, more), less in zip(after._asdict().items(), before, strict=True) if more != less
    }
    assert grown == {term: pytest.approx(2 * value * 0.9 * per_weight, rel=1e-3)}


def test_the_worked_example() -> None:
    """1,000 tokens, 600 cached, on an endpoint with 2,000 pending tokens, 2 waiting and 10 running requests, in a pool where
    one waits."""
    one = request(1000, mean_requests=9, pool_waiting=1)
    endpoint = factors(waiting=2.0, running=10.0, pending_at_zero=2000.0, kv_usage=0.5, cache_fill=0.5)
    terms = cost_terms(CONSTANTS, endpoint, one, cached_tokens=600)
    own = (prefill_work(1000) - prefill_work(600)) / 5000
    assert terms == pytest.approx(
        CostTerms(
            wait=2000 / 5000,
            prefill=own,
            evict=own * CONSTANTS.eviction * 0.5,
            delay=own * (0.5 * 2 + 0.15 * 10 * 0.5),
            pool_delay=own,
            balance=1000 / 5000 * 12 / (3 + 9),
            adapter=0,
            stale=0,
        )
    )
    assert terms.total == pytest.approx(sum(terms))
    assert terms.direct == pytest.approx(terms.total - terms.delay)
    assert time_to_first_token(endpoint, one, cached_tokens=600) == pytest.approx(terms.wait + terms.prefill)


def test_a_queue_that_has_drained_since_it_was_looked_at_makes_no_prediction_shorter() -> None:
    drained = factors(pending_at_zero=-100.0, pending_rate=1.0)
    one = request(1000)
    assert time_to_first_token(drained, one, cached_tokens=0) == time_to_first_token(factors(), one, cached_tokens=0)


def test_a_prefill_delays_nobody_who_waits_for_a_slot() -> None:
    busy = {"waiting": 40.0, "running": 256.0, "kv_usage": 0.5}
    own = prefill_work(1000) / 5000
    for queued in (0.0, 40.0):
        terms = cost_terms(CONSTANTS, factors(**busy, queued=queued), request(1000), cached_tokens=0)
        assert terms.delay == pytest.approx(own * (0.5 * queued + 0.15 * 256 * 0.5))


def test_the_terms_of_a_slow_endpoint_grow_with_its_slowness() -> None:
    busy = {"waiting": 2.0, "running": 10.0, "pending_at_zero": 2000.0, "kv_usage": 0.5}
    one = request(1000, mean_requests=12)
    fast = cost_terms(CONSTANTS, factors(**busy), one, cached_tokens=0)
    slow = cost_terms(CONSTANTS, factors(**busy, seconds_per_token=2 * SECONDS_PER_TOKEN), one, cached_tokens=0)
    assert slow == pytest.approx(CostTerms(*(2 * term for term in fast)))


def test_an_equally_busy_pool_balances_nothing() -> None:
    """The term is at most the prompt's prefill for an endpoint with the mean, and half of it at a mean of three."""
    terms = cost_terms(CONSTANTS, factors(running=3.0), request(1000, mean_requests=3), cached_tokens=0)
    assert terms.balance == pytest.approx(1000 / 5000 / 2)
    assert balance_weight(CONSTANTS, request(1000, mean_requests=1e9)) * 1e9 == pytest.approx(CONSTANTS.balance)


@pytest.mark.parametrize(
    ("hit_ratio", "returning"), [(0, 0.3), (0.15, 0.3), (0.2, 0.4), (0.4, 0.8), (0.5, 1), (0.9, 1), (1, 1)]
)
def test_requests_count_as_far_as_requests_come_back(hit_ratio: float, returning: float) -> None:
    share = balance_weight(CONSTANTS, request(1000, hit_ratio=hit_ratio)) / balance_weight(CONSTANTS, request(1000))
    assert share == pytest.approx(returning)


def test_a_request_takes_no_long_way_for_the_sake_of_others() -> None:
    """The endpoint with the lower cost is taken if its direct cost is at most 1.2 times the other's; else it is left out."""
    busy = factors(waiting=8.0, cache_fill=0.0)
    for wait, taken in ((1.5, 1), (1.6, 0)):
        calm = factors(pending_at_zero=wait * 5000, waiting=1.0, cache_fill=0.0)
        columns = candidates([busy, calm])
        one = columns.request_factors(5000, NOW)
        direct = [cost_terms(CONSTANTS, each, one, cached_tokens=0).direct for each in (busy, calm)]
        assert (direct[1] <= (1 + CONSTANTS.detour) * direct[0]) is bool(taken)
        costs = columns.costs(one, NOTHING_CACHED, CONSTANTS)
        assert plain_cost(costs[1]) < plain_cost(costs[0])
        assert costs.index(min(costs)) == taken
        assert [is_left_out(cost) for cost in costs] == [False, not taken]


def test_endpoints_that_are_left_out_keep_their_order() -> None:
    busy = factors(waiting=40.0, cache_fill=0.0)
    far, further = (factors(pending_at_zero=wait * 5000, cache_fill=0.0) for wait in (5.0, 6.0))
    columns = candidates([further, busy, far])
    costs = columns.costs(columns.request_factors(5000, NOW), NOTHING_CACHED, CONSTANTS)
    assert costs[1] < LEFT_OUT < costs[2] < costs[0]
    assert plain_cost(costs[0]) < costs[1]


def test_nobody_is_left_out_if_the_cheapest_endpoint_is_near() -> None:
    columns = candidates([factors(), factors(pending_at_zero=1e6, waiting=9.0)])
    assert max(columns.costs(columns.request_factors(1000, NOW), NOTHING_CACHED, CONSTANTS)) < LEFT_OUT


def test_without_a_detour_the_least_direct_cost_decides() -> None:
    columns = candidates([factors(waiting=8.0, cache_fill=0.0), factors(pending_at_zero=10_000, cache_fill=0.0)])
    costs = columns.costs(columns.request_factors(5000, NOW), NOTHING_CACHED, replace(CONSTANTS, detour=0.0))
    assert costs[0] < LEFT_OUT < costs[1]
    assert plain_cost(costs[1]) < costs[0]


def test_a_large_detour_bounds_too() -> None:
    """Also where the delay of others is more than the rest of the cost."""
    columns = candidates([waiting(40), waiting(0, 12.0)])
    for detour, out in ((3.0, True), (6.0, False)):
        costs = columns.costs(columns.request_factors(5000, NOW), NOTHING_CACHED, replace(CONSTANTS, detour=detour))
        assert is_left_out(costs[1]) is out
        assert plain_cost(costs[1]) < costs[0]


def left_out(
    first: EndpointFactors, second: EndpointFactors, cached: CachedTokens, adapters: Sequence[float] = (0.0, 0.0)
) -> list[bool]:
    """Which of the two are left out, of a prompt of 5,000 tokens."""
    columns = candidates([first, second])
    costs = columns.costs(columns.request_factors(5000, NOW), cached, CONSTANTS, adapters)
    return [is_left_out(cost) for cost in costs]


def waiting(requests: float, seconds: float = 0.0) -> EndpointFactors:
    """An endpoint where as many requests wait, and as many seconds of prefill."""
    return factors(waiting=requests, pending_at_zero=seconds * 5000, cache_fill=0.0)


def test_adapters_count_in_the_direct_cost() -> None:
    near = waiting(40), waiting(0, 1.5)
    assert left_out(*near, NOTHING_CACHED, [1.0, 0.0]) == [False, False]
    assert left_out(*near, NOTHING_CACHED, [0.0, 3.0]) == [False, True]


def test_what_is_cached_counts_in_the_direct_cost() -> None:
    """Each way to give the cached tokens: the first holds some, the second does, all do but the first."""
    assert left_out(waiting(40), waiting(0, 1.5), NOTHING_CACHED) == [False, False]
    assert left_out(waiting(40), waiting(0, 1.5), CachedTokens(0.0, {0: 4500.0})) == [False, True]
    assert left_out(waiting(40), waiting(0, 1.0), CachedTokens(0.0, {0: 4500.0})) == [False, False]
    assert left_out(waiting(2), waiting(2, 3.3), CachedTokens(0.0, {1: 4000.0})) == [False, True]
    assert left_out(waiting(3), waiting(0, 2.2), CachedTokens(4500.0, {0: 0.0})) == [False, True]


@pytest.mark.parametrize("least", [-2.0, 0.0, 3.0])
def test_the_endpoint_with_the_least_direct_cost_is_never_left_out(least: float) -> None:
    """Also where rounding makes a wait of nothing less than nothing."""
    assert most_direct(CONSTANTS, least) == pytest.approx(least + 0.2 * max(0.0, least))


@pytest.mark.parametrize(
    ("endpoint", "busy"), [({}, 0), ({"running": 0.5}, 0.5), ({"running": 3.0}, 1), ({"waiting": 9.0}, 1)]
)
def test_a_prefill_takes_computing_time_from_all_who_wait_in_the_pool(endpoint: dict[str, float], busy: float) -> None:
    """An idle endpoint takes none from them."""
    own = prefill_work(100_000) / 5000
    calm, queueing = (
        cost_terms(CONSTANTS, factors(**endpoint), request(100_000, pool_waiting=waiting), cached_tokens=0)
        for waiting in (0, 4)
    )
    assert (calm.pool_delay, queueing.pool_delay) == (0, pytest.approx(own * 4 * busy))
    assert queueing.delay == calm.delay


def test_one_long_queue_is_not_a_busy_pool() -> None:
    """So a second copy of a popular prompt is made while other endpoints are idle."""
    queues = [0.0, 0.0, 0.0, 40.0]
    assert candidates([factors(waiting=waiting) for waiting in queues]).request_factors(1000, NOW).pool_waiting == 0
    queues = [1.0, 40.0, 2.0, 3.0]
    assert candidates([factors(waiting=waiting) for waiting in queues]).request_factors(1000, NOW).pool_waiting == 2


def test_adapters_and_old_metrics_cost_seconds() -> None:
    terms = cost_terms(CONSTANTS, factors(stale_seconds=3), request(1000), cached_tokens=0, adapter=CONSTANTS.adapter)
    assert (terms.adapter, terms.stale) == (0.1, pytest.approx(0.15))
