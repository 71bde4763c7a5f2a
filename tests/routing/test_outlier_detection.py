"""Passive health: which evidence ejects an endpoint, how it comes back, and that half of the pool always stays."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from warmroute.pool.endpoint import Endpoint, EndpointSpec, EngineState, Health
from warmroute.pool.pool import ONE_RESTART_SECONDS
from warmroute.routing.outlier_detection import (
    CRASH_LOOP_SECONDS,
    FIRST_BACKOFF,
    IDLE_STALLED_SECONDS,
    LONGEST_BACKOFF,
    STALLED_REQUESTS,
    STALLED_SECONDS,
    TRIAL_SECONDS,
    Evidence,
    OutlierDetection,
)

Change = tuple[str, Health, Evidence | None]


def endpoints(count: int) -> list[Endpoint]:
    specs = [EndpointSpec("default", f"pod-{k}", f"10.0.0.{k}", 8000) for k in range(count)]
    return [Endpoint(spec, engine="vllm", now=0.0) for spec in specs]


def page(
    at: float, *, work: float = 0, responses: float | None = 0, failed: float = 0, running: int = 0
) -> EngineState:
    return EngineState(
        observed_at=at,
        running=running,
        waiting=0,
        kv_usage=0.0,
        prompt_requests_total=work,
        responses_total=responses,
        failed_responses_total=None if responses is None else failed,
    )


def detection(pods: list[Endpoint]) -> tuple[OutlierDetection, list[Change]]:
    changes: list[Change] = []

    def change(endpoint: Endpoint, health: Health, evidence: Evidence | None, _: float) -> None:
        endpoint.health = health
        changes.append((endpoint.spec.name, health, evidence))

    outliers = OutlierDetection(change)
    for pod in pods:
        outliers.added(pod)
    return outliers, changes


def ejected(pods: list[Endpoint]) -> tuple[OutlierDetection, list[Change]]:
    """The first pod is ejected at time 0."""
    outliers, changes = detection(pods)
    for _ in range(5):
        outliers.responded(pods[0], 500, 0.0)
    assert pods[0].health is Health.EJECTED
    changes.clear()
    return outliers, changes


@pytest.mark.parametrize(("status", "out"), [(500, True), (502, True), (504, True), (503, False), (501, False)])
def test_five_failed_responses_in_a_row_eject(status: int, out: bool) -> None:
    pods = endpoints(4)
    outliers, changes = detection(pods)
    for _ in range(4):
        outliers.responded(pods[0], status, 1.0)
    assert not pods[0].ejected
    outliers.responded(pods[0], status, 1.0)
    assert pods[0].ejected is out
    assert changes == ([("pod-0", Health.EJECTED, Evidence.FAILURES)] if out else [])


@pytest.mark.parametrize("status", [400, 404, 429])
def test_rejections_are_the_clients_fault(status: int) -> None:
    pods = endpoints(4)
    outliers, changes = detection(pods)
    for _ in range(100):
        outliers.responded(pods[0], status, 1.0)
    assert not changes


def test_a_failure_now_and_then_does_not_eject() -> None:
    pods = endpoints(4)
    outliers, changes = detection(pods)
    for turn in range(200):
        outliers.responded(pods[0], 500 if turn % 4 == 0 else 200, 1.0)
    assert not changes


def test_the_pages_count_of_failed_responses_ejects() -> None:
    pods = endpoints(4)
    outliers, changes = detection(pods)
    outliers.observed(pods[0], page(0.0, responses=100, failed=2), 0.0)
    outliers.observed(pods[0], page(1.0, responses=110, failed=12), 1.0)
    assert changes == [("pod-0", Health.EJECTED, Evidence.FAILURES)]


def test_failures_that_the_gateway_and_the_page_show_count_twice() -> None:
    pods = endpoints(4)
    outliers, changes = detection(pods)
    outliers.observed(pods[0], page(0.0), 0.0)
    for count in (1, 2, 3):
        assert changes == []
        outliers.responded(pods[0], 500, count)
        outliers.observed(pods[0], page(count + 0.5, responses=count, failed=count), count + 0.5)
    assert changes == [("pod-0", Health.EJECTED, Evidence.FAILURES)]


def test_the_pages_count_of_rejections_does_not_eject() -> None:
    pods = endpoints(4)
    outliers, changes = detection(pods)
    for at in range(200):
        outliers.sent(pods[0], float(at))
        outliers.observed(pods[0], page(float(at) + 0.5, responses=at), float(at) + 0.5)
    assert not changes


@pytest.mark.parametrize(
    ("responses", "running", "out"),
    [(0, 0, True), (0, 3, True), (None, 3, True), (None, 0, False)],
    ids=["silent", "holds requests", "no count of responses, holds requests", "no count of responses, holds none"],
)
def test_counters_that_stand_still_eject(responses: float | None, running: int, out: bool) -> None:
    pods = endpoints(4)
    outliers, changes = detection(pods)
    outliers.observed(pods[0], page(0.0, responses=responses), 0.0)
    for _ in range(STALLED_REQUESTS):
        outliers.sent(pods[0], 1.0)
    seconds = STALLED_SECONDS if running else IDLE_STALLED_SECONDS
    just_before = 1.0 + seconds - 0.1
    outliers.observed(pods[0], page(just_before, responses=responses, running=running), just_before)
    assert not changes
    at = 1.0 + seconds
    outliers.observed(pods[0], page(at, responses=responses, running=running), at)
    assert changes == ([("pod-0", Health.EJECTED, Evidence.STALLED)] if out else [])


def test_a_stall_begins_with_the_first_of_the_requests() -> None:
    pods = endpoints(4)
    outliers, changes = detection(pods)
    outliers.observed(pods[0], page(0.0, running=1), 0.0)
    for second in range(1, int(STALLED_SECONDS) + 2):
        assert changes == []
        outliers.sent(pods[0], second)
        outliers.observed(pods[0], page(second, running=1), second)
    assert changes == [("pod-0", Health.EJECTED, Evidence.STALLED)]


def test_an_idle_engine_to_which_nothing_was_sent_is_not_stalled() -> None:
    pods = endpoints(4)
    outliers, changes = detection(pods)
    for at in range(1000):
        outliers.observed(pods[0], page(float(at)), float(at))
    assert not changes


def test_after_the_backoff_one_request_is_tried() -> None:
    pods = endpoints(4)
    outliers, changes = ejected(pods)
    outliers.advance(FIRST_BACKOFF - 0.1)
    assert pods[0].ejected
    outliers.advance(FIRST_BACKOFF)
    assert not pods[0].ejected
    outliers.sent(pods[0], FIRST_BACKOFF + 1)
    assert pods[0].ejected
    outliers.responded(pods[0], 200, FIRST_BACKOFF + 2)
    assert [health for _, health, _ in changes] == [Health.PROBING, Health.TRIAL, Health.HEALTHY]


def test_movement_on_the_page_ends_a_trial_well() -> None:
    pods = endpoints(4)
    outliers, _ = ejected(pods)
    outliers.observed(pods[0], page(1.0, work=5), 1.0)
    outliers.advance(FIRST_BACKOFF)
    outliers.sent(pods[0], FIRST_BACKOFF + 1)
    outliers.observed(pods[0], page(20.0, work=6), 20.0)
    assert pods[0].health is Health.HEALTHY


def test_each_failed_trial_doubles_the_backoff_up_to_a_bound() -> None:
    pods = endpoints(4)
    outliers, _ = ejected(pods)
    now, backoff = 0.0, FIRST_BACKOFF
    for _ in range(8):
        now += backoff
        outliers.advance(now)
        assert pods[0].health is Health.PROBING
        outliers.sent(pods[0], now)
        outliers.responded(pods[0], 500, now)
        assert pods[0].health is Health.EJECTED
        backoff = min(2 * backoff, LONGEST_BACKOFF)
        outliers.advance(now + backoff - 0.1)
        assert pods[0].health is Health.EJECTED


def test_a_trial_that_shows_nothing_has_failed() -> None:
    pods = endpoints(4)
    outliers, changes = ejected(pods)
    outliers.advance(FIRST_BACKOFF)
    outliers.sent(pods[0], FIRST_BACKOFF)
    outliers.advance(FIRST_BACKOFF + TRIAL_SECONDS - 0.1)
    assert pods[0].health is Health.TRIAL, "it has this time"
    outliers.advance(FIRST_BACKOFF + TRIAL_SECONDS)
    assert changes[-1] == ("pod-0", Health.EJECTED, Evidence.TRIAL_FAILED)


def test_one_late_failure_of_an_old_request_does_not_eject_again() -> None:
    pods = endpoints(4)
    outliers, _ = ejected(pods)
    outliers.advance(FIRST_BACKOFF)
    outliers.responded(pods[0], 500, FIRST_BACKOFF + 1)
    assert pods[0].health is Health.PROBING


def test_requests_that_become_known_after_they_were_served_are_no_stall() -> None:
    """Other pickers tell of theirs later: a scrape may have counted them already."""
    pods = endpoints(4)
    outliers, changes = detection(pods)
    outliers.observed(pods[0], page(0.5), 0.5)
    outliers.observed(pods[0], page(1.08, work=6, responses=6), 1.08)
    for k in range(6):
        outliers.sent(pods[0], 1.0 + k / 1000)
    outliers.observed(pods[0], page(1.1 + IDLE_STALLED_SECONDS, work=6, responses=6), 1.1 + IDLE_STALLED_SECONDS)
    assert changes == []


def test_an_engine_whose_responses_the_gateway_shows_is_not_stalled() -> None:
    pods = endpoints(4)
    outliers, changes = detection(pods)
    outliers.observed(pods[0], page(0.0), 0.0)
    for second in range(1, 100):
        outliers.sent(pods[0], second)
        outliers.responded(pods[0], 200, second + 0.5)
        outliers.observed(pods[0], page(second + 0.9), second + 0.9)
    assert changes == []


def test_requests_before_the_first_page_are_no_stall() -> None:
    """That page may count them already."""
    pods = endpoints(4)
    outliers, changes = detection(pods)
    for _ in range(STALLED_REQUESTS):
        outliers.sent(pods[0], 0.0)
    for at in (0.1, 1.0 + IDLE_STALLED_SECONDS):
        outliers.observed(pods[0], page(at, work=5, responses=5), at)
    assert changes == []


def test_a_request_from_before_the_probing_is_not_the_trial() -> None:
    pods = endpoints(4)
    outliers, changes = ejected(pods)
    outliers.advance(FIRST_BACKOFF + 1)
    outliers.sent(pods[0], FIRST_BACKOFF)
    assert changes[-1] == ("pod-0", Health.PROBING, None)
    outliers.sent(pods[0], FIRST_BACKOFF + 1)
    assert changes[-1] == ("pod-0", Health.TRIAL, None)


def test_requests_from_before_a_restart_are_no_stall_of_the_new_process() -> None:
    pods = endpoints(4)
    outliers, changes = detection(pods)
    outliers.observed(pods[0], page(0.0), 0.0)
    outliers.restarted(pods[0], 1.0)
    outliers.observed(pods[0], page(1.1), 1.1)
    for _ in range(STALLED_REQUESTS):
        outliers.sent(pods[0], 0.9)
    outliers.observed(pods[0], page(2.0 + IDLE_STALLED_SECONDS), 2.0 + IDLE_STALLED_SECONDS)
    assert changes == []


def test_a_restarted_engine_begins_healthy() -> None:
    pods = endpoints(4)
    outliers, changes = ejected(pods)
    outliers.restarted(pods[0], 1.0)
    assert not pods[0].ejected
    assert changes == [("pod-0", Health.HEALTHY, None)]


def test_an_engine_in_a_crash_loop_begins_ejected_for_longer_each_time() -> None:
    pods = endpoints(4)
    outliers, changes = detection(pods)
    now, out = 0.0, []
    for _ in range(5):
        now += 60.0
        outliers.restarted(pods[0], now)
        began = now
        while pods[0].ejected:
            now += 1.0
            outliers.advance(now)
        out.append(now - began)
    assert out == [0.0, FIRST_BACKOFF, 2 * FIRST_BACKOFF, 4 * FIRST_BACKOFF, 8 * FIRST_BACKOFF]
    assert ("pod-0", Health.EJECTED, Evidence.CRASH_LOOP) in changes


def test_two_signs_of_one_restart_are_no_crash_loop() -> None:
    pods = endpoints(4)
    outliers, changes = detection(pods)
    outliers.restarted(pods[0], 100.0)
    outliers.restarted(pods[0], 100.0 + ONE_RESTART_SECONDS - 1)
    assert changes == []


def test_an_engine_that_restarts_again_after_failures_begins_healthy() -> None:
    pods = endpoints(4)
    outliers, _ = detection(pods)
    outliers.restarted(pods[0], 1000.0)
    for _ in range(5):
        outliers.responded(pods[0], 500, 1001.0)
    assert pods[0].ejected
    outliers.restarted(pods[0], 1000.0 + ONE_RESTART_SECONDS - 1)
    assert not pods[0].ejected


def test_the_backoff_of_a_crash_loop_has_a_bound() -> None:
    pods = endpoints(4)
    outliers, _ = detection(pods)
    for turn in range(1, 13):
        outliers.restarted(pods[0], 60.0 * turn)
    outliers.advance(60.0 * 12 + LONGEST_BACKOFF - 1)
    assert pods[0].health is Health.EJECTED
    outliers.advance(60.0 * 12 + LONGEST_BACKOFF)
    assert pods[0].health is Health.PROBING


def test_endpoints_that_have_left_do_not_count_for_the_half_that_stays() -> None:
    pods = endpoints(4)
    outliers, _ = ejected(pods)
    for pod in pods[2:]:
        outliers.removed(pod)
    for _ in range(5):
        outliers.responded(pods[1], 500, 1.0)
    assert not pods[1].ejected


def test_two_signs_of_a_later_crash_count_once() -> None:
    pods = endpoints(4)
    outliers, changes = detection(pods)
    for at in (100.0, 200.0, 201.0):
        outliers.restarted(pods[0], at)
    assert changes == [("pod-0", Health.EJECTED, Evidence.CRASH_LOOP)]
    outliers.advance(200.0 + FIRST_BACKOFF)
    assert pods[0].health is Health.PROBING


def test_restarts_far_apart_are_no_crash_loop() -> None:
    pods = endpoints(4)
    outliers, changes = detection(pods)
    for turn in range(4):
        outliers.restarted(pods[0], turn * (CRASH_LOOP_SECONDS + 1))
    assert changes == []


@pytest.mark.parametrize(("count", "most"), [(1, 0), (2, 1), (3, 1), (5, 2)])
def test_half_of_the_pool_stays(count: int, most: int) -> None:
    pods = endpoints(count)
    outliers, _ = detection(pods)
    for pod in pods:
        for _ in range(20):
            outliers.responded(pod, 500, 1.0)
    assert sum(pod.ejected for pod in pods) == most


class AnyHistory(RuleBasedStateMachine):
    """Any order of events: no exception, half of the pool takes requests, and time alone brings every endpoint back."""

    pods: list[Endpoint]

    @initialize(count=st.integers(1, 6))
    def begin(self, count: int) -> None:
        self.now = 0.0
        self.pods = endpoints(count)
        self.outliers, _ = detection(self.pods)

    @rule(k=st.integers(0, 5), requests=st.integers(1, 8))
    def send(self, k: int, requests: int) -> None:
        pod = self.pods[k % len(self.pods)]
        for _ in range(requests):
            self.outliers.sent(pod, self.now)

    @rule(k=st.integers(0, 5), status=st.sampled_from([200, 400, 429, 500, 503]), responses=st.integers(1, 8))
    def respond(self, k: int, status: int, responses: int) -> None:
        for _ in range(responses):
            self.outliers.responded(self.pods[k % len(self.pods)], status, self.now)

    @rule(
        k=st.integers(0, 5),
        work=st.sampled_from([0.0, 1.0, 5.0, 1e15]),
        responses=st.none() | st.sampled_from([0.0, 3.0, 1e15]),
        failed=st.sampled_from([0.0, 3.0, 1e15]),
        running=st.integers(0, 2),
    )
    def scrape(self, k: int, work: float, responses: float | None, failed: float, running: int) -> None:
        state = page(self.now, work=work, responses=responses, failed=failed, running=running)
        self.outliers.observed(self.pods[k % len(self.pods)], state, self.now)

    @rule(k=st.integers(0, 5))
    def restart(self, k: int) -> None:
        self.outliers.restarted(self.pods[k % len(self.pods)], self.now)

    @rule(seconds=st.sampled_from([0.1, 5.0, 70.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.outliers.advance(self.now)

    @invariant()
    def half_takes_requests(self) -> None:
        if hasattr(self, "outliers"):
            out = sum(pod.ejected for pod in self.pods)
            assert 2 * out <= len(self.pods)

    def teardown(self) -> None:
        if hasattr(self, "outliers"):
            self.now += TRIAL_SECONDS
            self.outliers.advance(self.now)
            self.now += LONGEST_BACKOFF
            self.outliers.advance(self.now)
            assert all(not pod.ejected for pod in self.pods)


TestAnyHistory = AnyHistory.TestCase
