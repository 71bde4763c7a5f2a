"""A picker whose log pipe nobody reads goes on answering, and ends when it is told to."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from tests.fixtures.ext_proc import ask

PIPE_BYTES = 4096
"""The smallest pipe of Linux; its default is 64 KiB."""
REQUESTS = 300
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "warm " * 400}]}).encode()


@pytest.mark.skipif(sys.platform != "linux", reason="sets the size of a pipe")
async def test_a_log_pipe_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    endpoints = tmp_path / "endpoints.yaml"
    endpoints.write_text("endpoints: [{name: a, address: 127.0.0.1, port: 9}]")
    ports = [f"--{name}-port=0" for name in ("grpc", "grpc-health", "metrics", "debug")]
    flags = ["--host=127.0.0.1", "--secure-serving=false", "--routing-strategy=PREFIX_CACHE", "--drain-quiet=0"]
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "warmroute", "serve", "--log-format=json"),
        *(f"--endpoints-file={endpoints}", *ports, *flags),
        stderr=writer,
    )
    os.close(writer)
    try:
        async with asyncio.timeout(120):
            serving = await asyncio.to_thread(line_with_ports, reader)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{serving['grpc-port']}") as channel:
                for _ in range(REQUESTS):  # each but the first logs a line of 250 bytes
                    answer = await ask(channel, "/v1/chat/completions", BODY, {"x-request-id": "i" * 128})
                    assert answer.HasField("request_body")
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{serving['metrics-port']}/metrics") as metrics,
            ):
                page = await metrics.text()
            assert f'warmroute_decisions_total{{reason="warm",strategy="PREFIX_CACHE"}} {REQUESTS - 1}.0' in page
            process.terminate()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        os.close(reader)


def line_with_ports(reader: int) -> dict[str, Any]:
    """The log line that names the ports. Others may come before it or with it."""
    text = b""
    while True:
        for line in text.splitlines(keepends=True):
            if line.endswith(b"\n") and (fields := json.loads(line))["msg"] == "serving":
                return dict(fields)
        more = os.read(reader, 4096)
        assert more, text
        text += more
