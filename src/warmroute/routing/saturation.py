"""Saturation: whether every endpoint is so busy that sheddable requests are rejected."""

from __future__ import annotations

from dataclasses import dataclass

from warmroute.routing.candidates import Candidates


@dataclass(frozen=True, slots=True)
class SaturationLimits:
    """Limits up to which an endpoint has room: the settings ``saturation_*``."""

    waiting: int
    """Requests waiting for their first token."""
    kv_usage: float
    """KV cache utilization, 0 to 1."""


def saturated(candidates: Candidates, limits: SaturationLimits) -> bool:
    """No candidate has room: each has too long a queue or too full a KV cache.

    The queue depth is the router's own estimate, so a burst counts at once; the KV cache utilization is the last
    scraped one. An endpoint that was never scraped counts by its queue alone.
    """
    return not any(
        waiting <= limits.waiting and load.kv_usage <= limits.kv_usage
        for waiting, load in zip(candidates.waiting, candidates.loads, strict=True)
    )
