"""The gRPC server over real sockets: keepalive, clients that do not read, the end. tests/extproc has streams and TLS."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import ssl
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
import uvloop

from tests.waiting import eventually
from warmroute import tasks
from warmroute.extproc import tls
from warmroute.grpc_server import frames
from warmroute.grpc_server import server as server_module
from warmroute.grpc_server.connection import IGNORE, MOST_AT_ONCE, Limits, Usage
from warmroute.grpc_server.frames import PREFACE, SETTINGS, frame
from warmroute.grpc_server.server import GrpcServer
from warmroute.grpc_server.unary import unary

pytestmark = pytest.mark.integration

METHOD = "/test.Service/Reverse"


def reverse(message: bytes) -> bytes:
    return 1 // len(message) * message[::-1] if len(message) < 2 else message[::-1]


@asynccontextmanager
async def serving(context: ssl.SSLContext | None = None) -> AsyncIterator[tuple[GrpcServer, int]]:
    server = GrpcServer({METHOD: unary(reverse, long_messages=True)}, Limits(message_bytes=10 << 20, calls=100))
    port = await server.start("127.0.0.1", 0, "--port", context)
    try:
        yield server, port
    finally:
        await server.stop(0.5)


def method(channel: grpc.aio.Channel) -> Any:
    return channel.unary_unary(METHOD)  # type: ignore[call-arg]  # grpc-stubs: not optional


async def test_messages_of_all_sizes_both_ways() -> None:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with serving() as (_, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        for size in (2, 16_379, 16_380, 70_000, 5 << 20):
            message = (b"0123456789" * (size // 10 + 1))[:size]
            async with asyncio.timeout(60):
                assert await method(channel)(message) == message[::-1]


async def test_a_method_that_fails_ends_its_call_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (_, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await method(channel)(b"")
        assert failed.value.code() == grpc.StatusCode.INTERNAL
        assert await method(channel)(b"ab") == b"ba"
    assert [record.message for record in caplog.records] == ["call failed"]


async def test_silent_connections_and_those_that_do_not_answer_a_ping_are_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "KEEPALIVE_INTERVAL", 0.2)
    async with serving() as (_, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert await method(channel)(b"ab") == b"ba"
        for beginning in (b"", PREFACE + frame(SETTINGS, 0, 0)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(beginning)
            async with asyncio.timeout(60):
                try:
                    while await reader.read(1000):
                        pass
                except ConnectionError:
                    pass
            writer.close()
        assert channel.get_state() is grpc.ChannelConnectivity.READY, "grpcio answers pings"
        assert await method(channel)(b"ab") == b"ba"


async def test_a_client_with_many_small_calls_holds_nobody_up() -> None:
    answered: list[bytes] = []

    def note(message: bytes) -> bytes:
        answered.append(message)
        return message

    server = GrpcServer({METHOD: unary(note)}, Limits(1000, 1000))
    port = await server.start("127.0.0.1", 0, "--port")
    fields = {":method": "POST", ":scheme": "http", ":path": METHOD, "content-type": "application/grpc"}
    block = b"".join(bytes((0, len(k))) + k.encode() + bytes((len(v),)) + v.encode() for k, v in fields.items())

    def calls(message: bytes, count: int) -> bytes:
        data = b"\0" + len(message).to_bytes(4, "big") + message
        return b"".join(
            frame(frames.HEADERS, frames.END_HEADERS, stream, block)
            + frame(frames.DATA, frames.END_STREAM, stream, data)
            for stream in range(1, 2 * count, 2)
        )

    many, one = [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(2)]
    for writer in (many, one):
        writer.write(PREFACE + frame(SETTINGS, 0, 0))
    await eventually(lambda: len(server._connections) == 2)
    many.write(calls(b"many", 300))
    one.write(calls(b"one", 1))
    await eventually(lambda: len(answered) == 301)
    assert answered.index(b"one") < 200
    for writer in (many, one):
        writer.close()
    await server.stop(0.5)


async def test_one_connection_more_ends_one_without_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many that do nothing keep out neither a client that has called nor a new one."""
    monkeypatch.setattr(server_module, "MOST_CONNECTIONS", 3)
    async with serving() as (server, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert await method(channel)(b"ab") == b"ba"
        (used,) = server._connections
        readers = []
        for _ in range(6):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(PREFACE + frame(SETTINGS, 0, 0))
            readers.append((reader, writer))
            await eventually(lambda: len(server._connections) == min(3, 1 + len(readers)))
        async with asyncio.timeout(60):
            for reader, _ in readers[:4]:
                assert frame(frames.GOAWAY, 0, 0, bytes(8)) in await reader.read()
        assert next(iter(server._connections)) is used
        assert await method(channel)(b"ab") == b"ba"
        for _, writer in readers:
            writer.close()


@pytest.mark.parametrize("window", [0, 65_535], ids=["answers are not taken", "messages do not come"])
async def test_unary_calls_that_do_not_go_on_keep_nobody_out(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes one of the port's calls, and keeps its connection from being ended in favour of another one."""
    monkeypatch.setattr(server_module, "MOST_UNANSWERED", 3)
    monkeypatch.setattr(server_module, "MOST_CONNECTIONS", 5)
    fields = {":method": "POST", ":scheme": "http", ":path": METHOD, "content-type": "application/grpc"}
    block = b"".join(bytes((0, len(k))) + k.encode() + bytes((len(v),)) + v.encode() for k, v in fields.items())
    begin = PREFACE + frame(SETTINGS, 0, 0, frames.setting(frames.INITIAL_WINDOW_SIZE, window))
    async with serving() as (server, port):
        clients = []
        for _ in range(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(begin)
            for stream in range(1, 101, 2):
                writer.write(frame(frames.HEADERS, frames.END_HEADERS, stream, block))
                if not window:
                    writer.write(frame(frames.DATA, frames.END_STREAM, stream, b"\0\0\0\0\2ab"))
            clients.append((reader, writer))
        await eventually(lambda: sum(each._connection._last_stream for each in server._connections) == 5 * 99)
        assert sum(each.calls for each in server._connections) == 3
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert await method(channel)(b"ab") == b"ba"
        for _, writer in clients:
            writer.close()


async def test_clients_that_come_and_go_at_once_do_not_end_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[str] = []
    monkeypatch.setattr(tasks.logger, "exception", lambda message, **_: failures.append(message))
    monkeypatch.setattr(server_module, "MOST_CONNECTIONS", 8)

    def read(client: socket.socket) -> None:
        with suppress(OSError):
            while client.recv(1000):
                pass

    def come_and_go(port: int) -> None:
        readers = []
        for _ in range(400):
            client = socket.create_connection(("127.0.0.1", port), 60)
            client.settimeout(1)
            readers.append(threading.Thread(target=read, args=(client,), daemon=True))
            readers[-1].start()
            with suppress(OSError):
                client.sendall(PREFACE + frame(SETTINGS, 0, 0))
                client.sendall(frame(frames.WINDOW_UPDATE, 0, 0, bytes([1, 0, 0, 0])))
            client.close()  # it ends once the thread has read something
        for reader in readers:
            reader.join()

    async with serving() as (_, port):
        await asyncio.to_thread(come_and_go, port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(60):
            assert (await reader.read(9))[3] == SETTINGS
        writer.close()
    assert not failures


async def test_without_file_descriptors_idle_connections_make_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "ACCEPT_DELAY", 0.0)
    async with serving() as (server, port):

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(PREFACE + frame(SETTINGS, 0, 0))
            return reader, writer

        clients = [await connect() for _ in range(2)]
        await eventually(lambda: len(server._connections) == 2)
        loop = asyncio.get_running_loop()
        accept, failures, exhausted = loop.sock_accept, iter(range(2)), asyncio.Event()

        async def sock_accept(listener: socket.socket) -> Any:
            if next(failures, None) is not None:
                await exhausted.wait()
                raise OSError(errno.EMFILE, "Too many open files")
            return await accept(listener)

        monkeypatch.setattr(loop, "sock_accept", sock_accept)
        clients.append(await connect())  # by the accept that was under way
        await eventually(lambda: len(server._connections) == 3 and not server._beginning)
        exhausted.set()
        async with asyncio.timeout(60):
            for reader, _ in clients[:2]:
                assert frame(frames.GOAWAY, 0, 0, bytes(8)) in await reader.read()
        clients.append(await connect())
        await eventually(lambda: len(server._connections) == 2)
        for _, writer in clients:
            writer.close()
    assert [record.message for record in caplog.records] == ["no file descriptor for another connection (ulimit -n)"]


async def test_connections_count_before_tls_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MOST_CONNECTIONS", 3)
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    async with serving(tls.self_signed()) as (server, port):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        await eventually(lambda: len(server._beginning) == 3)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        writer.write(PREFACE + frame(SETTINGS, 0, 0))
        await eventually(lambda: any(each._connection.established for each in server._connections))
        await eventually(lambda: (len(server._beginning), len(server._connections)) == (2, 1))
        for ended, _ in silent[:3]:
            async with asyncio.timeout(60):
                assert not await ended.read()
        silent[3][1].write(b"GET / HTTP/1.1\r\n\r\n")
        await eventually(lambda: len(server._beginning) == 1, "it speaks no TLS")
        for _, each in (*silent, (reader, writer)):
            each.close()
        await eventually(lambda: not server._beginning and not server._connections)


async def test_a_client_that_does_not_begin_tls_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HANDSHAKE_TIMEOUT", 0.1)
    async with serving(tls.self_signed()) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await eventually(lambda: server._beginning)
        async with asyncio.timeout(60):
            assert not await reader.read()
        await eventually(lambda: not server._beginning)
        writer.close()


async def test_a_connection_that_is_given_up_before_its_task_has_run_is_closed() -> None:
    async with serving() as (server, _):
        ours, theirs = socket.socketpair()
        with theirs:
            beginning = asyncio.create_task(server._begin(ours))
            server._beginning[beginning] = ours
            server._give_up(beginning)
            await asyncio.gather(beginning, return_exceptions=True)
            assert theirs.recv(1) == b""
            assert ours.fileno() == -1


async def test_a_server_stops_while_tls_begins() -> None:
    async with serving(tls.self_signed()) as (server, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await eventually(lambda: server._beginning)
        async with asyncio.timeout(60):
            await server.stop(0.1)
        assert not server._beginning
        writer.close()


async def test_while_all_connections_have_calls_no_more_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MOST_CONNECTIONS", 1)
    async with serving() as (server, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream(METHOD)()  # type: ignore[call-arg]
        await eventually(lambda: any(each.calls for each in server._connections))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(60):
            try:
                assert not await reader.read()
            except ConnectionError:
                pass
        assert any(each.calls for each in server._connections)
        writer.close()
        call.cancel()


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("end", ["client", "protocol error"])
def test_a_connection_that_is_over_leaves_nothing_to_the_garbage_collector(
    end: str, loop: Callable[[], asyncio.AbstractEventLoop], secure: bool
) -> None:
    """With TLS each has buffers of 60 KB and more, and the picker collects rarely."""

    async def scenario() -> None:
        async with serving(tls.self_signed() if secure else None) as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=unverified() if secure else None)
            writer.write(PREFACE + frame(SETTINGS, 0, 0))
            await eventually(lambda: bool(server._connections))
            over = weakref.ref(next(iter(server._connections)))
            gc.disable()
            try:
                if end == "protocol error":
                    writer.write(b"x" * 100)
                    await reader.read()
                writer.close()
                await eventually(lambda: over() is None)
            finally:
                gc.enable()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())


def unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


async def test_from_a_client_that_does_not_read_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers take no more memory than those to a few frames, until it is ended because it does not answer a ping."""
    monkeypatch.setattr(server_module, "KEEPALIVE_INTERVAL", 0.3)
    async with serving() as (server, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(PREFACE + frame(SETTINGS, 0, 0))
        await eventually(lambda: server._connections)
        (connection,) = server._connections
        pings = frame(frames.PING, 0, 0, bytes(8)) * 1000

        async def flood() -> None:
            while True:
                writer.write(pings)
                await writer.drain()

        flooding = asyncio.create_task(flood())
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(60):
                await flooding
        await eventually(lambda: not server._connections)
        assert len(connection._connection._output) <= 2 * MOST_AT_ONCE


async def test_a_client_that_reads_late_gets_all_answers() -> None:
    async with serving() as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(PREFACE + frame(SETTINGS, 0, 0))
        writer.write(frame(frames.PING, 0, 0, bytes(8)) * 1_000_000)
        await eventually(lambda: any(each._connection.paused for each in server._connections))
        answer, answers, rest = frame(frames.PING, frames.ACK, 0, bytes(8)), 0, b""
        async with asyncio.timeout(60):
            while answers < 1_000_000:
                rest += await reader.read(1 << 20)
                answers += rest.count(answer)
                rest = rest[-len(answer) + 1 :] if rest[-len(answer) :] != answer else b""
        writer.close()


async def test_stop_lets_open_calls_end_and_gives_the_others_up() -> None:
    async with serving() as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PREFACE + frame(SETTINGS, 0, 0))
        await eventually(lambda: server._connections)
        async with asyncio.timeout(60):
            await server.stop(0.1)
        data = await reader.read()
        assert frame(frames.GOAWAY, 0, 0, bytes(8)) in data
        writer.close()
    with pytest.raises(OSError):  # noqa: PT011  # refused, by any name of the platform
        await asyncio.open_connection("127.0.0.1", port)


class Transport:
    """A transport that notes what is done with it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def is_closing(self) -> bool:
        return "close" in self.done

    def write(self, data: bytes) -> None:
        self.done.append("write")

    def close(self) -> None:
        self.done.append("close")

    def abort(self) -> None:
        self.done.append("abort")


async def test_a_server_that_stops_sends_what_was_written() -> None:
    transport: Any = Transport()
    connection = server_module._Socket(lambda call: IGNORE, Limits(100, 100), Usage(), {}, asyncio.Event())
    connection.connection_made(transport)
    connection.close()
    assert transport.done == ["write", "close"], "abort would drop it"


@pytest.mark.parametrize(
    "scenario",
    [
        test_silent_connections_and_those_that_do_not_answer_a_ping_are_ended,
        test_one_connection_more_ends_one_without_calls,
        test_clients_that_come_and_go_at_once_do_not_end_the_port,
        test_connections_count_before_tls_has_begun,
        test_a_client_that_does_not_begin_tls_is_ended,
        test_from_a_client_that_does_not_read_nothing_is_read,
    ],
)
def test_on_the_event_loop_of_the_picker(
    scenario: Callable[[pytest.MonkeyPatch], Coroutine[None, None, None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop's transports begin to read and lose connections at other moments than asyncio's."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario(monkeypatch))
