"""The ext_proc service: Envoy's streams to sessions, deadlines, TLS, drain. What to reply is decided in the session.

A message that takes little is answered within the call that brings it. A long body is read in a thread, and the stream's
further messages wait until then.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

from google.protobuf.message import DecodeError

from warmroute.errors import ProtocolError
from warmroute.extproc import headers, health
from warmroute.extproc.dry_run import DryRun
from warmroute.extproc.ext_proc_pb2 import ProcessingRequest
from warmroute.extproc.observer import Observer
from warmroute.extproc.reading_threads import ReadingThreads
from warmroute.extproc.session import Session
from warmroute.extproc.transitions import State
from warmroute.extproc.wire import bytes_beside_body
from warmroute.grpc_server.connection import IGNORE, Call, Handler, Limits
from warmroute.grpc_server.frames import Status
from warmroute.grpc_server.server import GrpcServer
from warmroute.log_throttle import LogThrottle
from warmroute.request.limits import LONG_BODY
from warmroute.request.stream_ends import RefusalReason

logger = logging.getLogger(__name__)

METHOD = f"/{health.EXT_PROC_SERVICE}/Process"
MESSAGE_OVERHEAD = 1 << 20
"""Bytes that a gRPC message may have beyond the request body: headers, metadata, framing."""
WATCH_INTERVAL = 1.0
"""Seconds between two searches for overdue requests."""
REFUSAL_LOG_INTERVAL = 10.0
"""Least seconds between two log lines about refused streams."""
OTHER_CALLS = 1000
"""Open calls of a port beside the streams: health checks, and streams that are refused."""


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
        self._new_session = new_session
        self._ready = ready
        self._was_ready = False
        """The picker has been ready once; from then on it answers every stream."""
        self._draining = False
        self._refusals = LogThrottle(REFUSAL_LOG_INTERVAL)
        self._streams: dict[Stream, None] = {}
        """The open streams, oldest first."""
        self._streams_opened = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._deadlines: asyncio.Task[None] | None = None
        self.observer = observer
        self.clock = clock
        self.threads = ReadingThreads()
        self.dry_run = DryRun(new_session, self.threads, clock)
        self.body_timeout = options.body_timeout
        """Seconds from a stream's beginning until its request must have come, and from the answer until it must be taken."""
        self.largest_message = options.max_body_bytes + MESSAGE_OVERHEAD
        """Bytes of a message of which the session sees the body."""
        checks = health.methods(lambda: self.ready)
        # Twice the largest message: bodies that are too long should reach the session, which answers 413. Beyond this limit
        # the stream ends with an error, and Envoy answers 500.
        limits = Limits(2 * self.largest_message, options.max_streams + OTHER_CALLS)
        self._ext_proc = GrpcServer({METHOD: self._open, **checks}, limits)
        self._health = GrpcServer(checks, Limits(MESSAGE_OVERHEAD, OTHER_CALLS))
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
        tls = self._tls()
        self.grpc_port = await self._ext_proc.start(options.host, options.grpc_port, "--grpc-port", tls)
        self.grpc_health_port = await self._health.start(options.host, options.grpc_health_port, "--grpc-health-port")
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
            if self._streams:
                logger.warning("drain timeout: streams are cut off", extra={"fields": {"streams": self.open_streams}})

    async def stop(self) -> None:
        """Stop listening and end what is open. Safe to call before ``start`` and again."""
        if self._deadlines is not None:
            self._deadlines.cancel()
        for server in (self._ext_proc, self._health):
            await server.stop(grace=0.5)
        await self.threads.stop()

    def _tls(self) -> ssl.SSLContext | None:
        options = self._options
        if not options.secure_serving:
            return None
        from warmroute.extproc import tls  # cryptography takes 8 MB, which are saved behind a sidecar without TLS

        if options.cert_path is None:
            return tls.self_signed()
        return tls.from_directory(options.cert_path, lambda ok: self.observer.reloaded("certificate", ok=ok))

    @property
    def ready(self) -> bool:
        """Requests can be routed, and no end is near: what the health service calls readiness."""
        return not self._draining and self._ready()

    # ---------------------------------------------------------------- streams

    def _open(self, call: Call) -> Handler:
        """A stream of one request; it is ended here if it cannot be served."""
        if not self._was_ready:
            if not self._ready():
                return self._refuse(call, "not-synced", Status.UNAVAILABLE, "the pool is not synced")
            self._was_ready = True
        if len(self._streams) >= self._options.max_streams:
            return self._refuse(call, "max-streams", Status.RESOURCE_EXHAUSTED, "too many streams")
        stream = Stream(self, call, self._new_session(), self.clock() + self.body_timeout)
        if self._options.tracing:
            stream.session.gateway_traceparent = headers.trace_context_of(call.headers.items())
        self._streams[stream] = None
        self._streams_opened += 1
        self._idle.clear()
        self.observer.stream_opened()
        return stream

    def _refuse(self, call: Call, reason: RefusalReason, status: Status, details: str) -> Handler:
        self.observer.stream_refused(reason)
        refused = self._refusals.add(self.clock())
        if refused:
            logger.warning("streams refused", extra={"fields": {"reason": reason, "streams": refused}})
        call.finish(status, details)
        return IGNORE

    def ended(self, stream: Stream) -> None:
        """The stream is over, well or not, and nothing works on it."""
        del self._streams[stream]
        session = stream.session
        session.finish(self.clock())
        if not self._streams:
            self._idle.set()
        self.observer.stream_closed()
        if session.response_status is not None:
            self.observer.responded(session.response_status)

    async def _end_overdue_streams(self) -> None:
        """One task for all: a timer for each stream would cost every request as much as parsing it."""
        while True:
            await asyncio.sleep(min(WATCH_INTERVAL, self.body_timeout))
            now = self.clock()
            for stream in [stream for stream in self._streams if stream.due <= now]:
                stream.end_if_overdue()


class Stream:
    """One ext_proc stream: gives the session its messages, one after the other, and sends its replies."""

    __slots__ = (
        "_call",
        "_over",
        "_reported",
        "_server",
        "_work",
        "_worked",
        "due",
        "session",
    )

    def __init__(self, server: Server, call: Call, session: Session, due: float) -> None:
        self._server = server
        self._call = call
        self._worked = 0.0
        """Seconds spent on its messages."""
        self._reported = False
        """The observer knows how the request was answered."""
        self._work: asyncio.Task[None] | None = None
        """Reads a long body in a thread. The call is paused meanwhile."""
        self._over = False
        self.session = session
        self.due = due
        """Time by which the request must have come, and once it is answered, by which Envoy must have taken the answer."""

    # ---------------------------------------------------------------- the handler of the call

    def message(self, data: bytes) -> None:
        """A message from Envoy."""
        if len(data) >= LONG_BODY:
            self._start(self._read_long(data, []))
            return
        session = self.session
        chunk = session.pass_chunk(data)
        if chunk is not None:
            self._call.send(chunk)
            if not self._call.unsent:
                session.release_reply()
            return
        began = perf_counter()
        try:
            replies = self._receive(data)
            if session.complete:
                if session.takes_long:
                    self._start(self._read_long(None, replies))
                    return
                session.parse()
                replies += self._answer()
        except Exception as error:
            self._fail(error)
            return
        self._worked += perf_counter() - began
        self._send(replies)

    def arriving(self, size: int) -> None:
        """Take memory for the part of a long message that has come. 413 if it is too long, 503 if there is no memory."""
        session = self.session
        if self._work is not None:  # a thread uses the session, and no more than a window comes
            return
        if size > self._server.largest_message and not session.answered:
            self._send([session.too_large()])
        elif not session.hold_arriving(size):
            if session.answered:
                self._call.finish(Status.RESOURCE_EXHAUSTED, "there is no memory for the message")
            else:
                self._send([session.overloaded()])

    def waiting(self, size: int) -> None:
        """Take memory for replies that Envoy does not take. Without it the stream ends."""
        if not self.session.hold_replies(size):
            self._call.abort()

    def half_closed(self) -> None:
        """Envoy sends no more."""
        self._call.finish()

    def written(self) -> None:
        """All replies are written."""
        self.session.release_reply()

    def closed(self) -> None:
        """The call is over; the session is closed once no thread works on it."""
        self._over = True
        if self._work is None:
            self._server.ended(self)
        else:
            self._work.cancel()

    # ---------------------------------------------------------------- messages and replies

    def _receive(self, data: bytes) -> list[bytes]:
        session, server = self.session, self._server
        if len(data) > MESSAGE_OVERHEAD:
            if len(data) > server.largest_message and not session.answered:
                return [session.too_large()]
            if bytes_beside_body(data, MESSAGE_OVERHEAD) > MESSAGE_OVERHEAD:
                raise ProtocolError(f"a message has more than {MESSAGE_OVERHEAD} bytes beside its body")
        return session.receive(ProcessingRequest.FromString(data), server.clock())

    def _answer(self) -> list[bytes]:
        """Choose the endpoint of a request that has been read. Returns the replies."""
        session, server = self.session, self._server
        if session.rejection is None:
            began = perf_counter()
            session.pick(server.clock())
            server.observer.picked(perf_counter() - began)
        return session.reply()

    def _send(self, replies: list[bytes]) -> None:
        session, call = self.session, self._call
        if not self._reported and session.answered:
            self._report()
        for reply in replies:
            call.send(reply)
        if session.closed:
            call.finish()
        elif not call.unsent:
            session.release_reply()

    def _report(self) -> None:
        """Tell the observer how the request was answered."""
        self._reported = True
        session, observer = self.session, self._server.observer
        self.due = self._server.clock() + self._server.body_timeout
        observer.processed(self._worked)
        if session.decision is not None:
            observer.routed(session.decision, model=session.request.model, body_bytes=session.body_bytes)
        elif session.rejection is not None:
            observer.rejected(session.rejection, session.request.model)

    # ---------------------------------------------------------------- long bodies

    def _start(self, work: Coroutine[None, None, None]) -> None:
        self._call.pause()
        self._work = asyncio.create_task(work)
        self._work.add_done_callback(self._work_ended)

    async def _read_long(self, data: bytes | None, replies: list[bytes]) -> None:
        """Receive a long message, if ``data`` is one, and answer the request if it is complete; long steps in threads."""
        session, threads = self.session, self._server.threads
        began = perf_counter()
        try:
            if data is not None:
                received = partial(self._receive, data)
                del data  # it may be large
                replies = await threads.run(received)
                del received
            if session.complete:
                await threads.parse(session)
                replies += self._answer()
        except Exception as error:
            self._fail(error)
            return
        self._worked += perf_counter() - began
        self._send(replies)

    def _work_ended(self, work: asyncio.Task[None]) -> None:
        """The long body is read, or its call is over."""
        self._work = None
        if self._over:
            self._server.ended(self)
        else:
            self._call.resume()

    # ---------------------------------------------------------------- streams that end with an error

    def end_if_overdue(self) -> None:
        """The request should have come: 408, or the end of the stream if nothing of it has. Or the answer should have been
        taken: the end."""
        session, call = self.session, self._call
        if self._work is not None:
            return
        if session.awaits_client:
            if session.state is State.START:
                call.finish(Status.DEADLINE_EXCEEDED, "no request arrived in time")
            else:
                self._send([session.overdue()])
        elif call.unsent and session.response_status is None:
            # Once the response has begun, Envoy may take its chunks as slowly as its own client does.
            call.abort()

    def _fail(self, error: Exception) -> None:
        """An error of the peer's or of the picker's own ends this stream alone."""
        session, observer = self.session, self._server.observer
        fields = {"request": session.request_id}
        if isinstance(error, ProtocolError | DecodeError):
            # Its frames would hold the message, which may be large, until they are collected.
            error.__traceback__ = None
            observer.stream_broken("protocol-error")
            logger.warning("stream aborted", extra={"fields": fields | {"error": str(error)}})
            self._call.finish(Status.INVALID_ARGUMENT, str(error))
            return
        observer.stream_broken("internal")
        logger.error("request failed", exc_info=error, extra={"fields": fields})
        if session.answered:
            self._call.finish()
        else:
            self._send([session.failed()])
