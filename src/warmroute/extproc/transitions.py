"""The state machine of one ext_proc stream, as data: which message may come when, and what is done with it.

Everything that affects transitions lives in this file; :mod:`warmroute.extproc.session` carries the actions out. A message
that is not in :data:`TRANSITIONS` for the present state and body mode is an :class:`UnexpectedMessageError`. Without IO.

Envoy names the body mode of the request in its first message. Modes that this version does not know are served as BUFFERED.
docs/envoy.md shows the table; a test compares the two.
"""

from __future__ import annotations

from enum import Enum, IntEnum, auto
from typing import NamedTuple

from warmroute.errors import ProtocolError
from warmroute.extproc.ext_proc_pb2 import (
    BUFFERED,
    BUFFERED_PARTIAL,
    FULL_DUPLEX_STREAMED,
    NONE,
    STREAMED,
    BodySendMode,
)

MODES = (NONE, STREAMED, BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX_STREAMED)
"""The body modes of a request."""


class State(IntEnum):
    """How far the stream of one HTTP request has come."""

    START = auto()
    """No message has come."""
    BODY = auto()
    """Headers have come; the request has not ended and is not answered."""
    UPLOAD = auto()
    """The endpoint is named; the client still sends the body (STREAMED)."""
    ANSWERED = auto()
    """The request is complete and answered; messages about the response may follow."""
    TWO_WAY = auto()
    """The endpoint is named; request and response go on at once (FULL_DUPLEX_STREAMED)."""
    SHADOWED = auto()
    """Envoy runs in observability mode and takes no answers."""
    CLOSED = auto()
    """Nothing more is answered; the stream is to be ended."""


class Message(IntEnum):
    """A message by its kind. ``_END`` marks ``end_of_stream``: the request has no more body."""

    HEADERS = auto()
    HEADERS_END = auto()
    HEADERS_TWO_WAY = auto()
    """Headers of a request whose body may not end before the response begins: an upgrade, CONNECT, gRPC."""
    BODY = auto()
    BODY_END = auto()
    TRAILERS = auto()
    RESPONSE_HEADERS = auto()
    RESPONSE_BODY = auto()
    RESPONSE_TRAILERS = auto()


class Action(Enum):
    """What is done with a message. The values are the words of the documentation's table."""

    ACKNOWLEDGE_HEADERS = "acknowledge the headers"
    HOLD = "reply nothing yet"
    COLLECT = "keep the chunk, reply nothing yet"
    PICK_AT_HEADERS = "pick without a prompt; name the endpoint in the reply to the headers"
    PICK_AND_LEAVE = "pick without a prompt; name the endpoint in the reply to the headers, end the stream"
    PICK_AT_BODY = "read the prompt, pick; name the endpoint in the reply to the body"
    PICK_AT_TRAILERS = "pick without a prompt; name the endpoint in metadata"
    PICK_AND_RETURN_BODY = "read the prompt, pick; name the endpoint in the reply to the headers, return the body"
    PICK_AND_RETURN_ALL = "read the prompt, pick; name the endpoint, return the body, acknowledge the trailers"
    ACKNOWLEDGE_BODY = "acknowledge the chunk"
    ACKNOWLEDGE_TRAILERS = "acknowledge the trailers"
    RETURN_CHUNK = "return the chunk"
    IGNORE = "ignore"
    READ_RESPONSE_HEADERS = "read the status, acknowledge"
    PASS_RESPONSE_BODY = "acknowledge, or return the chunk where Envoy needs it back"
    ACKNOWLEDGE_RESPONSE_TRAILERS = "acknowledge"


PICKS = frozenset(
    (
        Action.PICK_AT_HEADERS,
        Action.PICK_AND_LEAVE,
        Action.PICK_AT_BODY,
        Action.PICK_AT_TRAILERS,
        Action.PICK_AND_RETURN_BODY,
        Action.PICK_AND_RETURN_ALL,
    )
)
"""The actions that answer the request."""


class Transition(NamedTuple):
    """What is done with a message, and the state after it."""

    action: Action
    state: State
    """CLOSED: the request is answered and complete. The stream is ended then, so that a crash of the picker cannot harm the
    request; it goes to ANSWERED instead where messages about the response are needed (see :func:`next_state`)."""
    picks: bool
    """The action answers the request: it is one of :data:`PICKS`."""


class UnexpectedMessageError(ProtocolError):
    """A message that cannot come in the present state."""

    def __init__(self, kind: str, state: State) -> None:
        super().__init__(f"{kind} in state {state.name}")


AWAITING_CLIENT = frozenset((State.START, State.BODY, State.UPLOAD))
"""States in which the client has to send something: they have a deadline."""


def next_state(transition: Transition, *, needs_response: bool) -> State:
    """The state after ``transition``; ``needs_response``: the stream must stay open until the response has ended."""
    if transition.state is State.CLOSED and needs_response and transition.action is not Action.PICK_AND_LEAVE:
        return State.ANSWERED
    return transition.state


_KINDS = {
    "request_headers": (Message.HEADERS, Message.HEADERS_END),
    "request_body": (Message.BODY, Message.BODY_END),
    "request_trailers": (Message.TRAILERS, Message.TRAILERS),
    "response_headers": (Message.RESPONSE_HEADERS, Message.RESPONSE_HEADERS),
    "response_body": (Message.RESPONSE_BODY, Message.RESPONSE_BODY),
    "response_trailers": (Message.RESPONSE_TRAILERS, Message.RESPONSE_TRAILERS),
}


def transition(
    state: State, mode: BodySendMode, kind: str, *, end_of_stream: bool, two_way: bool = False
) -> Transition:
    """The transition for a message of ``kind`` (the name of its field). Raises :class:`UnexpectedMessageError`."""
    message = Message.HEADERS_TWO_WAY if two_way else _KINDS[kind][end_of_stream]
    found = TRANSITIONS.get((state, mode, message))
    if found is None:
        raise UnexpectedMessageError(kind, state)
    return found


def _table() -> dict[tuple[State, BodySendMode, Message], Transition]:
    table: dict[tuple[State, BodySendMode, Message], Transition] = {}

    def on(
        states: tuple[State, ...], modes: tuple[BodySendMode, ...], message: Message, action: Action, to: State
    ) -> None:
        for state in states:
            for mode in modes:
                table[state, mode, message] = Transition(action, to, action in PICKS)

    start, body, upload, answered = (State.START,), (State.BODY,), (State.UPLOAD,), (State.ANSWERED,)
    two_way = (State.TWO_WAY,)
    buffered, duplex = (BUFFERED, BUFFERED_PARTIAL), (FULL_DUPLEX_STREAMED,)
    unseen = (NONE, STREAMED)

    on(start, MODES, Message.HEADERS_END, Action.PICK_AT_HEADERS, State.CLOSED)
    # A body that is held until it ends would hold such a request for ever. Ending the stream lets Envoy pass everything on;
    # in FULL_DUPLEX_STREAMED it would lose what it has sent and not got back.
    on(start, unseen + buffered, Message.HEADERS_TWO_WAY, Action.PICK_AND_LEAVE, State.CLOSED)
    on(start, duplex, Message.HEADERS_TWO_WAY, Action.PICK_AT_HEADERS, State.TWO_WAY)
    on(start, (NONE,), Message.HEADERS, Action.PICK_AT_HEADERS, State.CLOSED)
    on(start, (STREAMED,), Message.HEADERS, Action.PICK_AT_HEADERS, State.UPLOAD)
    on(start, buffered, Message.HEADERS, Action.ACKNOWLEDGE_HEADERS, State.BODY)
    on(start, duplex, Message.HEADERS, Action.HOLD, State.BODY)

    # A body without headers comes where the filter's request_header_mode is SKIP.
    for message in (Message.BODY, Message.BODY_END):  # a body that is followed by trailers does not end the stream
        on(start, unseen, message, Action.PICK_AT_BODY, State.CLOSED)
        on(start + body, buffered, message, Action.PICK_AT_BODY, State.CLOSED)
    on(start + body, duplex, Message.BODY, Action.COLLECT, State.BODY)
    on(start + body, duplex, Message.BODY_END, Action.PICK_AND_RETURN_BODY, State.CLOSED)
    on(body, buffered, Message.TRAILERS, Action.PICK_AT_TRAILERS, State.CLOSED)  # there was no body
    on(body, duplex, Message.TRAILERS, Action.PICK_AND_RETURN_ALL, State.CLOSED)

    on(upload, (STREAMED,), Message.BODY, Action.ACKNOWLEDGE_BODY, State.UPLOAD)
    on(upload, (STREAMED,), Message.BODY_END, Action.ACKNOWLEDGE_BODY, State.CLOSED)
    on(upload, (STREAMED,), Message.TRAILERS, Action.ACKNOWLEDGE_TRAILERS, State.CLOSED)

    for message in (Message.BODY, Message.BODY_END):
        on(two_way, duplex, message, Action.RETURN_CHUNK, State.TWO_WAY)
    on(two_way, duplex, Message.TRAILERS, Action.ACKNOWLEDGE_TRAILERS, State.TWO_WAY)

    on(answered, unseen + buffered, Message.BODY, Action.ACKNOWLEDGE_BODY, State.ANSWERED)
    on(answered, unseen + buffered, Message.BODY_END, Action.ACKNOWLEDGE_BODY, State.CLOSED)
    for message in (Message.BODY, Message.BODY_END):  # some Envoys send end_of_stream twice
        on(answered, duplex, message, Action.IGNORE, State.ANSWERED)
    on(answered, MODES, Message.TRAILERS, Action.ACKNOWLEDGE_TRAILERS, State.ANSWERED)

    # Envoy's own replies (413, a client that went away) come as a response before the request is complete.
    for message, action in (
        (Message.RESPONSE_HEADERS, Action.READ_RESPONSE_HEADERS),
        (Message.RESPONSE_BODY, Action.PASS_RESPONSE_BODY),
        (Message.RESPONSE_TRAILERS, Action.ACKNOWLEDGE_RESPONSE_TRAILERS),
    ):
        on(start + answered, MODES, message, action, State.ANSWERED)
        on(body, buffered + duplex, message, action, State.ANSWERED)
        on(upload, (STREAMED,), message, action, State.ANSWERED)
        on(two_way, duplex, message, action, State.TWO_WAY)
    return table


TRANSITIONS = _table()
"""By state, body mode of the request, and message. What is missing is an error."""


def documentation() -> str:
    """The table as Markdown: one row for each state and message, modes that act alike in one row."""
    lines = ["| state | message | body mode | action | next state |", "|---|---|---|---|---|"]
    for state in State:
        for message in Message:
            modes: dict[Transition, list[str]] = {}
            for mode in MODES:
                found = TRANSITIONS.get((state, mode, message))
                if found is not None:
                    modes.setdefault(found, []).append(BodySendMode.Name(mode))
            for found, names in modes.items():
                where = "any" if len(names) == len(MODES) else ", ".join(names)
                lines.append(f"| {state.name} | {message.name} | {where} | {found.action.value} | {found.state.name} |")
    return "\n".join(lines)
