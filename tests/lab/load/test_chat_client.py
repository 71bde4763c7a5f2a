"""Server-sent events split anywhere, and answers as engines give them."""

import json
import re
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from warmroute.errors import ConfigurationError
from warmroute_lab.load.chat_client import MAX_EVENT_BYTES, ChatClient, EventStream

pytestmark = pytest.mark.integration

line_breaks = st.sampled_from([b"\n", b"\r\n", b"\r"])
payloads = st.binary(min_size=1, max_size=20).map(lambda data: data.replace(b"\n", b"").replace(b"\r", b"") or b"x")


@given(data=st.data(), events=st.lists(st.lists(payloads, min_size=1, max_size=3), max_size=5), line_break=line_breaks)
def test_events_come_out_the_same_wherever_the_bytes_are_split(data: Any, events: Any, line_break: Any) -> None:
    stream = b""
    for lines in events:
        stream += b": a comment" + line_break + b"event: x" + line_break
        stream += b"".join(b"data: " + line + line_break for line in lines) + line_break
    stream += b"id: 1" + line_break  # a lone carriage return at the very end waits; it must not hold an event back
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    parser = EventStream()
    found = [event for piece in pieces for event in parser.feed(piece)]
    assert found == [b"\n".join(lines) for lines in events]


def test_an_endless_event_is_refused() -> None:
    parser = EventStream()
    with pytest.raises(ValueError, match="longer than"):
        list(parser.feed(b"data: " + b"x" * MAX_EVENT_BYTES))


def chunk(content: str = "", **more: Any) -> bytes:
    choices = [{"index": 0, "delta": {"content": content}}] if content else []
    return b"data: " + json.dumps({"choices": choices, **more}).encode() + b"\n\n"


class Engine:
    """Answers what a test says, in pieces."""

    def __init__(self, *pieces: bytes, status: int = 200, content_type: str = "text/event-stream") -> None:
        self.pieces, self.status, self.content_type = pieces, status, content_type
        self.bodies: list[bytes] = []
        self.headers: list[Any] = []

    async def __aenter__(self) -> str:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.answer)
        app.router.add_get("/v1/models", self.answer)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}/v1"

    async def __aexit__(self, *_: Any) -> None:
        await self.runner.cleanup()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.read())
        self.headers.append(request.headers)
        headers = {"content-type": self.content_type, "x-simulator-name": "pod-7"}
        response = web.StreamResponse(status=self.status, headers=headers)
        await response.prepare(request)
        for piece in self.pieces:
            await response.write(piece)
        return response


USAGE = {"prompt_tokens": 40, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 32}}


async def test_an_answer_with_usage() -> None:
    engine = Engine(chunk("", usage=None), chunk("Hel"), chunk("lo"), chunk(usage=USAGE) + b"data: [DO", b"NE]\n\n")
    async with engine as url, ChatClient(url, api_key="secret") as client:
        answer = await client.ask(b"{}")
    assert answer.complete
    assert (answer.status, answer.pod, answer.text) == (200, "pod-7", "Hello")
    assert (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens) == (40, 2, 32)
    assert answer.ttft is not None
    assert 0 < answer.ttft <= answer.duration
    assert len(answer.gaps) == 1
    assert answer.generation_time == pytest.approx(answer.duration - answer.ttft)
    assert engine.bodies == [b"{}"]
    assert engine.headers[0]["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("engine", "word"),
    [
        (Engine(b'{"error": "no"}', status=503), "HTTP 503: .*no"),
        (Engine(b"{}", content_type="application/json"), "application/json"),
        (Engine(chunk("Hel")), r"without \[DONE\]"),
        (Engine(b"data: nonsense\n\n"), "a chunk is not JSON: "),
        (Engine(b"data: [1]\n\n"), r"not a chunk of a completion: \[1\]$"),
        (Engine(b'data: {"error": {"message": "out of memory"}}\n\ndata: [DONE]\n\n'), "out of memory"),
    ],
)
async def test_what_goes_wrong_is_in_the_answer(engine: Any, word: str) -> None:
    async with engine as url, ChatClient(url) as client:
        answer = await client.ask(b"{}")
    assert not answer.complete
    assert re.search(word, answer.error)


async def test_a_server_that_is_not_there_is_an_error_of_the_answer() -> None:
    async with ChatClient("http://127.0.0.1:1/v1") as client:
        answer = await client.ask(b"{}")
    assert answer.status == 0
    assert answer.error.startswith("Cannot connect to 127.0.0.1:1: Connect")
    assert "ssl" not in answer.error


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (Engine(b'{"data": []}'), "lists no model: set --model"),
        (Engine(b'["x"]'), "lists no model"),
        (Engine(b"<html>"), "lists no model"),
        (Engine(b"{}", status=404), "cannot list the models at .*.*404.*--model"),
    ],
)
async def test_a_server_that_names_no_model(engine: Any, said: Any) -> None:
    async with engine as url, ChatClient(url) as client:
        with pytest.raises(ConfigurationError, match=said):
            await client.first_model()


async def test_a_base_url_without_v1_is_told() -> None:
    async with Engine(b"{}", status=404) as url, ChatClient(url.removesuffix("/v1")) as client:
        with pytest.raises(ConfigurationError, match=r"404.*: the base URL usually ends in /v1$"):
            await client.first_model()
        assert "the base URL usually ends in /v1" in (await client.ask(b"{}")).error
    async with Engine(b"{}", status=404) as url, ChatClient(url) as client:
        assert "ends in" not in (await client.ask(b"{}")).error
