"""The log as a stream of NATS JetStream: one connection, from opening to its end.

The stream is in memory, bounded by age and bytes, and is made by the first picker that connects. It is read by an ordered
consumer (no acknowledgements; the client notices a gap and asks again). Batches are published without waiting for an
acknowledgement: a picker reads its own batches back, and that shows that the log works.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import NamedTuple, Self

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoServersError
from nats.js import JetStreamContext, api
from nats.js.errors import BadRequestError, NotFoundError, ServiceUnavailableError

from warmroute.errors import WarmrouteError

CONNECT_TIMEOUT = 2.0
"""Seconds for a connection, and for each question to the server."""
MOST_REPLAYED = 8 << 20
"""Bytes of the log that a picker reads at its start, the newest: about 120,000 decisions, 3 seconds of work
(docs/shared-state.md)."""
LARGEST_BATCH = 1 << 20
"""Bytes of a message, NATS's own default."""


class LogError(WarmrouteError):
    """The log cannot be reached or used; the message says why."""


@dataclass(frozen=True, slots=True)
class LogOptions:
    """Where the log is and how large it may be."""

    servers: tuple[str, ...]
    """URLs: ``nats://host:4222`` or ``tls://host:4222``, with ``user:password@`` if that is how one logs in."""
    subject: str
    """Of the pool's batches."""
    credentials: Path | None
    """A ``.creds`` file."""
    tls: Path | None
    """A directory with ``ca.crt``, and ``tls.crt`` and ``tls.key`` if the server asks for a client's certificate."""
    max_age: float
    max_bytes: int
    replicas: int

    @property
    def stream(self) -> str:
        """Name of the stream; it may not have dots."""
        return self.subject.replace(".", "_")


class Entry(NamedTuple):
    """A batch as it stands in the log."""

    data: bytes
    number: int
    """Its place in the log."""
    stamped_at: float
    """When the server stored it, in seconds of the server's clock."""


class Position(NamedTuple):
    """Where to go on reading, in a log that began at ``created``."""

    created: str
    number: int


class NatsLog:
    """One connection. ``received`` is called for each entry, one after the other."""

    def __init__(self, options: LogOptions, received: Callable[[Entry], Awaitable[None]]) -> None:
        self._options = options
        self._received = received
        self._client = Client()
        self._stream: JetStreamContext = self._client.jetstream(timeout=CONNECT_TIMEOUT)
        self._closed = asyncio.Event()
        self._error = "the connection was closed"
        self.created = ""
        """When the log was made: another log has another time."""
        self.most_bytes = LARGEST_BATCH
        """Bytes of a batch that the server takes."""

    async def __aenter__(self) -> Self:
        """Connect, and make the log if there is none. Raises LogError."""
        options = self._options
        try:
            async with asyncio.timeout(2 * CONNECT_TIMEOUT):
                await self._client.connect(
                    list(options.servers),
                    name="warmroute",
                    allow_reconnect=False,
                    max_reconnect_attempts=1,  # of each server; the owner of this connection tries again
                    reconnect_time_wait=0,
                    connect_timeout=round(CONNECT_TIMEOUT),
                    user_credentials=None if options.credentials is None else str(options.credentials),
                    tls=None if options.tls is None else tls_context(options.tls),
                    error_cb=self._failed,
                    closed_cb=self._ended,
                )
                await self._make()
        except NoServersError as error:
            await self._close()
            raise LogError(self._error) from error
        except (NatsError, OSError, TimeoutError, ValueError) as error:
            await self._close()
            raise LogError(reason(error)) from error
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    @property
    def server(self) -> str:
        """``host:port`` of the server that answered."""
        url = self._client.connected_url
        return f"{url.hostname}:{url.port}" if url is not None else ""

    async def _make(self) -> None:
        options = self._options
        config = api.StreamConfig(
            name=options.stream,
            subjects=[options.subject],
            storage=api.StorageType.MEMORY,
            discard=api.DiscardPolicy.OLD,
            max_age=options.max_age,
            max_bytes=options.max_bytes,
            max_msg_size=LARGEST_BATCH,
            num_replicas=options.replicas,
            allow_direct=True,
        )
        try:
            info = await self._stream.stream_info(options.stream)
        except NotFoundError:
            try:
                info = await self._stream.add_stream(config)
            except BadRequestError:  # another picker with other settings was faster
                info = await self._stream.stream_info(options.stream)
        self.created = str(info.created)
        limits = (LARGEST_BATCH, self._client.max_payload, info.config.max_msg_size or -1)
        self.most_bytes = min(limit for limit in limits if limit > 0)  # -1: the stream has no limit

    async def begin(self, hello: bytes) -> tuple[Entry, float, float]:
        """Publish ``hello`` and wait until it is stored. Returns it as stored, and the times before and after, in monotonic
        seconds. Raises LogError."""
        options = self._options
        try:
            before = monotonic()
            stored = await self._stream.publish(options.subject, hello, stream=options.stream)
            after = monotonic()
            message = await self._stream.get_msg(options.stream, seq=stored.seq)
        except (NatsError, OSError, TimeoutError) as error:
            raise LogError(reason(error)) from error
        if message.time is None:
            raise LogError("the server does not say when it stored a message")
        return Entry(hello, stored.seq, message.time.timestamp()), before, after

    async def read(self, since: Position | None) -> None:
        """Read from ``since`` on if that is of this log, else the newest :data:`MOST_REPLAYED` bytes. Raises LogError."""
        options = self._options
        config = api.ConsumerConfig(deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE)
        try:
            state = (await self._stream.stream_info(options.stream)).state
            config.opt_start_seq = state.first_seq
            if since is not None and since.created == self.created:
                config.opt_start_seq = since.number + 1
            elif state.bytes > MOST_REPLAYED:
                config.opt_start_seq = state.last_seq - state.messages * MOST_REPLAYED // state.bytes
            await self._stream.subscribe(
                options.subject, stream=options.stream, config=config, ordered_consumer=True, cb=self._message
            )
        except (NatsError, OSError, TimeoutError) as error:
            raise LogError(reason(error)) from error

    async def publish(self, batch: bytes) -> None:
        """Send a batch. Raises LogError if the connection is gone or the server does not take it in time."""
        if self._closed.is_set():
            raise LogError(self._error)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):  # cheaper than wait_for(), which makes a task
                await self._client.publish(self._options.subject, batch)
        except (NatsError, OSError, TimeoutError) as error:
            raise LogError(reason(error)) from error

    async def flush(self) -> None:
        """Wait until the server has what was published. Raises LogError."""
        try:
            await self._client.flush(timeout=round(CONNECT_TIMEOUT))
        except (NatsError, OSError, TimeoutError) as error:
            raise LogError(reason(error)) from error

    async def _message(self, message: Msg) -> None:
        where = message.metadata
        await self._received(Entry(message.data, where.sequence.stream, where.timestamp.timestamp()))

    async def _failed(self, error: Exception) -> None:
        self._error = reason(error)

    async def _ended(self) -> None:
        self._closed.set()

    async def _close(self) -> None:
        try:
            await asyncio.wait_for(self._client.close(), CONNECT_TIMEOUT)
        except (NatsError, OSError, TimeoutError):
            pass  # it is as closed as it can be


def tls_context(directory: Path) -> ssl.SSLContext:
    """The TLS settings of a client. Raises OSError or ssl.SSLError if a file cannot be read."""
    context = ssl.create_default_context(cafile=str(directory / "ca.crt"))
    certificate = directory / "tls.crt"
    if certificate.exists():
        context.load_cert_chain(certificate, directory / "tls.key")
    return context


def reason(error: BaseException) -> str:
    """Why something failed, in a few words."""
    if isinstance(error, ServiceUnavailableError) and error.description is None:  # nobody answers for JetStream
        return "the server has no JetStream: start it with `nats-server -js`"
    return str(error) or type(error).__name__
