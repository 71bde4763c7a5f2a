"""HTTP bodies to inference requests: one JSON decode, then one pass over what is rendered.

Pure functions, safe to be called from any thread. They never raise, whatever the path and the body are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from warmroute.request.inference import NO_PROMPT, InferenceRequest, PromptPart
from warmroute.request.limits import LENIENT_BODY, MAX_JSON_VALUES, count_values
from warmroute.request.prompt import Prompt, seed
from warmroute.request.rejections import Rejection, malformed, too_many_values
from warmroute.request.truncated import (
    decode_beginning,
    ends_in_media,
    shorten_content,
    shorten_input,
    shorten_messages,
    shorten_plain,
)

MAX_MODEL_LENGTH = 1024
"""Characters of a model's name; engines name their models by repository or path."""

Document = dict[str, Any]


def parse(
    path: str, content_type: str, body: bytes, *, max_values: int = MAX_JSON_VALUES
) -> InferenceRequest | Rejection:
    """The inference request that ``body`` is, sent to ``path`` (a query string and a prefix are allowed).

    What is no JSON, or sent to a path that takes no prompt, is routed without one and never refused. Refused with 400 is a
    body that is no JSON object or has no messages, as every engine does, and one that names no model, which some would take;
    with 413 a body of more than ``max_values`` values, before it is decoded.
    """
    route = _find_route(path, content_type)
    if route is None:
        return NO_PROMPT
    if count_values(body, max_values) > max_values:
        return too_many_values(max_values)
    document = _decode(body)
    if isinstance(document, Rejection):
        return document
    if type(document) is not dict:
        return malformed("The request body must be a JSON object.")
    refused = _check_model(document, route) or (route.check and route.check(document))
    if refused:
        return refused
    try:
        return _read(route.family, _fields(route, document), document, document.get("model") or "")
    except RecursionError:
        return _TOO_DEEP


def parse_beginning(
    path: str, content_type: str, body: bytes, *, model: str = "", max_values: int = MAX_JSON_VALUES
) -> InferenceRequest:
    """The inference request of whose body only the beginning, ``body``, was received.

    Nothing is refused. The prompt ends where the body does; if the model was to come later, it is ``model``. A body that
    ends in an image gives a request that is ``partial``: base64 says nothing of the length of the prompt.
    """
    route = _find_route(path, content_type)
    if route is None or count_values(body, max_values) > max_values:
        return NO_PROMPT
    document = decode_beginning(body)
    if document is None:
        return NO_PROMPT
    fields = _fields(route, document)
    marks, in_media = 0, False
    if document:
        cut, value = document.popitem()
        in_media = cut in _MEDIA_FIELDS or ends_in_media(value)
        for place, (name, kind) in enumerate(fields):
            if name == cut and kind.shorten is not None:  # a beginning of other fields would be a wrong value
                document[cut], marks = kind.shorten(value)
                fields = fields[: place + 1]
                break
    named = document.get("model")
    if type(named) is str:
        model = named
    try:
        request = _read(route.family, fields, document, model if len(model) <= MAX_MODEL_LENGTH else "", marks)
    except RecursionError:
        return NO_PROMPT
    return request._replace(partial=True) if in_media else request


def _read(
    family: bytes, fields: tuple[_Field, ...], document: Document, model: str, marks: int = 0
) -> InferenceRequest:
    """The request in ``document``: its prompt is in ``fields``, in this order. The last field's ``marks`` are taken off."""
    if not model.isascii():
        model = model.encode("utf-8", "replace").decode()  # lone surrogates could not be written to a header or a log
    prompt = Prompt()
    parts = prompt.parts
    tokens, before = None, 0
    for name, kind in fields:
        value = document.get(name)
        if value is not None:
            before = len(parts)
            exact = kind.write(prompt, name, value)
            tokens = tokens if exact is None else exact
    if marks and len(parts) > before:
        data = parts.pop().data[:-marks]
        if data:
            parts.append(PromptPart(data, len(data)))
    return InferenceRequest(
        model=model,
        seed=seed(family if tokens is None else b"tokens", model, document),
        parts=tuple(parts),
        prompt_bytes=sum([part.prompt_bytes for part in parts]),
        tokens=tokens,
        stream=document.get("stream") is True,
        max_tokens=_max_tokens(document),
        priority=_integer(document.get("priority")) or 0,
    )


# ---------------------------------------------------------------- the fields that hold prompts


class _Kind(NamedTuple):
    """How a field's value goes into the prompt."""

    write: Callable[[Prompt, str, Any], int | None]
    """Takes the prompt, the field's name and its value; returns the exact number of tokens, of token ids."""
    shorten: Callable[[Any], tuple[object, int]] | None = None
    """The value to be written of a cut one, and the number of marks at its end to be taken off again."""


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


_FIELD = _Kind(_write_field)
_MESSAGES = _Kind(_write_messages, shorten_messages)
_SYSTEM = _Kind(_write_system, shorten_content)
_INPUT = _Kind(_write_input, shorten_input)
_COMPARED = _Kind(_write_compared, shorten_content)
_PLAIN = _Kind(_write_plain, shorten_plain)
_MEDIA = _Kind(_write_media)

_Field = tuple[str, _Kind]

_HEAD: tuple[_Field, ...] = (("tools", _FIELD), ("documents", _FIELD))
_CHAT = (*_HEAD, ("messages", _MESSAGES))
_ANTHROPIC = (*_HEAD, ("system", _SYSTEM), ("messages", _MESSAGES))
_RESPONSES = (*_HEAD, ("instructions", _SYSTEM), ("input", _INPUT))
_COMPLETION = (("prompt_embeds", _MEDIA), ("prompt", _PLAIN))
_MEDIA_DATA = (("image_data", _MEDIA), ("video_data", _MEDIA), ("audio_data", _MEDIA))
_MEDIA_FIELDS = frozenset({"prompt_embeds", "image_data", "video_data", "audio_data"})
_COMPARED_FIELDS = tuple(
    (name, _COMPARED) for name in ("query", "queries", "text_1", "data_1", "documents", "items", "text_2", "data_2")
)


def _generate_fields(document: Document) -> tuple[_Field, ...]:
    """SGLang's and vLLM's own paths, and Triton's: the prompt goes by several names, only one of which is there."""
    for name in ("text", "text_input", "prompt", "input_ids", "token_ids"):
        if document.get(name) is not None:
            return ((name, _PLAIN), *_MEDIA_DATA)
    return _MEDIA_DATA


def _pooling_fields(document: Document) -> tuple[_Field, ...]:
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


class _Route(NamedTuple):
    family: bytes
    """Requests of one family are rendered alike."""
    needs_model: bool
    fields: tuple[_Field, ...] | Callable[[Document], tuple[_Field, ...]]
    """The fields that hold the prompt, in the order in which they are rendered."""
    check: Callable[[Document], Rejection | None] | None = None


# Tokenizing and counting compute no KV cache: no engine is warm for them, and none becomes so by them.
_ROUTES = {
    "/v1/chat/completions": _Route(b"chat", True, _CHAT, _check_messages),
    "/v1/completions": _Route(b"text", True, _COMPLETION, _check_prompt),
    "/v1/responses": _Route(b"chat", True, _RESPONSES),
    "/v1/messages": _Route(b"chat", True, _ANTHROPIC, _check_messages),
    "/v1/messages/count_tokens": _Route(b"", True, ()),
    "/v1/embeddings": _Route(b"pooling", True, _pooling_fields),
    "/rerank": _Route(b"pooling", False, _pooling_fields),
    "/score": _Route(b"pooling", False, _pooling_fields),
    "/pooling": _Route(b"pooling", False, _pooling_fields),
    "/classify": _Route(b"pooling", False, _pooling_fields),
    "/generate": _Route(b"text", False, _generate_fields),
    "/generate_stream": _Route(b"text", False, _generate_fields),
    "/inference/v1/generate": _Route(b"text", False, _generate_fields),
    "/tokenize": _Route(b"", False, ()),
    "/detokenize": _Route(b"", False, ()),
}
"""By the end of the path; the longest wins."""


def _fields(route: _Route, document: Document) -> tuple[_Field, ...]:
    return route.fields(document) if callable(route.fields) else route.fields


def _find_route(path: str, content_type: str) -> _Route | None:
    """How JSON sent to ``path`` is read; None for other paths and for what is no JSON."""
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
    """JSON by its media type; of a client that gives none, the path decides."""
    if content_type == "application/json":
        return True
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type in ("application/json", "") or media_type.endswith("+json")


# ---------------------------------------------------------------- values

_MAX_INTEGER = 2**31 - 1
_MAX_DIGITS = len(str(-(2**63)))
_TOO_DEEP = malformed("The request body is nested too deeply.")


def _decode(body: bytes) -> object:
    """The decoded body, or the rejection. The standard library decodes lone surrogates and NaN, which orjson rejects."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        why = str(error)
    if len(body) > LENIENT_BODY:
        return malformed(f"The request body is not valid JSON: {why}")
    try:  # decoded here, for json.loads would guess UTF-16, of which the values cannot be counted
        return json.loads(body.decode("utf-8", "surrogatepass").removeprefix("\ufeff"), parse_int=_parse_integer)
    except RecursionError:
        return _TOO_DEEP
    except ValueError:
        return malformed(f"The request body is not valid JSON: {why}")


def _parse_integer(digits: str) -> int | float:
    """As orjson does: what needs more than 64 bits is a float."""
    if len(digits) > _MAX_DIGITS:
        return float(digits)
    value = int(digits)
    return value if -(2**63) <= value < 2**64 else float(digits)


def _check_model(document: Document, route: _Route) -> Rejection | None:
    model = document.get("model")
    if type(model) is str:
        if len(model) > MAX_MODEL_LENGTH:  # it is kept with the decision
            return malformed(f"`model` must have at most {MAX_MODEL_LENGTH} characters.", param="model")
    elif model is not None:
        return malformed("`model` must be a string.", param="model", reason="no-model")
    elif route.needs_model:
        return malformed("model not found in request body", param="model", reason="no-model")
    return None


def _max_tokens(document: Document) -> int | None:
    parameters = document.get("sampling_params")
    for fields in (document, parameters) if type(parameters) is dict else (document,):
        for name in ("max_completion_tokens", "max_tokens", "max_output_tokens", "max_new_tokens"):
            if name in fields:
                tokens = _integer(fields[name])
                if tokens is not None and tokens >= 0:
                    return tokens
    return None


def _integer(value: object) -> int | None:
    """A whole number, kept within 32 bits: what is beyond is as good as infinite, and could not become a float."""
    if type(value) is int and -_MAX_INTEGER <= value <= _MAX_INTEGER:  # nearly all
        return value
    if type(value) is int or (type(value) is float and value.is_integer()):
        return int(max(-_MAX_INTEGER, min(value, _MAX_INTEGER)))
    return None
