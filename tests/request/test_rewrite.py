"""The model name replaced, nothing else touched."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmroute.request.rejections import Rejection
from warmroute.request.rewrite import MAX_MODELS, replace_model

words = st.sampled_from(["a", "model", '"model"', '"model":"x"', "\\", '\\"', "{[", "}", ",", "é", "mod", ""])
texts = words | st.lists(words, max_size=3).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)
members = st.lists(
    st.tuples(texts.filter(lambda key: key != "model"), values), max_size=4, unique_by=lambda member: member[0]
)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"a"}', b'{"model":"new"}'),
        (b' { "model" : "a" , "n":1.50 }\n', b' { "model" : "new" , "n":1.50 }\n'),
        (
            b'{"x":{"model":"a"},"model":"b","y":[{"model":"c"}]}',
            b'{"x":{"model":"a"},"model":"new","y":[{"model":"c"}]}',
        ),
        (b'{"model":"a","model":"b"}', b'{"model":"new","model":"new"}'),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":"new"}'),
        (b'{"\\u006D\\u006f\\u0064\\u0065\\u006c":"a"}', b'{"\\u006D\\u006f\\u0064\\u0065\\u006c":"new"}'),
        (b'{"model":"a\\"b\\\\"}', b'{"model":"new"}'),
        (b'{"model":""}', b'{"model":"new"}'),
        (b'{"s":"\\\\\\"model\\":\\"x\\"","model":"a"}', b'{"s":"\\\\\\"model\\":\\"x\\"","model":"new"}'),
        (b'{"model":5}', None),
        (b'{"mod\\\\u0065l":"a"}', None),
        (b'{"a":"model","b":["model","x"]}', None),
        (b'{"x":{"model":"a"}}', None),
        (b'[{"model":"a"}]', None),
        (b"{}", None),
        (b"", None),
        (b'{"model":', None),
        (b'"model', None),
    ],
)
def test_replacing(body: bytes, expected: bytes | None) -> None:
    assert replace_model(body, "new") == expected


def test_a_body_that_names_its_model_often_is_refused() -> None:
    member = b'"model":"a"'
    allowed = b"{" + b",".join([member] * MAX_MODELS) + b"}"
    assert replace_model(allowed, "new") == allowed.replace(b'"a"', b'"new"')
    refused = replace_model(b"{" + b",".join([member] * (MAX_MODELS + 1)) + b"}", "new")
    assert isinstance(refused, Rejection)
    assert (refused.status, refused.param) == (400, "model")


def test_members_of_other_objects_are_no_models_however_many() -> None:
    inside = b'{"messages":[' + b",".join([b'{"model":"a","s":"}\\"{"}'] * 5_000) + b"],"
    assert replace_model(inside + b'"model":"b"}', "new") == inside + b'"model":"new"}'
    assert replace_model(b'{"model":"b",' + inside[1:-1] + b"}", "new") == b'{"model":"new",' + inside[1:-1] + b"}"


@settings(deadline=None)
@given(members, members, texts, texts, st.booleans(), st.sampled_from([None, 2]))
def test_only_the_top_level_value_changes(
    before: list[tuple[str, Any]],
    after: list[tuple[str, Any]],
    old: str,
    new: str,
    ascii_only: bool,
    indent: int | None,
) -> None:
    marker = "\x01here\x01"
    document = {**dict(before), "model": marker, **dict(after)}
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode()
    head, tail = text.split(json.dumps(marker).encode())
    body = head + json.dumps(old, ensure_ascii=ascii_only).encode() + tail
    replaced = replace_model(body, new)
    assert replaced == head + json.dumps(new).encode() + tail
    assert json.loads(replaced) == {**document, "model": new}


@settings(deadline=None)
@given(st.dictionaries(texts.filter(lambda key: key != "model"), values, max_size=4))
def test_a_body_without_a_model_has_none_to_replace(document: dict[str, Any]) -> None:
    assert replace_model(json.dumps(document).encode(), "new") is None


@settings(deadline=None)
@given(st.binary(max_size=40) | st.text('{}[]":,\\model u006', max_size=40).map(str.encode))
def test_no_bytes_raise(body: bytes) -> None:
    replace_model(body, "new")
