"""Who holds which chain: the picker's picture of every engine's KV cache.

One dictionary maps a checkpoint to a bit mask of the *slots* that hold it, and each slot has its checkpoints in order of
last use. A slot stands for one incarnation of one engine: when the engine restarts, its slot is closed in O(1) and a new
one opened; the closed slot's checkpoints are swept out bit by bit afterwards.

The invariant that makes matching cheap: a slot that holds a checkpoint holds all those before it on the chain. Insertion
and eviction keep it, because a chain is inserted (and touched) tail first, so that an ancestor is always used more recently
than its descendants. That is also the order in which vLLM evicts: the tail of a chain before its head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from warmroute.prefix.chain import MAX_STEP, Chain

# Distances between checkpoints as shared objects: one int object each would cost as much as the checkpoint itself.
_DISTANCES = tuple(range(MAX_STEP + 1))


class _Holding:
    """What one slot holds: checkpoint to distance from the one before it, least recently used first."""

    __slots__ = ("bit", "capacity", "checkpoints", "weight")

    def __init__(self, bit: int, capacity: int) -> None:
        self.bit = bit
        self.capacity = capacity
        self.checkpoints: OrderedDict[int, int] = OrderedDict()
        self.weight = 0


class PrefixIndex:
    """The index. Weights and capacities are in bytes of prompt.

    ``limit`` bounds the checkpoints held over all slots; it is shared out evenly.
    """

    def __init__(self, *, limit: int = 2_000_000) -> None:
        self._limit = limit
        self._masks: dict[int, int] = {}
        self._open: dict[int, _Holding] = {}
        self._closed: list[_Holding] = []
        self._free: list[int] = []
        self._next_slot = 0

    def open(self, capacity: int) -> int:
        """A new, empty slot for an engine whose cache holds ``capacity`` bytes of prompt. Slots are small integers."""
        if self._free:
            slot = self._free.pop()
        else:
            slot = self._next_slot
            self._next_slot += 1
        self._open[slot] = _Holding(1 << slot, capacity)
        return slot

    def close(self, slot: int) -> None:
        """Forget all that the slot holds. O(1): the slot's number is used again only after :meth:`sweep` has passed."""
        self._closed.append(self._open.pop(slot))

    def resize(self, slot: int, capacity: int) -> None:
        """The engine's cache holds ``capacity`` bytes of prompt. A smaller one takes effect at the next insertion."""
        self._open[slot].capacity = capacity

    def match(self, chain: Chain, candidates: int) -> list[tuple[int, int]]:
        """How far each candidate holds the chain.

        ``candidates`` is a mask of open slots. Returns disjoint groups ``(mask, depth)``, shallowest first: the slots of
        ``mask`` hold exactly the first ``depth`` checkpoints. Slots that hold none are in no group.

        The cost grows with the number of different depths and the logarithm of the chain's length, not with the number
        of slots: from one depth at which slots drop out to the next, the search gallops and then bisects.
        """
        hashes = chain.hashes
        size = len(hashes)
        if not size:
            return []
        held = self._masks.get
        live = held(hashes[0], 0) & candidates
        depth = 1
        groups: list[tuple[int, int]] = []
        while live:
            stride = 1
            low = depth  # all of `live` hold this many
            high = size + 1
            while low + stride <= size:
                if held(hashes[low + stride - 1], 0) & live != live:
                    high = low + stride
                    break
                low += stride
                stride <<= 1
            else:
                if low < size and held(hashes[size - 1], 0) & live == live:
                    low = size
            if low == size:
                groups.append((live, size))
                break
            high = min(high, size)
            while high - low > 1:
                middle = (low + high) >> 1
                if held(hashes[middle - 1], 0) & live == live:
                    low = middle
                else:
                    high = middle
            rest = held(hashes[low], 0) & live
            groups.append((live & ~rest, low))
            live = rest
            depth = low + 1
        return groups

    def insert(self, slot: int, chain: Chain) -> None:
        """The slot's engine is about to hold the whole chain: add what is new, touch the rest, evict what no longer fits."""
        holding = self._open[slot]
        checkpoints = holding.checkpoints
        hashes, ends = chain.hashes, chain.ends
        masks = self._masks
        bit = holding.bit
        known = len(hashes)
        while known and hashes[known - 1] not in checkpoints:
            known -= 1
            key = hashes[known]
            distance = ends[known] - ends[known - 1] if known else ends[0]
            checkpoints[key] = _DISTANCES[distance] if distance <= MAX_STEP else distance
            holding.weight += distance
            mask = masks.get(key)
            masks[key] = bit if mask is None else mask | bit
        touch = checkpoints.move_to_end
        for key in reversed(hashes[:known]):
            touch(key)
        most = self._limit // len(self._open)
        if holding.weight > holding.capacity or len(checkpoints) > most:
            self._evict(holding, most)

    def _evict(self, holding: _Holding, most: int) -> None:
        checkpoints = holding.checkpoints
        while checkpoints and (holding.weight > holding.capacity or len(checkpoints) > most):
            key, distance = checkpoints.popitem(last=False)
            holding.weight -= distance
            self._clear(key, holding.bit)

    def _clear(self, key: int, bit: int) -> None:
        mask = self._masks[key] & ~bit
        if mask:
            self._masks[key] = mask
        else:
            del self._masks[key]

    def sweep(self, budget: int = 1000) -> bool:
        """Clear up to ``budget`` checkpoints of closed slots. True while some are left."""
        while self._closed and budget > 0:
            holding = self._closed[-1]
            while holding.checkpoints and budget > 0:
                key, _ = holding.checkpoints.popitem()
                self._clear(key, holding.bit)
                budget -= 1
            if not holding.checkpoints:
                self._closed.pop()
                self._free.append(holding.bit.bit_length() - 1)
        return bool(self._closed)

    def held(self, slot: int) -> tuple[int, int]:
        """Checkpoints and bytes of prompt that the slot holds."""
        holding = self._open[slot]
        return len(holding.checkpoints), holding.weight

    def fill(self, slot: int) -> float:
        """Share of the slot's capacity that is held."""
        holding = self._open[slot]
        return holding.weight / holding.capacity

    def __len__(self) -> int:
        """Different checkpoints in the index, those of closed slots that are not swept yet included."""
        return len(self._masks)


def slots_of(mask: int) -> Iterator[int]:
    """The slots of a mask, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
