"""HTTP bodies to inference requests: one JSON decode, then one pass over what is rendered.

Pure functions, safe to be called from any thread. They never raise, whatever the path and the body are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import orjson

from warmroute.request.inference import NO_PROMPT, InferenceRequest, PromptPart
from warmroute.request.limits import LENIENT_BODY, LENIENT_VALUES, MAX_JSON_VALUES, count_values
from warmroute.request.prompt import Prompt, media_options
from warmroute.request.rejections import Rejection, malformed, too_many_values
from warmroute.request.routes import MEDIA_FIELDS, Document, Form, Route, find_route, model_in_path
from warmroute.request.seed import seed
from warmroute.request.state_ids import state_in
from warmroute.request.truncated import decode_beginning, ends_in_media

MAX_MODEL_LENGTH = 1024
"""Characters of a model's name; engines name their models by repository or path."""


def parse(
    path: str, content_type: str, body: bytes, *, max_values: int = MAX_JSON_VALUES
) -> InferenceRequest | Rejection:
    """The inference request that ``body`` is, sent to ``path`` (a query string and a prefix are allowed).

    A body that is not JSON, or that goes to a path without a prompt, gives a request without a prompt and is never rejected.

    400: the body is not a JSON object, lacks its messages or prompt, or names no model. Some engines would accept the last.
    413: it has more than ``max_values`` values. They are counted before it is decoded.
    """
    route = find_route(path, content_type)
    if route is None:
        return NO_PROMPT
    if count_values(body, max_values) > max_values:
        return too_many_values(max_values)
    document = _decode(body)
    if isinstance(document, Rejection):
        return document
    if type(document) is not dict:
        return malformed("The request body must be a JSON object.")
    model = document.get("model")
    if model is None:
        model = model_in_path(path) or None
    refused = _check_model(model, route) or (route.check and route.check(document))
    if refused:
        return refused
    try:
        return _read(route.form(document), document, model or "", state=state_in(document, route.state_fields))
    except RecursionError:
        return _TOO_DEEP


def parse_beginning(
    path: str, content_type: str, body: bytes, *, model: str = "", max_values: int = MAX_JSON_VALUES
) -> InferenceRequest:
    """The inference request of whose body only the beginning, ``body``, was received.

    Nothing is rejected. The prompt ends where the body ends; ``model`` is used if the body names none up to there. A body
    that ends in an image gives a request that is ``partial``: the length of base64 does not show the length of the prompt.
    """
    route = find_route(path, content_type)
    if route is None or count_values(body, max_values) > max_values:
        return NO_PROMPT
    document = decode_beginning(body)
    if document is None:
        return NO_PROMPT
    form = route.form(document)
    marks, in_media = 0, False
    if document:
        cut, value = document.popitem()
        in_media = cut in MEDIA_FIELDS or ends_in_media(value)
        for place, (name, kind) in enumerate(form.fields):
            shortened = kind.shorten(value) if name == cut and kind.shorten is not None else None
            if shortened is not None:  # a part of any other field would be a wrong value
                document[cut], marks = shortened
                form = form._replace(fields=form.fields[: place + 1])
                break
    named = document.get("model")
    if type(named) is str:
        model = named
    try:
        state = state_in(document, route.state_fields)
        request = _read(form, document, model if len(model) <= MAX_MODEL_LENGTH else "", marks, state=state)
    except RecursionError:
        return NO_PROMPT
    return request._replace(partial=True) if in_media else request


def _read(form: Form, document: Document, model: str, marks: int = 0, *, state: str = "") -> InferenceRequest:
    """The request in ``document``, whose prompts have this form. ``marks`` bytes at the end of the last field are
    removed."""
    if not model.isascii():
        model = model.encode("utf-8", "replace").decode()  # lone surrogates could not be written to a header or a log
    prompt = Prompt(media_options(document))
    parts = prompt.parts
    tokens, before = None, 0
    for name, kind in form.fields:
        value = document.get(name)
        if value is not None:
            before = len(parts)
            exact = kind.write(prompt, name, value)
            tokens = tokens if exact is None else exact
    if marks and len(parts) > before:
        data = parts.pop().data[:-marks]
        if data:
            parts.append(PromptPart(data, len(data)))
    starts = tuple([start for start in prompt.starts if start < len(parts)])  # the last prompt may be empty
    unusual = not _UNUSUAL.isdisjoint(document)
    return InferenceRequest(
        model=model,
        seed=seed((form.family if tokens is None else b"tokens") + prompt.tools_digest, model, document),
        parts=tuple(parts),
        head=prompt.head,
        starts=starts,
        samples=_samples(document) if unusual else 1,
        reads_cache=not unusual or _reads_cache(document),
        state=state,
        prompt_bytes=_prompt_bytes(parts, prompt.head, starts),
        tokens=tokens,
        stream=document.get("stream") is True,
        max_tokens=_max_tokens(document),
        priority=_integer(document.get("priority")) or 0,
    )


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
    if len(body) > LENIENT_BODY or count_values(body, LENIENT_VALUES) > LENIENT_VALUES:
        return malformed(f"The request body is not valid JSON: {why}")
    try:  # decoded here: json.loads would accept UTF-16 too, in which the values cannot be counted
        return json.loads(body.decode("utf-8", "surrogatepass").removeprefix("\ufeff"), parse_int=_parse_integer)
    except RecursionError:
        return _TOO_DEEP
    except ValueError:
        return malformed(f"The request body is not valid JSON: {why}")


def _parse_integer(digits: str) -> int | float:
    """As orjson: an integer of more than 64 bits becomes a float."""
    if len(digits) > _MAX_DIGITS:
        return float(digits)
    value = int(digits)
    return value if -(2**63) <= value < 2**64 else float(digits)


def _check_model(model: object, route: Route) -> Rejection | None:
    if type(model) is str:
        if len(model) > MAX_MODEL_LENGTH:  # it is kept with the decision
            return malformed(f"`model` must have at most {MAX_MODEL_LENGTH} characters.", param="model")
    elif model is not None:
        return malformed("`model` must be a string.", param="model", reason="no-model")
    elif route.needs_model:
        return malformed("model not found in request body", param="model", reason="no-model")
    return None


def _prompt_bytes(parts: Sequence[PromptPart], head: int, starts: Sequence[int]) -> int:
    """Bytes of all prompts; the head, which stands in the parts once, is in each."""
    total = sum([part.prompt_bytes for part in parts])
    if starts and head:
        total += len(starts) * sum([part.prompt_bytes for part in parts[:head]])
    return total


_MAX_SAMPLES = 128
"""Largest ``n`` that counts."""
_UNUSUAL = frozenset({"n", "sampling_params", "prompt_logprobs", "echo", "return_logprob"})
"""Fields that may ask for several answers, or keep the engine from reading its cache. Most requests have none."""


def _samples(document: Document) -> int:
    value = document.get("n")
    if value is None and "sampling_params" in document and type(document["sampling_params"]) is dict:
        value = document["sampling_params"].get("n")
    return max(1, min(_integer(value) or 1, _MAX_SAMPLES))


def _reads_cache(document: Document) -> bool:
    """Not if the engine has to compute the log probabilities of the prompt's tokens: what is cached has none.

    vLLM skips its cache for ``prompt_logprobs``, and for ``echo`` with ``logprobs``, which asks for them, too
    (SamplingParams.skip_reading_prefix_cache); SGLang for ``return_logprob`` from ``logprob_start_len`` on.
    """
    parameters = document.get("sampling_params")
    for fields in (document, parameters) if type(parameters) is dict else (document,):
        if fields.get("prompt_logprobs") is not None:
            return False
    logprobs = document.get("logprobs")
    if document.get("echo") is True and logprobs is not None and logprobs is not False:
        return False
    wanted, start = document.get("return_logprob"), document.get("logprob_start_len")
    starts = start if type(start) is list else [start]
    return not ((wanted is True or (type(wanted) is list and True in wanted)) and any(_at_start(one) for one in starts))


def _at_start(position: object) -> bool:
    """SGLang's default, -1, is the end of the prompt."""
    return type(position) is int and position >= 0


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
    """A whole number, clamped to 32 bits: larger ones mean "no limit", and a huge one could not become a float."""
    if type(value) is int and -_MAX_INTEGER <= value <= _MAX_INTEGER:  # nearly all
        return value
    if type(value) is int or (type(value) is float and value.is_integer()):
        return int(max(-_MAX_INTEGER, min(value, _MAX_INTEGER)))
    return None
