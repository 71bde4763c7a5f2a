"""Cached tokens of one prompt, by position among the candidates."""

from __future__ import annotations

from typing import NamedTuple


class CachedTokens(NamedTuple):
    """Sparse: ``default`` tokens at every position but those in ``overrides``; at least one position has the default."""

    default: float
    overrides: dict[int, float]

    def at(self, position: int) -> float:
        """Tokens of the prompt that the endpoint at ``position`` holds."""
        return self.overrides.get(position, self.default)

    def mean(self, candidates: int) -> float:
        """Mean over that many positions: the tokens that a candidate chosen at random would hold."""
        overrides = self.overrides
        return self.default + (sum(overrides.values()) - len(overrides) * self.default) / candidates


NOTHING_CACHED = CachedTokens(0.0, {})
