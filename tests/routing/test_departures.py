"""Requests sent since a scrape, and how many of them are left."""

from __future__ import annotations

from math import exp

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from warmroute.routing.departures import DepartureRate, SentSinceScrape

RATES = st.sampled_from([0.0, 0.1, 1.0, 100.0]) | st.floats(0, 100)
STEPS = st.one_of(
    st.tuples(st.just("send"), st.floats(0, 1)),
    st.tuples(st.just("forget"), st.floats(0, 2)),
    st.tuples(st.just("rate"), RATES),
)


@example(1.0, [("send", 0.0), ("send", 1.0), ("forget", 0.5)], 0.25)
@given(RATES, st.lists(STEPS, max_size=40), st.floats(0, 2))
def test_each_is_left_with_the_probability_of_its_age(
    rate: float, steps: list[tuple[str, float]], after: float
) -> None:
    sent = SentSinceScrape()
    times: list[float] = []
    now = 0.0
    for kind, value in steps:
        if kind == "send":
            now += value
            times.append(now)
            sent.add(now, rate)
        elif kind == "forget":
            times = [at for at in times if at > now - value]
            sent.forget_until(now - value, rate)
        else:
            rate = value
            sent.count_again(rate)
    assert list(sent.times) == times
    expected = sum(exp(-rate * (now + after - at)) for at in times)
    assert sent.left(now + after, rate) == pytest.approx(expected, abs=1e-9)


def test_requests_that_are_sent_together_are_left_together() -> None:
    sent = SentSinceScrape()
    sent.add(1.0, 0.5, requests=3)
    assert list(sent.times) == [1.0] * 3
    assert sent.left(3.0, 0.5) == pytest.approx(3 * exp(-1))


def seen(rate: DepartureRate, seconds: float, *, interval: float, each: float, running: int = 8) -> float:
    """Scrapes of ``running`` requests, of which one leaves every ``each`` seconds, and another one comes."""
    left, now = 0, 0.0
    while now < seconds:
        now += interval
        leaving = int(now / each) - left
        left += leaving
        rate.observe(before=running, sent=leaving, after=running, seconds=interval)
    return rate.per_second * running


@pytest.mark.parametrize("interval", [0.05, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("each", [0.05, 1.0, 7.5])
def test_the_rate_is_that_of_the_last_departures_however_often_scrapes_come(interval: float, each: float) -> None:
    assert seen(DepartureRate(), 600.0, interval=interval, each=each) == pytest.approx(1 / each, rel=0.1)


def test_while_nobody_leaves_the_rate_falls_with_the_time_only() -> None:
    for interval in (0.05, 0.5):
        rate = DepartureRate()
        rate.observe(before=8, sent=1, after=8, seconds=1.0)
        assert seen(rate, 399.0, interval=interval, each=1e9) == pytest.approx(1 / 400, rel=0.02)


def test_an_idle_engine_keeps_its_rate() -> None:
    rate = DepartureRate()
    rate.observe(before=4, sent=1, after=4, seconds=1.0)
    for _ in range(10_000):
        rate.observe(before=0, sent=0, after=0, seconds=1.0)
    assert rate.per_second == pytest.approx(0.25)


def test_the_engines_own_count_knows_requests_of_others_and_not_those_whose_client_has_gone() -> None:
    """One of ten leaves each second: one of others, which are not known here, or one whose client has gone."""
    others, gone = DepartureRate(), DepartureRate()
    for second in range(1, 100):
        others.observe(before=10, sent=0, after=10, seconds=1.0, counted=float(second))
        gone.observe(before=10, sent=1, after=10, seconds=1.0, counted=0.0)
    assert [others.per_second, gone.per_second] == pytest.approx([0.1, 0.1], rel=0.02)


def test_a_page_without_the_count_begins_it_again() -> None:
    rate = DepartureRate()
    for counted in (0.0, None, 50.0):
        rate.observe(before=10, sent=0, after=10, seconds=1.0, counted=counted)
    assert rate.per_second == 0


@pytest.mark.parametrize(("before", "sent", "after"), [(10, 0, 0), (0, 10, 0), (0, 0, 10)])
def test_no_more_leave_than_were_there(before: int, sent: int, after: int) -> None:
    rate, bounded = DepartureRate(), DepartureRate()
    for each, counted in ((rate, 1e9), (bounded, 10.0)):
        each.observe(before=100, sent=0, after=100, seconds=1.0, counted=0.0)
        each.observe(before=before, sent=sent, after=after, seconds=1.0, counted=counted)
    assert rate.per_second == bounded.per_second > 0


def test_a_count_that_starts_again_or_jumps_does_not_count_for_long() -> None:
    rate = DepartureRate()
    for counted in (1e15, 5.0, 6.0, 1e15, *range(100)):
        rate.observe(before=10, sent=0, after=10, seconds=1.0, counted=float(counted))
    assert rate.per_second == pytest.approx(0.1, rel=0.1)
