"""When a pool counts as saturated, and who is refused then."""

from __future__ import annotations

import random

import pytest

from tests.factories import routing_constants
from warmroute.pool.endpoint import EndpointSpec, EngineState
from warmroute.pool.pool import Pool
from warmroute.request.inference import InferenceRequest, PromptPart
from warmroute.request.rejections import Rejection
from warmroute.routing.decision import Decision
from warmroute.routing.router import Router

SHEDDABLE = InferenceRequest("m", parts=(PromptPart(b"x" * 4000, 4000),), prompt_bytes=4000, sheddable=True)


def router_over(*states: tuple[int, float] | None, **settings: float) -> Router:
    """A router over endpoints with these waiting requests and KV usages; None: never scraped."""
    pool = Pool()
    router = Router(pool, routing_constants(**settings), rng=random.Random(1), now=0.0)
    pool.replace([EndpointSpec("ns", str(i), f"10.0.0.{i}", 8000) for i in range(len(states))], 0.0)
    for endpoint, state in zip(pool.endpoints.values(), states, strict=True):
        if state is not None:
            pool.observed(endpoint, EngineState(0.0, running=0, waiting=state[0], kv_usage=state[1]), 0.0)
    return router


@pytest.mark.parametrize(
    ("states", "refused"),
    [
        ([(5, 0.8)], False),
        ([(6, 0.0)], True),
        ([(0, 0.81)], True),
        ([(6, 0.0), (0, 0.9)], True),
        ([(6, 0.0), (0, 0.9), (5, 0.8)], False),
        ([(6, 0.0), None], False),
    ],
)
def test_one_endpoint_with_room_is_enough(states: list[tuple[int, float] | None], refused: bool) -> None:
    result = router_over(*states).pick(SHEDDABLE, 0.0)
    assert isinstance(result, Rejection) == refused
    if isinstance(result, Rejection):
        assert (result.status, result.reason, result.retry_after) == (429, "saturated", 1)


def test_the_limits_are_settings() -> None:
    loose = {"saturation_queue_depth": 10, "saturation_kv_usage": 0.95}
    assert isinstance(router_over((10, 0.95), **loose).pick(SHEDDABLE, 0.0), Decision)
    assert isinstance(router_over((11, 0.0), **loose).pick(SHEDDABLE, 0.0), Rejection)


def test_a_burst_is_seen_before_any_scrape_and_passes() -> None:
    router = router_over((0, 0.0), (0, 0.0))
    prompts = [PromptPart(b"%d" % i * 4000, 4000) for i in range(20)]
    results = [router.pick(SHEDDABLE._replace(parts=(prompt,)), 0.0) for prompt in prompts]
    assert [isinstance(result, Decision) for result in results] == [True] * 12 + [False] * 8
    assert isinstance(router.pick(SHEDDABLE, 60.0), Decision)


def test_only_the_endpoints_that_may_be_chosen_count() -> None:
    router = router_over((6, 0.0), (0, 0.0))
    result = router.pick(SHEDDABLE, 0.0, allowed=frozenset({"10.0.0.0:8000"}))
    assert isinstance(result, Rejection)
    assert result.status == 429


def test_without_endpoints_it_is_503() -> None:
    result = router_over().pick(SHEDDABLE, 0.0)
    assert isinstance(result, Rejection)
    assert result.status == 503
