"""Which checkpoints the log has, so that a decision names those that are new and where they go on. WITHOUT IO.

Every picker keeps the same record from what it appends and what it reads. A chain is stored as segments: each has the
checkpoints that one decision added, and the segment that they go on from. Checkpoints do not depend on the endpoint: a
system prompt that ten endpoints hold is in the log once.

Checkpoints are hashes of the prompt from its beginning. So the first one of a segment identifies all that comes before
it, and the last one the whole chain: a segment is found by these two, and those between them need no entry.

A picker that starts reads the log from ``retention`` seconds ago. A chain is therefore appended again, from its first
checkpoint on, once its oldest segment is half that old: every chain that was in use within the last half of the log can
be read from the log alone. The same holds for the number of checkpoints that are remembered.

It does not hold for a log that has lost entries, nor for a picker that reads only a part of the log. Then own decisions go
on from nothing that was appended before (:meth:`LoggedChains.lost`), and each chain is appended again when it is used next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from operator import sub
from typing import NamedTuple

from warmroute.prefix.chain import EMPTY_CHAIN, MAX_CHECKPOINTS, POSITIONS, Chain, common_checkpoints

NO_BASE = 0
"""In place of a segment: the chain begins here."""
DEEPEST = 1024
"""Segments of one chain. Each turn of a conversation adds one; a longer chain is appended again."""

LONGEST_PROMPT = POSITIONS[-1]
"""Position in bytes up to which another picker's chain may go. Checkpoints inside a message end there."""


class Addition(NamedTuple):
    """What the log lacks of a chain."""

    base: int
    """The last checkpoint of a chain that the log has, or :data:`NO_BASE`."""
    known: int
    """How many checkpoints it shares with that chain."""
    hashes: Sequence[int]
    distances: Sequence[int]
    """Bytes of prompt from each of ``hashes`` to the checkpoint before it."""


class _Segment(NamedTuple):
    """Consecutive checkpoints of a chain."""

    hashes: Sequence[int]
    ends: Sequence[int]
    base: _Segment | None
    """Where the chain's checkpoints before them end, or go on otherwise; None: there are none before them."""
    start: int
    """The number of these checkpoints."""
    at: float
    since: float
    """When the oldest segment of the chain was appended."""
    first: int
    """Checkpoints that were appended before that segment."""
    depth: int


class LoggedChains:
    """The chains that the log has. Times are monotonic seconds; ``limit`` bounds the checkpoints that are remembered."""

    def __init__(self, *, retention: float, limit: int) -> None:
        self.retention = retention
        """Seconds that the log goes back."""
        self._limit = limit
        self._by_first: dict[int, _Segment] = {}
        """Segments by their first checkpoint; of several the latest."""
        self._by_last: dict[int, _Segment] = {}
        """By their last one."""
        self._order: deque[_Segment] = deque()
        """Oldest first."""
        self._checkpoints = 0
        self._appended = 0
        """Checkpoints appended in all."""
        self._lost = 0
        """As many of them, the first ones, count as lost."""

    def __len__(self) -> int:
        """Checkpoints that are remembered, those that were appended again counted twice."""
        return self._checkpoints

    def lost(self) -> None:
        """What was appended so far may not be in the log, or not known to all: own decisions append it again. Those of the
        others, who may go on from it, are understood as before."""
        self._lost = self._appended

    def add(self, chain: Chain, now: float) -> Addition:
        """An own decision: what must be appended of its chain, which the log has from now on."""
        hashes, ends = chain.hashes, chain.ends
        base, known = self._find(hashes, now)
        if base is not None and base.depth >= DEEPEST:
            base, known = None, 0
        name = NO_BASE if base is None else base.hashes[-1]
        if known == len(hashes):
            return Addition(name, known, (), ())
        new, new_ends = hashes[known:], ends[known:]
        self._append(new, new_ends, base, known, now)
        before = ends[known - 1 : -1] if known else (0, *ends[:-1])
        return Addition(name, known, new, list(map(sub, new_ends, before)))

    def _find(self, hashes: Sequence[int], now: float) -> tuple[_Segment | None, int]:
        """How many of a chain's checkpoints need not be appended again, and the segment that has the last of them."""
        segment, known = None, 0
        while known < len(hashes) and (following := self._by_first.get(hashes[known])) is not None:
            if self._is_old(following, now):
                break
            segment = following
            known += common_checkpoints(segment.hashes, hashes, known)
        return segment, known

    def _is_old(self, segment: _Segment, now: float) -> bool:
        """Whether the checkpoints must be appended again: those of the segment, or those before them."""
        too_old = segment.since <= now - self.retention / 2
        return too_old or segment.first < self._lost or segment.first <= self._appended - self._limit // 2

    def join(self, addition: Addition, prompt_bytes: int, at: float) -> Chain | None:
        """Another picker's decision, appended at ``at``: its whole chain. None if the log's part of it is not known here, or
        if it is longer than its prompt or :data:`LONGEST_PROMPT`."""
        name, known, new, distances = addition
        base: _Segment | None = None
        hashes: list[int] = []
        ends: list[int] = []
        if name != NO_BASE:
            base = self._by_last.get(name)
            if base is None or not 0 < known <= base.start + len(base.hashes) or base.depth >= 2 * DEEPEST:
                return None
            while base.base is not None and known <= base.start:
                base = base.base
            hashes, ends = _checkpoints(base, known)
        if (ends[-1] if ends else 0) + sum(distances) > min(prompt_bytes, LONGEST_PROMPT):
            return None
        if new:
            if len(new) != len(distances) or len(hashes) + len(new) > MAX_CHECKPOINTS:
                return None
            new_ends = list(accumulate(distances, initial=ends[-1] if ends else 0))[1:]
            self._append(new, new_ends, base, len(hashes), at)
            hashes += new
            ends += new_ends
        # Not `prompt_bytes`: the first prompt of a batch comes with the length of all.
        return Chain(hashes, ends, ends[-1]) if hashes else EMPTY_CHAIN

    def _append(self, hashes: Sequence[int], ends: Sequence[int], base: _Segment | None, start: int, at: float) -> None:
        since, first, depth = at, self._appended, 1
        if base is not None:
            since, first, depth = min(base.since, at), min(base.first, first), base.depth + 1
        segment = _Segment(tuple(hashes), tuple(ends), base, start, at, since, first, depth)
        self._by_first[hashes[0]] = self._by_last[hashes[-1]] = segment
        order = self._order
        order.append(segment)
        self._checkpoints += len(hashes)
        self._appended += len(hashes)
        while order and (self._checkpoints > self._limit or order[0].at <= at - self.retention):
            self._forget(order.popleft())

    def _forget(self, segment: _Segment) -> None:
        self._checkpoints -= len(segment.hashes)
        for segments, key in ((self._by_first, segment.hashes[0]), (self._by_last, segment.hashes[-1])):
            if segments.get(key) is segment:  # else appended again since
                del segments[key]


def _checkpoints(segment: _Segment, known: int) -> tuple[list[int], list[int]]:
    """Hashes and ends of the first ``known`` checkpoints of the chain that the segment is the last piece of."""
    pieces: list[_Segment] = []
    at: _Segment | None = segment
    while at is not None:
        pieces.append(at)
        at = at.base
    hashes: list[int] = []
    ends: list[int] = []
    for piece in reversed(pieces):
        del hashes[piece.start :], ends[piece.start :]
        hashes += piece.hashes
        ends += piece.ends
    return hashes[:known], ends[:known]
