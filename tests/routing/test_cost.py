"""The cost formula, and that a decision's pass over the columns gives its sums."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import routing_constants
from warmroute.pool.endpoint import Endpoint, EndpointSpec
from warmroute.pool.work import prefill_work
from warmroute.routing.cached_tokens import CachedTokens
from warmroute.routing.candidates import Candidates, Members
from warmroute.routing.cost import (
    BALANCE_TOKENS,
    CostTerms,
    EndpointFactors,
    RequestFactors,
    balance_weight,
    cost_terms,
    endpoint_factors,
    eviction_price,
    saturation_weights,
    slots_excess,
)
from warmroute.routing.endpoint_load import EndpointLoad

CONSTANTS = routing_constants().load.cost
NOW = 1000.0
SECONDS_PER_TOKEN = 1 / 5000


def factors(**changes: Any) -> EndpointFactors:
    """An idle endpoint's, but for ``changes``."""
    idle: dict[str, Any] = {
        "waiting": 0.0,
        "running": 0.0,
        "seconds_per_token": SECONDS_PER_TOKEN,
        "pending_at_zero": 0.0,
        "pending_rate": 0.0,
        "kv_usage": 0.0,
        "cache_fill": 1.0,
        "hit_rate": 1.0,
        "max_num_seqs": 256,
        "stale_seconds": 0.0,
    }
    return endpoint_factors(CONSTANTS, **(idle | changes))


def request(
    prompt_tokens: float, *, mean_in_flight: float = 0.0, delay_weight: float = 1.0, **changes: Any
) -> RequestFactors:
    """A request on a pool where nobody queues, but for ``changes``."""
    weight = balance_weight(CONSTANTS, mean_in_flight, delay_weight, SECONDS_PER_TOKEN)
    return RequestFactors(prompt_tokens, 1.0, delay_weight, weight, False, 0.0, NOW)._replace(**changes)


def candidates(endpoints: list[EndpointFactors]) -> Candidates:
    """Candidates with these factors."""
    loads = [
        EndpointLoad(Endpoint(EndpointSpec("ns", str(k), f"10.0.0.{k}", 8000), engine="vllm", now=0.0), k, 0.0)
        for k in range(len(endpoints))
    ]
    result = Candidates(Members(loads))
    result.seconds_per_token = SECONDS_PER_TOKEN
    for k, one in enumerate(endpoints):
        result.store(k, one, one.waiting + one.running, CONSTANTS)
    return result


anything = st.builds(
    factors,
    waiting=st.integers(0, 3) | st.floats(0, 50),
    running=st.floats(0, 300),
    seconds_per_token=st.floats(1e-6, 1e-2),
    pending_at_zero=st.floats(0, 1e8),
    pending_rate=st.floats(0, 1e5),
    kv_usage=st.floats(0, 1.5),
    cache_fill=st.floats(0, 1),
    hit_rate=st.floats(0, 1),
    max_num_seqs=st.integers(1, 300),
    stale_seconds=st.just(0.0) | st.floats(0, 60),
)


@given(
    st.lists(anything, min_size=1, max_size=6),
    st.floats(1, 1e6),
    st.floats(0, 1),
    st.dictionaries(st.integers(0, 5), st.floats(0, 1)),
)
def test_a_decision_prices_every_candidate_as_the_formula_does(
    endpoints: list[EndpointFactors], prompt_tokens: float, default: float, shares: dict[int, float]
) -> None:
    columns = candidates(endpoints)
    overrides = {k: share * (prompt_tokens - 1) for k, share in shares.items() if k < len(endpoints) - 1}
    cached = CachedTokens(default * (prompt_tokens - 1), overrides)
    one = columns.request_factors(prompt_tokens, cached, NOW, CONSTANTS)
    expected = [
        cost_terms(CONSTANTS, endpoint, one, cached_tokens=cached.at(k)) for k, endpoint in enumerate(endpoints)
    ]
    for cost, terms in zip(columns.costs(one, cached), expected, strict=True):
        assert cost == pytest.approx(terms.total, rel=1e-6, abs=1e-6 * sum(map(abs, terms)) + 1e-6)


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
    one = part.request_factors(1000.0, cached, NOW, CONSTANTS)
    assert one == alone.request_factors(1000.0, cached, NOW, CONSTANTS)
    assert part.costs(one, cached) == alone.costs(one, cached)


def test_the_worked_example() -> None:
    """1,000 tokens, 600 cached, on an endpoint with 2,000 pending tokens, 2 waiting and 10 running requests."""
    one = request(1000, mean_in_flight=9, queue_weight=0.5, delay_weight=0.5)
    endpoint = factors(waiting=2.0, running=10.0, pending_at_zero=2000.0, kv_usage=0.5, cache_fill=0.5, hit_rate=0.4)
    terms = cost_terms(CONSTANTS, endpoint, one, cached_tokens=600)
    uncached = prefill_work(1000) - prefill_work(600)
    assert terms == pytest.approx(
        CostTerms(
            wait=1000 / 5000,
            prefill=uncached / 5000,
            evict=uncached / 5000 * (0.05 + 0.95 * 0.5 * 0.4),
            delay=uncached / 5000 * (0.5 * 2 + 10 * 0.15 * 0.5),
            decode=200 / 5000,
            balance=1000 / 5000 * 0.75 * 10 * (1 - 0.75 * 0.6) / (3 + 9),
            slots=0,
            kv=0,
            adapter=0,
            stale=0,
        )
    )
    assert terms.total == pytest.approx(sum(terms))


def test_where_everybody_queues_waiting_counts_less() -> None:
    assert saturation_weights(0) == (1, 1)
    assert saturation_weights(1) == (0.8, pytest.approx(2 / 3))
    assert saturation_weights(2) == (0.8, 0.5)
    assert saturation_weights(100) == (0.8, pytest.approx(1 / 51))


def test_balance_weighs_long_prompts_like_shorter_ones_and_queues_by_half() -> None:
    def balance(prompt_tokens: float, running: float) -> float:
        one = request(prompt_tokens, mean_in_flight=5)
        return cost_terms(CONSTANTS, factors(running=running), one, cached_tokens=0).balance

    assert balance(4000, 8) == pytest.approx(4000 / 5000)
    assert balance(8192, 8) == balance(100_000, 8) == pytest.approx(BALANCE_TOKENS / 5000)
    assert balance(4000, 0) == 0
    assert balance_weight(CONSTANTS, 5, 0.0, 1.0) == balance_weight(CONSTANTS, 5, 1.0, 1.0) / 2


@pytest.mark.parametrize(("most_waiting", "expected"), [(2, [3, 5]), (3, [3 + 1, 5 + 3])])
def test_waiting_requests_are_balanced_if_more_than_two_wait_on_some_endpoint(
    most_waiting: int, expected: list[float]
) -> None:
    columns = candidates([factors(waiting=1, running=3), factors(waiting=most_waiting, running=5)])
    assert columns.in_flight == expected
    one = columns.request_factors(1000.0, CachedTokens(0.0, {}), NOW, CONSTANTS)
    balance = [cost_terms(CONSTANTS, each, one, cached_tokens=0).balance for each in columns.factors]
    assert balance == pytest.approx([1000 * one.balance_weight * each for each in expected])


def test_what_nobody_asks_for_again_may_be_evicted() -> None:
    assert eviction_price(CONSTANTS, 1.0, 1.0) == 1
    assert eviction_price(CONSTANTS, 1.0, 0.0) == eviction_price(CONSTANTS, 0.0, 1.0) == 0.05


def test_the_slot_guard_grows_up_to_a_quarter_of_the_slots() -> None:
    assert [slots_excess(running, 100) for running in (94, 95, 119, 120, 900)] == [0, 1, 25, 25, 25]


def test_guards_act_beyond_their_thresholds() -> None:
    endpoint = factors(running=100, max_num_seqs=100, kv_usage=0.95, stale_seconds=3)
    terms = cost_terms(CONSTANTS, endpoint, request(1000), cached_tokens=0, adapter=CONSTANTS.adapter)
    work = prefill_work(1000)
    assert terms.slots == pytest.approx(work / 5000 * 6)
    assert terms.kv == pytest.approx(20 * work / 5000 * 0.1)
    assert (terms.adapter, terms.stale) == (0.1, pytest.approx(0.15))
