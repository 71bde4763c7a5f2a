"""Saturation: whether every endpoint has so much to do that requests which may be refused are refused."""

from __future__ import annotations

from dataclasses import dataclass

from warmroute.routing.load import Fleet


@dataclass(frozen=True, slots=True)
class SaturationLimits:
    """Up to where an endpoint has room; see the settings ``saturation_*``."""

    waiting: int
    """Requests waiting for their first token."""
    kv_usage: float
    """KV-cache blocks in use, 0 to 1."""


def saturated(fleet: Fleet, limits: SaturationLimits) -> bool:
    """No endpoint of the fleet has room: each has too long a queue or too full a cache.

    The queue is that of the router's own books, so a burst is seen at once; the cache's usage is the last scraped one. An
    endpoint that was never scraped counts by its books alone: a pool without metrics still serves everybody.
    """
    return not any(
        waiting <= limits.waiting and book.kv_usage <= limits.kv_usage
        for waiting, book in zip(fleet.waiting, fleet.books, strict=True)
    )
