"""The table of transitions, pair by pair, against a session."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from tests.extproc.test_session import Stream
from warmroute.extproc.ext_proc_pb2 import (
    BUFFERED,
    BUFFERED_PARTIAL,
    FULL_DUPLEX_STREAMED,
    NONE,
    STREAMED,
    BodySendMode,
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    ProcessingRequest,
    ProtocolConfiguration,
)
from warmroute.extproc.transitions import (
    MODES,
    TRANSITIONS,
    Message,
    State,
    UnexpectedMessageError,
    documentation,
    next_state,
)


def two_way_headers() -> ProcessingRequest:
    message = ProcessingRequest(request_headers=HttpHeaders())
    message.request_headers.headers.headers.add(key="upgrade", raw_value=b"websocket")
    return message


MESSAGES: dict[Message, Callable[[], ProcessingRequest]] = {
    Message.HEADERS: lambda: ProcessingRequest(request_headers=HttpHeaders()),
    Message.HEADERS_END: lambda: ProcessingRequest(request_headers=HttpHeaders(end_of_stream=True)),
    Message.HEADERS_TWO_WAY: two_way_headers,
    Message.BODY: lambda: ProcessingRequest(request_body=HttpBody(body=b"x")),
    Message.BODY_END: lambda: ProcessingRequest(request_body=HttpBody(body=b"x", end_of_stream=True)),
    Message.TRAILERS: lambda: ProcessingRequest(request_trailers=HttpTrailers()),
    Message.RESPONSE_HEADERS: lambda: ProcessingRequest(response_headers=HttpHeaders()),
    Message.RESPONSE_BODY: lambda: ProcessingRequest(response_body=HttpBody(body=b"x", end_of_stream=True)),
    Message.RESPONSE_TRAILERS: lambda: ProcessingRequest(response_trailers=HttpTrailers()),
}

UNREACHABLE = {
    *product([State.BODY], [NONE, STREAMED]),
    *product([State.UPLOAD], [NONE, BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX_STREAMED]),
    *product([State.TWO_WAY], [NONE, STREAMED, BUFFERED, BUFFERED_PARTIAL]),
    *product([State.SHADOWED], [BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX_STREAMED]),
}
"""States that no stream of that body mode comes to."""


def stream_in(state: State, mode: BodySendMode) -> Stream:
    """A stream that came to ``state`` by messages."""
    stream = Stream(observe_responses=state is State.ANSWERED)
    match state:
        case State.BODY | State.UPLOAD:
            stream.headers(mode)
        case State.TWO_WAY:
            stream.headers(mode, upgrade="websocket")
        case State.ANSWERED | State.CLOSED:
            stream.headers(mode, eos=True)
        case State.SHADOWED:
            stream.send(ProcessingRequest(request_headers=HttpHeaders(), observability_mode=True))
    assert stream.session.state is state
    return stream


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("message", Message)
def test_each_pair_is_allowed_or_a_named_error(state: State, mode: BodySendMode, message: Message) -> None:
    step = TRANSITIONS.get((state, mode, message))
    if (state, mode) in UNREACHABLE:
        assert step is None
        return
    stream = stream_in(state, mode)
    sent = MESSAGES[message]()
    if state is State.START:
        sent.protocol_config.CopyFrom(ProtocolConfiguration(request_body_mode=mode))
    if state is State.SHADOWED:
        assert stream.send(sent) == []
        assert stream.session.state is State.SHADOWED
    elif step is None:
        with pytest.raises(UnexpectedMessageError, match=rf"^[a-z_]+ in state {state.name}$"):
            stream.send(sent)
        assert stream.session.state is state
    else:
        answered_before = stream.session.answered
        stream.send(sent)
        expected = next_state(step, needs_response=state is State.ANSWERED)
        assert stream.session.state is expected
        assert stream.session.answered == (answered_before or step.picks)


def test_a_closed_stream_takes_no_message() -> None:
    assert not [key for key in TRANSITIONS if key[0] is State.CLOSED]


def test_every_state_can_be_left() -> None:
    for state, mode in product((State.START, State.BODY, State.UPLOAD, State.TWO_WAY, State.ANSWERED), MODES):
        if (state, mode) not in UNREACHABLE:
            assert [key for key in TRANSITIONS if key[:2] == (state, mode)]


def test_a_body_mode_of_a_newer_protocol_is_served_as_buffered() -> None:
    stream = Stream()
    stream.headers(BodySendMode.GRPC)
    (reply,) = stream.body()
    assert reply.WhichOneof("response") == "request_body"


def test_the_documentation_shows_the_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "envoy.md").read_text(encoding="utf-8")
    assert f"\n\n{documentation()}\n\n" in text, (
        "docs/envoy.md must show `warmroute.extproc.transitions.documentation()`"
    )
