"""Which checkpoints the log has, so that a decision names those that are new and the last one that is not. WITHOUT IO.

Every picker keeps the same record from what it appends and what it reads. A chain is stored as segments: each has the
checkpoints that one decision added, and the segment that they follow. Checkpoints do not depend on the endpoint: a system
prompt that ten endpoints hold is in the log once.

A picker that starts reads the log from ``retention`` seconds ago. A chain is therefore appended again, from its first
checkpoint on, once its oldest segment is half that old: every chain that was in use within the last half of the log can
be read from the log alone. The same holds for the number of checkpoints that are remembered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from warmroute.prefix.chain import EMPTY_CHAIN, MAX_CHECKPOINTS, Chain

NO_BASE = 0
"""In place of a checkpoint: the chain begins here."""
DEEPEST = 1024
"""Segments of one chain. Each turn of a conversation adds one; a longer chain is appended again."""


class Addition(NamedTuple):
    """What the log lacks of a chain."""

    base: int
    """The last checkpoint that the log has, or :data:`NO_BASE`."""
    hashes: Sequence[int]
    distances: Sequence[int]
    """Bytes of prompt from each of ``hashes`` to the checkpoint before it."""


class _Segment:
    """Consecutive checkpoints that follow the first ``base_length`` checkpoints of ``base``."""

    __slots__ = ("at", "base", "base_length", "depth", "ends", "first", "hashes", "since")

    def __init__(
        self,
        hashes: Sequence[int],
        ends: Sequence[int],
        base: _Segment | None,
        base_length: int,
        *,
        at: float,
        number: int,
    ) -> None:
        self.hashes = tuple(hashes)
        self.ends = tuple(ends)
        self.base = base
        self.base_length = base_length
        self.at = at
        self.since: float = at if base is None else min(base.since, at)
        """When the oldest segment of the chain was appended."""
        self.first: int = number if base is None else min(base.first, number)
        """Checkpoints that were appended before that segment."""
        self.depth: int = 1 if base is None else base.depth + 1


class LoggedChains:
    """The chains that the log has. Times are monotonic seconds; ``limit`` bounds the checkpoints that are remembered."""

    def __init__(self, *, retention: float, limit: int) -> None:
        self.retention = retention
        """Seconds that the log goes back."""
        self._limit = limit
        self._segments: dict[int, _Segment] = {}
        """By checkpoint."""
        self._order: deque[_Segment] = deque()
        """Oldest first."""
        self._checkpoints = 0
        self._appended = 0
        """Checkpoints appended in all."""

    def __len__(self) -> int:
        """Checkpoints that are remembered, those that were appended again counted twice."""
        return self._checkpoints

    def add(self, chain: Chain, now: float) -> Addition:
        """An own decision: what must be appended of its chain, which the log has from now on."""
        hashes, ends = chain.hashes, chain.ends
        known = len(hashes)
        segments = self._segments
        while known and hashes[known - 1] not in segments:
            known -= 1
        base = segments[hashes[known - 1]] if known else None
        if base is not None and self._is_old(base, now):
            base, known = None, 0
        if known < len(hashes):
            length = 0 if base is None else base.hashes.index(hashes[known - 1]) + 1
            self._append(hashes[known:], ends[known:], base, length, now)
        first = [ends[0]] if not known and ends else []
        distances = first + [end - before for before, end in pairwise(ends[max(known - 1, 0) :])]
        return Addition(hashes[known - 1] if known else NO_BASE, hashes[known:], distances)

    def _is_old(self, base: _Segment, now: float) -> bool:
        """Whether the chain must be appended again rather than extended."""
        too_old = base.since <= now - self.retention / 2
        return too_old or base.first <= self._appended - self._limit // 2 or base.depth >= DEEPEST

    def join(self, addition: Addition, prompt_bytes: int, at: float) -> Chain | None:
        """Another picker's decision, appended at ``at``: its whole chain. None if the log's part of it is not known here."""
        base_hash, new, distances = addition
        base: _Segment | None = None
        length = 0
        hashes: list[int] = []
        ends: list[int] = []
        if base_hash != NO_BASE:
            base = self._segments.get(base_hash)
            if base is None or base.depth >= 2 * DEEPEST:
                return None
            length = base.hashes.index(base_hash) + 1
            hashes, ends = _checkpoints_to(base, length)
        if not new:
            return Chain(hashes, ends, prompt_bytes) if hashes else EMPTY_CHAIN
        if len(new) != len(distances) or len(hashes) + len(new) > MAX_CHECKPOINTS:
            return None
        new_ends = list(accumulate(distances, initial=ends[-1] if ends else 0))[1:]
        self._append(new, new_ends, base, length, at)
        hashes += new
        ends += new_ends
        return Chain(hashes, ends, prompt_bytes)

    def _append(
        self, hashes: Sequence[int], ends: Sequence[int], base: _Segment | None, base_length: int, at: float
    ) -> None:
        segment = _Segment(hashes, ends, base, base_length, at=at, number=self._appended)
        segments = self._segments
        for key in segment.hashes:
            segments[key] = segment
        self._order.append(segment)
        self._checkpoints += len(hashes)
        self._appended += len(hashes)
        order = self._order
        while order and (self._checkpoints > self._limit or order[0].at <= at - self.retention):
            self._forget(order.popleft())

    def _forget(self, segment: _Segment) -> None:
        self._checkpoints -= len(segment.hashes)
        for key in segment.hashes:
            if self._segments.get(key) is segment:  # else appended again since
                del self._segments[key]


def _checkpoints_to(segment: _Segment, length: int) -> tuple[list[int], list[int]]:
    """Hashes and ends from the chain's beginning to the first ``length`` checkpoints of ``segment``."""
    pieces: list[tuple[_Segment, int]] = []
    at: _Segment | None = segment
    while at is not None:
        pieces.append((at, length))
        length, at = at.base_length, at.base
    hashes: list[int] = []
    ends: list[int] = []
    for piece, length in reversed(pieces):
        hashes += piece.hashes[:length]
        ends += piece.ends[:length]
    return hashes, ends
