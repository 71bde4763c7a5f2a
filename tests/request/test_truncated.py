"""Bodies of which only the beginning is there."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmroute.request.inference import InferenceRequest
from warmroute.request.parse import parse, parse_beginning
from warmroute.request.truncated import decode_beginning, is_whole

JSON = "application/json"
CHAT = "/v1/chat/completions"

words = st.sampled_from(
    [
        "a",
        "user",
        "",
        "\x00",
        "é",
        "😀",
        '"',
        "\\",
        '\\"',
        "{[",
        "}",
        "]",
        ",",
        ":",
        "model",
        "\n",
        "long " * 9,
        "€\\u00e9",
    ]
)
texts = st.lists(words, max_size=4).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
documents = st.dictionaries(texts, values, max_size=4)


def encoded(document: object, ascii_only: bool, spaced: bool) -> bytes:
    return json.dumps(document, ensure_ascii=ascii_only, separators=None if spaced else (",", ":")).encode()


def is_beginning(part: Any, whole: Any) -> bool:
    """Whether ``part`` is ``whole`` cut short at its end."""
    if isinstance(part, str) and isinstance(whole, str):
        return whole.startswith(part)
    if isinstance(part, list) and isinstance(whole, list):
        return (
            len(part) <= len(whole)
            and part[:-1] == whole[: max(len(part) - 1, 0)]
            and (not part or is_beginning(part[-1], whole[len(part) - 1]))
        )
    if isinstance(part, dict) and isinstance(whole, dict):
        keys = list(part)
        return (
            keys == list(whole)[: len(keys)]
            and all(part[key] == whole[key] for key in keys[:-1])
            and (not keys or is_beginning(part[keys[-1]], whole[keys[-1]]))
        )
    return bool(part == whole)


@settings(deadline=None)
@given(documents, st.booleans(), st.booleans(), st.integers(1, 10_000))
def test_a_decoded_beginning_is_the_beginning(
    document: dict[str, Any], ascii_only: bool, spaced: bool, cut: int
) -> None:
    body = encoded(document, ascii_only, spaced)
    assert is_beginning(decode_beginning(body[: cut % len(body) + 1]), document)


@settings(deadline=None)
@given(documents, st.booleans(), st.booleans(), st.sampled_from(["", "\n", " \r\n"]))
def test_only_all_of_an_object_is_whole(document: dict[str, Any], ascii_only: bool, spaced: bool, end: str) -> None:
    body = encoded(document, ascii_only, spaced)
    assert is_whole(body + end.encode())
    assert not any(is_whole(body[:cut]) for cut in range(len(body)))


@pytest.mark.parametrize(
    ("body", "document"),
    [
        (b"", None),
        (b"[1", None),
        (b"{", {}),
        (b'{"a', {}),
        (b'{"a":', {}),
        (b'{"a":1', {}),
        (b'{"a":1,', {"a": 1}),
        (b'{"a":1 ', {"a": 1}),
        (b'{"a":1,"b', {"a": 1}),
        (b'{"a":1,"b":-', {"a": 1}),
        (b'{"a":[1.5,2e', {"a": [1.5]}),
        (b'{"a" : "x', {"a": "x"}),
        (b'{"a":"x1', {"a": "x1"}),
        (b'{"a":["x","y', {"a": ["x", "y"]}),
        (b'{"a":["x"', {"a": ["x"]}),
        (b'{"a":"x\\', {"a": "x"}),
        (b'{"a":"x\\\\', {"a": "x\\"}),
        (b'{"a":"x\\u00', {"a": "x"}),
        (b'{"a":"x\\ud83d', {"a": "x"}),
        (b'{"a":"x\\ud83d\\ud', {"a": "x"}),
        (b'{"a":"x\\ud83d\\ude00', {"a": "x\U0001f600"}),
        (b'{"a":"x\xf0\x9f', {"a": "x"}),
        (b'{"a":[1,2,3', {"a": [1, 2]}),
        (b'{"a":[[1,2],[3', {"a": [[1, 2], []]}),
        (b'{"a":1,"b 2', {"a": 1}),
        (b'{"a":1,"b,2', {"a": 1}),
        (b'{"a":[1', {"a": []}),
        (b'{"a":[-1.50', {"a": []}),
        (b'{"a":[123456789012345678901234567890', {"a": []}),
        (b'{"a":"x 1', {"a": "x 1"}),
        (b'{"a":[true,"1', {"a": [True, "1"]}),
        (b'{"a":[{}', {"a": [{}]}),
        (b'{"a":{"b":tru', {"a": {}}),
        (b'{"a":{"b":true', {"a": {"b": True}}),
        (b'{"a":"{["', {"a": "{["}),
        (b'{"a":"\\ud800","b":"c', None),
        (b'{"a":' + b"[" * 500_000, None),
    ],
)
def test_decoding_a_beginning(body: bytes, document: object) -> None:
    assert decode_beginning(body) == document


blocks = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, texts),
    st.builds(lambda url: {"type": "image_url", "image_url": {"url": url}}, texts),
    st.builds(lambda text: {"type": "tool_result", "tool_use_id": "t", "content": text}, texts),
    st.builds(
        lambda text: {"content": [{"type": "text", "text": text}], "type": "tool_result", "is_error": True}, texts
    ),
    st.builds(lambda text: {"type": "thinking", "thinking": text}, texts),
)
roles = st.sampled_from(["user", "assistant", "system", "tool"])
contents = texts | st.lists(blocks, max_size=3) | st.none()
messages = st.one_of(
    st.builds(lambda role, content: {"role": role, "content": content}, roles, contents),
    st.builds(lambda content: {"content": content, "role": "user"}, contents),
    st.builds(lambda content, name: {"role": "user", "name": name, "content": content}, contents, texts),
    st.builds(lambda content, calls: {"role": "assistant", "content": content, "tool_calls": calls}, contents, values),
    st.builds(lambda content, calls: {"role": "assistant", "tool_calls": calls, "content": content}, contents, values),
)
chats = st.fixed_dictionaries(
    {"model": texts, "messages": st.lists(messages, max_size=4)},
    optional={
        "tools": values,
        "temperature": st.just(0.5),
        "cache_salt": texts,
        "stream": st.just(True),
        "user": texts,
        "max_tokens": st.just(77),
    },
).flatmap(lambda chat: st.permutations(list(chat.items())).map(dict))


@settings(deadline=None)
@given(chats, st.booleans(), st.booleans(), st.integers(1, 10_000))
def test_a_cut_prompt_is_the_beginning_of_what_came_before_the_cut(
    chat: dict[str, Any], ascii_only: bool, spaced: bool, cut: int
) -> None:
    body = encoded(chat, ascii_only, spaced)[: cut % 10_000 + 1]
    part = parse_beginning(CHAT, JSON, body, model="routed")
    assert isinstance(part, InferenceRequest)
    seen = {name: chat[name] for name in decode_beginning(body) or ()}
    if seen and next(reversed(seen)) != "messages":
        seen.popitem()
    seen.setdefault("model", "routed")
    if not seen.get("messages"):  # tools may have come before
        seen["messages"] = [{"role": "user", "content": "x"}]
    whole = parse(CHAT, JSON, encoded(seen, ascii_only, spaced))
    assert isinstance(whole, InferenceRequest)
    assert b"".join(p.data for p in whole.parts).startswith(b"".join(p.data for p in part.parts))
    assert (part.model, part.seed, part.max_tokens) == (whole.model, whole.seed, whole.max_tokens)


@pytest.mark.parametrize(("path", "field"), [(CHAT, "messages"), ("/v1/responses", "input")])
@pytest.mark.parametrize("role", ["system", "developer", "user"])
def test_wherever_a_body_ends_its_prompt_is_the_beginning_of_the_whole_one(path: str, field: str, role: str) -> None:
    chat = {"model": "m", "tools": [{"name": "f"}], field: [{"role": role, "content": "Hi"}, {"role": "user"}]}
    body = encoded(chat, True, True)
    whole = parse(path, JSON, body)
    assert isinstance(whole, InferenceRequest)
    for cut in range(body.index(b"[", body.index(field.encode())) + 1, len(body)):
        part = parse_beginning(path, JSON, body[:cut])
        assert b"".join(p.data for p in whole.parts).startswith(b"".join(p.data for p in part.parts)), body[:cut]
        assert part.seed == whole.seed


def test_a_long_conversation_cut_in_its_last_text() -> None:
    words = random.Random(7).choices(["alpha", 'be"ta', "gam\\ma", "\u00e9t\u00e9"], k=20_000)
    chat = {
        "model": "m",
        "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": " ".join(words)}],
    }
    body = encoded(chat, True, True)
    whole, part = parse(CHAT, JSON, body), parse_beginning(CHAT, JSON, body[:65_536])
    assert isinstance(whole, InferenceRequest)
    assert isinstance(part, InferenceRequest)
    assert part.parts[0] == whole.parts[0]
    assert whole.parts[1].data.startswith(part.parts[1].data)
    assert part.prompt_bytes > 45_000
    assert (part.model, part.seed) == (whole.model, whole.seed)


def test_a_model_that_comes_too_late_is_unknown_and_a_cut_one_is_none() -> None:
    late = parse_beginning(CHAT, JSON, b'{"messages":[{"content":"Tell me","role":"user"},{"content":"Onc')
    assert isinstance(late, InferenceRequest)
    assert late.model == ""
    assert [part.data for part in late.parts] == [b"user\xfeTell me\xff", b"user\xfeOnc"]
    named = parse_beginning(CHAT, JSON, b'{"messages":[{"role":"user","content":"Onc', model="m")
    assert isinstance(named, InferenceRequest)
    assert (named.model, named.seed) == ("m", b"chat\xffm")
    known = parse_beginning(CHAT, JSON, b'{"model":"m","messages":[', model="other")
    assert isinstance(known, InferenceRequest)
    assert known.model == "m"
    cut = parse_beginning(CHAT, JSON, b'{"messages":[],"model":"gpt-4')
    assert isinstance(cut, InferenceRequest)
    assert cut.model == ""


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/completions", b'{"model":"m","prompt":"Once up', [b"Once up"]),
        ("/v1/completions", b'{"model":"m","prompt":[1,2,3', [b"\x01\0\0\0\x02\0\0\0"]),
        ("/v1/completions", b'{"model":"m","prompt":["one","tw', [b"one", b"tw"]),
        ("/v1/messages", b'{"model":"m","system":"Be br', [b"system\xfeBe br"]),
        ("/v1/messages", b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"system":"Be', [b"system\xfeBe"]),
        ("/v1/responses", b'{"model":"m","input":"Hi th', [b"user\xfeHi th"]),
        (
            "/v1/responses",
            b'{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"Hi',
            [b"user\xfeHi"],
        ),
        (
            "/rerank",
            b'{"model":"m","query":"q","documents":["a","b',
            [b"query\xfeq\xff", b"documents\xfea\xff", b"documents\xfeb"],
        ),
        ("/v1/embeddings", b'{"model":"m","input":[{"text":"a"},{"text":"b', [b"\xfea\xff"]),
        ("/generate", b'{"text":"Hi th', [b"Hi th"]),
    ],
)
def test_every_path_can_be_cut(path: str, body: bytes, expected: list[bytes]) -> None:
    parsed = parse_beginning(path, JSON, body)
    assert isinstance(parsed, InferenceRequest)
    assert [part.data for part in parsed.parts] == expected


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (CHAT, b'{"messages":"Hi', []),
        (CHAT, b'{"tools":[1],"messages":"Hi', [b"\xfdtools\xfb[1]\xff"]),
        (CHAT, b'{"messages":[{"role":"user","content":"a"},"b', [b"user\xfea\xff"]),
        ("/v1/completions", b'{"prompt":{"a":"b', []),
        ("/v1/completions", b'{"prompt":["a",1,"b', []),
        (CHAT, b'{"messages":[{"role":"user"', []),  # the role may be cut, too
        (CHAT, b'{"messages":[{"role":"user","content":"a"},{"role":"user"', [b"user\xfea\xff", b"user"]),
        (CHAT, b'{"messages":[{"role":"user","content":null,"name":"x', []),
        (CHAT, b'{"messages":[{"content":"Hi","role":"as', [b"user\xfeHi"]),
        (CHAT, b'{"messages":[{"role":"user","content":{"a":"b', [b"user"]),
        (CHAT, b'{"messages":[{"role":"user","content":[{"type":"thinking","thinking":"b', [b"user"]),
        (CHAT, b'{"messages":[{"role":"user","content":[[1],"b', [b"user\xfb[1]\xfeb"]),
        (
            CHAT,
            b'{"messages":[{"role":"tool","content":[{"type":"text","text":"a"},{"type":"tool_result","content":"b',
            [b"tool\xfea\xf9tool_result\xfeb"],
        ),
        (CHAT, b'{"messages":[{"role":"tool","content":["a",{"type":7,"content":"b', [b"tool\xfea"]),
        (
            CHAT,
            b'{"messages":[{"role":"tool","content":[{"type":"text","text":"a"},{"type":"tool_re',
            [b"tool\xfea"],
        ),
    ],
)
def test_what_is_certain_of_a_cut_value_stays(path: str, body: bytes, expected: list[bytes]) -> None:
    parsed = parse_beginning(path, JSON, body)
    assert isinstance(parsed, InferenceRequest)
    assert [part.data for part in parsed.parts] == expected


IMAGE = '{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA'


@pytest.mark.parametrize(
    ("path", "body", "in_media"),
    [
        (CHAT, '"messages":[{"role":"user","content":[{"type":"text","text":"Look"},' + IMAGE, True),
        (CHAT, '"messages":[{"role":"user","content":[{"type":"text","text":"Look"},{"type":"ima', True),
        (CHAT, '"audio":{"voice":"a"},"messages":[{"role":"user","content":"Look', False),
        (CHAT, '"messages":[{"role":"user","content":[' + IMAGE + '"}},{"type":"text","text":"Lo', False),
        (CHAT, '"messages":[{"role":"user","content":[' + IMAGE + '"}}]},{"role":"user","content":"Lo', False),
        (
            "/v1/messages",
            '"messages":[{"role":"user","content":[{"type":"tool_result","content":'
            '[{"type":"image","source":{"type":"base64","data":"AAAA',
            True,
        ),
        ("/v1/responses", '"input":[{"role":"user","content":"a"},{"type":"image_generation_call","result":"A', True),
        ("/v1/responses", '"input":[{"type":"function_call_output","output":[{"image_url":"data:', True),
        ("/v1/embeddings", '"input":[{"text":"a","image":"AAAA', True),
        ("/generate", '"text":"Look","image_data":["AAAA', True),
        ("/generate", '"text":"Loo', False),
    ],
)
def test_text_is_not_taken_for_longer_because_an_image_is_cut(path: str, body: str, in_media: bool) -> None:
    parsed = parse_beginning(path, JSON, b'{"model":"m",' + body.encode())
    assert isinstance(parsed, InferenceRequest)
    estimated = parsed.cut_off(1000, 50_000)
    assert estimated.partial == in_media
    assert estimated.prompt_bytes == parsed.prompt_bytes * (1 if in_media else 50)


@pytest.mark.parametrize(
    "body", [b"", b"garbage", b"[1,2", b'"', b'{"a":}', b'{"a" "b" "c', b"}}}}", b'{"model":"m"}]']
)
def test_what_is_no_json_is_routed_without_a_prompt(body: bytes) -> None:
    parsed = parse_beginning(CHAT, JSON, body)
    assert isinstance(parsed, InferenceRequest)
    assert parsed.parts == ()
