"""When an engine that does not answer is slow, and when it is gone."""

from __future__ import annotations

import pytest

from warmroute.engines.dialects import DIALECTS
from warmroute.engines.probe import Probe
from warmroute.engines.scrape_target import (
    BACKOFF,
    LONGEST_PATIENCE,
    LONGEST_SILENCE,
    TIMEOUTS_ALLOWED,
    ScrapeOutcome,
    ScrapeTarget,
)
from warmroute.pool.endpoint import Endpoint, EndpointSpec

TIMEOUT = ScrapeOutcome.TIMEOUT


@pytest.fixture
def target() -> ScrapeTarget:
    endpoint = Endpoint(EndpointSpec("default", "a", "10.0.0.1", 8000), engine="vllm", now=0.0)
    target = ScrapeTarget(endpoint, 0.0)
    begin(target)
    return target


def begin(target: ScrapeTarget) -> None:
    target.begin("http://10.0.0.1:8000", None, Probe(DIALECTS["vllm"], "/metrics"))


def test_an_engine_that_has_answered_is_gone_after_the_longest_silence(target: ScrapeTarget) -> None:
    target.answered_at = 100.0
    assert not target.unanswered(TIMEOUT, 100.0 + LONGEST_SILENCE)
    assert target.unanswered(TIMEOUT, 100.1 + LONGEST_SILENCE)


def test_an_engine_that_never_answered_is_gone_after_the_timeouts_allowed(target: ScrapeTarget) -> None:
    outcomes = [target.unanswered(TIMEOUT, 1.0) for _ in range(TIMEOUTS_ALLOWED + 1)]
    assert outcomes == [False] * TIMEOUTS_ALLOWED + [True]


def test_an_engine_that_refuses_connections_is_gone_at_once(target: ScrapeTarget) -> None:
    target.answered_at = 100.0
    assert target.unanswered(ScrapeOutcome.UNREACHABLE, 100.1)


def test_patience_doubles_with_each_timeout_up_to_its_bound(target: ScrapeTarget) -> None:
    seen = []
    for _ in range(6):
        target.unanswered(TIMEOUT, 0.0)
        seen.append(target.patience)
    assert seen == [2.0, 4.0, 8.0, LONGEST_PATIENCE, LONGEST_PATIENCE, LONGEST_PATIENCE]
    assert target.backoff == BACKOFF[-1]


def test_after_a_restart_nothing_is_held_against_the_engine(target: ScrapeTarget) -> None:
    target.answered_at = 0.0
    assert target.unanswered(TIMEOUT, 1.0 + LONGEST_SILENCE)
    assert target.hangs
    begin(target)
    assert not target.hangs
    assert target.patience == 1.0
    assert not target.unanswered(TIMEOUT, 2.0 + LONGEST_SILENCE), "it may not have answered yet"
