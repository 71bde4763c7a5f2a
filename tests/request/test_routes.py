"""The paths under which gateways and engines offer their APIs, each with the smallest body that it takes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from warmroute.request.inference import NO_PROMPT, InferenceRequest
from warmroute.request.parse import MAX_MODEL_LENGTH, parse
from warmroute.request.rejections import Rejection
from warmroute.request.routes import ROUTES, find_route, model_in_path

MESSAGES = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": MESSAGES},
    "/chat/completions/batch": {"messages": [MESSAGES]},
    "/v2/chat": {"messages": MESSAGES},
    "/completions": {"prompt": "Hello"},
    "/responses": {"input": "Hello"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 9},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/embeddings": {"input": "Hello"},
    "/embed": {"inputs": ["Hello"]},
    "/rerank": {"query": "Hello", "documents": ["a"]},
    "/score": {"text_1": "Hello", "text_2": "a"},
    "/pooling": {"input": "Hello"},
    "/classify": {"input": "Hello"},
    "/generate": {"text": "Hello"},
    "/generate_stream": {"text_input": "Hello"},
    "/infer": {"inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1, 1], "data": ["Hello"]}]},
    "/invocations": {"messages": MESSAGES},
    "/open_session": {"session_id": "Hello"},
    "/close_session": {"session_id": "Hello"},
    "/tokenize": {"prompt": "Hello"},
    "/detokenize": {"tokens": [1]},
}
WITHOUT_PROMPT = {"/v1/messages/count_tokens", "/open_session", "/close_session", "/tokenize", "/detokenize"}


def request(path: str, body: dict[str, Any]) -> InferenceRequest:
    parsed = parse(path, "application/json", json.dumps(body).encode())
    assert isinstance(parsed, InferenceRequest), parsed
    return parsed


@pytest.mark.parametrize("prefix", ["", "/v1", "/qwen", "/a/b/c/d/v1", "https://host/team"])
@pytest.mark.parametrize("suffix", ROUTES)
def test_every_path_is_read_behind_any_prefix(suffix: str, prefix: str) -> None:
    parsed = request(f"{prefix}{suffix}?beta=true", {"model": "m", **BODIES[suffix]})
    assert parsed.model == "m"
    assert (b"Hello" in b"".join(part.data for part in parsed.parts)) == (suffix not in WITHOUT_PROMPT)


@pytest.mark.parametrize(
    ("path", "like"),
    [
        ("/qwen/chat/completions", "/chat/completions"),
        ("/v1/chat/completions/batch", "/chat/completions/batch"),
        ("/cohere/v2/chat", "/v2/chat"),
        ("/openai/deployments/x/chat/completions?api-version=1", "/chat/completions"),
        ("/openai/v1/responses", "/responses"),
        ("/v2/models/x/versions/1/infer", "/infer"),
        ("/v2/models/x/generate_stream", "/generate_stream"),
        ("/inference/v1/generate", "/generate"),
        ("/anthropic/v1/messages/", "/v1/messages"),
        ("/v1/threads/t/messages", None),
        ("/v1/responses/resp_1/cancel", None),
        ("/v1/mychat/completionsx", None),
        ("/v1/images/generations", None),
    ],
)
def test_which_path_is_which(path: str, like: str | None) -> None:
    assert find_route(path, "application/json") == (ROUTES[like] if like else None)


@pytest.mark.parametrize(
    "path", ["/qwen/chat/completions", "/v1/chat/completions/batch", "/cohere/v2/chat", "/invocations"]
)
def test_a_chat_is_one_prompt_wherever_it_is_sent(path: str) -> None:
    messages = [MESSAGES] if path.endswith("/batch") else MESSAGES
    one = request(path, {"model": "m", "messages": messages})
    other = request("/v1/chat/completions", {"model": "m", "messages": MESSAGES})
    assert (one.seed, one.parts) == (other.seed, other.parts)


@pytest.mark.parametrize(
    ("body", "like"),
    [
        ({"messages": MESSAGES}, "/v1/chat/completions"),
        ({"prompt": ["a", "b"]}, "/v1/completions"),
        ({"input": ["a", "b"]}, "/v1/embeddings"),
        ({"query": "q", "documents": ["a", "b"]}, "/rerank"),
        ({"text_1": "q", "text_2": ["a", "b"]}, "/score"),
    ],
)
def test_invocations_take_the_bodies_of_several_paths(body: dict[str, Any], like: str) -> None:
    assert request("/invocations", {"model": "m", **body}) == request(like, {"model": "m", **body})
    assert request("/invocations", body).model == ""


@pytest.mark.parametrize("data", [["Hello", "Ho"], [[1, 2, 3], [4, 5]], [1, 2, 3]])
def test_tensors_are_prompts(data: list[Any]) -> None:
    name = "text_input" if data[0] == "Hello" else "input_ids"
    tensors = [{"name": "max_tokens", "data": [16]}, {"name": name, "data": data}]
    one, other = (
        request("/v2/models/m/infer", {"inputs": tensors}),
        request("/v1/completions", {"model": "m", "prompt": data}),
    )
    assert (one.seed, one.parts, one.starts, one.tokens) == (other.seed, other.parts, other.starts, other.tokens)


def test_rows_of_texts_are_texts() -> None:
    rows, texts = (
        {"inputs": [{"name": "text_input", "data": data}]} for data in ([["Hello"], ["Ho"]], ["Hello", "Ho"])
    )
    assert request("/v2/models/m/infer", rows) == request("/v2/models/m/infer", texts)


@pytest.mark.parametrize("inputs", [None, [], "x", [1, {"name": ["x"]}], [{"name": "image", "data": [1]}], {"a": 1}])
def test_tensors_without_a_prompt_are_routed(inputs: object) -> None:
    assert request("/v2/models/m/infer", {"inputs": inputs}).parts == ()


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/openai/deployments/gpt-x/chat/completions?api-version=1", "gpt-x"),
        ("/v2/models/a%2Fb/generate", "a/b"),
        ("/v1/chat/completions", ""),
        ("/v1/models/m", ""),
    ],
)
def test_a_path_may_name_the_model(path: str, model: str) -> None:
    assert model_in_path(path) == model


def test_the_model_of_the_body_comes_first() -> None:
    path = "/openai/deployments/gpt-x/chat/completions"
    assert request(path, {"messages": MESSAGES}).model == "gpt-x"
    assert request(path, {"messages": MESSAGES, "model": "m"}).model == "m"
    too_long = path.replace("gpt-x", "x" * (MAX_MODEL_LENGTH + 1))
    assert isinstance(parse(too_long, "application/json", json.dumps({"messages": MESSAGES}).encode()), Rejection)


def test_what_is_not_known_is_routed() -> None:
    assert parse("/v1/threads/t/messages", "application/json", b'{"role": "user"}') is NO_PROMPT
