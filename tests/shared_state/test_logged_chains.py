"""Chains go through the log and come out as they were."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.prefix.chain import EMPTY_CHAIN, Chain, build
from warmroute.request.inference import PromptPart
from warmroute.shared_state.logged_chains import NO_BASE, Addition, LoggedChains

RETENTION = 100.0


def chain_of(*messages: str) -> Chain:
    parts = [PromptPart(text.encode(), len(text.encode())) for text in messages]
    return build(b"model", parts)


def chains(limit: int = 100_000) -> LoggedChains:
    return LoggedChains(retention=RETENTION, limit=limit)


def test_the_second_turn_adds_what_is_new() -> None:
    log = chains()
    first, second = chain_of("system" * 100, "question"), chain_of("system" * 100, "question", "answer" * 50)
    assert log.add(first, 0.0).base == NO_BASE
    base, known, hashes, distances = log.add(second, 1.0)
    assert (base, known) == (first.hashes[-1], len(first.hashes))
    assert [*first.hashes, *hashes] == second.hashes
    assert sum(distances) == second.ends[-1] - first.ends[-1]


def test_a_prompt_that_the_log_has_adds_nothing() -> None:
    log = chains()
    log.add(chain_of("hello"), 0.0)
    assert log.add(chain_of("hello"), 1.0) == Addition(chain_of("hello").hashes[-1], 1, (), ())


def test_a_prompt_without_checkpoints_stays_one() -> None:
    log = chains()
    assert log.join(log.add(EMPTY_CHAIN, 0.0), 0, 0.0) is EMPTY_CHAIN


def test_an_unknown_base_is_none() -> None:
    assert chains().join(Addition(1, 1, [2], [3]), 3, 0.0) is None


@pytest.mark.parametrize("known", [0, 2, 2**32 - 1])
def test_more_than_a_base_has_is_none(known: int) -> None:
    log = chains()
    hello = log.add(chain_of("hello"), 0.0).hashes[-1]
    assert log.join(Addition(hello, known, [2], [3]), 3, 0.0) is None


def test_prompts_that_part_inside_what_one_decision_added() -> None:
    one, other = chains(), chains()
    first, second = (chain_of("system" * 100, question) for question in ("who" * 100, "when" * 100))
    other.join(one.add(first, 0.0), first.prompt_bytes, 0.0)
    base, known, hashes, _ = addition = one.add(second, 1.0)
    assert base == first.hashes[-1]
    assert first.hashes[:known] == second.hashes[:known] != first.hashes
    assert list(hashes) == second.hashes[known:]
    assert other.join(addition, second.prompt_bytes, 1.0) == second


def test_pickers_that_append_one_prompt_at_one_time_in_different_pieces() -> None:
    """Each knows its own pieces first, and the other's as the latest."""
    one, other = chains(), chains()
    system, prompt = chain_of("system" * 100), chain_of("system" * 100, "question" * 100)
    beginning = other.add(system, 0.0)
    whole, rest = one.add(prompt, 0.0), other.add(prompt, 0.0)
    assert len(whole.hashes) > len(rest.hashes)
    one.join(beginning, system.prompt_bytes, 0.0)
    assert one.join(rest, prompt.prompt_bytes, 0.0) == prompt
    assert other.join(whole, prompt.prompt_bytes, 0.0) == prompt
    turn = chain_of("system" * 100, "question" * 100, "answer" * 100)
    for sender, reader in ((one, other), (other, one)):
        assert reader.join(sender.add(turn, 1.0), turn.prompt_bytes, 1.0) == turn


def test_lists_of_different_lengths_are_none() -> None:
    assert chains().join(Addition(NO_BASE, 0, [2, 3], [3]), 3, 0.0) is None


def test_a_chain_is_appended_anew_after_half_the_retention() -> None:
    log = chains()
    prompt = chain_of("system" * 100)
    log.add(prompt, 0.0)
    assert log.add(prompt, RETENTION / 2 - 1).hashes == ()
    assert log.add(prompt, RETENTION / 2).base == NO_BASE


def test_a_conversation_is_as_old_as_its_first_turn() -> None:
    log = chains()
    turns = [chain_of(*(f"turn {k}" * 50 for k in range(length))) for length in (1, 2, 3)]
    log.add(turns[0], 0.0)
    assert log.add(turns[1], RETENTION / 4).base == turns[0].hashes[-1]
    assert log.add(turns[2], RETENTION / 2).base == NO_BASE


def test_a_chain_is_appended_anew_after_half_the_limit() -> None:
    log = chains(limit=20)
    log.add(chain_of("hello"), 0.0)
    for k in range(10):
        log.add(chain_of(f"other {k}"), 0.0)
    assert log.add(chain_of("hello"), 0.0).base == NO_BASE


def test_what_the_log_has_lost_is_appended_again_and_others_are_still_understood() -> None:
    one, other = chains(), chains()
    first, second = chain_of("system" * 100), chain_of("system" * 100, "question" * 50)
    one.join(other.add(first, 0.0), first.prompt_bytes, 0.0)
    one.lost()
    assert one.join(other.add(second, 1.0), second.prompt_bytes, 1.0) == second
    again = one.add(first, 2.0)
    assert again.base == NO_BASE
    assert list(again.hashes) == first.hashes
    assert one.add(first, 3.0).hashes == ()


def test_after_a_loss_a_common_beginning_is_appended_once() -> None:
    log, starter = chains(), chains()
    prompts = [chain_of("system" * 100, f"question {k}" * 50) for k in range(3)]
    for prompt in prompts:
        log.add(prompt, 0.0)
    log.lost()
    additions = [log.add(prompt, 1.0) for prompt in prompts]
    assert sum(len(addition.hashes) for addition in additions) < sum(len(prompt.hashes) for prompt in prompts)
    for prompt, addition in zip(prompts, additions, strict=True):
        joined = starter.join(addition, prompt.prompt_bytes, 1.0)
        assert joined is not None
        assert joined.hashes == prompt.hashes


@given(st.lists(st.text(min_size=1), min_size=1, max_size=30))
def test_what_is_remembered_is_bounded(prompts: list[str]) -> None:
    log = chains(limit=10)
    for prompt in prompts:
        log.add(chain_of(prompt), 0.0)
    assert len(log) <= 10


conversations = st.lists(
    st.tuples(
        st.integers(0, 1),  # which picker decides
        st.lists(st.sampled_from(["system" * 60, "a", "b", "c" * 300]), min_size=1, max_size=8),
        st.floats(0, RETENTION / 4),  # seconds since the one before
    ),
    max_size=40,
)


@given(conversations)
def test_every_picker_reads_the_chain_that_was_decided(decisions: list[tuple[int, list[str], float]]) -> None:
    logs = [chains(), chains()]
    now = 0.0
    for picker, messages, pause in decisions:
        now += pause
        chain = chain_of(*messages)
        joined = logs[1 - picker].join(logs[picker].add(chain, now), chain.prompt_bytes, now)
        assert joined == Chain(list(chain.hashes), list(chain.ends), chain.prompt_bytes)


@given(conversations)
def test_the_last_half_can_be_read_from_the_log_alone(decisions: list[tuple[int, list[str], float]]) -> None:
    logs = [chains(), chains()]
    entries: list[tuple[float, Addition, Chain]] = []
    now = 0.0
    for picker, messages, pause in decisions:
        now += pause
        chain = chain_of(*messages)
        addition = logs[picker].add(chain, now)
        logs[1 - picker].join(addition, chain.prompt_bytes, now)
        entries.append((now, addition, chain))
    starter = chains()
    for at, addition, chain in entries:
        if at > now - RETENTION:
            joined = starter.join(addition, chain.prompt_bytes, at)
            if at > now - RETENTION / 2:
                assert joined is not None
                assert joined.hashes == chain.hashes
