"""Upper bounds of what reading a JSON body costs, computed before it is decoded.

A decoder makes a Python object of each value, so that 3 bytes (``[],``) become 80 bytes of memory and a microsecond of work.
The values are counted in the text first, at the speed of ``bytes.count``, and a body with too many is rejected.
"""

from __future__ import annotations

from collections.abc import Sequence

from warmroute.request.json_structure import outside_strings

MAX_JSON_VALUES = 1 << 20
"""Default of ``--max-json-values``: room for a prompt of a million token ids."""

CONTAINER_VALUES = 4
"""Values that an object or a list counts for. They take the most memory (a list 72 bytes, an object 232) and time."""

KEY_VALUES = 2
"""Values that the key of an object counts for, in addition to its value."""

LONG_BODY = 512 << 10
"""Size in bytes from which a body is not to be read on the event loop.

A chat of this size takes 0.5 ms, the most expensive body of this size up to 40 ms (ten thousands of tiny blocks), a body of
any size within the limits up to 300 ms and 10 ms per MB more. The decoder holds the GIL for up to half of that.
"""

MANY_CONTAINERS = 20_000
"""Objects and lists, brackets in texts among them, from which a shorter body is not to be read on the event loop
either. Half a megabyte of lists in lists takes 60 to 140 ms."""

FEW_BRACKETS = 200
"""Brackets of a kind that are searched one by one."""

PIECE = 256 << 10
"""Bytes that are counted in one step. ``bytes.count`` holds the GIL: each of the four counts of 31 MB of brackets would
stop the event loop for 30 ms."""

VALUE_MEMORY = 64
"""Bytes of memory that a value takes at most while a body is read, its text apart."""

TEXT_MEMORY = 8
"""Bytes of memory that a byte of text takes at most while a body is read: one emoji makes a string of 4 bytes a character,
of which UTF-8 copies are made."""

LENIENT_BODY = 4 << 20
"""Largest body in bytes that is decoded a second time, leniently, if it is not strict JSON (NaN, lone surrogates)."""

LENIENT_VALUES = 100_000
"""Most values of such a body: the standard library decodes and writes it without releasing the GIL, a million in 0.2 s."""

LENIENT_MEMORY = 5
"""Further bytes of memory for each byte of text in that case: the whole body becomes one string first."""

PLAIN_TEXT_MEMORY = 4
"""TEXT_MEMORY for a body in ASCII without Unicode escapes, such as base64: 1 byte a character, and three copies."""


def count_values(body: bytes, limit: int) -> int:
    """At least the number of values in a JSON text: each comma, each colon KEY_VALUES times, each object and list
    CONTAINER_VALUES times.

    If the result exceeds ``limit``, so does the number. Linear, with at most twice the memory of the body: 2 ms per MB,
    5 to 12 ms if the brackets and commas inside strings exceed the limit: then strings are skipped.
    """
    if 2 * len(body) <= limit:  # "[]" is the shortest container
        return 2 * len(body)
    values = _values(body, limit)
    return values if values <= limit else _values_outside_strings(body, limit)


def has_many_containers(pieces: Sequence[bytes]) -> bool:
    """Whether a body, in pieces, has :data:`MANY_CONTAINERS`. 400 KB of text take 0.02 ms, with many brackets 0.2 ms."""
    return sum([_count(piece, b"[") + _count(piece, b"{") for piece in pieces]) >= MANY_CONTAINERS


def _count(piece: bytes, bracket: bytes) -> int:
    """As ``bytes.count``, which looks at each byte; where there are few, ``bytes.find`` is ten times as fast (memchr)."""
    position = -1
    for found in range(FEW_BRACKETS):
        position = piece.find(bracket, position + 1)
        if position < 0:
            return found
    return piece.count(bracket)


def memory_needed(body: bytes, max_values: int = MAX_JSON_VALUES) -> int:
    """Upper bound of the memory, in bytes, that parsing and rewriting ``body`` takes in addition to the body itself.

    A body of half a megabyte takes at most 74 MB, a base64 image of 30 MB 120 MB (with an emoji in the text beside it
    260 MB), a chat of 4 MB 20 to 80 MB, any body of 32 MiB 350 MB. Nothing is decoded: 3 ms per MB.
    tests/request/test_memory.py compares it with what parsing takes.
    """
    length = len(body)
    values = min(2 * length, max_values, _values(body, max_values))
    if body.isascii() and b"\\u" not in body:
        text = PLAIN_TEXT_MEMORY * length
    else:
        text = TEXT_MEMORY * length + LENIENT_MEMORY * min(length, LENIENT_BODY)
    return VALUE_MEMORY * values + text


def _values(text: bytes, limit: int) -> int:
    """At least the number of values, or more than ``limit``: it stops counting there."""
    values = 0
    for start in range(0, len(text), PIECE):
        end = start + PIECE
        containers = text.count(b"[", start, end) + text.count(b"{", start, end)
        values += (
            text.count(b",", start, end) + KEY_VALUES * text.count(b":", start, end) + CONTAINER_VALUES * containers
        )
        if values > limit:
            break
    return values


def _values_outside_strings(body: bytes, limit: int) -> int:
    """Like _values, outside strings only; stops counting above ``limit``."""
    values = 0
    for piece in outside_strings(body):
        values += _values(piece, limit)
        if values > limit:
            break
    return values
