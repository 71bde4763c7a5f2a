"""The beginnings that most prompts share. WITHOUT IO.

Each prompt counts at a few fixed lengths (:data:`LENGTHS`), by the checkpoint of its chain there. A beginning is shown by a
keyed hash and its length.

Security: the lengths are so far apart that nobody can guess another client's prompt message by message (see
:data:`~warmroute.routing.decision_record.CACHED_STEP`), and without the key nobody can hash a guess.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from hashlib import blake2b
from math import log
from typing import NamedTuple

from warmroute.observability.live.heavy_hitters import HeavyHitters, Hitter
from warmroute.prefix.chain import Chain

SHORTEST = 4096
"""Bytes of the shortest beginning that is counted: about 1,024 tokens."""
LENGTHS = (
    *(SHORTEST, 2 * SHORTEST),
    *(round(3 * SHORTEST * 1.5**k) for k in range(15)),
)
"""Bytes of prompt at which beginnings are counted: 4 KiB, 8 KiB, 12 KiB, then half as long again each, up to 3.5 MB."""
SIZE = 512
"""Beginnings that are kept at least."""
MOST_CHECKPOINTS = 512
"""Checkpoints of a beginning that is counted, at most: a prompt of 3.5 MB in a few messages has about 500."""
HALF_LIFE = 60.0
"""Seconds after which a request counts half."""
LEAST_REQUESTS = 3.0
"""Decayed requests from which a beginning is shown."""
SAME = 0.8
"""Share of a beginning's requests that also have a longer one from which only the longer one is shown."""
NAME_BYTES = 4
"""Bytes of a keyed hash."""


class Beginning(NamedTuple):
    """What is known of a beginning beside its count."""

    shorter: int
    """Checkpoint of the next shorter beginning that is counted; 0 if there is none."""
    length: int
    """Bytes of prompt, one of :data:`LENGTHS`; the checkpoint is the last one up to there."""
    hashes: Sequence[int]
    """The checkpoints up to there."""


class SharedPrefix(NamedTuple):
    """A beginning that several requests share."""

    name: str
    """Keyed hash, hexadecimal."""
    length: int
    """Bytes of prompt, one of :data:`LENGTHS`."""
    requests_per_second: float
    hashes: Sequence[int]
    """Its checkpoints, for the prefix index, which knows who holds them; not to be shown."""


class SharedPrefixes:
    """Counts the beginnings of the prompts. ``key`` is a secret of this process; ``now`` is in monotonic seconds."""

    def __init__(self, *, key: bytes, now: float) -> None:
        self._key = key
        self._began_at = self._decayed_at = now
        self._hitters: HeavyHitters[Beginning] = HeavyHitters(SIZE)

    def count(self, chain: Chain) -> None:
        """A request with this prompt was routed."""
        if chain.prompt_bytes < SHORTEST:
            return
        hashes, ends = chain.hashes, chain.ends
        shorter = 0
        for length in LENGTHS[: bisect_right(LENGTHS, chain.prompt_bytes)]:
            place = bisect_right(ends, length) - 1
            if 0 <= place < MOST_CHECKPOINTS and hashes[place] != shorter:
                key = hashes[place]
                if not self._hitters.count(key):
                    self._hitters.add(key, Beginning(shorter, length, hashes[: place + 1]))
                shorter = key

    def decay(self, now: float) -> None:
        """Let older requests count less. Call it every few seconds."""
        self._hitters.decay(0.5 ** ((now - self._decayed_at) / HALF_LIFE))
        self._decayed_at = now

    def top(self, most: int) -> list[SharedPrefix]:
        """The beginnings with the most prompt bytes per second."""
        hitters = {hitter.key: hitter for hitter in self._hitters.hitters() if hitter.least >= LEAST_REQUESTS}
        covered = {
            hitter.detail.shorter
            for hitter in hitters.values()
            if (shorter := hitters.get(hitter.detail.shorter)) is not None and hitter.least >= SAME * shorter.least
        }
        shown = [hitter for key, hitter in hitters.items() if key not in covered]
        shown.sort(key=lambda hitter: -hitter.least * hitter.detail.length)
        return [self._prefix(hitter) for hitter in shown[:most]]

    def _prefix(self, hitter: Hitter[Beginning]) -> SharedPrefix:
        name = blake2b(hitter.key.to_bytes(8), key=self._key, digest_size=NAME_BYTES).hexdigest()
        # A rate r gives a decayed count of r * HALF_LIFE / ln 2 in the long run, and this share of it after a short time.
        reached = 1 - 0.5 ** ((self._decayed_at - self._began_at) / HALF_LIFE)
        rate = hitter.least * log(2) / HALF_LIFE / reached if reached else 0.0
        return SharedPrefix(name, hitter.detail.length, rate, hitter.detail.hashes)
