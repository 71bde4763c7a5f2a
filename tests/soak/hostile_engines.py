"""Engines that answer requests and whose metrics pages are hostile. ``python -m tests.soak.hostile_engines FIRST_PORT``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

HUNG = 40
"""Engines that never answer a scrape, beside one of each other kind."""
ANSWER = b'{"choices":[{"message":{"role":"assistant","content":"hostile"},"index":0,"finish_reason":"stop"}]}'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"
CHUNK = 1 << 16

Page = Callable[[asyncio.StreamWriter], Awaitable[None]]


async def _send(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(body))
    for at in range(0, len(body), CHUNK):
        writer.write(body[at : at + CHUNK])
        await writer.drain()


def _gauges(waiting: str, running: str) -> bytes:
    return f"vllm:num_requests_waiting {waiting}\nvllm:num_requests_running {running}\n".encode()


async def _hung(_: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def _largest_float(writer: asyncio.StreamWriter) -> None:
    await _send(writer, _gauges("1e308", "1e308"))


async def _ten_million_waiting(writer: asyncio.StreamWriter) -> None:
    await _send(writer, _gauges("1e7", "1e9"))


async def _not_a_number(writer: asyncio.StreamWriter) -> None:
    await _send(writer, _gauges("NaN", "-Inf") + b"vllm:kv_cache_usage_perc 1e-320\n")


async def _long_label(writer: asyncio.StreamWriter) -> None:
    await _send(writer, b'vllm:num_requests_waiting{x="' + b"a" * (15 << 20) + b'"} 1\n')


async def _many_samples(writer: asyncio.StreamWriter) -> None:
    await _send(writer, b"vllm:num_requests_running 1\n" * ((14 << 20) // 28))


async def _endless_continue(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 500)
        await writer.drain()


async def _slow_page(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"content-length: 100000\r\n\r\n")
    while True:
        writer.write(b"#")
        await writer.drain()
        await asyncio.sleep(0.2)


PAGES: tuple[Page, ...] = (
    _largest_float,
    _ten_million_waiting,
    _not_a_number,
    _long_label,
    _many_samples,
    _endless_continue,
    _slow_page,
    *[_hung] * HUNG,
)
"""One engine each, on consecutive ports."""


async def _serve(page: Page, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if head.startswith(b"GET /metrics"):
                await page(writer)
                continue
            length = next(
                (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line), 0
            )
            await reader.readexactly(length)
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)
            )
            writer.write(ANSWER)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()


async def main(first_port: int) -> None:
    """Serve until killed."""

    def handler(page: Page) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        return lambda reader, writer: _serve(page, reader, writer)

    for number, page in enumerate(PAGES):
        await asyncio.start_server(handler(page), "127.0.0.1", first_port + number)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
