"""How far an engine's cache reaches beyond the size on its metrics page, learned from its hits. WITHOUT IO.

Engines with a second tier (CPU offloading, LMCache, a disk) hold more prompts than their GPU, and no page of vLLM or
TensorRT-LLM says how many. An index of the GPU's size forgets prompts that such an engine still has.
"""

from __future__ import annotations

from warmroute.pool.endpoint import EngineState
from warmroute.routing.confirmation import HitRatios

MOST = 16.0
"""Upper bound of the factor. An index is bounded by ``--index-limit`` besides."""
ASSUMED_TIER = 4.0
"""Factor from the moment when the engine looks prompts up in a second tier. Too large an index costs less than too small a
one, and what it costs is measured (``warmroute bench replay shared-prompts --cpu-tier 4``)."""
GROWTH = 1.5
"""Step up, taken when the index is full and the engine finds what the index has forgotten."""
SHRINKAGE = 0.8
"""Step down, taken when the index is full and the engine does not find what the index expects."""
TIER_HITS = 0.02
"""Share of a window's prompts found in the second tier, from which a full index is too small."""
EXCESS = 0.05
"""Measured less expected hits, beyond their usual difference, from which a full index is too small."""
MISSING = 0.15
"""Expected less measured hits, as a share of a window's prompts, from which the index is too large."""
USUAL_WEIGHT = 0.3
"""EWMA weight of the latest window in the usual difference."""


class CacheExtent:
    """The factor by which the cache exceeds the size on the page, from 1 to :data:`MOST`.

    The measured hits of an engine exceed the expected ones a little even if nothing was forgotten: answers are in its cache
    and not in the index. That difference is learned while the index is not full.
    """

    __slots__ = ("_has_tier", "_usual", "factor")

    def __init__(self) -> None:
        self.factor = 1.0
        self._has_tier = False
        """A second tier was seen once. What its hits say counts from then on."""
        self._usual = 0.0

    def observe_tier(self, state: EngineState) -> None:
        """A scrape: an engine that looks prompts up in a second tier has one."""
        if state.tier_queries_total and not self._has_tier:
            self._has_tier = True
            self.factor = max(ASSUMED_TIER, self.factor)

    def observe_window(self, window: HitRatios, *, full: bool) -> None:
        """Learn from a window of prompts. ``full``: the index has forgotten prompts for want of room."""
        excess = window.measured - window.expected
        if not full:
            self._usual += USUAL_WEIGHT * (max(0.0, excess) - self._usual)
        elif -excess > MISSING:
            self.factor = max(1.0, SHRINKAGE * self.factor)
        elif window.tier > TIER_HITS or excess - self._usual > EXCESS:
            self.factor = min(MOST, GROWTH * self.factor)
