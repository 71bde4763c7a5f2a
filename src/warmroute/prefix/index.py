"""The prefix index: which engine holds which chain in its KV cache.

One dictionary maps a checkpoint to a bit mask of the *holders* that have it, and each holder has its checkpoints in
order of last use. A holder is one incarnation of one engine, by a small number: when the engine restarts, its holder is
closed in O(1) and a new one opened; the closed holder's checkpoints are swept out bit by bit afterwards.

A prompt is inserted when it is sent, before its engine has accepted it. A long new tail is held as *unconfirmed*: it is
matched, but it evicts nothing until :meth:`PrefixIndex.insert` confirms it, so that prompts that the engine rejects do not
make the index forget what the engine holds.

The invariant that makes matching cheap: who holds a checkpoint holds all those before it on the chain. Insertion and
eviction keep it, because a chain is inserted (and touched) tail first, so that an ancestor is always used more recently
than its descendants. vLLM evicts in that order too, the tail of a chain before its head
(https://docs.vllm.ai/en/latest/design/prefix_caching.html).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from warmroute.prefix.chain import MAX_STEP, Chain

UNCONFIRMED_SHARE = 0.25
"""Unconfirmed bytes of a holder as a share of its capacity, and checkpoints as a share of those that it may have, at most;
beyond it the oldest are dropped."""

# Distances between checkpoints as shared objects: one int object each would cost as much as the checkpoint itself.
_DISTANCES = tuple(range(MAX_STEP + 1))


class _Holding:
    """The checkpoints of one holder, each with its distance from the one before it, least recently used first."""

    __slots__ = ("bit", "capacity", "checkpoints", "prompt_bytes", "unconfirmed", "unconfirmed_bytes")

    def __init__(self, bit: int, capacity: int) -> None:
        self.bit = bit
        self.capacity = capacity
        self.checkpoints: OrderedDict[int, int] = OrderedDict()
        self.prompt_bytes = 0
        """Bytes of prompt that the ``checkpoints`` cover."""
        self.unconfirmed: OrderedDict[int, int] = OrderedDict()
        self.unconfirmed_bytes = 0


class PrefixIndex:
    """The index. Capacities are in bytes of prompt.

    ``limit`` bounds the checkpoints of all holders together; it is shared out evenly.
    """

    def __init__(self, *, limit: int = 2_000_000) -> None:
        self._limit = limit
        self._masks: dict[int, int] = {}
        self._open: dict[int, _Holding] = {}
        self._closed: list[_Holding] = []
        self._free: list[int] = []
        self._next_holder = 0

    def open(self, capacity: int) -> int:
        """A new, empty holder for an engine whose cache holds ``capacity`` bytes of prompt."""
        if self._free:
            holder = self._free.pop()
        else:
            holder = self._next_holder
            self._next_holder += 1
        self._open[holder] = _Holding(1 << holder, capacity)
        return holder

    def close(self, holder: int) -> None:
        """Forget all that the holder has. O(1): its number is used again only after :meth:`sweep` has passed."""
        self._closed.append(self._open.pop(holder))

    def resize(self, holder: int, capacity: int) -> None:
        """The engine's cache holds ``capacity`` bytes of prompt. A smaller one takes effect at the next insertion."""
        self._open[holder].capacity = capacity

    def capacity(self, holder: int) -> int:
        """Bytes of prompt that the holder's engine holds."""
        return self._open[holder].capacity

    @property
    def most_unconfirmed(self) -> int:
        """Unconfirmed checkpoints of one holder, at most."""
        return int(UNCONFIRMED_SHARE * self._limit / len(self._open))

    def match(self, chain: Chain, candidates: int) -> list[tuple[int, int]]:
        """How far each candidate holds the chain.

        ``candidates`` is a mask of open holders. Returns disjoint groups ``(mask, depth)``, shallowest first: the
        holders in ``mask`` have exactly the first ``depth`` checkpoints. Holders that have none are in no group.

        The cost grows with the number of different depths and the logarithm of the chain's length, not with the number
        of holders: from one depth at which holders drop out to the next, the search gallops and then bisects.
        """
        hashes = chain.hashes
        if not hashes:
            return []
        held = self._masks.get
        live = held(hashes[0], 0) & candidates
        depth = 1
        groups: list[tuple[int, int]] = []
        while live:
            depth = self._common_depth(hashes, live, depth)
            rest = held(hashes[depth], 0) & live if depth < len(hashes) else 0
            groups.append((live & ~rest, depth))
            live = rest
            depth += 1
        return groups

    def _common_depth(self, hashes: Sequence[int], holders: int, depth: int) -> int:
        """How many checkpoints every one of ``holders`` has, if they all have ``depth``: gallop, then bisect."""
        held = self._masks.get
        size = len(hashes)
        low, high, stride = depth, size, 1
        while low + stride <= size:
            if held(hashes[low + stride - 1], 0) & holders != holders:
                high = low + stride
                break
            low += stride
            stride <<= 1
        else:
            if low < size and held(hashes[size - 1], 0) & holders == holders:
                return size
        while high - low > 1:
            middle = (low + high) >> 1
            if held(hashes[middle - 1], 0) & holders == holders:
                low = middle
            else:
                high = middle
        return low

    def insert(self, holder: int, chain: Chain) -> int:
        """The holder's engine will have the whole chain: add what is new, touch the rest, evict what no longer fits.

        Returns how many of its checkpoints were confirmed before.
        """
        holding = self._open[holder]
        checkpoints = holding.checkpoints
        hashes, ends = chain.hashes, chain.ends
        masks = self._masks
        bit = holding.bit
        known = len(hashes)
        unconfirmed = holding.unconfirmed
        while known and hashes[known - 1] not in checkpoints:
            known -= 1
            key = hashes[known]
            if unconfirmed and key in unconfirmed:
                holding.unconfirmed_bytes -= unconfirmed.pop(key)
            distance = ends[known] - ends[known - 1] if known else ends[0]
            checkpoints[key] = _DISTANCES[distance] if distance <= MAX_STEP else distance
            holding.prompt_bytes += distance
            mask = masks.get(key)
            masks[key] = bit if mask is None else mask | bit
        self._touch(holding, chain, known)
        most = self._limit // len(self._open)
        if holding.prompt_bytes > holding.capacity or len(checkpoints) + len(unconfirmed) > most:
            self._evict(holding, most)
        return known

    def known(self, holder: int, chain: Chain) -> tuple[int, int]:
        """How many of the chain's checkpoints the holder has confirmed, and has at all."""
        holding = self._open[holder]
        checkpoints, unconfirmed, hashes = holding.checkpoints, holding.unconfirmed, chain.hashes
        confirmed = len(hashes)
        held = 0
        while confirmed and (key := hashes[confirmed - 1]) not in checkpoints:
            if not held and key in unconfirmed:
                held = confirmed
            confirmed -= 1
        return confirmed, max(confirmed, held)

    def insert_unconfirmed(self, holder: int, chain: Chain) -> None:
        """The holder's engine may accept the chain: match its new tail from now on, but evict nothing for it."""
        holding = self._open[holder]
        checkpoints, unconfirmed = holding.checkpoints, holding.unconfirmed
        hashes, ends = chain.hashes, chain.ends
        depth = len(hashes)
        while depth and hashes[depth - 1] not in checkpoints:
            depth -= 1
            key = hashes[depth]
            if key in unconfirmed:
                unconfirmed.move_to_end(key)
                continue
            unconfirmed[key] = distance = ends[depth] - ends[depth - 1] if depth else ends[0]
            holding.unconfirmed_bytes += distance
            self._masks[key] = self._masks.get(key, 0) | holding.bit
        self._touch(holding, chain, depth)
        most = self.most_unconfirmed
        while holding.unconfirmed_bytes > UNCONFIRMED_SHARE * holding.capacity or len(unconfirmed) > most:
            key, distance = unconfirmed.popitem(last=False)
            holding.unconfirmed_bytes -= distance
            self._clear(key, holding.bit)

    def discard(self, holder: int, chain: Chain) -> None:
        """The holder's engine rejected the chain: forget its unconfirmed checkpoints."""
        holding = self._open[holder]
        for key in chain.hashes:
            if (distance := holding.unconfirmed.pop(key, None)) is not None:
                holding.unconfirmed_bytes -= distance
                self._clear(key, holding.bit)

    def remove(self, holder: int, chain: Chain, depth: int) -> None:
        """The holder's engine did not serve the chain: forget its checkpoints after the first ``depth``.

        Nothing to do once the holder is closed.
        """
        holding = self._open.get(holder)
        if holding is None:
            return
        for key in chain.hashes[depth:]:
            if (distance := holding.unconfirmed.pop(key, None)) is not None:
                holding.unconfirmed_bytes -= distance
            elif (distance := holding.checkpoints.pop(key, None)) is not None:
                holding.prompt_bytes -= distance
            else:
                continue
            self._clear(key, holding.bit)

    def _touch(self, holding: _Holding, chain: Chain, depth: int) -> None:
        """The first ``depth`` checkpoints are used, of which the holder has the last: so the engine accepted them all.

        Some may be missing: :meth:`remove` takes the beginning of a chain that was not served from longer ones that were.
        """
        checkpoints, ends = holding.checkpoints, chain.ends
        touch = checkpoints.move_to_end
        try:
            for key in reversed(chain.hashes[:depth]):
                touch(key)
        except KeyError:
            for place in range(depth - 1, -1, -1):
                key = chain.hashes[place]
                if key not in checkpoints:
                    self._add(holding, key, ends[place] - (ends[place - 1] if place else 0))
                touch(key)

    def _add(self, holding: _Holding, key: int, distance: int) -> None:
        if holding.unconfirmed.pop(key, None) is not None:
            holding.unconfirmed_bytes -= distance
        holding.checkpoints[key] = distance
        holding.prompt_bytes += distance
        self._masks[key] = self._masks.get(key, 0) | holding.bit

    def _evict(self, holding: _Holding, most: int) -> None:
        checkpoints = holding.checkpoints
        most -= len(holding.unconfirmed)
        while checkpoints and (holding.prompt_bytes > holding.capacity or len(checkpoints) > most):
            key, distance = checkpoints.popitem(last=False)
            holding.prompt_bytes -= distance
            self._clear(key, holding.bit)

    def _clear(self, key: int, bit: int) -> None:
        mask = self._masks[key] & ~bit
        if mask:
            self._masks[key] = mask
        else:
            del self._masks[key]

    def sweep(self, budget: int = 1000) -> bool:
        """Clear up to ``budget`` checkpoints of closed holders. True while some are left."""
        while self._closed and budget > 0:
            holding = self._closed[-1]
            for checkpoints in (holding.checkpoints, holding.unconfirmed):
                while checkpoints and budget > 0:
                    key, _ = checkpoints.popitem()
                    self._clear(key, holding.bit)
                    budget -= 1
            if not holding.checkpoints and not holding.unconfirmed:
                self._closed.pop()
                self._free.append(holding.bit.bit_length() - 1)
        return bool(self._closed)

    def holders(self, checkpoint: int) -> int:
        """The mask of the open holders that have the checkpoint."""
        mask = self._masks.get(checkpoint, 0)
        for holding in self._closed:
            mask &= ~holding.bit
        return mask

    def held(self, holder: int) -> tuple[int, int]:
        """Checkpoints and bytes of prompt that the holder has, unconfirmed ones included."""
        holding = self._open[holder]
        checkpoints = len(holding.checkpoints) + len(holding.unconfirmed)
        return checkpoints, holding.prompt_bytes + holding.unconfirmed_bytes

    def fill(self, holder: int) -> float:
        """Share of the holder's capacity that is used."""
        holding = self._open[holder]
        return holding.prompt_bytes / holding.capacity

    def __len__(self) -> int:
        """Distinct checkpoints in the index, including those of closed holders that are not swept yet."""
        return len(self._masks)


def holders_of(mask: int) -> Iterator[int]:
    """The holders of a mask, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
