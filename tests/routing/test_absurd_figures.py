"""Figures that an engine cannot have: they disturb neither the other endpoints nor the picker."""

from __future__ import annotations

import json
import random
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import engine_state, routing_constants
from warmroute.pool.endpoint import EndpointSpec, EngineState
from warmroute.pool.pool import Pool
from warmroute.request.inference import InferenceRequest, PromptPart
from warmroute.routing.decision import Decision
from warmroute.routing.decision_record import DecisionRecord
from warmroute.routing.router import Router

TEXT = b"The quick brown fox jumps over the lazy dog. " * 50
PROMPT = InferenceRequest(model="m", parts=(PromptPart(TEXT, len(TEXT)),), prompt_bytes=len(TEXT))

counts = st.sampled_from([-1, 0, 1, 5, 300, 10**6, 10**7, 2**63, 10**308]) | st.integers(0, 50)
figures = st.sampled_from([-inf, -1.0, 0.0, 5e-324, 1e-6, 1.0, 1e9, 1e15, 1e308, inf, nan]) | st.floats(0, 1e4)
states = st.fixed_dictionaries(
    {"running": counts, "waiting": counts, "kv_usage": st.floats(0, 1) | figures},
    optional={
        "capacity_tokens": st.none() | counts,
        "max_num_seqs": st.none() | counts,
        "loaded_adapters": st.sampled_from([frozenset(), frozenset("ab"), frozenset(map(str, range(5000)))]),
        "max_adapters": counts,
        "awaiting_first_token": st.none() | counts,
        "first_tokens_total": st.none() | figures,
        "prompt_tokens_total": st.none() | figures,
        "prompt_requests_total": st.none() | figures,
        "prefix_queries_total": st.none() | figures,
        "prefix_hits_total": st.none() | figures,
        "prefill_rate": st.none() | figures,
        "decode_rate": st.none() | figures,
    },
)


def pool_of(size: int, **settings: Any) -> tuple[Pool, Router]:
    pool = Pool()
    router = Router(pool, routing_constants(**settings), rng=random.Random(1), now=0.0)
    pool.replace([EndpointSpec("ns", str(k), f"10.0.0.{k}", 8000) for k in range(size)], 0.0)
    return pool, router


def scrape(pool: Pool, name: int, now: float, **figures: Any) -> None:
    pool.observed(pool.endpoints[f"ns/{name}"], engine_state(now, **figures), now)


@given(st.lists(st.tuples(st.integers(0, 2), states, st.sampled_from([0.0, 0.001, 0.1, 6.0, 100.0])), max_size=12))
def test_whatever_engines_report_the_router_chooses_and_explains(
    scrapes: list[tuple[int, dict[str, Any], float]],
) -> None:
    pool, router = pool_of(3)
    now = 0.0
    for name, figures, seconds in scrapes:
        now += seconds
        scrape(pool, name, now, **figures)
        decision = router.pick(PROMPT, now)
        assert isinstance(decision, Decision)
        preview = router.preview(PROMPT, now)
        assert isinstance(preview, DecisionRecord)
        json.dumps([preview.explain(now, 10, exact=exact) for exact in (True, False)], allow_nan=False)
        for load in router.loads:
            json.dumps([*router.load_of(load, now), *router.held(load), router.speed_of(load)], allow_nan=False)
            load.response_ended(now)


@pytest.mark.parametrize(
    "absurd",
    [
        {"running": 10**308, "waiting": 10**308},
        {"waiting": 10**9},
        {"running": -1},
        {"kv_usage": nan},
        {"kv_usage": 1e308},
        {"awaiting_first_token": 10**9},
        {"first_tokens_total": inf},
        {"prompt_tokens_total": nan, "prompt_requests_total": 1.0},
        {"capacity_tokens": 10**300},
        {"prefill_rate": 5e-324},
        {"decode_rate": -1.0},
        {"max_num_seqs": 10**30},
        {"max_adapters": 10**30},
        {"loaded_adapters": frozenset(map(str, range(5000)))},
    ],
    ids="-".join,
)
def test_a_scrape_with_an_absurd_figure_changes_nothing_of_the_endpoint(absurd: dict[str, Any]) -> None:
    pool, router = pool_of(1)
    scrape(pool, 0, 1.0, running=3, waiting=2)
    (load,) = router.loads
    before = (router.load_of(load, 2.0), load.observed_at, load.endpoint.state)
    scrape(pool, 0, 2.0, **absurd)
    assert (router.load_of(load, 2.0), load.observed_at, load.endpoint.state) == before


def test_an_endpoint_whose_figures_are_absurd_for_long_is_avoided_as_unknown() -> None:
    pool, router = pool_of(2)
    for second in range(20):
        scrape(pool, 0, float(second), running=10**308 if second else 0)
        scrape(pool, 1, float(second), running=5)
    decision = router.pick(PROMPT, 20.0)
    assert isinstance(decision, Decision)
    assert decision.endpoint.id == "ns/1"


def test_a_scrape_that_was_overtaken_by_a_later_one_is_ignored() -> None:
    pool, router = pool_of(1)
    scrape(pool, 0, 2.0, running=3)
    pool.observed(pool.endpoints["ns/0"], EngineState(observed_at=1.0, running=9, waiting=0, kv_usage=0.0), 3.0)
    (load,) = router.loads
    assert (load.reported_running, load.observed_at) == (3, 2.0)


def test_a_cache_of_one_token_and_a_small_headroom_are_routable() -> None:
    pool, router = pool_of(1, cache_headroom=0.1)
    scrape(pool, 0, 1.0, capacity_tokens=1)
    assert isinstance(router.pick(PROMPT, 2.0), Decision)
