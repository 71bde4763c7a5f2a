"""Sizes of the benchmark and the project's budgets."""

from __future__ import annotations

from dataclasses import dataclass

SMALL, LARGE = 2_400, 400_000
"""Bytes of the two chats: a short question, and a prompt of about 100,000 tokens."""
FEW, MANY = 5, 100
"""Number of endpoints of the two pools."""
CPU_BUDGET = {SMALL: 1.4, LARGE: 1.5}
"""CPU per request relative to the bare server. For the large chat, the bare server decodes the JSON, too."""
LATENCY_BUDGET = 0.3e-3
"""Seconds added to the median latency through Envoy."""
IDLE_BUDGET = 0.05
"""CPU cores while a hundred pods are scraped."""
MEMORY_BUDGET = 40e6
"""Resident bytes added to the bare server."""
WORKERS = 8
"""Requests in flight while CPU is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostOptions:
    """Size of one run."""

    rounds: int = 9
    """Rounds of each comparison; each contender is measured once per round."""
    small_requests: int = 400
    """Small chats per contender and round."""
    large_requests: int = 80
    """Large chats per contender and round."""
    idle_seconds: float = 20.0
    index_checkpoints: int = 200_000
    """Checkpoints of all endpoints together when the index's memory is measured."""
    gateway: bool = True
    """Measure through a real Envoy, too."""


QUICK = CostOptions(rounds=5, small_requests=150, large_requests=30, idle_seconds=5.0, index_checkpoints=100_000)
