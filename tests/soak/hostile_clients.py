"""Clients and neighbours that misbehave. ``python -m tests.soak.hostile_clients ATTACKS GATEWAY_URL PICKER PAGE_URL...``.

Everything is bounded: one body at a time for each of :data:`SIZES`, :data:`IDLE` open connections. It runs until it is
killed.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import random
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import aiohttp
import grpc

from tests.fixtures.envoy.http1 import connect, encode, encode_chunk, encode_fields, read_message
from tests.fixtures.ext_proc import METHOD
from warmroute.extproc.ext_proc_pb2 import (
    FULL_DUPLEX_STREAMED,
    HttpBody,
    HttpHeaders,
    ProcessingRequest,
    ProtocolConfiguration,
)
from warmroute.extproc.headers import MODEL_REWRITES

ATTACKS = ("gateway", "picker", "idle", "models", "pages")
"""Large bodies through the gateway and to the picker itself, requests that do not go on, made-up model names, page polls."""
IDLE = 100
"""Slow uploads and bare CONNECTs open at once, each."""
NAMES = 200
"""Made-up model names."""
SIZES = (64 << 20, 31 << 20, 4 << 20)
"""Bytes of a body: more and just less than what gateway and picker take, and a small one. Each is a client of its own."""
DEPTH = 900
CHAT = "/v1/chat/completions"


def _filled(head: bytes, item: bytes, tail: bytes, size: int) -> bytes:
    return head + (item + b",") * ((size - len(head) - len(tail)) // (len(item) + 1) - 1) + item + tail


def bodies(size: int) -> Iterator[bytes]:
    """Hostile bodies of nearly ``size`` bytes, again and again."""
    deep = b"[" * DEPTH + b"]" * DEPTH
    builders: list[Callable[[], bytes]] = [
        lambda: _filled(b'{"model":"m","messages":[', b"{}", b"]}", size),
        lambda: _filled(b'{"x":[', b'{"":0}', b"]}", size),
        lambda: _filled(b'{"model":"m","messages":[', b"[]", b"]}", size),
        lambda: _filled(b'{"model":"m","prompt":[', b"[1]", b"]}", size),
        lambda: _filled(b'{"model":"m","x":[', deep, b"]}", size),
        lambda: _filled(b"{", b'"model":"m"', b"}", size),
        lambda: b'{"model":"m","prompt":"' + b"\\u00e9" * (size // 6) + b'"}',
        lambda: b'{"model":"m","messages":[{}],"chat_template":"' + b"x" * (size - 60) + b'"}',
        lambda: b"[" * size,
        lambda: random.Random(size).randbytes(1 << 20) * (size >> 20),
    ]
    for build in itertools.cycle(builders):
        yield build()


async def _through_the_gateway(url: str, size: int) -> None:
    for number, body in enumerate(bodies(size)):
        chunks = [body] if number % 2 else None  # without a content-length nobody knows the size before
        try:
            async with asyncio.timeout(60):
                reader, writer = await connect(url)
                try:
                    fields = {"host": "soak", "content-type": "application/json", MODEL_REWRITES[0]: "another"}
                    sent = body
                    if number % 4 == 0:
                        sent = await asyncio.to_thread(gzip.compress, body, 1)
                        fields["content-encoding"] = "gzip"
                    writer.write(encode(f"POST {CHAT} HTTP/1.1", fields, sent, chunks=chunks))
                    await read_message(reader)
                finally:
                    writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        await asyncio.sleep(0.2)


async def _to_the_picker(address: str, size: int) -> None:
    """Bodies in FULL_DUPLEX_STREAMED, where Envoy has no limit, with a rewrite as a trusted gateway may ask for it."""
    for body in bodies(size):
        start = ProcessingRequest(
            request_headers=HttpHeaders(),
            protocol_config=ProtocolConfiguration(request_body_mode=FULL_DUPLEX_STREAMED),
        )
        for key, value in ((":path", CHAT), ("content-type", "application/json"), (MODEL_REWRITES[0], "another")):
            start.request_headers.headers.headers.add(key=key, raw_value=value.encode())
        try:
            async with asyncio.timeout(60), grpc.aio.insecure_channel(address) as channel:
                stream: Any = channel.stream_stream
                call = stream(METHOD, request_serializer=ProcessingRequest.SerializeToString)()
                await call.write(start)
                for at in range(0, len(body), 1 << 16):
                    end = at + (1 << 16) >= len(body)
                    await call.write(
                        ProcessingRequest(request_body=HttpBody(body=body[at : at + (1 << 16)], end_of_stream=end))
                    )
                while await call.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]  # not in grpc-stubs
                    pass
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
            pass
        await asyncio.sleep(0.2)


async def _hold_open(url: str, head: bytes) -> None:
    """A request that begins and does not go on, again whenever it is ended."""
    while True:
        try:
            reader, writer = await connect(url)
            writer.write(head)
            try:
                await reader.read()
            finally:
                writer.close()
        except OSError:
            pass
        await asyncio.sleep(1)


async def _made_up_models(session: aiohttp.ClientSession, url: str) -> None:
    for number in itertools.cycle(range(NAMES)):
        body = {"model": f"made-up-{number}", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
        try:
            async with session.post(url + CHAT, json=body, headers={"x-request-id": "\x9b\u202e" * 500}) as answer:
                await answer.read()
        except (aiohttp.ClientError, TimeoutError, ValueError):
            pass
        await asyncio.sleep(0.05)


async def _poll(session: aiohttp.ClientSession, url: str) -> None:
    while True:
        try:
            async with session.get(url) as answer:
                await answer.read()
        except (aiohttp.ClientError, TimeoutError):
            pass
        await asyncio.sleep(0.2)


async def main(attacks: list[str], gateway: str, picker: str, pages: list[str]) -> None:
    """Misbehave in the ways of ``attacks`` until killed."""
    slow = encode_fields(f"POST {CHAT} HTTP/1.1", {"host": "soak", "transfer-encoding": "chunked"}) + encode_chunk(b"{")
    bare = encode_fields("CONNECT engine:80 HTTP/1.1", {"host": "engine:80"})
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        work: dict[str, list[Coroutine[Any, Any, None]]] = {
            "gateway": [_through_the_gateway(gateway, size) for size in SIZES],
            "picker": [_to_the_picker(picker, size) for size in SIZES],
            "idle": [_hold_open(gateway, head) for head in (slow, bare) for _ in range(IDLE)],
            "models": [_made_up_models(session, gateway)],
            "pages": [_poll(session, url) for url in pages],
        }
        await asyncio.gather(*(each for attack in attacks for each in work.pop(attack)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1].split(","), sys.argv[2], sys.argv[3], sys.argv[4:]))
