"""The KV cache of one engine: block hashes, the pool of blocks and its eviction order, as in vLLM. WITHOUT IO.

A block holds ``block_size`` tokens. Only full blocks have a hash. A block's hash covers all tokens before it, so equal
hashes mean equal prefixes. Blocks without a user stay cached until they are evicted.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from xxhash import xxh3_64_intdigest

Segment: TypeAlias = tuple[int, int]
"""A part of a prompt: an identity and a length in tokens. Equal identities mean equal tokens."""


def chain_seed(*, adapter: str | None = None, cache_salt: str | None = None) -> int:
    """The parent hash of a first block. Prompts with different LoRA adapters or cache salts share no block."""
    if adapter is None and cache_salt is None:
        return 0
    return xxh3_64_intdigest(f"{adapter or ''}\0{cache_salt or ''}".encode())


def hash_packed(packed: bytes, block_size: int, seed: int = 0) -> list[int]:
    """Hashes of the full blocks of token ids, packed in four bytes each."""
    width = 4 * block_size
    hashes, parent = [], seed
    for start in range(0, len(packed) - width + 1, width):
        parent = xxh3_64_intdigest(packed[start : start + width], parent)
        hashes.append(parent)
    return hashes


def hash_segments(segments: Iterable[Segment], block_size: int, seed: int = 0) -> list[int]:
    """Hashes of the full blocks of a prompt that is given as segments."""
    hashes: list[int] = []
    parent, filled = seed, 0
    pieces: tuple[int, ...] = ()  # identities and lengths of the tokens in the current block
    for identity, tokens in segments:
        if not tokens:
            continue
        offset = 0
        if filled:
            offset = min(block_size - filled, tokens)
            pieces, filled = (*pieces, identity, offset), filled + offset
            if filled < block_size:
                continue
            parent = hash((parent, *pieces))
            hashes.append(parent)
        end = offset + (tokens - offset) // block_size * block_size
        for start in range(offset, end, block_size):
            parent = hash((parent, identity, start))
            hashes.append(parent)
        filled = tokens - end
        pieces = (identity, end, filled)
    return hashes


class BlockPool:
    """The blocks with their users, their hashes, and the eviction order.

    Blocks without a hash are allocated first, then cached ones, least recently freed first. :meth:`release` frees a chain
    from its tail, so its head stays longest. Several blocks may have one hash, if concurrent requests computed equal tokens;
    they are not merged. A second tier keeps the hashes of the latest blocks that were computed or used. It is written
    through, so it has copies of the first tier's blocks.
    """

    def __init__(self, blocks: int, tier_blocks: int = 0) -> None:
        """A pool of ``blocks`` blocks and a second tier of ``tier_blocks``. As in vLLM, block 0 is never allocated."""
        self._tier: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._tier_blocks = tier_blocks
        self._ends: set[int] = set()
        self.usable = blocks - 1
        self.evictions = 0
        """Cached blocks that were evicted since the start."""
        self._users = [0] * blocks
        self._hash_of: list[int | None] = [None] * blocks
        self._holder: dict[int, int] = {}
        self._duplicates: dict[int, list[int]] = {}
        self._blank = list(range(blocks - 1, 0, -1))
        # Cached blocks without a user, least recently freed first. A block that is used again keeps its entry here; _stale
        # counts these entries of a block. They come before its valid one, so that many are skipped.
        self._idle: deque[int] = deque()
        self._idle_count = 0
        self._stale = [0] * blocks

    @property
    def free(self) -> int:
        """Blocks without a user, cached or not."""
        return len(self._blank) + self._idle_count

    def match(self, hashes: Sequence[int], limit: int) -> list[int]:
        """The blocks of the longest cached prefix of ``hashes[:limit]``. Changes nothing."""
        holder = self._holder
        blocks: list[int] = []
        width = 32
        for start in range(0, limit, width):
            found = list(map(holder.get, hashes[start : min(start + width, limit)]))
            if None in found:
                blocks += found[: found.index(None)]  # type: ignore[arg-type]
                break
            blocks += found  # type: ignore[arg-type]
        return blocks

    def tier_match(self, hashes: Sequence[int], start: int, limit: int) -> int:
        """Blocks of ``hashes[start:limit]`` that the second tier has without a gap. They are touched, tail first."""
        end = start
        while end < limit and hashes[end] in self._tier:
            end += 1
        for value in reversed(hashes[start:end]):
            self._tier.move_to_end(value)
        return end - start

    def mark_end(self, value: int) -> None:
        """A prompt ends at the block with this hash: layers with a state keep it there."""
        self._ends.add(value)

    def up_to_an_end(self, blocks: list[int]) -> list[int]:
        """The blocks up to the last one at which a prompt ended."""
        for length in range(len(blocks), 0, -1):
            if self._hash_of[blocks[length - 1]] in self._ends:
                return blocks[:length]
        return []

    def reset(self) -> None:
        """Forget the content of every block without a user, and of the second tier."""
        kept = [block for block, users in enumerate(self._users) if users and self._hash_of[block] is not None]
        for block in self._idle:
            if self._stale[block]:
                self._stale[block] -= 1
            else:
                self._hash_of[block] = None
                self._blank.append(block)
        self._idle, self._idle_count = deque(), 0
        self._holder, self._duplicates = {}, {}
        self.register(kept, [value for block in kept if (value := self._hash_of[block]) is not None])
        self._tier.clear()
        self._ends.clear()

    def idle_among(self, blocks: Iterable[int]) -> int:
        """Number of ``blocks`` without a user. They count as free until they are taken."""
        users = self._users
        return sum(not users[block] for block in blocks)

    def take(self, blocks: Iterable[int]) -> None:
        """Add a user to cached blocks."""
        users, stale = self._users, self._stale
        for block in blocks:
            if not users[block]:
                stale[block] += 1
                self._idle_count -= 1
            users[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks for new tokens and evict their content. The caller has checked :attr:`free`."""
        blank, users = self._blank, self._users
        kept = max(0, len(blank) - count)
        blocks = blank[kept:]
        blocks.reverse()
        del blank[kept:]
        if len(blocks) < count:
            self._evict(count - len(blocks), blocks)
        for block in blocks:
            users[block] = 1
        return blocks

    def register(self, blocks: Sequence[int], hashes: Sequence[int]) -> None:
        """Give blocks in use the hashes of their tokens, which may be computed only at the end of the step."""
        hash_of, holder = self._hash_of, self._holder
        for block, value in zip(blocks, hashes, strict=True):
            hash_of[block] = value
            if holder.setdefault(value, block) != block:
                self._duplicates.setdefault(value, []).append(block)
        if self._tier_blocks:
            self._write_through(hashes)

    def release(self, blocks: Sequence[int]) -> None:
        """Remove a user from a request's blocks, given head first. The tail will be evicted before the head."""
        users, hash_of, idle = self._users, self._hash_of, self._idle
        known = len(idle)
        for block in reversed(blocks):
            left = users[block] = users[block] - 1
            if not left:
                if hash_of[block] is None:
                    self._blank.append(block)
                else:
                    idle.append(block)
        self._idle_count += len(idle) - known
        if len(idle) > 2 * self.usable:
            self._drop_stale()

    def _write_through(self, hashes: Sequence[int]) -> None:
        tier = self._tier
        for value in reversed(hashes):
            tier[value] = None
            tier.move_to_end(value)
        while len(tier) > self._tier_blocks:
            tier.popitem(last=False)

    def _evict(self, count: int, into: list[int]) -> None:
        """Evict the ``count`` least recently freed blocks and append them to ``into``."""
        take, stale, hash_of, holder = self._idle.popleft, self._stale, self._hash_of, self._holder
        duplicates = self._duplicates
        left = count
        while left:
            block = take()
            if stale[block]:
                stale[block] -= 1
                continue
            left -= 1
            into.append(block)
            value = hash_of[block]
            hash_of[block] = None
            if duplicates and value in duplicates:
                self._forget_duplicate(value, block)
            else:
                del holder[value]  # type: ignore[arg-type]
                self._ends.discard(value)
        self._idle_count -= count
        self.evictions += count

    def _drop_stale(self) -> None:
        """Remove stale entries from the queue of idle blocks."""
        stale, kept = self._stale, []
        for block in self._idle:
            if stale[block]:
                stale[block] -= 1
            else:
                kept.append(block)
        self._idle = deque(kept)

    def _forget_duplicate(self, value: int, block: int) -> None:
        others = self._duplicates[value]
        if self._holder[value] == block:
            self._holder[value] = others.pop(0)
        else:
            others.remove(block)
        if not others:
            del self._duplicates[value]
