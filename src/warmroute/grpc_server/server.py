"""The sockets of the gRPC server: listening, TLS, keepalive, and the end."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import cast

from warmroute.grpc_server.connection import IGNORE, Call, Connection, Handler, Limits, Method, Usage
from warmroute.grpc_server.frames import Status
from warmroute.grpc_server.unary import Unary
from warmroute.listener import listen
from warmroute.log_throttle import LogThrottle
from warmroute.tasks import BackgroundTask, cancel

logger = logging.getLogger(__name__)

KEEPALIVE_INTERVAL = 20.0
"""Seconds between two pings. A client that has not answered one at the next is gone; so is one that has said nothing."""
MOST_CONNECTIONS = 512
"""Connections of one port. Envoy opens one for each of its worker threads. One more ends one without calls, or is ended."""
MOST_UNANSWERED = 64
"""Calls of :class:`Unary` methods on one port whose message has not come or whose answer is not taken. One more ends the
oldest."""
HANDSHAKE_TIMEOUT = 10.0
"""Seconds that TLS may take to begin."""
CLOSE_TIMEOUT = 0.5
"""Seconds that the last answers have to be written when the server ends a connection."""
ACCEPT_DELAY = 0.1
"""Seconds until connections are accepted again after an error."""
SHORTAGE_LOG_INTERVAL = 10.0
"""Least seconds between two log lines about a lack of file descriptors."""
BACKLOG = 1024
"""Connections that the kernel accepts before the event loop does."""


class GrpcServer:
    """Serves ``methods``, by their paths, on one port."""

    def __init__(self, methods: Mapping[str, Method], limits: Limits) -> None:
        self._methods = methods
        self._limits = limits
        self._usage = Usage()
        self._listener: socket.socket | None = None
        self._tls: ssl.SSLContext | None = None
        self._accepting = BackgroundTask(self._accept_clients, "grpc accept")
        self._keepalive = BackgroundTask(self._find_dead_connections, "grpc keepalive")
        self._beginning: dict[asyncio.Task[None], socket.socket | None] = {}
        """Connections that begin: with TLS its handshake is under way. The oldest first, each with its socket until its task
        takes that."""
        self._connections: dict[_Socket, None] = {}
        """The oldest first."""
        self._unanswered: dict[Unary, None] = {}
        """The open calls of unary methods, the oldest first: an answer is given as soon as its message comes."""
        self._changed = asyncio.Event()
        self._shortages = LogThrottle(SHORTAGE_LOG_INTERVAL)

    async def start(self, host: str, port: int, flag: str, tls: ssl.SSLContext | None = None) -> int:
        """Listen on ``host`` (empty: all interfaces, IPv6 and IPv4). Returns the port in use.

        Raises ConfigurationError, which names ``flag``, if the address is unavailable.
        """
        listener = self._listener = listen(host, port, flag, backlog=BACKLOG)
        listener.setblocking(False)
        self._tls = tls
        self._accepting.start()
        self._keepalive.start()
        bound: int = listener.getsockname()[1]
        return bound

    async def stop(self, grace: float) -> None:
        """Stop listening; open calls have ``grace`` seconds to end. Safe to call before ``start`` and again."""
        if self._listener is None:
            return
        await self._accepting.stop()
        await self._keepalive.stop()
        beginning = list(self._beginning)
        for each in beginning:
            self._give_up(each)
        await cancel(*beginning)
        self._listener.close()
        self._listener = None
        for connection in list(self._connections):
            connection.go_away()
        await self._until(lambda: not any(connection.calls for connection in self._connections), grace)
        for connection in list(self._connections):
            connection.close()
        await self._until(lambda: not self._connections, CLOSE_TIMEOUT)
        for connection in list(self._connections):
            connection.abort()
        await self._until(lambda: not self._connections, CLOSE_TIMEOUT)

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Return once ``condition`` holds, or after ``seconds``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()

    def _accept(self, call: Call) -> Handler:
        method = self._methods.get(call.path)
        if method is None:
            call.finish(Status.UNIMPLEMENTED, "there is no such method")
            return IGNORE
        handler = method(call)
        if isinstance(handler, Unary):
            if len(self._unanswered) >= MOST_UNANSWERED:
                next(iter(self._unanswered)).give_up()
            handler.count_in(self._unanswered)
        return handler

    async def _accept_clients(self) -> None:
        loop, listener = asyncio.get_running_loop(), self._listener
        assert listener is not None
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:  # the client has gone, or there are no file descriptors
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._lack_descriptors()
                await asyncio.sleep(ACCEPT_DELAY)
                continue
            if len(self._beginning) + len(self._connections) >= MOST_CONNECTIONS and not self._make_room():
                client.close()
                continue
            beginning = asyncio.create_task(self._begin(client), name="grpc connection")
            self._beginning[beginning] = client
            beginning.add_done_callback(lambda task: self._beginning.pop(task, None))

    def _lack_descriptors(self) -> None:
        """End an idle connection, so that the next client finds a file descriptor."""
        self._make_room()
        failures = self._shortages.add(asyncio.get_running_loop().time())
        if failures:
            fields = {"connections": len(self._connections), "failures": failures}
            logger.warning("no file descriptor for another connection (ulimit -n)", extra={"fields": fields})

    async def _begin(self, client: socket.socket) -> None:
        beginning = asyncio.current_task()
        assert beginning is not None
        self._beginning[beginning] = None
        with suppress(OSError):  # it speaks no TLS, is slow, or has gone
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: _Socket(self._accept, self._limits, self._usage, self._connections, self._changed),
                client,
                ssl=self._tls,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT if self._tls is not None else None,
            )

    def _give_up(self, beginning: asyncio.Task[None]) -> None:
        """End a connection that begins. A task that has not run yet never will, so it does not close its socket."""
        client = self._beginning.pop(beginning)
        beginning.cancel()
        if client is not None:
            client.close()

    def _make_room(self) -> bool:
        """End the oldest connection that only begins, has had no calls, or has none now. False: all have calls."""
        if self._beginning:
            self._give_up(next(iter(self._beginning)))
            return True
        idle = [each for each in self._connections if not each.calls]
        if idle:
            min(idle, key=lambda each: each.used).make_way()
        return bool(idle)

    async def _find_dead_connections(self) -> None:
        while True:
            await asyncio.sleep(KEEPALIVE_INTERVAL)
            for connection in list(self._connections):
                connection.keep_alive()


class _Socket(asyncio.Protocol):
    """A connection and its socket."""

    def __init__(
        self,
        accept: Method,
        limits: Limits,
        usage: Usage,
        connections: dict[_Socket, None],
        changed: asyncio.Event,
    ) -> None:
        self._connection = Connection(accept, self._flush, limits, usage)
        self._connections = connections
        self._changed = changed
        self._transport: asyncio.Transport | None = None
        self._old = False
        self._reading = True
        """The socket is read."""
        self._catching_up = False
        """:meth:`_catch_up` is going to be called."""

    @property
    def calls(self) -> int:
        """Open calls."""
        return self._connection.calls

    @property
    def used(self) -> bool:
        """It has had a call."""
        return self._connection.used

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, but for its class
        self._connections[self] = None
        self._flush()

    def make_way(self) -> None:
        """End a connection without calls, in favour of another one."""
        del self._connections[self]
        self.go_away()
        self.close()
        asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, self.abort)  # if its client does not read the end

    def data_received(self, data: bytes) -> None:
        """Bytes have come. If they are many small frames, other connections get their turn before all are read."""
        self._connection.receive(data)
        self._flush()
        self._choose_reading()

    def pause_writing(self) -> None:
        """The client does not read. Nothing is read from it either, so that its answers take no more memory."""
        self._connection.paused = True
        self._choose_reading()

    def resume_writing(self) -> None:
        """The client has read."""
        self._connection.paused = False
        self.data_received(b"")

    def _choose_reading(self) -> None:
        """Read from the socket unless frames wait that were read from it, or the client does not read."""
        transport, connection = self._transport, self._connection
        if transport is None or transport.is_closing():
            return
        reading = not connection.behind and not connection.paused
        if reading is not self._reading:
            self._reading = reading
            try:
                if reading:
                    transport.resume_reading()
                else:
                    transport.pause_reading()
            except RuntimeError:  # uvloop: the socket has just failed, and connection_lost follows
                return
        if connection.behind and not self._catching_up:
            self._catching_up = True
            asyncio.get_running_loop().call_soon(self._catch_up)

    def _catch_up(self) -> None:
        """Read more of the frames that wait."""
        self._catching_up = False
        if not self._connection.paused:
            self.data_received(b"")

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        self._transport = None  # it refers to this: no cycle must stay
        self._connection.lost()
        self._connections.pop(self, None)
        self._changed.set()

    def keep_alive(self) -> None:
        """Ping the client; give it up if it has not answered the last ping, not begun, or not read the end."""
        connection = self._connection
        if connection.ping_open or connection.closed or (self._old and not connection.established):
            self.abort()
        elif connection.established:
            connection.ping()
            self._flush()
        self._old = True

    def go_away(self) -> None:
        """Take no more calls."""
        self._connection.go_away()
        self._flush()

    def close(self) -> None:
        """End the calls that are left, and close the socket once what was written has been sent."""
        self._connection.lost()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close the socket at once."""
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        """Write what can be written now."""
        transport, connection = self._transport, self._connection
        if transport is None or transport.is_closing():
            return
        while not connection.paused and (data := connection.output()):
            try:
                transport.write(data)
            except RuntimeError:  # uvloop: the socket has just failed, and connection_lost follows
                return
        if connection.behind:
            self._choose_reading()
        if connection.closed:
            transport.close()
        if not connection.calls:
            self._changed.set()
