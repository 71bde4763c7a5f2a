"""Every body mode of ext_proc, against a real Envoy."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import StartEnvoy
from tests.fixtures.envoy import NO_RETRIES
from tests.fixtures.envoy.apps import picker_app, target
from tests.fixtures.envoy.backends import backends
from tests.fixtures.envoy.ext_proc_filter import BodyMode
from tests.fixtures.envoy.http1 import Message, connect, encode, encode_chunk, encode_fields, exchange
from tests.waiting import eventually
from warmroute.standalone.proxy_config import Picking

NONE, STREAMED, BUFFERED, PARTIAL, DUPLEX = (
    BodyMode.NONE,
    BodyMode.STREAMED,
    BodyMode.BUFFERED,
    BodyMode.BUFFERED_PARTIAL,
    BodyMode.FULL_DUPLEX_STREAMED,
)
SEEING = [BUFFERED, PARTIAL, DUPLEX]
"""The modes in which the picker sees the prompt before it must choose."""


def chat(text: str, model: str = "m", **more: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": text}], **more}).encode()


def served_by(answer: Message) -> str:
    assert answer.status == 200, answer.body
    return answer.headers["x-backend"]


def received(answer: Message) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(answer.body)
    return told


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def assert_arrived(answer: Message, body: bytes) -> None:
    assert received(answer)["body_sha256"] == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("picking", list(Picking))
@pytest.mark.parametrize("mode", list(BodyMode))
async def test_every_kind_of_request_is_routed_and_arrives_whole(
    envoy: StartEnvoy, tmp_path: Path, mode: BodyMode, picking: Picking
) -> None:
    bodies = [chat("Hello. " * 20), chat("A longer prompt. " * 20_000), b"x" * 100_000, b""]
    async with (
        backends(3) as pods,
        picker_app([pod.target for pod in pods], tmp_path) as app,
        envoy(
            pods, target(app), request_body_mode=mode, picking=picking, failure_mode_allow=False, response_headers=True
        ) as proxy,
    ):
        for body in bodies:
            answer = await exchange(
                proxy.url, body=body, headers={"content-type": "application/json" if body[:1] == b"{" else "text/plain"}
            )
            assert answer.headers["x-backend"] in {"pod-0", "pod-1", "pod-2"}
            assert_arrived(answer, body)
            assert received(answer)["headers"]["x-gateway-destination-endpoint"] in {pod.target for pod in pods}
        pieces = [bodies[1][k : k + 50_000] for k in range(0, len(bodies[1]), 50_000)]
        assert_arrived(await exchange(proxy.url, chunks=pieces), bodies[1])
        assert_arrived(await exchange(proxy.url, "/v1/models", method="GET"), b"")
        assert_arrived(await exchange(proxy.url, chunks=[]), b"")
        answer = await exchange(proxy.url, body=bodies[0], headers={"x-test-sse": "3"})
        assert answer.body.endswith(b"data: [DONE]\n\n")
        await eventually(lambda: app.server.open_streams == 0, "all streams closed")
        stats = await proxy.stats("ext_proc")
        assert not [
            name
            for name, count in stats.items()
            if count and name.endswith(("streams_failed", "spurious_msgs_received", "message_timeouts"))
        ]


@pytest.mark.parametrize("mode", SEEING)
async def test_the_next_turn_goes_to_the_warm_pod(envoy: StartEnvoy, tmp_path: Path, mode: BodyMode) -> None:
    async with (
        backends(4) as pods,
        picker_app([pod.target for pod in pods], tmp_path) as app,
        envoy(pods, target(app), request_body_mode=mode) as proxy,
    ):
        for user in range(4):
            first = chat(f"user {user}: " + "context " * 300)
            turn = json.loads(first)
            turn["messages"] += [{"role": "assistant", "content": "ok"}, {"role": "user", "content": "next"}]
            warm = served_by(await exchange(proxy.url, body=first))
            await asyncio.sleep(0.3)  # the virtual queue drains at 7,000 tokens/s
            assert served_by(await exchange(proxy.url, body=json.dumps(turn).encode())) == warm


async def test_half_a_prompt_is_enough_in_partial_mode(envoy: StartEnvoy, tmp_path: Path) -> None:
    async with (
        backends(3) as pods,
        picker_app([pod.target for pod in pods], tmp_path) as app,
        envoy(pods, target(app), request_body_mode=PARTIAL, connection_buffer_bytes=32_768) as proxy,
    ):
        body = chat("long document " * 5_000)
        warm = served_by(await exchange(proxy.url, body=body))
        await asyncio.sleep(3)
        assert served_by(await exchange(proxy.url, body=chat("long document " * 5_000 + "!"))) == warm
        assert app.decisions.newest_first()[0].reason == "warm"


@pytest.mark.parametrize("mode", [BUFFERED, PARTIAL, DUPLEX])
async def test_trailers(envoy: StartEnvoy, tmp_path: Path, mode: BodyMode) -> None:
    # Envoy 1.40 sends the body of a FULL_DUPLEX_STREAMED request with trailers twice if its route has a retry policy,
    # whatever the picker answers (docs/envoy.md): no retries here.
    retries = NO_RETRIES if mode is DUPLEX else {}
    async with (
        backends(2) as pods,
        picker_app([pod.target for pod in pods], tmp_path) as app,
        envoy(pods, target(app), request_body_mode=mode, request_trailers=True, **retries) as proxy,
    ):
        body = chat("with trailers " * 5000)
        for chunks in ([body], [body[k : k + 10_000] for k in range(0, len(body), 10_000)]) * 10:
            async with asyncio.timeout(60):
                answer = await exchange(proxy.url, chunks=chunks, trailers={"x-checksum": "1"})
            assert_arrived(answer, body)
        await eventually(lambda: app.server.open_streams == 0, "all streams closed")


@pytest.mark.parametrize("picking", list(Picking))
@pytest.mark.parametrize("mode", SEEING)
async def test_trailers_without_a_body(envoy: StartEnvoy, tmp_path: Path, mode: BodyMode, picking: Picking) -> None:
    async with (
        backends(3) as pods,
        picker_app([pod.target for pod in pods], tmp_path) as app,
        envoy(
            pods,
            target(app),
            request_body_mode=mode,
            picking=picking,
            request_trailers=True,
            failure_mode_allow=False,
            **NO_RETRIES,
        ) as proxy,
    ):
        for _ in range(6):
            answer = await exchange(proxy.url, "/v1/models", chunks=[], trailers={"x-checksum": "1"})
            if picking is Picking.ORIGINAL_DST and mode is not DUPLEX:
                assert answer.status == 503  # the answer to trailers cannot set the header that this cluster goes by
            else:
                (named,) = [pod for pod in pods if pod.target == app.decisions.newest_first()[0].targets]
                assert answer.headers["x-backend"] == named.name
        stats = await proxy.stats("ext_proc")
        assert not [name for name, count in stats.items() if count and name.endswith("spurious_msgs_received")]


@pytest.mark.parametrize("response", [BodyMode.NONE, BodyMode.BUFFERED, BodyMode.STREAMED, DUPLEX])
@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX])
@pytest.mark.parametrize("observe", [False, True])
async def test_responses_pass_unharmed(
    envoy: StartEnvoy, tmp_path: Path, mode: BodyMode, response: Any, observe: Any
) -> None:
    async with (
        backends(2) as pods,
        picker_app([pod.target for pod in pods], tmp_path, observe_responses=observe) as app,
        envoy(
            pods,
            target(app),
            request_body_mode=mode,
            response_headers=True,
            response_body_mode=response,
            response_trailers=response is DUPLEX,
        ) as proxy,
    ):
        body = chat("hello " * 3000)

        async def one(k: int) -> None:
            if k % 2:
                answer = await exchange(proxy.url, body=body, headers={"x-test-sse": "20"})
                assert answer.body.count(b"data: ") == 21
            else:
                assert_arrived(await exchange(proxy.url, body=body), body)

        for _ in range(5):
            await asyncio.gather(*(one(k) for k in range(10)))
        await eventually(lambda: app.server.open_streams == 0, "all streams closed")
        assert all(load.open_responses == 0 for load in app.router.loads)


@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX])
async def test_a_model_is_rewritten_on_the_way(envoy: StartEnvoy, tmp_path: Path, mode: BodyMode) -> None:
    models = ', "models": [{"name": "alias", "targets": [{"name": "the-real-model"}]}]'
    async with (
        backends(2) as pods,
        picker_app([pod.target for pod in pods], tmp_path, models) as app,
        envoy(pods, target(app), request_body_mode=mode) as proxy,
    ):
        for size in (10, 200_000):
            body = chat("x" * size, model="alias")
            assert_arrived(await exchange(proxy.url, body=body), body.replace(b'"alias"', b'"the-real-model"'))


@pytest.mark.parametrize("mode", SEEING)
async def test_bad_input_is_answered_by_the_picker(envoy: StartEnvoy, tmp_path: Path, mode: BodyMode) -> None:
    async with (
        backends(1) as pods,
        picker_app([pod.target for pod in pods], tmp_path, max_body_bytes=300_000, strict_models=True) as app,
        envoy(pods, target(app), request_body_mode=mode) as proxy,
    ):
        for body, status, reason in (
            (b'{"model": "m", "messages": [}', 400, "malformed"),
            (b'{"messages": []}', 400, "no-model"),
            (chat("hi"), 404, "unknown-model"),
            (chat("x" * 400_000), 413, "body-too-large"),
        ):
            answer = await exchange(proxy.url, body=body)
            assert (answer.status, answer.headers["x-warmroute-dropped-reason"]) == (status, reason)
            assert answer.headers["content-type"] == "application/json"
            assert json.loads(answer.body)["error"]["code"] == status
        app.pool.replace([], 0.0)
        answer = await exchange(proxy.url, "/v1/models", method="GET")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert not any("POST" in request.start for request in pods[0].requests)


@pytest.mark.parametrize("hint", [("{0}",), "{0}", "{0},{1}", ("[::1]:1", "{1}"), ()])
async def test_the_subset_hint(envoy: StartEnvoy, tmp_path: Path, hint: Any) -> None:
    async with backends(3) as pods, picker_app([pod.target for pod in pods], tmp_path) as app:
        names = [pod.target for pod in pods]
        filled = hint.format(*names) if isinstance(hint, str) else tuple(entry.format(*names) for entry in hint)
        allowed = {pod.name for pod in pods if pod.target in filled}
        async with envoy(pods, target(app), subset_hint=filled) as proxy:
            for _ in range(4):
                answer = await exchange(proxy.url, body=chat("hi"))
                if allowed:
                    assert served_by(answer) in allowed
                else:
                    assert (answer.status, answer.headers["x-warmroute-dropped-reason"]) == (503, "empty-subset")


@pytest.mark.parametrize("picking", list(Picking))
async def test_ipv6(envoy: StartEnvoy, tmp_path: Path, picking: Picking) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback address")
    async with backends(2, "::1") as pods, picker_app([pod.target for pod in pods], tmp_path) as app:
        only = pods[1].target
        async with envoy(pods, target(app), picking=picking, subset_hint=(only,), failure_mode_allow=False) as proxy:
            answer = await exchange(proxy.url, body=chat("hi"))
            assert served_by(answer) == "pod-1"
            assert received(answer)["headers"]["x-gateway-destination-endpoint"] == only == f"[::1]:{pods[1].port}"


async def test_fallbacks_are_tried_in_order_and_the_served_endpoint_is_told(envoy: StartEnvoy, tmp_path: Path) -> None:
    async with (
        backends(3) as pods,
        picker_app(
            [pod.target for pod in pods],
            tmp_path,
            max_endpoints=3,
            enable_conformance_headers=True,
            observe_responses=True,
            refresh_metrics_interval=60,
            idle_metrics_interval=60,
        ) as app,
        envoy(pods, target(app), response_headers=True, retry_on="5xx") as proxy,
    ):
        answer = await exchange(proxy.url, body=chat("a"))
        order = received(answer)["headers"]["x-gateway-destination-endpoint"].split(",")
        assert len(order) == 3
        assert answer.headers["x-conformance-test-served-endpoint"] == order[0]
        for pod in pods:
            pod.status = 503 if pod.target == order[1] else 200
        answer = await exchange(proxy.url, body=chat("b"))
        order = received(answer)["headers"]["x-gateway-destination-endpoint"].split(",")
        by_target = {pod.target: pod for pod in pods}
        expected = next(t for t in order if by_target[t].status == 200)
        assert answer.headers["x-conformance-test-served-endpoint"] == expected
        chosen = await exchange(proxy.url, body=chat("c"), headers={"test-epp-endpoint-selection": expected})
        assert chosen.headers["x-conformance-test-served-endpoint"] == expected


async def test_shadow_mode_is_not_answered(envoy: StartEnvoy, tmp_path: Path) -> None:
    async with (
        backends(2) as pods,
        picker_app([pod.target for pod in pods], tmp_path) as app,
        envoy(pods, target(app), request_body_mode=NONE, observability_mode=True) as proxy,
    ):
        for _ in range(5):
            assert (await exchange(proxy.url, body=chat("hi"))).status == 200
        assert app.decisions.newest_first() == []


@pytest.mark.parametrize("mode", SEEING)
@pytest.mark.parametrize("stage", ["in the headers", "in the body", "before the response", "in the response"])
async def test_a_client_that_goes_away_leaves_nothing_behind(
    envoy: StartEnvoy, tmp_path: Path, mode: BodyMode, stage: Any
) -> None:
    async with (
        backends(1) as pods,
        picker_app([pod.target for pod in pods], tmp_path, observe_responses=True) as app,
        envoy(pods, target(app), request_body_mode=mode, response_headers=True) as proxy,
    ):
        reader, writer = await connect(proxy.url)
        hold = {"x-test-hold": "head" if stage == "before the response" else "body", "x-test-sse": "2"}
        fields = {"host": "t", "content-type": "application/json", **hold}
        if stage == "in the headers":
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\n")
        elif stage == "in the body":
            start = encode_fields("POST /v1/chat/completions HTTP/1.1", fields | {"transfer-encoding": "chunked"})
            writer.write(start + encode_chunk(b'{"model": "m", "messages": ['))
            await eventually(lambda: app.server.open_streams == 1, "stream open")
        else:
            writer.write(encode("POST /v1/chat/completions HTTP/1.1", fields, chat("hi")))
            await eventually(lambda: any("POST" in request.start for request in pods[0].requests), "request arrived")
            if stage == "in the response":
                assert await reader.read(1)
        await writer.drain()
        writer.transport.abort()
        await eventually(lambda: app.server.open_streams == 0, "all streams closed")
        assert all(load.open_responses == 0 for load in app.router.loads)
        pods[0].release.set()
        assert (await exchange(proxy.url, body=chat("still here"))).status == 200


async def test_observed_requests_are_counted_to_their_true_end(envoy: StartEnvoy, tmp_path: Path) -> None:
    async with (
        backends(1) as pods,
        picker_app([pod.target for pod in pods], tmp_path, observe_responses=True) as app,
        envoy(pods, target(app)) as proxy,
    ):
        (load,) = app.router.loads
        request = asyncio.create_task(
            exchange(proxy.url, body=chat("hi"), headers={"x-test-hold": "body", "x-test-sse": "2"})
        )
        await eventually(lambda: load.open_responses == 1, "counted")
        await asyncio.sleep(0.2)
        assert load.open_responses == 1
        pods[0].release.set()
        await request
        await eventually(lambda: load.open_responses == 0, "released at the end")


async def test_an_upload_that_is_refused_on_its_way_is_answered(envoy: StartEnvoy, tmp_path: Path) -> None:
    """A chunked upload has no length: the picker refuses it when there is too much, while the client still sends."""
    async with (
        backends(1) as pods,
        picker_app([pod.target for pod in pods], tmp_path, max_body_bytes=300_000, body_memory=600_000) as app,
        envoy(pods, target(app), request_body_mode=DUPLEX) as proxy,
    ):
        answer = await exchange(proxy.url, chunks=[b"x" * 50_000] * 8)
        assert (answer.status, answer.headers["x-warmroute-dropped-reason"]) == (413, "body-too-large")
        budget = app._budget
        assert budget.take(budget.limit - 100_000)
        answer = await exchange(proxy.url, chunks=[b"x" * 50_000] * 4)
        assert (answer.status, answer.headers["x-warmroute-dropped-reason"]) == (503, "overloaded")
        assert answer.headers["retry-after"] == "1"
        assert (await exchange(proxy.url, body=chat("hi"))).status == 200


@pytest.mark.parametrize("mode", SEEING)
async def test_an_upload_that_never_ends_gets_408(envoy: StartEnvoy, tmp_path: Path, mode: BodyMode) -> None:
    async with (
        backends(1) as pods,
        picker_app([pod.target for pod in pods], tmp_path, body_timeout=0.5) as app,
        envoy(pods, target(app), request_body_mode=mode) as proxy,
    ):
        reader, writer = await connect(proxy.url)
        try:
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-length: 1000\r\n\r\n{")
            async with asyncio.timeout(60):
                assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        finally:
            writer.close()
        await eventually(lambda: app.server.open_streams == 0)


@pytest.mark.parametrize("mode", list(BodyMode))
async def test_a_websocket_is_opened_and_passed_on_both_ways(envoy: StartEnvoy, tmp_path: Path, mode: BodyMode) -> None:
    async with (
        backends(3) as pods,
        picker_app([pod.target for pod in pods], tmp_path) as app,
        envoy(
            pods, target(app), request_body_mode=mode, picking=Picking.ORIGINAL_DST, failure_mode_allow=False
        ) as proxy,
    ):
        reader, writer = await connect(proxy.url)
        head = {"host": "test", "connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
        writer.write(encode_fields("GET /v1/realtime HTTP/1.1", head))
        async with asyncio.timeout(60):
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 101 "), answer
            for data in (b"first", b"second"):
                writer.write(data)
                assert await reader.readexactly(len(data)) == data.upper()
        if mode is not DUPLEX:
            await eventually(lambda: app.server.open_streams == 0)
        writer.close()
        assert_arrived(await exchange(proxy.url, body=chat("Hello")), chat("Hello"))


@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX])
async def test_a_compressed_body_is_read_and_arrives_as_it_was_sent(
    envoy: StartEnvoy, tmp_path: Path, mode: BodyMode
) -> None:
    async with (
        backends(3) as pods,
        picker_app([pod.target for pod in pods], tmp_path, debug_decisions=9) as app,
        envoy(pods, target(app), request_body_mode=mode, failure_mode_allow=False) as proxy,
    ):
        body = gzip.compress(chat("Say it again. " * 2_000))
        answers = [await exchange(proxy.url, body=body, headers={"content-encoding": "gzip"}) for _ in range(2)]
        for answer in answers:
            assert_arrived(answer, body)
            assert received(answer)["headers"]["content-encoding"] == "gzip"
        checkpoints = [app.router.held(load)[0] for load in app.router.loads]
        assert sum(checkpoints) > 20, "the prompt was read"
