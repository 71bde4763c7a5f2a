"""The model name of a request replaced in place, everything around it left as the client sent it."""

from __future__ import annotations

import json
import re

from warmroute.request.json_strings import split_strings

# A member `model` with a string value, at any depth; the key's letters may be spelled as escapes. It cannot match inside a
# string: there, quotes have a backslash before them, and the quote that opens a key never has.
_MODEL = re.compile(
    rb'"(?<!\\")(?:m|\\u006[dD])(?:o|\\u006[fF])(?:d|\\u0064)(?:e|\\u0065)(?:l|\\u006[cC])"'
    rb'[ \t\r\n]*:[ \t\r\n]*("[^"\\]*+(?:\\.[^"\\]*+)*+")',
    re.DOTALL,
)


def replace_model(body: bytes, new: str) -> bytes | None:
    """``body`` with ``new`` as the value of the top-level key ``model``; None if it has no such key with a string value.

    ``body`` must be valid JSON. Of duplicate keys parsers take the last, some the first: all top-level ones are replaced.
    """
    found = [match.span(1) for match in _MODEL.finditer(body)]
    if not found:
        return None
    value = json.dumps(new).encode()
    rewritten: list[bytes] = []
    copied = 0
    for (start, end), depth in zip(found, _depths(body, found), strict=True):
        if depth == 1:
            rewritten += (body[copied:start], value)
            copied = end
    if not rewritten:
        return None
    rewritten.append(body[copied:])
    return b"".join(rewritten)


def _depths(body: bytes, found: list[tuple[int, int]]) -> list[int]:
    """How many brackets are open at each place, counted from whichever end of the body is nearer."""
    depths = []
    depth = 0
    if found[-1][0] < len(body) - found[0][1]:
        counted = 0
        for start, end in found:
            depth += _opened(body[counted:start])
            depths.append(depth)
            counted = end
        return depths
    counted = len(body)
    for start, end in reversed(found):
        depth -= _opened(body[end:counted])
        depths.append(depth)
        counted = start
    return depths[::-1]


def _opened(text: bytes) -> int:
    """Brackets opened less brackets closed. The text begins and ends outside strings."""
    structure = b"".join(split_strings(text)[0::2])
    return structure.count(b"{") + structure.count(b"[") - structure.count(b"}") - structure.count(b"]")
