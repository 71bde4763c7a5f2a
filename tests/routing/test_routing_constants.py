"""Every setting that routing uses reaches the constant of its name."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import pytest

from tests.factories import routing_constants
from warmroute.routing.cost import CostConstants

CONSTANTS = {f"cost_{field.name}": f"load.cost.{field.name}" for field in fields(CostConstants)} | {
    "drain_factor": "load.drain_factor",
    "queue_slack": "load.queue_slack",
    "prefill_rate": "load.prefill_rate",
    "max_num_seqs": "load.max_num_seqs",
    "cache_tokens": "load.cache_tokens",
    "metrics_staleness_threshold": "load.staleness_threshold",
    "saturation_queue_depth": "saturation.waiting",
    "saturation_kv_usage": "saturation.kv_usage",
    "routing_strategy": "strategy",
    "holdout": "holdout",
    "holdout_strategy": "holdout_strategy",
    "max_endpoints": "max_endpoints",
    "prefix_match_threshold": "prefix_match_threshold",
    "bytes_per_token": "bytes_per_token",
    "cache_headroom": "cache_headroom",
    "index_limit": "index_limit",
}
"""Constants by the setting that gives them."""
DIFFERENT: dict[str, Any] = {
    "routing_strategy": "RANDOM",
    "holdout": 0.05,
    "holdout_strategy": "RANDOM",
    "saturation_kv_usage": 0.31,
    "prefix_match_threshold": 0.31,
    "drain_factor": 1.5,
}
"""Values that differ from the default, for settings that may not be three more than that."""


def flat(constants: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested constants by dotted name."""
    result: dict[str, Any] = {}
    for name, value in constants.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result


def test_every_constant_has_its_setting() -> None:
    assert set(flat(asdict(routing_constants()))) == set(CONSTANTS.values())


@pytest.mark.parametrize("setting", CONSTANTS)
def test_a_setting_reaches_the_constant_of_its_name_and_no_other(setting: str) -> None:
    before = flat(asdict(routing_constants()))
    name = CONSTANTS[setting]
    value = DIFFERENT[setting] if setting in DIFFERENT else before[name] + 3
    assert flat(asdict(routing_constants(**{setting: value}))) == before | {name: value}
