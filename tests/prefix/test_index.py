"""The index against a naive model: every operation, in any order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from warmroute.prefix import chain as chains
from warmroute.prefix.chain import Chain
from warmroute.prefix.index import PrefixIndex, slots_of
from warmroute.request.inference import PromptPart


def chain_of(words: tuple[int, ...]) -> Chain:
    """A prompt of parts with one checkpoint each: equal words give equal prefixes."""
    return chains.build(b"", [PromptPart(bytes([word]), 8 + word) for word in words])


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple)


class IndexMachine(RuleBasedStateMachine):
    """Each slot of the model is a list of (prefix, weight) pairs in order of use, evicted from the front."""

    @initialize()
    def start(self) -> None:
        self.index = PrefixIndex(limit=1_000_000)
        self.model: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        self.capacity: dict[int, int] = {}

    @rule(capacity=st.integers(1, 400))
    def open(self, capacity: int) -> None:
        slot = self.index.open(capacity)
        assert slot not in self.model
        self.model[slot] = []
        self.capacity[slot] = capacity

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.model)))
        self.index.close(slot)
        del self.model[slot]

    @rule(budget=st.integers(1, 20))
    def sweep(self, budget: int) -> None:
        self.index.sweep(budget)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), capacity=st.integers(1, 400))
    def resize(self, data: st.DataObject, capacity: int) -> None:
        slot = data.draw(st.sampled_from(sorted(self.model)))
        self.index.resize(slot, capacity)
        self.capacity[slot] = capacity

    @precondition(lambda self: self.model)
    @rule(data=st.data(), words=prompts)
    def insert(self, data: st.DataObject, words: tuple[int, ...]) -> None:
        slot = data.draw(st.sampled_from(sorted(self.model)))
        self.index.insert(slot, chain_of(words))
        held = self.model[slot]
        for k in range(len(words), 0, -1):
            entry = (words[:k], 8 + words[k - 1])
            if entry in held:
                held.remove(entry)
            held.append(entry)
        while held and sum(weight for _, weight in held) > self.capacity[slot]:
            held.pop(0)

    @rule(data=st.data(), words=prompts)
    def match(self, data: st.DataObject, words: tuple[int, ...]) -> None:
        slots = data.draw(st.sets(st.sampled_from(sorted(self.model)))) if self.model else set()
        groups = self.index.match(chain_of(words), sum(1 << slot for slot in slots))
        depths = [depth for _, depth in groups]
        assert depths == sorted(set(depths))
        found = {slot: depth for mask, depth in groups for slot in slots_of(mask)}
        for slot in slots:
            held = {prefix for prefix, _ in self.model[slot]}
            expected = 0
            while expected < len(words) and words[: expected + 1] in held:
                expected += 1
            assert found.pop(slot, 0) == expected
        assert not found

    @invariant()
    def holds_the_same(self) -> None:
        for slot, held in getattr(self, "model", {}).items():
            assert self.index.held(slot) == (len(held), sum(weight for _, weight in held))
            prefixes = {prefix for prefix, _ in held}
            assert all(len(p) == 1 or p[:-1] in prefixes for p in prefixes), "a slot must be closed under prefixes"


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(stateful_step_count=40)


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 300)), max_size=12))
def test_gallop_finds_every_depth(held: list[tuple[int, int]]) -> None:
    chain = chain_of(tuple(k % 3 for k in range(300)))
    index = PrefixIndex()
    slots = [index.open(1 << 30) for _ in range(8)]
    deepest = dict.fromkeys(slots, 0)
    for slot, depth in held:
        index.insert(slot, Chain(chain.hashes[:depth], chain.ends[:depth], chain.ends[depth - 1]))
        deepest[slot] = max(deepest[slot], depth)
    groups = index.match(chain, (1 << 8) - 1)
    assert {s: d for mask, d in groups for s in slots_of(mask)} == {s: d for s, d in deepest.items() if d}


def test_the_limit_is_shared_among_the_slots() -> None:
    index = PrefixIndex(limit=1000)
    slots = [index.open(1 << 40) for _ in range(4)]
    for k in range(300):
        for slot in slots:
            index.insert(slot, chain_of((k % 3, slot % 3, (k // 3) % 3, k % 7 % 3, k % 5 % 3)))
            index.insert(slot, chains.build(str((k, slot)).encode(), [PromptPart(bytes(500), 500)]))
    assert all(index.held(slot)[0] <= 250 for slot in slots)
    assert len(index) <= 1000


def test_a_closed_slot_is_forgotten_at_once_and_its_memory_returned() -> None:
    index = PrefixIndex()
    slot = index.open(1 << 30)
    chain = chain_of((0, 1, 2) * 50)
    index.insert(slot, chain)
    index.close(slot)
    fresh = index.open(1 << 30)
    assert fresh != slot
    assert index.match(chain, 1 << fresh) == []
    while index.sweep(10):
        pass
    assert len(index) == 0
    assert index.open(1) == slot


def test_a_chain_that_is_used_again_still_loses_its_tail_first() -> None:
    index = PrefixIndex()
    slot = index.open(1 << 30)
    chain, other = chain_of((0, 1, 2, 0, 1)), chain_of((2,))
    index.insert(slot, chain)
    index.insert(slot, chain)
    index.resize(slot, chain.ends[1] + other.weight)
    index.insert(slot, other)
    assert index.match(chain, 1 << slot) == [(1 << slot, 2)]
