"""The model name of a request replaced in place, everything around it left as the client sent it."""

from __future__ import annotations

import json
import re

from warmroute.request.json_strings import split_strings

_WHITESPACE = b" \t\r\n"
_ESCAPED_ASCII = re.compile(rb"\\u00([2-7][0-9a-fA-F])")


def replace_model(body: bytes, new: str) -> bytes | None:
    """``body`` with ``new`` as the value of the top-level key ``model``; None if it has no such key with a string value.

    ``body`` must be valid JSON. Of duplicate keys parsers take the last, some the first: all top-level ones are replaced.
    Keys spelled with escapes (``"mod\\u0065l"``) are found too.
    """
    pieces = split_strings(body)
    keys = pieces
    if b"\\u006" in body:  # every letter of "model" would be \u006x
        keys = [_ESCAPED_ASCII.sub(_unescape, piece) if b"\\u006" in piece else piece for piece in pieces]
    value = json.dumps(new).encode()
    rewritten: list[bytes] = []
    copied = 0  # bytes of the body that are in `rewritten`
    depth = seen = offset = 0  # brackets open, and bytes before, the first piece not `seen`
    found = -1
    for _ in range(keys.count(b"model")):
        found = keys.index(b"model", found + 1)
        if found % 2 == 0 or found + 3 >= len(pieces) or pieces[found + 1].strip(_WHITESPACE) != b":":
            continue
        structure = b"".join(pieces[seen:found:2])
        depth += structure.count(b"{") + structure.count(b"[") - structure.count(b"}") - structure.count(b"]")
        offset += sum(map(len, pieces[seen : found + 1])) + found + 1 - seen
        seen = found + 1
        if depth != 1:
            continue
        start = offset + len(pieces[found + 1])
        rewritten += (body[copied:start], value)
        copied = start + len(pieces[found + 2]) + 2
    if not rewritten:
        return None
    rewritten.append(body[copied:])
    return b"".join(rewritten)


def _unescape(match: re.Match[bytes]) -> bytes:
    return bytes((int(match[1], 16),))
