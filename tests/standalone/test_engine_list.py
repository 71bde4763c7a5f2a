"""The engines of `warmroute up`: what is understood, what is refused, and what is found."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from warmroute.discovery.file import parse
from warmroute.errors import ConfigurationError
from warmroute.standalone import engine_probe
from warmroute.standalone.engine_list import Engine, EngineList, PortRange, Target, document
from warmroute.standalone.engine_probe import ModelsAnswer, probe_models


@pytest.mark.parametrize(
    ("text", "host", "port", "name"),
    [
        ("http://10.0.0.7:8000", "10.0.0.7", 8000, "10.0.0.7:8000"),
        ("http://10.0.0.7:8000/", "10.0.0.7", 8000, "10.0.0.7:8000"),
        ("http://gpu-a:8000/v1", "gpu-a", 8000, "gpu-a:8000"),
        ("gpu-a:8000", "gpu-a", 8000, "gpu-a:8000"),
        ("http://[2001:db8::1]:80", "2001:db8::1", 80, "[2001:db8::1]:80"),
    ],
)
def test_an_engine_is_a_url_or_host_and_port(text: str, host: str, port: int, name: str) -> None:
    target = Target.parse(text)
    assert (target.host, target.port, target.name) == (host, port, name)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("https://gpu-a:8000", "by http:// only"),
        ("gpu-a", "names no port"),
        ("http://gpu-a", "names no port"),
        ("http://gpu-a:0", "names no port"),
        ("http://gpu-a:99999", "Port out of range"),
        ("http://gpu-a:8000/v2/models", "http://HOST:PORT is"),
        ("http://u:p@gpu-a:8000", "http://HOST:PORT is"),
        ("http://:8000", "http://HOST:PORT is"),
        ("http://[::1:8000", "not the address of an engine"),
        ("http://gpu-a:8000/v1#a", "http://HOST:PORT is"),
    ],
)
def test_what_is_no_engine_is_refused_with_a_reason(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(complaint)):
        Target.parse(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("gpu-a:8000", "HOST:FROM-TO"),
        ("gpu-a:8000-70000", "1 to 65535"),
        ("gpu-a:9-8", "must rise"),
        (":1-2", "HOST:FROM-TO"),
    ],
)
def test_what_is_no_range_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        PortRange.parse(text)


def test_a_range_has_its_two_ends() -> None:
    assert [target.name for target in PortRange.parse("[::1]:8000-8002").targets()] == [
        f"[::1]:{8000 + k}" for k in range(3)
    ]


def test_the_engines_come_from_one_place() -> None:
    with pytest.raises(ConfigurationError, match="not from both"):
        EngineList([Target("a", 1)], [], Path("endpoints.yaml"))
    with pytest.raises(ConfigurationError, match="warmroute up http://"):
        EngineList()
    with pytest.raises(ConfigurationError, match="at most 1024 ports"):
        EngineList([], [PortRange("a", 1, 1025)])


class Names:
    """A name server."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **addresses: list[str]) -> None:
        self.addresses = addresses
        self.away = False
        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", self._answer)
        monkeypatch.setattr(engine_probe, "_kind", lambda target: None)  # nobody is asked for a metrics page

    async def _answer(self, host: str, port: object, **_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        if self.away or host not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in self.addresses[host]]
        return [(f, 1, 6, "", (a, 0)) for f, a in zip(families, self.addresses[host], strict=True)]


async def test_a_name_with_several_addresses_is_several_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch, one=["10.0.0.1", "::1"], many=["10.0.0.3", "10.0.0.2"], six=["2001:db8::1"])
    listed = await EngineList([Target("one", 80), Target("many", 80), Target("six", 80), Target("10.0.0.1", 80)]).look()
    assert [(engine.name, engine.target) for engine in listed] == [
        ("one:80", "10.0.0.1:80"),
        ("many:80 at 10.0.0.2", "10.0.0.2:80"),
        ("many:80 at 10.0.0.3", "10.0.0.3:80"),
        ("six:80", "[2001:db8::1]:80"),
    ]


async def test_a_name_keeps_its_addresses_while_no_name_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch, a=["10.0.0.1"])
    engines = EngineList([Target("a", 80)])
    before = await engines.look()
    names.away = True
    assert await engines.look() == before
    names.away, names.addresses["a"] = False, ["10.0.0.9"]
    assert [engine.address for engine in await engines.look()] == ["10.0.0.9"]


async def test_a_name_that_never_had_an_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch)
    with pytest.raises(ConfigurationError, match="the host name 'gpu-z' has no address: Name or service not known"):
        await EngineList([Target("gpu-z", 80)]).look()


def test_the_document_is_an_endpoints_file() -> None:
    entries = parse(document([Engine("gpu-a:80", "10.0.0.1", 80), Engine("[::1]:81", "::1", 81)])).endpoints
    assert [(entry.name, entry.address, entry.port) for entry in entries] == [
        ("gpu-a:80", "10.0.0.1", 80),
        ("[::1]:81", "::1", 81),
    ]
    assert parse(document([])).endpoints == []


async def test_the_engines_of_a_file_follow_it(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    file.write_text("endpoints:\n- {name: a, address: localhost, port: 80}\n")
    engines = EngineList(file=file)
    assert await engines.look() == [Engine("a", "127.0.0.1", 80)]
    roles = ("prefill", "decode", "encode", "both")
    entries = [f"- {{name: {role}, address: localhost, port: {80 + k}, role: {role}}}" for k, role in enumerate(roles)]
    entries.append("- {name: labelled, address: localhost, port: 90, labels: {llm-d.ai/role: prefill}}")
    file.write_text("\n".join(("endpoints:", *entries)))
    assert [engine.name for engine in await engines.look()] == ["decode", "both"]  # those that take clients' requests
    file.write_text("endpoints: []\n")
    assert await engines.look() == []
    file.write_text("endpoints: 3\n")
    with pytest.raises(ConfigurationError, match=r"the endpoints file .*endpoints.yaml: line 1, endpoints: "):
        await engines.look()
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match=r"the endpoints file .*endpoints.yaml: not UTF-8: byte 0"):
        await engines.look()


# ---------------------------------------------------------------- engines that answer


@contextlib.asynccontextmanager
async def answering(status: int, body: bytes, *, key: bytes = b"") -> AsyncIterator[int]:
    """A server that gives every request this answer, without the key 401; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        status_now = status if key in asked else 401
        writer.write(
            b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status_now, len(body)) + body
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


MODELS = json.dumps({"object": "list", "data": [{"id": "qwen"}, {"id": "lora"}]}).encode()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, MODELS, ModelsAnswer("qwen", "")),
        (401, b"", ModelsAnswer("", "", is_locked=True)),
        (503, b"", ModelsAnswer("", "answers 503 to GET /v1/models")),
        (200, b"<html>", ModelsAnswer("", "answers GET /v1/models without a list of models")),
        (200, b'{"data": []}', ModelsAnswer("", "answers GET /v1/models without a list of models")),
        (200, b'{"data": [{"id": {}}]}', ModelsAnswer("", "answers GET /v1/models without a list of models")),
        (200, b"[" * 100_000, ModelsAnswer("", "answers GET /v1/models without a list of models")),
        (200, rb'{"data": [{"id": "\u001b[31mred\n"}]}', ModelsAnswer("\x1b[31mred\n", "")),
    ],
)
async def test_an_engine_is_asked_for_its_models(status: int, body: bytes, expected: ModelsAnswer) -> None:
    async with answering(status, body) as port:
        assert await probe_models([f"127.0.0.1:{port}"]) == [expected]


@pytest.mark.integration
async def test_an_engine_is_asked_with_its_key() -> None:
    async with answering(200, MODELS, key=b"\r\nauthorization: Bearer s3cret\r\n") as port:
        targets = [f"127.0.0.1:{port}"]
        locked = ModelsAnswer("", "", is_locked=True)
        assert await probe_models(targets) == await probe_models(targets, "wrong") == [locked]
        assert await probe_models(targets, "s3cret") == [ModelsAnswer("qwen", "")]


@pytest.mark.integration
async def test_an_engine_that_is_away_is_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_probe, "PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        away = "127.0.0.1:1", f"127.0.0.1:{silent.getsockname()[1]}"
        assert await probe_models(away) == [
            ModelsAnswer("", "Connection refused"),
            ModelsAnswer("", "no answer in time"),
        ]


@contextlib.asynccontextmanager
async def engine(**pages: bytes) -> AsyncIterator[Target]:
    """A server with these pages by path; ``_`` stands for ``/``."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode().strip("/").replace("/", "_")
        status, body = (200, pages[path]) if path in pages else (404, b"")
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(body)) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Target("127.0.0.1", server.sockets[0].getsockname()[1])


@pytest.mark.integration
@pytest.mark.parametrize(
    ("pages", "kind"),
    [
        ({"metrics": b"# HELP vllm:num_requests_running x\nvllm:num_requests_running 0\n"}, "vllm"),
        ({"metrics": b"python_gc 1\nsglang:num_running_reqs 0\n"}, "sglang"),
        ({"metrics": b"[]", "prometheus_metrics": b"trtllm_kv_cache_utilization 0\n"}, "trtllm-serve"),
        ({"metrics": b"nv_trt_llm_request_metrics 0\n"}, "triton-tensorrt-llm"),
        ({"metrics": b"something 1 # vllm:\n"}, ""),
        ({}, ""),
    ],
    ids=["vllm", "sglang", "trtllm-serve", "triton", "other", "none"],
)
async def test_the_type_of_an_engine_is_seen_on_its_metrics_page(pages: dict[str, bytes], kind: str) -> None:
    async with engine(**pages) as target:
        (found,) = await EngineList([target]).look()
    assert found.kind == kind
    assert parse(document([found])).specs()[0].engine == kind


@pytest.mark.integration
async def test_an_engine_that_comes_later_is_asked_for_its_type_again() -> None:
    async with engine() as target:
        engines = EngineList([target])
        assert [each.kind for each in await engines.look()] == [""]
    async with engine(metrics=b"sglang:num_running_reqs 0\n") as other:
        engines.targets = [other]
        assert [each.kind for each in await engines.look()] == ["sglang"]


@pytest.mark.integration
async def test_a_range_is_searched_for_engines_and_those_found_are_kept() -> None:
    async with answering(200, MODELS) as port, answering(404, b"") as other:
        engines = EngineList([], [PortRange("127.0.0.1", port, port), PortRange("localhost", other, other)])
        assert [engine.port for engine in await engines.look()] == [port]
    assert [engine.port for engine in await engines.look()] == [port]
