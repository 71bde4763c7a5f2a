"""The measured prefill speed."""

from __future__ import annotations

import pytest

from warmroute.engines.rates import LEAST_COMPUTED, PrefillRate
from warmroute.pool.work import prefill_work

EACH = 500
"""Tokens of a prompt: so few that attention hardly counts."""
NEARLY = 0.01
"""Relative error that the attention makes."""


def test_nothing_is_known_of_an_engine_that_never_queued() -> None:
    rate = PrefillRate()
    for i in range(100):
        rate.observe(i * 0.5, i * 10_000.0, 0.0, i * 10_000 / EACH, waiting=0)
    assert rate.tokens_per_second is None


def test_a_busy_engine_is_measured() -> None:
    rate = PrefillRate()
    for i in range(20):
        rate.observe(i * 0.5, i * 10_000.0, 0.0, i * 10_000 / EACH, waiting=3)
    assert rate.tokens_per_second == pytest.approx(20_000, rel=NEARLY)


def test_idle_time_between_busy_windows_does_not_count() -> None:
    rate = PrefillRate()
    tokens = 0.0
    for i in range(100):
        busy = i % 10 < 5
        rate.observe(i * 0.5, tokens, 0.0, tokens / EACH, waiting=2 if busy else 0)
        tokens += 10_000.0 if busy else 0.0
    assert rate.tokens_per_second == pytest.approx(20_000, rel=NEARLY)


def test_a_window_begins_while_requests_wait() -> None:
    rate = PrefillRate()
    rate.observe(0.0, 0.0, 0.0, 0.0, waiting=0)
    rate.observe(1.0, 10_000.0, 0.0, 10_000 / EACH, waiting=3)
    assert rate.tokens_per_second is None


def test_a_window_lasts_a_second() -> None:
    rate = PrefillRate()
    rate.observe(0.0, 0.0, 0.0, 0.0, waiting=3)
    rate.observe(0.5, 40_000.0, 0.0, 40_000 / EACH, waiting=3)
    assert rate.tokens_per_second is None
    rate.observe(1.0, 40_000.0, 0.0, 40_000 / EACH, waiting=3)
    assert rate.tokens_per_second == pytest.approx(40_000, rel=NEARLY)


def test_a_counter_of_cached_tokens_that_falls_counts_as_none_cached() -> None:
    rate = PrefillRate()
    rate.observe_requests(0.0, 100_000.0, 0, 0.0)
    rate.observe_requests(10_000.0, 0.0, 10_000 / EACH, 1.0)
    assert rate.tokens_per_second == pytest.approx(prefill_work(EACH) * 20)


def test_windows_held_up_by_decoding_do_not_lower_the_speed_much() -> None:
    rate = PrefillRate()
    tokens = 0.0
    for i in range(60):
        rate.observe(float(i), tokens, 0.0, tokens / EACH, waiting=5)
        tokens += 20_000.0 if i % 4 == 0 else 5_000.0
    assert rate.tokens_per_second == pytest.approx(20_000, rel=0.1)


def test_a_stuck_engine_tells_no_speed() -> None:
    rate = PrefillRate()
    for i in range(10):
        rate.observe(float(i), 5_000.0, 0.0, i * 10, waiting=5)
    assert rate.tokens_per_second is None


def test_the_speed_follows_the_engine() -> None:
    rate = PrefillRate()
    tokens = 0.0
    for i in range(200):
        rate.observe(float(i), tokens, 0.0, tokens / EACH, waiting=5)
        tokens += 40_000.0 if i < 60 else 10_000.0
    assert rate.tokens_per_second == pytest.approx(10_000, rel=0.05)


def test_a_gap_or_a_restart_begins_a_new_window() -> None:
    rate = PrefillRate()
    rate.observe(0.0, 0.0, 0.0, 0.0, waiting=1)
    rate.observe(100.0, 1e9, 0.0, 1e9 / EACH, waiting=1)
    assert rate.tokens_per_second is None
    rate.interrupt()
    rate.observe(101.0, 0.0, 0.0, 0.0, waiting=1)
    rate.observe(102.0, 7_000.0, 0.0, 7_000 / EACH, waiting=1)
    assert rate.tokens_per_second == pytest.approx(7_000, rel=NEARLY)


def test_an_engine_that_never_queues_is_measured_by_its_requests() -> None:
    rate = PrefillRate()
    for i in range(10):
        rate.observe(i * 0.5, i * 5_000.0, 0.0, i * 5_000 / EACH, waiting=0)
        rate.observe_requests(i * 5_000.0, 0.0, i * 5_000 / EACH, i * 0.25)
    assert rate.tokens_per_second == pytest.approx(20_000, rel=NEARLY)


def test_many_requests_are_measured_together_and_a_restart_begins_anew() -> None:
    rate = PrefillRate()
    rate.observe_requests(100_000.0, 0.0, 200, 25.0)
    rate.observe_requests(104_000.0, 0.0, 208, 26.0)
    assert rate.tokens_per_second is None
    rate.observe_requests(108_000.0, 0.0, 216, 27.0)
    assert rate.tokens_per_second == pytest.approx(4_000, rel=NEARLY)
    rate.interrupt()
    rate.observe_requests(1_000_000.0, 0.0, 400, 1.0)
    rate.observe_requests(100.0, 0.0, 1, 0.1)
    assert rate.tokens_per_second == pytest.approx(4_000, rel=NEARLY)


@pytest.mark.parametrize("computed", [1, LEAST_COMPUTED - 1])
def test_prompts_that_compute_little_do_not_make_an_engine_look_slow(computed: int) -> None:
    """Each takes a step of 0.1 s, whether its engine waits for requests or requests for it."""
    rate = PrefillRate()
    rate.observe_requests(0.0, 0.0, 0, 0.0)
    rate.observe_requests(20_000.0, 0.0, 40, 1.0)
    for i in range(1, 20_000):
        rate.observe_requests(20_000.0 + i * computed, i * 5_000.0, 40 + i, 1.0 + i * 0.1)
        rate.observe(i * 0.1, 20_000.0 + i * computed, i * 5_000.0, 40 + i, waiting=3)
    assert rate.tokens_per_second == pytest.approx(20_000, rel=NEARLY)


def test_the_faster_measurement_counts() -> None:
    rate = PrefillRate()
    for i in range(10):
        rate.observe(i * 0.5, i * 10_000.0, 0.0, i * 10_000 / EACH, waiting=3)
        rate.observe_requests(i * 10_000.0, 0.0, i * 10_000 / EACH, i * 2.0)
    assert rate.tokens_per_second == pytest.approx(20_000, rel=NEARLY)


def test_long_prompts_do_not_look_faster_by_the_window_that_they_end_in() -> None:
    """Each prompt takes 2.7 s, so that a window of a second holds one of 40,000 tokens or none."""
    rate = PrefillRate()
    for i in range(1000):
        done = int(i * 0.5 / 2.7)
        rate.observe(i * 0.5, done * 40_000.0, 0.0, done, waiting=5)
    assert rate.tokens_per_second == pytest.approx(prefill_work(40_000) / 2.7, rel=0.1)


def test_an_engine_with_long_prompts_is_as_fast_as_one_with_short_ones() -> None:
    speeds = []
    for tokens, seconds in ((1_000, prefill_work(1_000) / 20_000), (50_000, prefill_work(50_000) / 20_000)):
        rate = PrefillRate()
        for i in range(100):
            rate.observe_requests(i * 10.0 * tokens, 0.0, i * 10, i * 10 * seconds)
        speeds.append(rate.tokens_per_second)
    assert speeds == [pytest.approx(20_000, rel=0.001), pytest.approx(20_000, rel=0.001)]


def test_the_next_turns_of_long_conversations_do_not_make_an_engine_look_slow() -> None:
    """Each prompt has 80,000 tokens, of which the engine computes 1,000: they attend to all the others."""
    rate = PrefillRate()
    seconds = (prefill_work(80_000) - prefill_work(79_000)) / 20_000
    for i in range(100):
        n = 10.0 * i
        rate.observe_requests(1_000 * n, 79_000 * n, n, n * seconds)
    assert rate.tokens_per_second == pytest.approx(20_000, rel=NEARLY)
    busy = PrefillRate()
    for i in range(100):
        n = 10.0 * i
        busy.observe(n * seconds, 1_000 * n, 79_000 * n, n, waiting=3)
    assert busy.tokens_per_second == pytest.approx(20_000, rel=NEARLY)
