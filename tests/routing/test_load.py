"""The books: what a scrape corrects, and that nothing sticks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import routing_constants
from warmroute.pool.endpoint import Endpoint, EndpointSpec, EngineState
from warmroute.routing.load import (
    ASSUMED_DURATION,
    MOST_UNCONFIRMED,
    UNKNOWN_WORK,
    Book,
    Fleet,
    slowness,
)
from warmroute.routing.saturation import saturated

ROUTING = routing_constants(prefill_rate=1000.0)
CONSTANTS = ROUTING.load


def book_of(name: str, slot: int, now: float = 0.0) -> Book:
    return Book(Endpoint(EndpointSpec("default", name, "10.0.0.1", 8000), engine="vllm", now=now), slot, now)


def make(now: float = 0.0) -> tuple[Book, Fleet]:
    book = book_of("a", 3, now)
    return book, Fleet([book], CONSTANTS, now)


def scrape(
    at: float,
    *,
    running: int = 0,
    waiting: int = 0,
    kv: float = 0.0,
    rate: float | None = None,
    awaiting: int | None = None,
    first_tokens: float | None = None,
) -> EngineState:
    return EngineState(
        observed_at=at,
        running=running,
        waiting=waiting,
        kv_usage=kv,
        prefill_rate=rate,
        awaiting_first_token=awaiting,
        first_tokens_total=first_tokens,
    )


def assign(book: Book, *works: float, at: float = 0.0) -> None:
    """Requests of that much work go to the endpoint."""
    for work in works:
        book.assign(work, book.drain_rate(CONSTANTS), at)


def counting(*works: float, first_tokens: float = 0.0) -> tuple[Book, Fleet]:
    """An endpoint whose engine counts first tokens: idle at 0, and then given requests of that much work."""
    book, fleet = make()
    book.observe(scrape(0.0, awaiting=0, first_tokens=first_tokens), CONSTANTS)
    assign(book, *works)
    return book, fleet


def test_the_virtual_queue_drains_at_the_endpoints_speed() -> None:
    book, fleet = make()
    assign(book, 2000)
    assign(book, 1000)
    fleet.update(0, 0.0)
    assert (fleet.waiting[0], fleet.pending(0, 0.0)) == (2, 3000)
    fleet.refresh(1.0)
    assert fleet.pending(0, 1.0) == pytest.approx(2000)
    fleet.refresh(2.5)
    assert (fleet.waiting[0], fleet.pending(0, 2.5)) == (1, pytest.approx(500))
    fleet.refresh(3.0)
    assert (fleet.waiting[0], fleet.pending(0, 3.0)) == (0, 0)


def test_a_faster_endpoint_than_believed_is_corrected_down() -> None:
    book, fleet = make()
    assign(book, *[1000] * 10)
    book.observe(scrape(0.5, running=10), CONSTANTS)
    fleet.update(0, 0.5)
    assert fleet.waiting[0] == CONSTANTS.queue_slack
    assert fleet.pending(0, 0.5) == pytest.approx(9500 * CONSTANTS.queue_slack / 10)


def test_a_prompt_that_an_engine_without_counters_has_refused_is_forgotten() -> None:
    book, fleet = make()
    assign(book, 100_000.0)
    waiting = {}
    for tick in range(1, 60):
        at = tick / 2
        book.observe(scrape(at), CONSTANTS)
        fleet.update(0, at)
        waiting[at] = fleet.waiting[0]
    assert waiting[0.5] == 1, "the engine may not have seen it yet"
    assert waiting[10.0] == 0
    assert fleet.pending(0, 29.5) == 0


def test_a_prompt_that_a_busy_engine_without_counters_has_refused_is_forgotten_in_the_end() -> None:
    book, fleet = make()
    assign(book, 1_000_000.0)
    for tick in range(1, 80):
        book.observe(scrape(tick / 2, running=10), CONSTANTS)
        fleet.update(0, tick / 2)
        assert fleet.waiting[0] == (1 if tick / 2 < ASSUMED_DURATION else 0)


def test_no_more_is_queued_than_is_remembered() -> None:
    book, fleet = make()
    assign(book, *[1000.0] * (2 * MOST_UNCONFIRMED))
    book.observe(scrape(20.0, running=2 * MOST_UNCONFIRMED), CONSTANTS)
    fleet.update(0, 20.0)
    assert len(book.finish_times) == MOST_UNCONFIRMED


def test_the_queue_of_an_engine_without_counters_that_is_faster_than_believed_stays_short() -> None:
    book, fleet = make()
    book.observe(scrape(0.0, rate=20_000.0), CONSTANTS)
    for tick in range(1, 3000):
        at = tick / 100
        assign(book, 2000.0, at=at)  # ten times what it is believed to do
        if tick % 10 == 9:
            book.observe(scrape(at, running=3), CONSTANTS)
        fleet.update(0, at)
        assert fleet.waiting[0] <= CONSTANTS.queue_slack + 10
        assert len(book.finish_times) <= 3 + 46 + 10, (
            "what runs, what it may not have seen yet, and what was sent since"
        )
    book.observe(scrape(40.0), CONSTANTS)
    fleet.update(0, 40.0)
    assert (fleet.waiting[0], fleet.pending(0, 40.0)) == (0, 0)


@pytest.mark.parametrize("per_second", [10, 200])
def test_a_queue_that_nobody_corrects_is_bounded_and_ends_with_the_load(per_second: int) -> None:
    book, fleet = make()
    for tick in range(100 * per_second):
        at = tick / per_second
        assign(book, 1000.0, at=at)  # that many times what it is believed to do
        fleet.update(0, at)
    assert fleet.waiting[0] <= 2 * MOST_UNCONFIRMED
    assert fleet.waiting[0] <= ASSUMED_DURATION * per_second + 1
    fleet.refresh(100.0 + ASSUMED_DURATION)
    assert (fleet.waiting[0], fleet.total[0], fleet.pending(0, 130.0)) == (0, 0, 0)


def test_a_queue_that_nobody_corrects_drains_as_it_should_beside_what_is_forgotten() -> None:
    book, fleet = make()
    for second in range(70):
        assign(book, 900.0, at=float(second))
        fleet.update(0, second + 0.5)
        assert (fleet.waiting[0], fleet.pending(0, second + 0.5)) == (1, pytest.approx(400))


def test_what_was_reported_long_ago_counts_no_more() -> None:
    book, fleet = make()
    book.observe(scrape(0.0, running=50, waiting=9, kv=0.9), CONSTANTS)
    fleet.update(0, 0.0)
    assert saturated(fleet, ROUTING.saturation)
    fleet.refresh(ASSUMED_DURATION + 1.0)
    assert (fleet.waiting[0], fleet.running[0]) == (0, 0)
    assert not saturated(fleet, ROUTING.saturation)


def test_work_of_others_is_seen() -> None:
    book, fleet = make()
    assign(book, 1000)
    mean = book.mean_work
    book.observe(scrape(5.0, running=1, waiting=4), CONSTANTS)
    fleet.update(0, 5.0)
    assert fleet.waiting[0] == 4
    assert fleet.pending(0, 5.0) == pytest.approx(4 * mean)


def test_a_slower_endpoint_that_counts_first_tokens_keeps_the_latest_in_its_queue() -> None:
    book, fleet = counting(1000.0, 2000.0, 3000.0, first_tokens=50)
    book.observe(scrape(20.0, running=3, awaiting=2, first_tokens=51), CONSTANTS)
    fleet.update(0, 20.0)
    assert fleet.waiting[0] == 2
    assert fleet.pending(0, 20.0) == pytest.approx(0.25 * 2000 + 3000)  # the second is under way, who knows how far
    book.observe(scrape(21.0, running=3, awaiting=0, first_tokens=53), CONSTANTS)
    fleet.update(0, 21.0)
    assert (fleet.waiting[0], fleet.pending(0, 21.0)) == (0, 0)


def test_a_faster_endpoint_that_counts_first_tokens_loses_what_is_done() -> None:
    book, fleet = counting(1000.0, 2000.0, 3000.0)
    book.observe(scrape(0.5, running=3, awaiting=1, first_tokens=2), CONSTANTS)
    fleet.update(0, 0.5)
    assert fleet.waiting[0] == 1
    assert fleet.pending(0, 0.5) == pytest.approx(3000)


def test_what_the_engine_has_not_seen_yet_waits_too() -> None:
    book, fleet = counting()
    assign(book, 1000.0, at=0.9)
    book.observe(scrape(1.0, awaiting=0, first_tokens=0), CONSTANTS)  # on its way, or come during a step
    assign(book, 500.0, at=1.1)
    fleet.update(0, 1.1)
    assert (fleet.waiting[0], fleet.total[0]) == (2, 2)
    book.observe(scrape(20.0, awaiting=0, first_tokens=0), CONSTANTS)  # they never came to the engine
    fleet.update(0, 20.0)
    assert fleet.waiting[0] == 0


def test_the_first_page_of_an_engine_has_not_seen_the_latest_either() -> None:
    book, fleet = make()
    assign(book, *[1000.0] * 5, at=0.97)
    book.observe(scrape(1.0, awaiting=0, first_tokens=0), CONSTANTS)
    fleet.update(0, 1.0)
    assert (fleet.waiting[0], fleet.total[0]) == (5, 5)


def test_waiting_requests_of_others_are_counted_first() -> None:
    book, fleet = make()
    book.mean_work = 700.0
    assign(book, 1000.0)
    mean = book.mean_work
    book.observe(scrape(0.1, running=1, waiting=2, awaiting=3, first_tokens=9), CONSTANTS)
    fleet.update(0, 0.1)
    assert fleet.waiting[0] == 3
    assert fleet.pending(0, 0.1) == pytest.approx(2 * mean + 1000)


def test_an_engine_that_stops_counting_first_tokens_is_bounded_by_its_gauges() -> None:
    book, fleet = counting(*[1000.0] * 10)
    book.observe(scrape(0.5, running=10), CONSTANTS)
    fleet.update(0, 0.5)
    assert fleet.waiting[0] == CONSTANTS.queue_slack


def test_a_counter_of_first_tokens_alone_does_not_lift_the_bounds() -> None:
    """Without the requests that finished it does not tell how many wait."""
    book, fleet = make()
    assign(book, *[1000] * 10)
    book.observe(scrape(0.5, running=10, first_tokens=7), CONSTANTS)
    fleet.update(0, 0.5)
    assert fleet.waiting[0] == CONSTANTS.queue_slack


def test_the_memory_of_a_book_is_bounded() -> None:
    book, _ = make()
    for _ in range(2 * MOST_UNCONFIRMED):
        book.assign(1.0, 1000.0, 0.0)
    assert len(book.unconfirmed) == MOST_UNCONFIRMED


def test_requests_sent_after_the_page_was_asked_for_are_kept() -> None:
    book, fleet = make()
    assign(book, 10, at=1.0)
    assign(book, 10, at=2.0)
    book.observe(scrape(1.5, running=1), CONSTANTS)
    fleet.update(0, 2.0)
    assert fleet.total[0] == 2


def test_without_scrapes_requests_count_for_a_while_only() -> None:
    book, fleet = make()
    assign(book, *[10] * 5)
    fleet.update(0, 0.0)
    assert fleet.total[0] == 5
    fleet.refresh(ASSUMED_DURATION)
    assert fleet.total[0] == 0


def test_requests_leave_between_scrapes_as_they_did_before() -> None:
    book, fleet = make()
    for second in range(20):  # ten requests, of which two leave and two come each second
        book.observe(scrape(float(second), running=10), CONSTANTS)
        for _ in range(2):
            book.assign(1.0, 1000.0, second + 0.5)
    assert book.leaving_rate() == pytest.approx(0.2, rel=0.05)
    book.observe(scrape(20.0, running=10), CONSTANTS)
    fleet.update(0, 20.0)
    assert fleet.total[0] == 10
    fleet.refresh(21.0)
    assert fleet.total[0] == pytest.approx(10 * exp(-0.2), rel=0.03)
    fleet.refresh(24.0)
    assert fleet.total[0] == pytest.approx(10 * exp(-0.8), rel=0.1)


def test_observed_responses_are_not_guessed_away() -> None:
    book, fleet = make()
    for second in range(20):
        book.observe(scrape(float(second), running=10), CONSTANTS)
        for _ in range(2):
            book.assign(1.0, 1000.0, second + 0.5)
    book.in_flight = 10
    fleet.update(0, 23.0)
    assert fleet.total[0] == 10


def test_the_kv_cache_fills_between_scrapes() -> None:
    book, fleet = make()
    book.observe(scrape(1.0, running=8, kv=0.8), CONSTANTS)
    fleet.update(0, 1.0)
    assert fleet.guards[0] == 0
    for _ in range(2):
        book.assign(100.0, 1000.0, 1.1)
    fleet.update(0, 1.1)
    assert fleet.guards[0] == pytest.approx(20 * (0.8 + 2 * 0.1 - 0.85))


def leaving(each_second: int, *, kv: float, running: int = 100) -> tuple[Book, Fleet]:
    """An endpoint of whose requests so many leave each second in all, as two scrapes have shown."""
    book, fleet = make()
    book.observe(scrape(0.0, running=running, kv=kv), CONSTANTS)
    assign(book, *[1.0] * each_second, at=0.1)
    book.observe(scrape(1.0, running=running, kv=kv), CONSTANTS)
    fleet.update(0, 1.0)
    return book, fleet


def test_who_waits_for_room_in_a_full_cache_waits_until_others_leave() -> None:
    _, fleet = leaving(10, kv=0.9)
    assert fleet.pending(0, 1.0) < 1
    book, fleet = leaving(10, kv=0.96)
    assert fleet.pending(0, 1.0) == pytest.approx(1000 / 10, rel=0.1), "one must leave, at ten a second"
    book.observe(scrape(1.1, running=100, waiting=9, kv=0.96), CONSTANTS)
    fleet.update(0, 1.1)
    assert fleet.pending(0, 1.1) == pytest.approx(1000 * 10 / 10, rel=0.3)
    assert fleet.pending(0, 1.5) == fleet.pending(0, 1.1), "it does not drain by itself"


def test_who_waits_for_prefill_in_a_full_cache_waits_for_that() -> None:
    book, fleet = leaving(10, kv=0.96)
    assign(book, 50_000, at=1.0)
    fleet.update(0, 1.0)
    assert fleet.pending(0, 1.0) == pytest.approx(50_000, rel=0.01)
    assert fleet.pending(0, 2.0) == pytest.approx(49_000, rel=0.01)


def test_whose_prefill_is_nearly_done_in_a_full_cache_waits_for_room() -> None:
    book, fleet = leaving(1, kv=1.0)
    assign(book, 300, at=1.0)
    fleet.update(0, 1.0)
    fleet.refresh(1.2)
    assert fleet.pending(0, 1.2) == pytest.approx(100, rel=0.01)
    fleet.refresh(1.29)  # less than a hundredth of the wait for room is left of it, before anything else happens
    assert fleet.pending(0, 1.29) == pytest.approx(2000, rel=0.1), "two must leave, at one a second"


def test_who_waits_for_a_slot_waits_until_others_leave() -> None:
    _, fleet = leaving(10, kv=0.1, running=CONSTANTS.max_num_seqs)
    assert fleet.pending(0, 1.0) > 50


def test_slots_that_were_seen_in_use_are_there() -> None:
    book, fleet = make()
    book.observe(scrape(1.0, running=256), CONSTANTS)
    fleet.update(0, 1.0)
    assert fleet.guards[0] == pytest.approx(257 - 0.95 * 256)
    book.observe(scrape(2.0, running=300), CONSTANTS)
    fleet.update(0, 2.0)
    assert fleet.guards[0] == 0
    book.observe(scrape(3.0, running=600), CONSTANTS)
    book.max_num_seqs = 512
    fleet.update(0, 3.0)
    assert fleet.guards[0] == pytest.approx(601 - 0.95 * 512)  # what the page tells needs no guess


def test_more_than_its_share_of_the_requests_is_dear() -> None:
    (busy, _), (idle, _) = make(), make()
    busy.observe(scrape(1.0, running=6), CONSTANTS)
    idle.observe(scrape(1.0), CONSTANTS)
    idle.slot = 4
    fleet = Fleet([busy, idle], CONSTANTS, 1.0)
    weight = fleet.balance_weight(1.0)
    assert weight == 1 / (3 + 3)

    def difference(cached: float) -> float:
        costs = fleet.costs(
            1000.0, cached, {}, queue_weight=1, delay_weight=1, balance_weight=weight, least_crowd=0, now=1.0
        )
        return costs[0] - costs[1]

    assert difference(0) == pytest.approx(1000 * 6 / 6 + 6 * 20)
    assert difference(1000) == pytest.approx(1000 * 6 / 6 / 4 + 6 * 20)  # both hold it: no need to copy


def test_the_least_crowd_is_that_of_somebody_who_holds_the_prompt() -> None:
    books = [make()[0] for _ in range(4)]
    for slot, (book, running) in enumerate(zip(books, (4, 3, 2, 1), strict=True)):
        book.slot = slot
        book.observe(scrape(1.0, running=running), CONSTANTS)
    fleet = Fleet(books, CONSTANTS, 1.0)
    assert fleet.least_crowd(0, {}) == 0  # nobody
    assert fleet.least_crowd(100, {}) == 1
    assert fleet.least_crowd(100, {3: 91}) == 1  # nearly as much
    assert fleet.least_crowd(100, {3: 50}) == 2
    assert fleet.least_crowd(100, {0: 1000, 1: 950}) == 3


def test_staleness_costs_more_with_age_and_is_bounded() -> None:
    book, fleet = make()
    book.observe(scrape(0.0), CONSTANTS)
    seen = []
    for now in (0.0, 4.9, 6.0, 10.0, 1000.0, 2000.0):
        fleet.refresh(now)
        seen.append(fleet.fixed[0])
    assert seen[0] == seen[1] == 0
    assert 0 < seen[2] < seen[3] < seen[4] == seen[5]


def test_a_newcomer_is_known_no_better_than_the_others() -> None:
    books = [book_of("a", 0), book_of("b", 1)]
    newcomer = book_of("c", 2, 100.0)
    fleet = Fleet([*books, newcomer], CONSTANTS, 100.0)
    assert fleet.fixed == [0, 0, 0], "nobody has ever told"
    for book in books:
        book.observe(scrape(10.0), CONSTANTS)  # and then no metrics could be had any more
    fleet = Fleet([*books, newcomer], CONSTANTS, 100.0)
    assert fleet.fixed[0] == fleet.fixed[1] == fleet.fixed[2] > 0
    books[0].observe(scrape(100.0), CONSTANTS)
    fleet = Fleet([*books, newcomer], CONSTANTS, 100.0)
    assert fleet.fixed[0] == fleet.fixed[2] == 0 < fleet.fixed[1]
    fleet.refresh(111.0)
    assert fleet.fixed[0] == fleet.fixed[2] > 0
    newcomer.reset(111.0)
    books[0].observe(scrape(111.0), CONSTANTS)
    assert Fleet([*books, newcomer], CONSTANTS, 111.0).fixed[2] == 0, "a new process has not had the time"


def test_a_newcomer_is_known_better_once_the_others_are() -> None:
    books = [book_of("a", 0), book_of("b", 1)]
    books[0].observe(scrape(0.0), CONSTANTS)
    fleet = Fleet(books, CONSTANTS, 100.0)
    assert fleet.fixed[1] > 0
    books[0].observe(scrape(100.0), CONSTANTS)
    fleet.update(0, 100.0)
    books[1].reset(100.0)
    fleet.update(1, 100.0)
    assert fleet.fixed == [0, 0]


def test_the_queue_of_others_is_seen_by_a_picker_that_has_just_started() -> None:
    book, fleet = make()
    state = scrape(1.0, running=10, waiting=40, awaiting=45, first_tokens=1000)
    book.observe(replace(state, prefix_queries_total=3e6, prefix_hits_total=1e6), CONSTANTS)
    fleet.update(0, 1.0)
    assert (fleet.waiting[0], fleet.running[0]) == (45, 5)
    assert fleet.pending(0, 1.0) == pytest.approx(45 * 2000)
    later = scrape(2.0, running=10, waiting=40, awaiting=45, first_tokens=1010)
    book.observe(replace(later, prefix_queries_total=3e6 + 12_000, prefix_hits_total=1e6 + 2_000), CONSTANTS)
    assert book.mean_work == 1000, "what they have to compute now counts, not what they had"
    assign(book, 8000, at=2.0)
    assert book.mean_work == 1000, "ours is in the engine's counters, too"


def test_what_others_have_to_compute_is_guessed_where_nothing_tells() -> None:
    book, fleet = make()
    book.observe(scrape(1.0, running=10, waiting=4, awaiting=4, first_tokens=10), CONSTANTS)
    fleet.update(0, 1.0)
    assert fleet.waiting[0] == 4
    assert fleet.pending(0, 1.0) == pytest.approx(4 * UNKNOWN_WORK)


def test_observed_ends_count_at_once() -> None:
    book, fleet = make()
    book.observe(scrape(0.0, running=4), CONSTANTS)
    book.in_flight = 2
    book.finished(0.5)
    fleet.update(0, 0.5)
    assert fleet.total[0] == 3


def test_requests_that_were_seen_to_end_do_not_wait() -> None:
    book, fleet = make()
    book.observe(scrape(0.0), CONSTANTS)
    for _ in range(4):
        assign(book, 1000, at=0.1)
        book.in_flight += 1
    fleet.update(0, 0.1)
    assert fleet.waiting[0] > 1
    for _ in range(3):
        book.finished(0.2)
    fleet.update(0, 0.2)
    assert (fleet.waiting[0], fleet.total[0]) == (1, 1)
    book.finished(0.3)
    fleet.update(0, 0.3)
    assert (fleet.waiting[0], fleet.total[0], fleet.pending(0, 0.3)) == (0, 0, 0)


def with_speeds(prefill: Sequence[float | None], decode: Sequence[float | None]) -> list[float]:
    """``tau`` of endpoints with these speeds."""
    books = [make()[0] for _ in prefill]
    for book, prefill_rate, decode_rate in zip(books, prefill, decode, strict=True):
        book.prefill_rate, book.decode_rate = prefill_rate, decode_rate
    slowness(books)
    return [book.tau for book in books]


def test_slowness_is_relative_to_the_median() -> None:
    untold = [None] * 4
    assert with_speeds([1000.0, 1000.0, 500.0, None], untold) == [1.0, 1.0, 2.0, 1.0]
    assert with_speeds([1000.0, 1000.0, 700.0, None], untold) == [1.0] * 4  # so much may come from the prompts
    assert with_speeds([1000.0, 1000.0, 100.0, 9000.0], untold) == [1.0, 1.0, 2.0, 0.5]


def test_an_endpoint_that_was_not_measured_is_as_fast_as_the_others() -> None:
    books = [make()[0] for _ in range(4)]
    slowness(books)
    assert books[0].drain_rate(CONSTANTS) == CONSTANTS.prefill_rate
    for book, rate in zip(books, (4000.0, 5000.0, 9000.0), strict=False):
        book.prefill_rate = rate
    slowness(books)
    assert [book.drain_rate(CONSTANTS) for book in books] == [4000, 5000, 9000, 5000]


def test_slow_prefill_counts_only_where_decoding_is_slow_too() -> None:
    prefill = [1000.0, 1000.0, 1000.0, 400.0, 3000.0]
    assert with_speeds(prefill, [20.0, 20.0, 20.0, 19.0, 21.0]) == [1.0] * 5  # equal GPUs, other prompts
    assert with_speeds(prefill, [20.0, 20.0, 20.0, 30.0, 12.0]) == [1.0] * 5
    assert with_speeds(prefill, [20.0, 20.0, 20.0, 12.5, 30.0]) == pytest.approx([1, 1, 1, 1.6, 2 / 3])
    assert with_speeds(prefill, [20.0, 20.0, 20.0, 5.0, None]) == [1.0, 1.0, 1.0, 2.0, 1.0]
    assert with_speeds([1000.0, 1000.0, 1000.0, 750.0], [20.0, 20.0, 20.0, 10.0]) == pytest.approx([1, 1, 1, 4 / 3])


@given(st.lists(st.tuples(st.sampled_from(["send", "serve", "wait", "scrape"]), st.floats(0.01, 5.0)), max_size=60))
def test_the_queue_is_what_a_first_come_first_served_engine_has(events: list[tuple[str, float]]) -> None:
    """Whatever its speed: after each scrape the book's queue is the engine's."""
    book, fleet = counting()
    now, served = 0.0, 0
    queue: list[float] = []
    for kind, value in events:
        if kind == "send":
            queue.append(1000 * value)
            assign(book, 1000 * value, at=now)
        elif kind == "serve" and queue:
            queue.pop(0)
            served += 1
        elif kind == "wait":
            now += value
        elif kind == "scrape":
            now += 0.01
            state = scrape(now, running=min(1, len(queue)), waiting=max(0, len(queue) - 1), first_tokens=served)
            book.observe(replace(state, awaiting_first_token=len(queue)), CONSTANTS)
            fleet.update(0, now)
            assert fleet.waiting[0] == len(queue)
            assert 0.24 * sum(queue[:1]) + sum(queue[1:]) <= fleet.pending(0, now) + 1e-6
            assert fleet.pending(0, now) <= sum(queue) + 1e-6


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
def test_the_books_stay_sane_and_empty_themselves(events: list[tuple[str, float]]) -> None:
    book, fleet = make()
    now = 0.0
    for kind, value in events:
        if kind == "send":
            assign(book, value, at=now)
            fleet.update(0, now)
        elif kind == "scrape":
            book.observe(scrape(now, running=int(value), waiting=int(value) // 2), CONSTANTS)
            fleet.update(0, now)
        else:
            now += value
            fleet.refresh(now)
        assert fleet.waiting[0] >= 0
        assert fleet.total[0] >= 0
        assert fleet.pending(0, now) >= -1e-6
    book.observe(scrape(now), CONSTANTS)
    now += 1e6
    fleet.refresh(now)
    assert (fleet.waiting[0], fleet.total[0]) == (0, 0)
    assert fleet.pending(0, now) == pytest.approx(0, abs=1e-6)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.floats(1, 1e5)) | st.tuples(st.none(), st.floats(0.001, 40)),
        max_size=40,
    )
)
def test_a_refreshed_fleet_is_as_one_made_anew(events: list[tuple[int | None, float]]) -> None:
    """Of four endpoints, whichever queue has moved by the time of a decision."""
    books = [make()[0] for _ in range(4)]
    for slot, book in enumerate(books):
        book.slot = slot
    fleet = Fleet(books, CONSTANTS, 0.0)
    now = 0.0
    for k, value in events:
        if k is None:
            now += value
        else:
            assign(books[k], value, at=now)
            fleet.update(k, now)
        fleet.refresh(now)
        anew = Fleet(books, CONSTANTS, now)
        assert (fleet.waiting, fleet.total, fleet.crowd) == (anew.waiting, anew.total, anew.crowd)
        assert fleet.least_waiting() == min(anew.waiting)
        for position in range(4):
            assert fleet.pending(position, now) == pytest.approx(anew.pending(position, now), abs=1e-6)


def test_a_full_engine_whose_requests_were_not_seen_to_leave_is_believed_to_do_its_prefill() -> None:
    book, fleet = make()
    book.observe(scrape(0.0, running=10, kv=1.0), CONSTANTS)
    assign(book, 1000)
    fleet.update(0, 0.0)
    assert fleet.pending(0, 0.5) == pytest.approx(500)
    fleet.refresh(1.5)
    assert fleet.pending(0, 1.5) == 0
