"""A simplified tokenizer: four bytes of text are a token, in a chat template like Qwen2.5's.

It keeps what prefix caching depends on: equal conversations have equal tokens, and an answer in the next turn has the tokens
that were generated. Each piece of text is cut from its own start, so the template's marks do not shift the cuts. Tokens are
packed: each token is its four bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from xxhash import xxh3_128_digest

TOKEN_BYTES = 4
VOCABULARY = 151_643
"""Token ids on the wire are below this: the size of Qwen2.5's vocabulary."""

# UTF-8 text never contains the byte 0xff, so no text equals a mark.
_START, _END, _MEDIA = b"\xff\xff\xff\x01", b"\xff\xff\xff\x02", b"\xff\xff\xff\x03"
_MEDIA_TOKENS = 256
_DEFAULT_SYSTEM = "You are a helpful assistant."


def encode_text(text: str) -> bytes:
    """The packed tokens of a text."""
    packed = text.encode("utf-8", "surrogatepass")
    return packed + bytes(-len(packed) % TOKEN_BYTES)


def encode_ids(token_ids: Iterable[int]) -> bytes:
    """The packed tokens of token ids. Raises OverflowError for ids outside 0 to 2**32 - 1."""
    return array("I", token_ids).tobytes()


def encode_chat(
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    template_arguments: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
) -> bytes:
    """The packed tokens of a conversation, rendered as by Qwen2.5's template: system prompt and tools first."""
    head = b""
    if template_arguments:
        head += encode_text(_json(template_arguments))
    if tools:
        head += encode_text("# Tools\n<tools>" + _json(tools) + "</tools>")
    pieces = []
    rest = list(messages)
    if rest and rest[0].get("role") == "system":
        pieces.append(_turn("system", _content(rest.pop(0)) + head))
    else:
        pieces.append(_turn("system", encode_text(_DEFAULT_SYSTEM) + head))
    pieces += [_turn(str(message.get("role")), _content(message)) for message in rest]
    if add_generation_prompt:
        pieces.append(_opening("assistant"))
    return b"".join(pieces)


def token_count(packed: bytes) -> int:
    """Number of tokens."""
    return len(packed) // TOKEN_BYTES


def token_ids(packed: bytes) -> list[int]:
    """Token ids as they are sent."""
    return [value % VOCABULARY for value in array("I", packed)]


def generate(seed: int, tokens: int) -> str:
    """A text of that many tokens, made of words of three letters. Equal seeds give equal texts."""
    state = seed & 0xFFFFFFFFFFFFFFFF
    words = []
    for _ in range(tokens):
        state = (state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        words.append(_WORDS[state >> 52])
    words[0] = words[0].strip().capitalize() + "a"
    return "".join(words)


def _words() -> list[str]:
    consonants, vowels = "bdfghjklmnprstvwz", "aeiou"
    words = [f" {a}{b}{c}" for a in consonants for b in vowels for c in consonants]
    return (words * (4096 // len(words) + 1))[:4096]


_WORDS = _words()


def _opening(role: str) -> bytes:
    return _START + encode_text(role + "\n")


def _turn(role: str, content: bytes) -> bytes:
    return _opening(role) + content + _END + encode_text("\n")


def _content(message: Mapping[str, Any]) -> bytes:
    content = message.get("content")
    packed = b""
    if isinstance(content, str):
        packed = encode_text(content)
    elif isinstance(content, list):
        packed = b"".join(_part(part) for part in content)
    if message.get("tool_calls"):
        packed += encode_text("<tool_call>" + _json(message["tool_calls"]) + "</tool_call>")
    if message.get("role") == "tool":
        packed = encode_text("<tool_response>") + packed + encode_text("</tool_response>")
    return packed


def _part(part: Any) -> bytes:
    if isinstance(part, str):
        return encode_text(part)
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return encode_text(part["text"])
    return _MEDIA + xxh3_128_digest(orjson.dumps(part)) * (_MEDIA_TOKENS // 4)


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
