"""A client of OpenAI's chat completions that measures TTFT and inter-token latency and records usage and engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter, time
from typing import Any

import aiohttp
import orjson

from warmroute.errors import ConfigurationError

POD_HEADER = "x-simulator-name"
"""Response header with the name of a simulated engine; other servers do not send it."""

MAX_EVENT_BYTES = 16 << 20
"""Longest accepted server-sent event in bytes."""


class EventStream:
    """Parser of server-sent events. Chunks may end anywhere. Only the field ``data`` is read; OpenAI's API uses no other."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of each event that ``chunk`` completes. Raises ValueError for an event over :data:`MAX_EVENT_BYTES`."""
        # A carriage return at the end may be the first half of a line break, so it is kept for the next chunk.
        text = self._rest + chunk
        held = b"\r" if text.endswith(b"\r") else b""
        text = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._rest = rest + held
        if len(self._rest) + sum(map(len, self._data)) > MAX_EVENT_BYTES:
            raise ValueError(f"a server-sent event is longer than {MAX_EVENT_BYTES} bytes")
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                data, self._data = b"\n".join(self._data), []
                yield data


@dataclass(slots=True)
class Answer:
    """The result of one request. Times are seconds since it was sent."""

    sent_at: float
    """Unix time."""
    status: int = 0
    """HTTP status; 0 without a response."""
    error: str = ""
    """Why the answer is incomplete; empty if it is complete."""
    pod: str = ""
    """Name of the engine that answered; empty if unknown."""
    text: str = ""
    ttft: float | None = None
    """Time to the first token; None without a token."""
    duration: float = 0.0
    """Time to the end of the answer."""
    gaps: list[float] = field(default_factory=list)
    """Times between chunks with text."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    """Prompt tokens found in the engine's cache; None if the usage does not report it."""

    @property
    def complete(self) -> bool:
        """The whole answer was received."""
        return not self.error

    @property
    def generation_time(self) -> float:
        """From the first token to the end; 0 without a token."""
        return 0.0 if self.ttft is None else self.duration - self.ttft

    def read_chunk(self, data: bytes, elapsed: float, previous: float) -> float:
        """Read one chunk of a streamed completion, received ``elapsed`` seconds after sending.

        ``previous`` is the time of the last text before; returns the time of the last text now. Raises ValueError for a
        chunk that is not a completion's.
        """
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError as broken:
            raise ValueError(f"a chunk is not JSON: {broken}") from broken
        try:
            if error := chunk.get("error"):
                self.error = str(error.get("message", error) if isinstance(error, dict) else error)
            self._read_usage(chunk.get("usage") or {})
            for choice in chunk.get("choices") or ():
                delta = choice.get("delta") or {}
                content = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
                if not content:
                    continue
                self.text += content
                if self.ttft is None:
                    self.ttft = elapsed
                else:
                    self.gaps.append(elapsed - previous)
                previous = elapsed
        except (AttributeError, TypeError) as error:
            raise ValueError(f"not a chunk of a completion: {data[:200].decode(errors='replace')}") from error
        return previous

    def _read_usage(self, usage: dict[str, Any]) -> None:
        if usage:
            self.prompt_tokens = usage.get("prompt_tokens") or 0
            self.completion_tokens = usage.get("completion_tokens") or 0
            self.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")


def _message(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientSSLError):
        cause = error.os_error  # the error's own text mentions TLS even without it
        return f"Cannot connect to {error.host}:{error.port}: {os.strerror(cause.errno) if cause.errno else cause}"
    return str(error) or type(error).__name__


class ChatClient:
    """Sends chat completions to one OpenAI-compatible base URL (``http://host:port/v1``). An async context manager."""

    def __init__(self, base_url: str, *, api_key: str = "", timeout: float = 600.0) -> None:
        """``timeout``: seconds for one request from first to last byte."""
        self._base_url = base_url.rstrip("/")
        self.url = self._base_url + "/chat/completions"
        self._headers = {"content-type": "application/json"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ChatClient:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers=self._headers, timeout=self._timeout
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def first_model(self) -> str:
        """The first model that the server lists. Raises ConfigurationError if there is none."""
        url = f"{self._base_url}/models"
        try:
            async with self._entered.get(url, raise_for_status=True) as response:
                return str(orjson.loads(await response.read())["data"][0]["id"])
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ConfigurationError(
                f"cannot list the models at {url}: {_message(error)}; set --model if the server has one"
                + (self._on_not_found if isinstance(error, aiohttp.ClientResponseError) and error.status == 404 else "")
            ) from error
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigurationError(f"{url} lists no model: set --model") from error

    async def ask(self, body: bytes) -> Answer:
        """Post ``body`` (a streaming chat completion request) and read the whole answer.

        Errors are in the answer's ``error``; only cancellation is raised.
        """
        session = self._entered
        answer = Answer(sent_at=time())
        start = perf_counter()
        try:
            async with session.post(self.url, data=body) as response:
                answer.status = response.status
                answer.pod = response.headers.get(POD_HEADER, "")
                if response.status != 200:
                    text = (await response.content.read(2000)).decode(errors="replace")
                    answer.error = f"HTTP {response.status}: {text}"
                    if response.status == 404:
                        answer.error += self._on_not_found
                elif response.content_type != "text/event-stream":
                    answer.error = f"expected an event stream, got {response.content_type}"
                else:
                    await self._read_stream(response, answer, start)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            answer.error = _message(error)
        answer.duration = perf_counter() - start
        return answer

    @property
    def _on_not_found(self) -> str:
        """What may be wrong with a base URL whose paths the server does not know."""
        return "" if self._base_url.endswith("/v1") else ": the base URL usually ends in /v1"

    @property
    def _entered(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("ChatClient is not open: use `async with`")
        return self._session

    @staticmethod
    async def _read_stream(response: aiohttp.ClientResponse, answer: Answer, start: float) -> None:
        events = EventStream()
        last_text = 0.0
        done = False
        async for chunk in response.content.iter_any():
            elapsed = perf_counter() - start
            for data in events.feed(chunk):
                if data == b"[DONE]":
                    done = True
                else:
                    last_text = answer.read_chunk(data, elapsed, last_text)
        if not done and not answer.error:
            answer.error = "the stream ended without [DONE]"
