"""The virtual queue: untracked requests are counted without being listed."""

from __future__ import annotations

from math import nextafter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from warmroute.routing.virtual_queue import MOST_ASSIGNED, TRANSIT, VirtualQueue

RATE = 1000.0


def rebuilt(awaiting: int, *, at: float = 0.0, mean_work: float = 500.0) -> VirtualQueue:
    """A queue of ``awaiting`` requests of other clients."""
    queue = VirtualQueue()
    queue.correct_by_first_tokens(at, RATE, awaiting=awaiting, first_tokens=0.0, mean_work=mean_work)
    return queue


def test_a_counter_of_first_tokens_may_end() -> None:
    queue = rebuilt(3)
    queue.correct_by_first_tokens(0.1, RATE, awaiting=2, first_tokens=None, mean_work=500.0)
    assert len(queue) == 2


@example(awaiting=3, at=137.0, mean_work=583.0, waits=[2 * 583.0 / RATE], works=[])  # a quotient that is rounded down
@example(
    awaiting=9, at=0.0, mean_work=196.0, waits=[nextafter(7 * 196.0 / RATE, 0.0)], works=[]
)  # and one that is rounded up
@given(
    awaiting=st.integers(1, 200),
    at=st.floats(0, 1e6),
    mean_work=st.just(0.0) | st.floats(1e-3, 1e5),
    waits=st.lists(st.floats(0, 100), max_size=20),
    works=st.lists(st.floats(1, 1e5), max_size=3),
)
def test_untracked_requests_leave_as_if_each_had_a_finish_time(
    awaiting: int, at: float, mean_work: float, waits: list[float], works: list[float]
) -> None:
    queue = rebuilt(awaiting, at=at, mean_work=mean_work)
    finish_times = [at + (k + 1) * mean_work / RATE for k in range(awaiting)]
    for work in works:
        queue.assign(work, RATE, at)
        finish_times.append(max(finish_times[-1], at) + work / RATE)
    now = at
    for wait in waits:
        now += wait
        queue.expire(now)
        left = [time for time in finish_times if time > now]
        assert len(queue) == len(left)
        if left:
            assert queue.estimate(RATE, 0, 0, 0.0) == (len(left), finish_times[-1] * RATE, RATE, left[0])


@pytest.mark.parametrize("awaiting", [10**6, 10**12])
def test_any_number_of_untracked_requests_is_counted_at_once(awaiting: int) -> None:
    queue = rebuilt(awaiting)
    queue.assign(100.0, RATE, 0.0)
    assert len(queue) == awaiting + 1
    queue.expire(10.0)
    assert len(queue) == awaiting + 1 - 20
    assert queue.estimate(RATE, 0, 0, 0.0)[3] == 10.5


def test_requests_beyond_those_that_are_remembered_are_forgotten_by_the_next_scrape() -> None:
    queue = VirtualQueue()
    for _ in range(2 * MOST_ASSIGNED):
        queue.assign(1000.0, RATE, 0.0)
    assert len(queue) == 2 * MOST_ASSIGNED
    queue.correct_by_gauges(20.0, RATE, running=2 * MOST_ASSIGNED, waiting=0, sent_since=0)
    assert len(queue) == MOST_ASSIGNED


def test_gauges_that_show_fewer_requests_leave_the_latest_with_new_finish_times() -> None:
    queue = VirtualQueue()
    for _ in range(3):
        queue.assign(10_000.0, RATE, 0.0)
    queue.assign(10_000.0, RATE, 9.5)
    queue.correct_by_gauges(9.0, RATE, running=1, waiting=0, sent_since=1)
    assert queue.estimate(RATE, 0, 2, 0.0) == (2, 29.0 * RATE, RATE, 19.0)


def test_each_first_token_since_the_last_scrape_takes_one_off_that_the_engine_may_not_show() -> None:
    queue = VirtualQueue()
    queue.correct_by_first_tokens(0.0, RATE, awaiting=0, first_tokens=100.0, mean_work=0.0)
    for _ in range(3):
        queue.assign(10_000.0, RATE, 1.0)
    queue.correct_by_first_tokens(2.0, RATE, awaiting=0, first_tokens=101.0, mean_work=0.0)
    assert len(queue) == 2


def test_what_was_sent_just_before_a_scrape_may_be_on_its_way() -> None:
    fast = 1e6  # a step takes 8 ms
    for sent_before, left in ((0.9 * TRANSIT, 1), (1.2 * TRANSIT, 0)):
        queue = VirtualQueue()
        queue.assign(1e6, fast, 10.0 - sent_before)
        queue.correct_by_gauges(10.0, fast, running=0, waiting=0, sent_since=0)
        assert len(queue) == left
