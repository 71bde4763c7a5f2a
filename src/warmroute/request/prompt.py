"""The canonical prompt: two requests share a prefix of it if and only if their rendered prompts share one.

A prompt is written in the order of chat templates: the system prompt, the tools, then each further message. Some templates
have the tools first: so the tools are part of the seed, too. Texts are UTF-8. The marks between them are bytes that UTF-8
never contains, so different conversations share no bytes by accident, and a text shares all its bytes with a longer one that
begins with it::

    message  role content member* END
    content  [TEXT text | MEDIA digest | BLOCK block | JSON json]*
    block    type content member* BLOCK_END
    member   FIELD name (STRING text | JSON json | content | call*)
    call     BLOCK member* BLOCK_END

Every field of a message that a template may render is included, in a form that does not depend on how the client wrote it:
members of objects are sorted, the arguments of a tool call are parsed and written again, media are known by their content
(:mod:`warmroute.request.media`). A template that renders an object in the client's order of members (the parameters of a
tool) renders two orders as two prompts; here they are one.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sized
from typing import Any

import orjson
from xxhash import xxh3_128_digest

from warmroute.request.canonical_json import canonical_json, encode
from warmroute.request.inference import PromptPart
from warmroute.request.media import is_media, media_digest

END = b"\xff"
TEXT = b"\xfe"
FIELD = b"\xfd"
STRING = b"\xfc"
JSON = b"\xfb"
MEDIA = b"\xfa"
BLOCK = b"\xf9"
BLOCK_END = b"\xf8"

MEDIA_BYTES = 4_000
"""Bytes of text that an image, a clip or a file counts for: about 1,000 tokens. Only the engine knows the true number."""

MAX_ITEMS = 20_000
"""Messages, blocks and fields that the prompts of a request are split into, about 0.1 s of work; the rest is written as
JSON."""

MAX_ARGUMENTS = 512 << 10
"""Bytes of arguments of all tool calls that are parsed, at most 0.1 s of work (:data:`warmroute.request.limits.LONG_BODY`);
the rest is written as text."""

MAX_SIGNED_MEDIA = 1_024
"""Media of a request whose URLs are taken apart to leave out their signatures, at most 12 us each. Further ones count as
they are written."""

TOKEN_BYTES = 4
"""Bytes of prompt of each token id."""

MEDIA_OPTIONS = frozenset({"mm_processor_kwargs", "media_io_kwargs"})
"""Fields of a request that say how its media are processed; they change nothing else."""

_TEXT_BLOCKS = frozenset({"text", "input_text", "output_text"})
_ARGUMENTS = FIELD + b"arguments" + JSON
_OPENINGS = {role: role.encode() + TEXT for role in ("system", "developer", "user", "assistant", "tool")}
NOT_RENDERED = frozenset(
    {
        "cache_control",  # says where to cache, and moves on with every turn
        "annotations",
        "created_at",
        "index",
        "logprobs",
        "provider_specific_fields",
        "signature",
        "status",
    }
)
"""Members of messages, items, blocks and tool calls that no template renders; clients send them back as they got them."""
_RENDERED_IDS = frozenset({"tool_use", "server_tool_use", "mcp_tool_use", "item_reference"})
"""Types of items whose ``id`` is rendered: it is that of a tool call, or names a stored item. A tool call in
``tool_calls`` has one, too."""
_RENAMED = {"reasoning_content": "reasoning"}  # two names of one field; engines accept both
NOTHING: tuple[object, ...] = (None, "", [], {})
# The text of this block changes with every request, and engines drop it.
_BILLING_BLOCK = "x-anthropic-billing-header"


def media_options(document: dict[str, Any]) -> bytes:
    """How the media of the request are processed, as bytes; empty if the request does not say."""
    if MEDIA_OPTIONS.isdisjoint(document):
        return b""
    options = {name: document[name] for name in MEDIA_OPTIONS if document.get(name) not in NOTHING}
    return canonical_json(options) if options else b""


class Prompt:
    """The canonical prompts of a request being written; usually one. ``media_options``: as the function of that name."""

    __slots__ = (
        "_arguments_left",
        "_items_left",
        "_media_options",
        "_pending",
        "_signed_left",
        "_spans",
        "_tools",
        "head",
        "parts",
        "starts",
        "tools_digest",
    )

    def __init__(self, media_options: bytes = b"") -> None:
        self.parts: list[PromptPart] = []
        self.head = 0
        """Parts that every prompt begins with."""
        self.starts: list[int] = []
        """Indices in ``parts`` at which the second and further prompts go on after the head."""
        self.tools_digest = b""
        """Part of the seed; empty without tools. Prompts with other tools share nothing."""
        self._tools = b""
        self._pending: list[bytes] = []
        self._spans: list[tuple[int, int, bytes]] = []
        """Where media stand among the token ids: offset and length in tokens, digest."""
        self._media_options = media_options
        self._items_left = MAX_ITEMS
        self._arguments_left = MAX_ARGUMENTS
        self._signed_left = MAX_SIGNED_MEDIA

    def branch(self) -> None:
        """What is written already begins each of the prompts that follow."""
        self.head = len(self.parts)

    def begin_next(self) -> None:
        """What follows is another prompt of the request, unless the present one is empty."""
        if len(self.parts) > (self.starts[-1] if self.starts else self.head):
            self.starts.append(len(self.parts))

    def field(self, name: str, value: object) -> None:
        """A field that templates render before the messages, or with the first: documents."""
        if value not in NOTHING:
            self._add(encoded_field(name, value) + END)

    def declare_tools(self, tools: object) -> None:
        """The tools of the request, which :meth:`tools` writes. Called before anything is written."""
        if type(tools) is list and self._can_take(tools):
            tools = [_without_marks(tool) for tool in tools]
        if tools not in NOTHING:
            self._tools = encoded_field("tools", tools) + END
            self.tools_digest = xxh3_128_digest(self._tools)

    def tools(self) -> None:
        """The tools, which templates render before the messages, or with the first."""
        self._add(self._tools)

    def messages(self, messages: list[Any]) -> None:
        """The messages of a conversation, one part each; more for one that has images.

        Each is counted when its turn comes: a longer conversation is written as the shorter one is, as far as that goes.
        """
        for place, message in enumerate(messages):
            self._items_left -= 1
            if self._items_left < 0:
                self._add(_json(messages[place:]))
                return
            if type(message) is dict and len(message) == 2:  # nearly all: a role and a text
                role, content = message.get("role"), message.get("content")
                if type(role) is str and type(content) is str and content:
                    text = content.encode("utf-8", "surrogatepass")
                    data = b"".join((_OPENINGS.get(role) or encode(role) + TEXT, text, END))
                    self.parts.append(PromptPart(data, len(data)))
                    continue
            self._message(message)

    def conversations(self, conversations: list[Any]) -> None:
        """Several conversations, each a prompt; tools and documents begin all of them."""
        self._each_a_prompt(
            conversations,
            lambda messages: self.messages(messages) if type(messages) is list else self._add(_json(messages)),
        )

    def compared(self, name: str, contents: list[Any]) -> None:
        """What is compared with the query, which stands before: each with the query is a prompt."""
        self._each_a_prompt(contents, lambda content: self.messages([{"role": name, "content": content}]))

    def _each_a_prompt(self, items: list[Any], write: Callable[[Any], None]) -> None:
        if not self._can_take(items):
            self._add(_json(items))
            return
        self.branch()
        for item in items:
            self.begin_next()
            write(item)

    def system(self, content: object) -> None:
        """Instructions that stand outside the list of messages."""
        if isinstance(content, list):
            content = [block for block in content if not _is_billing(block)]
        if content not in NOTHING:
            self.messages([{"role": "system", "content": content}])

    def plain(self, prompt: object) -> int | None:
        """Prompts that no template renders: a text, token ids, or a list of either or of texts with images, each a prompt.

        Returns the exact number of tokens if they are token ids.
        """
        if type(prompt) is str:
            self._add(encode(prompt))
            return None
        if type(prompt) is list and prompt and (type(prompt[0]) is int or self._can_take(prompt)):
            kind = type(prompt[0])
            try:
                if kind is int:
                    self._ids(prompt)
                    return len(prompt)
                if kind is list:
                    for ids in [array("I", ids).tobytes() for ids in prompt]:
                        self.begin_next()
                        self._add(ids)
                    return sum(map(len, prompt))
                if kind is str:
                    for text in [encode(text) for text in prompt]:
                        self.begin_next()
                        self._add(text)
                    return None
                if kind is dict:
                    for block in prompt:
                        self.begin_next()
                        self._block(block)
                        self._pending.append(END)
                        self._flush()
                    return None
            except (TypeError, AttributeError, OverflowError):  # mixed types, numbers that are no token ids
                pass
        if prompt not in NOTHING:
            self._add(_json(prompt))
        return None

    def features(self, features: object) -> None:
        """Where media stand among the token ids that follow. The engine's format: hashes, and offsets and lengths in
        tokens, by modality (``mm_hashes`` and ``mm_placeholders`` of vLLM's GenerateRequest)."""
        if type(features) is not dict:
            return
        try:
            for modality, ranges in features["mm_placeholders"].items():
                hashes = features["mm_hashes"][modality]
                if not self._can_take(ranges):
                    raise ValueError
                for span, content in zip(ranges, hashes, strict=True):
                    digest = xxh3_128_digest(encode(f"{modality} {content}"))
                    self._spans.append((int(span["offset"]), int(span["length"]), digest))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):  # the engine rejects it
            self._spans.clear()
            self.field("features", {name: value for name, value in features.items() if name != "kwargs_data"})

    def content_parts(self, parts: object) -> int | None:
        """Token ids, texts and media in turn. Returns the exact number of tokens if all parts are token ids."""
        if type(parts) is not list or not self._can_take(parts):
            return self.plain(parts)
        tokens, exact = 0, True
        for part in parts:
            ids = part.get("token_ids") if type(part) is dict else None
            count = None
            if type(ids) is list:
                self._flush()
                count = self.plain(ids)
            else:
                self._block(part)
            tokens += count or 0
            exact = exact and count is not None
        self._flush()
        return tokens if tokens and exact else None

    def media(self, content: object) -> None:
        """An image, a clip, a file (or several in a list): a digest in place, a fixed number of bytes."""
        if type(content) is list and self._can_take(content):
            for one in content:
                self.media(one)
            return
        self._flush()
        self._signed_left -= 1
        digest = media_digest(content, self._media_options, whole_url=self._signed_left < 0)
        self._media(digest, MEDIA_BYTES)

    def _media(self, digest: bytes, prompt_bytes: int) -> None:
        self.parts.append(PromptPart(MEDIA + digest, prompt_bytes))

    def _ids(self, ids: list[int]) -> None:
        """Token ids, with the media of ``features`` in their places."""
        data = array("I", ids).tobytes()
        position = 0
        for offset, length, digest in sorted(self._spans):
            if not position <= offset <= offset + length <= len(ids):  # the engine rejects it
                continue
            self._add(data[TOKEN_BYTES * position : TOKEN_BYTES * offset])
            self._media(digest, TOKEN_BYTES * length)
            position = offset + length
        self._add(data[TOKEN_BYTES * position :])

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
        item_type = item.get("type")
        for name in sorted(item):
            value = item[name]
            if name in NOT_RENDERED or name == "content" or value in NOTHING or (name == kind and type(value) is str):
                continue
            if name == "id" and not (type(item_type) is str and item_type in _RENDERED_IDS):
                continue
            if name == "type" and value == "message":  # the type of an item that has none
                continue
            if name == "output" and type(value) is not str:  # of a tool: blocks, or a screenshot
                pending += (FIELD, b"output")
                self._content(value)
            elif name == "result" and item_type == "image_generation_call":
                pending += (FIELD, b"result")
                self.media(value)
            elif name == "tool_calls" and type(value) is list and self._can_take(value):
                pending += (FIELD, b"tool_calls")
                for call in value:
                    self._call(call)
            elif name == "function_call":
                pending += (FIELD, b"function_call")
                self._call(value)
            else:
                self._member(_RENAMED.get(name, name), value)

    def _call(self, call: object) -> None:
        """A tool call: the members of its function and its own."""
        pending = self._pending
        if type(call) is not dict or not self._can_take(call):
            pending.append(_json(call))
            return
        pending.append(BLOCK)
        function = call.get("function")
        for members in (function, call) if type(function) is dict else (call,):
            for name in sorted(members):
                value = members[name]
                if name not in NOT_RENDERED and value not in NOTHING and value is not function:
                    self._member(name, value)
        pending.append(BLOCK_END)

    def _member(self, name: str, value: object) -> None:
        if name == "arguments" and type(value) is str:
            self._arguments(value)
        else:
            self._pending.append(encoded_field(name, value))

    def _arguments(self, arguments: str) -> None:
        """The arguments of a tool call as an object, as engines parse and render them; as a text if they are none."""
        text = encode(arguments)
        self._arguments_left -= len(text)
        if self._arguments_left >= 0:
            try:
                parsed = orjson.loads(text)
                if type(parsed) is dict:
                    if parsed:
                        self._pending.append(_ARGUMENTS + canonical_json(parsed))  # a copy, as in _json
                    return
            except (orjson.JSONDecodeError, RecursionError):
                pass
        self._pending += (FIELD, b"arguments", STRING, text)

    def _content(self, content: object) -> None:
        if type(content) is str:
            if content:
                self._pending += (TEXT, encode(content))
        elif type(content) is list:
            for place, block in enumerate(content):
                self._items_left -= 1  # see `messages`
                if self._items_left < 0:
                    self._pending.append(_json(content[place:]))
                    return
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
            caption = block.get("text")
            if type(caption) is str:
                self._content(caption)
            self.media(block)
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


def begins_with_system(messages: object) -> bool:
    """Whether the first of the messages is the system prompt."""
    if type(messages) is not list or not messages or type(messages[0]) is not dict:
        return False
    return messages[0].get("role") in ("system", "developer")


def encoded_field(name: str, value: object) -> bytes:
    """A field of a request or a message with its name; a text is not written as JSON."""
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


def _without_marks(tool: object) -> object:
    """The tool without marks that are not rendered."""
    if type(tool) is not dict or NOT_RENDERED.isdisjoint(tool):
        return tool
    return {name: value for name, value in tool.items() if name not in NOT_RENDERED}


def _is_billing(block: object) -> bool:
    text = block.get("text") if type(block) is dict else None
    return type(text) is str and text.startswith(_BILLING_BLOCK)
