"""The load that must not suffer: small chats through the gateway, and a probe that measures the picker alone."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc
import orjson

from tests.fixtures.ext_proc import METHOD
from warmroute.extproc.ext_proc_pb2 import BUFFERED, HttpBody, HttpHeaders, ProcessingRequest, ProtocolConfiguration

RATE = 100.0
"""Requests per second through the gateway."""
PROBE_RATE = 20.0
"""Picks per second asked of the picker itself."""
MODEL = "/model/qwen"
LONG_EVERY = 100
"""One request in so many has 100 KB; the others have 2.4 KB."""
CHAT = "/v1/chat/completions"


@dataclass(slots=True)
class Outcome:
    """What the honest clients saw. Latencies are seconds."""

    answered: int = 0
    failures: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    """Request sent to answer complete, engine included."""
    picks: list[float] = field(default_factory=list)
    """Body sent to the picker to endpoint named."""


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least ``share`` of ``values`` do not exceed; NaN without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def body(number: int) -> bytes:
    """A chat that goes on: ten questions to each of many contexts."""
    size = 100_000 if number % LONG_EVERY == 0 else 2_000
    context = f"context {number // 10} " + "the engines warm their caches " * (size // 30)
    messages = [{"role": "system", "content": context}, {"role": "user", "content": f"question {number}"}]
    return orjson.dumps({"model": MODEL, "messages": messages, "max_tokens": 2})


async def load(url: str, outcome: Outcome, *, rate: float = RATE) -> None:
    """Send requests at a constant rate until cancelled, whether earlier ones are answered or not."""
    connector = aiohttp.TCPConnector(limit=1000)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, asyncio.TaskGroup() as tasks:
        began, number = time.perf_counter(), 0
        while True:
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            tasks.create_task(_ask(session, url + CHAT, body(number), outcome))
            number += 1


async def _ask(session: aiohttp.ClientSession, url: str, data: bytes, outcome: Outcome) -> None:
    began = time.perf_counter()
    try:
        async with session.post(url, data=data, headers={"content-type": "application/json"}) as answer:
            text = await answer.read()
            if answer.status == 200 and b"choices" in text:
                outcome.answered += 1
                outcome.latencies.append(time.perf_counter() - began)
            else:
                reason = answer.headers.get("x-warmroute-dropped-reason", "")
                outcome.failures.append(f"{answer.status} {reason} {text[:80]!r}")
    except (aiohttp.ClientError, TimeoutError) as error:
        outcome.failures.append(f"{type(error).__name__}: {error}")


async def probe(address: str, outcome: Outcome, *, rate: float = PROBE_RATE) -> None:
    """Ask the picker for an endpoint at a constant rate until cancelled."""
    start = ProcessingRequest(
        request_headers=HttpHeaders(), protocol_config=ProtocolConfiguration(request_body_mode=BUFFERED)
    )
    for key, value in ((":path", CHAT), ("content-type", "application/json")):
        start.request_headers.headers.headers.add(key=key, raw_value=value.encode())
    async with grpc.aio.insecure_channel(address) as channel:
        number = 0
        while True:
            message = ProcessingRequest(request_body=HttpBody(body=body(10 * number + 1), end_of_stream=True))
            stream: Any = channel.stream_stream
            call = stream(METHOD, request_serializer=ProcessingRequest.SerializeToString)()
            began = time.perf_counter()
            try:
                async with asyncio.timeout(30):
                    await call.write(start)
                    await call.read()
                    await call.write(message)
                    if await call.read() is grpc.aio.EOF:  # type: ignore[attr-defined]  # not in grpc-stubs
                        outcome.failures.append("the picker ended a probe without an answer")
                outcome.picks.append(time.perf_counter() - began)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError) as error:
                outcome.failures.append(f"probe: {type(error).__name__}: {error}")
            finally:
                call.cancel()
            number += 1
            await asyncio.sleep(1 / rate)
