"""Slowness: which differences of speed count."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.factories import idle_load, routing_constants
from warmroute.routing.slowness import update_slowness

ROUTING = routing_constants(prefill_rate=1000.0)
CONSTANTS = ROUTING.load


def with_speeds(prefill: Sequence[float | None], decode: Sequence[float | None]) -> list[float]:
    """Slowness of endpoints with these speeds."""
    loads = [idle_load(str(k), k) for k in range(len(prefill))]
    for load, prefill_rate, decode_rate in zip(loads, prefill, decode, strict=True):
        load.prefill_rate, load.decode_rate = prefill_rate, decode_rate
    update_slowness(loads)
    return [load.slowness for load in loads]


def test_slowness_is_relative_to_the_median() -> None:
    untold = [None] * 4
    assert with_speeds([1000.0, 1000.0, 500.0, None], untold) == [1.0, 1.0, 2.0, 1.0]
    assert with_speeds([1000.0, 1000.0, 700.0, None], untold) == [1.0] * 4  # so much may come from the prompts
    assert with_speeds([1000.0, 1000.0, 100.0, 9000.0], untold) == [1.0, 1.0, 2.0, 0.5]


def test_an_endpoint_that_was_not_measured_is_as_fast_as_the_others() -> None:
    loads = [idle_load(str(k), k) for k in range(4)]
    update_slowness(loads)
    assert loads[0].drain_rate(CONSTANTS) == CONSTANTS.prefill_rate
    for load, rate in zip(loads, (4000.0, 5000.0, 9000.0), strict=False):
        load.prefill_rate = rate
    update_slowness(loads)
    assert [load.drain_rate(CONSTANTS) for load in loads] == [4000, 5000, 9000, 5000]


def test_slow_prefill_counts_only_where_decoding_is_slow_too() -> None:
    prefill = [1000.0, 1000.0, 1000.0, 400.0, 3000.0]
    assert with_speeds(prefill, [20.0, 20.0, 20.0, 19.0, 21.0]) == [1.0] * 5  # equal GPUs, other prompts
    assert with_speeds(prefill, [20.0, 20.0, 20.0, 30.0, 12.0]) == [1.0] * 5
    assert with_speeds(prefill, [20.0, 20.0, 20.0, 12.5, 30.0]) == pytest.approx([1, 1, 1, 1.6, 2 / 3])
    assert with_speeds(prefill, [20.0, 20.0, 20.0, 5.0, None]) == [1.0, 1.0, 1.0, 2.0, 1.0]
    assert with_speeds([1000.0, 1000.0, 1000.0, 750.0], [20.0, 20.0, 20.0, 10.0]) == pytest.approx([1, 1, 1, 4 / 3])
