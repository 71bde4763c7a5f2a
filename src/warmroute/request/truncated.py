"""The first part of a JSON text made whole again: what a proxy sends that buffers only so much of a body."""

from __future__ import annotations

import re

from warmroute.request.json_strings import split_strings

_NOT_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_PARTIAL_CHARACTER = re.compile(
    rb"(?:[\xc0-\xff][\x80-\xbf]*"  # UTF-8, perhaps whole: one character less does no harm
    rb"|(?:\\u[dD][89abAB][0-9a-fA-F]{2})?(?:\\(?:u[0-9a-fA-F]{0,3})?)?)\Z"  # an escape, a surrogate pair's first half
)
_LONGEST_PARTIAL = len(rb"\ud83d\ude0")


def is_whole(body: bytes) -> bool:
    """Whether ``body``, the beginning of a JSON object or all of it, is all of it."""
    body = body.rstrip()
    return body.endswith(b"}") and close_json(body) == body


def close_json(body: bytes) -> bytes:
    """``body``, the beginning of a JSON text, cut back to where a value ends and closed with the brackets that are open.

    A string that is cut stays as far as it came, if it is a value; a cut number, literal or key goes, and with it what
    belongs to it.
    Of a body that is no beginning of a JSON text, nothing is promised.
    """
    pieces = split_strings(body)
    if len(pieces) % 2 == 0:
        structure = b"".join(pieces[0::2])
        opened = _open_brackets(structure)
        before = structure.rstrip()[-1:]
        if before == b":" or (before in (b",", b"[") and opened[-1:] == b"["):
            tail = pieces[-1][-_LONGEST_PARTIAL:]
            complete = len(body) - len(tail) + len(_PARTIAL_CHARACTER.sub(b"", tail))
            return body[:complete] + b'"' + _closing(opened)
        pieces.pop()  # a cut key
    end = sum(map(len, pieces)) + len(pieces) - 1
    while pieces:
        last = pieces.pop()
        end -= len(last)
        keep = max(last.rfind(b","), *(last.rfind(bracket) + 1 for bracket in (b"{", b"[", b"}", b"]")))
        if keep > 0 or last[:1] == b",":
            structure = b"".join([*pieces[0::2], last[:keep]])
            return body[: end + keep] + _closing(_open_brackets(structure))
        end -= len(pieces.pop()) + 2 if pieces else 0
    return b""


def _open_brackets(structure: bytes) -> bytes:
    """The brackets that are open at the end, outermost first."""
    opened = bytearray()
    for bracket in structure.translate(None, _NOT_BRACKETS):
        if bracket in b"{[":
            opened.append(bracket)
        elif opened:
            opened.pop()
    return bytes(opened)


def _closing(opened: bytes) -> bytes:
    return opened[::-1].translate(bytes.maketrans(b"{[", b"}]"))
