"""Load for the picker: chats of a given size, sent over ext_proc or through a gateway."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from functools import lru_cache
from itertools import count
from time import perf_counter
from typing import Any, Self

import aiohttp
import grpc
import orjson

from warmroute.errors import WarmrouteError
from warmroute.extproc.ext_proc_pb2 import BUFFERED, HttpBody, HttpHeaders, ProcessingRequest, ProtocolConfiguration
from warmroute.extproc.headers import DESTINATION
from warmroute_lab.overhead.bare_server import METHOD

SHARED = 0.3
"""Share of each prompt that is the common system prompt."""
LARGEST_MESSAGE = 20_000
"""Most bytes of a message; longer prompts have more messages."""
PATH = "/v1/chat/completions"

_SENTENCE = "The quick brown fox jumps over the lazy dog while the engines warm their caches. "


class LoadError(WarmrouteError):
    """The picker or the gateway did not answer a request correctly."""


class Chats:
    """Chat bodies of about ``size`` bytes each.

    They come in pairs. The first starts a conversation that shares only the system prompt with the others; the second asks
    another question at the end of the same conversation. Half of the prompts are therefore warm.
    """

    def __init__(self, size: int, model: str = "model") -> None:
        def text(length: int) -> str:
            return (_SENTENCE * (length // len(_SENTENCE) + 1))[:length]

        rest = int(size * (1 - SHARED))
        turns = max(2, rest // LARGEST_MESSAGE)
        messages = [{"role": "system", "content": text(int(size * SHARED))}]
        messages += [
            {"role": ("user", "assistant")[turn % 2], "content": text(rest // turns - 40)} for turn in range(turns)
        ]
        messages[1]["content"] = "@CONVERSATION@" + messages[1]["content"]
        messages.append({"role": "user", "content": "@QUESTION@"})
        document = {"model": model, "messages": messages, "max_tokens": 100, "stream": True}
        head, _, tail = orjson.dumps(document).partition(b"@CONVERSATION@")
        middle, _, tail = tail.partition(b"@QUESTION@")
        self._pieces = head, middle, tail
        self._numbers = count()

    def next(self) -> bytes:
        """The next body. All bodies have the same length."""
        number = next(self._numbers)
        head, middle, tail = self._pieces
        return b"%b%08d%b%08d%b" % (head, number // 2, middle, number, tail)


class Load(ABC):
    """A client with several connections. An async context manager."""

    @abstractmethod
    async def open(self) -> None:
        """Connect; wait until the server listens."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect."""

    @abstractmethod
    async def request(self, connection: int, body: bytes) -> None:
        """Send one request on one of the connections. Raises LoadError, or an exception of the transport."""

    async def run(self, chats: Chats, requests: int, *, workers: int) -> list[float]:
        """Send requests, ``workers`` at a time; the duration of each in seconds. Raises LoadError if one fails."""
        left = iter(range(requests))
        seconds: list[float] = []

        async def work(connection: int) -> None:
            for _ in left:
                body = chats.next()
                began = perf_counter()
                await self.request(connection, body)
                seconds.append(perf_counter() - began)

        try:
            async with asyncio.TaskGroup() as group:
                for connection in range(workers):
                    group.create_task(work(connection))
        except ExceptionGroup as failed:
            raise LoadError(
                f"a request failed: {str(failed.exceptions[0]) or type(failed.exceptions[0]).__name__}"
            ) from failed
        return seconds

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class ExtProcLoad(Load):
    """ext_proc streams to a picker, as Envoy opens them in BUFFERED mode."""

    def __init__(self, target: str, connections: int = 4) -> None:
        self._target = target
        self._connections = connections
        self._channels: list[grpc.aio.Channel] = []

    async def open(self) -> None:
        """Connect within 60 seconds; raises TimeoutError."""
        own_connection = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))
        self._channels = [
            grpc.aio.insecure_channel(self._target, options=own_connection) for _ in range(self._connections)
        ]
        async with asyncio.timeout(60):
            for channel in self._channels:
                await channel.channel_ready()

    async def close(self) -> None:
        """Disconnect."""
        for channel in self._channels:
            await channel.close(grace=None)

    async def request(self, connection: int, body: bytes) -> None:
        """One stream. Raises LoadError or grpc.aio.AioRpcError."""
        process: Any = self._channels[connection % self._connections].stream_stream(METHOD, None, None)
        call = process()
        await call.write(request_headers(len(body)))
        await call.read()
        await call.write(ProcessingRequest(request_body=HttpBody(body=body, end_of_stream=True)).SerializeToString())
        answer = await call.read()
        if answer is grpc.aio.EOF or DESTINATION.encode() not in answer:  # type: ignore[attr-defined]
            raise LoadError(f"the picker at {self._target} chose no endpoint")
        if await call.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]
            raise LoadError(f"the picker at {self._target} did not end the stream")


@lru_cache(maxsize=64)
def request_headers(length: int) -> bytes:
    """ext_proc's message with the headers of a request whose body has that length."""
    message = ProcessingRequest(
        request_headers=HttpHeaders(), protocol_config=ProtocolConfiguration(request_body_mode=BUFFERED)
    )
    for name, value in (
        (":authority", "gateway.example"),
        (":path", PATH),
        (":method", "POST"),
        (":scheme", "http"),
        ("content-type", "application/json"),
        ("content-length", str(length)),
        ("user-agent", "warmroute-bench"),
        ("accept", "*/*"),
        ("accept-encoding", "gzip, deflate"),
        ("x-forwarded-proto", "http"),
        ("x-request-id", "2b0e0a3c-7d0f-4c8e-9b1a-0a1b2c3d4e5f"),
    ):
        message.request_headers.headers.headers.add(key=name, raw_value=value.encode())
    return message.SerializeToString()


class GatewayLoad(Load):
    """HTTP requests to a gateway; each worker has its own connection."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make a session; connections are opened by the first requests."""
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def close(self) -> None:
        """Disconnect."""
        if self._session is not None:
            await self._session.close()

    async def request(self, connection: int, body: bytes) -> None:
        """One POST. Raises LoadError or aiohttp.ClientError."""
        assert self._session is not None
        headers = {"content-type": "application/json"}
        async with self._session.post(self._url + PATH, data=body, headers=headers) as answer:
            content = await answer.read()
            if answer.status != 200:
                raise LoadError(f"{self._url} answered with {answer.status}: {content[:200].decode(errors='replace')}")
