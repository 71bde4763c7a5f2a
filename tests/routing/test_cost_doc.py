"""The situations of docs/cost.md: the cost of each endpoint as it stands there, and the pick."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.factories import routing_constants
from warmroute.routing.cost import RequestFactors, cost_terms, endpoint_factors, most_direct

DOC = Path(__file__).parents[2] / "docs" / "cost.md"
CONSTANTS = routing_constants().load.cost
PROMPT = 8000.0
IDLE: dict[str, Any] = {
    "waiting": 0.0,
    "running": 0.0,
    "seconds_per_token": 1 / 10_000,
    "pending_at_zero": 0.0,
    "pending_rate": 0.0,
    "kv_usage": 0.0,
    "cache_fill": 0.0,
    "stale_seconds": 0.0,
}
HELD = PROMPT - 1

SITUATIONS: list[tuple[dict[str, Any], float, dict[str, Any], float, str]] = [
    ({}, 6000.0, {}, 0.0, "A"),
    ({"waiting": 1.0, "pending_at_zero": 12_000.0}, HELD, {}, 0.0, "B"),
    (
        {"waiting": 1.0, "pending_at_zero": 12_000.0},
        HELD,
        {"waiting": 1.0, "pending_at_zero": 4000.0},
        0.0,
        "A",
    ),
    ({"cache_fill": 1.0}, 1000.0, {}, 0.0, "B"),
    ({"running": 20.0, "kv_usage": 0.5}, HELD, {}, 0.0, "B"),
    (
        {"waiting": 5.0, "pending_at_zero": 5000.0},
        0.0,
        {"waiting": 1.0, "pending_at_zero": 20_000.0},
        0.0,
        "A",
    ),
]
"""What A and B differ in from idle, the tokens that each holds, and the pick."""


def row(number: int) -> list[str]:
    """The cells of a situation's row in the document."""
    match = re.search(rf"^\| {number} \|(.*)\|$", DOC.read_text(encoding="utf-8"), re.MULTILINE)
    assert match is not None
    return [cell.strip() for cell in match[1].split("|")]


@pytest.mark.parametrize("number", range(1, 7))
def test_the_situations_of_the_document(number: int) -> None:
    a, held_a, b, held_b, pick = SITUATIONS[number - 1]
    endpoints = [
        endpoint_factors(CONSTANTS, **(IDLE | {"queued": changes.get("waiting", 0.0)} | changes)) for changes in (a, b)
    ]
    mean_requests = sum(endpoint.waiting + endpoint.running for endpoint in endpoints) / 2
    pool_waiting = min(endpoint.waiting for endpoint in endpoints)
    request = RequestFactors(PROMPT, mean_requests, pool_waiting, 0.0)
    terms = [
        cost_terms(CONSTANTS, endpoint, request, cached_tokens=held)
        for endpoint, held in zip(endpoints, (held_a, held_b), strict=True)
    ]
    most = most_direct(CONSTANTS, min(each.direct for each in terms))
    picked = min((each for each in terms if each.direct <= most), key=lambda each: each.total)
    assert "AB"[terms.index(picked)] == pick
    _, _, cost_a, cost_b, picked_there = row(number)
    expected = [f"{each.total:.2f} s{', left out' * (each.total < picked.total)}" for each in terms]
    assert ([cost_a, cost_b], picked_there.strip("*")) == (expected, pick)
