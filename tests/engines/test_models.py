"""The list of models of an engine."""

from __future__ import annotations

import json

import orjson
import pytest

from tests.recordings import engine_recording
from warmroute.engines.models import MOST_BYTES, read_models
from warmroute.errors import ScrapeError
from warmroute.pool.endpoint import LONGEST_MODEL_NAME, MOST_SERVED_MODELS, ServedModels


def listing(*cards: object) -> bytes:
    return orjson.dumps({"object": "list", "data": cards})


def test_a_real_list() -> None:
    _, recorded = json.loads(engine_recording("vllm-0.26-responses.json"))["models"]
    assert read_models(recorded.encode()) == ServedModels(frozenset({"/model/qwen"}))


def test_adapters_have_a_parent() -> None:
    body = listing({"id": "base", "parent": None}, {"id": "tuned", "parent": "base"}, {"id": "plain"})
    assert read_models(body) == ServedModels(frozenset({"base", "tuned", "plain"}), frozenset({"tuned"}))


def test_names_of_one_root_are_one_model() -> None:
    cards = [
        {"id": "b", "root": "/models/qwen"},
        {"id": "a", "root": "/models/qwen"},
        {"id": "tuned", "root": "/models/qwen", "parent": "a"},
        {"id": "c", "root": "/models/other"},
        {"id": "d"},
        {"id": "e"},
    ]
    assert read_models(listing(*cards)).aliases == {"b": "a"}


@pytest.mark.parametrize("root", [b"7", b"null", b"{}", b"[" * 1_000 + b"]" * 1_000])
def test_a_root_that_is_no_text_counts_as_none(root: bytes) -> None:
    models = read_models(b'{"data": [{"id": "a", "root": %b}, {"id": "b", "root": %b}]}' % (root, root))
    assert (models.names, models.aliases) == ({"a", "b"}, {})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"data": 1}',
        b'{"data": [1]}',
        listing(),
        listing({"id": 7}),
        listing({"id": ""}),
        listing({"name": "m"}),
        listing({"id": "x" * (LONGEST_MODEL_NAME + 1)}),
        listing(*({"id": f"m{k}"} for k in range(MOST_SERVED_MODELS + 1))),
        listing({"id": "m", "padding": "x" * MOST_BYTES}),
        b'{"data": [{"id": "m", "root": ' + b"[" * 2_000 + b"]" * 2_000 + b"}]}",
    ],
)
def test_what_is_no_usable_list(body: bytes) -> None:
    with pytest.raises(ScrapeError):
        read_models(body)
