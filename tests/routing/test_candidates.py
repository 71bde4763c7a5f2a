"""The columns of the candidates: what they price, and that they stay current."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import engine_state, idle_load
from tests.routing.loads import CONSTANTS, assign, make
from warmroute.routing.cached_tokens import CachedTokens
from warmroute.routing.candidate_table import REFRESH_INTERVAL, CandidateTable


def stale(table: CandidateTable) -> list[float]:
    """The staleness penalty of each endpoint."""
    return [factors.stale for factors in table.all.factors]


def test_more_than_its_share_of_the_requests_is_dear() -> None:
    (busy, _), (idle, _) = make(), make()
    busy.observe(engine_state(1.0, running=6), CONSTANTS)
    idle.observe(engine_state(1.0), CONSTANTS)
    idle.holder = 4
    table = CandidateTable([busy, idle], CONSTANTS, 1.0)
    request = table.all.request_factors(1000.0, 1.0)
    assert request.mean_requests == 3
    costs = table.all.costs(request, CachedTokens(0.0, {}), CONSTANTS.cost)
    assert 1000 * (costs[0] - costs[1]) == pytest.approx(1000 * 6 / 6)


def test_staleness_costs_more_with_age_and_is_bounded() -> None:
    load, table = make()
    load.observe(engine_state(0.0), CONSTANTS)
    seen = []
    for now in (0.0, 4.9, 6.0, 10.0, 1000.0, 2000.0):
        table.refresh(now)
        seen.append(table.all.factors[0].stale)
    assert seen[0] == seen[1] == 0
    assert 0 < seen[2] < seen[3] < seen[4] == seen[5]


def test_a_newcomer_is_known_no_better_than_the_others() -> None:
    loads = [idle_load("a", 0), idle_load("b", 1)]
    newcomer = idle_load("c", 2, 100.0)
    table = CandidateTable([*loads, newcomer], CONSTANTS, 100.0)
    assert stale(table) == [0, 0, 0], "nobody has ever told"
    for load in loads:
        load.observe(engine_state(10.0), CONSTANTS)  # and then no metrics could be had any more
    table = CandidateTable([*loads, newcomer], CONSTANTS, 100.0)
    assert table.all.factors[0].stale == table.all.factors[1].stale == table.all.factors[2].stale > 0
    loads[0].observe(engine_state(100.0), CONSTANTS)
    table = CandidateTable([*loads, newcomer], CONSTANTS, 100.0)
    assert table.all.factors[0].stale == table.all.factors[2].stale == 0 < table.all.factors[1].stale
    assert stale(CandidateTable([newcomer, *loads], CONSTANTS, 100.0))[0] == 0, "whoever comes first"
    table.refresh(111.0)
    assert table.all.factors[0].stale == table.all.factors[2].stale > 0
    newcomer.reset(111.0)
    loads[0].observe(engine_state(111.0), CONSTANTS)
    assert CandidateTable([*loads, newcomer], CONSTANTS, 111.0).all.factors[2].stale == 0, (
        "a new process has not had the time"
    )


def test_a_newcomer_is_known_better_once_the_others_are() -> None:
    loads = [idle_load("a", 0), idle_load("b", 1)]
    loads[0].observe(engine_state(0.0), CONSTANTS)
    table = CandidateTable(loads, CONSTANTS, 100.0)
    assert table.all.factors[1].stale > 0
    loads[0].observe(engine_state(100.0), CONSTANTS)
    table.update(loads[0], 100.0)
    loads[1].reset(100.0)
    table.update(loads[1], 100.0)
    assert stale(table) == [0, 0]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.floats(1, 1e5)) | st.tuples(st.none(), st.floats(REFRESH_INTERVAL, 40)),
        max_size=40,
    )
)
def test_a_refreshed_table_equals_a_new_one(events: list[tuple[int | None, float]]) -> None:
    """Of four endpoints, whichever queue has moved by the time of a decision."""
    loads = [make()[0] for _ in range(4)]
    for holder, load in enumerate(loads):
        load.holder = holder
    table = CandidateTable(loads, CONSTANTS, 0.0)
    now = 0.0
    for k, value in events:
        if k is None:
            now += value
        else:
            assign(loads[k], value, at=now)
            table.update(loads[k], now)
        table.refresh(now)
        fresh = CandidateTable(loads, CONSTANTS, now)
        assert (table.all.waiting, table.all.running, table.all.total) == (
            fresh.all.waiting,
            fresh.all.running,
            fresh.all.total,
        )
        for position in range(4):
            assert table.all.pending(position, now) == pytest.approx(fresh.all.pending(position, now), abs=1e-6)


def test_what_changes_within_the_interval_changes_in_one_pass() -> None:
    first, second = make()[0], make()[0]
    first.holder, second.holder = 0, 1
    assign(first, 1000)  # a second of work
    assign(second, 1000 * (1 + 0.2 * REFRESH_INTERVAL))
    table = CandidateTable([first, second], CONSTANTS, 0.0)
    seen = []
    for share in (-0.5, 0.1, 0.5, 1.0, 1.2):
        table.refresh(1.0 + share * REFRESH_INTERVAL)
        seen.append(list(table.all.waiting))
    assert seen == [[1, 1], [0, 1], [0, 1], [0, 1], [0, 0]]
    assign(first, 1000, at=1.1)
    table.update(first, 1.1)
    assert table.all.waiting == [1, 0], "a change by a decision or a scrape is not late"
    table.refresh(2.1 + 0.1 * REFRESH_INTERVAL)
    assert table.all.waiting == [0, 0], "nor is a change that comes long after the last pass"
