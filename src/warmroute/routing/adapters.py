"""LoRA adapters that one engine has loaded, as far as scrapes and own requests show."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from warmroute.pool.endpoint import MOST_ADAPTERS

ASSUMED_LIMIT = 4
"""Adapters that an engine is assumed to keep if its metrics page does not say (vLLM's ``max_loras`` is 1 by
default)."""


class LoadedAdapters:
    """The adapters in order of last use. The least recently used is dropped beyond what the engine keeps."""

    __slots__ = ("_limit", "_names")

    def __init__(self) -> None:
        self._names: OrderedDict[str, None] = OrderedDict()
        self._limit = ASSUMED_LIMIT

    def __contains__(self, adapter: str) -> bool:
        return adapter in self._names

    def clear(self) -> None:
        """The engine is a new process."""
        self._names.clear()

    def observe(self, adapters: Iterable[str], limit: int) -> None:
        """The metrics page names these adapters; the engine keeps ``limit`` at once, 0 if it does not say."""
        self._limit = min(limit or ASSUMED_LIMIT, MOST_ADAPTERS)
        for adapter in adapters:
            self.use(adapter)

    def use(self, adapter: str) -> None:
        """The adapter is loaded, or is about to be."""
        self._names[adapter] = None
        self._names.move_to_end(adapter)
        while len(self._names) > self._limit:
            self._names.popitem(last=False)
