"""Bodies that were cut off: a proxy with a bounded buffer sends only the beginning (BUFFERED_PARTIAL).

The beginning is decoded as far as it goes, then shortened to what is certain: a text may end anywhere, but a message or a
block that was cut has no fields after its content and no end mark.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic_core import from_json

from warmroute.request.json_structure import open_brackets
from warmroute.request.media import is_media
from warmroute.request.prompt import NOTHING, begins_with_system, text_of

_LAST_NUMBER = re.compile(rb"[\[:, \t\r\n](-?[0-9][0-9.eE+-]*)\Z")
_LONGEST_NUMBER = 64


def is_whole(body: bytes) -> bool:
    """Whether ``body``, a JSON object or its beginning, is complete."""
    return body.rstrip().endswith(b"}") and open_brackets(body) == 0


def decode_beginning(body: bytes) -> dict[str, Any] | None:
    """The JSON object that ``body`` begins, as far as it goes; None if ``body`` does not begin one.

    A string that is cut stays as far as it came, if it is a value; a cut number, literal or key is left out, and with it
    what belongs to it. More than 200 levels and lone surrogates are not decoded.
    """
    try:
        document = from_json(body, allow_partial="trailing-strings", cache_strings="keys")
    except ValueError:
        return None
    if type(document) is not dict:
        return None
    number = _LAST_NUMBER.search(body[-_LONGEST_NUMBER:])
    if number is not None:  # its next digit may have been cut off
        _drop_last(document, number[1])
    return document


def _drop_last(document: dict[str, Any], number: bytes) -> None:
    """Remove the last value of a document if it is ``number``, and not another one before a cut key that ends in digits."""
    inside: Any = document
    while inside:
        last = len(inside) - 1 if type(inside) is list else next(reversed(inside))
        value = inside[last]
        if type(value) in (int, float) and _is(value, number):
            del inside[last]
        if type(value) is not list and type(value) is not dict:
            return
        inside = value


def _is(value: float, number: bytes) -> bool:
    try:
        return value == type(value)(number)
    except ValueError:  # "1.5e" was left out by the decoder
        return False


# ---------------------------------------------------------------- values that were cut, shortened
# Each function returns the value to be written, and the number of end marks that its writer will add and that must go.


def shorten_messages(messages: Any) -> tuple[object, int]:
    """The messages of a conversation, the last of them cut."""
    if type(messages) is not list:
        return None, 0
    *whole, last = messages or [None]
    message, marks = _shorten_message(last)
    return (whole if message is None else [*whole, message]), marks


def shorten_system_message(messages: Any) -> tuple[object, int] | None:
    """The system prompt, cut; nothing while the first message may still become it. None: the cut is further on."""
    if type(messages) is not list or len(messages) > 1:
        return None
    if begins_with_system(messages):
        return shorten_messages(messages)
    first = messages[0] if messages else {}
    return ([], 0) if type(first) is dict and first.get("content") in NOTHING else None


def shorten_content(content: Any) -> tuple[object, int]:
    """The content of a message without other fields, cut."""
    content, marks = _shorten_blocks(content)
    return (None, 0) if content in NOTHING else (content, marks + 1)


def shorten_input(value: Any) -> tuple[object, int]:
    """Messages, or the content of one."""
    return shorten_messages(value) if type(value) is list else shorten_content(value)


def shorten_plain(prompt: Any) -> tuple[object, int]:
    """A text, a list of texts, of token ids, of lists of them, or of blocks, cut."""
    if type(prompt) is str:
        return prompt, 0
    if type(prompt) is not list or len(set(map(type, prompt))) != 1:
        return None, 0
    return (prompt[:-1] if type(prompt[0]) is dict else prompt), 0


def _shorten_message(message: Any) -> tuple[dict[str, Any] | None, int]:
    if type(message) is not dict:
        return None, 0
    role, content = message.get("role"), message.get("content")
    last = next(reversed(message), None)
    if content in NOTHING:
        return ({"role": role}, 1) if last == "role" and type(role) is str else (None, 0)
    if role is None or last == "role":
        role = "user"  # keys may come in any order, and most messages long enough to be cut are the user's
    marks = 0
    if last == "content":
        content, marks = _shorten_blocks(content)
    shortened = {"role": role, "content": content} if type(role) is str else {"content": content}
    return shortened, marks + 1


def _shorten_blocks(content: Any) -> tuple[object, int]:
    if type(content) is str:
        return content, 0
    if type(content) is not list or not content:
        return None, 0
    block, marks = _shorten_block(content[-1])
    return ([*content[:-1], block] if block is not None else content[:-1]), marks


def _shorten_block(block: Any) -> tuple[object, int]:
    if type(block) is str or (type(block) is dict and text_of(block) is not None):
        return block, 0
    if type(block) is not dict or not block:
        return None, 0
    kind, content = block.get("type"), block.get("content")
    last = next(reversed(block))
    if type(kind) is not str or last == "type" or content in NOTHING or is_media(block):
        return None, 0
    marks = 0
    if last == "content":
        content, marks = _shorten_blocks(content)
    return {"type": kind, "content": content}, marks + 1


def ends_in_media(value: object) -> bool:
    """Whether a value was cut in an image, a clip or a file, or in a block before its type was complete."""
    while value and type(value) in (dict, list):
        if type(value) is list:
            value = value[-1]
        elif type(value) is dict:
            last = next(reversed(value))
            if last == "type" or is_media(value) or value.get("type") == "image_generation_call":
                return True
            value = value[last]
    return False
