"""Garbage, half-closed streams and clients that go away, for a while: the picker serves on and nothing grows.

Fifteen seconds by default; ``WARMROUTE_SOAK_SECONDS=600`` for the long run.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path
from typing import Any, cast

import aiohttp
import grpc
import pytest

from tests.fixtures.envoy.backends import backends
from tests.fixtures.envoy.pickers import warmroute_serve
from tests.fixtures.ext_proc import METHOD, ask, destination
from warmroute.extproc.ext_proc_pb2 import (
    BodySendMode,
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    ProcessingRequest,
    ProtocolConfiguration,
)

SECONDS = float(os.environ.get("WARMROUTE_SOAK_SECONDS", "15"))
CLIENTS = 16
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/generate", "/nonsense", "", "/v1/embeddings?x=1"]


def random_message(rng: random.Random) -> ProcessingRequest:
    """Any kind of message, in any mode, with a body that may be anything."""

    def any_mode() -> BodySendMode:
        return cast(BodySendMode, rng.randrange(7))

    message = ProcessingRequest()
    if rng.random() < 0.7:
        message.protocol_config.CopyFrom(
            ProtocolConfiguration(request_body_mode=any_mode(), response_body_mode=any_mode())
        )
    kind = rng.choice(["headers", "body", "trailers", "response", "nothing", "body", "headers"])
    if kind == "headers":
        message.request_headers.CopyFrom(HttpHeaders(end_of_stream=rng.random() < 0.2))
        for key, value in (
            (":path", rng.choice(PATHS).encode()),
            ("content-type", rng.choice([b"application/json", b"text/plain", b"\xff"])),
            ("content-length", rng.choice([b"10", b"-1", b"999999999999999999999", b"x"])),
            ("x-request-id", rng.randbytes(8)),
        ):
            message.request_headers.headers.headers.add(key=key, raw_value=value)
    elif kind == "body":
        body = rng.choice(
            [
                rng.randbytes(rng.randrange(2000)),
                b'{"model": "m", "messages": [{"role": "user", "content": "' + b"hello " * rng.randrange(400) + b'"}]}',
                b'{"model": 7}',
                b"[" * rng.randrange(5000),
                b'{"model": "\\ud800", "prompt": [1, 2, -3, 1e999]}',
            ]
        )
        message.request_body.CopyFrom(HttpBody(body=body, end_of_stream=rng.random() < 0.7))
    elif kind == "trailers":
        message.request_trailers.CopyFrom(HttpTrailers())
    elif kind == "response":
        message.response_headers.CopyFrom(HttpHeaders())
    if rng.random() < 0.1:
        message.metadata_context.filter_metadata["envoy.lb.subset_hint"].update(
            {"x-gateway-destination-endpoint-subset": rng.choice([[], ["::"], "a,b", 7, None])}
        )
    return message


async def misbehave(address: str, rng: random.Random, until: float) -> int:
    """One client: stream after stream of nonsense, ended in every way there is. Gives the number of streams."""
    streams = 0
    while time.monotonic() < until:
        async with grpc.aio.insecure_channel(address) as channel:
            for _ in range(rng.randrange(1, 20)):
                streams += 1
                raw: Any = channel.stream_stream(METHOD)()  # type: ignore[call-arg]  # grpc-stubs: not optional
                try:
                    async with asyncio.timeout(5):
                        for _ in range(rng.randrange(5)):
                            garbage = rng.random() < 0.1
                            await raw.write(rng.randbytes(60) if garbage else random_message(rng).SerializeToString())
                        match rng.randrange(4):
                            case 0:
                                await raw.done_writing()
                            case 1:
                                await raw.done_writing()
                                while await raw.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]  # not in grpc-stubs
                                    pass
                            case 2:
                                raw.cancel()
                            case 3:
                                await asyncio.sleep(rng.random() * 0.05)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError, TimeoutError):
                    pass
    return streams


async def value(page: str, name: str) -> float:
    async with aiohttp.ClientSession() as session, session.get(page) as response:
        text = await response.text()
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(name + " ")))


def resident_megabytes(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the picker's memory from /proc")
async def test_nonsense_leaves_the_picker_as_it_was(tmp_path: Path) -> None:
    seed = 20261123
    print(f"seed {seed}, {SECONDS} s")
    async with (
        backends(2) as pods,
        warmroute_serve([pod.target for pod in pods], tmp_path, "--body-timeout=2s", "--log-level=error") as (
            epp,
            child,
        ),
    ):
        (port,) = [flag.partition("=")[2] for flag in child.argv if flag.startswith("--metrics-port=")]
        page = f"http://127.0.0.1:{port}/metrics"
        await asyncio.gather(
            *(misbehave(epp, random.Random(seed - k), time.monotonic() + 3) for k in range(1, CLIENTS))
        )
        before = resident_megabytes(child.pid)
        until = time.monotonic() + SECONDS
        streams = sum(await asyncio.gather(*(misbehave(epp, random.Random(seed + k), until) for k in range(CLIENTS))))
        print(f"{streams} streams, {before:.1f} MB before, {resident_megabytes(child.pid):.1f} MB after")
        assert streams > 5 * CLIENTS
        async with grpc.aio.insecure_channel(epp) as channel:
            assert "127.0.0.1" in destination(await ask(channel, "/v1/completions", b'{"model":"m","prompt":"hi"}'))
        async with asyncio.timeout(60):
            while await value(page, "warmroute_streams_in_flight"):
                await asyncio.sleep(0.1)
        assert resident_megabytes(child.pid) < before + 20
        assert "internal" not in (tmp_path / "epp.log").read_text()
