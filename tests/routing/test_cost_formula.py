"""The fleet's columns say the same as the formula."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import routing_constants
from warmroute.pool.endpoint import Endpoint, EndpointSpec, EngineState
from warmroute.pool.work import prefill_work
from warmroute.routing.cost import (
    ALONE,
    BALANCE_TOKENS,
    balance_weight,
    cost_terms,
    crowd_of,
    eviction_price,
    holder_share,
    saturation_weights,
    slots_excess,
)
from warmroute.routing.load import FEW, Book, Fleet

NOW = 1000.0
CONSTANTS = routing_constants().load


def book(name: str = "a", **state: float) -> Book:
    """A book whose endpoint was just scraped."""
    endpoint = Endpoint(EndpointSpec("default", name, "10.0.0.1", 8000), engine="vllm", now=NOW)
    result = Book(endpoint, slot=0, now=NOW)
    if state:
        result.observe(
            EngineState(
                observed_at=NOW,
                running=int(state.get("running", 0)),
                waiting=int(state.get("waiting", 0)),
                kv_usage=state.get("kv", 0.0),
                max_num_seqs=int(state["seqs"]) if "seqs" in state else None,
            ),
            CONSTANTS,
        )
    return result


@given(
    running=st.integers(0, 300),
    waiting=st.integers(0, 50),
    kv=st.floats(0, 1),
    seqs=st.integers(1, 300),
    tau=st.floats(0.2, 5),
    tokens=st.floats(1, 1e6),
    share=st.floats(0, 1),
    queued=st.lists(st.floats(1, 1e5), max_size=5),
    least_waiting=st.just(0.0) | st.floats(0, 100),
    fill=st.floats(0, 1),
    hit_rate=st.floats(0, 1),
    least_crowd=st.floats(0, 50),
)
def test_columns_equal_the_formula(
    running: int,
    waiting: int,
    kv: float,
    seqs: int,
    tau: float,
    tokens: float,
    share: float,
    queued: list[float],
    least_waiting: float,
    fill: float,
    hit_rate: float,
    least_crowd: float,
) -> None:
    constants = CONSTANTS
    one = book(running=running, waiting=waiting, kv=kv, seqs=seqs)
    one.tau = tau
    one.fill, one.hit_rate = fill, hit_rate
    one.mean_work = 500.0
    fleet = Fleet([one], constants, NOW)
    for tokens in queued:
        one.assign(tokens, one.drain_rate(constants), NOW)
    fleet.update(0, NOW)
    cached = share * (tokens - 1)
    prompt = prefill_work(tokens)
    queue_weight, delay_weight = saturation_weights(least_waiting)
    column = fleet.costs(
        tokens,
        cached,
        {},
        queue_weight=queue_weight,
        delay_weight=delay_weight,
        balance_weight=fleet.balance_weight(delay_weight),
        least_crowd=least_crowd,
        now=NOW,
    )[0]
    formula = cost_terms(
        constants.cost,
        tokens=tokens,
        prompt=prompt,
        uncached=prompt - prefill_work(cached),
        pending=fleet.pending(0, NOW) / tau,
        waiting=fleet.waiting[0],
        running=fleet.running[0],
        mean_crowd=fleet.crowd[0],
        max_num_seqs=seqs,
        kv_usage=kv * (1 + len(queued) / max(running + waiting, FEW)),
        fill=fill,
        hit_rate=hit_rate,
        tau=tau,
        queue_weight=queue_weight,
        delay_weight=delay_weight,
        queues=fleet.waiting[0] > ALONE,
        share=holder_share(tokens, cached),
        least_crowd=least_crowd,
    )
    assert column == pytest.approx(formula.total, rel=1e-6, abs=1e-3)


def test_the_worked_example() -> None:
    """1,000 tokens, 600 cached, on an endpoint with 2,000 pending tokens, 2 waiting and 10 running requests."""
    terms = cost_terms(
        CONSTANTS.cost,
        tokens=1000,
        prompt=1000,
        uncached=400,
        pending=2000,
        waiting=2,
        running=10,
        mean_crowd=9.0,
        max_num_seqs=256,
        kv_usage=0.5,
        fill=0.5,
        hit_rate=0.4,
        queue_weight=0.5,
        delay_weight=0.5,
    )
    assert terms.queue == 1000
    assert terms.prefill == pytest.approx(400 * (1 + 0.05 + 0.95 * 0.5 * 0.4))
    assert terms.delay == pytest.approx(400 * (0.5 * 2 + 10 * 0.15 * 0.5))
    assert terms.decode == 200
    assert (terms.slots, terms.kv, terms.adapter, terms.stale) == (0, 0, 0, 0)
    assert terms.balance == pytest.approx(1000 * 0.75 * 10 / (3 + 9))
    assert terms.total == pytest.approx(1000 + 496 + 700 + 200 + 625)


def test_where_everybody_queues_waiting_counts_less() -> None:
    assert saturation_weights(0) == (1, 1)
    assert saturation_weights(1) == (0.8, pytest.approx(2 / 3))
    assert saturation_weights(2) == (0.8, 0.5)
    assert saturation_weights(100) == (0.8, pytest.approx(1 / 51))


def test_balance_weighs_long_prompts_like_shorter_ones_and_queues_by_half() -> None:
    def balance(tokens: float, running: float, delay_weight: float = 1.0) -> float:
        terms = cost_terms(
            CONSTANTS.cost,
            tokens=tokens,
            prompt=prefill_work(tokens),
            uncached=0,
            pending=0,
            waiting=0,
            running=running,
            mean_crowd=5,
            max_num_seqs=256,
            kv_usage=0,
            delay_weight=delay_weight,
        )
        return terms.balance

    assert balance(4000, 8) == 4000
    assert balance(8192, 8) == balance(100_000, 8) == BALANCE_TOKENS
    assert balance(4000, 0) == 0
    assert balance_weight(CONSTANTS.cost, 5, 0.0) == balance_weight(CONSTANTS.cost, 5, 1.0) / 2


def test_those_who_wait_are_a_crowd_where_queues_are() -> None:
    assert [crowd_of(waiting, 3, queues=False) for waiting in (0, 1, 2)] == [3, 3, 3]
    assert [crowd_of(waiting, 3, queues=True) for waiting in (0, 1, 2, 10)] == [3, 4, 5, 13]


def test_what_nobody_asks_for_again_may_be_evicted() -> None:
    constants = CONSTANTS.cost
    assert eviction_price(constants, 1.0, 1.0) == 1
    assert eviction_price(constants, 1.0, 0.0) == eviction_price(constants, 0.0, 1.0) == 0.05


def test_the_slot_guard_grows_up_to_a_quarter_of_the_slots() -> None:
    assert [slots_excess(running, 100) for running in (94, 95, 119, 120, 900)] == [0, 1, 25, 25, 25]


def test_guards_act_beyond_their_thresholds() -> None:
    terms = cost_terms(
        CONSTANTS.cost,
        tokens=1000,
        prompt=1000,
        uncached=0,
        pending=0,
        waiting=0,
        running=100,
        mean_crowd=100,
        max_num_seqs=100,
        kv_usage=0.95,
        adapter_missing=True,
        stale_for=3,
    )
    assert terms.slots == pytest.approx(1000 * 6)
    assert terms.kv == pytest.approx(20 * 1000 * 0.1)
    assert (terms.adapter, terms.stale) == (2000, 3000)
