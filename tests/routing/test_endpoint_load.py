"""The loads: what a scrape corrects, and that nothing sticks."""

from __future__ import annotations

from dataclasses import replace
from math import exp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import engine_state
from tests.routing.loads import CONSTANTS, ROUTING, assign, make
from warmroute.pool.endpoint import MOST_REQUESTS, EngineState
from warmroute.routing.candidate_table import CandidateTable
from warmroute.routing.departures import SHORTEST
from warmroute.routing.endpoint_load import LEAST_UPDATE, EndpointLoad
from warmroute.routing.mean_work import UNKNOWN_WORK
from warmroute.routing.prediction import Compared
from warmroute.routing.saturation import saturated
from warmroute.routing.sent_request import MOST_REQUESTS_OF_ONE
from warmroute.routing.virtual_queue import ASSUMED_DURATION, MOST_ASSIGNED, TRANSIT


def counting(*works: float, first_tokens: float = 0.0) -> tuple[EndpointLoad, CandidateTable]:
    """An endpoint whose engine counts first tokens: idle at 0, and then given requests of that much work."""
    load, table = make()
    load.observe(engine_state(0.0, awaiting_first_token=0, first_tokens_total=first_tokens), CONSTANTS)
    assign(load, *works)
    return load, table


def test_the_virtual_queue_drains_at_the_endpoints_speed() -> None:
    load, table = make()
    assign(load, 2000)
    assign(load, 1000)
    table.update(load, 0.0)
    assert (table.all.waiting[0], table.all.pending(0, 0.0)) == (2, 3000)
    table.refresh(1.0)
    assert table.all.pending(0, 1.0) == pytest.approx(2000)
    table.refresh(2.5)
    assert (table.all.waiting[0], table.all.pending(0, 2.5)) == (1, pytest.approx(500))
    table.refresh(3.0)
    assert (table.all.waiting[0], table.all.pending(0, 3.0)) == (0, 0)


def test_a_faster_endpoint_than_believed_is_corrected_down() -> None:
    load, table = make()
    assign(load, *[1000] * 10)
    load.observe(engine_state(0.5, running=10), CONSTANTS)
    table.update(load, 0.5)
    assert table.all.waiting[0] == CONSTANTS.queue_slack
    assert table.all.pending(0, 0.5) == pytest.approx(9500 * CONSTANTS.queue_slack / 10)


def test_a_prompt_that_an_engine_without_counters_has_refused_is_forgotten() -> None:
    load, table = make()
    assign(load, 100_000.0)
    waiting = {}
    for tick in range(1, 60):
        at = tick / 2
        load.observe(engine_state(at), CONSTANTS)
        table.update(load, at)
        waiting[at] = table.all.waiting[0]
    assert waiting[0.5] == 1, "the engine may not have seen it yet"
    assert waiting[10.0] == 0
    assert table.all.pending(0, 29.5) == 0


def test_a_prompt_that_a_busy_engine_without_counters_has_refused_is_forgotten_in_the_end() -> None:
    load, table = make()
    assign(load, 1_000_000.0)
    for tick in range(1, 80):
        load.observe(engine_state(tick / 2, running=10), CONSTANTS)
        table.update(load, tick / 2)
        assert table.all.waiting[0] == (1 if tick / 2 < ASSUMED_DURATION else 0)


def test_no_more_is_queued_than_is_remembered() -> None:
    load, table = make()
    assign(load, *[1000.0] * (2 * MOST_ASSIGNED))
    load.observe(engine_state(20.0, running=2 * MOST_ASSIGNED), CONSTANTS)
    table.update(load, 20.0)
    assert len(load.queue) == MOST_ASSIGNED


def test_the_queue_of_an_engine_without_counters_that_is_faster_than_believed_stays_short() -> None:
    load, table = make()
    load.observe(engine_state(0.0, prefill_rate=20_000.0), CONSTANTS)
    for tick in range(1, 3000):
        at = tick / 100
        assign(load, 2000.0, at=at)  # ten times what it is believed to do
        if tick % 10 == 9:
            load.observe(engine_state(at, running=3), CONSTANTS)
        table.update(load, at)
        assert table.all.waiting[0] <= CONSTANTS.queue_slack + 10
        assert len(load.queue) <= 3 + 46 + 10, "what runs, what it may not have seen yet, and what was sent since"
    load.observe(engine_state(40.0), CONSTANTS)
    table.update(load, 40.0)
    assert (table.all.waiting[0], table.all.pending(0, 40.0)) == (0, 0)


@pytest.mark.parametrize("per_second", [10, 200])
def test_a_queue_that_nobody_corrects_is_bounded_and_ends_with_the_load(per_second: int) -> None:
    load, table = make()
    for tick in range(100 * per_second):
        at = tick / per_second
        assign(load, 1000.0, at=at)  # that many times what it is believed to do
        table.update(load, at)
    assert table.all.waiting[0] <= 2 * MOST_ASSIGNED
    assert table.all.waiting[0] <= ASSUMED_DURATION * per_second + 1
    table.refresh(100.0 + ASSUMED_DURATION)
    assert (table.all.waiting[0], table.all.total[0], table.all.pending(0, 130.0)) == (0, 0, 0)


def test_a_queue_that_nobody_corrects_drains_as_it_should_beside_what_is_forgotten() -> None:
    load, table = make()
    for second in range(70):
        assign(load, 900.0, at=float(second))
        table.update(load, second + 0.5)
        assert (table.all.waiting[0], table.all.pending(0, second + 0.5)) == (1, pytest.approx(400))


def test_what_was_reported_long_ago_counts_no_more() -> None:
    load, table = make()
    load.observe(engine_state(0.0, running=50, waiting=9, kv_usage=0.9), CONSTANTS)
    table.update(load, 0.0)
    assert saturated(table.all, ROUTING.saturation)
    table.refresh(ASSUMED_DURATION + 1.0)
    assert (table.all.waiting[0], table.all.running[0]) == (0, 0)
    assert not saturated(table.all, ROUTING.saturation)


def test_work_of_others_is_seen() -> None:
    load, table = make()
    assign(load, 1000)
    mean = load.mean_work.tokens
    load.observe(engine_state(5.0, running=1, waiting=4), CONSTANTS)
    table.update(load, 5.0)
    assert table.all.waiting[0] == 4
    assert table.all.pending(0, 5.0) == pytest.approx(4 * mean)


def test_a_slower_endpoint_that_counts_first_tokens_keeps_the_latest_in_its_queue() -> None:
    load, table = counting(1000.0, 2000.0, 3000.0, first_tokens=50)
    load.observe(engine_state(20.0, running=3, awaiting_first_token=2, first_tokens_total=51), CONSTANTS)
    table.update(load, 20.0)
    assert table.all.waiting[0] == 2
    assert table.all.pending(0, 20.0) == pytest.approx(0.25 * 2000 + 3000)  # the second is under way, who knows how far
    load.observe(engine_state(21.0, running=3, awaiting_first_token=0, first_tokens_total=53), CONSTANTS)
    table.update(load, 21.0)
    assert (table.all.waiting[0], table.all.pending(0, 21.0)) == (0, 0)


def test_a_faster_endpoint_that_counts_first_tokens_loses_what_is_done() -> None:
    load, table = counting(1000.0, 2000.0, 3000.0)
    load.observe(engine_state(0.5, running=3, awaiting_first_token=1, first_tokens_total=2), CONSTANTS)
    table.update(load, 0.5)
    assert table.all.waiting[0] == 1
    assert table.all.pending(0, 0.5) == pytest.approx(3000)


def test_what_the_engine_has_not_seen_yet_waits_too() -> None:
    load, table = counting()
    assign(load, 1000.0, at=0.9)
    load.observe(
        engine_state(1.0, awaiting_first_token=0, first_tokens_total=0), CONSTANTS
    )  # on its way, or come during a step
    assign(load, 500.0, at=1.1)
    table.update(load, 1.1)
    assert (table.all.waiting[0], table.all.total[0]) == (2, 2)
    load.observe(
        engine_state(20.0, awaiting_first_token=0, first_tokens_total=0), CONSTANTS
    )  # they never came to the engine
    table.update(load, 20.0)
    assert table.all.waiting[0] == 0


def test_the_first_page_of_an_engine_has_not_seen_the_latest_either() -> None:
    load, table = make()
    assign(load, *[1000.0] * 5, at=0.97)
    load.observe(engine_state(1.0, awaiting_first_token=0, first_tokens_total=0), CONSTANTS)
    table.update(load, 1.0)
    assert (table.all.waiting[0], table.all.total[0]) == (5, 5)


def test_waiting_requests_of_others_are_counted_first() -> None:
    load, table = make()
    load.mean_work.tokens = 700.0
    assign(load, 1000.0)
    mean = load.mean_work.tokens
    load.observe(engine_state(0.1, running=1, waiting=2, awaiting_first_token=3, first_tokens_total=9), CONSTANTS)
    table.update(load, 0.1)
    assert table.all.waiting[0] == 3
    assert table.all.pending(0, 0.1) == pytest.approx(2 * mean + 1000)


def test_an_engine_that_stops_counting_first_tokens_is_bounded_by_its_gauges() -> None:
    load, table = counting(*[1000.0] * 10)
    load.observe(engine_state(0.5, running=10), CONSTANTS)
    table.update(load, 0.5)
    assert table.all.waiting[0] == CONSTANTS.queue_slack


def test_a_counter_of_first_tokens_alone_does_not_lift_the_bounds() -> None:
    """Without the requests that finished it does not tell how many wait."""
    load, table = make()
    assign(load, *[1000] * 10)
    load.observe(engine_state(0.5, running=10, first_tokens_total=7), CONSTANTS)
    table.update(load, 0.5)
    assert table.all.waiting[0] == CONSTANTS.queue_slack


def test_the_memory_of_a_load_is_bounded() -> None:
    load, _ = make()
    for _ in range(2 * MOST_ASSIGNED):
        load.assign(1.0, 1000.0, 0.0)
    assert len(load.queue.assigned_at) == MOST_ASSIGNED


def test_the_requests_of_a_load_that_no_page_shows_are_bounded() -> None:
    """Clients want a thousand answers to each prompt, or another picker says so."""
    load, table = make()
    for _ in range(200):
        load.assign(1e9, 1.0, 0.0, requests=MOST_REQUESTS_OF_ONE)
        load.response_ended(0.0, requests=MOST_REQUESTS_OF_ONE)
    assert max(len(load.queue), len(load.sent), len(load.ended)) == MOST_REQUESTS
    load.observe(engine_state(1.0), CONSTANTS)
    table.update(load, 1.0 + ASSUMED_DURATION)
    assert (table.all.waiting[0], table.all.total[0]) == (0, 0)


def test_requests_sent_after_the_page_was_asked_for_are_kept() -> None:
    load, table = make()
    assign(load, 10, at=1.0)
    assign(load, 10, at=2.0)
    load.observe(engine_state(1.5, running=1), CONSTANTS)
    table.update(load, 2.0)
    assert table.all.total[0] == 2


def test_without_scrapes_requests_count_for_a_while_only() -> None:
    load, table = make()
    assign(load, *[10] * 5)
    table.update(load, 0.0)
    assert table.all.total[0] == 5
    table.refresh(ASSUMED_DURATION)
    assert table.all.total[0] == 0


def test_requests_leave_between_scrapes_as_they_did_before() -> None:
    load, table = make()
    for second in range(20):  # ten requests, of which two leave and two come each second
        load.observe(engine_state(float(second), running=10), CONSTANTS)
        for _ in range(2):
            load.assign(1.0, 1000.0, second + 0.5)
    assert load.departures.per_second == pytest.approx(0.2, rel=0.05)
    load.observe(engine_state(20.0, running=10), CONSTANTS)
    table.update(load, 20.0)
    assert table.all.total[0] == 10
    table.refresh(21.0)
    assert table.all.total[0] == pytest.approx(10 * exp(-0.2), rel=0.03)
    table.refresh(24.0)
    assert table.all.total[0] == pytest.approx(10 * exp(-0.8), rel=0.1)


@pytest.mark.parametrize("seconds", [0.02, 0.2, 2.0])
def test_requests_run_as_long_as_they_last_however_seldom_scrapes_come(seconds: float) -> None:
    load, table = make()
    times = [number / 40 for number in range(4000)]
    for number, now in enumerate(times):
        if number % 40 == 0:
            running = sum(now - at < seconds for at in times[:number])
            load.observe(engine_state(now, running=running), CONSTANTS)
        load.assign(1.0, 1e6, now)
    table.update(load, now + 0.01)
    assert table.all.total[0] == pytest.approx(40 * seconds, rel=0.4, abs=0.5)


def test_a_page_that_shows_requests_leave_says_so_of_those_sent_since_too() -> None:
    load, table = make()
    load.observe(engine_state(0.0), CONSTANTS)
    assign(load, *[1] * 10, at=0.1)
    assign(load, *[1] * 10, at=1.1)
    assign(load, *[1] * 10, at=1.6)
    load.observe(engine_state(1.0, running=5), CONSTANTS)  # of ten, five have left
    table.update(load, 1.6)
    rate = load.departures.per_second
    assert rate == pytest.approx(5 / 2.5)
    assert table.all.total[0] == pytest.approx(5 * exp(-0.6 * rate) + 10 * exp(-0.5 * rate) + 10, rel=0.01)


def test_of_requests_that_no_scrape_shows_none_are_left_soon() -> None:
    load, table = make()
    for second in range(3):
        load.observe(engine_state(float(second)), CONSTANTS)
        for _ in range(10):
            load.assign(1.0, 1e6, second + 0.1)
    table.update(load, 2.11)
    assert table.all.total[0] == pytest.approx(10 * exp(-0.01 / SHORTEST), rel=0.1)
    table.refresh(2.2)
    assert table.all.total[0] < 0.01


def test_observed_responses_are_not_guessed_away() -> None:
    load, table = make()
    for second in range(20):
        load.observe(engine_state(float(second), running=10), CONSTANTS)
        for _ in range(2):
            load.assign(1.0, 1000.0, second + 0.5)
    load.open_responses = 10
    table.update(load, 23.0)
    assert table.all.total[0] == 10


def test_the_kv_cache_fills_between_scrapes() -> None:
    load, table = make()
    load.observe(engine_state(1.0, running=8, kv_usage=0.8), CONSTANTS)
    table.update(load, 1.0)
    assert table.all.factors[0].kv_usage == 0.8
    for _ in range(2):
        load.assign(100.0, 1000.0, 1.1)
    table.update(load, 1.1)
    assert table.all.factors[0].kv_usage == 1.0


def leaving(each_second: int, *, kv: float, running: int = 100) -> tuple[EndpointLoad, CandidateTable]:
    """An endpoint of whose requests so many leave each second in all, as two scrapes have shown."""
    load, table = make()
    load.observe(engine_state(0.0, running=running, kv_usage=kv), CONSTANTS)
    assign(load, *[1.0] * each_second, at=0.1)
    load.observe(engine_state(1.0, running=running, kv_usage=kv), CONSTANTS)
    table.update(load, 1.0)
    return load, table


def test_who_waits_for_room_in_a_full_cache_waits_until_others_leave() -> None:
    _, table = leaving(10, kv=0.9)
    assert table.all.pending(0, 1.0) < 1
    load, table = leaving(10, kv=0.96)
    assert table.all.pending(0, 1.0) == pytest.approx(1000 / 10, rel=0.1), "one must leave, at ten a second"
    load.observe(engine_state(1.1, running=100, waiting=9, kv_usage=0.96), CONSTANTS)
    table.update(load, 1.1)
    assert table.all.pending(0, 1.1) == pytest.approx(1000 * 10 / 10, rel=0.3)
    assert table.all.pending(0, 1.5) == table.all.pending(0, 1.1), "it does not drain by itself"


def test_who_waits_for_prefill_in_a_full_cache_waits_for_that() -> None:
    load, table = leaving(10, kv=0.96)
    assign(load, 50_000, at=1.0)
    table.update(load, 1.0)
    assert table.all.pending(0, 1.0) == pytest.approx(50_000, rel=0.01)
    assert table.all.pending(0, 2.0) == pytest.approx(49_000, rel=0.01)


def test_whose_prefill_is_nearly_done_in_a_full_cache_waits_for_room() -> None:
    load, table = leaving(1, kv=1.0)
    assign(load, 300, at=1.0)
    table.update(load, 1.0)
    table.refresh(1.2)
    assert table.all.pending(0, 1.2) == pytest.approx(100, rel=0.01)
    table.refresh(1.29)  # less than a hundredth of the wait for room is left of it, before anything else happens
    assert table.all.pending(0, 1.29) == pytest.approx(2000, rel=0.1), "two must leave, at one a second"
    assert (table.all.waiting[0], table.all.factors[0].queued) == (1.0, 0.0), "it waits for no prefill"


def test_who_waits_for_a_slot_waits_until_others_leave() -> None:
    _, table = leaving(10, kv=0.1, running=CONSTANTS.max_num_seqs)
    assert table.all.pending(0, 1.0) > 50


def test_the_longer_of_the_waits_for_a_slot_and_for_prefill_counts() -> None:
    slots = CONSTANTS.max_num_seqs
    load, table = leaving(10, kv=0.1, running=slots)
    assign(load, *[50] * 20, at=1.0)  # one second of prefill
    table.update(load, 1.0)
    assert table.all.pending(0, 1.0) == pytest.approx(1000 * 21 / 10, rel=0.1), "21 must leave, at ten a second"
    assert (table.all.waiting[0], table.all.factors[0].queued) == (20.0, 0.0), "nobody waits for a prefill"
    assign(load, 50_000, at=1.0)
    table.update(load, 1.0)
    assert table.all.pending(0, 1.0) == pytest.approx(51_000, rel=0.01)
    assert (table.all.waiting[0], table.all.factors[0].queued) == (21.0, 21.0)


def test_before_it_is_known_how_fast_requests_leave_those_that_wait_wait_for_a_prefill() -> None:
    load, table = make()
    load.observe(engine_state(1.0, running=CONSTANTS.max_num_seqs, waiting=9), CONSTANTS)
    table.update(load, 1.0)
    assert (table.all.waiting[0], table.all.factors[0].queued) == (9.0, 9.0)


@pytest.mark.parametrize("own", [6000.0, 12_000.0, 30_000.0])
@pytest.mark.parametrize("slowness", [1.0, 2.0])
@pytest.mark.parametrize("drain_factor", [0.5, 1.0])
def test_the_wait_for_a_slot_takes_as_long_however_fast_prompts_are_computed(
    own: float, slowness: float, drain_factor: float
) -> None:
    constants = replace(CONSTANTS, drain_factor=drain_factor)
    load, _ = leaving(10, kv=0.1, running=CONSTANTS.max_num_seqs)
    load.prefill_rate, load.pool_rate, load.slowness = own, 12_000.0, slowness
    table = CandidateTable([load], constants, 1.0)
    assert table.all.factors[0].wait(1.0) == pytest.approx(0.1, rel=0.1), "one must leave, at ten a second"


def test_a_slow_endpoint_takes_longer_for_each_token_than_the_pool() -> None:
    load, _ = make()
    load.prefill_rate, load.pool_rate, load.slowness = 3000.0, 12_000.0, 2.0
    table = CandidateTable([load], CONSTANTS, 0.0)
    assert table.all.factors[0].seconds_per_token == 2.0 / 12_000.0


def test_how_fast_requests_leave_is_read_from_the_engines_count() -> None:
    load, _ = make()
    for second in range(50):  # five of other senders leave each second, and as many come
        load.observe(engine_state(float(second), running=10, prompt_requests_total=5.0 * second), CONSTANTS)
    assert load.departures.per_second == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    ("running", "waiting", "sent", "gone", "usage"),
    [(8, 0, 2, 0, 1.0), (8, 8, 2, 0, 1.0), (8, 8, 0, 6, 0.8), (8, 8, 0, 12, 0.4), (2, 0, 2, 0, 1.2)],
)
def test_each_request_holds_as_much_of_the_cache_as_those_that_run(
    running: int, waiting: int, sent: int, gone: int, usage: float
) -> None:
    load, _ = make()
    load.observe(engine_state(0.0, running=running, waiting=waiting, kv_usage=0.8), CONSTANTS)
    assign(load, *[1.0] * sent, at=0.1)
    load.ended.extend([0.1] * gone)
    assert load.estimate(0.1, 0.1, CONSTANTS).kv_usage == pytest.approx(usage)


def test_those_that_wait_take_the_room_of_those_that_leave() -> None:
    """So a cache that is full stays full between two scrapes while requests wait."""
    load, table = make()
    for at in (0.0, 1.0):
        load.observe(engine_state(at, running=50, waiting=50, kv_usage=0.955), CONSTANTS)
        assign(load, *[1.0] * 5, at=at + 0.01)
    load.observe(engine_state(2.0, running=50, waiting=50, kv_usage=0.955), CONSTANTS)
    table.update(load, 2.0)
    for now in (2.0, 2.1, 2.5):
        table.refresh(now)
        factors = table.all.factors[0]
        assert (factors.queued, factors.kv_usage) == (0.0, 0.955)
        assert factors.wait(now) == pytest.approx(51 / 5, rel=0.1), "51 must leave, at five a second"


def test_those_that_ended_in_the_last_step_have_not_freed_their_slots_for_long() -> None:
    slots = CONSTANTS.max_num_seqs
    load, table = leaving(10, kv=0.1, running=slots - 3)
    load.observe(engine_state(1.1, running=slots - 3, waiting=9, kv_usage=0.1), CONSTANTS)
    table.update(load, 1.1)
    assert table.all.pending(0, 1.1) == pytest.approx(1000 * 7 / 10, rel=0.2)


def test_a_full_cache_counts_while_a_few_slots_are_left() -> None:
    slots = CONSTANTS.max_num_seqs
    load, table = leaving(10, kv=0.97, running=slots - 3)
    assert table.all.pending(0, 1.0) == pytest.approx(1000 / 10, rel=0.1), "one must leave"
    assign(load, 50, at=1.0)
    table.update(load, 1.0)
    assert table.all.pending(0, 1.0) == pytest.approx(50), (
        "of KV blocks the wait counts only where little prefill is ahead"
    )


def test_a_steady_queue_for_slots_takes_as_long_as_it_takes_to_leave() -> None:
    slots = CONSTANTS.max_num_seqs
    load, table = make()
    for second in range(60):
        load.observe(engine_state(float(second), running=slots, waiting=slots), CONSTANTS)
        assign(load, *[1] * 32, at=second + 0.5)
    load.observe(engine_state(60.0, running=slots, waiting=slots), CONSTANTS)
    table.update(load, 60.0)
    assert table.all.pending(0, 60.0) == pytest.approx(1000 * (slots + 1) / 32, rel=0.1), "32 leave each second"


def test_free_slots_are_taken_at_once() -> None:
    slots = CONSTANTS.max_num_seqs
    load, table = leaving(1, kv=0.1, running=slots - 4)
    assign(load, *[1] * 3, at=1.0)
    table.update(load, 1.5)
    assert table.all.waiting == [0.0]


def test_the_prefill_of_others_counts_while_slots_are_full() -> None:
    load, table = make()
    load.mean_work.assigned(5000.0)
    for at in (0.0, 1.0):
        load.observe(engine_state(at, running=CONSTANTS.max_num_seqs, waiting=20), CONSTANTS)
        assign(load, *[1] * 10, at=at + 0.5)
    load.observe(engine_state(2.0, running=CONSTANTS.max_num_seqs, waiting=20), CONSTANTS)
    table.update(load, 2.0)
    assert table.all.pending(0, 2.0) >= 20 * load.mean_work.tokens * 0.9


def test_a_request_more_makes_no_wait_shorter_where_slots_and_cache_are_full() -> None:
    slots = CONSTANTS.max_num_seqs
    load, table = leaving(10, kv=0.97, running=slots - 4)
    waits = []
    for _ in range(8):
        assign(load, 0.0, at=1.0)
        table.update(load, 1.0)
        waits.append(table.all.pending(0, 1.0))
    assert waits == sorted(waits)


def test_the_wait_for_a_slot_counts_beside_a_full_cache_too() -> None:
    load, table = leaving(10, kv=0.97, running=CONSTANTS.max_num_seqs)
    assign(load, *[50] * 20, at=1.0)  # one second of prefill
    table.update(load, 1.0)
    assert table.all.pending(0, 1.0) == pytest.approx(1000 * 21 / 10, rel=0.1)


def test_slots_that_fill_between_two_scrapes_are_full() -> None:
    slots = CONSTANTS.max_num_seqs
    load, table = leaving(1, kv=0.1, running=slots - 20)
    assign(load, *[1] * 30, at=1.0)
    table.update(load, 1.1)
    assert table.all.pending(0, 1.1) == pytest.approx(1000 * 11, rel=0.2)


def test_requests_beyond_the_slots_that_wait_for_their_prefill_wait_for_that() -> None:
    """The slots are not in use: the engine takes each once its prefill begins."""
    slots = CONSTANTS.max_num_seqs
    load, table = leaving(10, kv=0.1, running=slots // 2)
    assign(load, *[10.0] * slots, at=1.0)
    table.update(load, 1.0)
    assert table.all.pending(0, 1.0) == pytest.approx(10 * slots)
    assert table.all.factors[0].queued == table.all.waiting[0] == slots


def test_cached_prompts_that_wait_for_a_slot_wait_until_others_leave() -> None:
    """The engine counts first tokens, so the queue is rebuilt from them: prompts without work would be computed at once."""
    load, table = counting(*[1.0] * 30)
    slots = CONSTANTS.max_num_seqs
    for at in (1.0, 2.0):
        first_tokens = float(10 * at)
        state = engine_state(at, running=slots, waiting=30, awaiting_first_token=30, first_tokens_total=first_tokens)
        load.observe(state, CONSTANTS)
    assign(load, *[1.0] * 10, at=1.5)
    load.observe(replace(state, observed_at=3.0, first_tokens_total=30.0), CONSTANTS)
    table.update(load, 3.05)
    candidates = table.all
    assert candidates.waiting[0] == pytest.approx(30, abs=1)
    assert candidates.waiting[0] + candidates.running[0] == pytest.approx(slots + 30, abs=1)
    assert table.all.pending(0, 3.05) > 20 / load.departures.per_second / slots, "more than twenty must leave"


def test_slots_that_were_seen_in_use_are_there() -> None:
    load, _ = make()
    load.observe(engine_state(1.0, running=256), CONSTANTS)
    assert load.seqs_limit(CONSTANTS) == 256
    load.observe(engine_state(2.0, running=300), CONSTANTS)
    assert load.seqs_limit(CONSTANTS) == 600
    load.observe(engine_state(3.0, running=10), CONSTANTS)
    assert load.seqs_limit(CONSTANTS) == 600
    load.max_num_seqs = 512
    assert load.seqs_limit(CONSTANTS) == 512, "what the page says needs no guess"


def test_an_engine_that_restarts_may_have_another_limit() -> None:
    load, _ = make()
    load.observe(engine_state(1.0, running=300), CONSTANTS)
    load.observe(engine_state(1.5, max_num_seqs=512), CONSTANTS)
    load.reset(2.0)
    assert load.seqs_limit(CONSTANTS) == CONSTANTS.max_num_seqs


def test_an_engine_that_exports_its_limit_is_believed() -> None:
    load, _ = make()
    load.observe(engine_state(0.0, running=30, max_num_seqs=16), CONSTANTS)
    assert load.seqs_limit(CONSTANTS) == 16
    load.observe(engine_state(1.0), CONSTANTS)
    assert load.seqs_limit(CONSTANTS) == 16, "the next page left it out"


def test_a_new_process_counts_from_the_beginning() -> None:
    def page(at: float, first_tokens: float, seconds: float, queries: float) -> EngineState:
        return engine_state(
            at,
            first_tokens_total=first_tokens,
            first_token_seconds_total=seconds,
            prefix_queries_total=queries,
            prefix_hits_total=0.0,
        )

    load, _ = make()
    before = page(0.0, 90.0, 90.0, 9000.0)
    load.observe(before, CONSTANTS)
    assert list(load.confirmation.observe(before)) == []
    load.adapters.use("a", 0.0)
    load.prediction.expect(9.0)
    assert load.mean_work.tokens == 100
    assert load.confirmation.counts
    load.reset(1.0)
    assert not load.confirmation.counts
    assert "a" not in load.adapters
    load.observe(page(2.0, 0.0, 0.0, 0.0), CONSTANTS)
    load.prediction.expect(1.0)
    load.observe(page(3.0, 1.0, 2.0, 500.0), CONSTANTS)
    assert load.mean_work.tokens == pytest.approx(100 + 0.1 * 400)
    assert load.prediction.compared == (1.0, 2.0, 1)


def test_measured_speeds_stay_while_a_page_has_none() -> None:
    load, _ = make()
    load.observe(engine_state(0.0, prefill_rate=9000.0, decode_rate=50.0), CONSTANTS)
    load.observe(engine_state(1.0), CONSTANTS)
    assert (load.prefill_rate, load.decode_rate) == (9000.0, 50.0)
    load.reset(2.0)
    assert (load.prefill_rate, load.decode_rate) == (9000.0, 50.0)


def test_the_queue_of_others_is_seen_by_a_picker_that_has_just_started() -> None:
    load, table = make()
    state = engine_state(1.0, running=10, waiting=40, awaiting_first_token=45, first_tokens_total=1000)
    load.observe(replace(state, prefix_queries_total=3e6, prefix_hits_total=1e6), CONSTANTS)
    table.update(load, 1.0)
    assert (table.all.waiting[0], table.all.running[0]) == (45, 5)
    assert table.all.pending(0, 1.0) == pytest.approx(45 * 2000)
    later = engine_state(2.0, running=10, waiting=40, awaiting_first_token=45, first_tokens_total=1010)
    load.observe(replace(later, prefix_queries_total=3e6 + 12_000, prefix_hits_total=1e6 + 2_000), CONSTANTS)
    assert load.mean_work.tokens == 1000, "what they have to compute now counts, not what they had"
    assign(load, 8000, at=2.0)
    assert load.mean_work.tokens == 1000, "ours is in the engine's counters, too"


def test_what_others_have_to_compute_is_guessed_where_nothing_tells() -> None:
    load, table = make()
    load.observe(engine_state(1.0, running=10, waiting=4, awaiting_first_token=4, first_tokens_total=10), CONSTANTS)
    table.update(load, 1.0)
    assert table.all.waiting[0] == 4
    assert table.all.pending(0, 1.0) == pytest.approx(4 * UNKNOWN_WORK)


def test_observed_ends_count_at_once() -> None:
    load, table = make()
    load.observe(engine_state(0.0, running=4), CONSTANTS)
    load.open_responses = 2
    load.response_ended(0.5)
    table.update(load, 0.5)
    assert table.all.total[0] == 3


def test_ends_that_no_page_follows_hide_no_later_request() -> None:
    load, table = make()
    assign(load, 1000)
    load.response_ended(1.0)
    table.update(load, 0.5 + ASSUMED_DURATION)  # the request is over, its end counts still
    assign(load, 1000, at=1.0 + ASSUMED_DURATION)
    table.update(load, 1.0 + ASSUMED_DURATION)
    assert table.all.total[0] == 1


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.sampled_from(["send", "end", "scrape"]), st.floats(0, 4.0), st.integers(1, 8)), max_size=30),
    st.floats(0.01, 0.99),
)
def test_an_estimate_holds_as_long_as_it_says(events: list[tuple[str, float, int]], share: float) -> None:
    load, _ = make()
    rate, now = load.drain_rate(CONSTANTS), 0.0
    for kind, seconds, count in events:
        now += seconds
        match kind:
            case "send":
                load.assign(500.0 * count, rate, now, requests=count)
            case "end":
                load.response_ended(now)
            case "scrape":
                load.observe(engine_state(now, running=4 * count, kv_usage=count / 8), CONSTANTS)
    known_at = load.began_at if load.observed_at is None else load.observed_at
    before = load.estimate(now, now - known_at, CONSTANTS)
    assert min(before.waiting, before.queued, before.running, before.total) >= 0
    assert before.pending_at_zero - now * before.pending_rate > -1e-6
    # What no page has confirmed for long ends by itself.
    until = min(before.until, *(at + ASSUMED_DURATION for at in (known_at, *load.ended)))
    at = now + share * max(0.0, until - now)
    later = load.estimate(at, at - known_at, CONSTANTS)
    departed = 0.5 if load.departures.per_second else 0.0
    if at - now > LEAST_UPDATE or not departed:
        assert later.total == pytest.approx(before.total, abs=departed + 1e-6)
        assert later.waiting == pytest.approx(before.waiting, abs=departed + 1e-6)
    if before.pending_rate:
        pending = before.pending_at_zero - at * before.pending_rate
        assert later.pending_at_zero - at * later.pending_rate == pytest.approx(pending, rel=0.2, abs=1e-3)


def test_an_end_that_a_page_shows_does_not_count_again() -> None:
    load, table = make()
    load.observe(engine_state(0.0, running=4), CONSTANTS)
    load.response_ended(0.5)
    load.observe(engine_state(0.5, running=4), CONSTANTS)  # another client's request has come
    table.update(load, 0.5)
    assert table.all.total[0] == 4
    load.response_ended(0.6)
    table.update(load, 0.6)
    assert table.all.total[0] == 3


def test_the_end_of_a_batch_counts_for_all_its_requests_until_a_page_may_show_some() -> None:
    for sent_at, left in ((1.0, 4), (0.5, 6)):
        load, table = make()
        load.observe(engine_state(0.5, running=4), CONSTANTS)
        load.assign(300.0, load.drain_rate(CONSTANTS), 1.0, requests=3)
        load.response_ended(2.0, requests=3, sent_at=sent_at)
        table.update(load, 2.0)
        assert table.all.total[0] == left


def test_late_requests_that_a_page_may_not_show_yet_are_load() -> None:
    load, table = make()
    load.observe(engine_state(1.0), CONSTANTS)
    rate = load.drain_rate(CONSTANTS)
    load.assign_late(1000.0, rate, 1.0 - 2 * TRANSIT)
    load.assign_late(1000.0, rate, 1.0 - TRANSIT)
    load.assign_late(3000.0, rate, 1.0 - TRANSIT / 2, requests=2)
    load.assign_late(4000.0, rate, 1.01)
    table.update(load, 1.01)
    assert (table.all.total[0], table.all.waiting[0]) == (3, 3)


def test_late_requests_that_a_page_shows_say_how_much_work_a_request_is() -> None:
    """As those do that come in time; requests without a prompt say nothing."""
    loads = [make()[0] for _ in range(2)]
    for load in loads:
        load.observe(engine_state(1.0), CONSTANTS)
    for requests, has_prompt in ((4, True), (1, False), (1, True), (2, False)):
        for load, say, at in ((loads[0], loads[0].assign, 1.0), (loads[1], loads[1].assign_late, 0.5)):
            say(1000.0, load.drain_rate(CONSTANTS), at, requests=requests, has_prompt=has_prompt)
    assert loads[0].mean_work.tokens == loads[1].mean_work.tokens == pytest.approx(400)
    assert (len(loads[0].sent), len(loads[1].sent)) == (8, 0)


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(st.sampled_from(["send", "late", "look", "scrape"]), st.floats(0, 3.0), st.integers(1, 3)),
        max_size=40,
    )
)
def test_requests_are_counted_in_the_order_of_time_whenever_they_become_known(
    events: list[tuple[str, float, int]],
) -> None:
    load, _ = make()
    rate = load.drain_rate(CONSTANTS)
    now = 10.0
    for kind, seconds, requests in events:
        match kind:
            case "send":
                now += seconds
                load.assign(10.0, rate, now, requests=requests)
            case "late":
                load.assign_late(10.0, rate, now - seconds / 20, requests=requests)
            case "look":
                now += seconds / 20
                load.estimate(now, 0.0, CONSTANTS)
            case "scrape":
                load.observe(engine_state(now - seconds / 50, running=requests), CONSTANTS)
        assert list(load.sent.times) == sorted(load.sent.times)
        assert list(load.queue.assigned_at) == sorted(load.queue.assigned_at)


def test_ends_that_were_seen_count_where_fewer_were_expected() -> None:
    load, table = leaving(10, kv=0.1)
    for _ in range(20):
        load.response_ended(1.01)
    table.update(load, 1.01)
    assert table.all.total[0] == 80


@pytest.mark.parametrize(("each_second", "seconds"), [(10, 0.05), (500, LEAST_UPDATE)])
def test_an_estimate_is_made_again_once_half_a_request_has_left(each_second: int, seconds: float) -> None:
    load, _ = leaving(each_second, kv=0.1, running=200)
    assert load.estimate(1.0, 0.0, CONSTANTS).until - 1.0 == pytest.approx(seconds, rel=0.1)


def test_a_page_from_before_a_request_was_sent_forgets_no_prediction() -> None:
    load, _ = make()
    load.observe(engine_state(0.0, first_tokens_total=0.0, first_token_seconds_total=0.0), CONSTANTS)
    load.prediction.expect(1.0)
    assign(load, 1000.0, at=1.0)
    load.observe(engine_state(0.9, first_tokens_total=0.0, first_token_seconds_total=0.0), CONSTANTS)
    load.observe(engine_state(3.0, running=1, first_tokens_total=1.0, first_token_seconds_total=2.0), CONSTANTS)
    assert load.prediction.compared == Compared(1.0, 2.0, 1)


def test_requests_that_were_seen_to_end_do_not_wait() -> None:
    load, table = make()
    load.observe(engine_state(0.0), CONSTANTS)
    for _ in range(4):
        assign(load, 1000, at=0.1)
        load.open_responses += 1
    table.update(load, 0.1)
    assert table.all.waiting[0] > 1
    for _ in range(3):
        load.response_ended(0.2)
    table.update(load, 0.2)
    assert (table.all.waiting[0], table.all.total[0]) == (1, 1)
    assert table.all.pending(0, 0.2) == pytest.approx(3900 / 4)
    load.response_ended(0.3)
    table.update(load, 0.3)
    assert (table.all.waiting[0], table.all.total[0], table.all.pending(0, 0.3)) == (0, 0, 0)


@given(st.lists(st.tuples(st.sampled_from(["send", "serve", "wait", "scrape"]), st.floats(0.01, 5.0)), max_size=60))
def test_the_queue_is_what_a_first_come_first_served_engine_has(events: list[tuple[str, float]]) -> None:
    """Whatever its speed: after each scrape the load's queue is the engine's."""
    load, table = counting()
    now, served = 0.0, 0
    queue: list[float] = []
    for kind, value in events:
        if kind == "send":
            queue.append(1000 * value)
            assign(load, 1000 * value, at=now)
        elif kind == "serve" and queue:
            queue.pop(0)
            served += 1
        elif kind == "wait":
            now += value
        elif kind == "scrape":
            now += 0.01
            state = engine_state(
                now, running=min(1, len(queue)), waiting=max(0, len(queue) - 1), first_tokens_total=served
            )
            load.observe(replace(state, awaiting_first_token=len(queue)), CONSTANTS)
            table.update(load, now)
            assert table.all.waiting[0] == len(queue)
            assert 0.24 * sum(queue[:1]) + sum(queue[1:]) <= table.all.pending(0, now) + 1e-6
            assert table.all.pending(0, now) <= sum(queue) + 1e-6


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.floats(1, 1e5)),
            st.tuples(st.just("scrape"), st.integers(0, 20)),
            st.tuples(st.just("wait"), st.floats(0.001, 60)),
        ),
        max_size=40,
    )
)
def test_loads_stay_sane_and_empty_themselves(events: list[tuple[str, float]]) -> None:
    load, table = make()
    now = 0.0
    for kind, value in events:
        if kind == "send":
            assign(load, value, at=now)
            table.update(load, now)
        elif kind == "scrape":
            load.observe(engine_state(now, running=int(value), waiting=int(value) // 2), CONSTANTS)
            table.update(load, now)
        else:
            now += value
            table.refresh(now)
        assert table.all.waiting[0] >= 0
        assert table.all.total[0] >= 0
        assert table.all.pending(0, now) >= -1e-6
    load.observe(engine_state(now), CONSTANTS)
    now += 1e6
    table.refresh(now)
    assert (table.all.waiting[0], table.all.total[0]) == (0, 0)
    assert table.all.pending(0, now) == pytest.approx(0, abs=1e-6)


def test_a_full_engine_whose_requests_were_not_seen_to_leave_is_believed_to_do_its_prefill() -> None:
    load, table = make()
    load.observe(engine_state(0.0, running=10, kv_usage=1.0), CONSTANTS)
    assign(load, 1000)
    table.update(load, 0.0)
    assert table.all.pending(0, 0.5) == pytest.approx(500)
    table.refresh(1.5)
    assert table.all.pending(0, 1.5) == 0
