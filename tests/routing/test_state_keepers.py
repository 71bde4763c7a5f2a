"""Requests that go on with what one engine keeps."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from tests.routing.test_router import Fixture, only
from warmroute.request.inference import NO_PROMPT, InferenceRequest
from warmroute.request.parse import parse
from warmroute.request.state_ids import creates_response, response_id, state_in_path
from warmroute.routing import state_keepers
from warmroute.routing.decision import Decision
from warmroute.routing.state_keepers import StateKeepers


def state_of(path: str, **body: Any) -> str:
    parsed = parse(path, "application/json", json.dumps({"model": "m", **body}).encode())
    assert isinstance(parsed, InferenceRequest), parsed
    return parsed.state


def pick(fixture: Fixture, state: str, **options: Any) -> Decision:
    decision = fixture.router.pick(NO_PROMPT._replace(state=state), 0.0, **options)
    assert isinstance(decision, Decision)
    return decision


@pytest.mark.parametrize(
    ("path", "body", "state"),
    [
        ("/v1/responses", {"input": "Hi", "previous_response_id": "resp_1"}, "resp_1"),
        ("/v1/responses", {"input": "Hi", "conversation": "conv_1"}, "conv_1"),
        ("/v1/responses", {"input": "Hi", "conversation": {"id": "conv_1"}}, "conv_1"),
        ("/generate", {"text": "Hi", "session_params": {"id": "s1", "rid": None}}, "s1"),
        ("/open_session", {"capacity_of_str_len": 1000, "session_id": "s1"}, "s1"),
        ("/close_session", {"session_id": "s1"}, "s1"),
        ("/v1/responses", {"input": "Hi"}, ""),
        ("/v1/responses", {"input": "Hi", "previous_response_id": None, "conversation": {}}, ""),
        ("/v1/responses", {"input": "Hi", "previous_response_id": "r" * 300}, ""),
        ("/v1/chat/completions", {"messages": [{"role": "user"}], "session_id": "s1"}, ""),
    ],
)
def test_what_a_body_goes_on_with(path: str, body: dict[str, Any], state: str) -> None:
    assert state_of(path, **body) == state


@pytest.mark.parametrize(
    ("path", "state"),
    [
        ("/v1/responses/resp_1", "resp_1"),
        ("/team/v1/responses/resp_1/cancel?x=1", "resp_1"),
        ("/v1/responses/resp_1?stream=true", "resp_1"),
        ("/v1/conversations/conv_1/items", "conv_1"),
        ("/v1/responses", ""),
        ("/v1/models/m", ""),
    ],
)
def test_what_a_path_goes_on_with(path: str, state: str) -> None:
    assert state_in_path(path) == state
    assert creates_response(path) == (path == "/v1/responses")


@pytest.mark.parametrize(
    ("beginning", "found"),
    [
        (b'{"id":"resp_1","object":"response"', "resp_1"),
        (b'event: response.created\ndata: {"response":{"id": "resp_a-B_2","object"', "resp_a-B_2"),
        (b'{"id":"msg_1"', ""),
        (b'{"id":"resp_' + b"x" * 300 + b'"', ""),
        (b"\xff\xfe", ""),
    ],
)
def test_the_id_of_a_response(beginning: bytes, found: str) -> None:
    assert response_id(beginning) == found


def test_a_response_is_continued_where_it_is_kept() -> None:
    fixture = Fixture(20)
    first = pick(fixture, "")
    fixture.router.remember(first, "resp_1")
    for _ in range(10):  # however busy it is
        again = pick(fixture, "resp_1")
        assert (again.endpoint, again.reason) == (first.endpoint, "state")
    elsewhere = only(*(str(k) for k in range(20) if str(k) != first.endpoint.spec.name))
    assert pick(fixture, "resp_1", allowed=elsewhere).endpoint is not first.endpoint


def test_a_session_stays_on_one_endpoint_for_all_pickers_and_sessions_are_spread() -> None:
    one, other = Fixture(5), Fixture(5)
    places = {f"s{k}": pick(one, f"s{k}").endpoint.id for k in range(500)}
    assert places == {state: pick(other, state).endpoint.id for state in reversed(places)}
    assert min(Counter(places.values()).values()) > 60


def test_an_endpoint_that_leaves_moves_its_own_sessions_only() -> None:
    whole, part = Fixture(5), Fixture(4)
    for k in range(300):
        before, after = pick(whole, f"s{k}").endpoint.id, pick(part, f"s{k}").endpoint.id
        assert before == after or before == "default/4"


def test_the_least_recently_used_id_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_keepers, "MOST_STATES", 3)
    fixture = Fixture(50)
    (members,) = {fixture.router._current_table(0.0).all.members}
    states = StateKeepers()
    names = members.names
    for k in range(3):
        states.remember(f"r{k}", names[k])
    assert states.keeper("r0", members) == 0
    states.remember("r3", names[3])
    assert [states.keeper(f"r{k}", members) == k for k in range(4)] == [True, False, True, True]
