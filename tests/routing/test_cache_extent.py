"""How far an engine's cache is taken to reach beyond its page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import engine_state
from warmroute.routing.cache_extent import ASSUMED_TIER, MOST, CacheExtent
from warmroute.routing.confirmation import HitRatios


def test_an_engine_that_looks_up_in_a_second_tier_is_taken_to_have_one() -> None:
    extent = CacheExtent()
    extent.observe_tier(engine_state(tier_queries_total=0.0))
    assert extent.factor == 1.0
    extent.observe_tier(engine_state(tier_queries_total=4000.0))
    assert extent.factor == ASSUMED_TIER


def test_a_full_index_grows_while_the_engine_finds_what_was_forgotten() -> None:
    extent = CacheExtent()
    extent.observe_window(HitRatios(expected=0.5, measured=0.7, tier=0.2), full=False)
    assert extent.factor == 1.0
    extent.observe_window(HitRatios(expected=0.5, measured=0.7, tier=0.2), full=True)
    assert extent.factor > 1.0


def test_hits_that_exceed_the_expected_ones_as_always_show_no_second_tier() -> None:
    extent = CacheExtent()
    for _ in range(10):
        extent.observe_window(HitRatios(expected=0.5, measured=0.65), full=False)
    for _ in range(10):
        extent.observe_window(HitRatios(expected=0.5, measured=0.65), full=True)
    assert extent.factor == 1.0
    extent.observe_window(HitRatios(expected=0.5, measured=0.75), full=True)
    assert extent.factor > 1.0, "older engines do not count a second tier's hits"


def test_a_second_tier_that_finds_nothing_is_forgotten() -> None:
    extent = CacheExtent()
    extent.observe_tier(engine_state(tier_queries_total=4000.0))
    for _ in range(10):
        extent.observe_window(HitRatios(expected=0.7, measured=0.3), full=True)
        extent.observe_tier(engine_state(tier_queries_total=4000.0))  # each scrape says that there is one
    assert extent.factor == pytest.approx(1.0)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.booleans())))
def test_the_factor_is_bounded(windows: list[tuple[float, float, float, bool]]) -> None:
    extent = CacheExtent()
    for expected, measured, tier, full in windows:
        extent.observe_window(HitRatios(expected, measured, tier), full=full)
        assert 1.0 <= extent.factor <= MOST
