"""Predicted against measured times to first token: who is compared with whom, the window, the bounds of the correction."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import engine_state, idle_load, routing_constants
from warmroute.routing.prediction import CORRECTION_RANGE, LEAST_COMPARED, MOST_UNSEEN, WINDOW, Compared, Prediction


def scraped(prediction: Prediction, at: float, count: float, seconds: float, *, running: int = 1) -> None:
    """A scrape whose counters stand at that many first tokens, which took so long in all."""
    prediction.observe(engine_state(at, running=running, first_tokens_total=count, first_token_seconds_total=seconds))


def test_each_first_token_is_compared_with_the_oldest_prediction() -> None:
    prediction = Prediction()
    scraped(prediction, 0.0, 10, 100.0)
    for seconds in (1.0, 2.0, 30.0):
        prediction.expect(seconds)
    assert prediction.compared is None
    scraped(prediction, 1.0, 12, 105.0)
    assert prediction.compared == Compared(1.5, 2.5, 2)


def test_the_window_is_a_minute() -> None:
    prediction = Prediction()
    scraped(prediction, 0.0, 0, 0.0)
    for number, at in enumerate((1.0, 40.0, 1.0 + WINDOW), 1):
        prediction.expect(float(number))
        scraped(prediction, at, number, float(number))
    assert prediction.compared == Compared(2.5, 1.0, 2)
    scraped(prediction, 200.0, 3, 3.0)
    assert prediction.compared is None


def test_a_drift_is_corrected_and_the_correction_is_bounded() -> None:
    for measured, corrected in ((1.5, 1.5), (9.0, 2.0), (0.1, 0.5)):
        prediction = Prediction()
        for number in range(400):
            scraped(prediction, number / 10, number, measured * number)
            prediction.expect(1.0 * prediction.correction)
        assert prediction.correction == pytest.approx(corrected, rel=0.01)
        compared = prediction.compared
        assert compared is not None
        if measured == 1.5:
            assert compared.predicted == pytest.approx(compared.measured, rel=0.1), "it predicts what is measured now"


def test_predictions_with_an_assumed_speed_are_forgotten_once_it_is_measured() -> None:
    load = idle_load()
    constants = routing_constants().load
    for number in range(100):
        at = number / 10
        load.observe(
            engine_state(at, running=1, first_tokens_total=number, first_token_seconds_total=number), constants
        )
        load.prediction.expect(50.0)
    assert load.prediction.correction < 1
    load.observe(engine_state(11.0, prefill_rate=9000.0), constants)
    assert (load.prediction.correction, load.prediction.compared) == (1.0, None)
    load.prediction.expect(1.0)
    load.observe(engine_state(12.0, prefill_rate=9500.0), constants)
    load.prediction.expect(1.0)
    load.observe(engine_state(13.0, running=1, first_tokens_total=100, first_token_seconds_total=99), constants)
    load.observe(engine_state(14.0, running=1, first_tokens_total=101, first_token_seconds_total=101), constants)
    assert load.prediction.compared == Compared(1.0, 2.0, 1)


def test_what_an_idle_engine_never_answered_is_forgotten() -> None:
    prediction = Prediction()
    scraped(prediction, 0.0, 0, 0.0)
    prediction.expect(50.0)  # rejected by the engine
    scraped(prediction, 5.0, 0, 0.0, running=0)
    prediction.expect(1.0)
    scraped(prediction, 6.0, 1, 1.0)
    assert prediction.compared == Compared(1.0, 1.0, 1)


def test_a_new_process_keeps_the_correction_and_compares_nothing_old() -> None:
    prediction = Prediction()
    for number in range(100):
        scraped(prediction, number / 10, number, 2.0 * number)
        prediction.expect(1.0)
    correction = prediction.correction
    prediction.reset()
    assert prediction.correction == correction > 1
    scraped(prediction, 11.0, 5, 5.0)
    scraped(prediction, 12.0, 3, 1.0)  # counters that fall without a restart being seen
    prediction.expect(1.0)
    scraped(prediction, 13.0, 4, 2.0)
    assert prediction.correction == pytest.approx(correction, rel=0.1)


@pytest.mark.parametrize(("count", "seconds"), [(1.0, None), (None, 1.0), (-1.0, 5.0), (1.0, -5.0)])
def test_counters_of_which_one_ends_or_falls_compare_nothing(count: float | None, seconds: float | None) -> None:
    prediction = Prediction()
    scraped(prediction, 0.0, 10, 10.0)
    prediction.expect(1.0)
    prediction.observe(
        engine_state(
            1.0,
            running=1,
            first_tokens_total=None if count is None else 10 + count,
            first_token_seconds_total=None if seconds is None else 10 + seconds,
        )
    )
    assert prediction.compared is None
    assert len(prediction._open) == 1
    assert not any(prediction._sums)


def test_few_first_tokens_or_predictions_of_nothing_correct_nothing() -> None:
    for predicted, count in ((1.0, LEAST_COMPARED - 1), (0.0, LEAST_COMPARED)):
        prediction = Prediction()
        scraped(prediction, 0.0, 0, 0.0)
        for _ in range(count):
            prediction.expect(predicted)
        scraped(prediction, 1.0, count, 2.0 * count)
        assert prediction.correction == 1.0


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.integers(0, 30), st.floats(0, 1e6), st.floats(0, 30)) | st.floats(0, 1e6),
        max_size=60,
    )
)
def test_the_correction_stays_within_its_bounds(events: list[tuple[float, int, float, float] | float]) -> None:
    prediction, now, count, total = Prediction(), 0.0, 0.0, 0.0
    for event in events:
        if isinstance(event, float):
            prediction.expect(event)
        else:
            now, count, total = now + event[3], count + event[1], total + event[2]
            scraped(prediction, now, count, total)
        assert CORRECTION_RANGE[0] <= prediction.correction <= CORRECTION_RANGE[1]


def test_what_a_busy_engine_never_answered_is_forgotten() -> None:
    """One client of five goes before its first token."""
    prediction = Prediction()
    scraped(prediction, 0.0, 0, 0.0)
    for number in range(1, 500):
        prediction.expect(50.0)  # the one that goes
        for _ in range(4):
            prediction.expect(number * prediction.correction)
        scraped(prediction, float(number), 4 * number, 4.0 * sum(range(1, number + 1)))
    assert len(prediction._open) <= 2 + MOST_UNSEEN


def test_what_was_sent_and_is_not_on_the_page_yet_is_kept() -> None:
    for sent_since, running, kept in ((3, 0, 3), (3, 1, 8), (0, 20, 40)):
        prediction = Prediction()
        scraped(prediction, 0.0, 0, 0.0)
        for number in range(kept + (MOST_UNSEEN if running else 0) + 5):
            prediction.expect(float(number))
        page = engine_state(1.0, running=running, first_tokens_total=0.0, first_token_seconds_total=0.0)
        prediction.observe(page, sent_since=sent_since)
        assert prediction._open[0][0] == 5.0, "the oldest go"


def test_an_absurd_prediction_is_forgotten_as_others_are() -> None:
    prediction = Prediction()
    scraped(prediction, 0.0, 0, 0.0)
    prediction.expect(1e20)
    for number in range(1, 3000):
        prediction.expect(0.1 * prediction.correction)
        scraped(prediction, number / 10, number, 0.1 * number)
    assert prediction.correction == pytest.approx(1.0, rel=0.01)
