"""A pool without endpoints and with endpoints again, behind a real Envoy: what docs/autoscaling.md says."""

from __future__ import annotations

import json
from pathlib import Path

from tests.factories import registry_of
from tests.fixtures.envoy.apps import picker_app, target
from tests.fixtures.envoy.backends import backends
from tests.fixtures.envoy.http1 import Message, exchange
from tests.fixtures.envoy.pickers import endpoints_document
from warmroute.picker import EndpointPicker
from warmroute.standalone.bootstrap import bootstrap
from warmroute.standalone.envoy import EnvoyProcess
from warmroute.standalone.proxy_config import ProxyConfig

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()


def value(app: EndpointPicker, sample: str, **labels: str) -> float:
    """A sample of the picker's metrics page."""
    found = registry_of(app.metrics).get_sample_value(sample, labels)
    assert found is not None, sample
    return found


async def answer_until(proxy: EnvoyProcess, status: int) -> Message:
    """The first answer with this status."""
    answers: list[Message] = []

    async def answered() -> bool:
        answers[:] = [await exchange(proxy.url, body=BODY)]
        return answers[0].status == status

    await proxy.child.until(answered, f"answering {status}")
    return answers[0]


async def test_a_pool_goes_to_zero_and_comes_back(tmp_path: Path) -> None:
    async with backends(1) as pods, picker_app([pods[0].target], tmp_path) as app:
        config = ProxyConfig(epp=(target(app),), endpoints=(pods[0].target,))
        async with EnvoyProcess(bootstrap(config), tmp_path) as proxy:
            await answer_until(proxy, 200)
            (tmp_path / "endpoints.yaml").write_text(endpoints_document([]))
            refused = await answer_until(proxy, 503)
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["x-warmroute-dropped-reason"] == "no-endpoints"
            assert value(app, "inference_pool_ready_pods", name="default") == 0
            requests = value(app, "warmroute_requests_total", model="m")
            errors = value(app, "warmroute_request_errors_total", reason="no-endpoints", status="503")
            await exchange(proxy.url, body=BODY)
            assert value(app, "warmroute_requests_total", model="m") == requests + 1
            assert value(app, "warmroute_request_errors_total", reason="no-endpoints", status="503") == errors + 1
            (tmp_path / "endpoints.yaml").write_text(endpoints_document([pods[0].target]))
            await answer_until(proxy, 200)
