"""Requests sent since a scrape, and how many of them are left."""

from __future__ import annotations

from math import exp

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from warmroute.routing.departures import SentSinceScrape

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
