"""The measured speed of decoding."""

from __future__ import annotations

import pytest

from warmroute.engines.rates import DECODE_WINDOW_TOKENS, DOUBLED_AT, DecodeRate


def measure(rate: DecodeRate, *, at_once: float, token_seconds: float, began: float = 0.0, windows: int = 20) -> None:
    """Two looks a second at an engine that generates that many answers at once."""
    for i in range(2 * windows + 1):
        seconds = i * 0.5 * at_once
        rate.observe(began + i * 0.5, seconds / token_seconds, seconds)


def test_nothing_is_known_before_there_are_enough_tokens() -> None:
    rate = DecodeRate()
    rate.observe(0.0, 0, 0.0)
    rate.observe(0.5, 1000, 5.0)  # too soon
    assert rate.tokens_per_second is None
    rate.observe(1.0, 1010, 5.5)
    assert rate.tokens_per_second is not None
    few = DecodeRate()
    few.observe(0.0, 0, 0.0)
    few.observe(1.0, DECODE_WINDOW_TOKENS - 1, 5.0)
    assert few.tokens_per_second is None
    idle = DecodeRate()
    for i in range(10):
        idle.observe(float(i), 200, 1.0)
    assert idle.tokens_per_second is None


def test_equal_engines_are_equally_fast_however_many_answers_they_generate() -> None:
    speeds = []
    for at_once in (10, 64, 200):
        rate = DecodeRate()
        measure(rate, at_once=at_once, token_seconds=0.02 * (1 + at_once / DOUBLED_AT))
        speeds.append(rate.tokens_per_second)
    assert speeds == [pytest.approx(50)] * 3


def test_a_slower_engine_is_slower() -> None:
    rate = DecodeRate()
    measure(rate, at_once=10, token_seconds=0.06 * (1 + 10 / DOUBLED_AT))
    assert rate.tokens_per_second == pytest.approx(50 / 3)


def test_windows_that_prefill_held_up_do_not_lower_the_speed_much() -> None:
    rate = DecodeRate()
    tokens = seconds = 0.0
    for i in range(60):
        rate.observe(float(i), tokens, seconds)
        tokens += 640 if i % 4 == 0 else 300
        seconds += 16
    assert rate.tokens_per_second == pytest.approx(40 * 1.25, rel=0.1)


def test_a_restart_begins_a_new_window_and_keeps_what_was_measured() -> None:
    rate = DecodeRate()
    measure(rate, at_once=32, token_seconds=0.03)
    assert rate.tokens_per_second == pytest.approx(50)
    rate.interrupt()
    rate.observe(100.0, 5, 1.0)
    rate.observe(101.0, 3, 1.0)  # again, unseen
    assert rate.tokens_per_second == pytest.approx(50)
