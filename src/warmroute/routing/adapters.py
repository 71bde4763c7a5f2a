"""LoRA adapters that one engine has loaded, as far as scrapes and own requests show."""

from __future__ import annotations

from collections.abc import Iterable

from warmroute.pool.endpoint import MOST_ADAPTERS

ASSUMED_LIMIT = 4
"""Adapters that an engine is assumed to keep if its metrics page does not say (vLLM's ``max_loras`` is 1 by
default)."""


class LoadedAdapters:
    """The adapters with the time of their last use. The least recently used is dropped beyond what the engine keeps.

    An adapter counts as loaded from the moment when a request for it is sent, so requests that are too short to be seen in
    a scrape stay on one engine, too. Times are monotonic seconds.
    """

    __slots__ = ("_limit", "_used")

    def __init__(self) -> None:
        self._used: dict[str, float] = {}
        self._limit = ASSUMED_LIMIT

    def __contains__(self, adapter: str) -> bool:
        return adapter in self._used

    def clear(self) -> None:
        """The engine is a new process."""
        self._used.clear()

    def observe(self, adapters: Iterable[str], limit: int, at: float) -> None:
        """The metrics page of ``at`` names these adapters; the engine keeps ``limit`` at once, 0 if it does not say."""
        self._limit = min(limit or ASSUMED_LIMIT, MOST_ADAPTERS)
        for adapter in sorted(adapters):  # a set has another order in each process
            self._used[adapter] = max(at, self._used.get(adapter, at))
        self._evict()

    def use(self, adapter: str, now: float) -> None:
        """A request for the adapter is sent: it is loaded, or is about to be."""
        self._used[adapter] = now
        self._evict()

    def _evict(self) -> None:
        used = self._used
        excess = len(used) - self._limit
        if excess > 0:
            for adapter in sorted(used, key=used.__getitem__)[:excess]:
                del used[adapter]
