"""Rates, ratios and percentiles from totals once a second."""

from __future__ import annotations

import pytest

from warmroute.observability.live.engine_history import POINTS, EngineHistory
from warmroute.observability.live.traffic import SECONDS_KEPT, Totals, Traffic

BOUNDS = (1e-4, 1e-3, 1e-2)


def traffic(*totals: Totals) -> Traffic:
    result = Traffic(BOUNDS)
    for each in totals:
        result.add(each)
    return result


def test_rates_are_of_their_windows() -> None:
    world = traffic(*[Totals(float(k), requests=5.0 * k, errors=0.5 * k) for k in range(100)])
    assert world.requests_per_second() == 5
    assert world.errors_per_second() == 0.5
    assert world.error_share() == pytest.approx(0.1)
    assert world.request_rates(5) == [5.0] * 19


def test_a_rate_falls_to_zero_ten_seconds_after_the_last_request() -> None:
    world = traffic(*[Totals(float(k), requests=5.0 * min(k, 50)) for k in range(56)])
    assert world.requests_per_second() == 2.5
    for k in range(56, 61):
        world.add(Totals(float(k), requests=250.0))
    assert world.requests_per_second() == 0
    assert world.seconds_without_requests() == 10


def test_before_the_second_sample_there_are_no_rates() -> None:
    world = traffic(Totals(7.0))
    assert world.requests_per_second() == world.error_share() == world.seconds_without_requests() == 0
    assert world.hit_ratios() is None
    assert world.pick_seconds(0.99) is None
    assert world.request_rates(5) == []


def test_hit_ratios_need_a_few_prompts_and_stay_within_bounds() -> None:
    few = Totals(60.0, prompts=4, prompt_tokens=8000.0, cached_tokens=4096.0)
    assert traffic(Totals(0.0), few).hit_ratios() is None
    many = Totals(60.0, prompts=100, prompt_tokens=60_000.0, cached_tokens=45_000.0, random_cached_tokens=15_000.0)
    ratios = traffic(Totals(0.0), many).hit_ratios()
    assert ratios is not None
    assert ratios == (0.75, 0.25, 500.0)
    above = traffic(Totals(0.0), many._replace(cached_tokens=61_440.0)).hit_ratios()
    assert above is not None
    assert above.chosen == 1


def test_a_percentile_is_interpolated_in_its_bucket() -> None:
    world = traffic(Totals(0.0, picks=(5, 5, 5, 5)), Totals(1.0, picks=(5, 105, 5, 5)))
    assert world.pick_seconds(0.5) == pytest.approx(5.5e-4)
    assert world.pick_seconds(1.0) == pytest.approx(1e-3)
    world.add(Totals(2.0, picks=(5, 105, 5, 1005)))
    assert world.pick_seconds(0.99) == BOUNDS[-1]


def test_only_five_minutes_are_kept() -> None:
    world = traffic(*[Totals(float(k), requests=1.0) for k in range(2000)])
    assert world.seconds_without_requests() == SECONDS_KEPT


def test_an_engine_computes_while_its_counters_grow() -> None:
    history = EngineHistory()
    grown = []
    for work in (None, 5.0, 7.0, 7.0, 1.0, 2.0):
        history.add(in_flight=1.0, picks=0, work=work)
        grown.append(history.computing)
    assert grown == [False, False, True, False, False, True]


def test_a_sparkline_has_the_mean_of_five_seconds_for_five_minutes() -> None:
    history = EngineHistory()
    for second in range(1000):
        history.add(in_flight=float(second), picks=3 * second, work=None)
    assert len(history.in_flight()) == POINTS
    assert history.in_flight()[-1] == 997.0
    assert history.picks_per_second == 3
    history.add(in_flight=0.0, picks=0, work=None)
    assert history.recent_picks == 0
