"""Checkpoints of other pickers' prompts in the prefix index, against a naive model and in any order of operations."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from warmroute.prefix import chain as chains
from warmroute.prefix.chain import Chain
from warmroute.prefix.index import SEGMENT_SIZE, UNCONFIRMED_SHARE, PrefixIndex, holders_of
from warmroute.prefix.remote import PROMPT_SIZE, PromptGrowth, RemotePrompt
from warmroute.request.inference import PromptPart

LIMIT = 120
PLENTY = 1 << 40

prompts = st.lists(st.integers(0, 1), min_size=1, max_size=6).map(tuple)


def chain_of(words: tuple[int, ...]) -> Chain:
    """A prompt of parts with one checkpoint each: equal words give equal prefixes."""
    return chains.build(b"", [PromptPart(bytes([word]), 10) for word in words])


def depths(index: PrefixIndex, chain: Chain, *holders: int) -> list[int]:
    """How far each holder holds the chain."""
    groups = index.match(chain, sum(1 << holder for holder in holders))
    assert [depth for _, depth in groups] == sorted({depth for _, depth in groups})
    found = {holder: depth for mask, depth in groups for holder in holders_of(mask)}
    assert len(found) == sum(mask.bit_count() for mask, _ in groups), "groups must be disjoint"
    assert all(mask for mask, _ in groups)
    return [found.get(holder, 0) for holder in holders]


def insert_remote(
    index: PrefixIndex, holder: int, chain: Chain, held: int = 0, *, confirmed: bool = True
) -> RemotePrompt:
    """Another picker has sent the chain, of which the engine held the first ``held`` checkpoints."""
    held_bytes = chain.ends[held - 1] if held else 0
    hashes, new_bytes = chain.hashes[max(0, held - 1) :], chain.prompt_bytes - held_bytes
    (prompt,) = index.insert_remote(holder, [PromptGrowth(hashes, held_bytes, new_bytes)], confirmed=confirmed)
    return prompt


def cut(chain: Chain, depth: int) -> Chain:
    return Chain(chain.hashes[:depth], chain.ends[:depth], chain.ends[depth - 1])


def test_the_deepest_checkpoint_says_how_far_a_holder_holds_a_prompt() -> None:
    index = PrefixIndex()
    one, other, third = index.open(PLENTY), index.open(PLENTY), index.open(PLENTY)
    chain = chain_of((0,) * 8)
    index.insert(one, cut(chain, 3))
    insert_remote(index, one, cut(chain, 6), 5)
    insert_remote(index, other, cut(chain, 3), 1, confirmed=False)
    insert_remote(index, third, cut(chain, 5))
    insert_remote(index, third, cut(chain, 6), 5, confirmed=False)
    assert depths(index, chain, one, other, third) == [6, 3, 6]
    assert index.holders(chain.hashes[:6]) == 1 << one | 1 << third
    assert [index.known(holder, chain) for holder in (one, other, third)] == [(6, 6), (0, 3), (5, 6)]


def test_of_what_own_and_other_pickers_sent_the_deeper_counts() -> None:
    index = PrefixIndex()
    one, other, third = index.open(PLENTY), index.open(PLENTY), index.open(PLENTY)
    chain = chain_of((0,) * 8)
    insert_remote(index, third, cut(chain, 2))
    for holder, depth in ((one, 6), (other, 3)):
        index.insert(holder, cut(chain, depth))
    assert depths(index, chain, one, other, third) == [6, 3, 2]
    insert_remote(index, one, cut(chain, 4), 3)  # what is held is said again
    insert_remote(index, other, cut(chain, 5), 3)
    assert depths(index, chain, one, other, third) == [6, 5, 2]


def test_an_own_prompt_takes_over_what_it_goes_on_from() -> None:
    index = PrefixIndex()
    holder = index.open(PLENTY)
    chain = chain_of((0,) * 8)
    insert_remote(index, holder, cut(chain, 4))
    assert index.insert(holder, chain) == 4
    assert index.held(holder) == (8, 80)
    assert len(index) == 8


def test_what_was_unconfirmed_was_not_held_before_an_own_prompt() -> None:
    """If the own one is not served, nothing of it stays."""
    index = PrefixIndex()
    holder = index.open(PLENTY)
    chain = chain_of((0,) * 4)
    insert_remote(index, holder, chain, confirmed=False)
    known = index.insert(holder, chain)
    assert known == 0
    index.remove(holder, chain, known, until=index.uses)
    assert depths(index, chain, holder) == [0]


def test_an_own_prompt_that_branches_off_leaves_the_rest() -> None:
    index = PrefixIndex()
    holder = index.open(PLENTY)
    insert_remote(index, holder, chain_of((0, 0, 0, 0)))
    assert index.insert(holder, chain_of((0, 0, 1))) == 2
    assert index.held(holder) == (5, 50)
    assert depths(index, chain_of((0, 0, 0, 0)), holder) == [4]


def test_a_long_own_prompt_takes_over_what_is_confirmed() -> None:
    index = PrefixIndex()
    holder = index.open(PLENTY)
    chain = chain_of((0,) * 8)
    insert_remote(index, holder, cut(chain, 4))
    index.insert_unconfirmed(holder, chain)
    assert index.known(holder, chain) == (4, 8)
    index.discard(holder, chain)
    assert index.known(holder, chain) == (4, 4)


def test_the_new_tail_of_a_long_own_prompt_is_matched_whole() -> None:
    """What another picker sent of it is confirmed, and none of what may be unconfirmed."""
    index = PrefixIndex()
    holder = index.open(100)
    chain = chain_of((0,) * 10)
    insert_remote(index, holder, cut(chain, 8))
    index.insert_unconfirmed(holder, chain)
    assert index.known(holder, chain) == (8, 10)
    assert index.held(holder) == (10, 100)


def test_the_engines_cache_takes_in_what_others_send_to_it() -> None:
    index = PrefixIndex()
    holder = index.open(100)
    own, first, second = chain_of((0,) * 6), chain_of((1, 0, 0, 0)), chain_of((1, 1, 1, 1))
    index.insert(holder, own)
    insert_remote(index, holder, first)
    insert_remote(index, holder, second, 1)
    assert depths(index, own, holder) == [3], "its tail went first"
    assert index.fill(holder) == 1.0
    index.insert(holder, own)
    assert depths(index, first, holder) == [1], "the second one has the beginning, too"
    assert depths(index, second, holder) == [4]
    assert index.fill(holder) == 1.0


def test_a_prompt_that_goes_on_counts_as_used_from_its_beginning() -> None:
    """As own insertions do: what was used last is forgotten last."""
    index = PrefixIndex()
    holder = index.open(100)
    first, second, third = chain_of((0,) * 8), chain_of((1, 1)), chain_of((1, 0, 0, 0))
    insert_remote(index, holder, first)
    insert_remote(index, holder, second)
    insert_remote(index, holder, chain_of((0,) * 9), 8)
    insert_remote(index, holder, third, 1)
    assert depths(index, second, holder) == [1]
    insert_remote(index, holder, chain_of((1, 0, 0, 0, 0)), 4)
    assert index.held(holder)[1] <= 100
    assert depths(index, first, holder) == [0]


def test_an_own_prompt_that_another_picker_goes_on_from_counts_as_used() -> None:
    index = PrefixIndex()
    holder = index.open(100)
    own, other = chain_of((0,) * 6), chain_of((1,) * 4)
    index.insert(holder, own)
    index.insert(holder, other)
    insert_remote(index, holder, chain_of((0,) * 7), 6)
    assert index.held(holder) == (10, 100)
    assert depths(index, own, holder) + depths(index, other, holder) == [6, 3]


def test_an_own_prompt_counts_as_used_by_all_turns_that_follow_it() -> None:
    """The third turn goes on from the second, which another picker has sent, too."""
    index = PrefixIndex()
    holder = index.open(100)
    own, other = chain_of((0,) * 5), chain_of((1,) * 3)
    index.insert(holder, own)
    insert_remote(index, holder, chain_of((0,) * 6), 5)
    index.insert(holder, other)
    insert_remote(index, holder, chain_of((0,) * 7), 6)
    insert_remote(index, holder, chain_of((1, 0, 0)), 1)
    assert depths(index, own, holder) + depths(index, other, holder) == [5, 1]


def test_a_picker_that_begins_to_read_counts_what_the_engine_held() -> None:
    index = PrefixIndex()
    holder = index.open(PLENTY)
    insert_remote(index, holder, chain_of((0,) * 7), 6)
    assert index.held(holder)[1] == 70
    insert_remote(index, holder, chain_of((0,) * 8), 7)
    assert index.held(holder)[1] == 80


def test_each_byte_counts_for_the_last_prompt_that_goes_on_from_it() -> None:
    index = PrefixIndex()
    holder = index.open(PLENTY)
    first = insert_remote(index, holder, chain_of((0,) * 6))
    second = insert_remote(index, holder, chain_of((0,) * 5 + (1,)), 5)
    assert (first.prompt_bytes, second.prompt_bytes) == (10, 60)
    third = insert_remote(index, holder, chain_of((0,) * 5 + (2,)), 5)
    assert (first.prompt_bytes, second.prompt_bytes, third.prompt_bytes) == (10, 10, 60)
    early = insert_remote(index, holder, chain_of((0, 1)), 1)
    assert (first.prompt_bytes, early.prompt_bytes) == (10, 10), "the bytes before count for the third one"


def test_unconfirmed_ones_evict_nothing_until_they_are_confirmed() -> None:
    index = PrefixIndex()
    holder = index.open(60)
    own, other = chain_of((0,) * 6), chain_of((1,) * 4)
    index.insert(holder, own)
    prompt = insert_remote(index, holder, other, confirmed=False)
    assert depths(index, own, holder) + depths(index, other, holder) == [6, 4]
    assert index.held(holder) == (10, 60)
    index.confirm_remote(holder, [prompt])
    assert depths(index, own, holder) + depths(index, other, holder) == [2, 4]


def test_rejected_ones_are_forgotten() -> None:
    index = PrefixIndex()
    holder = index.open(PLENTY)
    chain = chain_of((0,) * 6)
    insert_remote(index, holder, cut(chain, 3))
    prompt = insert_remote(index, holder, chain, 3, confirmed=False)
    index.discard_remote([prompt])
    assert depths(index, chain, holder) == [3], "what was confirmed stays"
    index.discard_remote([prompt])
    index.confirm_remote(holder, [prompt])
    assert depths(index, chain, holder) == [3], "it is decided once"


def test_an_own_prompt_counts_as_used_once_one_that_goes_on_from_it_is_confirmed() -> None:
    index = PrefixIndex()
    holder = index.open(100)
    own, other = chain_of((0,) * 6), chain_of((1,) * 4)
    index.insert(holder, own)
    index.insert(holder, other)
    prompt = insert_remote(index, holder, chain_of((0,) * 7), 6, confirmed=False)
    index.confirm_remote(holder, [prompt])
    assert depths(index, chain_of((0,) * 7), holder) == [7]
    assert depths(index, other, holder) == [3]


def test_prompts_that_are_decided_already_hold_up_none_of_the_others() -> None:
    index = PrefixIndex()
    holder = index.open(PLENTY)
    chains = [chain_of((k, k)) for k in range(3)]
    said = [insert_remote(index, holder, chain, confirmed=False) for chain in chains]
    index.discard_remote(said[:1])
    index.confirm_remote(holder, said[1:2])
    index.confirm_remote(holder, said)
    index.discard_remote(said)
    assert [index.known(holder, chain) for chain in chains] == [(0, 0), (2, 2), (2, 2)]


def test_prompts_that_were_said_at_once_are_decided_at_once() -> None:
    index = PrefixIndex()
    holder = index.open(PLENTY)
    one, other = ((0, 0), (0, 1))
    for words in (one, other):
        growths = [PromptGrowth(chain_of((*words, last)).hashes, 0, 30) for last in (0, 1)]
        said = index.insert_remote(holder, growths, confirmed=False)
        if words is one:
            index.confirm_remote(holder, said)
        else:
            index.discard_remote(said)
    for last in (0, 1):
        assert index.known(holder, chain_of((*one, last))) == (3, 3)
        assert index.known(holder, chain_of((*other, last))) == (1, 1)


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_closed_holder_is_swept_until_nothing_is_left(confirmed: bool) -> None:
    index = PrefixIndex()
    holder = index.open(PLENTY)
    assert not index.sweep()
    index.insert(holder, chain_of((0, 0)))
    for words in ((1, 0), (1, 1)):
        insert_remote(index, holder, chain_of(words), confirmed=confirmed)
    assert len(index) == 5
    index.close(holder)
    assert [index.sweep(1) for _ in range(3)] == [True, True, False]
    assert len(index) == 0


def test_unconfirmed_ones_are_bounded_and_the_oldest_go() -> None:
    index = PrefixIndex(limit=LIMIT)
    holder = index.open(PLENTY)
    for name in range(50):
        index.insert_remote(holder, [PromptGrowth(range(100 * name, 100 * name + 4), 0, 10)], confirmed=False)
    assert index.size(holder) <= UNCONFIRMED_SHARE * LIMIT
    assert depths(index, Chain([4900], [1], 1), holder) == [1]
    for _ in range(9):
        index.open(PLENTY)
    while index.sweep():
        pass
    assert index.size(holder) <= UNCONFIRMED_SHARE * LIMIT / 10


@pytest.mark.parametrize("kind", ["own", "own, unconfirmed", "remote", "remote, unconfirmed"])
def test_a_closed_holder_is_swept_in_slices_and_its_number_is_free_after_the_last(kind: str) -> None:
    index = PrefixIndex()
    holder = index.open(PLENTY)
    for chain in (Chain([10 * k, 10 * k + 1], [10, 20], 20) for k in range(20)):
        match kind:
            case "own":
                index.insert(holder, chain)
            case "own, unconfirmed":
                index.insert_unconfirmed(holder, chain)
            case _:
                insert_remote(index, holder, chain, confirmed=kind == "remote")
    index.close(holder)
    for swept in range(1, 7):
        assert index.sweep(3)
        assert len(index) == 2 * (20 - 3 * swept)
    assert index.open(PLENTY) != holder
    index.sweep(3)
    assert len(index) == 0
    assert index.open(PLENTY) == holder


def test_confirmed_ones_stay_within_the_share_of_their_holder_and_the_oldest_go() -> None:
    index = PrefixIndex(limit=LIMIT)
    holder = index.open(PLENTY)
    own, *sent = (Chain([10 * k, 10 * k + 1], [10, 20], 20) for k in range(100))
    index.insert(holder, own)
    for chain in sent:
        insert_remote(index, holder, chain)
        assert len(index) <= LIMIT // (2 + PROMPT_SIZE) * 2
    most = LIMIT // (2 + PROMPT_SIZE)
    assert [depths(index, chain, holder) for chain in (own, *sent[-most - 1 :])] == [[0], [0], *[[2]] * most]


def test_a_prompt_that_is_sent_again_and_again_pushes_nothing_out() -> None:
    index = PrefixIndex(limit=LIMIT)
    holder = index.open(PLENTY)
    own, other = chain_of((0,) * 6), chain_of((1,) * 6)
    index.insert(holder, own)
    insert_remote(index, holder, other)
    for _ in range(LIMIT):
        insert_remote(index, holder, other, 6)
    assert depths(index, own, holder) + depths(index, other, holder) == [6, 6]
    assert index.held(holder) == (12, 120)


def test_what_two_pickers_send_at_one_time_counts_once() -> None:
    index = PrefixIndex()
    holder = index.open(PLENTY)
    chain = chain_of((0,) * 6)
    insert_remote(index, holder, cut(chain, 2))
    for _ in range(2):
        insert_remote(index, holder, chain, 2)
    assert index.held(holder) == (6, 60)


def test_of_two_prompts_at_one_time_the_longer_one_counts() -> None:
    index = PrefixIndex()
    holder = index.open(PLENTY)
    insert_remote(index, holder, chain_of((0,) * 3))
    insert_remote(index, holder, chain_of((0,) * 4))
    assert index.held(holder) == (4, 40)


@pytest.mark.parametrize("sharing", [2, 3])
def test_what_one_holder_forgets_the_others_keep(sharing: int) -> None:
    index = PrefixIndex()
    holders = [index.open(PLENTY) for _ in range(sharing)]
    chain = chain_of((0,) * 3)
    rejected, *_ = [insert_remote(index, holder, chain, confirmed=False) for holder in holders]
    index.discard_remote([rejected])
    assert depths(index, chain, *holders) == [0] + [3] * (sharing - 1)
    index.insert(holders[1], chain)
    index.close(holders[1])
    assert depths(index, chain, *holders[2:]) == [3] * (sharing - 2)


def test_an_unconfirmed_prompt_that_an_own_one_takes_over_was_not_counted() -> None:
    index = PrefixIndex()
    holder = index.open(PLENTY)
    insert_remote(index, holder, chain_of((0,) * 4), confirmed=False)
    index.insert(holder, chain_of((0,) * 2))
    assert index.held(holder)[1] == 20


def test_prompts_that_a_restarted_engine_has_accepted_belong_to_its_new_holder() -> None:
    index = PrefixIndex()
    before, after = index.open(PLENTY), index.open(PLENTY)
    chain = chain_of((0,) * 3)
    prompt = insert_remote(index, before, chain, confirmed=False)
    index.close(before)
    index.confirm_remote(after, [prompt])
    while index.sweep(1):
        pass
    assert depths(index, chain, after) == [3]
    assert index.held(after) == (3, 30)


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_checkpoint_that_is_named_twice_breaks_nothing(confirmed: bool) -> None:
    """Another picker may have a bug."""
    index = PrefixIndex()
    holder = index.open(PLENTY)
    chain = chain_of((0,) * 3)
    insert_remote(index, holder, chain)
    (prompt,) = index.insert_remote(holder, [PromptGrowth([*chain.hashes, *chain.hashes], 10, 30)], confirmed=confirmed)
    assert depths(index, chain, holder) == [3]
    index.discard_remote([prompt])
    index.insert(holder, chain)
    index.close(holder)
    while index.sweep():
        pass
    assert len(index) == 0


class AnyOrderMachine(RuleBasedStateMachine):
    """Every operation in any order: none fails, what is counted is what is there, and the bounds hold."""

    @initialize(capacities=st.lists(st.integers(8, 200), min_size=2, max_size=2))
    def start(self, capacities: list[int]) -> None:
        self.index = PrefixIndex(limit=LIMIT)
        self.holders = [self.index.open(capacity) for capacity in capacities]
        self.waiting: list[tuple[int, RemotePrompt]] = []

    @rule(which=st.integers(0, 1), words=prompts, confirmed=st.booleans())
    def insert(self, which: int, words: tuple[int, ...], confirmed: bool) -> None:
        insert = self.index.insert if confirmed else self.index.insert_unconfirmed
        insert(self.holders[which], chain_of(words))

    @rule(which=st.integers(0, 1), words=prompts, held=st.integers(0, 6), confirmed=st.booleans())
    def insert_remote(self, which: int, words: tuple[int, ...], held: int, confirmed: bool) -> None:
        chain = chain_of(words)
        prompt = insert_remote(
            self.index, self.holders[which], chain, min(held, len(chain.hashes)), confirmed=confirmed
        )
        if not confirmed:
            self.waiting.append((which, prompt))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), accepted=st.booleans())
    def decide(self, data: st.DataObject, accepted: bool) -> None:
        which, prompt = data.draw(st.sampled_from(self.waiting))
        if accepted:
            self.index.confirm_remote(self.holders[which], [prompt])
        else:
            self.index.discard_remote([prompt])

    @rule(which=st.integers(0, 1), words=prompts, depth=st.integers(0, 3))
    def remove(self, which: int, words: tuple[int, ...], depth: int) -> None:
        self.index.remove(self.holders[which], chain_of(words), depth, until=self.index.uses)

    @rule(which=st.integers(0, 1), capacity=st.integers(8, 200))
    def restart(self, which: int, capacity: int) -> None:
        self.index.close(self.holders[which])
        self.holders[which] = self.index.open(capacity)

    @rule(budget=st.integers(1, 20))
    def sweep(self, budget: int) -> None:
        self.index.sweep(budget)

    @invariant()
    def counts_what_is_there(self) -> None:
        for holder in getattr(self, "holders", []):
            remote = self.index._open[holder].remote
            held = [*remote.confirmed, *remote.unconfirmed]
            there = [one for among in self.index._remote._prompts.values() for one in among if one.holding is remote]
            assert sorted(map(id, there)) == sorted(id(prompt) for prompt in held for _ in range(prompt.left))
            assert remote.checkpoints == len(there)
            assert remote.size == sum(len(prompt.hashes) + PROMPT_SIZE for prompt in held)
            assert remote.unconfirmed_size == sum(len(prompt.hashes) + PROMPT_SIZE for prompt in remote.unconfirmed)
            assert remote.prompt_bytes == sum(prompt.prompt_bytes for prompt in remote.confirmed)
            assert all(prompt.prompt_bytes >= 0 for prompt in held)
            assert all(prompt.confirmed for prompt in remote.confirmed)
            assert not any(prompt.confirmed for prompt in remote.unconfirmed)
            numbers = [prompt.number for prompt in remote.confirmed]
            assert numbers == sorted(numbers)
            assert self.index.size(holder) <= LIMIT + 4 * (6 + SEGMENT_SIZE)

    @invariant()
    def a_checkpoint_has_one_prompt_of_each_holder(self) -> None:
        for among in self.index._remote._prompts.values() if hasattr(self, "index") else ():
            assert len({id(prompt.holding) for prompt in among}) == len(among) > 0
            assert len(among) > 1 or among is among[0].entry

    @invariant()
    def segments_are_found_by_their_ends(self) -> None:
        if hasattr(self, "index"):
            segments = self.index._segments.values()
            ends = {key: segment for segment in segments for key in segment.hashes[-2:]}
            assert ends == self.index._by_end


TestAnyOrder = AnyOrderMachine.TestCase
TestAnyOrder.settings = settings(stateful_step_count=40)


@st.composite
def colliding_chains(draw: st.DrawFn) -> Chain:
    """Equal hashes at any place and position, also twice in one chain."""
    ends = sorted(draw(st.sets(st.integers(1, 60), min_size=1, max_size=6)))
    hashes = draw(st.lists(st.integers(0, 12), min_size=len(ends), max_size=len(ends)))
    return Chain(hashes, ends, ends[-1])


@given(
    st.lists(
        st.tuples(
            st.integers(0, 1), colliding_chains(), st.sampled_from(["insert", "unconfirmed", "remote", "remove"])
        ),
        max_size=40,
    )
)
def test_collisions_lose_no_count(changes: list[tuple[int, Chain, str]]) -> None:
    index = PrefixIndex(limit=LIMIT)
    holders = [index.open(100), index.open(100)]
    for which, chain, change in changes:
        holder = holders[which]
        match change:
            case "insert":
                index.insert(holder, chain)
            case "unconfirmed":
                index.insert_unconfirmed(holder, chain)
            case "remote":
                index.insert_remote(holder, [PromptGrowth(chain.hashes, chain.ends[0], chain.ends[-1])], confirmed=True)
            case "remove":
                index.remove(holder, chain, 1, until=index.uses)
        for uses in (index._open[holder].confirmed, index._open[holder].unconfirmed):
            assert uses.prompt_bytes == sum(segment.prompt_bytes for segment in uses.last)
            assert uses.checkpoints == sum(len(segment.hashes) for segment in uses.last)


@given(
    st.lists(st.tuples(st.integers(0, 2), prompts, st.integers(0, 5), st.sampled_from(["own", "remote", "open"]))),
    prompts,
)
def test_each_holder_holds_the_deepest_of_what_any_picker_sent(
    sent: list[tuple[int, tuple[int, ...], int, str]], asked: tuple[int, ...]
) -> None:
    index = PrefixIndex()
    holders = [index.open(PLENTY) for _ in range(3)]
    held: list[set[tuple[int, ...]]] = [set() for _ in holders]
    for which, words, at, kind in sent:
        chain, start = chain_of(words), 0 if kind == "own" else min(at, len(words))
        if kind == "own":
            index.insert(holders[which], chain)
        else:
            insert_remote(index, holders[which], chain, start, confirmed=kind == "remote")
        # An unconfirmed one does not say again that the engine holds what it goes on from.
        first = max(start, 1) if kind == "remote" else start + 1
        held[which] |= {words[:depth] for depth in range(first, len(words) + 1)}
    expected = [
        max((depth for depth in range(len(asked) + 1) if asked[:depth] in of_one), default=0) for of_one in held
    ]
    assert depths(index, chain_of(asked), *holders) == expected


@given(st.lists(st.tuples(prompts, st.sampled_from(["own", "remote"])), max_size=30), st.integers(20, 100))
def test_no_more_bytes_are_believed_held_than_the_cache_has(
    sent: list[tuple[tuple[int, ...], str]], capacity: int
) -> None:
    """Every prompt is said to go on from what the holder is believed to hold, as a picker does that knows as much."""
    index = PrefixIndex()
    holder = index.open(capacity)
    for words, kind in sent:
        chain = chain_of(words)
        if kind == "own":
            index.insert(holder, chain)
        else:
            (held,) = depths(index, chain, holder)
            insert_remote(index, holder, chain, held)
        assert index.held(holder)[1] <= capacity
