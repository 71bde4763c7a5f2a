"""One prompt, written in different ways: what engines render alike is one chain, what they render differently is two."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmroute.prefix.chain import build
from warmroute.request.inference import InferenceRequest
from warmroute.request.parse import parse

CHAT, RESPONSES, ANTHROPIC, TOKENS = "/v1/chat/completions", "/v1/responses", "/v1/messages", "/inference/v1/generate"
LONG = "All in all, a sentence that is said often. " * 100


def request(path: str, body: str | dict[str, Any]) -> InferenceRequest:
    text = body if type(body) is str else json.dumps(body)
    parsed = parse(path, "application/json", text.encode("utf-8", "surrogatepass"))
    assert isinstance(parsed, InferenceRequest), parsed
    return parsed


def shared(one: InferenceRequest, other: InferenceRequest) -> int:
    """Bytes of prompt from the beginning that both share."""
    first, second = build(one.seed, one.parts), build(other.seed, other.parts)
    return max((end for key, end in zip(second.hashes, second.ends, strict=True) if key in first.hashes), default=0)


def is_one_prompt(path: str, one: str | dict[str, Any], other: str | dict[str, Any]) -> bool:
    first, second = request(path, one), request(path, other)
    return shared(first, second) == first.prompt_bytes == second.prompt_bytes


def chat(*messages: object, **fields: object) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": LONG}, *messages], **fields}


def call(**members: object) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", **members}]}


def function(arguments: object) -> dict[str, Any]:
    return call(function={"name": "f", "arguments": arguments})


# ---------------------------------------------------------------- tool calls


def test_the_arguments_of_a_call_in_its_old_form_are_an_object_too() -> None:
    one, other = (
        chat({"role": "assistant", "function_call": {"name": "f", "arguments": arguments}})
        for arguments in ('{"a": 1, "b": 2}', '{"b":2,"a":1}')
    )
    assert is_one_prompt(CHAT, one, other)


@pytest.mark.parametrize(
    "arguments",
    [
        '{"a": 1, "b": "\\u00e9"}',
        '{"a":1,"b":"é"}',
        '{\n  "b": "\\u00E9",\n  "a": 1\n}',
        {"b": "é", "a": 1},
    ],
)
def test_arguments_of_tool_calls_are_what_they_say(arguments: object) -> None:
    assert is_one_prompt(CHAT, chat(function('{"a":1,"b":"é"}')), chat(function(arguments)))
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments}
    known = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":1,"b":"é"}'}
    assert is_one_prompt(RESPONSES, {"model": "m", "input": [known]}, {"model": "m", "input": [item]})


@pytest.mark.parametrize(
    "arguments", ["{", "", "{} ", '"text"', "[" * 2_000, '{"a":' * 300 + "1" + "}" * 300, '{"a":"\\ud800"}']
)
def test_arguments_that_are_no_object_are_text(arguments: str) -> None:
    assert is_one_prompt(CHAT, chat(function(arguments)), chat(function(arguments)))
    assert not is_one_prompt(CHAT, chat(function(arguments)), chat(function('{"a":2}')))


def test_no_arguments_are_an_empty_object() -> None:
    assert is_one_prompt(CHAT, chat(function("")), chat(function("{}")))


def test_the_place_of_a_tool_call_in_a_stream_is_not_rendered_and_its_id_is() -> None:
    assert is_one_prompt(CHAT, chat(function("{}")), chat(call(index=0, function={"name": "f", "arguments": "{}"})))
    assert not is_one_prompt(CHAT, chat(function("{}")), chat(call(id="c2", function={"name": "f", "arguments": "{}"})))


# ---------------------------------------------------------------- marks, ids, status


def test_marks_of_items_that_come_back_from_the_engine() -> None:
    plain: list[dict[str, Any]] = [
        {"role": "user", "content": LONG},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "42"},
    ]
    marked = [
        {"type": "message", "id": "msg_0", "status": "completed", **plain[0]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Hi", "annotations": [{"a": 1}], "logprobs": [1]}],
        },
        {"id": "fc_1", "status": "completed", **plain[2]},
        {"id": "fc_2", "status": "completed", **plain[3]},
    ]
    assert is_one_prompt(RESPONSES, {"model": "m", "input": plain}, {"model": "m", "input": marked})


def test_the_id_of_a_tool_use_and_of_a_stored_item_counts() -> None:
    for kind in ("tool_use", "item_reference"):
        one, other = (
            {"model": "m", "messages": [{"role": "user", "content": [{"type": kind, "id": i}]}]} for i in "ab"
        )
        assert not is_one_prompt(ANTHROPIC, one, other)


def test_a_cache_mark_on_a_tool_is_not_rendered() -> None:
    tools = [{"name": name, "description": LONG, "input_schema": {"type": "object"}} for name in "abc"]
    marked = [*tools[:2], {**tools[2], "cache_control": {"type": "ephemeral"}}]
    assert is_one_prompt(ANTHROPIC, chat(tools=tools), chat(tools=marked))


def test_a_thinking_block_without_its_signature() -> None:
    block = {"type": "thinking", "thinking": "Hm"}
    one, other = (chat({"role": "assistant", "content": [b]}) for b in (block, {**block, "signature": "s" * 400}))
    assert is_one_prompt(ANTHROPIC, one, other)


# ---------------------------------------------------------------- fields that no template renders


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}}),
        (CHAT, {"mm_processor_kwargs": {"fps": 1}, "media_io_kwargs": {"video": {"num_frames": 4}}}),
        (ANTHROPIC, {"output_config": {"format": {"type": "json_schema", "schema": {}}}}),
        (ANTHROPIC, {"thinking": None}),
        (RESPONSES, {"reasoning": {"summary": "auto"}}),
        (RESPONSES, {"text": {"format": {"type": "json_schema"}, "verbosity": "low"}}),
        (RESPONSES, {"include": ["reasoning.encrypted_content"], "store": False, "metadata": {"a": "b"}}),
    ],
)
def test_fields_that_leave_the_prompt_as_it_was(path: str, fields: dict[str, Any]) -> None:
    body = chat()
    if path == RESPONSES:
        body["input"] = body.pop("messages")
    assert is_one_prompt(path, body, {**body, **fields})


def test_the_effort_of_reasoning_is_rendered_and_what_is_shown_of_it_is_not() -> None:
    low, high, shown = (
        {"model": "m", "input": LONG, "reasoning": r}
        for r in ({"effort": "low"}, {"effort": "high"}, {"effort": "low", "summary": "detailed"})
    )
    assert is_one_prompt(RESPONSES, low, shown)
    assert shared(request(RESPONSES, low), request(RESPONSES, high)) == 0


# ---------------------------------------------------------------- token ids with media


def tokens(count: int, images: dict[int, str], **fields: object) -> dict[str, Any]:
    features = {
        "mm_hashes": {"image": list(images.values())},
        "mm_placeholders": {"image": [{"offset": offset, "length": 100} for offset in images]},
    }
    ids = [7 if any(o <= k < o + 100 for o in images) else k for k in range(count)]
    return {
        "token_ids": ids,
        **({"features": features} if images else {}),
        "sampling_params": {"max_tokens": 1},
        **fields,
    }


def test_an_image_of_a_later_turn_leaves_the_beginning_as_it_was() -> None:
    first, second = request(TOKENS, tokens(10_000, {})), request(TOKENS, tokens(10_500, {10_200: "h1"}))
    assert shared(first, second) >= 9_400 * 4
    assert (second.tokens, second.prompt_bytes) == (10_500, 42_000)


def test_prompts_differ_from_the_first_image_that_differs() -> None:
    images = {1_000: "h1", 6_000: "h2"}
    one = request(TOKENS, tokens(10_000, images))
    assert shared(one, request(TOKENS, tokens(10_000, images))) == 40_000
    assert 22_000 <= shared(one, request(TOKENS, tokens(10_000, {**images, 6_000: "h3"}))) <= 24_000
    assert 3_600 <= shared(one, request(TOKENS, tokens(10_000, {**images, 1_000: "h3"}))) <= 4_000


def test_the_tensors_of_an_image_that_the_engine_has_do_not_count() -> None:
    body = tokens(1_000, {100: "h"})
    body["features"]["kwargs_data"] = {"image": ["AAAA"]}
    assert is_one_prompt(TOKENS, body, tokens(1_000, {100: "h"}))


@pytest.mark.parametrize(
    "features",
    [
        {"mm_hashes": {}},
        {"mm_placeholders": {"image": [{"offset": 1}]}, "mm_hashes": {"image": ["a"]}},
        {"mm_placeholders": {"image": [{"offset": "x", "length": 1}]}, "mm_hashes": {"image": ["a"]}},
        {"mm_placeholders": {"image": 5}, "mm_hashes": {"image": 5}},
        {"mm_placeholders": {"image": [{"offset": -5, "length": 2**70}]}, "mm_hashes": {"image": ["a"]}},
        {"mm_placeholders": {"image": [{"offset": 2, "length": -1}]}, "mm_hashes": {"image": ["a"]}},
        {"mm_placeholders": {"image": [{"offset": math.inf, "length": 1}]}, "mm_hashes": {"image": ["a"]}},
        [1],
        "x",
    ],
)
def test_features_that_no_engine_takes_raise_nothing(features: object) -> None:
    assert request(TOKENS, {**tokens(1_000, {}), "features": features}).tokens == 1_000


def test_content_parts_are_prompts_in_turn() -> None:
    def body(image: str) -> dict[str, Any]:
        parts = [
            {"type": "tokens", "token_ids": list(range(5_000))},
            {"type": "image_url", "image_url": {"url": f"https://a/{image}.png"}},
            {"type": "tokens", "token_ids": list(range(5_000))},
        ]
        return {"content_parts": parts}

    assert is_one_prompt(TOKENS, body("1"), body("1"))
    assert shared(request(TOKENS, body("1")), request(TOKENS, body("2"))) == 20_000
    beside = {"token_ids": list(range(10_000)), "content_parts": body("1")["content_parts"][1:2]}
    other = {**beside, "content_parts": body("2")["content_parts"][1:2]}
    assert shared(request(TOKENS, beside), request(TOKENS, other)) == 0


def test_the_tokens_of_content_parts_are_known_where_all_of_them_are_token_ids() -> None:
    ids, text = {"type": "tokens", "token_ids": [7] * 100}, {"type": "text", "text": "long " * 1_000}
    image = {"type": "image_url", "image_url": {"url": "https://a/1.png"}}
    assert request(TOKENS, {"content_parts": [ids, ids]}).tokens == 200
    for parts in ([text], [ids, text], [text, ids], [ids, image], [{"token_ids": ["x"]}, ids], []):
        assert request(TOKENS, {"content_parts": parts}).tokens is None


@pytest.mark.parametrize("field", ["input_ids", "prompt_token_ids"])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_token_ids_beside_a_text_are_the_prompt(path: str, field: str) -> None:
    bodies = [
        {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi", field: [k, *range(29_999)]}
        for k in (1, 2)
    ]
    one, other = (request(path, body) for body in bodies)
    assert one.tokens == other.tokens == 30_000
    assert shared(one, other) == 0
    assert is_one_prompt(
        path, bodies[0], {**bodies[0], "messages": [{"role": "user", "content": "Ho"}], "prompt": "Ho"}
    )


# ---------------------------------------------------------------- properties

texts = st.text(max_size=6) | st.just("")
leaves = st.none() | st.booleans() | st.integers(-9, 9) | texts
objects = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
calls = st.fixed_dictionaries(
    {
        "id": texts,
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": texts, "arguments": st.dictionaries(texts, objects, max_size=3).map(json.dumps)}
        ),
    }
)
blocks = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": texts}),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": texts})}),
    st.fixed_dictionaries({"type": st.just("tool_result"), "tool_use_id": texts, "content": texts}),
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]), "content": texts | st.lists(blocks, max_size=3)},
    optional={"name": texts, "tool_calls": st.lists(calls, max_size=2), "reasoning_content": texts},
)
bodies = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": st.lists(messages, min_size=1, max_size=3)},
    optional={
        "tools": st.lists(st.fixed_dictionaries({"name": texts, "input_schema": objects}), max_size=2),
        "documents": st.lists(objects, max_size=2),
        "chat_template_kwargs": st.dictionaries(texts, objects, max_size=3),
    },
)


def respelled(value: Any, data: st.DataObject) -> Any:
    """The same value with its members, and those of arguments, in another order and with other white space."""
    if isinstance(value, list):
        return [respelled(one, data) for one in value]
    if isinstance(value, dict):
        order = data.draw(st.permutations(list(value)))
        respelt = {name: respelled(value[name], data) for name in order}
        if "arguments" in respelt:
            parsed = respelled(json.loads(respelt["arguments"]), data)
            respelt["arguments"] = spelled(parsed, data)
        return respelt
    return value


def spelled(value: object, data: st.DataObject) -> str:
    return json.dumps(value, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 0, 3])))


@settings(deadline=None)
@given(bodies, st.data())
def test_the_order_of_members_white_space_and_escapes_change_nothing(body: dict[str, Any], data: st.DataObject) -> None:
    one, other = request(CHAT, json.dumps(body)), request(CHAT, spelled(respelled(body, data), data))
    assert (one.seed, one.parts) == (other.seed, other.parts)


def rendered_texts(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of the texts in a body that a template renders."""
    if isinstance(value, str):
        return [path]
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [
        place
        for name, inner in members
        if name not in ("type", "model")
        for place in rendered_texts(inner, (*path, name))
    ]


def changed(value: Any, path: tuple[Any, ...]) -> Any:
    if not path:
        return value + "x"
    if path == ("arguments",):
        return {**value, "arguments": json.dumps({**json.loads(value["arguments"]), "added": 1})}
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:])
    return copy


@settings(deadline=None)
@given(bodies, st.data())
def test_a_rendered_text_that_changes_changes_the_prompt(body: dict[str, Any], data: st.DataObject) -> None:
    place = data.draw(st.sampled_from(rendered_texts(body)))
    one, other = request(CHAT, body), request(CHAT, changed(body, place))
    assert (one.seed, one.parts) != (other.seed, other.parts)
