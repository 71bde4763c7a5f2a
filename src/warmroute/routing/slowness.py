"""Slowness: the pool's median speed divided by each endpoint's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median

from warmroute.routing.endpoint_load import EndpointLoad

SLOWNESS_RANGE = (0.5, 2.0)
"""Bounds of an endpoint's slowness."""
CERTAIN_PREFILL = 1.5
"""Least factor by which prefill rates must differ to count if engines export no decode rate: the prompts may differ, or
how many are computed side by side. Equal GPUs were measured to differ up to nine times (docs/virtual-queue.md)."""
CERTAIN_BOTH = 1.25
"""Least factor by which both prefill and decode rates must differ if engines export both. Chosen with ``warmroute bench
standings``: without decode rates, bursts of equal prompts above saturation have a p99 half as high again."""


def update_slowness(loads: Iterable[EndpointLoad]) -> None:
    """Set each load's ``slowness``, 1 where that is not certain, and its ``pool_rate``.

    If engines export decode rates, an endpoint is slow (or fast) only if both of its rates say so; then the ratio
    nearer to 1 counts.
    """
    loads = list(loads)
    rates = {load: load.prefill_rate for load in loads if load.prefill_rate}
    prefill = _ratios(rates)
    pool_rate = median(rates.values()) if rates else None
    decode = _ratios({load: load.decode_rate for load in loads if load.decode_rate})
    low, high = SLOWNESS_RANGE
    certain = CERTAIN_BOTH if decode else CERTAIN_PREFILL
    for load in loads:
        load.pool_rate = pool_rate
        by_prefill = prefill.get(load, 1.0)
        by_decode = decode.get(load, 1.0) if decode else by_prefill
        if min(by_prefill, by_decode) >= certain:
            load.slowness = min(by_prefill, by_decode, high)
        elif max(by_prefill, by_decode) <= 1 / certain:
            load.slowness = max(by_prefill, by_decode, low)
        else:
            load.slowness = 1.0


def _ratios(rates: Mapping[EndpointLoad, float]) -> dict[EndpointLoad, float]:
    """Median rate divided by each rate."""
    if not rates:
        return {}
    typical = median(rates.values())
    return {load: typical / rate for load, rate in rates.items()}
