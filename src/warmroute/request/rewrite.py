"""Replaces the model name in a body; every other byte stays as the client sent it."""

from __future__ import annotations

import json
import re

from warmroute.request.json_structure import open_brackets
from warmroute.request.rejections import Rejection, malformed

MAX_MODELS = 8
"""Top-level keys ``model`` in one body. Clients send one; each of them is replaced, and may grow by the length of a name."""

# A member `model` with a string value, at any depth; the key's letters may be written as escapes. It cannot match inside a
# string: quotes there follow a backslash, and the quote that opens a key never does.
_MODEL = re.compile(
    rb'"(?<!\\")(?:m|\\u006[dD])(?:o|\\u006[fF])(?:d|\\u0064)(?:e|\\u0065)(?:l|\\u006[cC])"'
    rb'[ \t\r\n]*:[ \t\r\n]*("[^"\\]*+(?:\\.[^"\\]*+)*+")',
    re.DOTALL,
)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))


def replace_model(body: bytes, new: str) -> bytes | Rejection | None:
    """``body`` with ``new`` as the value of the top-level key ``model``; None if it has no such key with a string value.

    ``body`` must be valid JSON. Most parsers use the last of duplicate keys, some the first: all at the top are replaced,
    and a body with more than MAX_MODELS of them is rejected with 400.
    """
    value = json.dumps(new).encode()
    rewritten: list[bytes] = []
    copied = counted = depth = 0
    for match in _MODEL.finditer(body):
        start, end = match.span(1)
        depth = depth + _opened(body[counted:start]) if counted else _depth(body, start)
        counted = end
        if depth == 1:
            rewritten += (body[copied:start], value)
            copied = end
            if len(rewritten) > 2 * MAX_MODELS:
                return malformed(f"`model` is given more than {MAX_MODELS} times.", param="model")
    if not rewritten:
        return None
    rewritten.append(body[copied:])
    return b"".join(rewritten)


def _depth(body: bytes, place: int) -> int:
    """How many brackets are open at a place outside strings, counted from the nearer end of the body."""
    return open_brackets(body[:place]) if 2 * place < len(body) else -open_brackets(body[place:])


def _opened(text: bytes) -> int:
    """Like open_brackets; fast for texts without brackets, as most between two members are."""
    return open_brackets(text) if text.translate(None, _NOT_BRACKETS) else 0
