"""The offset to the log's clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.shared_state.clock import LONGEST, ClockOffset

delays = st.floats(0.0001, 0.5)


@given(st.floats(-1e6, 1e6), st.lists(st.tuples(delays, delays), min_size=1, max_size=50))
def test_the_offset_is_within_its_error(true: float, trips: list[tuple[float, float]]) -> None:
    clock, now = ClockOffset(), 1000.0
    for there, back in trips:
        clock.add(sent_at=now, stamped_at=now + there - true, received_at=now + there + back)
        now += 1.0
    assert clock.offset is not None
    assert abs(clock.offset - true) <= clock.error + 1e-6
    assert clock.error <= min(there + back for there, back in trips[-30:]) / 2 + 1e-6


def test_a_clock_that_was_set_is_followed() -> None:
    clock = ClockOffset()
    clock.add(sent_at=10.0, stamped_at=110.0, received_at=10.002)
    clock.add(sent_at=11.0, stamped_at=511.0, received_at=11.1)
    assert clock.own_time(512.0) == pytest.approx(12.05)


def test_old_samples_count_no_more() -> None:
    clock = ClockOffset()
    clock.add(sent_at=0.0, stamped_at=100.0, received_at=0.001)
    clock.add(sent_at=LONGEST + 1, stamped_at=LONGEST + 101, received_at=LONGEST + 2)
    assert clock.error == pytest.approx(0.5)


def test_unknown_before_the_first_sample() -> None:
    with pytest.raises(ValueError, match="not known"):
        ClockOffset().own_time(1.0)
