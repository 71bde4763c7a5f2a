"""JSON texts cut at the quotes of their strings, at the speed of ``memchr``: no Python step per byte or per token."""

from __future__ import annotations


def split_strings(body: bytes) -> list[bytes]:
    """The text between strings (even positions) and inside them (odd positions), in turns; quotes are left out.

    Escaped quotes and backslashes come back as ``__``, so each piece is as long as in ``body`` and its offset is the sum of
    the lengths before it plus one byte a quote. An even number of pieces means that the text ends inside a string.
    """
    if b"\\" in body:
        body = body.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    return body.split(b'"')
