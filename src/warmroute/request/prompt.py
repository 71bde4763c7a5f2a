"""The canonical prompt: two requests share a prefix of it if and only if their rendered prompts share one.

A prompt is written in the order of the engine's chat template: the head first, then each message. Texts are UTF-8. The marks
between them are bytes that UTF-8 never contains, so different conversations share no bytes by accident, and a text shares
all its bytes with a longer one that begins with it::

    message  role content [FIELD name (STRING text | JSON json | content)]* END
    content  [TEXT text | MEDIA digest | BLOCK block | JSON json]*
    block    type, then as a message, then BLOCK_END

Every field of a message that a template may render is included. Fields without a form of their own are written as JSON with
the client's order of keys, as templates render them.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sized
from typing import Any

import orjson
from xxhash import xxh3_128_digest

from warmroute.request.inference import PromptPart

END = b"\xff"
TEXT = b"\xfe"
FIELD = b"\xfd"
STRING = b"\xfc"
JSON = b"\xfb"
MEDIA = b"\xfa"
BLOCK = b"\xf9"
BLOCK_END = b"\xf8"
TOKEN_END = b"\xff\xff\xff\xff"

MEDIA_BYTES = 4_000
"""Bytes of text that an image, a clip or a file counts for: about 1,000 tokens. Only the engine knows the true number."""

MAX_ITEMS = 20_000
"""Messages, blocks and fields that one prompt is split into, about 0.1 s of work; the rest is written as JSON."""

SEED_FIELDS = frozenset(
    {
        # part of the engine's block hashes: the tenant's salt, the adapter
        "cache_salt",
        "extra_key",
        "lora_path",
        # rendered by the chat template before the first message
        "chat_template",
        "chat_template_kwargs",
        "add_special_tokens",
        "reasoning_effort",
        "reasoning",
        "thinking",
        "response_format",
        "output_config",
        # how media are processed and where the prompt is cut
        "mm_processor_kwargs",
        "media_io_kwargs",
        "truncate_prompt_tokens",
        "truncation_side",
        "features",
        # a history that is stored in the engine
        "previous_response_id",
        "conversation",
        "session_params",
    }
)
"""Fields of a request that may change its prompt from the first token on.

``tool_choice`` and grammars (``structured_outputs``, ``guided_json``) affect the decoding, ``add_generation_prompt`` and
``continue_final_message`` the end of the prompt. Agents change them from turn to turn, and the cached prefix stays valid.
"""

_TEXT_BLOCKS = frozenset({"text", "input_text", "output_text"})
_MEDIA_KEYS = frozenset(
    {
        "image_url",
        "video_url",
        "audio_url",
        "input_audio",
        "image",
        "video",
        "audio",
        "file",
        "file_data",
        "image_embeds",
        "audio_embeds",
    }
)
_OPENINGS = {role: role.encode() + TEXT for role in ("system", "developer", "user", "assistant", "tool")}
# `cache_control` says where to cache. It moves with every turn and is never rendered.
_NOT_FIELDS = frozenset({"content", "cache_control"})
_RENAMED = {"reasoning_content": "reasoning"}  # two names of one field; engines accept both
NOTHING: tuple[object, ...] = (None, "", [], {})
_TOO_DEEP_FOR_ORJSON = "Recursion limit reached"
# The text of this block changes with every request, and engines drop it.
_BILLING_BLOCK = "x-anthropic-billing-header"


def seed(family: bytes, model: str, document: dict[str, Any]) -> bytes:
    """What two prompts must have in common to share a prefix: ``family`` (how they are rendered), SEED_FIELDS, model."""
    if not SEED_FIELDS.isdisjoint(document):
        for name in sorted(SEED_FIELDS.intersection(document)):
            value = _rendered(name, document[name])
            if value not in NOTHING:
                family += _field(name, value)
    return family + END + encode(model)


def _rendered(name: str, value: object) -> object:
    """The part of a seed field that a template can render: not the budget for thinking, not the default response format."""
    if type(value) is dict:
        if name == "thinking":
            return value.get("type")
        if name == "response_format" and value.get("type") == "text":
            return None
    return value


def encode(text: str) -> bytes:
    """UTF-8. Lone surrogates, which JSON can contain, become three bytes each."""
    return text.encode("utf-8", "surrogatepass")


def canonical_json(value: object) -> bytes:
    """JSON without white space, in the given order of keys. Raises RecursionError beyond 254 levels."""
    try:
        return orjson.dumps(value)
    except TypeError as error:
        if str(error) == _TOO_DEEP_FOR_ORJSON:
            raise RecursionError from error
        # lone surrogates, or integers beyond 64 bits
        return encode(json.dumps(value, separators=(",", ":"), ensure_ascii=False))


class Prompt:
    """A canonical prompt being written."""

    __slots__ = ("_items_left", "_pending", "parts")

    def __init__(self) -> None:
        self.parts: list[PromptPart] = []
        self._pending: list[bytes] = []
        self._items_left = MAX_ITEMS

    def field(self, name: str, value: object) -> None:
        """A field that templates render before the messages, or with the first: tools, documents."""
        if value not in NOTHING:
            self._add(_field(name, value) + END)

    def messages(self, messages: list[Any]) -> None:
        """The messages of a conversation, one part each; more for one that has images."""
        if not self._can_take(messages):
            self._add(_json(messages))
            return
        for message in messages:
            if type(message) is dict and len(message) == 2:  # nearly all: a role and a text
                role, content = message.get("role"), message.get("content")
                if type(role) is str and type(content) is str and content:
                    text = content.encode("utf-8", "surrogatepass")
                    data = b"".join((_OPENINGS.get(role) or encode(role) + TEXT, text, END))
                    self.parts.append(PromptPart(data, len(data)))
                    continue
            self._message(message)

    def system(self, content: object) -> None:
        """Instructions that stand outside the list of messages."""
        if isinstance(content, list):
            content = [block for block in content if not _is_billing(block)]
        if content not in NOTHING:
            self.messages([{"role": "system", "content": content}])

    def plain(self, prompt: object) -> int | None:
        """A prompt that no template renders: a text, token ids, or a list of either or of texts with images.

        Returns the exact number of tokens if it is token ids.

        The prompts of a list are written one after the other. Engines run them independently, but they arrive together, and
        clients that repeat a list repeat it from the start.
        """
        if type(prompt) is str:
            self._add(encode(prompt))
            return None
        if type(prompt) is list and prompt and (type(prompt[0]) is int or self._can_take(prompt)):
            kind = type(prompt[0])
            try:
                if kind is str:
                    self._add(END.join(map(encode, prompt)))
                    return None
                if kind is int:
                    self._add(array("I", prompt).tobytes())
                    return len(prompt)
                if kind is list:
                    self._add(TOKEN_END.join([array("I", ids).tobytes() for ids in prompt]))
                    return sum(map(len, prompt))
                if kind is dict:
                    for block in prompt:
                        self._block(block)
                        self._pending.append(END)
                    self._flush()
                    return None
            except (TypeError, AttributeError, OverflowError):  # mixed types, numbers that are no token ids
                pass
        if prompt not in NOTHING:
            self._add(_json(prompt))
        return None

    def media(self, content: object) -> None:
        """An image, a clip, a file (or several in a list): a digest in place, a fixed number of bytes."""
        if type(content) is list and self._can_take(content):
            for one in content:
                self.media(one)
            return
        self._flush()
        data = encode(content) if type(content) is str else canonical_json(content)
        self.parts.append(PromptPart(MEDIA + xxh3_128_digest(data), MEDIA_BYTES))

    def _message(self, message: object) -> None:
        if type(message) is not dict:
            self._add(_json(message) + END)
            return
        self._item(message, "role")
        self._pending.append(END)
        self._flush()

    def _item(self, item: dict[str, Any], kind: str) -> None:
        """A message or a block: the value of its ``kind`` (role or type), its content, all its other fields."""
        pending = self._pending
        if not self._can_take(item):
            pending.append(_json(item))
            return
        named = item.get(kind)
        if type(named) is str:
            pending.append(encode(named))
        self._content(item.get("content"))
        for name in sorted(item):
            value = item[name]
            if name in _NOT_FIELDS or value in NOTHING or (name == kind and type(value) is str):
                continue
            if name == "output" and type(value) is not str:  # of a tool: blocks, or a screenshot
                pending += (FIELD, b"output")
                self._content(value)
            elif name == "result" and item.get("type") == "image_generation_call":
                pending += (FIELD, b"result")
                self.media(value)
            else:
                pending.append(_field(_RENAMED.get(name, name), value))

    def _content(self, content: object) -> None:
        if type(content) is str:
            if content:
                self._pending += (TEXT, encode(content))
        elif type(content) is list and self._can_take(content):
            for block in content:
                self._block(block)
        elif type(content) is dict and content:
            self._block(content)
        elif content not in NOTHING:
            self._pending.append(_json(content))

    def _block(self, block: object) -> None:
        if type(block) is not dict:
            if type(block) is str:
                self._content(block)
            else:
                self._pending.append(_json(block))
        elif (text := text_of(block)) is not None:
            self._content(text)
        elif is_media(block):
            text = block.get("text")
            if type(text) is str:
                self._content(text)
            self.media({name: value for name, value in block.items() if name not in ("cache_control", "text")})
        else:
            self._pending.append(BLOCK)
            self._item(block, "type")
            self._pending.append(BLOCK_END)

    def _can_take(self, items: Sized) -> bool:
        self._items_left -= len(items)
        return self._items_left >= 0

    def _add(self, data: bytes) -> None:
        if data:
            self.parts.append(PromptPart(data, len(data)))

    def _flush(self) -> None:
        if self._pending:
            self._add(b"".join(self._pending))
            self._pending.clear()


def _field(name: str, value: object) -> bytes:
    if type(value) is str:
        return b"".join((FIELD, encode(name), STRING, encode(value)))
    return b"".join((FIELD, encode(name), JSON, canonical_json(value)))


def _json(value: object) -> bytes:
    """A copy, since each result of orjson keeps a buffer of 1 kB: thousands of small values would keep megabytes."""
    return JSON + canonical_json(value)


def text_of(block: dict[str, Any]) -> str | None:
    """The text of a text block; None for other blocks. Its other keys (annotations, log probabilities) are not rendered."""
    text = block.get("text")
    if type(text) is str:
        kind = block.get("type")
        if len(block) == 1 or (type(kind) is str and kind in _TEXT_BLOCKS):
            return text
    return None


def is_media(block: dict[str, Any]) -> bool:
    """Whether the block is an image, a clip or a file."""
    return not _MEDIA_KEYS.isdisjoint(block) or type(block.get("source")) is dict


def _is_billing(block: object) -> bool:
    text = block.get("text") if type(block) is dict else None
    return type(text) is str and text.startswith(_BILLING_BLOCK)
