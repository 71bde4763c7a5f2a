"""The wire format: OpenAI requests in; vLLM's responses, chunks and errors out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import orjson
from xxhash import xxh3_64_intdigest

from warmroute_lab.simulator import tokenizer
from warmroute_lab.simulator.blocks import chain_seed, hash_packed

FINGERPRINT = "vllm-0.26.0-simulated"


class RequestError(Exception):
    """A request that gets an error response in vLLM's form."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        """``kind`` is the error's type as vLLM names it."""
        super().__init__(message)
        self.status = status
        self.body = orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": status}})


def bad_request(message: str, param: str | None = None) -> RequestError:
    """A 400 for a well-formed request that the engine cannot serve."""
    return RequestError(400, message, "BadRequestError", param)


def _invalid(location: str | int | None, problem: str, message: str, given: object, **more: object) -> RequestError:
    """A 400 for a body that breaks the schema at a field, at an offset, or (None) as a whole."""
    where = ("body",) if location is None else ("body", location)
    detail = {"type": problem, "loc": where, "msg": message, "input": given, **more}
    return RequestError(400, f"1 validation error:\n  {detail}", "Bad Request", ".".join(map(str, where)))


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation request."""

    chat: bool
    model: str
    prompt: bytes
    """Packed tokens."""
    max_tokens: int | None
    stream: bool
    include_usage: bool
    cache_salt: str | None

    def answer(self, tokens: int) -> str:
        """The generated text of that many tokens. Equal prompts get equal answers, as at temperature 0."""
        return tokenizer.generate(xxh3_64_intdigest(self.prompt), tokens)

    def hashes(self, answer: str, adapter: str | None, block_size: int) -> list[int]:
        """Block hashes of the prompt, followed by its answer."""
        seed = chain_seed(adapter=adapter, cache_salt=self.cache_salt)
        return hash_packed(self.prompt + tokenizer.encode_text(answer), block_size, seed)


def parse_body(body: bytes) -> Mapping[str, Any]:
    """A request's JSON object. Raises RequestError."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _invalid(error.pos, "json_invalid", "JSON decode error", {}, ctx={"error": error.msg}) from None
    if not isinstance(content, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise _invalid(None, "model_attributes_type", message, content)
    return content


def parse_generation(body: bytes, *, chat: bool, default_model: str) -> Generation:
    """The body of ``/v1/chat/completions`` or ``/v1/completions``. Raises RequestError."""
    content = parse_body(body)
    prompt = _chat_prompt(content) if chat else _prompt(content)
    limits = ("max_completion_tokens", "max_tokens") if chat else ("max_tokens",)
    given = [content[name] for name in limits if content.get(name) is not None]
    if any(not isinstance(value, int) or isinstance(value, bool) for value in given):
        raise _invalid("max_tokens", "int_type", "Input should be a valid integer", given[0])
    if given and given[0] < 1:
        raise bad_request(f"max_tokens must be at least 1, got {given[0]}.", "max_tokens")
    if content.get("n", 1) not in (1, None):
        raise bad_request("The simulator generates one choice only: n must be 1.", "n")
    options = content.get("stream_options") or {}
    salt = content.get("cache_salt")
    return Generation(
        chat=chat,
        model=_model(content) or default_model,
        prompt=prompt,
        max_tokens=given[0] if given else (None if chat else 16),
        stream=content.get("stream") is True,
        include_usage=isinstance(options, Mapping) and options.get("include_usage") is True,
        cache_salt=salt if isinstance(salt, str) else None,
    )


def parse_tokenize(body: bytes) -> bytes:
    """The packed tokens of a ``/tokenize`` request. Raises RequestError."""
    content = parse_body(body)
    return _chat_prompt(content) if "messages" in content else _prompt(content)


def _model(content: Mapping[str, Any]) -> str | None:
    model = content.get("model")
    if model is not None and not isinstance(model, str):
        raise _invalid("model", "string_type", "Input should be a valid string", model)
    return model


def _chat_prompt(content: Mapping[str, Any]) -> bytes:
    if "messages" not in content:
        raise _invalid("messages", "missing", "Field required", content)
    messages, tools = content["messages"], content.get("tools")
    if not isinstance(messages, list):
        raise _invalid("messages", "list_type", "Input should be a valid list", messages)
    if not messages or not all(isinstance(message, dict) and "role" in message for message in messages):
        raise bad_request("Each message must be an object with a role.", "messages")
    if tools is not None and not isinstance(tools, list):
        raise _invalid("tools", "list_type", "Input should be a valid list", tools)
    arguments = content.get("chat_template_kwargs")
    return tokenizer.encode_chat(
        messages,
        tools=tools,
        template_arguments=arguments if isinstance(arguments, dict) else None,
        add_generation_prompt=content.get("add_generation_prompt") is not False,
    )


def _prompt(content: Mapping[str, Any]) -> bytes:
    prompt = content.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return tokenizer.encode_text(prompt)
    if isinstance(prompt, list) and prompt and all(type(value) is int for value in prompt):
        try:
            return tokenizer.encode_ids(prompt)
        except OverflowError:
            raise bad_request("Token ids must lie within the vocabulary.", "prompt") from None
    if isinstance(prompt, list) and len(prompt) > 1:
        raise bad_request("The simulator takes one prompt a request.", "prompt")
    raise bad_request("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")


class Answer:
    """The answer to one generation, as one body or in chunks."""

    def __init__(self, generation: Generation, answer_id: str, created: int, finish_reason: str) -> None:
        """``created`` is the Unix time in seconds."""
        self._chat = generation.chat
        self._include_usage = generation.include_usage
        self._finish_reason = finish_reason
        self._common = {
            "id": f"{'chatcmpl' if generation.chat else 'cmpl'}-{answer_id}",
            "object": "chat.completion" if generation.chat else "text_completion",
            "created": created,
            "model": generation.model,
        }
        chunk = self._common | ({"object": "chat.completion.chunk"} if generation.chat else {})
        self._chunk = b"data: " + orjson.dumps(chunk)[:-1]

    def first_chunk(self) -> bytes:
        """The first chunk of a chat stream, sent together with its first token."""
        if not self._chat:
            return b""
        choices = (
            b',"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        )
        return self._chunk + choices + b',"prompt_token_ids":null,"prompt_text":null}\n\n'

    def chunk(self, text: str, *, last: bool) -> bytes:
        """A chunk with a part of the answer."""
        content = orjson.dumps(text)
        end = b'"%s","stop_reason":null' % self._finish_reason.encode() if last else b"null"
        if self._chat:
            choice = b'{"index":0,"delta":{"content":%s},"logprobs":null,"finish_reason":%s,"token_ids":null}'
            return self._chunk + b',"choices":[' + choice % (content, end) + b"]}\n\n"
        if not last:
            end += b',"stop_reason":null'
        choice = b'{"index":0,"text":%s,"logprobs":null,"finish_reason":%s,"prompt_token_ids":null,"token_ids":null}'
        return self._chunk + b',"choices":[' + choice % (content, end) + b'],"usage":null}\n\n'

    def closing(self, usage: Mapping[str, Any]) -> bytes:
        """The end of a stream: usage, if requested, and ``[DONE]``."""
        if not self._include_usage:
            return b"data: [DONE]\n\n"
        tail = orjson.dumps({"choices": [], "usage": usage, "system_fingerprint": FINGERPRINT})
        return self._chunk + b"," + tail[1:] + b"\n\ndata: [DONE]\n\n"

    def whole(self, text: str, usage: Mapping[str, Any]) -> bytes:
        """The body of a response that is not streamed."""
        ending = {"logprobs": None, "finish_reason": self._finish_reason, "stop_reason": None, "token_ids": None}
        choice: dict[str, Any]
        if self._chat:
            message = {
                "role": "assistant",
                "content": text,
                "refusal": None,
                "annotations": None,
                "audio": None,
                "function_call": None,
                "reasoning": None,
            }
            choice = {"index": 0, "message": message, **ending, "routed_experts": None}
        else:
            choice = {"index": 0, "text": text, **ending, "prompt_logprobs": None, "prompt_token_ids": None}
        details = {**usage["prompt_tokens_details"], "multimodal_tokens": None}
        body = self._common | {
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": {**usage, "prompt_tokens_details": details},
        }
        if self._chat:
            body |= {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
        body |= {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}
        return orjson.dumps(body)


def model_card(
    model: str, *, created: int, parent: str | None = None, max_model_len: int | None = None
) -> dict[str, object]:
    """One entry of ``/v1/models``. ``created`` is in Unix seconds; a LoRA adapter has its base model as ``parent``."""
    permission = {
        "id": f"modelperm-{uuid4().hex[:16]}",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": model,
        "parent": parent,
        "max_model_len": max_model_len,
        "permission": [permission],
    }


def usage_of(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """The usage object."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens, "created_cache_tokens": 0},
    }
