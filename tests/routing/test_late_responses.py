"""Responses that end after their engine's process: they say nothing of the process, or the pod, that came after it."""

from __future__ import annotations

import pytest

from tests.routing.test_batches import EMBEDDINGS, request
from tests.routing.test_router import LONG, Fixture, prompt
from warmroute.pool.endpoint import EndpointSpec
from warmroute.request.inference import InferenceRequest
from warmroute.routing.decision import Decision


def pick(fixture: Fixture, parsed: InferenceRequest, now: float) -> Decision:
    decision = fixture.router.pick(parsed, now)
    assert isinstance(decision, Decision)
    fixture.router.opened(decision)
    return decision


def swept(fixture: Fixture, now: float) -> None:
    fixture.pool.expire(now)
    while fixture.router.upkeep(now):
        pass


def test_a_failure_of_a_removed_endpoint_takes_no_prompt_from_its_successor() -> None:
    fixture = Fixture(1)
    late = pick(fixture, prompt(LONG), 1.0)
    number = late.load.holder
    fixture.pool.replace([], 2.0)
    swept(fixture, 63.0)
    fixture.pool.replace([EndpointSpec("default", "new", "10.0.0.9", 8000)], 64.0)
    decision = pick(fixture, prompt(LONG, "and on"), 65.0)
    assert decision.load.holder == number, "the number of a closed holder is used again"
    fixture.router.responded(late, 504, 121.0)
    assert fixture.router.holders(decision.chain.hashes) == ["default/new"]


def test_a_failure_of_a_dead_process_takes_no_prompt_from_the_new_one() -> None:
    fixture = Fixture(1)
    late = pick(fixture, prompt(LONG), 1.0)
    fixture.pool.restarted(fixture.endpoint("0"), 2.0)
    decision = pick(fixture, prompt(LONG), 10.0)
    fixture.router.responded(late, 504, 61.0)
    assert fixture.router.holders(decision.chain.hashes) == ["default/0"]


def test_failures_of_a_dead_process_do_not_eject_the_new_one() -> None:
    fixture = Fixture(2)
    late = [pick(fixture, prompt(f"{k} {LONG}"), 1.0) for k in range(20)]
    fixture.pool.restarted(fixture.endpoint("0"), 2.0)
    for decision in late:
        if decision.endpoint is fixture.endpoint("0"):
            fixture.router.responded(decision, 504, 61.0)
    assert not fixture.endpoint("0").ejected


def test_failures_of_a_removed_endpoint_do_not_eject_the_next_one_of_its_name() -> None:
    fixture = Fixture(2)
    late = [pick(fixture, prompt(f"{k} {LONG}"), 1.0) for k in range(20)]
    specs = [endpoint.spec for endpoint in fixture.pool.endpoints.values()]
    fixture.pool.replace([], 2.0)
    swept(fixture, 63.0)
    fixture.pool.replace(specs, 64.0)
    for decision in late:
        fixture.router.responded(decision, 504, 65.0)
    assert not any(endpoint.ejected for endpoint in fixture.pool.endpoints.values())


@pytest.mark.parametrize("status", [None, 502])
def test_ends_of_a_dead_process_hide_no_request_of_the_new_one(status: int | None) -> None:
    fixture, never_restarted = Fixture(1), Fixture(1)
    late = [pick(fixture, prompt(f"{k} {LONG}"), 1.0) for k in range(20)]
    for one in (fixture, never_restarted):
        one.pool.restarted(one.endpoint("0"), 2.0)
    for decision in late:
        if status is not None:
            fixture.router.responded(decision, status, 2.5)
        fixture.router.finished(decision, 2.5)
    for one in (fixture, never_restarted):
        for k in range(8):
            pick(one, prompt(f"new {k} {LONG}"), 2.6)
    (load,), (expected,) = fixture.router.loads, never_restarted.router.loads
    assert fixture.router.load_of(load, 2.61) == never_restarted.router.load_of(expected, 2.61)
    assert load.open_responses == 8


def test_a_request_of_a_dead_process_that_another_endpoint_served_is_booked_there_alone() -> None:
    fixture = Fixture(2)
    late = pick(fixture, prompt(LONG), 1.0)
    dead = late.load
    (other,) = [load for load in fixture.router.loads if load is not dead]
    fixture.pool.restarted(dead.endpoint, 2.0)
    fixture.router.served(late, other.endpoint.target, 2.5)
    assert (dead.open_responses, other.open_responses) == (0, 1)
    assert not dead.ended
    fixture.router.finished(late, 3.0)
    assert (dead.open_responses, other.open_responses) == (0, 0)


BATCH = request(EMBEDDINGS, input=[f"text {k}" for k in range(64)])


def test_the_end_of_a_batch_is_the_end_of_all_its_prompts() -> None:
    fixture = Fixture(1)
    decision = pick(fixture, BATCH, 1.0)
    assert decision.requests == 64
    (load,) = fixture.router.loads
    assert sum(fixture.router.load_of(load, 1.0)[:2]) == 64
    fixture.router.finished(decision, 2.0)
    assert sum(fixture.router.load_of(load, 2.01)[:2]) == 0


def test_the_end_of_a_batch_ends_nobody_elses_request() -> None:
    """Most of the batch had ended when the page was made."""
    fixture = Fixture(1)
    decision = pick(fixture, BATCH, 1.0)
    fixture.scrape(2.0, running=21)
    fixture.router.finished(decision, 2.1)
    (load,) = fixture.router.loads
    assert sum(fixture.router.load_of(load, 2.11)[:2]) == pytest.approx(20, abs=1)
