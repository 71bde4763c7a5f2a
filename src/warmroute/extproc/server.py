"""The gRPC server: Envoy's streams to sessions, health, TLS, drain. What to reply is decided in the session."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from warmroute.errors import ProtocolError
from warmroute.extproc import headers, health, replies
from warmroute.extproc.dry_run import DryRun
from warmroute.extproc.ext_proc_pb2 import ProcessingRequest
from warmroute.extproc.listen import bind
from warmroute.extproc.observer import Observer, RefusalReason
from warmroute.extproc.reading_threads import ReadingThreads
from warmroute.extproc.session import Session
from warmroute.extproc.transitions import State
from warmroute.extproc.wire import bytes_beside_body
from warmroute.request.limits import LONG_BODY

logger = logging.getLogger(__name__)

MESSAGE_OVERHEAD = 1 << 20
"""Bytes that a gRPC message may have beyond the request body: headers, metadata, framing."""
WATCH_INTERVAL = 1.0
"""Seconds between two searches for overdue requests."""
REFUSAL_LOG_INTERVAL = 10.0
"""Least seconds between two log lines about refused streams."""

Context = grpc.aio.ServicerContext[bytes, bytes]
"""A stream of serialised messages, both ways."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How to listen; :class:`~warmroute.settings.Settings` explains each."""

    host: str
    grpc_port: int
    grpc_health_port: int
    secure_serving: bool
    cert_path: Path | None
    max_body_bytes: int
    body_timeout: float
    max_streams: int
    tracing: bool = False


@dataclass(slots=True)
class _Stream:
    session: Session
    due: float
    worked: float = 0.0
    """Seconds spent on its messages."""
    reported: bool = False
    """The observer knows how the request was answered."""
    overdue: bool = False
    """Its task is cancelled because the request did not arrive in time."""


class Refusals:
    """Streams refused since the last log line about them."""

    def __init__(self) -> None:
        self._count = 0
        self._due = float("-inf")

    def add(self, reason: RefusalReason, now: float) -> None:
        """Count one, and log if the last line is old enough."""
        self._count += 1
        if now >= self._due:
            logger.warning("streams refused", extra={"fields": {"reason": reason, "streams": self._count}})
            self._count, self._due = 0, now + REFUSAL_LOG_INTERVAL


class Server:
    """The ext_proc service and its health service."""

    def __init__(
        self,
        options: ServerOptions,
        *,
        new_session: Callable[[], Session],
        observer: Observer,
        ready: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._options = options
        self._largest_message = options.max_body_bytes + MESSAGE_OVERHEAD
        self._new_session = new_session
        self._observer = observer
        self._ready = ready
        self._clock = clock
        self._was_ready = False
        """The picker has been ready once; from then on it answers every stream."""
        self._draining = False
        self._refusals = Refusals()
        self._streams: dict[asyncio.Task[Any], _Stream] = {}
        """The open streams by their tasks, oldest first."""
        self._streams_opened = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._deadlines: asyncio.Task[None] | None = None
        self._threads = ReadingThreads()
        self.dry_run = DryRun(new_session, self._threads, clock)
        self._ext_proc: grpc.aio.Server | None = None
        self._health: grpc.aio.Server | None = None
        self.grpc_port = 0
        """The ext_proc port in use once started."""
        self.grpc_health_port = 0
        """The health port in use once started."""

    @property
    def open_streams(self) -> int:
        """Streams that Envoy has open."""
        return len(self._streams)

    # ---------------------------------------------------------------- life

    async def start(self) -> None:
        """Listen. Raises ConfigurationError if a port is taken or a certificate cannot be used."""
        options = self._options
        self._ext_proc = self._ext_proc_service()
        self.grpc_port = bind(self._ext_proc, options.host, options.grpc_port, "--grpc-port", self._credentials())
        self._health = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        health.add(self._health, self._is_ready)
        self.grpc_health_port = bind(self._health, options.host, options.grpc_health_port, "--grpc-health-port", None)
        await self._ext_proc.start()
        await self._health.start()
        self._deadlines = asyncio.create_task(self._end_overdue_streams(), name="deadlines")

    async def drain(self, seconds: float, quiet: float = 0.0) -> None:
        """Report not ready and go on serving until no stream was open for ``quiet`` seconds, ``seconds`` at the most.

        A gateway sends new requests until its health check has seen that this picker is not ready.
        """
        self._draining = True
        opened = -1
        try:
            async with asyncio.timeout(seconds):
                while opened != self._streams_opened or self._streams:
                    await self._idle.wait()
                    opened = self._streams_opened
                    await asyncio.sleep(quiet)
        except TimeoutError:
            logger.warning("drain timeout: streams are cut off", extra={"fields": {"streams": self.open_streams}})

    async def stop(self) -> None:
        """Stop listening and end what is open. Safe to call before ``start`` and again."""
        if self._deadlines is not None:
            self._deadlines.cancel()
        for server in (self._ext_proc, self._health):
            if server is not None:
                await server.stop(grace=0.5)
        await self._threads.stop()

    def _ext_proc_service(self) -> grpc.aio.Server:
        # Twice the largest message: bodies that are too long should reach the session, which answers 413. Beyond this limit
        # gRPC ends the stream, and Envoy answers 500.
        server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", min(2 * self._largest_message, 2**31 - 1)),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ),
        )
        # Stream-unary, though the method is stream-stream and looks so to Envoy: gRPC then sends the last reply and the
        # status in one batch. Each batch is a trip through its poller: with one less a small request takes a tenth less CPU.
        process = grpc.stream_unary_rpc_method_handler(self._process)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(health.EXT_PROC_SERVICE, {"Process": process}),)
        )
        health.add(server, self._is_ready)
        return server

    def _credentials(self) -> grpc.ServerCredentials | None:
        options = self._options
        if not options.secure_serving:
            return None
        from warmroute.extproc import tls  # cryptography takes 8 MB, which are saved behind a sidecar without TLS

        if options.cert_path is None:
            return tls.self_signed()
        loop = asyncio.get_running_loop()

        def reloaded(ok: bool) -> None:  # in a thread of gRPC's
            loop.call_soon_threadsafe(lambda: self._observer.reloaded("certificate", ok=ok))

        return tls.from_directory(options.cert_path, reloaded)

    def _is_ready(self) -> bool:
        return not self._draining and self._ready()

    # ---------------------------------------------------------------- streams

    async def _process(self, _: object, context: Context) -> bytes:
        """One stream; returns its last reply."""
        await self._admit(context)
        task = asyncio.current_task()
        assert task is not None
        stream = self._open(task)
        if self._options.tracing:
            stream.session.gateway_traceparent = headers.trace_context_of(context.invocation_metadata())
        try:
            return await self._exchange(stream, context)
        except (ProtocolError, DecodeError) as error:
            # The traceback's frames would hold the message, which may be large, until the garbage collector runs.
            error.__traceback__ = None
            return await self._abort(stream, context, str(error))
        except asyncio.CancelledError:
            if not stream.overdue:
                raise  # the client or the proxy went away
            task.uncancel()
            return await self._time_out(stream, context)
        except grpc.aio.InternalError:  # the client or the proxy went away while it was being answered
            return replies.NOTHING
        except Exception:
            logger.exception("request failed", extra={"fields": {"request": stream.session.request_id}})
            return self._failed(stream)
        finally:
            self._close(task)

    async def _admit(self, context: Context) -> None:
        """End the stream here if it cannot be served."""
        if not self._was_ready:
            if not self._ready():
                await self._refuse(context, "not-synced", grpc.StatusCode.UNAVAILABLE, "the pool is not synced")
            self._was_ready = True
        # gRPC's own limit would count health checks, too: Envoy would leave a picker that is merely busy.
        if len(self._streams) >= self._options.max_streams:
            await self._refuse(context, "max-streams", grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams")

    async def _refuse(
        self,
        context: Context,
        reason: RefusalReason,
        code: grpc.StatusCode,
        details: str,
    ) -> None:
        self._observer.stream_refused(reason)
        self._refusals.add(reason, self._clock())
        await context.abort(code, details)

    def _open(self, task: asyncio.Task[Any]) -> _Stream:
        stream = self._streams[task] = _Stream(self._new_session(), self._clock() + self._options.body_timeout)
        self._streams_opened += 1
        self._idle.clear()
        self._observer.stream_opened()
        return stream

    def _close(self, task: asyncio.Task[Any]) -> None:
        session = self._streams.pop(task).session
        session.finish(self._clock())
        if not self._streams:
            self._idle.set()
        self._observer.stream_closed()
        if session.response_status is not None:
            self._observer.responded(session.response_status)

    async def _exchange(self, stream: _Stream, context: Context) -> bytes:
        """Messages in, replies out, until the stream ends; returns the last reply."""
        session = stream.session
        while True:
            data = await context.read()
            if data is grpc.aio.EOF:  # type: ignore[attr-defined]  # missing in the stubs
                return replies.NOTHING
            began = perf_counter()
            if len(data) < LONG_BODY:
                answers = self._receive(session, data)
            else:
                answers = await self._threads.run(partial(self._receive, session, data))
            del data  # it may be large, and the next one is awaited here
            if session.complete:
                answers += await self._answer(session)
            stream.worked += perf_counter() - began
            if session.answered and not stream.reported:
                self._report(stream)
            last = answers.pop() if session.closed else None
            for reply in answers:
                await context.write(reply)
            if last is not None:
                return last
            session.release_reply()

    def _receive(self, session: Session, data: bytes) -> list[bytes]:
        if len(data) > self._largest_message and not session.answered:
            return [session.too_large()]
        if len(data) > MESSAGE_OVERHEAD and bytes_beside_body(data, MESSAGE_OVERHEAD) > MESSAGE_OVERHEAD:
            raise ProtocolError(f"a message has more than {MESSAGE_OVERHEAD} bytes beside its body")
        return session.receive(ProcessingRequest.FromString(data), self._clock())

    async def _answer(self, session: Session) -> list[bytes]:
        """Read a complete request, choose its endpoint, and return the replies."""
        if session.takes_long:
            await self._threads.run(session.parse)
        else:
            session.parse()
        if session.rejection is None:
            began = perf_counter()
            session.pick(self._clock())
            self._observer.picked(perf_counter() - began)
        return session.reply()

    def _report(self, stream: _Stream) -> None:
        """Tell the observer how the request was answered."""
        stream.reported = True
        session, observer = stream.session, self._observer
        observer.processed(stream.worked)
        if session.decision is not None:
            observer.routed(session.decision, model=session.request.model, body_bytes=session.body_bytes)
        elif session.rejection is not None:
            observer.rejected(session.rejection, session.request.model)

    # ---------------------------------------------------------------- streams that end with an error

    async def _abort(self, stream: _Stream, context: Context, error: str) -> bytes:
        """The peer broke the protocol."""
        self._observer.stream_broken("protocol-error")
        logger.warning("stream aborted", extra={"fields": {"request": stream.session.request_id, "error": error}})
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, error)
        return replies.NOTHING

    async def _time_out(self, stream: _Stream, context: Context) -> bytes:
        """The request did not arrive in time: 408, or the end of the stream if no message of a request has come."""
        if stream.session.state is State.START:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no request arrived in time")
        last = stream.session.overdue()
        if not stream.reported:
            self._report(stream)
        return last

    def _failed(self, stream: _Stream) -> bytes:
        """An error of the picker's own: 500 on this stream alone."""
        self._observer.stream_broken("internal")
        if stream.session.answered:
            return replies.NOTHING
        last = stream.session.failed()
        self._report(stream)
        return last

    async def _end_overdue_streams(self) -> None:
        """Cancel the task of every overdue stream. One task for all: a timeout around each read would cost every request as
        much as parsing it."""
        while True:
            await asyncio.sleep(min(WATCH_INTERVAL, self._options.body_timeout))
            now = self._clock()
            for task, stream in self._streams.items():
                if stream.due > now:
                    break
                if stream.session.awaits_client and not stream.overdue:
                    stream.overdue = True
                    task.cancel()
