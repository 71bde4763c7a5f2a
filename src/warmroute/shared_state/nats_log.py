"""The log as a stream of NATS JetStream: one connection, from opening to its end.

The stream is in memory, bounded by age and bytes, and is made by the first picker that connects; a stream that is there gets
the limits of the settings. It is read by an ordered consumer (no acknowledgements; the client notices a gap and asks again).
Batches are published without waiting for an acknowledgement: a picker reads its own batches back, and that shows that the
log works.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import shuffle
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple, Self

from nats.aio.client import Client, Srv
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoServersError
from nats.js import JetStreamContext, api
from nats.js.errors import BadRequestError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from warmroute.errors import WarmrouteError
from warmroute.shared_state.credentials import Credentials, parse

CONNECT_TIMEOUT = 2.0
"""Seconds for a connection, and for each question to the server."""
MOST_REPLAYED = 8 << 20
"""Bytes of the log that a picker reads at its start, the newest: about 120,000 decisions, 3 seconds of work
(docs/shared-state.md)."""
LARGEST_BATCH = 1 << 20
"""Bytes of a message, NATS's own default."""
LARGEST_CREDENTIALS = 64 << 10
"""Bytes of a credentials file that are read."""
SAME_TIME = 0.001
"""Seconds by which two times of one entry may differ: the client rounds them."""
NAME_IN_USE = 10058
"""JetStream's code of an error: there is a stream of that name, with other settings."""


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
    """A directory with ``ca.crt``, and ``tls.crt`` and ``tls.key`` if the server asks for a client's certificate. With it,
    as with ``tls://``, a server without TLS is refused."""
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
    """Where reading ended, in a log that was made at ``created``."""

    created: str
    number: int
    """Of the last entry that was read; 0: none was."""
    stamped_at: float
    """When that one was stored, in seconds of the server's clock."""


class _Client(Client):
    """NATS's client, but it tries all members that a name stands for, and one that is to use TLS sends nothing without it:
    the library takes a server's word that it has none, and logs in."""

    needs_tls = False
    """TLS is needed whatever the server's URL says."""

    async def _connect_to_server(self, s: Srv) -> None:
        """To the addresses of its name in any order: the resolver may name one first each time, and that member may hang.
        Raises OSError or TimeoutError."""
        host, port = s.uri.hostname, s.uri.port
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(address[0]) for *_, address in found]
        if len(addresses) == 1 or s.uri.scheme in ("ws", "wss"):
            await super()._connect_to_server(s)
            return
        shuffle(addresses)
        while addresses:
            address = addresses.pop()
            netloc = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            try:
                await super()._connect_to_server(replace(s, uri=s.uri._replace(netloc=netloc)))
                return
            except (OSError, TimeoutError):
                if not addresses:
                    raise

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """The server has said what it offers, before anything is sent to it. Raises NatsError."""
        scheme = "" if self._current_server is None else self._current_server.uri.scheme
        if initial_connection and (scheme == "tls" or (self.needs_tls and scheme != "wss")):
            if scheme == "ws" or not (info.get("tls_required") or info.get("tls_available")):
                raise NatsError("the server has no TLS")
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)


class NatsLog:
    """One connection. ``received`` is called for each entry, one after the other."""

    def __init__(self, options: LogOptions, received: Callable[[Entry], Awaitable[None]]) -> None:
        self._options = options
        self._received = received
        self._client = _Client()
        self._client.needs_tls = options.tls is not None
        self._stream: JetStreamContext = self._client.jetstream(timeout=CONNECT_TIMEOUT)
        self._closed = asyncio.Event()
        self._error = ""
        """What the server or the client has said last of an error."""
        self.created = ""
        """When the log was made: another log has another time."""
        self.keeps_limits = ""
        """Why the log keeps limits that are not those of the settings; empty if it has these."""
        self.changed_limits = False
        """Whether this connection gave the log the limits of the settings."""
        self.most_bytes = LARGEST_BATCH
        """Bytes of a batch that the server takes."""

    async def __aenter__(self) -> Self:
        """Connect, and make the log if there is none. Raises LogError."""
        options = self._options
        user, tls = read_files(options)
        try:
            async with asyncio.timeout(2 * CONNECT_TIMEOUT):
                await self._client.connect(
                    list(options.servers),
                    name="warmroute",
                    allow_reconnect=False,
                    max_reconnect_attempts=1,  # of each server; the owner of this connection tries again
                    reconnect_time_wait=0,
                    connect_timeout=round(CONNECT_TIMEOUT),
                    user_jwt_cb=None if user is None else user.jwt.encode,
                    signature_cb=None if user is None else user.sign,
                    tls=tls,
                    error_cb=self._failed,
                    closed_cb=self._ended,
                )
                self._error = ""  # that of another server explains nothing of this one
                await self._make()
        except NoServersError as error:
            await self._close()
            raise LogError(self._error or reason(error)) from error
        except (NatsError, OSError, TimeoutError, ValueError) as error:
            await self._close()
            raise self._failure(error) from error
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
            except BadRequestError as error:
                if error.err_code != NAME_IN_USE:
                    raise
                # Another picker with other settings was faster.
                info = await self._stream.stream_info(options.stream)
        info = await self._with_limits(info)
        self.created = str(info.created)
        limits = (LARGEST_BATCH, self._client.max_payload, info.config.max_msg_size or -1)
        self.most_bytes = min(limit for limit in limits if limit > 0)  # -1: the stream has no limit

    async def _with_limits(self, info: api.StreamInfo) -> api.StreamInfo:
        """Give a log that was there the limits of the settings. If the server refuses that, it is used as it is."""
        options = self._options
        wanted = {"max_age": options.max_age, "max_bytes": options.max_bytes, "num_replicas": options.replicas}
        if all(getattr(info.config, name) == value for name, value in wanted.items()):
            return info
        duplicates = min(info.config.duplicate_window or 0.0, options.max_age)  # NATS wants no longer time for them
        try:
            info = await self._stream.update_stream(info.config.evolve(**wanted, duplicate_window=duplicates))
            self.changed_limits = True
        except NatsError as error:
            self.keeps_limits = str(self._failure(error))
            self._error = ""  # it explains no later failure
        return info

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
            raise self._failure(error) from error
        if message.time is None:
            raise LogError("the server does not say when it stored a message")
        return Entry(hello, stored.seq, message.time.timestamp()), before, after

    async def read(self, since: Position | None) -> None:
        """Read what was stored after ``since`` if the log still has that, else the newest :data:`MOST_REPLAYED` bytes.
        Raises LogError."""
        options = self._options
        config = api.ConsumerConfig(deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE)
        try:
            state = (await self._stream.stream_info(options.stream)).state
            config.opt_start_seq = state.first_seq
            if since is not None and await self._goes_on_from(since, state):
                config.opt_start_seq = since.number + 1
            elif state.bytes > MOST_REPLAYED:
                config.opt_start_seq = state.last_seq - state.messages * MOST_REPLAYED // state.bytes
            await self._stream.subscribe(
                options.subject, stream=options.stream, config=config, ordered_consumer=True, cb=self._message
            )
        except (NatsError, OSError, TimeoutError) as error:
            raise self._failure(error) from error

    async def _goes_on_from(self, since: Position, state: api.StreamState) -> bool:
        """Whether the log still is the one that was read up to there. Once all members of a cluster have restarted, the log
        has the same ``created``, but it is empty, and its numbers begin at 1 again. Raises NatsError."""
        if since.created != self.created or since.number > state.last_seq:
            return False
        if since.number < state.first_seq:
            return True  # too old: what follows begins with the oldest one
        try:
            message = await self._stream.get_msg(self._options.stream, seq=since.number)
        except NotFoundError:
            return False
        return message.time is not None and abs(message.time.timestamp() - since.stamped_at) < SAME_TIME

    async def publish(self, batch: bytes) -> None:
        """Send a batch. Raises LogError if the connection is gone or the server does not take it in time."""
        if self._closed.is_set():
            raise LogError(self._error or "the connection was closed")
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._client.publish(self._options.subject, batch)
        except (NatsError, OSError, TimeoutError) as error:
            raise self._failure(error) from error

    async def flush(self) -> None:
        """Wait until the server has what was published. Raises LogError."""
        try:
            await self._client.flush(timeout=round(CONNECT_TIMEOUT))
        except (NatsError, OSError, TimeoutError) as error:
            raise self._failure(error) from error

    @property
    def error(self) -> str:
        """What the server or the client has said last of an error; empty if nothing."""
        return self._error

    async def _message(self, message: Msg) -> None:
        where = message.metadata
        await self._received(Entry(message.data, where.sequence.stream, where.timestamp.timestamp()))

    async def _failed(self, error: Exception) -> None:
        self._error = reason(error)

    def _failure(self, error: Exception) -> LogError:
        """What went wrong. A server does not answer what a user may not do, but says so."""
        return LogError(self._error if self._error and isinstance(error, TimeoutError) else reason(error))

    async def _ended(self) -> None:
        self._closed.set()

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._client.close()
        except (NatsError, OSError, TimeoutError):
            pass  # it is as closed as it can be


def read_files(options: LogOptions) -> tuple[Credentials | None, ssl.SSLContext | None]:
    """The credentials and the TLS settings, if there are any. Raises LogError that says which file lacks what."""
    try:
        user = None if options.credentials is None else _read_credentials(options.credentials)
        return user, None if options.tls is None else _tls_context(options.tls)
    except (OSError, ValueError) as error:
        raise LogError(reason(error)) from error


def _read_credentials(path: Path) -> Credentials:
    """Raises OSError or ValueError."""
    with path.open("rb") as file:
        content = file.read(LARGEST_CREDENTIALS)
    try:
        return parse(content)
    except ValueError as error:
        raise ValueError(f"the credentials file {path}: {error}") from None


def _tls_context(directory: Path) -> ssl.SSLContext:
    """Raises ValueError."""
    try:
        context = ssl.create_default_context(cafile=str(directory / "ca.crt"))
        certificate = directory / "tls.crt"
        if certificate.exists():
            context.load_cert_chain(certificate, directory / "tls.key")
    except OSError as error:  # an ssl.SSLError is one, and neither names the file
        raise ValueError(f"ca.crt, tls.crt or tls.key in {directory}: {error.strerror or error}") from error
    return context


def reason(error: BaseException) -> str:
    """Why something failed, in a few words."""
    if isinstance(error, ServiceUnavailableError) and error.description is None:  # nobody answers for JetStream
        return "the server has no JetStream: start it with `nats-server -js`"
    if isinstance(error, NoStreamResponseError):
        return "no NATS server leads the log: more than half of those that keep it must be up"
    if isinstance(error, TimeoutError):
        return "the server does not answer in time"
    return str(error) or type(error).__name__
