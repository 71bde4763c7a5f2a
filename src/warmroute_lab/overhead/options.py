"""How much is measured, with which prompts and pools, and the budgets."""

from __future__ import annotations

from dataclasses import dataclass

SMALL, LARGE = 2_400, 400_000
"""Bytes of the two chats: a short question, and about 100,000 tokens."""
FEW, MANY = 5, 100
"""Endpoints of the two pools."""
CPU_BUDGET = {SMALL: 1.4, LARGE: 1.5}
"""CPU of a request, times that of the bare server; for the large chat that server decodes the JSON too."""
LATENCY_BUDGET = 0.3e-3
IDLE_BUDGET = 0.05
MEMORY_BUDGET = 40e6
WORKERS = 8
"""Requests in flight where CPU is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostOptions:
    """How much to measure."""

    rounds: int = 9
    """Rounds of each comparison; in each, every contender is measured once, in turn."""
    small_requests: int = 400
    """Small chats that one contender gets in one round."""
    large_requests: int = 80
    idle_seconds: float = 20.0
    index_checkpoints: int = 200_000
    """Checkpoints, over all endpoints, put into the index to weigh it."""
    gateway: bool = True
    """Measure through a real Envoy too."""


QUICK = CostOptions(rounds=5, small_requests=150, large_requests=30, idle_seconds=5.0, index_checkpoints=100_000)
