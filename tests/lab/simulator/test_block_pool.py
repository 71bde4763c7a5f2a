"""Block hashes, and the pool against a naive model of vLLM's."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from warmroute_lab.simulator.blocks import BlockPool, chain_seed, hash_packed, hash_segments

BLOCKS = 9


class NaivePool:
    """vLLM's block pool as its source tells it: block objects and a free queue, everything by the book."""

    def __init__(self, blocks: int) -> None:
        self.queue = list(range(1, blocks))
        self.users = dict.fromkeys(self.queue, 0)
        self.hash_of: dict[int, int | None] = dict.fromkeys(self.queue)

    def match(self, hashes: list[int]) -> list[int]:
        blocks = []
        for value in hashes:
            holders = [block for block, held in self.hash_of.items() if held == value]
            if not holders:
                break
            blocks.append(holders[0])
        return blocks

    def take(self, blocks: list[int]) -> None:
        for block in blocks:
            if not self.users[block]:
                self.queue.remove(block)
            self.users[block] += 1

    def allocate(self, count: int) -> list[int]:
        blocks = [self.queue.pop(0) for _ in range(count)]
        for block in blocks:
            self.hash_of[block] = None
            self.users[block] = 1
        return blocks

    def register(self, blocks: list[int], hashes: list[int]) -> None:
        self.hash_of.update(zip(blocks, hashes, strict=True))

    def release(self, blocks: list[int]) -> None:
        freed = []
        for block in reversed(blocks):
            self.users[block] -= 1
            if not self.users[block]:
                freed.append(block)
        blank = [block for block in freed if self.hash_of[block] is None]
        self.queue[:0] = reversed(blank)
        self.queue += [block for block in freed if self.hash_of[block] is not None]

    @property
    def held(self) -> list[int]:
        return sorted(value for value in self.hash_of.values() if value is not None)


chains = st.sampled_from([(1,), (1, 2), (1, 2, 3), (1, 2, 4), (5, 6, 7, 8), (9,)])


@given(st.lists(st.tuples(st.sampled_from(["start", "start", "end"]), chains, st.integers(0, 3)), max_size=60))
def test_pool_holds_what_a_naive_pool_holds(operations: list[tuple[str, tuple[int, ...], int]]) -> None:
    """Requests come (look up, take, allocate, register all but ``blank`` blocks) and go, in any order."""
    real, naive = BlockPool(BLOCKS), NaivePool(BLOCKS)
    live: list[tuple[list[int], list[int]]] = []
    for kind, chain, number in operations:
        if kind == "end":
            if live:
                ours, theirs = live.pop(number % len(live))
                real.release(ours)
                naive.release(theirs)
        else:
            ours, theirs = real.match(chain, len(chain)), naive.match(list(chain))
            assert len(ours) == len(theirs)
            missing = len(chain) - len(ours) + number % 2  # the odd block stays without a hash
            idle = real.idle_among(ours)
            assert idle == sum(not naive.users[block] for block in theirs)
            if missing + idle <= real.free:
                real.take(ours)
                naive.take(theirs)
                known = len(ours)
                ours, theirs = ours + real.allocate(missing), theirs + naive.allocate(missing)
                assert len(set(ours)) == len(ours)
                real.register(ours[known : len(chain)], chain[known:])
                naive.register(theirs[known : len(chain)], list(chain[known:]))
                live.append((ours, theirs))
        assert real.free == len(naive.queue)
        assert [value for value in range(1, 10) if real.match([value], 1)] == sorted(set(naive.held))
    for ours, _ in live:
        real.release(ours)
    assert real.free == real.usable


def test_the_tail_of_a_chain_is_evicted_before_its_head() -> None:
    pool = BlockPool(5)
    blocks = pool.allocate(4)
    pool.register(blocks, [1, 2, 3, 4])
    pool.release(blocks)
    pool.allocate(2)
    assert len(pool.match([1, 2, 3, 4], 4)) == 2
    assert pool.evictions == 2


def test_blocks_without_a_hash_are_taken_first() -> None:
    pool = BlockPool(5)
    blocks = pool.allocate(4)
    pool.register(blocks[:3], [1, 2, 3])
    pool.release(blocks)
    assert pool.allocate(1) == [blocks[3]]
    assert pool.evictions == 0


def test_a_twin_keeps_the_hash_alive() -> None:
    pool = BlockPool(4)
    first, second = pool.allocate(1), pool.allocate(1)
    pool.register(first, [7])
    pool.register(second, [7])
    pool.release(first)
    pool.release(second)
    pool.allocate(2)
    assert pool.match([7], 1) == second
    pool.allocate(1)
    assert pool.match([7], 1) == []


def test_reuse_without_eviction_does_not_grow() -> None:
    pool = BlockPool(50)
    blocks = pool.allocate(20)
    pool.register(blocks, range(20))
    pool.release(blocks)
    for _ in range(1000):
        pool.take(blocks)
        pool.release(blocks)
    assert len(pool._idle) <= 2 * pool.usable + len(blocks)
    assert pool.free == pool.usable
    assert pool.match(range(20), 20) == blocks


def hashes(token_ids: list[int], seed: int = 0) -> list[int]:
    return hash_packed(array("I", token_ids).tobytes(), 16, seed)


def test_hashes_chain() -> None:
    one, other = list(range(64)), [*range(16), 99, *range(17, 64)]
    a, b = hashes(one), hashes(other)
    assert len(a) == 4
    assert a[0] == b[0]
    assert not set(a[1:]) & set(b)
    assert hashes(one[:63]) == a[:3]
    assert not set(a) & set(hashes(one, chain_seed(adapter="lora")))
    assert not set(a) & set(hashes(one, chain_seed(cache_salt="salt")))
    assert chain_seed(adapter="x") != chain_seed(cache_salt="x")


def test_an_empty_segment_is_nothing() -> None:
    assert hash_segments([(1, 20), (2, 0), (3, 20)], 16) == hash_segments([(1, 20), (3, 20)], 16)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 40)), max_size=8))
def test_segments_hash_like_their_tokens(segments: list[tuple[int, int]]) -> None:
    """Two prompts share exactly the blocks up to the first token that differs."""
    whole = hash_segments(segments, 16)
    tokens = [(identity, offset) for identity, length in segments for offset in range(length)]
    assert len(whole) == len(tokens) // 16
    longer = hash_segments([*segments, (9, 100)], 16)
    assert longer[: len(whole)] == whole
    if segments:
        changed = hash_segments([*segments[:-1], (8, segments[-1][1])], 16)
        same = (len(tokens) - segments[-1][1]) // 16
        assert changed[:same] == whole[:same]
        assert not set(changed[same:]) & set(whole)
