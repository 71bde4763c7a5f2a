"""One HTTP/2 connection with gRPC calls on it, the server's side. WITHOUT IO: bytes in, bytes out.

:meth:`Connection.receive` takes what the client sends and calls the handlers of its calls; :meth:`Connection.output` gives
what is to be sent. The client's errors end the call or, where the protocol says so, the connection, and nothing else.

Everything that a client can make grow has a bound: header blocks (:data:`MAX_HEADERS`), open calls and the length of a
message (:class:`Limits`), bytes of a call that is not read (:data:`STREAM_WINDOW`). Messages to the client wait in their
calls while its window is closed or while it does not read; the owner of the socket reads nothing from it meanwhile. From
:data:`HELD_FREELY` bytes on that all connections of a port hold (:class:`Usage`), handlers are asked for more.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from warmroute.grpc_server.frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEAD,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    MAX_WINDOW,
    NOT_GRPC,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RESPONSE_HEADERS,
    RST_STREAM,
    SETTINGS,
    STREAM_MASK,
    WINDOW_UPDATE,
    ErrorCode,
    Status,
    frame,
    prefixed,
    setting,
    trailers,
)
from warmroute.grpc_server.header_fields import checked

MAX_HEADERS = 16_384
"""Bytes of the headers of one call, at most, packed and unpacked."""
CONNECTION_WINDOW = 16 << 20
"""Bytes that a client may have under way on one connection."""
STREAM_WINDOW = 256 << 10
"""Bytes that a client may have under way on one call: most that wait while its handler has paused."""
MAX_OUTPUT = 256 << 10
"""Bytes of messages that :meth:`Connection.output` gives at once."""
LONG_MESSAGE = 512 << 10
"""Bytes of a message that is not complete from which on its handler is asked whether it may go on."""
HELD_FREELY = 32 << 20
"""Bytes that the connections of a port hold, all together, from which on handlers are asked for shorter messages too, and
for messages that the client does not take."""
WAITING_COST = 64
"""Bytes of memory of a message that waits, beside its text: an object and its place in a queue (``sys.getsizeof``)."""
MOST_AT_ONCE = 8
"""Frames and messages that :meth:`Connection.receive` takes before the answers to them are written and other connections get
their turn: those of two or three small requests. With 64, Envoy waited meanwhile: with eight requests in flight 1,400 a
second came through in place of 1,900 (docs/benchmarks.md)."""
BLOCK_BYTES = 2048
"""Bytes of a header block that is decoded that count like a frame: they take as long as a small request."""
MOST_SIZE_UPDATES = 2
"""Updates of the header table's size in one header block (https://www.rfc-editor.org/rfc/rfc7541#section-4.2). Each takes a
microsecond, and a block of 16 KiB could have 16,384 of them."""
MOST_BLOCKED_AT_ONCE = 256
"""Calls whose windows are found closed at once: a client may open all windows by one frame, too little for any message."""
PREFIX = 5
"""Bytes before each gRPC message: a flag and the length."""


class Handler(Protocol):
    """What a service does with one call. Its methods must not raise."""

    def message(self, data: bytes) -> None:
        """A message from the client, serialised."""

    def arriving(self, size: int) -> None:
        """``size`` bytes of a message have come, and it goes on. Called for messages from :data:`LONG_MESSAGE` on, and for
        all while the port holds more than :data:`HELD_FREELY`."""

    def waiting(self, size: int) -> None:
        """``size`` bytes of messages wait for the client. Called while the port holds more than :data:`HELD_FREELY`."""

    def half_closed(self) -> None:
        """The client sends no more messages."""

    def written(self) -> None:
        """Messages had to wait, and all of them have been written now. More may follow."""

    def closed(self) -> None:
        """The call is over: finished and written, or cancelled. Called once; nothing follows."""


class Ignore:
    """The handler of a call that was finished when it was accepted."""

    def message(self, data: bytes) -> None:
        """Nothing."""

    def arriving(self, size: int) -> None:
        """Nothing."""

    def waiting(self, size: int) -> None:
        """Nothing."""

    def half_closed(self) -> None:
        """Nothing."""

    def written(self) -> None:
        """Nothing."""

    def closed(self) -> None:
        """Nothing."""


IGNORE = Ignore()


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take."""

    message_bytes: int
    """Longest message; a longer one ends its call with RESOURCE_EXHAUSTED."""
    calls: int
    """Open calls on all connections of a port; more are refused and may be tried elsewhere."""


@dataclass(slots=True)
class Usage:
    """What all connections of a port take now."""

    calls: int = 0
    """Open calls."""
    held: int = 0
    """Bytes of messages that are not complete, below :data:`LONG_MESSAGE` each, and of messages that wait for clients."""


class _ConnectionFaultError(Exception):
    """The client broke the protocol in a way that ends the connection."""

    def __init__(self, code: ErrorCode, details: str) -> None:
        super().__init__(details)
        self.code = code


class Call:
    """One RPC. Methods do nothing once it is over."""

    __slots__ = (
        "_connection",
        "_credit",
        "_ends",
        "_half_closed",
        "_handler",
        "_headers_sent",
        "_open",
        "_paused",
        "_receive_window",
        "_received",
        "_stream",
        "_trailers",
        "_unfinished",
        "_unsent",
        "headers",
        "path",
        "unsent",
    )

    def __init__(self, connection: Connection, stream: int, headers: Mapping[str, str]) -> None:
        self.headers = headers
        """The client's headers, of duplicates the last; in Latin-1, since HTTP gives them no encoding. Empty once the call
        is accepted: they may take 16 KiB."""
        self.path = headers.get(":path", "")
        """``/package.Service/Method``."""
        self._connection = connection
        self._stream = stream
        self._handler: Handler = IGNORE
        self._open = True
        self._half_closed = False
        self._ends = False
        """The client has ended the call, and messages of it wait: the handler gets these first."""
        self._headers_sent = False
        self._paused = False
        self._receive_window = STREAM_WINDOW
        self._credit = 0
        """Bytes of window updates less bytes sent. With the connection's initial window it is the call's send window."""
        self._received = bytearray()
        """The beginning of a message."""
        self._unfinished = 0
        """Its bytes as far as they count in :attr:`Usage.held`."""
        self._unsent: deque[bytes | memoryview] = deque()
        """Messages with their prefixes that wait for the client; the rest of one that is cut is a view, not a copy."""
        self.unsent = 0
        """Bytes of memory of the messages that wait for the client."""
        self._trailers = b""
        """Set when the service has finished the call."""

    def send(self, message: bytes) -> None:
        """Send a message, now or when the client takes it."""
        if self._open and not self._trailers:
            self._connection._send(self, prefixed(message))

    def finish(self, status: Status = Status.OK, details: str = "") -> None:
        """End the call after its messages."""
        if self._open and not self._trailers:
            block = trailers(status, details[:1024])
            self._trailers = block if self._headers_sent else RESPONSE_HEADERS + block
            self._connection._finish(self)

    def abort(self) -> None:
        """End the call at once; messages that wait are dropped."""
        if self._open:
            self._connection._reset(self, ErrorCode.ENHANCE_YOUR_CALM)
            self._connection._wake_owner()

    def pause(self) -> None:
        """Give the handler no messages until :meth:`resume`, and take no more than a window from the client."""
        self._paused = True

    def resume(self) -> None:
        """Take messages again, those that have come meanwhile in the next turns."""
        self._paused = False
        self._connection._resume(self)


Method = Callable[[Call], Handler]
"""Takes a call and returns its handler; :data:`IGNORE` if it has finished it."""


class Connection:
    """The protocol's state. ``accept`` is called with each new call and returns its handler.

    ``wake`` is called when there is output that :meth:`receive` did not cause. All connections of a port share ``usage``.
    """

    def __init__(self, accept: Method, wake: Callable[[], None], limits: Limits, usage: Usage) -> None:
        self._accept = accept
        self._wake = wake
        self._limits = limits
        self._usage = usage
        self._decoder = Decoder(max_header_list_size=MAX_HEADERS)
        self._calls: dict[int, Call] = {}
        self._waiting: OrderedDict[Call, None] = OrderedDict()
        """Calls with unsent messages, in the order in which they get their turn."""
        self._blocked: dict[Call, None] = {}
        """Calls with unsent messages that wait until the client opens their windows."""
        self._unread: dict[Call, None] = {}
        """Calls with whole messages, or their ends, that wait for the next turn (:attr:`behind`)."""
        self._rest = b""
        """Received and not read: the beginning of the preface or of a frame, or frames that wait (:attr:`behind`)."""
        self._taken = 0
        """Frames and messages since the call of :meth:`receive`."""
        self._block = bytearray()
        """A header block that goes on in CONTINUATION frames."""
        self._block_stream = 0
        self._block_ends_stream = False
        self._known_block: bytes | None = None
        """The last header block, if it did not change the table of headers."""
        self._known_headers: Mapping[str, str] = {}
        self._last_stream = 0
        self._owner_waits = False
        """The owner of the socket called and takes the output afterwards."""
        self._going_away = False
        self._receive_window = CONNECTION_WINDOW
        self._send_window = DEFAULT_WINDOW
        self._initial_window = DEFAULT_WINDOW
        self._most_in_frame = MAX_FRAME
        self._output: list[bytes] = [
            frame(
                SETTINGS,
                0,
                0,
                setting(MAX_CONCURRENT_STREAMS, min(limits.calls, MAX_WINDOW))
                + setting(INITIAL_WINDOW_SIZE, STREAM_WINDOW)
                + setting(MAX_HEADER_LIST_SIZE, MAX_HEADERS),
            ),
            frame(WINDOW_UPDATE, 0, 0, (CONNECTION_WINDOW - DEFAULT_WINDOW).to_bytes(4, "big")),
        ]
        self.established = False
        """The client has sent its preface and its settings."""
        self.ping_open = False
        """A ping is not answered yet."""
        self.behind = False
        """Frames may wait that have been received: call :meth:`receive` without bytes once others have had their turn."""
        self.paused = False
        """The client does not read what was written: messages wait."""
        self.closed = False
        """Nothing is read or answered any more: the socket is to be closed after the output."""

    @property
    def calls(self) -> int:
        """Open calls."""
        return len(self._calls)

    @property
    def used(self) -> bool:
        """A call has been opened."""
        return self._last_stream > 0

    # ---------------------------------------------------------------- the owner's side

    def receive(self, data: bytes) -> None:
        """Bytes from the client. Reads :data:`MOST_AT_ONCE` frames; see :attr:`behind`."""
        if self.closed:
            return
        self._owner_waits = True
        try:
            self._read(data)
        except _ConnectionFaultError as fault:
            self._close(fault.code, str(fault))
        finally:
            self._owner_waits = False

    def output(self) -> bytes:
        """Bytes for the client: frames that must go, and messages up to :data:`MAX_OUTPUT`."""
        if self._waiting:
            self._owner_waits = True
            self._send_waiting()
            self._owner_waits = False
        data = b"".join(self._output)
        self._output.clear()
        return data

    def ping(self) -> None:
        """Ask whether the client is still there."""
        self.ping_open = True
        self._output.append(frame(PING, 0, 0, bytes(8)))

    def go_away(self) -> None:
        """Take no more calls; those that are open go on."""
        if not self._going_away:
            self._going_away = True
            self._output.append(self._go_away_frame(ErrorCode.NO_ERROR, ""))

    def lost(self) -> None:
        """The connection is gone: all calls are cancelled."""
        self.closed = True
        self.behind = False
        self._wake = _nothing  # the owner refers to this connection: no cycle must stay
        calls = list(self._calls.values())
        self._calls.clear()
        self._waiting.clear()
        self._blocked.clear()
        self._unread.clear()
        for call in calls:
            self._cancel(call)

    # ---------------------------------------------------------------- reading

    def _read(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        position, size = 0, len(data)
        if not self.established:
            position = self._read_beginning(data)
        self._taken = 0
        self.behind = False
        self._take_unread()
        while size - position >= HEAD.size and not self.closed:
            if self._taken >= MOST_AT_ONCE:
                self.behind = True
                break
            self._taken += 1
            high, low, kind, flags, stream = HEAD.unpack_from(data, position)
            length = high << 8 | low
            if length > MAX_FRAME:
                raise _ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "a frame is too long")
            start = position + HEAD.size
            end = start + length
            if end > size:
                break
            position = end
            if self._block_stream and kind != CONTINUATION:
                raise _ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "a header block is not continued")
            if kind == DATA:
                self._take_data(stream & STREAM_MASK, flags, data[start:end])
            elif (take := _ON_FRAME.get(kind)) is not None:  # frames of unknown kinds are ignored (section 4.1)
                take(self, stream & STREAM_MASK, flags, data[start:end])
        if position < size and not self.closed:
            self._rest = data[position:]
        if self._unread:
            self.behind = True

    def _take_unread(self) -> None:
        """Take messages that waited for this turn."""
        while self._unread and self._taken < MOST_AT_ONCE:
            call = next(iter(self._unread))
            del self._unread[call]
            self._take_messages(call, b"")
            if call._ends:
                self._end_of_data(call)
            self._widen(call)

    def _read_beginning(self, data: bytes) -> int:
        """The position after the preface; 0 if it, or the head of the first frame, has not come whole."""
        if data[: len(PREFACE)] != PREFACE[: len(data)]:
            raise _ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "this is not HTTP/2")
        if len(data) < len(PREFACE) + HEAD.size:
            self._rest = data
            return len(data)
        if data[len(PREFACE) + 3] != SETTINGS:
            raise _ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "the first frame must be SETTINGS")
        self.established = True
        return len(PREFACE)

    def _take_data(self, stream: int, flags: int, payload: bytes) -> None:
        size = len(payload)
        self._receive_window -= size
        if self._receive_window < 0:
            raise _ConnectionFaultError(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")
        if self._receive_window <= CONNECTION_WINDOW // 2:
            more = CONNECTION_WINDOW - self._receive_window
            self._output.append(frame(WINDOW_UPDATE, 0, 0, more.to_bytes(4, "big")))
            self._receive_window = CONNECTION_WINDOW
        if flags & PADDED:
            payload = _without_padding(payload)
        call = self._calls.get(stream)
        if call is None:
            self._check_known(stream)
            return  # it was sent before the client knew that the call is over
        if call._half_closed or call._ends:
            self._reset(call, ErrorCode.STREAM_CLOSED)
            return
        call._receive_window -= size
        if call._receive_window < 0:
            self._reset(call, ErrorCode.FLOW_CONTROL_ERROR)
            return
        if payload:
            self._take_messages(call, payload)
        if flags & END_STREAM:
            self._end_of_data(call)
        elif call._receive_window <= STREAM_WINDOW // 2:
            self._widen(call)

    def _take_messages(self, call: Call, payload: bytes) -> None:
        """Give the handler the messages that are whole with these bytes of the call."""
        if call._trailers:
            return  # it is finished, and its answers wait
        received = call._received
        size = len(payload) - PREFIX
        if (
            not (received or call._paused)
            and size == int.from_bytes(payload[1:PREFIX], "big")
            and not payload[0]
            and size <= self._limits.message_bytes
        ):  # nearly all: one message in one frame
            call._handler.message(payload[PREFIX:])
            return
        received += payload
        while len(received) >= PREFIX and call._open and not (call._paused or call._trailers):
            if received[0]:
                call.finish(Status.UNIMPLEMENTED, "compressed messages are not supported")
                return
            end = PREFIX + int.from_bytes(received[1:PREFIX], "big")
            if end - PREFIX > self._limits.message_bytes:
                call.finish(Status.RESOURCE_EXHAUSTED, f"a message is longer than {self._limits.message_bytes} bytes")
                return
            if len(received) < end:
                break
            if self._taken > MOST_AT_ONCE:
                self._unread[call] = None
                break
            message = bytes(memoryview(received)[PREFIX:end])
            if len(received) == end:
                received = call._received = bytearray()  # frees the memory of a long message
            else:
                del received[:end]
            self._taken += 1
            call._handler.message(message)
        if call._open:
            self._count_unfinished(call)

    def _count_unfinished(self, call: Call) -> None:
        """Count the beginning of a message, and ask the handler whether it may go on."""
        size = len(call._received)
        long = size >= LONG_MESSAGE
        unfinished = 0 if long else size
        self._usage.held += unfinished - call._unfinished
        call._unfinished = unfinished
        if size and (long or self._usage.held > HELD_FREELY):
            call._handler.arriving(max(size - PREFIX, 0))

    def _end_of_data(self, call: Call) -> None:
        """The client has ended the call: it is half closed once its messages are taken."""
        call._ends = call._paused or call in self._unread
        if not call._ends:
            self._half_close(call)

    def _half_close(self, call: Call) -> None:
        call._half_closed = True
        if call._open:
            call._handler.half_closed()

    def _take_headers(self, stream: int, flags: int, payload: bytes) -> None:
        if flags & PADDED:
            payload = _without_padding(payload)
        if flags & HAS_PRIORITY:
            payload = payload[5:]
        if not stream & 1:
            raise _ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "headers on a stream that is no client's")
        if flags & END_HEADERS:
            self._take_block(stream, payload, ends_stream=bool(flags & END_STREAM))
            return
        self._block += payload
        self._block_stream, self._block_ends_stream = stream, bool(flags & END_STREAM)

    def _take_continuation(self, stream: int, flags: int, payload: bytes) -> None:
        if stream != self._block_stream or not stream:
            raise _ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "a continuation of no header block")
        self._block += payload
        if len(self._block) > MAX_HEADERS or not payload:
            raise _ConnectionFaultError(ErrorCode.ENHANCE_YOUR_CALM, "a header block is too long, or does not go on")
        if flags & END_HEADERS:
            block = bytes(self._block)
            self._block.clear()
            self._block_stream = 0
            self._take_block(stream, block, ends_stream=self._block_ends_stream)

    def _take_block(self, stream: int, block: bytes, *, ends_stream: bool) -> None:
        headers = self._known_headers if block == self._known_block else self._decode(block)
        call = self._calls.get(stream)
        if call is not None:  # trailers
            if (
                headers is not None
                and ":method" not in headers
                and ends_stream
                and not (call._half_closed or call._ends)
            ):
                self._end_of_data(call)
            else:
                self._reset(call, ErrorCode.PROTOCOL_ERROR)
            return
        if stream <= self._last_stream:
            if headers is not None and ":method" in headers:
                raise _ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "numbers of streams must grow")
            return  # trailers of a call that is over
        self._last_stream = stream
        if headers is None:
            self._send_reset(stream, ErrorCode.PROTOCOL_ERROR)
        elif self._usage.calls >= self._limits.calls or self._going_away:
            self._send_reset(stream, ErrorCode.REFUSED_STREAM)
        elif headers.get(":method") != "POST" or not headers.get("content-type", "").startswith("application/grpc"):
            self._output.append(frame(HEADERS, END_HEADERS | END_STREAM, stream, NOT_GRPC))
            if not ends_stream:
                self._send_reset(stream, ErrorCode.NO_ERROR)
        else:
            self._open_call(stream, headers, ends_stream=ends_stream)

    def _decode(self, block: bytes) -> Mapping[str, str] | None:
        """The headers of a block; None if they are malformed.

        Each block must be decoded, since the table of headers changes with it. Blocks that leave the table as it is can be
        recognised: nearly all are equal to the one before, and decoding them takes a tenth of a small request.
        """
        if _size_updates(block) > MOST_SIZE_UPDATES:
            raise _ConnectionFaultError(ErrorCode.COMPRESSION_ERROR, "too many size updates in a header block")
        self._taken += len(block) // BLOCK_BYTES
        table = self._decoder.header_table
        before = table.maxsize, next(iter(table.dynamic_entries), None)
        try:
            headers = checked(self._decoder.decode(block, raw=True))
        except OversizedHeaderListError:
            raise _ConnectionFaultError(ErrorCode.ENHANCE_YOUR_CALM, "the headers are too long") from None
        except (HPACKError, IndexError, ValueError) as error:
            raise _ConnectionFaultError(ErrorCode.COMPRESSION_ERROR, f"bad header block: {error}") from None
        newest = next(iter(table.dynamic_entries), None)
        unchanged = table.maxsize == before[0] and newest is before[1]
        self._known_block, self._known_headers = (block, headers) if unchanged and headers else (None, {})
        return headers

    def _open_call(self, stream: int, headers: Mapping[str, str], *, ends_stream: bool) -> None:
        call = self._calls[stream] = Call(self, stream, headers)
        self._usage.calls += 1
        call._half_closed = ends_stream
        handler = self._accept(call)
        call.headers = _NONE
        if call._open:
            call._handler = handler
            if ends_stream:
                handler.half_closed()

    def _take_reset(self, stream: int, flags: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise _ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM has 4 bytes")
        call = self._calls.get(stream)
        if call is None:
            self._check_known(stream)
        else:
            self._forget(call)
            self._cancel(call)

    def _take_settings(self, stream: int, flags: int, payload: bytes) -> None:
        if stream or len(payload) % 6 or (flags & ACK and payload):
            raise _ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "bad SETTINGS")
        if flags & ACK:
            return
        for at in range(0, len(payload), 6):
            name, value = int.from_bytes(payload[at : at + 2], "big"), int.from_bytes(payload[at + 2 : at + 6], "big")
            if name == ENABLE_PUSH and value > 1:
                raise _ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "bad ENABLE_PUSH")
            if name == INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW:
                    raise _ConnectionFaultError(ErrorCode.FLOW_CONTROL_ERROR, "a window is too large")
                self._change_initial_window(value)
            elif name == MAX_FRAME_SIZE:
                if not MAX_FRAME <= value < 1 << 24:
                    raise _ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "bad frame size")
                self._most_in_frame = value
        self._output.append(frame(SETTINGS, ACK, 0))

    def _change_initial_window(self, value: int) -> None:
        """Change the windows of all calls, in a time that does not grow with their number."""
        if value > self._initial_window:
            self._waiting.update(self._blocked)
            self._blocked.clear()
        self._initial_window = value

    def _window(self, call: Call) -> int:
        """Bytes that the client takes of the call."""
        return self._initial_window + call._credit

    def _take_window_update(self, stream: int, flags: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise _ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE has 4 bytes")
        more = int.from_bytes(payload, "big") & STREAM_MASK
        if not stream:
            self._send_window += more
            if not more or self._send_window > MAX_WINDOW:
                raise _ConnectionFaultError(ErrorCode.FLOW_CONTROL_ERROR, "bad window update")
            return
        call = self._calls.get(stream)
        if call is None:
            self._check_known(stream)
            return
        call._credit += more
        if not more:
            self._reset(call, ErrorCode.PROTOCOL_ERROR)
        elif self._window(call) > MAX_WINDOW:
            self._reset(call, ErrorCode.FLOW_CONTROL_ERROR)
        elif call in self._blocked:
            del self._blocked[call]
            self._waiting[call] = None

    def _take_ping(self, stream: int, flags: int, payload: bytes) -> None:
        if stream or len(payload) != 8:
            raise _ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "bad PING")
        if flags & ACK:
            self.ping_open = False
        else:
            self._output.append(frame(PING, ACK, 0, payload))

    def _take_go_away(self, stream: int, flags: int, payload: bytes) -> None:
        """The client opens no more calls: nothing is to be done."""
        if stream:
            raise _ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "GOAWAY concerns the connection")

    def _take_priority(self, stream: int, flags: int, payload: bytes) -> None:
        """Priorities are deprecated (section 5.3): nothing is to be done."""
        if not stream or len(payload) != 5:
            raise _ConnectionFaultError(
                ErrorCode.FRAME_SIZE_ERROR if stream else ErrorCode.PROTOCOL_ERROR, "bad PRIORITY"
            )

    def _take_push_promise(self, stream: int, flags: int, payload: bytes) -> None:
        raise _ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "a client cannot push")

    def _check_known(self, stream: int) -> None:
        """The stream was open once."""
        if not stream or stream > self._last_stream:
            raise _ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "a frame of a stream that was never opened")

    def _resume(self, call: Call) -> None:
        """Take what has come of the call while it was paused."""
        if call._open and (call._received or call._ends):
            self._unread[call] = None
            self.behind = True
            self._wake_owner()
        else:
            self._widen(call)

    def _widen(self, call: Call) -> None:
        """Let the client send more on the call, unless that is over or paused, or messages of it wait to be taken, or the
        client does not take its answers."""
        if not call._open or call._paused or call in self._unread or call._unsent or call._half_closed:
            return
        if call._receive_window > STREAM_WINDOW // 2:
            return
        more = STREAM_WINDOW - call._receive_window
        call._receive_window = STREAM_WINDOW
        self._output.append(frame(WINDOW_UPDATE, 0, call._stream, more.to_bytes(4, "big")))
        self._wake_owner()

    # ---------------------------------------------------------------- sending

    def _send(self, call: Call, data: bytes) -> None:
        if not call._headers_sent:
            call._headers_sent = True
            self._output.append(frame(HEADERS, END_HEADERS, call._stream, RESPONSE_HEADERS))
        size = len(data)
        if (
            size <= MAX_FRAME
            and size <= self._window(call)
            and size <= self._send_window
            and not self._waiting
            and not self.paused
        ):
            self._write(call, data)
        else:
            call._unsent.append(data)
            if call not in self._blocked:
                self._waiting[call] = None
            self._count_unsent(call, size + WAITING_COST)
            if self._usage.held > HELD_FREELY:
                call._handler.waiting(call.unsent)
        self._wake_owner()

    def _count_unsent(self, call: Call, more: int) -> None:
        call.unsent += more
        self._usage.held += more

    def _write(self, call: Call, data: bytes | memoryview) -> None:
        call._credit -= len(data)
        self._send_window -= len(data)
        self._output.append(frame(DATA, 0, call._stream, data))

    def _send_waiting(self) -> None:
        """Write messages that wait, one frame of each call in turn, as far as the windows allow."""
        left, blocked = MAX_OUTPUT, 0
        while self._waiting and left > 0 and self._send_window > 0:
            call, _ = self._waiting.popitem(last=False)
            room = min(self._most_in_frame, self._window(call), self._send_window, left)
            if room <= 0:
                self._blocked[call] = None
                blocked += 1
                if blocked >= MOST_BLOCKED_AT_ONCE:
                    self.behind = True
                    return
                continue
            data = call._unsent[0]
            self._write(call, data[:room])
            left -= room
            if len(data) > room:
                call._unsent[0] = memoryview(data)[room:]
                self._count_unsent(call, -room)
            else:
                call._unsent.popleft()
                self._count_unsent(call, -len(data) - WAITING_COST)
            if call._unsent:
                self._waiting[call] = None
            else:
                self._all_written(call)

    def _all_written(self, call: Call) -> None:
        if call._trailers:
            self._end(call)
            return
        self._widen(call)
        call._handler.written()

    def _finish(self, call: Call) -> None:
        call._received = bytearray()
        self._usage.held -= call._unfinished
        call._unfinished = 0
        if not call._unsent:
            self._end(call)
            self._wake_owner()

    def _end(self, call: Call) -> None:
        """Everything of the call is written but its end."""
        self._output.append(frame(HEADERS, END_HEADERS | END_STREAM, call._stream, call._trailers))
        if not (call._half_closed or call._ends):
            self._send_reset(call._stream, ErrorCode.NO_ERROR)
        self._forget(call)
        self._cancel(call)

    # ---------------------------------------------------------------- ends

    def _forget(self, call: Call) -> None:
        del self._calls[call._stream]
        self._waiting.pop(call, None)
        self._blocked.pop(call, None)
        self._unread.pop(call, None)

    def _cancel(self, call: Call) -> None:
        """The call is over."""
        handler, call._handler = call._handler, IGNORE  # handlers refer to their calls: no cycle must stay
        call._open = False
        self._usage.calls -= 1
        self._usage.held -= call.unsent + call._unfinished
        call.unsent = call._unfinished = 0
        call._unsent.clear()
        call._received = bytearray()
        handler.closed()

    def _reset(self, call: Call, code: ErrorCode) -> None:
        """End the call at once: the client broke the protocol on it, or the handler aborts it."""
        self._send_reset(call._stream, code)
        self._forget(call)
        self._cancel(call)

    def _send_reset(self, stream: int, code: ErrorCode) -> None:
        self._output.append(frame(RST_STREAM, 0, stream, code.to_bytes(4, "big")))

    def _close(self, code: ErrorCode, details: str) -> None:
        self._output.append(self._go_away_frame(code, details))
        self.lost()

    def _go_away_frame(self, code: ErrorCode, details: str) -> bytes:
        return frame(
            GOAWAY, 0, 0, self._last_stream.to_bytes(4, "big") + code.to_bytes(4, "big") + details.encode()[:128]
        )

    def _wake_owner(self) -> None:
        if not self._owner_waits:
            self._wake()


def _nothing() -> None:
    """In place of the owner's method."""


def _size_updates(block: bytes) -> int:
    """Updates of the header table's size at the beginning of a block, up to one more than it may have; the decoder takes
    none elsewhere."""
    count = position = 0
    while count <= MOST_SIZE_UPDATES and position < len(block) and block[position] & 0xE0 == 0x20:
        count += 1
        if block[position] & 0x1F == 0x1F:  # the size goes on in further bytes
            position += 1
            while position < len(block) and block[position] & 0x80:
                position += 1
        position += 1
    return count


def _without_padding(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise _ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


_NONE: Mapping[str, str] = {}

_ON_FRAME: dict[int, Callable[[Connection, int, int, bytes], None]] = {
    HEADERS: Connection._take_headers,
    PRIORITY: Connection._take_priority,
    RST_STREAM: Connection._take_reset,
    SETTINGS: Connection._take_settings,
    PUSH_PROMISE: Connection._take_push_promise,
    PING: Connection._take_ping,
    GOAWAY: Connection._take_go_away,
    WINDOW_UPDATE: Connection._take_window_update,
    CONTINUATION: Connection._take_continuation,
}
"""What is done with a frame of each kind but DATA."""
