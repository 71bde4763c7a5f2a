"""Measurements that no engine can give."""

from __future__ import annotations

from math import inf, isfinite, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.engines.rates import SMOOTHING, DecodeRate, FirstTokens, PrefillRate, RateEstimate
from warmroute.pool.endpoint import MOST_COUNTED, MOST_REQUESTS, RATES

COUNTERS = st.sampled_from([0.0, 1e-308, 0.5, 300.0, 1e6, MOST_COUNTED]) | st.floats(0, MOST_COUNTED)


@pytest.mark.parametrize("rate", [nan, inf, -inf, -1.0, 10_000_001.0])
def test_an_impossible_measurement_is_ignored(rate: float) -> None:
    estimate = RateEstimate()
    estimate.add(rate)
    assert estimate.rate is None
    estimate.add(100.0)
    estimate.add(rate)
    estimate.add(100.0)
    assert estimate.rate == 100.0


def test_the_estimate_follows_the_high_percentile_slowly() -> None:
    estimate = RateEstimate()
    estimate.add(100.0)
    estimate.add(200.0)  # the 90th percentile is 190
    assert estimate.rate == pytest.approx(100 + SMOOTHING * 90)


@pytest.mark.parametrize("seconds", [0.0, 1e-300])
def test_tokens_in_no_time_give_no_decode_rate(seconds: float) -> None:
    rate = DecodeRate()
    rate.observe(0.0, 0.0, 0.0)
    rate.observe(1.0, 1e6, seconds)
    assert rate.tokens_per_second is None


@pytest.mark.parametrize(("requests", "seconds"), [(10.0, 0.0), (10.0, 1e-300), (0.0, 1.0)])
def test_prompts_of_no_request_or_in_no_time_give_no_prefill_rate(requests: float, seconds: float) -> None:
    rate = PrefillRate()
    rate.observe_requests(0.0, 0.0, 0.0, 0.0)
    rate.observe_requests(1e9, 0.0, requests, seconds)
    assert rate.tokens_per_second is None


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 6.0]), COUNTERS, COUNTERS, COUNTERS, COUNTERS), max_size=12))
def test_any_counters_give_rates_within_bounds_or_none(looks: list[tuple[float, float, float, float, float]]) -> None:
    prefill, decode, counts = PrefillRate(), DecodeRate(), FirstTokens()
    at = 0.0
    for pause, tokens, cached, requests, seconds in looks:
        at += pause
        prefill.observe(at, tokens, cached, requests, waiting=1)
        prefill.observe_requests(tokens, cached, requests, seconds)
        decode.observe(at, tokens, seconds)
        assert 0 <= counts.awaiting(tokens, requests, MOST_REQUESTS, 0) <= MOST_REQUESTS
        for rate in (prefill.tokens_per_second, decode.tokens_per_second):
            assert rate is None or (isfinite(rate) and RATES[0] <= rate <= RATES[1])
