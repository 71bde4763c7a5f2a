"""What a client sees when the picker, an engine or a peer fails: the picker's death must not be the request's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import StartEnvoy
from tests.factories import registry_of
from tests.fixtures.envoy import NO_RETRIES
from tests.fixtures.envoy.apps import picker_app, target
from tests.fixtures.envoy.backends import backends
from tests.fixtures.envoy.ext_proc_filter import BodyMode
from tests.fixtures.envoy.http1 import Message, exchange
from tests.fixtures.envoy.pickers import endpoints_document, warmroute_serve
from tests.waiting import eventually
from warmroute.extproc.headers import DESTINATION
from warmroute.standalone.envoy import EnvoyProcess
from warmroute.standalone.proxy_config import Picking

BUFFERED, DUPLEX = BodyMode.BUFFERED, BodyMode.FULL_DUPLEX_STREAMED
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello " * 200}]}).encode()


async def answered(url: str, as_wished: Callable[[Message], bool]) -> None:
    """Requests are answered as wished, at the latest when Envoy's next health check has told all its workers."""
    async with asyncio.timeout(60):
        while not as_wished(await exchange(url, body=BODY)):
            await asyncio.sleep(0.1)
    assert as_wished(await exchange(url, body=BODY))


async def fallen_to_zero(proxy: EnvoyProcess, gauge: str) -> None:
    """Return once Envoy's gauge is at zero."""
    async with asyncio.timeout(60):
        while (await proxy.stats(f"^{gauge}$")).get(gauge, 0):
            await asyncio.sleep(0.02)


def posts(pod: Any) -> int:
    return sum("POST" in request.start for request in pod.requests)


@pytest.mark.parametrize("fail_open", [False, True])
@pytest.mark.parametrize("mode", [BUFFERED, BodyMode.BUFFERED_PARTIAL, DUPLEX])
@pytest.mark.parametrize("hold", ["head", "body"])
async def test_a_killed_picker_harms_no_request_in_flight(
    envoy: StartEnvoy, tmp_path: Path, mode: BodyMode, fail_open: bool, hold: str
) -> None:
    async with (
        backends(2) as pods,
        warmroute_serve([pod.target for pod in pods], tmp_path) as (epp, child),
        envoy(pods, epp, request_body_mode=mode, response_headers=True, failure_mode_allow=fail_open) as proxy,
    ):
        wishes = {"x-test-hold": hold, "x-test-sse": "3"}
        requests = [asyncio.create_task(exchange(proxy.url, body=BODY, headers=wishes)) for _ in range(6)]
        await eventually(lambda: sum(map(posts, pods)) == 6, "requests in flight")
        os.kill(child.pid, signal.SIGKILL)
        await fallen_to_zero(proxy, "cluster.epp.upstream_cx_active")
        for pod in pods:
            pod.release.set()
        for answer in await asyncio.gather(*requests):
            assert answer.status == 200
            assert answer.body.endswith(b"[DONE]\n\n")


@pytest.mark.parametrize(
    ("mode", "response_headers", "statuses"),
    [
        (BUFFERED, True, (500, 200)),
        (BUFFERED, False, (500, 200)),
        (DUPLEX, True, (500, 500)),
        (DUPLEX, False, (200, 200)),
    ],
)
async def test_observing_responses_makes_the_pickers_death_matter(
    envoy: StartEnvoy, tmp_path: Path, mode: BodyMode, response_headers: Any, statuses: Any
) -> None:
    """The price of --observe-responses, with fail-close and with fail-open, as docs/envoy.md says."""
    for fail_open, status in zip((False, True), statuses, strict=True):
        async with (
            backends(1) as pods,
            warmroute_serve([pods[0].target], tmp_path, "--observe-responses") as (epp, child),
            envoy(
                pods,
                epp,
                request_body_mode=mode,
                response_headers=response_headers,
                failure_mode_allow=fail_open,
                **NO_RETRIES,
            ) as proxy,
        ):
            request = asyncio.create_task(exchange(proxy.url, body=BODY, headers={"x-test-hold": "head"}))
            await eventually(lambda pods=pods: posts(pods[0]) == 1, "request in flight")  # type: ignore[misc]
            os.kill(child.pid, signal.SIGKILL)
            await fallen_to_zero(proxy, "cluster.epp.upstream_cx_active")
            pods[0].release.set()
            assert (await request).status == status


@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX])
async def test_fail_open_and_fail_close_while_the_picker_is_away_and_back_again(
    envoy: StartEnvoy, tmp_path: Path, mode: BodyMode
) -> None:
    async with (
        backends(2) as pods,
        warmroute_serve([pod.target for pod in pods], tmp_path) as (epp, child),
        envoy(
            pods, epp, request_body_mode=mode, failure_mode_allow=True, epp_health_check=mode is DUPLEX
        ) as open_proxy,
        envoy(pods, epp, request_body_mode=mode, failure_mode_allow=False) as close_proxy,
    ):
        for proxy in (open_proxy, close_proxy):
            assert (await exchange(proxy.url, body=BODY)).status == 200
        await child.stop()
        await answered(open_proxy.url, lambda answer: answer.status == 200)
        await answered(close_proxy.url, lambda answer: answer.status in {500, 503})
        await child.start()
        for proxy in (open_proxy, close_proxy):
            await answered(proxy.url, lambda answer: answer.status == 200 and DESTINATION.encode() in answer.body)


async def test_a_hanging_picker_is_envoys_message_timeout(envoy: StartEnvoy, tmp_path: Path) -> None:
    async with backends(1) as pods, warmroute_serve([pods[0].target], tmp_path) as (epp, child):
        for fail_open, status in ((True, 200), (False, 504)):
            async with envoy(
                pods, epp, failure_mode_allow=fail_open, message_timeout=0.3, epp_health_check=False
            ) as proxy:
                assert (await exchange(proxy.url, body=BODY)).status == 200
                os.kill(child.pid, signal.SIGSTOP)
                try:
                    assert (await exchange(proxy.url, body=BODY)).status == status
                finally:
                    os.kill(child.pid, signal.SIGCONT)


async def test_sigterm_drains(envoy: StartEnvoy, tmp_path: Path) -> None:
    """Requests keep being served between SIGTERM and the moment when Envoy has seen that the picker is not ready."""
    async with (
        backends(1) as pods,
        warmroute_serve([pods[0].target], tmp_path, "--observe-responses", "--drain-timeout=10s") as (epp, child),
        envoy(pods, epp, failure_mode_allow=False, epp_health_check=True) as proxy,
    ):
        request = asyncio.create_task(exchange(proxy.url, body=BODY, headers={"x-test-hold": "head"}))
        await eventually(lambda: posts(pods[0]) == 1, "request in flight")
        os.kill(child.pid, signal.SIGTERM)
        await fallen_to_zero(proxy, "cluster.epp.membership_healthy")
        pods[0].release.set()
        assert (await request).status == 200
        await eventually(lambda: child.returncode is not None, "picker gone")
        assert child.returncode == 0


async def test_a_picker_that_leaves_in_a_quiet_moment_fails_no_request(envoy: StartEnvoy, tmp_path: Path) -> None:
    """With no stream open at SIGTERM it stays until Envoy's health check has seen it, and the other one takes over."""
    stays = tmp_path / "stays"
    stays.mkdir()
    async with (
        backends(1) as pods,
        warmroute_serve([pods[0].target], tmp_path, "--drain-quiet=2s") as (leaving, child),
        warmroute_serve([pods[0].target], stays) as (staying, _),
        envoy(pods, leaving, staying, failure_mode_allow=False, epp_health_check=True) as proxy,
    ):
        await proxy.wait_for_stat("cluster.epp.membership_healthy", 2)
        os.kill(child.pid, signal.SIGTERM)
        statuses = []
        while child.returncode is None:
            statuses.append((await exchange(proxy.url, body=BODY)).status)
        assert set(statuses) == {200}
        assert child.returncode == 0


@pytest.mark.parametrize("picking", list(Picking))
async def test_a_dead_engine_is_routed_around_and_comes_back(
    envoy: StartEnvoy, tmp_path: Path, picking: Picking
) -> None:
    async with (
        backends(3) as pods,
        picker_app(
            [pod.target for pod in pods], tmp_path, refresh_metrics_interval=0.1, idle_metrics_interval=0.1
        ) as app,
        envoy(pods, target(app), picking=picking) as proxy,
    ):
        states = {endpoint.spec.name: endpoint for endpoint in app.pool.endpoints.values()}
        await eventually(
            lambda: registry_of(app.metrics).get_sample_value("warmroute_endpoints", {"state": "ready"}) == 3, "ready"
        )
        await pods[0].stop()
        await eventually(lambda: not states["pod-0"].reachable, "seen as unreachable")
        bodies = [json.dumps({"model": "m", "prompt": f"{k} " * 2000}).encode() for k in range(24)]
        names = {(await exchange(proxy.url, "/v1/completions", body=body)).headers["x-backend"] for body in bodies[:12]}
        assert names == {"pod-1", "pod-2"}
        await pods[0].start()
        await eventually(lambda: states["pod-0"].reachable, "seen as reachable")
        before = posts(pods[0])
        for body in bodies[12:]:
            assert (await exchange(proxy.url, "/v1/completions", body=body)).status == 200
        assert posts(pods[0]) > before


async def test_a_request_whose_engine_has_just_died_is_tried_on_another_one(envoy: StartEnvoy, tmp_path: Path) -> None:
    slow: dict[str, Any] = {
        "refresh_metrics_interval": 60.0,
        "idle_metrics_interval": 60.0,
    }  # the picker goes on naming the dead one
    async with (
        backends(2) as pods,
        picker_app([pod.target for pod in pods], tmp_path, routing_strategy="ROUND_ROBIN", **slow) as app,
        envoy(pods, target(app), picking=Picking.OVERRIDE_HOST) as proxy,
    ):
        await eventually(lambda: all(pod.requests for pod in pods), "scraped once")
        await pods[0].stop()
        answers = [await exchange(proxy.url, body=BODY) for _ in range(20)]
        assert {answer.status for answer in answers} == {200}
        assert {answer.headers["x-backend"] for answer in answers} == {"pod-1"}
        assert all(endpoint.available for endpoint in app.pool.endpoints.values())


async def test_the_endpoints_file_is_followed(envoy: StartEnvoy, tmp_path: Path) -> None:
    async with (
        backends(2) as pods,
        picker_app([pods[0].target], tmp_path) as app,
        envoy(pods, target(app), picking=Picking.ORIGINAL_DST) as proxy,
    ):
        assert (await exchange(proxy.url, body=BODY)).headers["x-backend"] == "pod-0"
        file = tmp_path / "endpoints.yaml"
        file.write_text("endpoints: [{name: broken")
        await asyncio.sleep(1.2)
        assert (await exchange(proxy.url, body=BODY)).headers["x-backend"] == "pod-0"
        new = tmp_path / "new.yaml"
        new.write_text(endpoints_document([pods[1].target]))
        new.rename(file)
        await eventually(
            lambda: [e.target for e in app.pool.endpoints.values() if e.ready] == [pods[1].target], "file followed"
        )
        assert (await exchange(proxy.url, body=BODY)).headers["x-backend"] == "pod-1"


async def test_tls_to_the_picker(envoy: StartEnvoy, tmp_path: Path) -> None:
    async with (
        backends(1) as pods,
        picker_app([pods[0].target], tmp_path, secure_serving=True) as app,
        envoy(pods, target(app), epp_tls=True, failure_mode_allow=False) as proxy,
    ):
        answer = await exchange(proxy.url, body=BODY)
        assert answer.status == 200
        assert json.loads(answer.body)["headers"]["x-gateway-destination-endpoint"] == pods[0].target
