"""HTTP bodies to inference requests: one JSON decode, then one pass over what is rendered."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from warmroute.request.inference import NO_PROMPT, InferenceRequest
from warmroute.request.limits import MAX_JSON_VALUES, count_values
from warmroute.request.prompt import Prompt, ends_in_media, seed
from warmroute.request.rejections import Rejection, malformed, too_many_values
from warmroute.request.truncated import close_json

MAX_MODEL_LENGTH = 1024
"""Characters of a model's name; engines name their models by repository or path."""

Document = dict[str, Any]
Reading = int | None | Rejection
"""What reading a prompt comes to: exact tokens, if the client sent token ids, or why the request is refused."""


def parse(
    path: str,
    content_type: str,
    body: bytes,
    *,
    truncated: bool = False,
    model: str = "",
    max_values: int = MAX_JSON_VALUES,
) -> InferenceRequest | Rejection:
    """The inference request that ``body`` is, sent to ``path`` (a query string and a prefix are allowed).

    What is no JSON, or sent to a path that takes no prompt, is routed without one and never refused. Refused, with 400, is a
    body that is no JSON object or has no messages, as every engine does, and one that names no model, which some would take.
    ``truncated``: ``body`` is only the beginning; then nothing is refused, the prompt ends where it does, and if the model
    was to come later it is ``model``. If it ends in an image, the request is ``partial``: base64 says nothing of the length
    of the prompt.
    """
    route = _find_route(path)
    if route is None or not _is_json(content_type):
        return NO_PROMPT
    if count_values(body, max_values) > max_values:
        return NO_PROMPT if truncated else too_many_values(max_values)
    document = _decode(close_json(body) if truncated else body)
    if type(document) is not dict:
        if truncated:
            return NO_PROMPT
        return document if isinstance(document, Rejection) else malformed("The request body must be a JSON object.")
    cut, cut_in_media = None, False
    if truncated and document:
        cut = next(reversed(document))
        cut_in_media = cut in _MEDIA_FIELDS or ends_in_media(document[cut])
        if cut not in _CUT_FIELDS:
            del document[cut]
    named = document.get("model")
    if type(named) is str:
        model = named
    elif not truncated:
        if named is not None or route.needs_model:
            return _no_model(named)
        model = ""
    if len(model) > MAX_MODEL_LENGTH:  # it is kept with the decision
        if not truncated:
            return malformed(f"`model` must have at most {MAX_MODEL_LENGTH} characters.", param="model")
        model = ""
    if not model.isascii():
        model = model.encode("utf-8", "replace").decode()  # lone surrogates could not be written to a header or a log
    prompt = Prompt()
    try:
        tokens = route.read(document, prompt, cut)
        if isinstance(tokens, Rejection) and not truncated:
            return tokens
        exact = tokens if isinstance(tokens, int) else None
        return InferenceRequest(
            model=model,
            seed=seed(b"tokens" if exact is not None else route.family, model, document),
            parts=tuple(prompt.parts),
            weight=sum([part.weight for part in prompt.parts]),
            tokens=exact,
            stream=document.get("stream") is True,
            max_tokens=_max_tokens(document),
            priority=_integer(document.get("priority")) or 0,
            partial=cut_in_media,
        )
    except RecursionError:
        return NO_PROMPT if truncated else _TOO_DEEP


def _read_chat(document: Document, prompt: Prompt, cut: str | None) -> Reading:
    messages = document.get("messages")
    if type(messages) is not list:
        return _must_be_list("messages")
    prompt.head(document)
    prompt.messages(messages, cut=cut == "messages")
    return None


def _read_anthropic(document: Document, prompt: Prompt, cut: str | None) -> Reading:
    messages = document.get("messages")
    prompt.head(document)
    prompt.system(document.get("system"), cut=cut == "system")
    if cut == "system":
        return None
    if type(messages) is not list:
        return _must_be_list("messages")
    prompt.messages(messages, cut=cut == "messages")
    return None


def _read_responses(document: Document, prompt: Prompt, cut: str | None) -> Reading:
    prompt.head(document)
    prompt.system(document.get("instructions"), cut=cut == "instructions")
    if cut == "instructions":
        return None
    items = document.get("input")
    if type(items) is list:
        prompt.messages(items, cut=cut == "input")
    elif items is not None:
        prompt.messages([{"role": "user", "content": items}], cut=cut == "input")
    return None


def _read_completion(document: Document, prompt: Prompt, cut: str | None) -> Reading:
    embeddings = document.get("prompt_embeds")
    if embeddings is not None:
        prompt.media(embeddings)
    elif cut is None and document.get("prompt") is None:
        return malformed("`prompt` is required.", param="prompt")
    return prompt.plain(document.get("prompt"), cut=cut == "prompt")


def _read_generate(document: Document, prompt: Prompt, cut: str | None) -> Reading:
    """SGLang's and vLLM's own paths, and Triton's: the prompt goes by several names, only one of which is there."""
    tokens = None
    for name in _GENERATE_FIELDS:
        if document.get(name) is not None:
            tokens = prompt.plain(document[name], cut=cut == name)
            if cut == name:
                return tokens
            break
    for name in _GENERATE_MEDIA:
        if document.get(name) is not None:
            prompt.media(document[name])
    return tokens


def _read_pooling(document: Document, prompt: Prompt, cut: str | None) -> Reading:
    """Embeddings, classification, reranking and scores: a chat, or ``input``, or a query and what it is compared with."""
    if type(document.get("messages")) is list:
        return _read_chat(document, prompt, cut)
    for name in ("input", "text"):
        if document.get(name) is not None:
            return prompt.plain(document[name], cut=cut == name)
    for name in _COMPARED_FIELDS:
        if document.get(name) is not None:
            prompt.messages([{"role": name, "content": document[name]}], cut=cut == name)
            if cut == name:
                break
    return None


def _read_nothing(document: Document, prompt: Prompt, cut: str | None) -> Reading:
    """Tokenizing and counting compute no KV cache: no engine is warm for them, and none becomes so by them."""
    return None


class _Route(NamedTuple):
    read: Callable[[Document, Prompt, str | None], Reading]
    family: bytes
    """Requests of one family are rendered alike."""
    needs_model: bool


_ROUTES = {
    "/v1/chat/completions": _Route(_read_chat, b"chat", True),
    "/v1/completions": _Route(_read_completion, b"text", True),
    "/v1/responses": _Route(_read_responses, b"chat", True),
    "/v1/messages": _Route(_read_anthropic, b"chat", True),
    "/v1/messages/count_tokens": _Route(_read_nothing, b"", True),
    "/v1/embeddings": _Route(_read_pooling, b"pooling", True),
    "/rerank": _Route(_read_pooling, b"pooling", False),
    "/score": _Route(_read_pooling, b"pooling", False),
    "/pooling": _Route(_read_pooling, b"pooling", False),
    "/classify": _Route(_read_pooling, b"pooling", False),
    "/generate": _Route(_read_generate, b"text", False),
    "/generate_stream": _Route(_read_generate, b"text", False),
    "/inference/v1/generate": _Route(_read_generate, b"text", False),
    "/tokenize": _Route(_read_nothing, b"", False),
    "/detokenize": _Route(_read_nothing, b"", False),
}
"""By the end of the path; the longest wins."""

_GENERATE_FIELDS = ("text", "text_input", "prompt", "input_ids", "token_ids")
_GENERATE_MEDIA = ("image_data", "video_data", "audio_data")
_MEDIA_FIELDS = frozenset({"prompt_embeds", *_GENERATE_MEDIA})
_COMPARED_FIELDS = ("query", "queries", "text_1", "data_1", "documents", "items", "text_2", "data_2")
_CUT_FIELDS = frozenset({"messages", "system", "instructions", "input", *_GENERATE_FIELDS, *_COMPARED_FIELDS})
"""Members of which a beginning is worth having. A cut model or salt would be a wrong one."""

_MAX_INTEGER = 2**31 - 1
_MAX_DIGITS = len(str(-(2**63)))
_TOO_DEEP = malformed("The request body is nested too deeply.")


def _find_route(path: str) -> _Route | None:
    route = _ROUTES.get(path)
    if route is None:
        path = path.partition("?")[0]
        segments = path.rstrip("/").rsplit("/", 3)[1:]
        for start in range(len(segments)):
            route = _ROUTES.get("/" + "/".join(segments[start:]))
            if route is not None:
                break
    return route


def _is_json(content_type: str) -> bool:
    """JSON by its media type; a client that gives none is taken at its path's word."""
    if content_type == "application/json":
        return True
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type in ("application/json", "") or media_type.endswith("+json")


def _decode(body: bytes) -> object:
    """The decoded body, or the rejection. The standard library decodes lone surrogates and NaN, which orjson rejects."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        why = str(error)
    try:
        return json.loads(body, parse_int=_parse_integer)
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


def _no_model(model: object) -> Rejection:
    if model is None:
        return malformed("model not found in request body", param="model", reason="no-model")
    return malformed("`model` must be a string.", param="model", reason="no-model")


def _must_be_list(name: str) -> Rejection:
    return malformed(f"`{name}` is required and must be a list.", param=name)


def _max_tokens(document: Document) -> int | None:
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens", "max_new_tokens"):
        if name in document:
            tokens = _integer(document[name])
            if tokens is not None and tokens >= 0:
                return tokens
    parameters = document.get("sampling_params")
    return _max_tokens(parameters) if type(parameters) is dict and parameters is not document else None


def _integer(value: object) -> int | None:
    """A whole number, kept within 32 bits: what is beyond is as good as infinite, and could not become a float."""
    if type(value) is int and -_MAX_INTEGER <= value <= _MAX_INTEGER:  # nearly all
        return value
    if type(value) is int or (type(value) is float and value.is_integer()):
        return int(max(-_MAX_INTEGER, min(value, _MAX_INTEGER)))
    return None
