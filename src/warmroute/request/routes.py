"""What each path takes: which fields of its body hold the prompt, in which order, and what the body must have."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote

from warmroute.request.prompt import Prompt, begins_with_system
from warmroute.request.rejections import Rejection, malformed
from warmroute.request.state_ids import STATE_FIELDS
from warmroute.request.truncated import (
    shorten_content,
    shorten_input,
    shorten_messages,
    shorten_plain,
    shorten_system_message,
)

Document = dict[str, Any]
"""A decoded body."""


# ---------------------------------------------------------------- the fields that hold prompts


class Kind(NamedTuple):
    """How a field's value goes into the prompt."""

    write: Callable[[Prompt, str, Any], int | None]
    """Takes the prompt, the field's name and its value. Returns the exact number of tokens if the value is token ids."""
    shorten: Callable[[Any], tuple[object, int] | None] | None = None
    """For a value that was cut off: what of it is written, and the number of marks at its end to remove afterwards. None:
    the cut is in what another field of that name writes."""


def _declare_tools(prompt: Prompt, name: str, value: Any) -> None:
    prompt.declare_tools(value)


def _write_tools(prompt: Prompt, name: str, value: Any) -> None:
    prompt.tools()


def _write_field(prompt: Prompt, name: str, value: Any) -> None:
    prompt.field(name, value)


def _write_system_message(prompt: Prompt, name: str, value: Any) -> None:
    if begins_with_system(value):
        prompt.messages(value[:1])


def _write_messages(prompt: Prompt, name: str, value: Any) -> None:
    if type(value) is list:
        prompt.messages(value)


def _write_messages_after_system(prompt: Prompt, name: str, value: Any) -> None:
    _write_messages(prompt, name, value[1:] if begins_with_system(value) else value)


def _write_conversations(prompt: Prompt, name: str, value: Any) -> None:
    if type(value) is list:
        prompt.conversations(value)


def _write_system(prompt: Prompt, name: str, value: Any) -> None:
    prompt.system(value)


def _write_input(prompt: Prompt, name: str, value: Any) -> None:
    prompt.messages(value if type(value) is list else [{"role": "user", "content": value}])


def _write_input_after_system(prompt: Prompt, name: str, value: Any) -> None:
    _write_input(prompt, name, value[1:] if begins_with_system(value) else value)


def _write_compared(prompt: Prompt, name: str, value: Any) -> None:
    prompt.messages([{"role": name, "content": value}])


def _write_each_compared(prompt: Prompt, name: str, value: Any) -> None:
    if type(value) is list:
        prompt.compared(name, value)
    else:
        _write_compared(prompt, name, value)


def _write_plain(prompt: Prompt, name: str, value: Any) -> int | None:
    return prompt.plain(value)


def _write_media(prompt: Prompt, name: str, value: Any) -> None:
    prompt.media(value)


def _write_features(prompt: Prompt, name: str, value: Any) -> None:
    prompt.features(value)


def _write_content_parts(prompt: Prompt, name: str, value: Any) -> int | None:
    return prompt.content_parts(value)


def _write_tensors(prompt: Prompt, name: str, value: Any) -> int | None:
    """The tensors of a request in the Open Inference Protocol: the first one that holds prompts."""
    named = [one for one in value if type(one) is dict] if type(value) is list else []
    for field in _TENSOR_NAMES:
        for tensor in named:
            data = tensor.get("data")
            if tensor.get("name") == field and data:
                return prompt.plain(_texts(data))
    return None


def _texts(data: Any) -> Any:
    """The texts of a tensor that is written as a list of rows; other data as they are."""
    if type(data) is list and all(type(row) is list and row and type(row[0]) is str for row in data):
        return [text for row in data for text in row]
    return data


_DECLARED_TOOLS = Kind(_declare_tools)
_TOOLS = Kind(_write_tools)
_FIELD = Kind(_write_field)
_SYSTEM_MESSAGE = Kind(_write_system_message, shorten_system_message)
_MESSAGES = Kind(_write_messages, shorten_messages)
_MESSAGES_AFTER_SYSTEM = Kind(_write_messages_after_system, shorten_messages)
_CONVERSATIONS = Kind(_write_conversations)
_SYSTEM = Kind(_write_system, shorten_content)
_INPUT = Kind(_write_input, shorten_input)
_INPUT_AFTER_SYSTEM = Kind(_write_input_after_system, shorten_input)
_COMPARED = Kind(_write_compared, shorten_content)
_EACH_COMPARED = Kind(_write_each_compared, shorten_content)
_PLAIN = Kind(_write_plain, shorten_plain)
_MEDIA = Kind(_write_media)
_FEATURES = Kind(_write_features)
_CONTENT_PARTS = Kind(_write_content_parts)
_TENSORS = Kind(_write_tensors)

Field = tuple[str, Kind]

_HEAD: tuple[Field, ...] = (("tools", _TOOLS), ("documents", _FIELD))
# Some templates have the system prompt first, others the tools. An engine that finds nothing of what is expected counts as
# one that has lost its cache. So prompts share only what both kinds of templates share: nothing if their tools differ, and
# the tools only if their system prompts are equal.
_DECLARED: Field = ("tools", _DECLARED_TOOLS)
_CHAT = (_DECLARED, ("messages", _SYSTEM_MESSAGE), *_HEAD, ("messages", _MESSAGES_AFTER_SYSTEM))
_CHATS = (_DECLARED, *_HEAD, ("messages", _CONVERSATIONS))
_ANTHROPIC = (_DECLARED, ("system", _SYSTEM), *_HEAD, ("messages", _MESSAGES))
_INSTRUCTED = (_DECLARED, ("instructions", _SYSTEM), *_HEAD, ("input", _INPUT))
_UNINSTRUCTED = (_DECLARED, ("input", _SYSTEM_MESSAGE), *_HEAD, ("input", _INPUT_AFTER_SYSTEM))
_COMPLETION = (("prompt_embeds", _MEDIA), ("prompt", _PLAIN))
_MEDIA_DATA = (("image_data", _MEDIA), ("video_data", _MEDIA), ("audio_data", _MEDIA))
MEDIA_FIELDS = frozenset({"prompt_embeds", "image_data", "video_data", "audio_data"})
_QUERIES = tuple((name, _COMPARED) for name in ("query", "queries", "text_1", "data_1"))
_COMPARED_WITH = ("documents", "items", "text_2", "data_2")
_TOKEN_ID_FIELDS = ("input_ids", "prompt_token_ids")
"""Where a client puts the ids of a prompt that it has rendered itself, beside the messages or the text."""
_TENSOR_NAMES = ("text_input", "prompt", "PROMPT", "text", "TEXT", "query", "QUERY", "input_ids", "INPUT_ID")


# ---------------------------------------------------------------- the forms of prompts


class Form(NamedTuple):
    """How the prompt of a body is read."""

    family: bytes
    """Prompts of one family are rendered alike. Token ids are a family of their own."""
    fields: tuple[Field, ...]
    """The fields that hold the prompt, in the order in which they are rendered."""


def _fixed(family: bytes, fields: tuple[Field, ...]) -> Callable[[Document], Form]:
    form = Form(family, fields)
    return lambda document: form


def _rendered_or(form_of: Callable[[Document], Form]) -> Callable[[Document], Form]:
    """The form, unless the client has rendered the prompt: then its token ids are it."""

    def rendered_or(document: Document) -> Form:
        for name in _TOKEN_ID_FIELDS:
            if document.get(name):
                return Form(form_of(document).family, ((name, _PLAIN),))
        return form_of(document)

    return rendered_or


def _responses_form(document: Document) -> Form:
    """Instructions stand before the input; without them it may begin with a system message."""
    return _INSTRUCTED_FORM if document.get("instructions") else _UNINSTRUCTED_FORM


def _generate_form(document: Document) -> Form:
    """SGLang's and vLLM's own paths, and Triton's: the prompt has one of several names."""
    for name in ("text", "text_input", "prompt", "input_ids", "token_ids", "content_parts"):
        if document.get(name) is not None:
            break
    else:
        return Form(b"text", _MEDIA_DATA)
    if name in ("token_ids", "content_parts"):
        return _TOKENS_FORM
    return Form(b"text", ((name, _PLAIN), *_MEDIA_DATA))


def _pooling_form(document: Document) -> Form:
    """Embeddings, classification, reranking and scores: a chat, or ``input``, or a query and what it is compared with."""
    if type(document.get("messages")) is list:
        return Form(b"pooling", _CHAT)
    for name in ("input", "text", "inputs", "texts"):
        if document.get(name) is not None:
            return Form(b"pooling", ((name, _PLAIN),))
    for name in _COMPARED_WITH:
        if document.get(name):
            return Form(b"pooling", (*_QUERIES, (name, _EACH_COMPARED)))
    return Form(b"pooling", _QUERIES)


_NO_PROMPT = _fixed(b"", ())
_TOKENS_FORM = Form(b"text", (("features", _FEATURES), ("content_parts", _CONTENT_PARTS), ("token_ids", _PLAIN)))
_INSTRUCTED_FORM, _UNINSTRUCTED_FORM = Form(b"chat", _INSTRUCTED), Form(b"chat", _UNINSTRUCTED)
_chat_form = _rendered_or(_fixed(b"chat", _CHAT))
_completion_form = _rendered_or(_fixed(b"text", _COMPLETION))


def _any_form(document: Document) -> Form:
    """SageMaker's path: it takes the bodies of chats, completions and pooling."""
    if type(document.get("messages")) is list:
        return _chat_form(document)
    if "prompt" in document or "prompt_embeds" in document:
        return _completion_form(document)
    return _pooling_form(document)


# ---------------------------------------------------------------- the paths


def _check_messages(document: Document) -> Rejection | None:
    messages = document.get("messages")
    if type(messages) is not list:
        return malformed("`messages` is required and must be a list.", param="messages")
    if not messages and not any(document.get(name) for name in _TOKEN_ID_FIELDS):
        return malformed("`messages` must have at least one message.", param="messages")
    return None


def _check_prompt(document: Document) -> Rejection | None:
    if document.get("prompt") is None and document.get("prompt_embeds") is None:
        return malformed("`prompt` is required.", param="prompt")
    return None


class Route(NamedTuple):
    """How the bodies of one path are read."""

    form: Callable[[Document], Form]
    """How the prompt of a body is read; many paths take several forms."""
    needs_model: bool = False
    """A body without a model is rejected, unless the path names the model."""
    check: Callable[[Document], Rejection | None] | None = None
    """Why a body is rejected though it is a JSON object, if it is."""
    state_fields: tuple[str, ...] = STATE_FIELDS
    """The fields that name what the engine keeps."""


_POOLING = Route(_pooling_form)
_GENERATE = Route(_generate_form)
_UNCACHED = Route(_NO_PROMPT)  # tokenizing and counting use no KV cache, so they have no prompt to match
_SESSION = Route(_NO_PROMPT, state_fields=("session_id",))

ROUTES = {
    "/chat/completions": Route(_chat_form, True, _check_messages),
    "/chat/completions/batch": Route(_fixed(b"chat", _CHATS), True, _check_messages),
    "/v2/chat": Route(_fixed(b"chat", _CHAT), True, _check_messages),
    "/completions": Route(_completion_form, True, _check_prompt),
    "/responses": Route(_responses_form, True),
    "/v1/messages": Route(_fixed(b"chat", _ANTHROPIC), True, _check_messages),
    "/v1/messages/count_tokens": Route(_NO_PROMPT, True),
    "/embeddings": Route(_pooling_form, True),
    "/embed": _POOLING,
    "/rerank": _POOLING,
    "/score": _POOLING,
    "/pooling": _POOLING,
    "/classify": _POOLING,
    "/generate": _GENERATE,
    "/generate_stream": _GENERATE,
    "/infer": Route(_fixed(b"text", (("inputs", _TENSORS),))),
    "/invocations": Route(_any_form),
    "/open_session": _SESSION,
    "/close_session": _SESSION,
    "/tokenize": _UNCACHED,
    "/detokenize": _UNCACHED,
}
"""By the end of the path; the longest wins. Whatever stands before it does not matter."""

_LONGEST = max(suffix.count("/") for suffix in ROUTES)
_MODEL_IN_PATH = re.compile(r"/(?:deployments|models)/([^/?]+)/")


@lru_cache(maxsize=256)
def find_route(path: str, content_type: str) -> Route | None:
    """The route of JSON sent to ``path``; a query string and a prefix are allowed. None for other paths and content."""
    if not _is_json(content_type):
        return None
    segments = path.partition("?")[0].rstrip("/").rsplit("/", _LONGEST)[1:]
    for start in range(len(segments)):
        route = ROUTES.get("/" + "/".join(segments[start:]))
        if route is not None:
            return route
    return None


def model_in_path(path: str) -> str:
    """The model that the path names (Azure's deployments, Triton's and the Open Inference Protocol's models), or ``""``."""
    named = _MODEL_IN_PATH.search(path)
    return unquote(named[1]) if named is not None else ""


def _is_json(content_type: str) -> bool:
    """Whether the media type is JSON. A client that gives none is taken to send JSON, as the path says."""
    if content_type == "application/json":
        return True
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type in ("application/json", "") or media_type.endswith("+json")
