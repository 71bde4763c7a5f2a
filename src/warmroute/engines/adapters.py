"""Which LoRA adapters of one engine are in use, from page to page. WITHOUT IO."""

from __future__ import annotations

from collections.abc import Sequence

from warmroute.engines.figures import AdapterSet

RECENT = 10.0
"""Seconds before the latest use on the first page within which a set of adapters counts as in use."""


class AdaptersInUse:
    """The adapters that were in use since the page before; none if the engine was idle.

    A page keeps a sample for each set of adapters that was ever in use together. Requests of a few tokens start and end
    between two scrapes, so all sets whose value has grown count, not only the present one. Values of different sets cannot
    be compared if several API server processes add theirs up: an old set that all of them reported then has a higher value
    than the present one. Only the first page has nothing to be compared with; there the sets with the highest values count.
    """

    def __init__(self) -> None:
        self._used: dict[bytes, float] | None = None

    def observe(self, sets: Sequence[AdapterSet]) -> frozenset[str]:
        """The adapters in use according to the sets of one page."""
        before, self._used = self._used, {each.labels: each.used for each in sets}
        if before is None:
            latest = max((each.used for each in sets), default=0.0)
            return frozenset().union(*(each.names for each in sets if each.used >= latest - RECENT))
        return frozenset().union(*(each.names for each in sets if each.used > before.get(each.labels, 0.0)))

    def interrupt(self) -> None:
        """The engine is a new process: nothing is loaded."""
        self._used = None
