"""Second turns as clients really send them: two bodies in, the tokens out that the chosen endpoint is believed to hold."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

from tests.routing.test_router import Fixture
from warmroute.request.inference import InferenceRequest
from warmroute.request.parse import parse
from warmroute.routing.decision import Decision

CHAT, RESPONSES, ANTHROPIC, TOKENS = "/v1/chat/completions", "/v1/responses", "/v1/messages", "/inference/v1/generate"
TEXT = "A sentence of forty bytes, all in all. " * 1_000  # about 10,000 tokens
HISTORY = [{"role": "user", "content": TEXT}]
ANSWER = {"role": "assistant", "content": "Yes."}
NEXT = {"role": "user", "content": "And then?"}
TOOLS = [{"name": f"tool_{k}", "description": TEXT[:4_000], "input_schema": {"type": "object"}} for k in range(5)]
MARK = {"cache_control": {"type": "ephemeral"}}


def image(url: str | None, **members: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": None if url is None else {"url": url}, **members}


def seen(*blocks: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*blocks, {"type": "text", "text": TEXT}]}]


def called(arguments: object, **members: object) -> list[dict[str, Any]]:
    call = {"id": "c1", "type": "function", "function": {"name": "edit", "arguments": arguments}, **members}
    return [
        {"role": "user", "content": "Edit it."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": TEXT},
    ]


def ids(count: int, first: int = 0) -> list[int]:
    return [first, *range(1, count)]


def placed(offset: int, name: str) -> dict[str, Any]:
    return {
        "mm_hashes": {"image": [name]},
        "mm_placeholders": {"image": [{"offset": offset, "length": 200}]},
    }


class Case(NamedTuple):
    path: str
    before: dict[str, Any]
    after: dict[str, Any]
    held: tuple[float, float]
    """The share of the second prompt that is held: at least, at most."""


WARM, COLD = (0.9, 1.0), (0.0, 0.0)
PARTS = [
    {"type": "tokens", "token_ids": ids(5_000)},
    image("https://a/1.png"),
    {"type": "tokens", "token_ids": ids(5_000)},
]
CASES = {
    "an image of a later turn": Case(
        TOKENS, {"token_ids": ids(10_000)}, {"token_ids": ids(10_500), "features": placed(10_200, "h")}, WARM
    ),
    "another image in content parts": Case(
        TOKENS, {"content_parts": PARTS}, {"content_parts": [PARTS[0], image("https://a/2.png"), PARTS[2]]}, (0.4, 0.5)
    ),
    "a grammar in a later turn": Case(
        CHAT,
        {"messages": HISTORY},
        {
            "messages": [*HISTORY, ANSWER, NEXT],
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
        },
        WARM,
    ),
    "a summary of reasoning in a later turn": Case(
        RESPONSES, {"input": HISTORY}, {"input": [*HISTORY, ANSWER, NEXT], "reasoning": {"summary": "auto"}}, WARM
    ),
    "options of images in a chat without images": Case(
        CHAT, {"messages": HISTORY}, {"messages": [*HISTORY, ANSWER, NEXT], "mm_processor_kwargs": {"fps": 1}}, WARM
    ),
    "the tools of another system prompt": Case(
        CHAT,
        {"messages": [{"role": "system", "content": "For Ada."}, *HISTORY], "tools": TOOLS},
        {"messages": [{"role": "system", "content": "For Bob."}, *HISTORY], "tools": TOOLS},
        COLD,
    ),
    "other tools of the same system prompt": Case(
        CHAT,
        {"messages": [{"role": "system", "content": TEXT}, NEXT], "tools": TOOLS},
        {"messages": [{"role": "system", "content": TEXT}, NEXT], "tools": TOOLS[1:]},
        COLD,
    ),
    "the same tools of a system prompt that ends in another way": Case(
        CHAT,
        {"messages": [{"role": "system", "content": TEXT + "For Ada."}, NEXT], "tools": TOOLS},
        {"messages": [{"role": "system", "content": TEXT + "For Bob."}, NEXT], "tools": TOOLS},
        (0.6, 0.7),
    ),
    "other token ids beside the messages": Case(
        CHAT, {"messages": [NEXT], "input_ids": ids(30_000)}, {"messages": [NEXT], "input_ids": ids(30_000, 9)}, COLD
    ),
    "the same token ids beside other messages": Case(
        CHAT, {"messages": [NEXT], "input_ids": ids(30_000)}, {"messages": HISTORY, "input_ids": ids(30_000)}, WARM
    ),
    "the uuid of an image alone": Case(
        CHAT,
        {"messages": seen(image("https://a/1.png", uuid="u"))},
        {"messages": [*seen(image(None, uuid="u")), ANSWER, NEXT]},
        WARM,
    ),
    "a renewed signature of an image": Case(
        CHAT,
        {"messages": seen(image("https://a/1.png?X-Amz-Date=1&X-Amz-Signature=abc"))},
        {"messages": [*seen(image("https://a/1.png?X-Amz-Date=2&X-Amz-Signature=def")), ANSWER, NEXT]},
        WARM,
    ),
    "a cache mark that leaves the last tool": Case(
        ANTHROPIC,
        {"messages": HISTORY, "tools": [*TOOLS[:-1], TOOLS[-1] | MARK]},
        {"messages": [*HISTORY, ANSWER, NEXT], "tools": TOOLS},
        WARM,
    ),
    "white space in arguments": Case(
        CHAT,
        {"messages": called('{"path": "a.py", "text": "caf\\u00e9"}')},
        {"messages": [*called('{"text":"café","path":"a.py"}'), ANSWER, NEXT]},
        WARM,
    ),
    "arguments as an object": Case(
        CHAT, {"messages": called('{"path": "a.py"}')}, {"messages": [*called({"path": "a.py"}), ANSWER, NEXT]}, WARM
    ),
    "the index of a streamed tool call": Case(
        CHAT, {"messages": called("{}")}, {"messages": [*called("{}", index=0), ANSWER, NEXT]}, WARM
    ),
    "ids and status of items": Case(
        RESPONSES,
        {"input": [ANSWER, *HISTORY]},
        {"input": [{"id": "msg_1", "status": "completed", "type": "message", **ANSWER}, *HISTORY, NEXT]},
        WARM,
    ),
    "a prefix before the path": Case("/qwen/chat/completions", {"messages": HISTORY}, {"messages": HISTORY}, WARM),
    "another text": Case(CHAT, {"messages": HISTORY}, {"messages": [{"role": "user", "content": "B" + TEXT}]}, COLD),
    "another image": Case(
        CHAT, {"messages": seen(image("https://a/1.png"))}, {"messages": seen(image("https://a/2.png"))}, (0.0, 0.01)
    ),
    "other arguments": Case(
        CHAT, {"messages": called('{"path": "a.py"}')}, {"messages": called('{"path": "b.py"}')}, (0.0, 0.01)
    ),
    "another effort": Case(
        RESPONSES,
        {"input": HISTORY, "reasoning": {"effort": "low"}},
        {"input": HISTORY, "reasoning": {"effort": "high"}},
        COLD,
    ),
}


def decide(fixture: Fixture, path: str, body: dict[str, Any], now: float) -> Decision:
    parsed = parse(path, "application/json", json.dumps({"model": "m", **body}).encode())
    assert isinstance(parsed, InferenceRequest), parsed
    decision = fixture.router.pick(parsed, now)
    assert isinstance(decision, Decision)
    return decision


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_held_of_the_second_turn(case: Case) -> None:
    fixture = Fixture(3)
    first = decide(fixture, case.path, case.before, 0.0)
    second = decide(fixture, case.path, case.after, 100.0)
    least, most = case.held
    assert least <= second.match_ratio <= most
    if least:
        assert second.endpoint is first.endpoint
