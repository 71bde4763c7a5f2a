"""The composition root: where endpoints come from, and settings that change while it runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import monotonic

import pytest

from warmroute.errors import ConfigurationError
from warmroute.picker import EndpointPicker, routing_constants, session_rules
from warmroute.pool.endpoint import EndpointSpec, EngineState
from warmroute.pool.models import Criticality
from warmroute.settings import Settings
from warmroute.settings_sources import changed


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "either --pool-name NAME"),
        ({"pool_name": "", "endpoints_file": ""}, "either --pool-name NAME"),
        ({"endpoints_file": "e.yaml", "pool_name": "p"}, "both given"),
        ({"endpoints_file": "e.yaml", "ha_enable_leader_election": True}, "needs Kubernetes"),
        ({"pool_name": "p", "pool_group": "example.com"}, "--pool-group must be one of"),
    ],
)
async def test_where_endpoints_come_from_is_said_once(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        EndpointPicker(Settings(**settings))


@pytest.mark.parametrize("change", [{"routing_strategy": "FASTEST"}, {"model_server_runtime": "abacus"}])
async def test_settings_that_cannot_be_used_change_nothing(change: dict[str, str]) -> None:
    app = EndpointPicker(Settings(endpoints_file=Path("e.yaml"), routing_strategy="PREFIX_CACHE"))
    before = app.settings
    with pytest.raises(ConfigurationError, match=next(iter(change.values()))):
        app.apply(changed(before, {"max_endpoints": 3, **change}))
    assert app.settings is before
    assert app.router.strategy == "PREFIX_CACHE"
    assert app.pool.default_engine == "vllm"
    app.apply(changed(before, {"routing_strategy": "RANDOM", "model_server_runtime": "sglang"}))
    assert app.router.strategy == "RANDOM"
    assert app.pool.default_engine == "sglang"


def test_shedding_as_the_parts_are_told() -> None:
    given = Settings(shedding="upstream-v0.5", saturation_queue_depth=7, saturation_kv_usage=0.5)
    limits = routing_constants(given).saturation
    assert (limits.waiting, limits.kv_usage) == (7, 0.5)
    assert session_rules(given).shed_up_to is Criticality.STANDARD
    assert session_rules(Settings()).shed_up_to is Criticality.SHEDDABLE
    assert session_rules(Settings(shedding="off")).shed_up_to is None


async def test_what_is_reloaded_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    file.write_text("endpoints: []")
    app = EndpointPicker(Settings(endpoints_file=file))

    def counted(source: str, result: str) -> float | None:
        labels = {"source": source, "result": result}
        return app.metrics.registry.get_sample_value("warmroute_config_reloads_total", labels)

    app.discovery.load()
    await app.discovery.start()
    try:
        for text, result in (("nonsense", "error"), ("endpoints: [{name: a, address: 10.0.0.1, port: 1}]", "ok")):
            file.write_text(text)
            async with asyncio.timeout(10):
                while not counted("endpoints-file", result):
                    await asyncio.sleep(0.02)
    finally:
        await app.discovery.stop()
    app.certificate_reloaded(False)
    assert (counted("certificate", "error"), counted("certificate", "ok")) == (1, 0)


async def test_the_speed_that_is_shown_is_the_one_that_is_reckoned_with() -> None:
    app = EndpointPicker(Settings(endpoints_file=Path("e.yaml"), prefill_rate=3000))
    app.pool.replace([EndpointSpec("default", name, "10.0.0.1", port) for port, name in enumerate("ab", 1)], 0.0)

    def shown() -> list[float | None]:
        value = app.metrics.registry.get_sample_value
        return [value("warmroute_endpoint_prefill_tokens_per_second", {"endpoint": f"default/{name}"}) for name in "ab"]

    assert shown() == [3000, 3000]
    now = monotonic() + 10
    app.pool.observed(app.pool.endpoints["default/a"], EngineState(now, 0, 0, 0.0, prefill_rate=7000.0), now)
    assert shown() == [7000, 7000], "of the other nothing is known but that"
