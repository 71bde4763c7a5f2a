"""The HTTP/2 connection against h2, another implementation of the protocol, and against clients that break it."""

from __future__ import annotations

import gc
import time
import weakref
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.grpc_server import connection as connection_module
from warmroute.grpc_server import frames
from warmroute.grpc_server.connection import (
    CONNECTION_WINDOW,
    IGNORE,
    LONG_MESSAGE,
    MAX_HEADERS,
    MOST_AT_ONCE,
    STREAM_WINDOW,
    Call,
    Connection,
    Handler,
    Limits,
    Usage,
)
from warmroute.grpc_server.frames import ErrorCode, Status, frame

LIMITS = Limits(message_bytes=1 << 20, calls=10)
HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/echo"),
    (":authority", "picker"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]


def receive_all(connection: Connection, data: bytes) -> None:
    connection.receive(data)
    while connection.behind:
        connection.receive(b"")


def prefixed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


class Echo:
    """A handler that notes what it is told and sends each message back, or pauses at each."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.pauses = False
        self.messages: list[bytes] = []
        self.ends: list[str] = []
        self.times_written = 0
        self.arrived = 0
        self.waited = 0

    def message(self, data: bytes) -> None:
        self.messages.append(data)
        if self.pauses:
            self.call.pause()
        else:
            self.call.send(data)

    def arriving(self, size: int) -> None:
        self.arrived = size

    def waiting(self, size: int) -> None:
        self.waited = size

    def half_closed(self) -> None:
        self.ends.append("half-closed")
        self.call.finish()

    def written(self) -> None:
        self.times_written += 1

    def closed(self) -> None:
        self.ends.append("closed")


class Pair:
    """A server's connection and an h2 client, with nothing between them."""

    def __init__(self, limits: Limits = LIMITS, usage: Usage | None = None, **settings: int) -> None:
        self.handlers: list[Echo] = []
        self.wakes = 0
        self.server = Connection(self._accept, self._wake, limits, usage or Usage())
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        if settings:
            self.client.local_settings = h2.settings.Settings(
                client=True, initial_values={getattr(h2.settings.SettingCodes, k): v for k, v in settings.items()}
            )
        self.client.initiate_connection()
        self.events: list[Any] = []
        self.exchange()

    def _accept(self, call: Call) -> Handler:
        if call.path != "/echo":
            call.finish(Status.UNIMPLEMENTED, "no such method: ünïcode\n")
            return IGNORE
        self.handlers.append(Echo(call))
        return self.handlers[-1]

    def _wake(self) -> None:
        self.wakes += 1

    def exchange(self, piece: int = 1 << 20) -> None:
        """Carry bytes both ways until nobody has more."""
        while True:
            sent = self.client.data_to_send()
            for start in range(0, len(sent), piece):
                receive_all(self.server, sent[start : start + piece])
            received = self.server.output()
            if received:
                self.events += self.client.receive_data(received)
            if not sent and not received:
                return

    def open(self, path: str = "/echo", *, end: bool = False) -> int:
        stream = self.client.get_next_available_stream_id()
        self.client.send_headers(stream, [(k, path if k == ":path" else v) for k, v in HEADERS], end_stream=end)
        return stream

    def data(self, stream: int) -> bytes:
        return b"".join(e.data for e in self.events if isinstance(e, h2.events.DataReceived) and e.stream_id == stream)

    def trailers(self, stream: int) -> dict[str, str]:
        for event in self.events:
            kinds = (h2.events.TrailersReceived, h2.events.ResponseReceived)
            if isinstance(event, kinds) and event.stream_id == stream:
                headers = {str(name): str(value) for name, value in event.headers}
                if "grpc-status" in headers:
                    return headers
        return {}

    def raw(self, data: bytes) -> bytes:
        """What the server answers to these bytes."""
        self.server.receive(data)
        return self.server.output()


@given(
    messages=st.lists(st.binary(max_size=300), max_size=6),
    cuts=st.lists(st.integers(1, 2000), max_size=10),
    piece=st.integers(1, 400),
    padding=st.sampled_from([None, 0, 7]),
)
def test_messages_arrive_whole_however_they_are_cut(
    messages: list[bytes], cuts: list[int], piece: int, padding: int | None
) -> None:
    pair = Pair()
    stream = pair.open()
    rest = b"".join(map(prefixed, messages))
    for cut in cuts:
        pair.client.send_data(stream, rest[:cut], pad_length=padding)
        rest = rest[cut:]
    pair.client.send_data(stream, rest, end_stream=True)
    pair.exchange(piece)
    assert pair.handlers[0].messages == messages
    assert pair.handlers[0].ends == ["half-closed", "closed"]
    assert pair.data(stream) == b"".join(map(prefixed, messages))
    assert pair.trailers(stream)["grpc-status"] == "0"
    assert pair.server.calls == 0


def test_a_call_that_its_message_ends_gets_no_window() -> None:
    """No frame but PRIORITY may follow RST_STREAM (RFC 9113, 5.1)."""

    class Refuse(Echo):
        def message(self, data: bytes) -> None:
            self.call.finish(Status.INVALID_ARGUMENT, "no")

    server = Connection(Refuse, lambda: None, LIMITS, Usage())
    server.receive(frames.PREFACE + frame(frames.SETTINGS, 0, 0))
    server.receive(frame(frames.HEADERS, frames.END_HEADERS, 1, hpack.Encoder().encode(HEADERS)))
    server.output()
    message = prefixed(bytes(STREAM_WINDOW // 2 - 5))  # its last frame takes the window to half
    kinds = []
    for start in range(0, len(message), frames.MAX_FRAME):
        server.receive(frame(frames.DATA, 0, 1, message[start : start + frames.MAX_FRAME]))
        answer = server.output()
        while answer:
            high, low, kind, _, stream = frames.HEAD.unpack_from(answer)
            kinds.append((kind, stream))
            answer = answer[frames.HEAD.size + (high << 8 | low) :]
    assert kinds[-1] == (frames.RST_STREAM, 1)
    assert (frames.WINDOW_UPDATE, 1) not in kinds


def test_a_header_block_has_no_more_than_two_updates_of_the_tables_size() -> None:
    block = hpack.Encoder().encode(HEADERS)
    for updates, answered in ((b"\x20\x3f\xe1\x1f", True), (b"\x20" * 3, False), (b"\x20" * 16_000, False)):
        pair = Pair()
        answer = pair.raw(frame(frames.HEADERS, frames.END_HEADERS, 1, updates + block))
        assert (len(pair.handlers) == 1) is answered
        assert (b"too many size updates" in answer) is not answered


def test_long_header_blocks_and_many_messages_in_a_frame_take_several_turns() -> None:
    """Other connections get their turn between them."""
    pair = Pair(Limits(message_bytes=1000, calls=100))
    blocks = []
    for number in range(20):  # each changes the table, so that it must be decoded
        fields = [*HEADERS, *((f"x-{k}", f"{number}-{k}" * 20) for k in range(100))]
        blocks.append(hpack.Encoder().encode(fields, huffman=False))
    assert min(map(len, blocks)) > 2 * connection_module.BLOCK_BYTES
    data = [frame(frames.HEADERS, frames.END_HEADERS, 1 + 2 * k, block) for k, block in enumerate(blocks)]
    pair.server.receive(b"".join(data))
    assert len(pair.handlers) <= MOST_AT_ONCE // 2
    while pair.server.behind:
        pair.server.receive(b"")
    assert len(pair.handlers) == 20

    pair = Pair()
    stream = pair.open()
    pair.exchange()
    pair.server.receive(frame(frames.DATA, frames.END_STREAM, stream, prefixed(b"") * 1000))
    assert len(pair.handlers[0].messages) <= MOST_AT_ONCE
    turns = 0
    while pair.server.behind:
        pair.server.receive(b"")
        turns += 1
    assert turns > 100
    assert pair.handlers[0].messages == [b""] * 1000
    assert pair.handlers[0].ends[0] == "half-closed"


@pytest.mark.parametrize("end", ["data", "reset", "lost"])
def test_messages_that_wait_for_their_turn_end_with_their_call(end: str) -> None:
    usage = Usage()
    pair = Pair(usage=usage)
    stream = pair.open()
    pair.exchange()
    pair.server.receive(frame(frames.DATA, frames.END_STREAM, stream, prefixed(b"") * 1000))
    if end == "data":  # after the end
        pair.server.receive(frame(frames.DATA, 0, stream, prefixed(b"x")))
    elif end == "reset":
        pair.server.receive(frame(frames.RST_STREAM, 0, stream, bytes(4)))
    else:
        pair.server.lost()
    while pair.server.behind:
        pair.server.receive(b"")
    assert pair.handlers[0].ends[-1] == "closed"
    assert usage == Usage()


def test_windows_that_open_and_close_again_take_a_bounded_time_of_each_turn() -> None:
    number = 3 * connection_module.MOST_BLOCKED_AT_ONCE
    pair = Pair(Limits(message_bytes=1000, calls=number), INITIAL_WINDOW_SIZE=0)
    for _ in range(number):
        stream = pair.open()
        pair.client.send_data(stream, prefixed(b"x"))
    pair.exchange()
    for size in (1, 0, 1, 0):  # the first byte is written, then there is no room
        pair.server.receive(frame(frames.SETTINGS, 0, 0, frames.setting(frames.INITIAL_WINDOW_SIZE, size)))
        turns = 0
        while pair.server.output() or pair.server.behind:
            pair.server.receive(b"")
            turns += 1
        assert size == 0 or turns >= number // connection_module.MOST_BLOCKED_AT_ONCE
    pair.server.receive(frame(frames.SETTINGS, 0, 0, frames.setting(frames.INITIAL_WINDOW_SIZE, 1000)))
    while pair.server.output() or pair.server.behind:
        pair.server.receive(b"")
    assert not any(handler.call.unsent for handler in pair.handlers)


@given(data=st.binary(max_size=400))
def test_no_bytes_raise(data: bytes) -> None:
    for beginning in (b"", frames.PREFACE, frames.PREFACE + frame(frames.SETTINGS, 0, 0)):
        connection = Connection(lambda call: IGNORE, lambda: None, LIMITS, Usage())
        receive_all(connection, beginning + data)
        connection.output()


@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 255), st.integers(0, 5), st.binary(max_size=30)), max_size=12)
)
def test_no_frames_raise_and_each_call_is_closed_once(sent: list[tuple[int, int, int, bytes]]) -> None:
    usage = Usage()
    pair = Pair(usage=usage)
    pair.open()
    pair.exchange()
    for kind, flags, stream, payload in sent:
        pair.raw(frame(kind, flags, stream, payload))
    pair.server.lost()
    assert [handler.ends.count("closed") for handler in pair.handlers] == [1] * len(pair.handlers)
    assert usage == Usage()


def test_an_unknown_method_is_unimplemented() -> None:
    pair = Pair()
    stream = pair.open("/other")
    pair.exchange()
    assert pair.trailers(stream)["grpc-status"] == "12"
    assert pair.trailers(stream)["grpc-message"] == "no such method: %C3%BCn%C3%AFcode%0A"
    assert pair.server.calls == 0


def test_a_request_that_is_not_grpc_gets_415() -> None:
    pair = Pair()
    stream = pair.client.get_next_available_stream_id()
    pair.client.send_headers(stream, [*HEADERS[:5], ("content-type", "text/html")], end_stream=True)
    pair.exchange()
    responses = [dict(event.headers) for event in pair.events if isinstance(event, h2.events.ResponseReceived)]
    assert responses == [{":status": "415"}]


def test_what_is_not_http2_is_told_so_and_ended() -> None:
    connection = Connection(lambda call: IGNORE, lambda: None, LIMITS, Usage())
    connection.receive(b"GET / HTTP/1.1\r\n\r\n")
    assert b"this is not HTTP/2" in connection.output()
    assert connection.closed


def test_long_answers_wait_for_the_clients_window_and_end_in_order() -> None:
    pair = Pair(INITIAL_WINDOW_SIZE=1000)
    stream, other = pair.open(), pair.open()
    message = bytes(range(256)) * 400
    for start in range(0, len(message) + 5, 10_000):
        pair.client.send_data(stream, prefixed(message)[start : start + 10_000])
    pair.client.send_data(other, prefixed(b"short"), end_stream=True)
    pair.exchange()
    assert len(pair.data(stream)) == 1000
    assert pair.data(other) == prefixed(b"short"), "one that waits does not hold up another"
    assert pair.handlers[0].call.unsent
    pair.client.end_stream(stream)
    pair.exchange()
    assert not pair.trailers(stream)
    while not pair.trailers(stream):
        before = len(pair.data(stream))
        pair.client.increment_flow_control_window(5000, stream)
        pair.client.increment_flow_control_window(5000)
        pair.exchange()
        assert 0 < len(pair.data(stream)) - before <= 5000
    assert pair.data(stream) == prefixed(message)
    assert pair.handlers[0].ends == ["half-closed", "closed"]


def test_the_handler_learns_that_what_waited_is_written() -> None:
    pair = Pair(INITIAL_WINDOW_SIZE=1000)
    stream = pair.open()
    pair.client.send_data(stream, prefixed(bytes(2000)))
    pair.exchange()
    assert pair.handlers[0].times_written == 0
    pair.client.increment_flow_control_window(5000, stream)
    pair.exchange()
    assert pair.handlers[0].times_written == 1
    assert not pair.handlers[0].call.unsent


def test_nothing_is_written_while_the_client_does_not_read() -> None:
    pair = Pair()
    stream = pair.open()
    pair.exchange()
    pair.server.paused = True
    pair.client.send_data(stream, prefixed(b"x"))
    pair.server.receive(pair.client.data_to_send())
    assert pair.handlers[0].call.unsent
    pair.server.paused = False
    pair.exchange()
    assert pair.data(stream) == prefixed(b"x")


def test_a_paused_call_gets_no_more_than_a_window() -> None:
    pair = Pair()
    stream, other = pair.open(), pair.open()
    pair.exchange()
    call = pair.handlers[0].call
    call.pause()
    pair.client.send_data(stream, prefixed(bytes(900_000))[:100])
    for one in (stream, other):
        while (room := pair.client.local_flow_control_window(one)) > (0 if one == stream else STREAM_WINDOW // 2):
            pair.client.send_data(one, bytes(min(room, 16_000)))
            pair.exchange()
    assert pair.client.local_flow_control_window(stream) == 0
    assert pair.client.local_flow_control_window(other) > 0
    assert pair.wakes == 0
    call.resume()
    assert pair.wakes > 0, "the owner of the socket has to write the update"
    receive_all(pair.server, b"")
    pair.exchange()
    assert pair.client.local_flow_control_window(stream) == STREAM_WINDOW


def test_a_call_that_pauses_at_each_message_gets_no_more_than_a_window() -> None:
    """Messages that wait to be taken are not read yet, so the client may not send more."""
    pair = Pair()
    stream = pair.open()
    pair.exchange()
    handler = pair.handlers[0]
    handler.pauses = True
    sent = prefixed(bytes(60_000)) * 40
    waiting = []
    while sent or handler.call._received:
        while sent and (room := pair.client.local_flow_control_window(stream)):
            size = min(room, 16_000)
            pair.client.send_data(stream, sent[:size])
            sent = sent[size:]
            pair.exchange()
        waiting.append(len(handler.call._received))
        handler.call.resume()
        receive_all(pair.server, b"")
        pair.exchange()
    assert len(handler.messages) == 40
    assert max(waiting) <= STREAM_WINDOW


@pytest.mark.parametrize("end", ["data", "trailers", "reset", "lost", "finish"])
def test_what_comes_of_a_paused_call_waits_and_takes_several_turns(end: str) -> None:
    """Other connections get their turn between them, however many messages came meanwhile."""
    usage = Usage()
    pair = Pair(usage=usage)
    stream = pair.open()
    pair.exchange()
    handler = pair.handlers[0]
    handler.call.pause()
    many = frame(frames.DATA, frames.END_STREAM if end == "data" else 0, stream, prefixed(b"") * 1000)
    receive_all(pair.server, many)
    if end == "trailers":
        fields = frame(
            frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream, hpack.Encoder().encode([("x", "y")])
        )
        receive_all(pair.server, fields)
    assert (handler.messages, handler.ends) == ([], [])
    assert usage.held == 5000
    if end == "reset":
        pair.server.receive(frame(frames.RST_STREAM, 0, stream, bytes(4)))
    elif end == "lost":
        pair.server.lost()
    elif end == "finish":
        handler.call.finish()
    handler.call.resume()
    turns = 0
    while pair.server.behind:
        pair.server.receive(b"")
        turns += 1
    if end in ("data", "trailers"):
        assert turns > 100
        assert handler.messages == [b""] * 1000
        assert handler.ends == ["half-closed", "closed"]
    else:
        assert (turns, handler.messages, handler.ends) == (0, [], ["closed"])
    assert (usage, pair.server.calls) == (Usage(), 0)


def test_a_call_that_both_sides_have_ended_is_not_reset() -> None:
    pair = Pair()
    stream = pair.open()
    pair.exchange()
    call = pair.handlers[0].call
    call.pause()
    pair.client.send_data(stream, prefixed(b"x"), end_stream=True)
    pair.exchange()
    call.finish()
    assert frame(frames.RST_STREAM, 0, stream, bytes(4)) not in pair.server.output()


@given(
    messages=st.lists(st.binary(max_size=300), max_size=30),
    pauses=st.sets(st.integers(0, 29)),
    pieces=st.lists(st.integers(1, 3000), min_size=1, max_size=20),
    ends=st.booleans(),
)
def test_a_call_that_pauses_again_and_again_gets_all_messages_in_order(
    messages: list[bytes], pauses: set[int], pieces: list[int], ends: bool
) -> None:
    class Pausing(Echo):
        paused = False

        def message(self, data: bytes) -> None:
            assert not self.paused
            super().message(data)
            if len(self.messages) in pauses:
                self.paused = True
                self.call.pause()

        def half_closed(self) -> None:
            assert not self.paused
            super().half_closed()

    handlers: list[Pausing] = []
    server = Connection(lambda call: handlers.append(Pausing(call)) or handlers[-1], lambda: None, LIMITS, Usage())  # type: ignore[func-returns-value]
    server.receive(frames.PREFACE + frame(frames.SETTINGS, 0, 0))
    server.receive(frame(frames.HEADERS, frames.END_HEADERS, 1, hpack.Encoder().encode(HEADERS)))
    (handler,) = handlers
    rest = b"".join(map(prefixed, messages))
    for piece in pieces:
        receive_all(server, frame(frames.DATA, 0, 1, rest[:piece]))
        rest = rest[piece:]
        if handler.paused and piece % 2:
            handler.paused = False
            handler.call.resume()
    receive_all(server, frame(frames.DATA, frames.END_STREAM if ends else 0, 1, rest))
    while handler.paused or server.behind:
        if handler.paused:
            handler.paused = False
            handler.call.resume()
        server.receive(b"")
    assert handler.messages == messages
    assert handler.ends == (["half-closed", "closed"] if ends else [])


def test_a_connection_can_carry_more_than_its_window() -> None:
    pair = Pair()
    for _ in range(CONNECTION_WINDOW // 200_000 + 2):
        stream = pair.open()
        for start in range(0, 200_000, 10_000):
            pair.client.send_data(stream, prefixed(bytes(900_000))[start : start + 10_000])
        pair.client.reset_stream(stream)
        pair.exchange()
    assert not pair.server.closed


@pytest.mark.parametrize("declared", [False, True])
def test_a_message_over_the_limit_ends_its_call_alone(declared: bool) -> None:
    pair = Pair(Limits(message_bytes=100, calls=10))
    stream, other = pair.open(), pair.open()
    pair.client.send_data(stream, prefixed(bytes(101))[: 5 if declared else None])
    pair.client.send_data(other, prefixed(b"x" * 100))
    pair.exchange()
    assert pair.trailers(stream)["grpc-status"] == str(int(Status.RESOURCE_EXHAUSTED))
    assert pair.data(other) == prefixed(b"x" * 100)
    assert pair.handlers[0].messages == []


def test_the_handler_learns_how_much_of_a_long_message_has_come() -> None:
    pair = Pair()
    stream = pair.open()
    message = prefixed(bytes(LONG_MESSAGE + 30_000))
    for start in range(0, LONG_MESSAGE + 16_384, 16_384):
        arrived = pair.handlers[0].arrived if pair.handlers else 0
        assert arrived == (start - 5 if start >= LONG_MESSAGE else 0)
        pair.client.send_data(stream, message[start : start + 16_384])
        pair.exchange()
    pair.client.send_data(stream, message[start + 16_384 :])
    pair.exchange()
    assert [len(message) for message in pair.handlers[0].messages] == [LONG_MESSAGE + 30_000]


def test_beyond_what_is_held_freely_handlers_are_asked_for_short_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that do not end, of many calls on many connections."""
    monkeypatch.setattr(connection_module, "HELD_FREELY", 25_000)
    usage = Usage()
    pairs = [Pair(usage=usage) for _ in range(4)]
    for pair in pairs:
        pair.client.send_data(pair.open(), prefixed(bytes(20_000))[:10_000])
        pair.exchange()
    assert [pair.handlers[0].arrived for pair in pairs] == [0, 0, 10_000 - 5, 10_000 - 5]
    assert usage == Usage(calls=4, held=40_000)
    pairs[0].client.send_data(1, prefixed(bytes(20_000))[10_000:], end_stream=True)
    pairs[1].client.reset_stream(1)
    pairs[2].server.lost()
    for pair in pairs:
        pair.exchange()
    assert usage == Usage(calls=1, held=10_000)
    pairs[3].client.send_data(1, bytes(5000))
    pairs[3].exchange()
    assert pairs[3].handlers[0].arrived == 10_000 - 5, "there is room again"


def test_long_messages_leave_what_is_held_freely_to_the_short_ones() -> None:
    usage = Usage()
    pair = Pair(usage=usage)
    stream = pair.open()
    message = prefixed(bytes(LONG_MESSAGE + 100_000))
    for start in range(0, LONG_MESSAGE + 16_384, 16_384):
        pair.client.send_data(stream, message[start : start + 16_384])
        pair.exchange()
    assert usage.held == 0


def test_handlers_are_asked_for_answers_that_the_client_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client can keep its windows closed, read and answer pings, and so never be found out."""
    monkeypatch.setattr(connection_module, "HELD_FREELY", 10_000)
    usage = Usage()
    pair = Pair(usage=usage, INITIAL_WINDOW_SIZE=100)
    first, second = pair.open(), pair.open()
    for _ in range(50):
        pair.client.send_data(first, prefixed(b"x"))
    pair.exchange()
    cost = connection_module.WAITING_COST
    assert usage.held == pair.handlers[0].call.unsent == 50 * (6 + cost) - 100 - 16 * cost
    assert pair.handlers[0].waited == 0
    pair.client.send_data(second, prefixed(bytes(9000)))
    pair.exchange()
    assert pair.handlers[1].waited == 9005 + cost
    pair.handlers[1].call.abort()
    pair.exchange()
    resets = [event for event in pair.events if isinstance(event, h2.events.StreamReset)]
    assert [(event.stream_id, event.error_code) for event in resets] == [(second, ErrorCode.ENHANCE_YOUR_CALM)]
    assert pair.handlers[1].ends == ["closed"]
    pair.client.increment_flow_control_window(10_000, first)
    pair.exchange()
    assert pair.data(first) == 50 * prefixed(b"x")
    assert usage == Usage(calls=1, held=0)


def test_a_finished_call_whose_answer_waits_counts_no_message_that_was_dropped() -> None:
    usage = Usage()
    pair = Pair(usage=usage, INITIAL_WINDOW_SIZE=0)
    stream = pair.open()
    pair.client.send_data(stream, prefixed(b"x") + prefixed(bytes(1000))[:900])
    pair.exchange()
    call = pair.handlers[0].call
    assert usage.held == call.unsent + 900
    call.finish()
    assert (usage.held, pair.server.calls) == (call.unsent, 1)


def test_compressed_messages_are_not_taken() -> None:
    pair = Pair()
    stream = pair.open()
    pair.client.send_data(stream, b"\x01" + prefixed(b"x")[1:])
    pair.exchange()
    assert pair.trailers(stream)["grpc-status"] == str(int(Status.UNIMPLEMENTED))


def test_more_calls_than_allowed_are_refused_and_the_others_go_on() -> None:
    pair = Pair(Limits(message_bytes=100, calls=2))
    pair.client.remote_settings = h2.settings.Settings(client=False)  # a client that does not heed the setting
    streams = [pair.open() for _ in range(4)]
    pair.exchange()
    resets = {e.stream_id: e.error_code for e in pair.events if isinstance(e, h2.events.StreamReset)}
    assert resets == {streams[2]: ErrorCode.REFUSED_STREAM, streams[3]: ErrorCode.REFUSED_STREAM}
    assert pair.server.calls == 2


def test_a_call_keeps_its_headers_only_until_it_is_accepted() -> None:
    """They may take 16 KiB."""
    seen: list[str] = []

    def accept(call: Call) -> Handler:
        seen.append(call.headers["x-long"])
        return Echo(call)

    server = Connection(accept, lambda: None, LIMITS, Usage())
    client = h2.connection.H2Connection()
    client.initiate_connection()
    client.send_headers(1, [*HEADERS, ("x-long", "x" * 10_000)])
    receive_all(server, client.data_to_send())
    assert seen == ["x" * 10_000]
    (call,) = server._calls.values()
    assert not call.headers
    assert call.path == "/echo"


def test_calls_are_counted_over_all_connections_of_a_port() -> None:
    usage = Usage()
    one, other = Pair(usage=usage), Pair(usage=usage)
    for _ in range(LIMITS.calls - 1):
        one.open()
    other.open()
    one.exchange()
    other.exchange()
    other.open()
    other.exchange()
    assert [type(event) for event in other.events][-1] is h2.events.StreamReset
    one.server.lost()
    assert usage.calls == 1
    other.open()
    other.exchange()
    assert len(other.handlers) == 2


def test_what_comes_after_a_call_is_finished_is_dropped() -> None:
    usage = Usage()
    pair = Pair(usage=usage, INITIAL_WINDOW_SIZE=10)
    stream = pair.open()
    pair.client.send_data(stream, prefixed(bytes(100)))
    pair.exchange()
    pair.handlers[0].call.finish()
    held = usage.held
    pair.client.send_data(stream, prefixed(bytes(1000)) + prefixed(bytes(1000))[:500])
    pair.exchange()
    assert len(pair.handlers[0].messages) == 1
    assert usage.held == held
    pair.client.increment_flow_control_window(10_000, stream)
    pair.exchange()
    assert pair.trailers(stream)["grpc-status"] == "0"
    assert usage == Usage()


def test_after_go_away_open_calls_go_on_and_new_ones_are_refused() -> None:
    pair = Pair()
    stream = pair.open()
    pair.exchange()
    pair.server.go_away()
    late = frame(frames.HEADERS, frames.END_HEADERS, stream + 2, pair.client.encoder.encode(HEADERS))
    assert frame(frames.RST_STREAM, 0, stream + 2, ErrorCode.REFUSED_STREAM.to_bytes(4, "big")) in pair.raw(late)
    assert len(pair.handlers) == 1
    assert pair.server.calls == 1


def test_a_reset_closes_the_call_and_late_data_are_ignored() -> None:
    pair = Pair()
    stream = pair.open()
    pair.exchange()
    pair.client.reset_stream(stream)
    pair.exchange()
    assert pair.handlers[0].ends == ["closed"]
    pair.handlers[0].call.send(b"late")
    pair.handlers[0].call.finish()
    assert pair.raw(frame(frames.DATA, 0, stream, b"x")) == b""
    assert not pair.server.closed


HEADER_FLOOD = [
    frame(frames.HEADERS, 0, 1, b"\0" * 10_000) + frame(frames.CONTINUATION, 0, 1, b"\0" * 10_000),
    frame(frames.HEADERS, 0, 1, b"") + frame(frames.CONTINUATION, 0, 1, b""),
]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frames.HEAD.pack(65, 0, frames.DATA, 0, 1), ErrorCode.FRAME_SIZE_ERROR),
        (frame(frames.DATA, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frame(frames.DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frame(frames.HEADERS, frames.END_HEADERS, 2, b""), ErrorCode.PROTOCOL_ERROR),
        (frame(frames.HEADERS, frames.END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
        (frame(frames.HEADERS, 0, 1, b"") + frame(frames.PING, 0, 0, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (HEADER_FLOOD[0], ErrorCode.ENHANCE_YOUR_CALM),
        (HEADER_FLOOD[1], ErrorCode.ENHANCE_YOUR_CALM),
        (frame(frames.CONTINUATION, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frame(frames.PUSH_PROMISE, 0, 1, b""), ErrorCode.PROTOCOL_ERROR),
        (frame(frames.SETTINGS, 0, 0, b"x"), ErrorCode.FRAME_SIZE_ERROR),
        (frame(frames.SETTINGS, 0, 0, frames.setting(4, 2**31)), ErrorCode.FLOW_CONTROL_ERROR),
        (frame(frames.SETTINGS, 0, 0, frames.setting(5, 1)), ErrorCode.PROTOCOL_ERROR),
        (frame(frames.WINDOW_UPDATE, 0, 0, bytes(4)), ErrorCode.FLOW_CONTROL_ERROR),
        (frame(frames.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), ErrorCode.FLOW_CONTROL_ERROR),
        (frame(frames.RST_STREAM, 0, 9, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame(frames.SETTINGS, 0, 0, frames.setting(2, 2)), ErrorCode.PROTOCOL_ERROR),
        (frame(frames.GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frame(frames.PRIORITY, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
        (frame(frames.PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
    ],
)
def test_clients_that_break_the_protocol_are_told_why_and_ended(sent: bytes, code: ErrorCode) -> None:
    pair = Pair()
    answer = pair.raw(sent)
    assert frames.HEAD.unpack_from(answer)[2] == frames.GOAWAY
    assert int.from_bytes(answer[13:17], "big") == code
    assert pair.server.closed
    assert pair.raw(frame(frames.PING, 0, 0, bytes(8))) == b""


@pytest.mark.parametrize(
    "fields",
    [
        [*HEADERS, ("Upper", "case")],
        [*HEADERS, (":path", "/echo")],
        [*HEADERS, (":status", "200")],
        [HEADERS[-1], *HEADERS[:-1]],
        [field for field in HEADERS if field[0] != ":scheme"],
        [*HEADERS[:2], (":path", ""), *HEADERS[3:]],
        [*HEADERS, ("connection", "close")],
        [*HEADERS, ("te", "gzip")],
        [*HEADERS, ("", "nameless")],
    ],
)
def test_malformed_headers_end_their_call_alone(fields: list[tuple[str, str]]) -> None:
    pair = Pair()
    encoder = hpack.Encoder()
    answer = pair.raw(frame(frames.HEADERS, frames.END_HEADERS, 1, encoder.encode(fields)))
    assert answer == frame(frames.RST_STREAM, 0, 1, ErrorCode.PROTOCOL_ERROR.to_bytes(4, "big"))
    assert not pair.handlers
    pair.raw(frame(frames.HEADERS, frames.END_HEADERS, 3, encoder.encode(HEADERS)))
    assert len(pair.handlers) == 1


def test_trailers_end_what_the_client_sends_and_hold_no_request() -> None:
    pair = Pair()
    streams = [pair.open() for _ in range(2)]
    pair.exchange()
    for stream, fields in zip(streams, ([("checksum", "1")], HEADERS), strict=True):
        block = pair.client.encoder.encode(fields)
        pair.events += pair.client.receive_data(
            pair.raw(frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream, block))
        )
    assert [handler.ends for handler in pair.handlers] == [["half-closed", "closed"], ["closed"]]
    assert pair.trailers(streams[0])["grpc-status"] == "0"


def test_a_stream_with_an_old_number_ends_the_connection() -> None:
    pair = Pair()
    pair.open()
    pair.open()
    pair.exchange()
    pair.client.reset_stream(1)
    pair.exchange()
    block = pair.client.encoder.encode(HEADERS)
    answer = pair.raw(frame(frames.HEADERS, frames.END_HEADERS, 1, block))
    assert int.from_bytes(answer[13:17], "big") == ErrorCode.PROTOCOL_ERROR
    assert pair.server.closed


def test_no_window_update_of_zero_is_taken() -> None:
    pair = Pair()
    pair.open()
    pair.exchange()
    answer = pair.raw(frame(frames.WINDOW_UPDATE, 0, 1, bytes(4)))
    assert answer == frame(frames.RST_STREAM, 0, 1, ErrorCode.PROTOCOL_ERROR.to_bytes(4, "big"))
    assert pair.handlers[0].ends == ["closed"]


def test_the_work_for_a_long_answer_grows_with_its_length() -> None:
    """Cutting frames from the front of a long message copied the rest of it for each frame: 32 MB took 10 s."""
    pair = Pair(INITIAL_WINDOW_SIZE=2**31 - 1)
    pair.open()
    pair.exchange()
    pair.raw(frame(frames.WINDOW_UPDATE, 0, 0, (1 << 30).to_bytes(4, "big")))
    seconds = []
    for size in (1 << 20, 32 << 20):
        began = time.process_time()
        pair.handlers[0].call.send(bytes(size))
        while pair.server.output():
            pass
        seconds.append(time.process_time() - began)
    assert seconds[1] < 32 * 8 * max(seconds[0], 0.001)


def test_the_work_for_settings_does_not_grow_with_the_calls() -> None:
    calls = 5000
    server = Connection(Echo, lambda: None, Limits(message_bytes=1 << 20, calls=calls), Usage())
    server.receive(frames.PREFACE + frame(frames.SETTINGS, 0, 0, frames.setting(frames.INITIAL_WINDOW_SIZE, 0)))
    block = b"".join(b"\0" + bytes((len(k),)) + k.encode() + bytes((len(v),)) + v.encode() for k, v in HEADERS)
    for k in range(calls):
        server.receive(frame(frames.HEADERS, frames.END_HEADERS, 2 * k + 1, block))
    for k in range(0, calls, 2):
        server.receive(frame(frames.DATA, 0, 2 * k + 1, prefixed(b"x")))
    server.output()
    changes = b"".join(frames.setting(frames.INITIAL_WINDOW_SIZE, k % 2) for k in range(2730))
    started = time.process_time()
    receive_all(server, frame(frames.SETTINGS, 0, 0, changes) + frame(frames.SETTINGS, 0, 0, changes[:6]) * 1000)
    assert time.process_time() - started < 1
    assert frame(frames.DATA, 0, 1) not in server.output()
    server.receive(frame(frames.SETTINGS, 0, 0, frames.setting(frames.INITIAL_WINDOW_SIZE, 100)))
    sent = b"".join(iter(server.output, b""))
    assert sent.count(prefixed(b"x")) == calls // 2


def test_many_small_frames_are_read_in_parts_and_in_order() -> None:
    pair = Pair()
    pings = [k.to_bytes(8, "big") for k in range(5 * MOST_AT_ONCE)]
    answers = [frame(frames.PING, frames.ACK, 0, ping) for ping in pings]
    received = b"".join(frame(frames.PING, 0, 0, ping) for ping in pings)
    pair.server.receive(received[:-1])
    assert pair.server.output() == b"".join(answers[:MOST_AT_ONCE])
    assert pair.server.behind
    receive_all(pair.server, received[-1:])
    assert pair.server.output() == b"".join(answers[MOST_AT_ONCE:])


def test_requests_that_come_together_are_answered_a_few_at_a_time() -> None:
    """Else the client waits for all of them before it can go on with the first."""
    pair = Pair()
    for _ in range(LIMITS.calls):
        pair.client.send_data(pair.open(), prefixed(b"question"), end_stream=True)
    pair.server.receive(pair.client.data_to_send())
    assert 0 < pair.server.output().count(prefixed(b"question")) <= 4
    assert pair.server.behind


def test_messages_count_as_frames_do() -> None:
    pair = Pair()
    stream = pair.open()
    pair.exchange()
    pair.client.send_data(stream, prefixed(b"") * MOST_AT_ONCE)
    pair.client.ping(b"12345678")
    pair.server.receive(pair.client.data_to_send())
    assert pair.server.behind
    assert len(pair.handlers[0].messages) == MOST_AT_ONCE
    pair.exchange()


def test_large_headers_end_the_connection_before_they_fill_memory() -> None:
    """One byte names an entry of the client's table: 16 KB of headers could become 64 MB."""
    pair = Pair()
    encoder = pair.client.encoder
    block = encoder.encode([*HEADERS, ("x", "y" * 3000)])
    answer = pair.raw(frame(frames.HEADERS, frames.END_HEADERS, 1, block + b"\xbe" * 1000))
    assert int.from_bytes(answer[13:17], "big") == ErrorCode.ENHANCE_YOUR_CALM
    assert MAX_HEADERS < 1000 * 3000


def test_pings_are_answered_and_their_answers_noted() -> None:
    pair = Pair()
    pair.client.ping(b"12345678")
    pair.exchange()
    assert [event for event in pair.events if isinstance(event, h2.events.PingAckReceived)]
    pair.server.ping()
    assert pair.server.ping_open
    pair.exchange()
    assert not pair.server.ping_open


def test_a_call_that_is_over_leaves_nothing_to_the_garbage_collector() -> None:
    pair = Pair()
    stream = pair.open()
    pair.client.send_data(stream, prefixed(b"x"), end_stream=True)
    gc.disable()
    try:
        pair.exchange()
        handler = weakref.ref(pair.handlers.pop())
        assert handler() is None
    finally:
        gc.enable()
