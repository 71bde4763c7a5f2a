"""The gRPC server over real sockets: streams, health, TLS, limits, drain."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import h2.connection
import h2.events
import h2.settings
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.factories import routing_constants, server_options, session_rules
from tests.fixtures.ext_proc import METHOD
from tests.waiting import eventually
from warmroute.errors import ConfigurationError
from warmroute.extproc import ext_proc_pb2 as pb
from warmroute.extproc import tls
from warmroute.extproc.budget import MemoryBudget
from warmroute.extproc.ext_proc_pb2 import (
    BUFFERED,
    BUFFERED_PARTIAL,
    FULL_DUPLEX_STREAMED,
    STREAMED,
    BodySendMode,
    HttpBody,
    HttpHeaders,
    ProcessingRequest,
    ProcessingResponse,
    ProtocolConfiguration,
)
from warmroute.extproc.server import REFUSAL_LOG_INTERVAL, Server, ServerOptions
from warmroute.extproc.session import Session
from warmroute.grpc_server import connection
from warmroute.grpc_server.connection import Call
from warmroute.grpc_server.frames import Status
from warmroute.pool.endpoint import EndpointSpec
from warmroute.pool.pool import Pool
from warmroute.request.rejections import Rejection
from warmroute.routing.decision import Decision
from warmroute.routing.router import Router

pytestmark = pytest.mark.integration


class Recorder:
    """An observer that counts."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed = 0
        self.answered: list[Rejection | None] = []
        self.broken: list[str] = []
        self.refused: list[str] = []
        self.picks = 0
        self.certificates: list[bool] = []
        self.threads: set[int] = set()

    def stream_opened(self) -> None:
        self.opened += 1

    def stream_refused(self, reason: str) -> None:
        self.refused.append(reason)

    def stream_closed(self) -> None:
        self.closed += 1

    def stream_broken(self, reason: str) -> None:
        self.broken.append(reason)

    def picked(self, seconds: float) -> None:
        self.picks += 1

    def processed(self, seconds: float) -> None:
        pass

    def routed(self, decision: Decision, *, model: str, body_bytes: int) -> None:
        self.answered.append(None)

    def rejected(self, rejection: Rejection, model: str) -> None:
        self.answered.append(rejection)

    def responded(self, status: int) -> None:
        pass

    def reloaded(self, source: str, *, ok: bool) -> None:
        self.certificates.append(ok)
        self.threads.add(threading.get_ident())


class Picker:
    """A server with a real router over two endpoints."""

    def __init__(self, options: ServerOptions, budget: int, **rules: Any) -> None:
        self.pool = Pool()
        self.pool.replace([EndpointSpec("default", n, f"10.0.0.{n}", 8000) for n in ("1", "2")], 0.0)
        self.router = Router(self.pool, routing_constants(), rng=random.Random(1), now=0.0)
        self.recorder = Recorder()
        self.budget = MemoryBudget(budget)
        self.ready = True
        self.server = Server(
            options,
            new_session=lambda: Session(
                self.router,
                session_rules(**rules),
                models=self.pool.models,
                budget=self.budget,
                headers_budget=MemoryBudget(1 << 30),
                chance=random.random,
            ),
            observer=self.recorder,
            ready=lambda: self.ready,
            clock=time.monotonic,
        )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.grpc_port}"


@asynccontextmanager
async def serving(
    *, rules: dict[str, Any] | None = None, budget: int = 1 << 30, **options: Any
) -> AsyncIterator[Picker]:
    picker = Picker(server_options(**options), budget, **(rules or {}))
    await picker.server.start()
    try:
        yield picker
    finally:
        await picker.server.stop()


def stream_on(channel: Any) -> Any:
    return channel.stream_stream(
        METHOD,
        request_serializer=ProcessingRequest.SerializeToString,
        response_deserializer=ProcessingResponse.FromString,
    )()


def headers(mode: BodySendMode = BUFFERED, *, eos: bool = False, length: int | None = None) -> ProcessingRequest:
    message = ProcessingRequest(
        request_headers=HttpHeaders(end_of_stream=eos), protocol_config=ProtocolConfiguration(request_body_mode=mode)
    )
    message.request_headers.headers.headers.add(key=":path", raw_value=b"/v1/chat/completions")
    if length is not None:
        message.request_headers.headers.headers.add(key="content-length", raw_value=str(length).encode())
    return message


def body(data: bytes, *, eos: bool = True) -> ProcessingRequest:
    return ProcessingRequest(request_body=HttpBody(body=data, end_of_stream=eos))


CALL = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", METHOD),
    (":authority", "picker"),
    ("content-type", "application/grpc"),
]
"""Headers of a stream, for clients that speak HTTP/2 by hand."""


def client_with_closed_windows() -> h2.connection.H2Connection:
    """A client of HTTP/2 that takes no message, on a connection that has begun."""
    client = h2.connection.H2Connection()
    closed = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0}
    client.local_settings = h2.settings.Settings(client=True, initial_values=closed)
    client.initiate_connection()
    return client


def prefixed(message: bytes) -> bytes:
    """A gRPC message on the wire."""
    return b"\0" + len(message).to_bytes(4, "big") + message


async def test_a_request_is_answered_and_the_stream_closed() -> None:
    async with serving() as picker, grpc.aio.insecure_channel(picker.address) as channel:
        call = stream_on(channel)
        await call.write(headers())
        assert (await call.read()).WhichOneof("response") == "request_headers"
        await call.write(body(b'{"model": "m", "messages": [{}]}'))
        reply = await call.read()
        assert reply.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"].startswith("10.0.0.")
        assert await call.read() is grpc.aio.EOF  # type: ignore[attr-defined]  # not in grpc-stubs
        assert await call.code() == grpc.StatusCode.OK
        await eventually(lambda: picker.recorder.closed == 1)
        assert picker.recorder.answered == [None]


@pytest.mark.parametrize("stage", ["opened", "headers", "half-closed", "partial body"])
async def test_a_client_that_goes_away_leaves_nothing_behind(stage: str) -> None:
    async with serving(rules={"observe_responses": True}) as picker:
        async with grpc.aio.insecure_channel(picker.address) as channel:
            call = stream_on(channel)
            if stage != "opened":
                await call.write(headers(FULL_DUPLEX_STREAMED))
            if stage == "partial body":
                await call.write(body(b"{", eos=False))
            if stage == "half-closed":
                await call.done_writing()
            await eventually(lambda: picker.server.open_streams == 1 or stage in {"opened", "half-closed"})
            call.cancel()
        await eventually(lambda: picker.server.open_streams == 0)
        assert picker.recorder.opened == picker.recorder.closed
        assert picker.recorder.broken == []


async def test_a_client_that_goes_away_while_it_is_answered_is_no_fault_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    large = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 400_000}]}).encode()
    window = [("grpc.http2.lookahead_bytes", 65_535), ("grpc.http2.bdp_probe", 0), ("grpc.max_send_message_length", -1)]
    async with serving() as picker, grpc.aio.insecure_channel(picker.address, options=window) as channel:
        call = stream_on(channel)
        await call.write(headers(FULL_DUPLEX_STREAMED))
        await call.write(body(large))
        await eventually(lambda: picker.recorder.answered == [None])
        await asyncio.sleep(0.1)  # the window is full, and nobody reads
        call.cancel()
        await eventually(lambda: picker.server.open_streams == 0)
        await asyncio.sleep(0.05)
    assert not picker.recorder.broken
    assert not caplog.records


async def test_a_protocol_error_ends_that_stream_alone() -> None:
    async with serving() as picker, grpc.aio.insecure_channel(picker.address) as channel:
        bad, good = stream_on(channel), stream_on(channel)
        await bad.write(headers())
        await good.write(headers())
        await bad.read()
        await bad.write(headers())
        assert await bad.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "request_headers in state BODY" in await bad.details()
        await good.read()
        await good.write(body(b"{}"))
        assert (await good.read()).immediate_response.status.code == 400
        assert picker.recorder.broken == ["protocol-error"]


async def test_an_error_of_ours_is_a_500_on_that_stream_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as picker, grpc.aio.insecure_channel(picker.address) as channel:

        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(picker.router, "pick", broken)
        call = stream_on(channel)
        await call.write(headers(eos=True))
        assert (await call.read()).immediate_response.status.code == 500
        monkeypatch.undo()
        call = stream_on(channel)
        await call.write(headers(eos=True))
        assert (await call.read()).HasField("dynamic_metadata")
        assert picker.recorder.broken == ["internal"]
        assert [rejection and rejection.status for rejection in picker.recorder.answered] == [500, None]


async def test_garbage_bytes_are_no_harm() -> None:
    async with serving() as picker, grpc.aio.insecure_channel(picker.address) as channel:
        raw: Any = channel.stream_stream(METHOD)()  # type: ignore[call-arg]  # grpc-stubs: not optional
        await raw.write(b"\xff\xfe garbage")
        assert await raw.code() == grpc.StatusCode.INVALID_ARGUMENT
        await eventually(lambda: picker.server.open_streams == 0)
        assert picker.recorder.broken == ["protocol-error"]
        call = stream_on(channel)
        await call.write(headers(eos=True))
        assert (await call.read()).HasField("dynamic_metadata")


@pytest.mark.parametrize("mode", [BUFFERED, BUFFERED_PARTIAL, STREAMED, FULL_DUPLEX_STREAMED])
async def test_a_body_that_never_ends_gets_408(mode: BodySendMode) -> None:
    async with serving(body_timeout=1.0) as picker, grpc.aio.insecure_channel(picker.address) as channel:
        call = stream_on(channel)
        await call.write(headers(mode))
        if mode != FULL_DUPLEX_STREAMED:
            assert (await call.read()).WhichOneof("response") == "request_headers"
        if mode in (STREAMED, FULL_DUPLEX_STREAMED):
            await call.write(body(b"{", eos=False))
        if mode == STREAMED:
            assert (await call.read()).WhichOneof("response") == "request_body"
        async with asyncio.timeout(60):
            assert (await call.read()).immediate_response.status.code == 408
        await eventually(lambda: picker.server.open_streams == 0)
        assert picker.budget.used == 0


async def test_a_client_that_does_not_take_the_answer_is_ended() -> None:
    """The client keeps its windows closed; it may do so once the response has begun, as long as it answers pings."""
    async with serving(body_timeout=0.2, rules={"observe_responses": True}) as picker:
        client = client_with_closed_windows()
        _, writer = await asyncio.open_connection("127.0.0.1", picker.server.grpc_port)
        chat, begun = body(long_chat(1)), ProcessingRequest(response_headers=HttpHeaders())
        begun.response_headers.headers.headers.add(key=":status", raw_value=b"200")
        for number, messages in ((1, [headers()]), (3, [headers(), chat, begun]), (5, [headers(), chat])):
            client.send_headers(number, CALL)
            for message in messages:
                client.send_data(number, prefixed(message.SerializeToString()))
        writer.write(client.data_to_send())
        await eventually(lambda: picker.recorder.opened == 3 and picker.server.open_streams == 1)
        (stream,) = picker.server._streams
        assert stream.session.response_status == 200
        writer.close()
        await eventually(lambda: picker.server.open_streams == 0)


async def test_a_stream_without_a_message_is_ended() -> None:
    async with serving(body_timeout=1.0) as picker, grpc.aio.insecure_channel(picker.address) as channel:
        call = stream_on(channel)
        await call.write(ProcessingRequest())  # nothing that this version knows
        async with asyncio.timeout(60):
            assert await call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: picker.server.open_streams == 0)
        assert picker.recorder.answered == []


async def test_streams_end_with_unavailable_until_the_pool_is_synced() -> None:
    async with serving() as picker, grpc.aio.insecure_channel(picker.address) as channel:
        picker.ready = False
        assert await stream_on(channel).code() == grpc.StatusCode.UNAVAILABLE
        assert picker.recorder.refused == ["not-synced"]
        for ready in (True, False):  # once it was ready it goes on with what it knows
            picker.ready = ready
            call = stream_on(channel)
            await call.write(headers(eos=True))
            assert (await call.read()).HasField("dynamic_metadata")


def long_chat(kilobytes: int) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * kilobytes * 1024}]}).encode()


@pytest.mark.parametrize("mode", [BUFFERED, FULL_DUPLEX_STREAMED])
async def test_long_bodies_are_read_off_the_event_loop(mode: BodySendMode, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    parse = Session.parse

    def noted(session: Session) -> Any:
        threads.append(threading.get_ident())
        return parse(session)

    monkeypatch.setattr(Session, "parse", noted)
    async with serving() as picker, grpc.aio.insecure_channel(picker.address) as channel:
        for size, on_loop in ((1, True), (600, False)):
            call = stream_on(channel)
            await call.write(headers(mode))
            await call.write(body(long_chat(size)))
            answers = [reply async for reply in call]
            assert [a for a in answers if a.HasField("dynamic_metadata")]
            assert (threads.pop() == threading.get_ident()) is on_loop
        await eventually(lambda: picker.server.open_streams == 0)
        assert picker.budget.used == 0
        assert picker.recorder.picks == 2


async def test_a_stream_that_ends_while_its_body_is_read_leaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def slow(session: Session) -> None:
        reading.set()
        go_on.wait(60)

    async with serving() as picker, grpc.aio.insecure_channel(picker.address) as channel:
        monkeypatch.setattr(Session, "parse", slow)
        call = stream_on(channel)
        await call.write(headers())
        await call.write(body(long_chat(600)))
        await eventually(reading.is_set)
        monkeypatch.undo()
        other = stream_on(channel)  # others go on meanwhile
        await other.write(headers(eos=True))
        assert (await other.read()).HasField("dynamic_metadata")
        await eventually(lambda: picker.server.open_streams == 1)
        call.cancel()
        await asyncio.sleep(0.05)
        assert (picker.server.open_streams, picker.budget.used > 600 * 1024) == (1, True), (
            "the thread still has the body"
        )
        go_on.set()
        await eventually(lambda: picker.server.open_streams == 0)
        assert picker.budget.used == 0
        assert picker.recorder.opened == picker.recorder.closed == 2
        assert picker.recorder.broken == []


async def test_an_error_while_a_long_body_is_read_is_a_500_on_that_stream_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(session: Session) -> None:
        raise ZeroDivisionError

    async with serving() as picker, grpc.aio.insecure_channel(picker.address) as channel:
        monkeypatch.setattr(Session, "parse", broken)
        call = stream_on(channel)
        await call.write(headers())
        await call.read()
        await call.write(body(long_chat(600)))
        assert (await call.read()).immediate_response.status.code == 500
        await eventually(lambda: picker.server.open_streams == 0)
        assert picker.budget.used == 0


async def test_bodies_beyond_the_memory_get_503_and_others_pass() -> None:
    async with serving(budget=8 << 20) as picker, grpc.aio.insecure_channel(picker.address) as channel:
        calls = [stream_on(channel) for _ in range(6)]
        for call in calls:
            await call.write(headers(length=2 << 20))
        replies = [await call.read() for call in calls]
        codes = [reply.immediate_response.status.code for reply in replies]
        assert sorted(codes) == [0, 0, 0, 503, 503, 503]
        small = stream_on(channel)
        await small.write(headers())
        await small.write(body(long_chat(1)))
        assert [reply async for reply in small][-1].HasField("dynamic_metadata")
        for call in calls:
            call.cancel()
        await eventually(lambda: picker.server.open_streams == 0)
        assert picker.budget.used == 0


async def test_messages_that_do_not_end_take_no_more_than_the_memory_of_bodies() -> None:
    """In BUFFERED the body of a chunked upload comes in one message, and nothing was announced."""
    async with serving(budget=8 << 20) as picker:
        client = h2.connection.H2Connection()
        client.initiate_connection()
        reader, writer = await asyncio.open_connection("127.0.0.1", picker.server.grpc_port)
        unsent = {client.get_next_available_stream_id() + 2 * k: 3 << 20 for k in range(4)}
        replies: dict[int, bytes] = {}
        first = b"\0" + (4 << 20).to_bytes(4, "big")
        for stream in unsent:
            client.send_headers(stream, CALL)
            client.send_data(stream, first)
        async with asyncio.timeout(60):
            while any(unsent.values()):
                for stream, left in unsent.items():
                    size = min(left, client.local_flow_control_window(stream), client.max_outbound_frame_size)
                    if size:
                        client.send_data(stream, bytes(size))
                        unsent[stream] -= size
                writer.write(client.data_to_send())
                await writer.drain()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.01):
                        received = await reader.read(1 << 20)
                    for event in client.receive_data(received):
                        if isinstance(event, h2.events.DataReceived) and event.stream_id is not None:
                            replies[event.stream_id] = replies.get(event.stream_id, b"") + (event.data or b"")
                        elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset) and event.stream_id:
                            unsent[event.stream_id] = 0
            await eventually(lambda: picker.server.open_streams == 2, "two messages go on, 3 MB each")
        codes = [ProcessingResponse.FromString(reply[5:]).immediate_response.status.code for reply in replies.values()]
        assert codes == [503, 503]
        assert 6 << 20 <= picker.budget.used <= 8 << 20
        writer.close()
        await eventually(lambda: picker.server.open_streams == 0)
        assert picker.budget.used == 0


async def test_replies_that_envoy_does_not_take_are_within_the_memory_of_bodies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client keeps its windows closed; pings find nothing."""
    monkeypatch.setattr(connection, "HELD_FREELY", 0)
    async with serving(budget=100_000) as picker:
        client = client_with_closed_windows()
        _, writer = await asyncio.open_connection("127.0.0.1", picker.server.grpc_port)
        begin, chunk = headers(STREAMED), body(b"", eos=False)
        for message in (begin, *[chunk] * 1000):
            for stream in (1, 3, 5):
                if message is begin:
                    client.send_headers(stream, CALL)
                client.send_data(stream, prefixed(message.SerializeToString()))
        writer.write(client.data_to_send())
        await eventually(lambda: picker.recorder.closed == 2 and picker.budget.used > 70_000, "one stream goes on")
        assert picker.budget.used <= 100_000
        writer.close()
        await eventually(lambda: picker.server.open_streams == 0)
        assert picker.budget.used == 0


def test_a_chunk_of_the_response_keeps_no_memory_once_it_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunk arrives in two frames that are read one by one, so that it takes memory."""
    monkeypatch.setattr(connection, "HELD_FREELY", 0)
    picker = Picker(server_options(), 1 << 30)
    port = connection.Connection(picker.server._open, lambda: None, connection.Limits(1 << 20, 10), connection.Usage())
    client = h2.connection.H2Connection()
    client.initiate_connection()
    client.send_headers(1, CALL)
    begin = headers(FULL_DUPLEX_STREAMED)
    begin.protocol_config.response_body_mode = FULL_DUPLEX_STREAMED
    chunk = ProcessingRequest(response_body=HttpBody(body=b"x" * 4000)).SerializeToString()
    for message in (begin.SerializeToString(), body(long_chat(10)).SerializeToString(), chunk):
        data = prefixed(message)
        while data:
            client.send_data(1, data[:3000])
            port.receive(client.data_to_send())
            client.receive_data(port.output())
            data = data[3000:]
            assert message is not chunk or not data or picker.budget.used == len(message) - len(data)
    assert (picker.budget.used, picker.server.open_streams) == (0, 1)


async def test_messages_after_the_one_that_ends_the_stream_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on = threading.Event(), threading.Event()
    receive = Session.receive

    def slow(session: Session, message: ProcessingRequest, now: float) -> list[bytes]:
        if message.HasField("request_body"):
            reading.set()
            go_on.wait(60)
        return receive(session, message, now)

    limit = {"max_body_bytes": 610_000}
    monkeypatch.setattr(Session, "receive", slow)
    async with serving(**limit, rules=limit) as picker, grpc.aio.insecure_channel(picker.address) as channel:
        call = stream_on(channel)
        await call.write(headers(FULL_DUPLEX_STREAMED))
        await call.write(body(b"x" * 605_000, eos=False))
        await eventually(reading.is_set)
        stream = next(iter(picker.server._streams))
        for _ in range(3):
            await call.write(body(b"x" * 10_000, eos=False))
        await eventually(lambda: len(stream._call._received) > 30_000)
        go_on.set()
        assert (await call.read()).immediate_response.status.code == 413
        await eventually(lambda: picker.server.open_streams == 0)
        assert picker.recorder.broken == []


async def test_a_body_over_the_limit_gets_413_not_a_grpc_error() -> None:
    limit = {"max_body_bytes": 10_000}
    async with serving(**limit, rules=limit) as picker, grpc.aio.insecure_channel(picker.address) as channel:
        call = stream_on(channel)
        await call.write(headers())
        await call.read()
        await call.write(body(b"x" * 20_000))
        assert (await call.read()).immediate_response.status.code == 413


@pytest.mark.parametrize("name", ["headers", "metadata"])
async def test_a_message_of_many_empty_parts_ends_its_stream_before_it_is_decoded(name: str) -> None:
    """2 bytes make an object of 36 to 70 bytes: 32 MB would take more than a gigabyte."""
    empty = b"\x0a\x00" * (2 << 20)
    if name == "headers":
        bomb = pb.HttpHeaders(headers=pb.HeaderMap.FromString(empty))
        message = pb.ProcessingRequest(request_headers=bomb)
    else:
        message = pb.ProcessingRequest()
        message.metadata_context.filter_metadata["envoy.lb"].fields["x"].list_value.MergeFromString(empty)
    async with serving() as picker, grpc.aio.insecure_channel(picker.address) as channel:
        call = stream_on(channel)
        await call.write(message)
        async with asyncio.timeout(60):
            assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "beside its body" in (await call.details() or "")


async def test_a_message_that_ends_its_stream_does_not_stay_in_memory() -> None:
    size = 4 << 20
    gc.disable()
    tracemalloc.start()
    try:
        async with serving() as picker, grpc.aio.insecure_channel(picker.address) as channel:
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(6):
                call = stream_on(channel)
                await call.write(pb.ProcessingRequest(request_trailers=pb.HttpTrailers(), metadata_context=large(size)))
                async with asyncio.timeout(60):
                    assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
                del call
            await eventually(lambda: tracemalloc.get_traced_memory()[0] - before < 2 * size, "the messages are freed")
    finally:
        tracemalloc.stop()
        gc.enable()


def large(size: int) -> pb.Metadata:
    metadata = pb.Metadata()
    metadata.filter_metadata["other"].fields["x"].string_value = "x" * size
    return metadata


async def test_more_streams_than_allowed_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    async with serving(max_streams=2) as picker, grpc.aio.insecure_channel(picker.address) as channel:
        calls = [stream_on(channel) for _ in range(2)]
        for call in calls:
            await call.write(headers())
            await call.read()
        for _ in range(5):
            async with asyncio.timeout(60):
                assert await stream_on(channel).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert picker.recorder.refused == ["max-streams"] * 5
        assert [record.message for record in caplog.records] == ["streams refused"], "one line for all of them"
        await calls[0].write(body(b"{}"))
        await calls[0].read()
        await calls[0].read()
        await eventually(lambda: picker.server.open_streams == 1)
        call = stream_on(channel)
        await call.write(headers(eos=True))
        assert (await call.read()).HasField("dynamic_metadata")


async def test_health_is_told_while_no_more_streams_are_allowed() -> None:
    async with serving(max_streams=1) as picker, grpc.aio.insecure_channel(picker.address) as channel:
        call = stream_on(channel)
        await call.write(headers())
        await call.read()
        assert await health(picker.server.grpc_port, "readiness") == 1
        async with asyncio.timeout(60):
            assert await stream_on(channel).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert picker.recorder.opened == 1
        assert picker.server.open_streams == 1


def test_refused_streams_are_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    server = Picker(server_options(), 0).server
    for now in (0.0, 1.0, REFUSAL_LOG_INTERVAL - 0.1, REFUSAL_LOG_INTERVAL, REFUSAL_LOG_INTERVAL + 1):
        server.clock = partial(float, now)
        server._refuse(mock.create_autospec(Call), "max-streams", Status.RESOURCE_EXHAUSTED, "too many streams")
    assert [record.fields["streams"] for record in caplog.records] == [1, 3]  # type: ignore[attr-defined]


async def health(port: int, service: str) -> int:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        return int((await check(health_pb2.HealthCheckRequest(service=service))).status)


async def test_health_by_every_name_on_both_ports() -> None:
    names = ["", "readiness", "inference-extension", "envoy.service.ext_proc.v3.ExternalProcessor"]
    async with serving() as picker:
        for port in (picker.server.grpc_port, picker.server.grpc_health_port):
            for ready, expected in ((True, 1), (False, 2)):
                picker.ready = ready
                assert {await health(port, name) for name in names} == {expected}
                assert await health(port, "liveness") == 1


@pytest.mark.parametrize("message", [b"\x0a\xff", b"\x0a\x02\xff\xfe"], ids=["no protobuf", "no UTF-8"])
async def test_a_health_check_that_cannot_be_read_is_its_clients_fault(
    message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as picker, grpc.aio.insecure_channel(f"127.0.0.1:{picker.server.grpc_health_port}") as channel:
        check: Any = channel.unary_unary
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await check("/grpc.health.v1.Health/Check")(message)
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not caplog.records


async def test_watching_health_is_not_offered_and_leaves_no_trace_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as picker, grpc.aio.insecure_channel(f"127.0.0.1:{picker.server.grpc_health_port}") as channel:
        call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not caplog.records


async def test_drain_is_not_ready_serves_on_and_waits_for_open_streams() -> None:
    async with serving() as picker, grpc.aio.insecure_channel(picker.address) as channel:
        call = stream_on(channel)
        await call.write(headers())
        await call.read()
        drained = asyncio.create_task(picker.server.drain(10))
        await asyncio.sleep(0)
        assert await health(picker.server.grpc_health_port, "readiness") == 2
        late = stream_on(channel)
        await late.write(headers(eos=True))
        assert (await late.read()).HasField("dynamic_metadata")
        assert not drained.done()
        await call.write(body(b"{}"))
        await call.read()
        async with asyncio.timeout(60):
            await drained


async def test_drain_serves_on_until_no_request_came_for_a_while() -> None:
    """Gateways send requests until their health check has seen that the picker is not ready."""
    async with serving() as picker, grpc.aio.insecure_channel(picker.address) as channel:
        began = asyncio.get_running_loop().time()
        drained = asyncio.create_task(picker.server.drain(10, quiet=1.5))
        for _ in range(5):
            await asyncio.sleep(0.1)
            late = stream_on(channel)
            await late.write(headers(eos=True))
            assert (await late.read()).HasField("dynamic_metadata")
            assert not drained.done()
        async with asyncio.timeout(60):
            await drained
        assert asyncio.get_running_loop().time() - began >= 2.0


async def test_drain_gives_up_after_its_time(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as picker, grpc.aio.insecure_channel(picker.address) as channel:
        call = stream_on(channel)
        await call.write(headers())
        await call.read()
        async with asyncio.timeout(60):
            await picker.server.drain(0.1)
        assert [record.message for record in caplog.records] == ["drain timeout: streams are cut off"]


async def test_a_drain_that_ends_while_no_stream_is_open_cuts_none_off(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as picker:
        await picker.server.drain(0.1, quiet=60)
    assert not caplog.records


async def test_a_taken_port_is_a_clear_error() -> None:
    async with serving() as picker:
        with pytest.raises(ConfigurationError, match=rf"port {picker.server.grpc_port} \(--grpc-port\)"):
            async with serving(grpc_port=picker.server.grpc_port):
                pass


def write_pair(directory: Path, name: str) -> bytes:
    """A self-signed certificate for ``name``; gives the certificate."""
    key, certificate = tls.new_pair(name)
    for file, data in (("tls.key", key), ("tls.crt", certificate)):
        (directory / f".{file}").write_bytes(data)
        os.replace(directory / f".{file}", directory / file)
    return certificate


async def served_over_tls(address: str, root: bytes, name: str) -> bool:
    credentials = grpc.ssl_channel_credentials(root_certificates=root)
    async with grpc.aio.secure_channel(
        address, credentials, options=[("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        call = stream_on(channel)
        try:
            await call.write(headers(eos=True))
            return bool((await call.read()).HasField("dynamic_metadata"))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return False


async def test_certificates_are_reloaded_when_they_change(tmp_path: Path) -> None:
    first = write_pair(tmp_path, "first.example")
    async with serving(secure_serving=True, cert_path=tmp_path) as picker:
        assert await served_over_tls(picker.address, first, "first.example")
        second = write_pair(tmp_path, "second.example")
        assert await served_over_tls(picker.address, second, "second.example")
        (tmp_path / "tls.crt").write_text("broken")
        assert await served_over_tls(picker.address, second, "second.example")
        assert picker.recorder.certificates == [True, False]
        assert picker.recorder.threads == {threading.get_ident()}


async def test_certificates_that_are_away_are_told_once_and_read_when_they_are_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    only = write_pair(tmp_path, "only.example")
    async with serving(secure_serving=True, cert_path=tmp_path) as picker:
        (tmp_path / "tls.crt").rename(tmp_path / "away")
        for _ in range(3):
            assert await served_over_tls(picker.address, only, "only.example")
        assert picker.recorder.certificates == [False]
        assert [record.message for record in caplog.records] == ["new certificate unusable, old one stays in use"]
        (tmp_path / "away").rename(tmp_path / "tls.crt")
        assert await served_over_tls(picker.address, only, "only.example")
        assert picker.recorder.certificates == [False, True]


def test_a_bad_certificate_at_start_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot use the certificate"):
        tls.from_directory(tmp_path)
    write_pair(tmp_path, "x.example")
    other = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "tls.key").write_bytes(
        other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(ConfigurationError, match="not the key of"):
        tls.from_directory(tmp_path)
    (tmp_path / "tls.key").write_bytes(
        other.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        )
    )
    with pytest.raises(ConfigurationError, match="encrypted"):
        tls.from_directory(tmp_path)
