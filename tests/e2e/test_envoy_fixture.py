"""The fixtures of the end-to-end tests do what the tests rely on."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.e2e.conftest import StartEnvoy
from tests.fixtures.envoy.backends import backends
from tests.fixtures.envoy.http1 import connect, encode, exchange, read_message
from tests.fixtures.envoy.pickers import scripted_picker, warmroute_serve
from warmroute.extproc import ext_proc_pb2 as pb
from warmroute.extproc.headers import DESTINATION, SUBSET_KEY, SUBSET_NAMESPACE
from warmroute.standalone.bootstrap import endpoint_discovery, to_yaml
from warmroute.standalone.proxy_config import Picking

COMPUTED = 0.4
"""Seconds after which the picker takes a prompt of 1,000 tokens to be computed (`--prefill-rate`): these backends answer at
once and have no metrics."""


def destination(target: str) -> pb.HeaderMutation:
    option = pb.HeaderValueOption(
        header=pb.HeaderValue(key=DESTINATION, raw_value=target.encode()),
        append_action=pb.OVERWRITE_IF_EXISTS_OR_ADD,
    )
    return pb.HeaderMutation(set_headers=[option])


def fixed(target: str, seen: list[pb.ProcessingRequest] | None = None) -> Any:
    """A script for BUFFERED requests that picks the same endpoint each time."""

    async def script(context: grpc.aio.ServicerContext[Any, Any]) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]  # not in grpc-stubs
            if seen is not None:
                seen.append(message)
            common = pb.CommonResponse(header_mutation=destination(target))
            if message.WhichOneof("request") == "request_body" or message.request_headers.end_of_stream:
                if message.HasField("request_body"):
                    await context.write(pb.ProcessingResponse(request_body=pb.BodyResponse(response=common)))
                else:
                    await context.write(pb.ProcessingResponse(request_headers=pb.HeadersResponse(response=common)))
                return
            await context.write(pb.ProcessingResponse(request_headers=pb.HeadersResponse()))

    return script


@pytest.mark.parametrize("picking", list(Picking))
async def test_the_pickers_choice_is_obeyed_and_the_clients_is_not(envoy: StartEnvoy, picking: Picking) -> None:
    async with (
        backends(3) as pods,
        scripted_picker(fixed(pods[1].target)) as epp,
        envoy(pods, epp, picking=picking) as proxy,
    ):
        body = json.dumps({"model": "m", "prompt": "x" * 100_000}).encode()
        answer = await exchange(proxy.url, body=body, headers={DESTINATION: pods[2].target})
        told = json.loads(answer.body)
        assert answer.status == 200
        assert answer.headers["x-backend"] == "pod-1"
        assert told["headers"][DESTINATION] == pods[1].target
        assert told["body_sha256"] == hashlib.sha256(body).hexdigest()
        assert (await exchange(proxy.url, "/v1/models", method="GET")).headers["x-backend"] == "pod-1"


async def test_the_plain_listener_does_not_ask_and_strips_the_header(envoy: StartEnvoy) -> None:
    async with backends(2) as pods, envoy(pods, "127.0.0.1:1", epp_health_check=False) as proxy:
        names = [
            (await exchange(proxy.plain_url, headers={DESTINATION: pods[0].target})).headers["x-backend"]
            for _ in range(30)
        ]
        assert set(names) == {"pod-0", "pod-1"}
        assert all(DESTINATION not in request.headers for pod in pods for request in pod.requests)


async def test_fail_open_when_the_picker_is_dead_from_the_start(envoy: StartEnvoy) -> None:
    async with backends(1) as pods, envoy(pods, "127.0.0.1:1") as proxy:
        assert (await exchange(proxy.url, body=b"{}")).status == 200
    async with backends(1) as pods, envoy(pods, "127.0.0.1:1", failure_mode_allow=False) as proxy:
        assert (await exchange(proxy.url, body=b"{}")).status == 500


@pytest.mark.parametrize("hint", [("10.0.0.1:8000", "10.0.0.2:8000"), "10.0.0.1:8000,10.0.0.2", ()])
async def test_the_subset_hint_reaches_the_picker_as_given(envoy: StartEnvoy, hint: Any) -> None:
    seen: list[pb.ProcessingRequest] = []
    async with (
        backends(1) as pods,
        scripted_picker(fixed(pods[0].target, seen)) as epp,
        envoy(pods, epp, subset_hint=hint) as proxy,
    ):
        await exchange(proxy.url, body=b"{}")
    value: Any = seen[0].metadata_context.filter_metadata[SUBSET_NAMESPACE][SUBSET_KEY]
    assert (value if isinstance(hint, str) else tuple(value)) == hint


async def test_endpoints_from_a_file_follow_a_rename(envoy: StartEnvoy, tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    async with backends(2) as pods:
        file.write_text(to_yaml(endpoint_discovery([pods[0].target])))
        async with envoy([], "127.0.0.1:1", endpoints_file=file, epp_health_check=False) as proxy:
            assert (await exchange(proxy.plain_url)).headers["x-backend"] == "pod-0"
            new = tmp_path / "new.yaml"
            new.write_text(to_yaml(endpoint_discovery([pods[1].target], version="2")))
            new.rename(file)
            await proxy.wait_for_stat("cluster.plain_pool.update_success", 2)
            assert (await exchange(proxy.plain_url)).headers["x-backend"] == "pod-1"


async def test_backends_stream_hold_and_send_trailers(envoy: StartEnvoy) -> None:
    async with backends(1) as pods, envoy(pods, "127.0.0.1:1", epp_health_check=False) as proxy:
        wishes = {"x-test-sse": "3", "x-test-hold": "body", "x-test-trailers": "x-end"}
        asked = asyncio.create_task(
            exchange(proxy.plain_url, chunks=[b"ab", b"cd"], trailers={"x-t": "1"}, headers=wishes)
        )
        await pods[0].wait_for_requests(1)
        assert not asked.done()
        pods[0].release.set()
        answer = await asked
        assert answer.body.count(b"data: ") == 4
        assert answer.trailers == {"x-end": "pod-0"}
        assert pods[0].requests[0].body == b"abcd"
        assert pods[0].requests[0].trailers == {"x-t": "1"}


async def test_one_connection_carries_several_requests(envoy: StartEnvoy) -> None:
    async with backends(1) as pods, envoy(pods, "127.0.0.1:1", epp_health_check=False) as proxy:
        reader, writer = await connect(proxy.plain_url)
        for i in range(2):
            writer.write(encode("POST / HTTP/1.1", {"host": "test"}, b"x" * i))
            answer = await read_message(reader)
            assert answer is not None
            assert json.loads(answer.body)["body_length"] == i
        writer.close()


async def test_a_backend_that_stops_refuses_and_comes_back_on_its_port(envoy: StartEnvoy) -> None:
    async with (
        backends(1) as pods,
        envoy(pods, "127.0.0.1:1", epp_health_check=False, retries=0) as proxy,
    ):
        await pods[0].stop()
        assert (await exchange(proxy.plain_url)).status == 503
        await pods[0].start()
        assert (await exchange(proxy.plain_url)).status == 200


async def test_the_shipped_picker_keeps_a_conversation_on_one_backend(envoy: StartEnvoy, tmp_path: Path) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 4000}]}).encode()
    async with (
        backends(3) as pods,
        warmroute_serve([pod.target for pod in pods], tmp_path, "--routing-strategy=PREFIX_CACHE") as (epp, _),
        envoy(pods, epp, failure_mode_allow=False) as proxy,
    ):
        names = set()
        for _ in range(3):
            names.add((await exchange(proxy.url, body=body)).headers["x-backend"])
            await asyncio.sleep(COMPUTED)
    assert len(names) == 1
