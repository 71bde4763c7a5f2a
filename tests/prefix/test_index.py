"""The index against a naive model: every operation, in any order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from warmroute.prefix import chain as chains
from warmroute.prefix.chain import Chain
from warmroute.prefix.index import SEGMENT_SIZE, UNCONFIRMED_SHARE, PrefixIndex, holders_of
from warmroute.request.inference import PromptPart


def chain_of(words: tuple[int, ...]) -> Chain:
    """A prompt of parts with one checkpoint each: equal words give equal prefixes."""
    return chains.build(b"", [PromptPart(bytes([word]), 8 + word) for word in words])


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple)
short_prompts = st.lists(st.integers(0, 1), min_size=1, max_size=5).map(tuple)


class IndexMachine(RuleBasedStateMachine):
    """Each holder of the model is a list of (prefix, weight) pairs in order of use, evicted from the front."""

    @initialize()
    def start(self) -> None:
        self.index = PrefixIndex(limit=1_000_000)
        self.model: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        self.capacity: dict[int, int] = {}

    @rule(capacity=st.integers(1, 400))
    def open(self, capacity: int) -> None:
        holder = self.index.open(capacity)
        assert holder not in self.model
        self.model[holder] = []
        self.capacity[holder] = capacity

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(sorted(self.model)))
        self.index.close(holder)
        del self.model[holder]

    @rule(budget=st.integers(1, 20))
    def sweep(self, budget: int) -> None:
        self.index.sweep(budget)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), capacity=st.integers(1, 400))
    def resize(self, data: st.DataObject, capacity: int) -> None:
        holder = data.draw(st.sampled_from(sorted(self.model)))
        self.index.resize(holder, capacity)
        self.capacity[holder] = capacity

    @precondition(lambda self: self.model)
    @rule(data=st.data(), words=prompts)
    def insert(self, data: st.DataObject, words: tuple[int, ...]) -> None:
        holder = data.draw(st.sampled_from(sorted(self.model)))
        self.index.insert(holder, chain_of(words))
        held = self.model[holder]
        for k in range(len(words), 0, -1):
            entry = (words[:k], 8 + words[k - 1])
            if entry in held:
                held.remove(entry)
            held.append(entry)
        while held and sum(weight for _, weight in held) > self.capacity[holder]:
            held.pop(0)

    @rule(data=st.data(), words=prompts)
    def match(self, data: st.DataObject, words: tuple[int, ...]) -> None:
        holders = data.draw(st.sets(st.sampled_from(sorted(self.model)))) if self.model else set()
        groups = self.index.match(chain_of(words), sum(1 << holder for holder in holders))
        depths = [depth for _, depth in groups]
        assert depths == sorted(set(depths))
        found = {holder: depth for mask, depth in groups for holder in holders_of(mask)}
        for holder in holders:
            held = {prefix for prefix, _ in self.model[holder]}
            expected = 0
            while expected < len(words) and words[: expected + 1] in held:
                expected += 1
            assert found.pop(holder, 0) == expected
        assert not found

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        for holder, held in getattr(self, "model", {}).items():
            assert self.index.held(holder) == (len(held), sum(weight for _, weight in held))
            prefixes = {prefix for prefix, _ in held}
            assert all(len(p) == 1 or p[:-1] in prefixes for p in prefixes), "a holder must be closed under prefixes"


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(stateful_step_count=40)


class Checkpoints:
    """One holder, checkpoint by checkpoint: each with its distance from the one before it, least recently used first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.confirmed: dict[int, int] = {}
        self.unconfirmed: dict[int, int] = {}
        self.used: dict[int, int] = {}
        """The number of each checkpoint's last insertion among all insertions."""

    def has(self, key: int) -> bool:
        return key in self.confirmed or key in self.unconfirmed

    def insert(self, chain: Chain) -> int:
        confirmed_before = [k for k, key in enumerate(chain.hashes, 1) if key in self.confirmed]
        for key, distance in reversed(distances(chain)):
            self.unconfirmed.pop(key, None)
            self.confirmed.pop(key, None)
            self.confirmed[key] = distance
        evict(self.confirmed, self.capacity)
        return max(confirmed_before, default=0)

    def insert_unconfirmed(self, chain: Chain) -> None:
        accepted = False
        for key, distance in reversed(distances(chain)):
            accepted = accepted or key in self.confirmed
            among = self.confirmed if accepted else self.unconfirmed
            self.unconfirmed.pop(key, None)
            among.pop(key, None)
            among[key] = distance
        evict(self.unconfirmed, int(UNCONFIRMED_SHARE * self.capacity))

    def known(self, chain: Chain) -> tuple[int, int]:
        held = 0
        while held < len(chain.hashes) and self.has(chain.hashes[held]):
            held += 1
        return max(k for k in range(held + 1) if not k or chain.hashes[k - 1] in self.confirmed), held

    def held(self) -> tuple[int, int]:
        both = [*self.confirmed.values(), *self.unconfirmed.values()]
        return len(both), sum(both)


def distances(chain: Chain) -> list[tuple[int, int]]:
    return [(key, end - before) for key, end, before in zip(chain.hashes, chain.ends, (0, *chain.ends), strict=False)]


def evict(checkpoints: dict[int, int], most: int) -> None:
    while sum(checkpoints.values()) > most:
        del checkpoints[next(iter(checkpoints))]


class CheckpointsMachine(RuleBasedStateMachine):
    """Several holders, all operations in any order, against :class:`Checkpoints`."""

    @initialize(capacities=st.lists(st.integers(8, 400), min_size=2, max_size=3))
    def start(self, capacities: list[int]) -> None:
        self.index = PrefixIndex()
        self.models = {self.index.open(capacity): Checkpoints(capacity) for capacity in capacities}
        self.uses = [0]
        """``index.uses`` after each insertion."""

    def inserted(self, model: Checkpoints, words: tuple[int, ...]) -> None:
        model.used |= dict.fromkeys(chain_of(words).hashes, len(self.uses))
        self.uses.append(self.index.uses)

    def one(self, holder: int) -> tuple[int, Checkpoints]:
        holder = sorted(self.models)[holder % len(self.models)]
        return holder, self.models[holder]

    @rule(holder=st.integers(0, 2), capacity=st.integers(8, 400))
    def restart(self, holder: int, capacity: int) -> None:
        holder, _ = self.one(holder)
        self.index.close(holder)
        del self.models[holder]
        self.models[self.index.open(capacity)] = Checkpoints(capacity)

    @rule(budget=st.integers(1, 3))
    def sweep(self, budget: int) -> None:
        self.index.sweep(budget)

    @rule(holder=st.integers(0, 2), words=short_prompts)
    def insert(self, holder: int, words: tuple[int, ...]) -> None:
        holder, model = self.one(holder)
        assert self.index.insert(holder, chain_of(words)) == model.insert(chain_of(words))
        self.inserted(model, words)

    @rule(holder=st.integers(0, 2), words=short_prompts)
    def insert_unconfirmed(self, holder: int, words: tuple[int, ...]) -> None:
        holder, model = self.one(holder)
        self.index.insert_unconfirmed(holder, chain_of(words))
        model.insert_unconfirmed(chain_of(words))
        self.inserted(model, words)

    @rule(holder=st.integers(0, 2), words=short_prompts)
    def discard(self, holder: int, words: tuple[int, ...]) -> None:
        holder, model = self.one(holder)
        self.index.discard(holder, chain_of(words))
        for key in chain_of(words).hashes:
            model.unconfirmed.pop(key, None)

    @rule(holder=st.integers(0, 2), words=short_prompts, depth=st.integers(0, 4), ago=st.integers(0, 4))
    def remove(self, holder: int, words: tuple[int, ...], depth: int, ago: int) -> None:
        holder, model = self.one(holder)
        latest = max(0, len(self.uses) - 1 - ago)
        self.index.remove(holder, chain_of(words), depth, until=self.uses[latest])
        for key in chain_of(words).hashes[depth:]:
            if model.used.get(key, 0) <= latest:
                model.confirmed.pop(key, None)
                model.unconfirmed.pop(key, None)

    @rule(words=short_prompts)
    def match(self, words: tuple[int, ...]) -> None:
        chain = chain_of(words)
        groups = self.index.match(chain, sum(1 << holder for holder in self.models))
        found = {holder: depth for mask, depth in groups for holder in holders_of(mask)}
        assert len(found) == sum(mask.bit_count() for mask, _ in groups), "groups must be disjoint"
        assert found == {holder: depth for holder, model in self.models.items() if (depth := model.known(chain)[1])}
        for holder, model in self.models.items():
            assert self.index.known(holder, chain) == model.known(chain)

    @invariant()
    def holds_what_the_models_hold(self) -> None:
        for holder, model in getattr(self, "models", {}).items():
            assert self.index.held(holder) == model.held()

    def teardown(self) -> None:
        for holder in getattr(self, "models", {}):
            self.index.close(holder)
        while hasattr(self, "index") and self.index.sweep():
            pass
        assert not hasattr(self, "index") or len(self.index) == 0


TestCheckpoints = CheckpointsMachine.TestCase
TestCheckpoints.settings = settings(stateful_step_count=40)


class ContradictoryMachine(RuleBasedStateMachine):
    """Chains that contradict each other, as after a collision of hashes: no operation fails, and nothing is left over."""

    chains = st.lists(st.integers(0, 4), min_size=1, max_size=6).map(
        lambda hashes: Chain(hashes, range(10, 10 * len(hashes) + 10, 10), 10 * len(hashes))
    )

    @initialize()
    def start(self) -> None:
        self.index = PrefixIndex()
        self.open = [self.index.open(80), self.index.open(200)]

    @rule(place=st.integers(0, 1), chain=chains)
    def insert(self, place: int, chain: Chain) -> None:
        self.index.insert(self.open[place], chain)

    @rule(place=st.integers(0, 1), chain=chains)
    def insert_unconfirmed(self, place: int, chain: Chain) -> None:
        self.index.insert_unconfirmed(self.open[place], chain)

    @rule(place=st.integers(0, 1), chain=chains, depth=st.integers(0, 3))
    def remove(self, place: int, chain: Chain, depth: int) -> None:
        self.index.remove(self.open[place], chain, depth, until=self.index.uses)

    @rule(place=st.integers(0, 1), chain=chains)
    def look(self, place: int, chain: Chain) -> None:
        self.index.discard(self.open[place], chain)
        self.index.known(self.open[place], chain)
        assert all(depth <= len(chain.hashes) for _, depth in self.index.match(chain, 3))

    def teardown(self) -> None:
        for holder in getattr(self, "open", ()):
            self.index.close(holder)
        while hasattr(self, "index") and self.index.sweep():
            pass
        assert not hasattr(self, "index") or len(self.index) == 0


TestContradictory = ContradictoryMachine.TestCase
TestContradictory.settings = settings(stateful_step_count=40)


def test_what_another_holder_split_still_loses_its_tail_first() -> None:
    index = PrefixIndex()
    one, other = index.open(1 << 30), index.open(1 << 30)
    chain, branch, later = chain_of((0, 1, 2, 0, 1)), chain_of((0, 1, 1)), chain_of((2,))
    index.insert(one, chain)
    index.insert(other, branch)
    index.resize(one, chain.ends[2] + later.prompt_bytes)
    index.insert(one, later)
    assert index.match(chain, 1 << one) == [(1 << one, 3)]


def test_what_other_holders_split_twice_loses_one_checkpoint_after_the_other() -> None:
    index = PrefixIndex()
    one, other = index.open(1 << 30), index.open(1 << 30)
    chain = conversation(1, length=6)
    index.insert(one, chain)
    for depth in (4, 2):  # the second one splits the first part again
        index.insert(other, Chain([*chain.hashes[:depth], 90 + depth], chain.ends[: depth + 1], chain.ends[depth]))
    for later, depth in enumerate((5, 4, 3, 2, 1, 0), 2):
        index.resize(one, 1000 * (depth + later - 1))
        index.insert(one, conversation(later, length=1))
        assert index.known(one, chain) == (depth, depth)
        assert index.held(one) == (depth + later - 1, 1000 * (depth + later - 1))


def test_what_comes_before_a_confirmed_checkpoint_is_confirmed() -> None:
    index = PrefixIndex()
    holder = index.open(100_000)
    index.insert(holder, conversation(1))
    index.remove(holder, conversation(1, length=4), 0, until=index.uses)
    index.insert_unconfirmed(holder, conversation(1))
    index.discard(holder, conversation(1))
    assert index.known(holder, conversation(1)) == (10, 10)


def test_a_conversation_of_one_holder_is_one_segment() -> None:
    index = PrefixIndex()
    holder = index.open(1 << 30)
    for turns in range(1, 50):
        index.insert(holder, chain_of((0, 1) * turns))
    assert index.size(holder) == 98 + SEGMENT_SIZE


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 300)), max_size=12))
def test_match_finds_every_depth(held: list[tuple[int, int]]) -> None:
    chain = chain_of(tuple(k % 3 for k in range(300)))
    index = PrefixIndex()
    holders = [index.open(1 << 30) for _ in range(8)]
    deepest = dict.fromkeys(holders, 0)
    for holder, depth in held:
        index.insert(holder, Chain(chain.hashes[:depth], chain.ends[:depth], chain.ends[depth - 1]))
        deepest[holder] = max(deepest[holder], depth)
    groups = index.match(chain, (1 << 8) - 1)
    assert {s: d for mask, d in groups for s in holders_of(mask)} == {s: d for s, d in deepest.items() if d}


def test_the_limit_is_shared_among_the_holders() -> None:
    index = PrefixIndex(limit=1000)
    holders = [index.open(1 << 40) for _ in range(4)]
    for k in range(300):
        for holder in holders:
            index.insert(holder, chain_of((k % 3, holder % 3, (k // 3) % 3, k % 7 % 3, k % 5 % 3)))
            index.insert(holder, chains.build(str((k, holder)).encode(), [PromptPart(bytes(500), 500)]))
    assert all(index.held(holder)[0] <= 250 for holder in holders)
    assert len(index) <= 1000


def filled(index: PrefixIndex, holder: int, prompts: int) -> None:
    """The holder has that many prompts of 10 checkpoints that no other holder has."""
    for number in range(prompts):
        index.insert(holder, conversation(1000 * holder + number))


@pytest.mark.parametrize("budget", [1, 1000])
def test_holders_without_insertions_come_down_to_their_share_by_sweeps(budget: int) -> None:
    """One holder after the other is opened and filled; each leaves a smaller share to those before it."""
    index = PrefixIndex(limit=1000)
    gone, *holders = [index.open(1 << 40)]
    filled(index, gone, 100)
    for _ in range(20):
        holders.append(index.open(1 << 40))
        filled(index, holders[-1], 100)
    assert sum(map(index.size, holders)) > 2500
    index.close(gone)
    while index.sweep(budget):
        pass
    assert all(0 < index.size(holder) <= 1000 // 20 for holder in holders)
    assert sum(map(index.size, holders)) <= 1000
    latest = conversation(1000 * holders[0] + 99)
    assert index.match(latest, 1 << holders[0]), "the oldest go first"


def test_a_slice_of_the_sweep_takes_off_few_segments() -> None:
    index = PrefixIndex(limit=2000)
    assert not index.sweep(), "there is no holder yet"
    one = index.open(1 << 40)
    filled(index, one, 200)
    before = index.size(one)
    index.open(1 << 40)
    assert index.sweep(3)
    assert before - index.size(one) <= 3 * (10 + SEGMENT_SIZE)


def test_what_others_split_and_unconfirmed_prompts_come_down_in_turn() -> None:
    index = PrefixIndex(limit=2000)
    one, other = index.open(1 << 40), index.open(1 << 40)
    while index.sweep():
        pass
    filled(index, one, 200)
    assert index.size(one) <= 1000
    for number in range(1000, 1200):
        index.insert(other, conversation(1000 * one + number - 1000, length=3))
        index.insert_unconfirmed(one, conversation(number))
    assert index.size(one) > 1000
    index.sweep()
    assert index.size(one) <= 1000


def test_a_capacity_is_at_least_one_byte() -> None:
    index = PrefixIndex()
    holder = index.open(0)
    index.insert(holder, chain_of((0, 1)))
    assert (index.fill(holder), index.capacity(holder)) == (0, 1)
    index.resize(holder, 0)
    index.insert(holder, chain_of((0, 1)))
    assert (index.fill(holder), index.capacity(holder)) == (0, 1)


def test_a_closed_holder_is_forgotten_at_once_and_its_memory_returned() -> None:
    index = PrefixIndex()
    holder = index.open(1 << 30)
    chain = chain_of((0, 1, 2) * 50)
    index.insert(holder, chain)
    index.close(holder)
    fresh = index.open(1 << 30)
    assert fresh != holder
    assert index.match(chain, 1 << fresh) == []
    while index.sweep(10):
        pass
    assert len(index) == 0
    assert index.open(1) == holder


def test_a_chain_that_is_used_again_still_loses_its_tail_first() -> None:
    index = PrefixIndex()
    holder = index.open(1 << 30)
    chain, other = chain_of((0, 1, 2, 0, 1)), chain_of((2,))
    index.insert(holder, chain)
    index.insert(holder, chain)
    index.resize(holder, chain.ends[1] + other.prompt_bytes)
    index.insert(holder, other)
    assert index.match(chain, 1 << holder) == [(1 << holder, 2)]


def bytes_held(index: PrefixIndex, holder: int) -> int:
    return index.held(holder)[1]


def conversation(name: int, length: int = 10, step: int = 1000) -> Chain:
    return Chain([name * 1000 + k for k in range(length)], [step * (k + 1) for k in range(length)], step * length)


def test_an_unconfirmed_chain_is_matched_and_evicts_nothing() -> None:
    index = PrefixIndex()
    holder = index.open(20_000)
    index.insert(holder, conversation(1))
    index.insert(holder, conversation(2))
    index.insert_unconfirmed(holder, conversation(3, length=5))
    for name, depth in ((1, 10), (2, 10), (3, 5)):
        assert index.match(conversation(name), 1 << holder) == [(1 << holder, depth)]


def test_confirming_a_chain_evicts_as_its_insertion_does() -> None:
    index = PrefixIndex()
    holder = index.open(20_000)
    index.insert(holder, conversation(1))
    index.insert(holder, conversation(2))
    index.insert_unconfirmed(holder, conversation(3, length=5))
    index.insert(holder, conversation(3, length=5))
    assert bytes_held(index, holder) == 20_000
    assert index.match(conversation(1), 1 << holder) == [(1 << holder, 5)]


def test_a_rejected_chain_is_forgotten_and_what_it_shared_stays() -> None:
    index = PrefixIndex()
    holder = index.open(100_000)
    index.insert(holder, conversation(1, length=4))
    index.insert_unconfirmed(holder, conversation(1, length=9))
    index.discard(holder, conversation(1, length=9))
    assert index.match(conversation(1), 1 << holder) == [(1 << holder, 4)]
    assert bytes_held(index, holder) == 4000


def test_unconfirmed_bytes_are_bounded_and_the_oldest_go() -> None:
    index = PrefixIndex()
    holder = index.open(40_000)
    for name in range(1, 50):
        index.insert_unconfirmed(holder, conversation(name, length=5))
        assert bytes_held(index, holder) <= 10_000
    assert index.match(conversation(49), 1 << holder) == [(1 << holder, 5)]
    assert index.match(conversation(1), 1 << holder) == []


def test_a_chain_that_was_not_served_goes_back_to_what_was_held_before() -> None:
    index = PrefixIndex()
    holder = index.open(100_000)
    index.insert(holder, conversation(1, length=4))
    depth = index.insert(holder, conversation(1, length=4))
    index.insert(holder, conversation(1))
    index.remove(holder, conversation(1), depth, until=index.uses)
    assert index.match(conversation(1), 1 << holder) == [(1 << holder, 4)]
    assert bytes_held(index, holder) == 4000


def test_a_longer_chain_is_inserted_again_after_its_beginning_was_not_served() -> None:
    index = PrefixIndex()
    holder = index.open(100_000)
    depth = index.insert(holder, conversation(1, length=4))
    index.insert(holder, conversation(1))
    index.remove(holder, conversation(1, length=4), depth, until=index.uses)
    assert index.match(conversation(1), 1 << holder) == []
    index.insert(holder, conversation(1))
    assert index.match(conversation(1), 1 << holder) == [(1 << holder, len(conversation(1).hashes))]
    assert bytes_held(index, holder) == conversation(1).prompt_bytes


def test_a_chain_whose_beginning_was_not_served_is_removed_to_its_end() -> None:
    index = PrefixIndex()
    holder = index.open(100_000)
    index.insert(holder, conversation(1))
    for length in (4, 7, 10):  # the beginning, then what comes after the gap
        index.remove(holder, conversation(1, length=length), 0, until=index.uses)
        assert index.held(holder) == (10 - length, 1000 * (10 - length))


def test_what_goes_on_from_a_chain_that_was_not_served_stays() -> None:
    """Also where another holder's prompt branches off in the chain."""
    index = PrefixIndex()
    holder, other = index.open(100_000), index.open(100_000)
    index.insert(holder, conversation(1))
    index.insert(other, conversation(1, length=4))
    index.remove(holder, conversation(1, length=7), 5, until=index.uses)
    assert index.match(conversation(1), 1 << holder) == [(1 << holder, 5)]
    assert index.held(holder) == (8, 8000)
    index.insert(holder, conversation(1, length=7))
    assert index.match(conversation(1), 1 << holder) == [(1 << holder, 10)]


def test_a_closed_holder_has_nothing_to_be_removed() -> None:
    index = PrefixIndex()
    holder = index.open(100_000)
    index.insert(holder, conversation(1))
    index.close(holder)
    index.remove(holder, conversation(1), 0, until=index.uses)
    assert index.match(conversation(1), 0) == []


class AnyOrderMachine(RuleBasedStateMachine):
    """Every operation in any order: none fails, and what is counted is what is there."""

    @initialize(capacity=st.integers(8, 400))
    def start(self, capacity: int) -> None:
        self.index = PrefixIndex(limit=60)
        self.holder = self.index.open(capacity)

    @rule(words=short_prompts)
    def insert(self, words: tuple[int, ...]) -> None:
        self.index.insert(self.holder, chain_of(words))

    @rule(words=short_prompts)
    def insert_unconfirmed(self, words: tuple[int, ...]) -> None:
        self.index.insert_unconfirmed(self.holder, chain_of(words))

    @rule(words=short_prompts)
    def discard(self, words: tuple[int, ...]) -> None:
        self.index.discard(self.holder, chain_of(words))

    @rule(words=short_prompts, depth=st.integers(0, 3))
    def remove(self, words: tuple[int, ...], depth: int) -> None:
        self.index.remove(self.holder, chain_of(words), depth, until=self.index.uses)

    @invariant()
    def counts_what_is_there(self) -> None:
        if hasattr(self, "index"):
            checkpoints, prompt_bytes = self.index.held(self.holder)
            assert checkpoints == len(self.index)
            assert checkpoints <= self.index.size(self.holder) <= 60 + 4 * (4 + SEGMENT_SIZE)
            assert 8 * checkpoints <= prompt_bytes <= 10 * checkpoints


TestAnyOrder = AnyOrderMachine.TestCase
TestAnyOrder.settings = settings(stateful_step_count=40)


def test_a_closed_holders_unconfirmed_checkpoints_are_swept() -> None:
    index = PrefixIndex()
    holder = index.open(100_000)
    index.insert_unconfirmed(holder, conversation(1))
    index.close(holder)
    while index.sweep():
        pass
    assert len(index) == 0
