"""Batches in the log tell nothing to those without the key."""

from __future__ import annotations

import pytest

from warmroute.shared_state.seal import VERSION, Seal, Sealed, UnreadableError, head_of

KEY = b"0123456789abcdef"


def test_a_batch_comes_back() -> None:
    sealed = Seal(KEY, "pool").close(b"secret words", 7, 9)
    assert b"secret" not in sealed
    assert head_of(sealed) == Sealed(VERSION, 7, 9)
    assert Seal(KEY, "pool").open(sealed) == b"secret words"


@pytest.mark.parametrize("other", [Seal(KEY + b"!", "pool"), Seal(KEY, "other pool")])
def test_another_key_or_pool_cannot_read_it(other: Seal) -> None:
    with pytest.raises(UnreadableError):
        other.open(Seal(KEY, "pool").close(b"secret words", 7, 9))


@pytest.mark.parametrize("place", [3, 12, 20, -1])
def test_a_changed_byte_is_noticed(place: int) -> None:
    sealed = bytearray(Seal(KEY, "pool").close(b"secret words", 7, 9))
    sealed[place] ^= 1
    with pytest.raises(UnreadableError):
        Seal(KEY, "pool").open(bytes(sealed))


@pytest.mark.parametrize("length", [0, 16])
def test_too_few_bytes_have_no_head(length: int) -> None:
    with pytest.raises(UnreadableError):
        head_of(bytes(length))


@pytest.mark.parametrize("length", [17, 20])
def test_a_head_alone_is_no_batch(length: int) -> None:
    assert head_of(bytes(length)).version == 0
    with pytest.raises(UnreadableError):
        Seal(KEY, "pool").open(bytes(length))


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Seal(b"short", "pool")
