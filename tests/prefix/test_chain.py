"""The chain: checkpoints are a function of the prefix alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from warmroute.prefix import chain as chains
from warmroute.request.inference import PromptPart


def text(data: bytes) -> PromptPart:
    return PromptPart(data, len(data))


texts = st.lists(st.binary(min_size=1, max_size=400).map(text), max_size=8)


@given(st.binary(max_size=8), texts, texts)
def test_an_extended_prompt_keeps_every_checkpoint(seed: bytes, head: list[PromptPart], tail: list[PromptPart]) -> None:
    short = chains.build(seed, head)
    long = chains.build(seed, head + tail)
    assert list(long.hashes[: len(short.hashes)]) == list(short.hashes)
    assert list(long.ends[: len(short.ends)]) == list(short.ends)


@given(texts)
def test_ends_grow_to_the_weight_and_every_part_ends_at_a_checkpoint(parts: list[PromptPart]) -> None:
    chain = chains.build(b"", parts)
    assert list(chain.ends) == sorted(set(chain.ends))
    assert chain.prompt_bytes == sum(p.prompt_bytes for p in parts)
    position = 0
    for part in parts:
        position += part.prompt_bytes
        assert position in chain.ends


@given(st.binary(min_size=1, max_size=30_000), st.integers(min_value=0, max_value=29_999))
def test_one_changed_byte_changes_the_checkpoints_from_there_on(data: bytes, where: int) -> None:
    where %= len(data)
    other = data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :]
    a, b = chains.build(b"", [text(data)]), chains.build(b"", [text(other)])
    for end, x, y in zip(a.ends, a.hashes, b.hashes, strict=True):
        assert (x == y) == (end <= where)


def test_different_seeds_share_nothing() -> None:
    parts = [text(b"x" * 1000)]
    assert not set(chains.build(b"a", parts).hashes) & set(chains.build(b"b", parts).hashes)


def test_an_image_counts_its_weight_and_not_its_digest() -> None:
    chain = chains.build(b"", [text(b"look: "), PromptPart(b"digest", 4000), text(b"?")])
    assert list(chain.ends) == [6, 4006, 4007]


def test_distances_stay_within_their_bounds() -> None:
    chain = chains.build(b"", [text(bytes(2_000_000))])
    previous = 0
    for end in chain.ends[:-1]:
        assert end - previous == min(max(previous // chains.STEP_SHARE, chains.MIN_STEP), chains.MAX_STEP)
        previous = end
    assert len(chain.hashes) < 500


@given(st.integers(0, 200), st.sampled_from(chains.POSITIONS[:60]), st.integers(0, 3))
def test_a_part_that_ends_at_a_position_ends_with_one_checkpoint(first: int, end: int, rest: int) -> None:
    first = min(first, end)
    lengths = [length for length in (first, end - first, 500 * rest) if length]
    chain = chains.build(b"", [text(b"x" * length) for length in lengths])
    assert list(chain.ends).count(end) == 1
    assert set(chain.ends) == {p for p in chains.POSITIONS if p <= sum(lengths)} | {first, end, sum(lengths)} - {0}


def test_short_messages_and_long_ones_share_the_same_positions() -> None:
    parts = [text(b"x" * length) for length in (10, 100, 3000, 7, 50_000)]
    message_ends = {10, 110, 3110, 3117, 53_117}
    assert set(chains.build(b"", parts).ends) - message_ends == {p for p in chains.POSITIONS if p < 53_117}


def test_an_absurd_number_of_parts_is_bounded() -> None:
    chain = chains.build(b"", [text(b"x")] * 20_000)
    assert len(chain.hashes) == len(chain.ends) == chains.MAX_CHECKPOINTS
    assert chain.prompt_bytes == 20_000
