"""The composition root: where endpoints come from, and settings that change while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from warmroute.app import App, routing_constants, session_rules
from warmroute.errors import ConfigurationError
from warmroute.pool.models import Criticality
from warmroute.settings import Settings, changed


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
        App(Settings(**settings))


@pytest.mark.parametrize("change", [{"routing_strategy": "FASTEST"}, {"model_server_runtime": "abacus"}])
async def test_settings_that_cannot_be_used_change_nothing(change: dict[str, str]) -> None:
    app = App(Settings(endpoints_file=Path("e.yaml"), routing_strategy="PREFIX_CACHE"))
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
