"""Compressed bodies."""

from __future__ import annotations

import gzip
import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.request.content_encoding import MAX_RATIO, SMALL, decode, decoded_limit, is_compressed

TEXT = b'{"model": "m", "messages": [{"role": "user", "content": "' + b"Hello, world. " * 400 + b'"}]}'


def raw(text: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(text) + compressor.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(TEXT)),
        ("X-GZIP ", gzip.compress(TEXT)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", raw(TEXT)),
    ],
)
def test_what_the_standard_library_decodes(encoding: str, body: bytes) -> None:
    assert is_compressed(encoding)
    assert decode(body, encoding, len(TEXT)) == TEXT
    assert decode(body, encoding, len(TEXT) - 1) is None
    assert decode(body[:-9], encoding, len(TEXT)) is None
    beginning = decode(body[: len(body) // 2], encoding, len(TEXT), whole=False)
    assert beginning
    assert TEXT.startswith(beginning)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zip", "zstd2"])
def test_other_encodings_are_left_to_the_engine(encoding: str) -> None:
    assert is_compressed(encoding)
    assert decode(gzip.compress(TEXT), encoding, 1 << 20) is None


@pytest.mark.parametrize("encoding", ["", "identity", " Identity"])
def test_no_compression(encoding: str) -> None:
    assert not is_compressed(encoding)


@given(st.sampled_from(["gzip", "deflate", "zstd"]), st.binary(max_size=60), st.integers(0, 100), st.booleans())
def test_no_bytes_raise(encoding: str, body: bytes, limit: int, whole: bool) -> None:
    text = decode(body, encoding, limit, whole=whole)
    assert text is None or len(text) <= limit


def test_a_bomb_takes_no_more_memory_than_was_known_before() -> None:
    bomb = gzip.compress(b"[" * (64 << 20))
    limit = decoded_limit(len(bomb), 32 << 20)
    assert limit == min(32 << 20, SMALL + MAX_RATIO * len(bomb))
    tracemalloc.start()
    try:
        assert decode(bomb, "gzip", limit) is None
        assert tracemalloc.get_traced_memory()[1] < 2 * limit + (1 << 20)
    finally:
        tracemalloc.stop()


def test_a_long_ordinary_chat_is_decoded() -> None:
    words = random.Random(1).choices([f"word{k}" for k in range(5_000)], k=60_000)
    text = " ".join(words).encode()
    body = gzip.compress(text)
    assert decode(body, "gzip", decoded_limit(len(body), 32 << 20)) == text
