"""The mean work of a request, from an engine's counters."""

from __future__ import annotations

from typing import Any

import pytest

from tests.factories import engine_state
from warmroute.routing.mean_work import UNKNOWN_WORK, MeanWork


def learned(*pages: dict[str, Any]) -> float:
    work = MeanWork()
    for page in pages:
        work.observe(engine_state(**page))
    return work.tokens


def test_what_was_looked_up_and_not_found_is_the_work() -> None:
    assert learned({"first_tokens_total": 10.0, "prefix_queries_total": 9000.0, "prefix_hits_total": 4000.0}) == 500.0


def test_prompts_that_were_looked_up_scrapes_before_their_first_token_count() -> None:
    start = {"first_tokens_total": 0.0, "prefix_queries_total": 0.0, "prefix_hits_total": 0.0}
    looked_up = {"first_tokens_total": 0.0, "prefix_queries_total": 8000.0, "prefix_hits_total": 0.0}
    assert learned(start, looked_up, {**looked_up, "first_tokens_total": 1.0}) == 8000.0


@pytest.mark.parametrize(
    ("counters", "work"),
    [
        ({"computed_tokens_total": 40_000.0, "prompt_tokens_total": 30_000.0}, 4000.0),
        ({"prompt_tokens_total": 30_000.0}, 3000.0),
        ({}, UNKNOWN_WORK),
    ],
)
def test_an_engine_that_looks_nothing_up_computes_its_prompts(counters: dict[str, float], work: float) -> None:
    page = {"first_tokens_total": 10.0, "prefix_queries_total": 0.0, "prefix_hits_total": 0.0}
    assert learned(page | counters) == work
