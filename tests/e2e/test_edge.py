"""What Envoy itself refuses and removes before the picker is asked: slow uploads, open-ended requests, control headers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.e2e.conftest import StartEnvoy
from tests.fixtures.envoy.apps import picker_app, target
from tests.fixtures.envoy.backends import backends
from tests.fixtures.envoy.ext_proc_filter import BodyMode
from tests.fixtures.envoy.http1 import connect, encode_chunk, encode_fields, exchange, read_message
from tests.fixtures.envoy.pickers import scripted_picker
from tests.waiting import eventually
from warmroute.extproc import ext_proc_pb2 as pb
from warmroute.extproc.headers import CONTROL, DESTINATION, FAIRNESS_IDS, MODEL_REWRITES, OBJECTIVES
from warmroute.standalone.proxy_config import Picking

SHORT = 0.5
"""The request timeout of these tests in seconds; the default is a minute."""
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()


async def answer_to_a_slow_upload(url: str, fields: Mapping[str, str]) -> Any:
    """The response to a request that begins a body and never ends it."""
    reader, writer = await connect(url)
    try:
        head = {"host": "test", "content-type": "application/json", **fields}
        writer.write(encode_fields("POST /v1/chat/completions HTTP/1.1", head) + encode_chunk(b'{"model":'))
        async with asyncio.timeout(60):
            return await read_message(reader)
    finally:
        writer.close()


@pytest.mark.parametrize("picking", list(Picking))
@pytest.mark.parametrize("mode", [BodyMode.BUFFERED, BodyMode.FULL_DUPLEX_STREAMED])
@pytest.mark.parametrize("fields", [{"content-length": "1000"}, {"transfer-encoding": "chunked"}])
async def test_a_slow_upload_is_ended_and_a_long_answer_is_not(
    envoy: StartEnvoy, tmp_path: Path, mode: BodyMode, picking: Picking, fields: dict[str, str]
) -> None:
    async with (
        backends(1) as pods,
        picker_app([pods[0].target], tmp_path) as app,
        envoy(pods, target(app), request_body_mode=mode, picking=picking, request_timeout=SHORT) as proxy,
    ):
        wishes = {"x-test-sse": "3", "x-test-hold": "body"}
        silent = asyncio.create_task(exchange(proxy.url, body=BODY, headers={"x-test-hold": "head"}))
        pausing = asyncio.create_task(exchange(proxy.url, body=BODY, headers=wishes))
        await eventually(lambda: sum("POST" in r.start for r in pods[0].requests) == 2, "two answers under way")
        refused = await answer_to_a_slow_upload(proxy.url, fields)
        assert refused.status == 408  # so more than the request timeout has passed since the two began
        assert not silent.done()
        assert not pausing.done()
        pods[0].release.set()
        assert (await silent).status == 200
        assert (await pausing).body.endswith(b"[DONE]\n\n")
        await eventually(lambda: app.server.open_streams == 0, "no stream left open")
        assert sum("POST" in r.start for r in pods[0].requests) == 2, "the unfinished request reached no engine"


async def test_a_bare_connect_holds_no_stream(envoy: StartEnvoy, tmp_path: Path) -> None:
    async with (
        backends(1) as pods,
        picker_app([pods[0].target], tmp_path) as app,
        envoy(pods, target(app), request_timeout=SHORT) as proxy,
    ):
        reader, writer = await connect(proxy.url)
        writer.write(b"CONNECT engine:80 HTTP/1.1\r\nhost: engine:80\r\n\r\n")
        async with asyncio.timeout(60):
            answer = await read_message(reader)
        writer.close()
        assert answer is not None
        assert answer.status == 404  # at once: no route takes it
        await eventually(lambda: app.server.open_streams == 0, "no stream left open")


async def test_slow_headers_are_ended(envoy: StartEnvoy) -> None:
    async with backends(1) as pods, envoy(pods, "127.0.0.1:1", request_headers_timeout=SHORT) as proxy:
        reader, writer = await connect(proxy.plain_url)
        writer.write(b"POST / HTTP/1.1\r\nhost: test\r\nx-endless")
        async with asyncio.timeout(60):
            answer = await read_message(reader)
        writer.close()
        assert answer is not None
        assert answer.status == 408


def recording(seen: list[dict[str, str]]) -> Any:
    """A picker's script that notes the headers of each request and lets it go on."""

    async def script(context: grpc.aio.ServicerContext[Any, Any]) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]  # missing in the stubs
            if message.HasField("request_headers"):
                seen.append({h.key: h.raw_value.decode() for h in message.request_headers.headers.headers})
                await context.write(pb.ProcessingResponse(request_headers=pb.HeadersResponse()))
            else:
                await context.write(pb.ProcessingResponse(request_body=pb.BodyResponse()))

    return script


@pytest.mark.parametrize("allowed", [(), OBJECTIVES, (*FAIRNESS_IDS, *MODEL_REWRITES)])
async def test_control_headers_reach_neither_picker_nor_engine_unless_allowed(
    envoy: StartEnvoy, allowed: tuple[str, ...]
) -> None:
    seen: list[dict[str, str]] = []
    async with (
        backends(1) as pods,
        scripted_picker(recording(seen)) as epp,
        envoy(pods, epp, client_headers=allowed) as proxy,
    ):
        sent = {name: f"of a client ({name})" for name in CONTROL} | {"x-other": "stays"}
        assert (await exchange(proxy.url, body=BODY, headers=sent)).status == 200
        assert {name for name in CONTROL if name in seen[0]} == set(allowed)
        assert {name for name in CONTROL if name in pods[0].requests[-1].headers} == set(allowed)
        assert seen[0]["x-other"] == "stays"


@pytest.mark.parametrize("picking", list(Picking))
async def test_a_client_rewrites_no_model_and_names_no_endpoint(
    envoy: StartEnvoy, tmp_path: Path, picking: Picking
) -> None:
    async with (
        backends(2) as pods,
        picker_app([pods[0].target], tmp_path) as app,
        envoy(pods, target(app), picking=picking) as proxy,
        envoy(pods, target(app), picking=picking, client_headers=MODEL_REWRITES) as allowing,
    ):
        sent = {DESTINATION: pods[1].target, MODEL_REWRITES[0]: "another"}
        answer = await exchange(proxy.url, body=BODY, headers=sent)
        assert (answer.status, answer.headers["x-backend"]) == (200, "pod-0")
        assert pods[0].requests[-1].body == BODY
        answer = await exchange(allowing.url, body=BODY, headers=sent)
        assert (answer.status, answer.headers["x-backend"]) == (200, "pod-0")
        assert json.loads(pods[0].requests[-1].body)["model"] == "another"
