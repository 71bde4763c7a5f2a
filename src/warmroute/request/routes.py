"""What each path takes: which fields of its body hold the prompt, in which order, and what the body must have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from warmroute.request.prompt import Prompt
from warmroute.request.rejections import Rejection, malformed
from warmroute.request.truncated import shorten_content, shorten_input, shorten_messages, shorten_plain

Document = dict[str, Any]
"""A decoded body."""


# ---------------------------------------------------------------- the fields that hold prompts


class Kind(NamedTuple):
    """How a field's value goes into the prompt."""

    write: Callable[[Prompt, str, Any], int | None]
    """Takes the prompt, the field's name and its value. Returns the exact number of tokens if the value is token ids."""
    shorten: Callable[[Any], tuple[object, int]] | None = None
    """For a value that was cut off: what of it is written, and the number of marks at its end to remove afterwards."""


def _write_field(prompt: Prompt, name: str, value: Any) -> None:
    prompt.field(name, value)


def _write_messages(prompt: Prompt, name: str, value: Any) -> None:
    if type(value) is list:
        prompt.messages(value)


def _write_system(prompt: Prompt, name: str, value: Any) -> None:
    prompt.system(value)


def _write_input(prompt: Prompt, name: str, value: Any) -> None:
    prompt.messages(value if type(value) is list else [{"role": "user", "content": value}])


def _write_compared(prompt: Prompt, name: str, value: Any) -> None:
    prompt.messages([{"role": name, "content": value}])


def _write_plain(prompt: Prompt, name: str, value: Any) -> int | None:
    return prompt.plain(value)


def _write_media(prompt: Prompt, name: str, value: Any) -> None:
    prompt.media(value)


_FIELD = Kind(_write_field)
_MESSAGES = Kind(_write_messages, shorten_messages)
_SYSTEM = Kind(_write_system, shorten_content)
_INPUT = Kind(_write_input, shorten_input)
_COMPARED = Kind(_write_compared, shorten_content)
_PLAIN = Kind(_write_plain, shorten_plain)
_MEDIA = Kind(_write_media)

Field = tuple[str, Kind]

_HEAD: tuple[Field, ...] = (("tools", _FIELD), ("documents", _FIELD))
_CHAT = (*_HEAD, ("messages", _MESSAGES))
_ANTHROPIC = (*_HEAD, ("system", _SYSTEM), ("messages", _MESSAGES))
_RESPONSES = (*_HEAD, ("instructions", _SYSTEM), ("input", _INPUT))
_COMPLETION = (("prompt_embeds", _MEDIA), ("prompt", _PLAIN))
_MEDIA_DATA = (("image_data", _MEDIA), ("video_data", _MEDIA), ("audio_data", _MEDIA))
MEDIA_FIELDS = frozenset({"prompt_embeds", "image_data", "video_data", "audio_data"})
_COMPARED_FIELDS = tuple(
    (name, _COMPARED) for name in ("query", "queries", "text_1", "data_1", "documents", "items", "text_2", "data_2")
)


def _generate_fields(document: Document) -> tuple[Field, ...]:
    """SGLang's and vLLM's own paths, and Triton's: the prompt has one of several names."""
    for name in ("text", "text_input", "prompt", "input_ids", "token_ids"):
        if document.get(name) is not None:
            return ((name, _PLAIN), *_MEDIA_DATA)
    return _MEDIA_DATA


def _pooling_fields(document: Document) -> tuple[Field, ...]:
    """Embeddings, classification, reranking and scores: a chat, or ``input``, or a query and what it is compared with."""
    if type(document.get("messages")) is list:
        return _CHAT
    for name in ("input", "text"):
        if document.get(name) is not None:
            return ((name, _PLAIN),)
    return _COMPARED_FIELDS


# ---------------------------------------------------------------- the paths


def _check_messages(document: Document) -> Rejection | None:
    if type(document.get("messages")) is not list:
        return malformed("`messages` is required and must be a list.", param="messages")
    return None


def _check_prompt(document: Document) -> Rejection | None:
    if document.get("prompt") is None and document.get("prompt_embeds") is None:
        return malformed("`prompt` is required.", param="prompt")
    return None


class Route(NamedTuple):
    """How the bodies of one path are read."""

    family: bytes
    """Requests of one family are rendered alike."""
    needs_model: bool
    fields: tuple[Field, ...] | Callable[[Document], tuple[Field, ...]]
    """The fields that hold the prompt, in the order in which they are rendered."""
    check: Callable[[Document], Rejection | None] | None = None
    """Why a body is rejected though it is a JSON object, if it is."""

    def fields_of(self, document: Document) -> tuple[Field, ...]:
        """The fields of ``document`` that hold its prompt."""
        return self.fields(document) if callable(self.fields) else self.fields


# Tokenizing and counting use no KV cache, so they have no prompt to match.
_ROUTES = {
    "/v1/chat/completions": Route(b"chat", True, _CHAT, _check_messages),
    "/v1/completions": Route(b"text", True, _COMPLETION, _check_prompt),
    "/v1/responses": Route(b"chat", True, _RESPONSES),
    "/v1/messages": Route(b"chat", True, _ANTHROPIC, _check_messages),
    "/v1/messages/count_tokens": Route(b"", True, ()),
    "/v1/embeddings": Route(b"pooling", True, _pooling_fields),
    "/rerank": Route(b"pooling", False, _pooling_fields),
    "/score": Route(b"pooling", False, _pooling_fields),
    "/pooling": Route(b"pooling", False, _pooling_fields),
    "/classify": Route(b"pooling", False, _pooling_fields),
    "/generate": Route(b"text", False, _generate_fields),
    "/generate_stream": Route(b"text", False, _generate_fields),
    "/inference/v1/generate": Route(b"text", False, _generate_fields),
    "/tokenize": Route(b"", False, ()),
    "/detokenize": Route(b"", False, ()),
}
"""By the end of the path; the longest wins."""


def find_route(path: str, content_type: str) -> Route | None:
    """The route of JSON sent to ``path``; a query string and a prefix are allowed. None for other paths and content."""
    route = _ROUTES.get(path)
    if route is None:
        path = path.partition("?")[0]
        segments = path.rstrip("/").rsplit("/", 3)[1:]
        for start in range(len(segments)):
            route = _ROUTES.get("/" + "/".join(segments[start:]))
            if route is not None:
                break
    return route if route is not None and _is_json(content_type) else None


def _is_json(content_type: str) -> bool:
    """Whether the media type is JSON. A client that gives none is taken to send JSON, as the path says."""
    if content_type == "application/json":
        return True
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type in ("application/json", "") or media_type.endswith("+json")
