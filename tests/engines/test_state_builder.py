"""An engine's state from the figures of its pages."""

from __future__ import annotations

import pytest

from warmroute.engines.figures import Constants, Figures
from warmroute.engines.state_builder import StateBuilder
from warmroute.pool.work import prefill_work

CACHED, COMPUTED = 79_000, 1_000
"""Tokens of each prompt: the next turn of a long conversation."""
SECONDS = (prefill_work(CACHED + COMPUTED) - prefill_work(CACHED)) / 20_000
"""Prefill of one prompt on an engine that computes 20,000 tokens of work a second."""


@pytest.mark.parametrize("queues", [True, False], ids=["by what it computes", "by its requests"])
def test_the_prefill_rate_counts_the_attention_to_cached_tokens(queues: bool) -> None:
    builder = StateBuilder()
    rate = None
    for number in range(0, 1000, 10):
        counters = {"prompt_requests": float(number), "prompt_tokens": float(number * (CACHED + COMPUTED))}
        if queues:
            counters |= {
                "computed_tokens": float(number * COMPUTED),
                "prefix_queries": float(number * (CACHED + COMPUTED)),
                "prefix_hits": float(number * CACHED),
            }
        else:
            counters |= {
                "request_computed_tokens": float(number * COMPUTED),
                "request_prefill_seconds": number * SECONDS,
            }
        figures = Figures(running=1, waiting=3 if queues else 0, kv_usage=0.5, counters=counters)
        rate = builder.build(figures, Constants(), number * SECONDS).prefill_rate
    assert rate == pytest.approx(20_000, rel=0.001)
