"""The counter whose label clients choose: bounded, and never wrong in sum."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from warmroute.observability import series
from warmroute.observability.instruments import ClientCounter
from warmroute.observability.series import OTHER


def counts(counter: ClientCounter) -> dict[str, float]:
    return {sample.labels["model"]: sample.value for sample in counter.collect().samples}


def test_made_up_names_give_up_their_places_once_they_are_idle() -> None:
    counter = ClientCounter(series.REQUESTS, limit=3, idle=10.0)
    for second, name in enumerate(("real", "made-up-1", "made-up-2")):
        counter.add(name, second)
    counter.add("new", 9.0)
    assert counts(counter) == {"real": 1, "made-up-1": 1, "made-up-2": 1, OTHER: 1}
    counter.add("real", 10.0)
    counter.add("new", 11.0)
    assert counts(counter) == {"real": 2, "made-up-2": 1, "new": 1, OTHER: 2}
    counter.add("newer", 11.5)
    assert counts(counter) == {"real": 2, "made-up-2": 1, "new": 1, OTHER: 3}


def test_of_the_idle_names_the_one_with_the_fewest_requests_goes() -> None:
    counter = ClientCounter(series.REQUESTS, limit=2, idle=10.0)
    for _ in range(5):
        counter.add("busy yesterday", 0.0)
    counter.add("made-up", 1.0)
    counter.add("new", 100.0)
    assert counts(counter) == {"busy yesterday": 5, "new": 1, OTHER: 1}


@given(
    st.lists(st.tuples(st.sampled_from([*"abcdefgh", "", OTHER, "x" * 200, "\ud800"]), st.floats(0, 8)), max_size=60)
)
def test_no_request_is_lost_and_the_names_are_bounded(requests: list[tuple[str, float]]) -> None:
    counter = ClientCounter(series.REQUESTS, limit=3, idle=10.0)
    now = 0.0
    used: dict[str, float] = {}
    for number, (name, wait) in enumerate(requests, 1):
        now += wait
        before = counts(counter)
        counter.add(name, now)
        used[name] = now
        after = counts(counter)
        assert sum(after.values()) == number
        assert len(after) <= 4
        for gone in before.keys() - after.keys():
            assert now - used[gone] >= 10.0
    assert not counts(counter).keys() & {"x" * 200, "\ud800"}
