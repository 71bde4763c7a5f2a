"""Bodies as clients send them, path by path."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.recordings import walk_through_requests
from warmroute.prefix.chain import build
from warmroute.request.canonical_json import canonical_json
from warmroute.request.inference import NO_PROMPT, InferenceRequest
from warmroute.request.parse import parse, parse_beginning
from warmroute.request.prompt import MAX_ITEMS, MEDIA_BYTES, Prompt
from warmroute.request.rejections import Rejection

JSON = "application/json"
CHAT = "/v1/chat/completions"


def request(path: str, body: object) -> InferenceRequest:
    parsed = parse(path, JSON, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert isinstance(parsed, InferenceRequest), parsed
    repeated = len(parsed.starts) * sum(part.prompt_bytes for part in parsed.parts[: parsed.head])
    assert parsed.prompt_bytes == sum(part.prompt_bytes for part in parsed.parts) + repeated
    return parsed


def rejection(path: str, body: object) -> Rejection:
    parsed = parse(path, JSON, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert isinstance(parsed, Rejection), parsed
    return parsed


def chat(*messages: object, **fields: object) -> InferenceRequest:
    return request(CHAT, {"model": "m", "messages": list(messages), **fields})


def data(parsed: InferenceRequest) -> list[bytes]:
    return [part.data for part in parsed.parts]


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


# ---------------------------------------------------------------- chat


def test_chat() -> None:
    parsed = chat({"role": "system", "content": "Be brief."}, user("Hi"), stream=True, max_tokens=24, priority=3)
    assert parsed.model == "m"
    assert parsed.seed == b"chat\xffm"
    assert data(parsed) == [b"system\xfeBe brief.\xff", b"user\xfeHi\xff"]
    assert parsed.prompt_bytes == 17 + 8
    assert (parsed.stream, parsed.max_tokens, parsed.priority, parsed.tokens) == (True, 24, 3, None)


def test_the_second_turn_of_the_documented_conversation_matches_by_0_54() -> None:
    first, second = (request(CHAT, body) for body in walk_through_requests())
    one, two = build(first.seed, first.parts), build(second.seed, second.parts)
    matched = max(end for key, end in zip(two.hashes, two.ends, strict=True) if key in one.hashes)
    assert matched == second.parts[0].prompt_bytes == first.prompt_bytes
    assert f"{matched / two.prompt_bytes:.2f}" == "0.54"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (user("Hi"), user([{"type": "text", "text": "Hi"}])),
        (user("Hi"), user(["Hi"])),
        (user("Hi"), user([{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}])),
        (user("Hi"), {"content": "Hi", "role": "user"}),
        (user("Hi"), {"role": "user", "content": "Hi", "name": None, "tool_calls": [], "refusal": ""}),
        (user(None), {"role": "user"}),
        (user(""), user([{"type": "text", "text": ""}])),
        (
            {"role": "assistant", "content": "x", "reasoning": "y"},
            {"role": "assistant", "reasoning_content": "y", "content": "x"},
        ),
    ],
)
def test_the_same_message_said_differently(one: object, other: object) -> None:
    assert chat(one).parts == chat(other).parts


TOOL_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
DIFFERENT_MESSAGES: list[object] = [
    user("Hi"),
    user("Hi "),
    user(["H", "i"]),
    user(None),
    {"role": "system", "content": "Hi"},
    {"content": "Hi"},
    {"role": "user", "content": "Hi", "name": "bob"},
    {"role": "user", "content": "Hi", "name": "eve"},
    {"role": "assistant", "content": "Hi", "tool_calls": [TOOL_CALL]},
    {"role": "assistant", "content": "Hi", "tool_calls": [{**TOOL_CALL, "id": "c2"}]},
    {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]},
    {"role": "assistant", "content": "Hi", "reasoning": "Hm"},
    {"role": "assistant", "content": "Hi", "refusal": "No"},
    {"role": "assistant", "content": "Hi", "function_call": {"name": "f", "arguments": "{}"}},
    {"role": "tool", "content": "Hi", "tool_call_id": "c1"},
    {"role": "tool", "content": "Hi", "tool_call_id": "c2"},
    {"role": "user", "content": "Hi", "something_new": 0},
    {"role": "user", "content": "Hi", "something_new": False},
    user({"odd": 1}),
    user(5),
    user([{"type": "image_url", "image_url": {"url": "https://a/1.png"}}]),
    user([{"type": "image_url", "image_url": {"url": "https://a/2.png"}}]),
    user([{"type": "tool_result", "tool_use_id": "t", "content": "Hi"}]),
    user([{"type": "tool_result", "tool_use_id": "t", "content": "Ho"}]),
    "Hi",
    7,
    ["user", "Hi"],
]


def test_whatever_differs_in_a_message_tells_prompts_apart() -> None:
    streams = [b"".join(data(chat(message))) for message in DIFFERENT_MESSAGES]
    assert len(set(streams)) == len(streams)


def test_a_longer_text_shares_the_bytes_of_the_shorter_one() -> None:
    (short,), (long,) = data(chat(user("Tell me"))), data(chat(user("Tell me more")))
    assert long.startswith(short[:-1])
    assert not long.startswith(short)


def test_tools_and_documents_come_first_whatever_the_messages() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    one = chat(user("a"), tools=tools, documents=[{"text": "d"}])
    other = chat(user("b"), documents=[{"text": "d"}], tools=tools)
    assert len(one.parts) == 3
    assert one.parts[:2] == other.parts[:2]
    assert b'"name":"f"' in one.parts[0].data
    assert one.seed == other.seed
    assert one.seed not in (chat(user("a")).seed, chat(user("a"), tools=[*tools, *tools]).seed)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_system_prompt_comes_before_the_tools(role: str) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    system: dict[str, object] = {"role": role, "content": "Be brief."}
    told = chat(system, user("a"), tools=tools, documents=[{"text": "d"}])
    assert [part[:5] for part in data(told)] == [
        f"{role}\xfe".encode("latin-1")[:5],
        b"\xfdtool",
        b"\xfddocu",
        b"user\xfe",
    ]
    assert chat(system, tools=tools).parts == told.parts[:2]
    assert data(chat(user("a"), system, tools=tools))[1:] == [told.parts[3].data, told.parts[0].data]
    plain = request("/v1/responses", {"model": "m", "tools": tools, "input": [system, user("a")]})
    assert plain.parts == (*told.parts[:2], told.parts[3])
    body = {"model": "m", "instructions": "Be brief.", "tools": tools, "input": [system, user("a")]}
    assert data(request("/v1/responses", body))[2:] == [told.parts[0].data, told.parts[3].data]


def test_an_image_is_a_digest_of_fixed_weight_in_its_place() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    parsed = chat(user([{"type": "text", "text": "Look:"}, picture, {"type": "text", "text": "What is it?"}]))
    before, image, after = parsed.parts
    assert (before.data, after.data) == (b"user\xfeLook:", b"\xfeWhat is it?\xff")
    assert image.prompt_bytes == MEDIA_BYTES
    assert len(image.data) == 17


BASE64 = "data:image/png;base64," + "A" * 100_000
PICTURE: dict[str, object] = {"type": "image_url", "image_url": {"url": BASE64}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/responses",
            {"input": [{"type": "function_call_output", "output": [{"type": "input_image", "image_url": BASE64}]}]},
        ),
        (
            "/v1/responses",
            {"input": [{"type": "computer_call_output", "output": {"type": "screenshot", "image_url": BASE64}}]},
        ),
        ("/v1/responses", {"input": [{"type": "image_generation_call", "id": "i", "result": BASE64}]}),
        ("/v1/score", {"text_1": "q", "text_2": {"content": [PICTURE]}}),
        ("/v1/score", {"data_1": PICTURE, "data_2": "b"}),
        ("/v1/rerank", {"query": {"content": [PICTURE]}, "documents": ["a"]}),
        ("/v1/embeddings", {"input": [{"text": "a", "image": BASE64}]}),
    ],
)
def test_an_image_weighs_the_same_wherever_it_stands(path: str, body: dict[str, object]) -> None:
    one = request(path, {"model": "m", **body})
    other = request(path, json.dumps({"model": "m", **body}).replace("AAA", "BBB").encode())
    assert MEDIA_BYTES <= one.prompt_bytes < MEDIA_BYTES + 200
    assert one.parts != other.parts


def test_the_text_beside_an_image_counts_and_inputs_that_differ_tell_prompts_apart() -> None:
    inputs: list[object] = [
        [{"text": "a" * 9_000, "image": BASE64}],
        [{"text": "b" * 9_000, "image": BASE64}],
        [{"text": "a" * 9_000}, {"image": BASE64}],
        [{"text": "a" * 9_000}],
        ["a" * 9_000],
    ]
    parsed = [request("/v1/embeddings", {"model": "m", "input": one}) for one in inputs]
    assert [one.prompt_bytes >= 9_000 + MEDIA_BYTES for one in parsed] == [True, True, True, False, False]
    assert len({b"".join(data(one)) for one in parsed}) == len(inputs)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "other"},
        {"cache_salt": "s"},
        {"chat_template": "{{ messages }}"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "high"},
        {"add_special_tokens": True},
        {"extra_key": "k"},
        {"lora_path": "a"},
        {"reasoning": {"effort": "high"}},
        {"thinking": {"type": "enabled"}},
        {"output_config": {"effort": "low"}},
        {"truncate_prompt_tokens": 100},
        {"truncation_side": "left"},
        {"previous_response_id": "r"},
        {"conversation": "c"},
        {"session_params": {"id": "s"}},
    ],
)
def test_what_changes_the_head_of_the_prompt_is_in_the_seed(fields: dict[str, object]) -> None:
    plain, changed = chat(user("Hi")), chat(user("Hi"), **fields)
    assert changed.seed != plain.seed
    assert changed.parts == plain.parts


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.7, "top_p": 1, "seed": 1, "stop": ["x"]},
        {"tool_choice": "required"},
        {"structured_outputs": {"json": {}}},
        {"chat_template_kwargs": {}, "cache_salt": None},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}},
        {"output_config": {"format": {"type": "json_schema"}}, "reasoning": {"summary": "auto"}},
        {"mm_processor_kwargs": {"n": 1}, "media_io_kwargs": {"video": {"num_frames": 8}}},
        {"stream": True, "max_tokens": 5, "user": "u"},
    ],
)
def test_what_steers_decoding_only_changes_no_byte(fields: dict[str, object]) -> None:
    plain, changed = chat(user("Hi")), chat(user("Hi"), **fields)
    assert (changed.seed, changed.parts) == (plain.seed, plain.parts)


def test_a_budget_for_thinking_is_not_rendered() -> None:
    small, large, off = (
        chat(user("a"), thinking={"type": kind, "budget_tokens": budget}).seed
        for kind, budget in (("enabled", 1024), ("enabled", 8192), ("disabled", 1024))
    )
    assert small == large != off


def test_a_renamed_model_is_the_one_in_the_seed() -> None:
    asked = chat(user("Hi"), model="alias", cache_salt="s")
    direct = chat(user("Hi"), model="target", cache_salt="s")
    assert asked.seed != direct.seed
    assert asked.with_model("target") == direct


# ---------------------------------------------------------------- other paths


def test_completion_of_a_text() -> None:
    parsed = request("/v1/completions", {"model": "m", "prompt": "Once upon", "max_tokens": 7})
    assert (parsed.seed, data(parsed), parsed.tokens, parsed.max_tokens) == (b"text\xffm", [b"Once upon"], None, 7)
    assert data(request("/v1/completions", {"model": "m", "prompt": ["Once upon"]})) == [b"Once upon"]


def test_completion_of_several_texts_is_several_prompts() -> None:
    parsed = request("/v1/completions", {"model": "m", "prompt": ["one", "two", "", "three"]})
    assert (data(parsed), parsed.starts) == ([b"one", b"two", b"three"], (1, 2))
    assert parsed.lengths() == [3, 3, 5]
    for prompt in (["one", ""], ["", "one"], ["", "one", ""]):
        single = request("/v1/completions", {"model": "m", "prompt": prompt})
        assert (data(single), single.starts) == ([b"one"], ())


def test_completion_of_token_ids_has_exact_tokens() -> None:
    parsed = request("/v1/completions", {"model": "m", "prompt": [1, 2, 70_000]})
    assert (data(parsed), parsed.tokens, parsed.prompt_bytes) == ([struct.pack("<3I", 1, 2, 70_000)], 3, 12)
    assert parsed.seed == b"tokens\xffm"
    lists = request("/v1/completions", {"model": "m", "prompt": [[1, 2], [3]]})
    assert (lists.tokens, lists.starts) == (3, (1,))
    assert data(lists) != data(request("/v1/completions", {"model": "m", "prompt": [[1], [2, 3]]}))


@pytest.mark.parametrize(
    "prompt", [[1, "a"], ["a", 1], [-1], [2**40], [1.5], [[1], "a"], [[-1]], {"a": 1}, [None], 5, [True]]
)
def test_odd_prompts_are_matched_as_json_and_left_to_the_engine(prompt: object) -> None:
    parsed = request("/v1/completions", {"model": "m", "prompt": prompt})
    assert parsed.tokens is None
    assert data(parsed) == [b"\xfb" + json.dumps(prompt, separators=(",", ":")).encode()]


def test_responses_are_rendered_as_chats() -> None:
    parsed = request(
        "/v1/responses",
        {"model": "m", "instructions": "Be brief.", "input": "Hi", "max_output_tokens": 9, "stream": True},
    )
    same = chat({"role": "system", "content": "Be brief."}, user("Hi"))
    assert (parsed.seed, parsed.parts) == (same.seed, same.parts)
    assert (parsed.stream, parsed.max_tokens) == (True, 9)
    items = request(
        "/v1/responses",
        {
            "model": "m",
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "42"},
                {
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_image", "image_url": "https://a/b.png"}],
                },
            ],
        },
    )
    assert items.parts[:2] == parsed.parts
    assert b"42" in items.parts[3].data
    assert items.parts[5].prompt_bytes == MEDIA_BYTES
    after = request("/v1/responses", {"model": "m", "input": "Hi", "previous_response_id": "r1"})
    assert after.seed != request("/v1/responses", {"model": "m", "input": "Hi", "previous_response_id": "r2"}).seed


def test_anthropic_messages() -> None:
    billing = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=0a1b2;"}
    body = {
        "model": "m",
        "max_tokens": 8,
        "system": [billing, {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "tools": [{"name": "f", "input_schema": {}}],
        "messages": [
            user("Hi"),
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm", "signature": "s"},
                    {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}},
                ],
            },
            user([{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "42"}]}]),
            user([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 5_000}}]),
        ],
    }
    parsed = request("/v1/messages", body)
    assert data(parsed) == [
        b"system\xfeBe brief.\xff",
        b'\xfdtools\xfb[{"input_schema":{},"name":"f"}]\xff',
        b"user\xfeHi\xff",
        b'assistant\xf9thinking\xfdthinking\xfcHm\xf8\xf9tool_use\xfdid\xfct\xfdinput\xfb{"x":1}\xfdname\xfcf\xf8\xff',
        b"user\xf9tool_result\xfe42\xfdtool_use_id\xfct\xf8\xff",
        b"user",
        data(parsed)[6],
        b"\xff",
    ]
    assert parsed.parts[6].prompt_bytes == MEDIA_BYTES
    assert request("/v1/messages", {**body, "system": "Be brief."}).parts == parsed.parts


def test_a_cache_mark_that_moves_on_changes_nothing() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "42"}
    one = request("/v1/messages", {"model": "m", "messages": [user([result | mark])]})
    other = request("/v1/messages", {"model": "m", "messages": [user([result])]})
    assert one.parts == other.parts


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/tokenize", "/detokenize"])
def test_counting_tokens_warms_nothing(path: str) -> None:
    parsed = request(path, {"model": "m", "messages": [user("Hi")], "prompt": "Hi"})
    assert (parsed.model, parsed.parts, parsed.prompt_bytes) == ("m", (), 0)


def test_embeddings_and_their_kin() -> None:
    assert data(request("/v1/embeddings", {"model": "m", "input": ["a", "b"]})) == [b"a", b"b"]
    assert request("/v1/embeddings", {"model": "m", "input": [1, 2]}).tokens == 2
    assert data(request("/classify", {"input": "a"})) == [b"a"]
    assert data(request("/pooling", {"messages": [user("Hi")]})) == [b"user\xfeHi\xff"]
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        parsed = request(path, {"model": "m", "query": "q", "documents": ["a", {"text": "b"}]})
        assert data(parsed) == [b"query\xfeq\xff", b"documents\xfea\xff", b"documents\xfeb\xff"]
        assert (parsed.head, parsed.starts) == (1, (2,))
    parsed = request("/v1/score", {"model": "m", "text_1": "q", "text_2": ["a", "b"]})
    assert data(parsed) == [b"text_1\xfeq\xff", b"text_2\xfea\xff", b"text_2\xfeb\xff"]
    assert data(request("/v1/score", {"model": "m", "text_1": "q", "text_2": "a"}))[1:] == [b"text_2\xfea\xff"]


@pytest.mark.parametrize("items", [[], ["c"], "c"])
def test_of_several_lists_to_compare_with_the_query_the_first_one_counts(items: object) -> None:
    parsed = request("/rerank", {"query": "q", "documents": ["a", "b"], "items": items, "data_2": ["d"]})
    assert data(parsed) == [b"query\xfeq\xff", b"documents\xfea\xff", b"documents\xfeb\xff"]
    assert (parsed.head, parsed.starts) == (1, (2,))
    assert parsed.prompt_bytes == sum(parsed.lengths())


def test_sglang_generate_needs_no_model() -> None:
    body = {
        "text": "Hi",
        "sampling_params": {"max_new_tokens": 5},
        "lora_path": "a",
        "stream": True,
        "image_data": "AAAA",
    }
    parsed = request("/generate", body)
    assert (parsed.model, parsed.max_tokens, parsed.stream) == ("", 5, True)
    assert parsed.seed == b"text\xfdlora_path\xfca\xff"
    assert [part.prompt_bytes for part in parsed.parts] == [2, MEDIA_BYTES]
    assert request("/generate", {"input_ids": [[1, 2], [3]]}).tokens == 3
    one, other = (request("/generate", {"text": "Go on", "session_params": {"id": name}}) for name in ("s1", "s2"))
    assert one.seed != other.seed


def test_vllm_and_triton_generate() -> None:
    parsed = request("/inference/v1/generate", {"token_ids": [5, 6], "sampling_params": {"max_tokens": 3}})
    assert (parsed.tokens, parsed.max_tokens) == (2, 3)
    triton = request("/v2/models/ensemble/generate", {"text_input": "Hi", "max_tokens": 4})
    assert (data(triton), triton.max_tokens) == ([b"Hi"], 4)


@pytest.mark.parametrize(
    "path", [CHAT + "?api-version=1", "/team/a" + CHAT, CHAT + "/", "https://host/x" + CHAT, "/a/b/c/d/e" + CHAT]
)
def test_prefixes_and_query_strings_do_not_matter(path: str) -> None:
    assert request(path, {"model": "m", "messages": [user("Hi")]}) == chat(user("Hi"))


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/v1/models", JSON, b"{}"),
        ("/v1/audio/transcriptions", "multipart/form-data; boundary=x", b"--x"),
        ("/v1/images/generations", JSON, b'{"model": "m", "prompt": "p"}'),
        (CHAT, "multipart/form-data; boundary=x", b"--x"),
        (CHAT, "text/plain", b"hello"),
        ("/xgenerate", JSON, b"no json"),
        ("", "", b""),
        ("/", JSON, b"{"),
    ],
)
def test_what_has_no_prompt_is_routed_and_never_refused(path: str, content_type: str, body: bytes) -> None:
    assert parse(path, content_type, body) is NO_PROMPT


@pytest.mark.parametrize("content_type", [JSON, "Application/JSON; charset=utf-8", "", "application/vnd.api+json"])
def test_json_by_media_type(content_type: str) -> None:
    assert isinstance(parse(CHAT, content_type, b"{"), Rejection)


# ---------------------------------------------------------------- rejections


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, b"", None),
        (CHAT, b'{"model": "m", ', None),
        (CHAT, b"[1]", None),
        (CHAT, b"null", None),
        (CHAT, b"\xff\xfe\x00", None),
        (CHAT, b'{"model": "m", "messages": [{"role": "user", "content": "a\nb"}]}', None),
        (CHAT, b'{"a":' * 100_000 + b"1" + b"}" * 100_000, None),
        (CHAT, {"messages": []}, "model"),
        (CHAT, {"model": "m", "messages": []}, "messages"),
        ("/v1/messages", {"model": "m", "messages": []}, "messages"),
        (CHAT, {"model": None, "messages": []}, "model"),
        (CHAT, {"model": 5, "messages": []}, "model"),
        (CHAT, {"model": "m"}, "messages"),
        (CHAT, {"model": "m", "messages": "Hi"}, "messages"),
        (CHAT, {"model": "m", "messages": {"role": "user"}}, "messages"),
        ("/v1/messages", {"model": "m", "messages": None}, "messages"),
        ("/v1/completions", {"model": "m"}, "prompt"),
        ("/v1/completions", {"prompt": "Hi"}, "model"),
        ("/v1/embeddings", {"input": "Hi"}, "model"),
        ("/v1/responses", {"input": "Hi"}, "model"),
        ("/generate", {"model": ["m"], "text": "Hi"}, "model"),
        ("/generate", b"{", None),
    ],
)
def test_what_every_engine_refuses(path: str, body: object, param: str | None) -> None:
    refused = rejection(path, body)
    assert (refused.status, refused.kind, refused.param) == (400, "invalid_request_error", param)
    assert refused.message


def test_a_missing_model_is_said_so() -> None:
    refused = rejection(CHAT, {"messages": []})
    assert (refused.message, refused.reason) == ("model not found in request body", "no-model")


def test_a_models_name_has_a_bound() -> None:
    """It is kept with the decision: megabytes of it would be kept, too."""
    assert request(CHAT, {"model": "m" * 1024, "messages": [user("a")]}).model == "m" * 1024
    body = json.dumps({"model": "m" * 1025, "messages": [user("a")]}).encode()
    refused = rejection(CHAT, body)
    assert (refused.status, refused.param) == (400, "model")
    assert "mm" not in refused.message
    assert parse_beginning(CHAT, JSON, body).model == ""


# ---------------------------------------------------------------- odd but legal


def test_lone_surrogates_as_clients_write_them() -> None:
    parsed = request(CHAT, b'{"model": "m\\ud800", "messages": [{"role": "user", "content": "a\\ud800b"}]}')
    assert data(parsed) == [b"user\xfea\xed\xa0\x80b\xff"]
    assert parsed.model.encode() == b"m?"


def test_numbers_that_are_no_json_numbers() -> None:
    parsed = request(
        CHAT, b'{"model": "m", "temperature": NaN, "max_tokens": Infinity, "priority": NaN, "messages": [{}]}'
    )
    assert (parsed.max_tokens, parsed.priority) == (None, 0)
    huge = request(CHAT, b'{"model": "m", "max_tokens": ' + b"9" * 300 + b', "priority": 1e300, "messages": [{}]}')
    assert (huge.max_tokens, huge.priority) == (2**31 - 1, 2**31 - 1)
    odd = request(CHAT, b'{"model": "m", "max_tokens": -1, "priority": "high", "stream": 1, "messages": [{}]}')
    assert (odd.max_tokens, odd.priority, odd.stream) == (None, 0, False)


def test_numbers_of_any_length() -> None:
    exact, rounded = 2**64 - 1, 2**64
    for odd in (b"", b'"\\ud800"'):  # with it, another decoder has to do the work
        body = b'{"model": "m", "messages": [{"a": [%d, %d, %d, %b], "b": %d}, %b]}'
        parsed = request(CHAT, body % (exact, -(2**63), rounded, b"9" * 300, -rounded, odd or b'""'))
        assert data(parsed)[0] == (
            b"\xfda\xfb[18446744073709551615,-9223372036854775808,1.8446744073709552e+19,1e+300]\xfdb\xfb-1.8446744073709552e+19\xff"
        )
    assert request(CHAT, b'{"model": "m", "messages": [{}], "n": ' + b"9" * 5_000 + b"}").model == "m"


def test_the_last_of_duplicate_keys_counts() -> None:
    assert request(CHAT, b'{"model": "a", "model": "b", "messages": [{}]}').model == "b"


@pytest.mark.parametrize(
    "inside",
    [
        "[" + "0," * 400_000 + "0]",
        '[{"role": "user", "content": [' + "0," * 400_000 + "0]}]",
        "[" + ",".join(['{"content": [' + "0," * 1_000 + "0]}"] * 400) + "]",
        "[{" + ",".join(f'"{k}": 0' for k in range(200_000)) + "}]",
    ],
    ids=["messages", "blocks", "blocks of many messages", "fields"],
)
def test_bodies_made_to_keep_us_busy_are_not_taken_apart(inside: str) -> None:
    body = f'{{"model": "m", "messages": {inside}}}'.encode()
    prompt = Prompt()
    prompt.messages(json.loads(inside))
    assert len(prompt.parts) <= MAX_ITEMS + 1
    assert abs(request(CHAT, body).prompt_bytes - len(body)) < len(body) // 2
    parse_beginning(CHAT, JSON, body[:-100])


@pytest.mark.parametrize("turns", [1_000, 3_000])
@pytest.mark.parametrize("in_blocks", [False, True])
def test_a_conversation_that_goes_on_keeps_its_beginning_however_long_it_is(turns: int, in_blocks: bool) -> None:
    def conversation(turns: int) -> InferenceRequest:
        items: list[dict[str, Any]] = []
        for k in range(turns):
            if in_blocks:
                items.append({"type": "tool_use", "id": f"c{k}", "name": "f", "input": {"k": k}})
                items.append({"type": "tool_result", "tool_use_id": f"c{k}", "content": "42", "is_error": False})
            else:
                call = {"id": f"c{k}", "type": "function", "function": {"name": "f", "arguments": f'{{"k": {k}}}'}}
                items.append({"role": "assistant", "content": "", "tool_calls": [call]})
                items.append({"role": "tool", "tool_call_id": f"c{k}", "content": "42"})
        return request(CHAT, {"model": "m", "messages": [user(items)] if in_blocks else items})

    one, longer = (build(each.seed, each.parts) for each in (conversation(turns), conversation(turns + 1)))
    known = frozenset(one.hashes)
    assert (
        max(end for key, end in zip(longer.hashes, longer.ends, strict=True) if key in known) > 0.9 * one.prompt_bytes
    )


@pytest.mark.parametrize("more", [0, 1])
def test_the_edge_of_what_is_taken_apart(more: int) -> None:
    whole = Prompt()
    whole.messages([user("a")] * (MAX_ITEMS + more))
    assert [part.data for part in whole.parts[MAX_ITEMS:]] == [b'\xfb[{"content":"a","role":"user"}]'] * more
    blocks = Prompt()  # one message, its two fields, then its blocks
    blocks.messages([user([{"type": "text", "text": "a"}] * (MAX_ITEMS - 3 + more))])
    assert (b"\xfb[" in blocks.parts[0].data) == bool(more)
    texts = Prompt()
    texts.plain(["a"] * (MAX_ITEMS + more))
    assert texts.parts[0].data.startswith(b"\xfb[" if more else b"a")
    assert len(texts.parts) == (1 if more else MAX_ITEMS)
    ids = Prompt()  # token ids are one array, not items
    assert ids.plain([1] * (MAX_ITEMS + more)) == MAX_ITEMS + more


def _tools(prompt: Prompt, tools: list[Any]) -> None:
    prompt.declare_tools(tools)
    prompt.tools()


def _features(prompt: Prompt, ranges: list[Any]) -> None:
    prompt.features({"mm_placeholders": {"image": ranges}, "mm_hashes": {"image": ["h"] * len(ranges)}})


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize(
    ("write", "item", "most"),
    [
        (Prompt.content_parts, "a", MAX_ITEMS),
        (Prompt.conversations, "a", MAX_ITEMS),
        (lambda prompt, items: prompt.compared("document", items), "a", MAX_ITEMS),
        (_tools, {"name": "f", "cache_control": {}}, MAX_ITEMS),
        (_features, {"offset": 0, "length": 1}, MAX_ITEMS),
        # a message, and its two fields
        (lambda prompt, items: prompt.messages([{"role": "a", "tool_calls": items}]), "a", MAX_ITEMS - 3),
    ],
    ids=["content parts", "conversations", "compared", "tools", "features", "tool calls"],
)
def test_what_has_more_items_than_are_taken_apart_is_one_piece_of_json(
    write: Callable[[Prompt, list[Any]], object], item: object, most: int, more: int
) -> None:
    items, prompt = [item] * (most + more), Prompt()
    write(prompt, items)
    assert (canonical_json(items) in b"".join(part.data for part in prompt.parts)) == bool(more)
    assert len(prompt.parts) <= MAX_ITEMS


@pytest.mark.parametrize("more", [0, 1])
def test_a_tool_call_with_more_members_than_are_taken_apart_is_one_piece_of_json(more: int) -> None:
    call, prompt = {str(k): k for k in range(MAX_ITEMS - 4 + more)}, Prompt()
    prompt.messages([{"role": "a", "tool_calls": [call]}])
    assert (canonical_json(call) in prompt.parts[0].data) == bool(more)


@pytest.mark.parametrize("more", [0, 1])
def test_more_images_than_are_taken_apart_are_one(more: int) -> None:
    prompt = Prompt()
    prompt.media(["a"] * (MAX_ITEMS + more))
    assert len(prompt.parts) == (1 if more else MAX_ITEMS)


def test_the_deepest_json_that_is_rendered() -> None:
    def tools(levels: int) -> bytes:
        return b'{"model":"m","messages":[{}],"tools":' + b"[" * levels + b"1" + b"]" * levels + b"}"

    assert len(request(CHAT, tools(254)).parts) == 2
    refused = rejection(CHAT, tools(256))
    assert (refused.status, refused.message) == (400, "The request body is nested too deeply.")


# ---------------------------------------------------------------- properties

words = st.sampled_from(
    ["a", "ab", "user", "hi", "", "\x00", "é", "😀", '"', "\\", "{[", "model", "text", "type", "\ud800"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(words | st.sampled_from(["content", "role"]), inner, max_size=4)
    ),
    max_leaves=12,
)
PATHS = [
    CHAT,
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/rerank",
    "/score",
    "/generate",
    "/inference/v1/generate",
    "/v1/chat/completions/batch",
    "/v2/models/m/infer",
    "/invocations",
    "/open_session",
    "/x",
]
MEMBERS = [
    "model", "messages", "prompt", "input", "system", "instructions", "tools", "documents", "query", "text", "text_1",
    "input_ids", "stream", "max_tokens", "priority", "sampling_params", "cache_salt", "chat_template_kwargs", "image_data",
    "prompt_embeds", "inputs", "features", "content_parts", "token_ids", "prompt_token_ids", "n", "prompt_logprobs", "echo",
    "logprobs", "return_logprob", "logprob_start_len", "mm_processor_kwargs", "thinking", "reasoning", "session_params",
    "conversation", "session_id",
]  # fmt: skip
messages = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool"]) | values,
        "content": words
        | st.lists(
            values
            | st.fixed_dictionaries(
                {"type": st.sampled_from(["text", "image_url", "tool_result", "x"]) | values},
                optional={"text": values, "image_url": values, "content": values, "source": values},
            )
        )
        | values,
        "tool_calls": values,
        "name": values,
    },
)
bodies = st.dictionaries(st.sampled_from(MEMBERS), values | st.lists(messages, max_size=4), max_size=8)


@settings(deadline=None)
@given(st.sampled_from(PATHS), st.sampled_from([JSON, "", "text/plain"]), st.binary(max_size=60), st.booleans())
@example(CHAT, JSON, b"[" * 5_000, False)
@example(CHAT, JSON, b'{"messages":' + b"[" * 5_000, True)
@example(CHAT, JSON, b"\xff\xfe{\x00}\x00", False)
@example("/" * 10_000, JSON, b"{}", False)
def test_no_bytes_raise(path: str, content_type: str, body: bytes, truncated: bool) -> None:
    (parse_beginning if truncated else parse)(path, content_type, body)


@settings(deadline=None)
@given(st.sampled_from(PATHS), bodies, st.booleans(), st.integers(0, 400))
def test_no_json_raises(path: str, body: dict[str, Any], model: bool, cut: int) -> None:
    raw = json.dumps({"model": "m", **body} if model else body).encode()
    parse(path, JSON, raw)
    parse_beginning(path, JSON, raw[:cut])


@pytest.mark.parametrize("depth", [200, 300, 480, 600, 900, 1_000, 1_020])
@pytest.mark.parametrize("opening", ['{"content":[', '{"type":"a","content":[', "[", '{"a":'])
def test_no_depth_raises(depth: int, opening: str) -> None:
    closing = {"[": "]", "{": "}"}
    tail = "".join(closing[c] for c in reversed(opening) if c in closing)
    body = (
        '{"model":"m","messages":['
        + opening * depth
        + "1"
        + tail * depth
        + '],"tools":'
        + "[" * depth
        + "]" * depth
        + "}"
    )
    assert isinstance(parse(CHAT, JSON, body.encode()), InferenceRequest | Rejection)
    parse_beginning(CHAT, JSON, body[: len(body) // 2].encode())


simple_messages = st.builds(
    lambda role, content, name: {"role": role, "content": content, **({"name": name} if name else {})},
    st.sampled_from(["user", "assistant", "system"]),
    words | st.lists(words.filter(bool), min_size=2, max_size=3),
    st.sampled_from(["", "bob"]),
)


@settings(deadline=None)
@given(st.lists(simple_messages, min_size=1, max_size=4), st.lists(simple_messages, min_size=1, max_size=4))
def test_different_conversations_have_different_bytes(one: list[object], other: list[object]) -> None:
    same = b"".join(data(chat(*one))) == b"".join(data(chat(*other)))
    assert same == (one == other)


@settings(deadline=None)
@given(st.lists(messages, min_size=1, max_size=4), st.lists(messages, max_size=3))
def test_a_conversation_that_goes_on_keeps_its_parts(turns: list[object], more: list[object]) -> None:
    before, after = chat(*turns), chat(*turns, *more)
    assert after.seed == before.seed
    assert after.parts[: len(before.parts)] == before.parts
