"""The HTTP server of the metrics and debug ports: what it takes, what it refuses and what it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.observability import page_server
from warmroute.observability.page_server import (
    HEALTH,
    MOST_CONNECTIONS,
    MOST_HEAD_BYTES,
    MOST_PARAMETERS,
    Page,
    PageServer,
    Request,
    is_loopback,
)


async def _echo(request: Request) -> Page:
    return Page(repr(request.query).encode(), "text/plain")


async def _count(request: Request) -> Page:
    return Page(str(len(await request.body(100_000))).encode(), "text/plain")


async def _ok(_: Request) -> Page:
    return Page(b"ok\n", "text/plain")


@pytest.fixture
async def server() -> AsyncIterator[PageServer]:
    server = PageServer("127.0.0.1", 0, {"/echo": _echo, HEALTH: _ok}, port_flag="--port", posts={"/count": _count})
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def exchange(server: PageServer, request: bytes) -> bytes:
    """Everything that is answered to ``request`` until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(request)
        async with asyncio.timeout(60):
            return await reader.read()
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (b"Content-Length: 5", b"hello", b"200 OK"),
        (b"Content-Length: 90000", b"x" * 90_000, b"200 OK"),
        (b"Content-Length: 100001", b"", b"413 "),
        (b"Content-Length: +5", b"hello", b"411 "),
        (b"Content-Length: " + b"9" * 5000, b"", b"411 "),
        (b"Transfer-Encoding: chunked", b"0\r\n\r\n", b"411 "),
    ],
    ids=["short", "longer than a head may be", "too long", "no number", "absurd", "chunked"],
)
async def test_the_body_of_a_post_is_bounded(server: PageServer, head: bytes, body: bytes, status: bytes) -> None:
    answer = await exchange(server, b"POST /count HTTP/1.1\r\n" + head + b"\r\n\r\n" + body)
    assert answer.startswith(b"HTTP/1.1 " + status)
    if status == b"200 OK":
        assert answer.endswith(b"\r\n\r\n%d" % len(body))


@pytest.mark.integration
async def test_a_client_that_waits_is_told_to_go_on(server: PageServer) -> None:
    head = b"POST /count HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    assert (await exchange(server, head + b"ok")).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


@pytest.mark.integration
async def test_a_body_that_does_not_arrive_is_ended(server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_server, "BODY_SECONDS", 0.05)
    answer = await exchange(server, b"POST /count HTTP/1.1\r\nContent-Length: 5\r\n\r\nhell")
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.integration
async def test_a_client_that_hangs_up_within_its_body_is_no_fault_of_ours(
    server: PageServer, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST /count HTTP/1.1\r\nContent-Length: 5\r\n\r\nhell")
    writer.write_eof()
    async with asyncio.timeout(60):
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()
    assert not caplog.records


@pytest.mark.integration
async def test_head_is_get_without_the_body(server: PageServer) -> None:
    got, head = [await exchange(server, method + b" /echo?a=1 HTTP/1.1\r\n\r\n") for method in (b"GET", b"HEAD")]
    assert got.endswith(b"\r\n\r\n[('a', '1')]")
    assert head == got.removesuffix(b"[('a', '1')]")
    assert b"\r\nContent-Length: 12\r\n" in head


REFUSED = {
    b"POST /echo HTTP/1.1\r\nContent-Length: 1\r\n\r\nx": 405,
    b"GET /nothing HTTP/1.1\r\n\r\n": 404,
    b"GET echo HTTP/1.1\r\n\r\n": 400,
    b"GET /echo HTTP/2.0\r\n\r\n": 400,
    b"GET /\x00 HTTP/1.1\r\n\r\n": 400,
    b"\x16\x03\x01\x02\x00\r\n\r\n": 400,
    b"GET /echo?" + b"a=1&" * MOST_PARAMETERS + b"b=1 HTTP/1.1\r\n\r\n": 400,
    (b"GET /echo HTTP/1.1\r\nX: " + b"x" * MOST_HEAD_BYTES)[: MOST_HEAD_BYTES + 4]: 431,
}


@pytest.mark.integration
@pytest.mark.parametrize(("request_bytes", "status"), REFUSED.items(), ids=range(len(REFUSED)))
async def test_requests_out_of_bounds_are_refused(server: PageServer, request_bytes: bytes, status: int) -> None:
    answer = await exchange(server, request_bytes)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b'{"error":"' in answer


@pytest.mark.integration
async def test_a_request_that_does_not_arrive_is_ended(server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_server, "HEAD_SECONDS", 0.05)
    assert await exchange(server, b"GET /echo HTTP/1.1\r\n") == b""


@pytest.mark.integration
async def test_a_health_check_gets_through_while_others_hold_connections_open(
    server: PageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest of them are closed; the server never has more than its bound."""
    monkeypatch.setattr(page_server, "HEAD_SECONDS", 600.0)
    held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2 * MOST_CONNECTIONS)]
    try:
        assert (await exchange(server, b"GET /healthz HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\nok\n")
        async with asyncio.timeout(60):
            for reader, _ in held[: MOST_CONNECTIONS + 1]:
                assert await reader.read() == b""
        last = held[-1]
        last[1].write(b"GET /healthz HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(60):
            assert (await last[0].read()).endswith(b"ok\n")
    finally:
        for _, writer in held:
            writer.transport.abort()
        await asyncio.sleep(0)


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda data: b"GET /" + data))
def test_any_head_is_a_request_or_none(head: bytes) -> None:
    request = page_server._parsed(head)
    if request is not None:
        assert request.path.startswith("/")
        assert len(request.query) <= MOST_PARAMETERS
        assert "\r" not in request.path
        assert request.path.isascii()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9091", 200),
        ("[::1]:9091", 200),
        ("[::1]", 200),
        ("localhost", 200),
        ("LOCALHOST:9091", 200),
        ("picker.localhost:80", 200),
        ("10.0.0.7", 200),
        ("attacker.example", 421),
        ("attacker.example:9091", 421),
        ("127.0.0.1.attacker.example:9091", 421),
        ("localhost.attacker.example", 421),
        ("attackerlocalhost", 421),
    ],
)
async def test_a_name_that_leads_to_loopback_by_dns_is_refused(host: str, status: int) -> None:
    server = PageServer("127.0.0.1", 0, {"/echo": _echo}, port_flag="--port", only_local=True)
    await server.start()
    try:
        answer = await exchange(server, f"GET /echo HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert answer.split(b" ", 2)[1] == str(status).encode()
        assert (await exchange(server, b"GET /echo HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200")
    finally:
        await server.stop()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("", False), ("0.0.0.0", False), ("10.0.0.7", False)],
)
def test_which_hosts_are_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


@pytest.mark.integration
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("", 200),
        ("Sec-Fetch-Site: same-origin\r\n", 200),
        ("Sec-Fetch-Site: same-origin\r\nOrigin: http://proxy.example\r\n", 200),
        ("Sec-Fetch-Site: none\r\n", 200),
        ("Origin: http://localhost:9091\r\n", 200),
        ("Sec-Fetch-Site: cross-site\r\n", 403),
        ("Sec-Fetch-Site: same-site\r\n", 403),
        ("Origin: http://attacker.example\r\n", 403),
        ("Origin: http://localhost:8000\r\n", 403),
        ("Origin: null\r\n", 403),
    ],
)
async def test_a_post_of_another_origins_page_is_refused(server: PageServer, headers: str, status: int) -> None:
    head = f"POST /count HTTP/1.1\r\nHost: localhost:9091\r\n{headers}Content-Length: 2\r\n\r\nab"
    answer = await exchange(server, head.encode())
    assert answer.split(b" ", 2)[1] == str(status).encode()
