"""The gRPC server: Envoy's streams to sessions, health, TLS, drain. Everything that can be decided is decided elsewhere."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Protocol

import grpc
from google.protobuf.message import DecodeError

from warmroute.errors import ConfigurationError, ProtocolError
from warmroute.extproc import health, replies
from warmroute.extproc.ext_proc_pb2 import ProcessingRequest
from warmroute.extproc.session import Session

logger = logging.getLogger(__name__)

MESSAGE_OVERHEAD = 1 << 20
"""Bytes that a gRPC message may have beyond the request body: headers, metadata, framing."""

WATCH_INTERVAL = 1.0
"""Seconds between two looks for requests that do not arrive in time."""


class Observer(Protocol):
    """Hears what happens on the streams; called synchronously, so it must be quick."""

    def stream_opened(self) -> None:
        """Envoy opened a stream."""

    def stream_answered(self, session: Session, seconds: float) -> None:
        """The session has its decision or its rejection, after ``seconds`` of our own work."""

    def stream_closed(self, session: Session) -> None:
        """The stream has ended, in whatever way."""

    def stream_broken(self, reason: Literal["protocol-error", "internal"]) -> None:
        """The stream ended by a mistake of the proxy's or of ours."""

    def certificate_reloaded(self, ok: bool) -> None:
        """The certificate changed; if not ``ok``, it cannot be used, and the former one stays."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How to listen; the settings of the same names say what each means."""

    host: str = ""
    grpc_port: int = 9002
    grpc_health_port: int = 9003
    secure_serving: bool = True
    cert_path: Path | None = None
    max_body_bytes: int = 32 << 20
    body_timeout: float = 60.0
    max_streams: int = 20_000


@dataclass(slots=True)
class _Stream:
    session: Session
    due: float
    overdue: bool = False
    """Its task is cancelled because the request did not arrive in time."""


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
        self._observer = observer
        self._ready = ready
        self._clock = clock
        self._draining = False
        self._streams: dict[asyncio.Task[Any], _Stream] = {}
        """The open streams by their tasks, oldest first."""
        self._watch: asyncio.Task[None] | None = None
        self._streams_opened = 0
        self._idle = asyncio.Event()
        self._idle.set()
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

    async def start(self) -> None:
        """Listen. Raises ConfigurationError if a port is taken or a certificate cannot be used."""
        options = self._options
        # Twice the body limit: a body over the limit shall reach the session, which answers 413; gRPC would answer 500.
        largest = 2 * options.max_body_bytes + MESSAGE_OVERHEAD
        self._ext_proc = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", min(largest, 2**31 - 1)),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ),
        )
        # Stream-unary, though the method is stream-stream and looks so to Envoy: gRPC then sends the last reply and the
        # status in one batch. Each batch is a trip through its poller: with one less a small request takes a tenth less CPU.
        process = grpc.stream_unary_rpc_method_handler(self._process, request_deserializer=ProcessingRequest.FromString)
        self._ext_proc.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(health.EXT_PROC_SERVICE, {"Process": process}),)
        )
        health.add(self._ext_proc, self._is_ready)
        credentials = None
        if options.secure_serving:
            from warmroute.extproc import tls  # cryptography takes 8 MB, which are saved behind a sidecar without TLS

            if options.cert_path is None:
                credentials = tls.self_signed()
            else:  # which is looked at in a thread of gRPC's; the observer hears of it in its own
                loop, hear = asyncio.get_running_loop(), self._observer.certificate_reloaded
                credentials = tls.from_directory(options.cert_path, lambda ok: loop.call_soon_threadsafe(hear, ok))
        self.grpc_port = self._bind(self._ext_proc, options.grpc_port, "--grpc-port", credentials)
        self._health = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        health.add(self._health, self._is_ready)
        self.grpc_health_port = self._bind(self._health, options.grpc_health_port, "--grpc-health-port", None)
        await self._ext_proc.start()
        await self._health.start()
        self._watch = asyncio.create_task(self._end_overdue_streams(), name="overdue streams")

    async def drain(self, seconds: float, quiet: float = 0.0) -> None:
        """Be not ready and serve on until no stream was open for ``quiet`` seconds, ``seconds`` at the most.

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
            logger.warning("requests still come or are open", extra={"fields": {"streams": self.open_streams}})

    async def stop(self) -> None:
        """Stop listening and end what is open."""
        if self._watch is not None:
            self._watch.cancel()
        for server in (self._ext_proc, self._health):
            if server is not None:
                await server.stop(grace=0.5)

    def _is_ready(self) -> bool:
        return not self._draining and self._ready()

    def _bind(self, server: grpc.aio.Server, port: int, flag: str, credentials: grpc.ServerCredentials | None) -> int:
        host = self._options.host
        hosts = (f"[{host}]" if ":" in host else host,) if host else ("[::]", "0.0.0.0")
        for candidate in hosts:  # without IPv6 the first cannot be bound
            address = f"{candidate}:{port}"
            try:
                bound = (
                    server.add_insecure_port(address)
                    if credentials is None
                    else server.add_secure_port(address, credentials)
                )
            except RuntimeError:
                bound = 0
            if bound:
                return bound
        raise ConfigurationError(f"cannot listen on port {port} ({flag}): is it in use?")

    async def _process(self, _: object, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        """One stream; returns its last reply."""
        # gRPC's own limit would count health checks, too: Envoy would leave a picker that is merely busy.
        if len(self._streams) >= self._options.max_streams:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams")
        session = self._new_session()
        observer, clock = self._observer, self._clock
        task = asyncio.current_task()
        assert task is not None
        stream = self._streams[task] = _Stream(session, clock() + self._options.body_timeout)
        self._streams_opened += 1
        self._idle.clear()
        observer.stream_opened()
        worked = 0.0
        answered = False
        try:
            while True:
                message = await context.read()
                if message is grpc.aio.EOF:  # type: ignore[attr-defined]  # missing in the stubs
                    return replies.NOTHING
                began = perf_counter()
                sent = session.receive(message, clock())
                worked += perf_counter() - began
                if not answered and session.answered:
                    answered = True
                    observer.stream_answered(session, worked)
                last = sent.pop() if session.closed else None
                for reply in sent:
                    await context.write(reply)
                if last is not None:
                    return last
        except (ProtocolError, DecodeError) as error:
            observer.stream_broken("protocol-error")
            logger.warning("stream aborted", extra={"fields": {"request": session.request_id, "error": str(error)}})
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except asyncio.CancelledError:
            if not stream.overdue:
                raise  # the client or the proxy went away
            task.uncancel()
            last = session.overdue()
            observer.stream_answered(session, worked)
            return last
        except grpc.aio.InternalError:  # the client or the proxy went away while it was being told
            return replies.NOTHING
        except Exception:
            observer.stream_broken("internal")
            logger.exception("request failed", extra={"fields": {"request": session.request_id}})
            if session.answered:
                return replies.NOTHING
            last = session.failed()
            observer.stream_answered(session, worked)
            return last
        finally:
            session.finish(clock())
            del self._streams[task]
            if not self._streams:
                self._idle.set()
            observer.stream_closed(session)

    async def _end_overdue_streams(self) -> None:
        """One watch over all streams: a timeout around each read would cost every request as much as parsing it."""
        while True:
            await asyncio.sleep(min(WATCH_INTERVAL, self._options.body_timeout))
            now = self._clock()
            for task, stream in self._streams.items():
                if stream.due > now:
                    break
                if stream.session.overdue_matters and not stream.overdue:
                    stream.overdue = True
                    task.cancel()
