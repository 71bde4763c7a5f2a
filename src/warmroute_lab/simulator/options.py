"""Options of one simulated engine."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from warmroute.errors import ConfigurationError
from warmroute_lab.simulator.faults import Faults
from warmroute_lab.simulator.profile import DEFAULT_PROFILE, Profile, profile_named

LAST_PORT = 65_535
MOST_BLOCKS = 10_000_000
"""Most blocks of a KV cache. Each takes some 60 bytes of this machine's memory."""


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, slots=True)
class SimulatorOptions:
    """One simulated engine: its address, its model, and how it differs from its profile."""

    host: str = "127.0.0.1"
    port: int = 0
    """0: any free port."""
    name: str = ""
    """Sent with every response as ``x-simulator-name``. Empty: ``simulator-PORT``."""
    model: str = "Qwen/Qwen2.5-7B-Instruct"
    profile: str = DEFAULT_PROFILE
    time_scale: float = 1.0
    """Speed relative to the real engine: 2.0 is twice as fast."""
    max_num_seqs: int | None = None
    num_gpu_blocks: int | None = None
    max_loras: int | None = None
    block_size: int | None = None
    """Tokens in a block. The KV cache keeps its size in tokens."""
    prefix_caching: bool = True
    """False: no prompt is kept."""
    cpu_tier: float = 0.0
    """Size of a second cache tier in host memory, as a multiple of the KV cache."""
    hybrid: bool = False
    """Some layers keep their state at the ends of prompts only."""
    api_servers: int = 1
    """API server processes, which share a metrics page."""
    data_parallel_size: int = 1
    """Engines behind the port. Requests choose one by the header ``X-data-parallel-rank``, else the one with the fewest
    requests serves them."""
    lora_modules: tuple[str, ...] = ()
    """LoRA adapters that requests may name as their model."""
    slow_start: float = 0.0
    """Seconds after the start in which every request gets 503."""
    faults: Faults = field(default_factory=Faults)
    seed: int = 0
    """Seed of faults and host noise."""

    def __post_init__(self) -> None:
        """Raise ConfigurationError for an unknown profile or an impossible value."""
        profile_named(self.profile)
        for name, value in self._overrides.items():
            least = 2 if name == "num_gpu_blocks" else 1
            if value < least:
                raise ConfigurationError(f"{_flag(name)} must be at least {least} (given: {value})")
            if value > MOST_BLOCKS:
                raise ConfigurationError(f"{_flag(name)} must be at most {MOST_BLOCKS} (given: {value})")
        if self.block_size is not None and self.block_size < 1:
            raise ConfigurationError(f"--block-size must be at least 1 (given: {self.block_size})")
        for name in ("api_servers", "data_parallel_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{_flag(name)} must be at least 1 (given: {getattr(self, name)})")
        if not 0 <= self.cpu_tier < math.inf:
            raise ConfigurationError(f"--cpu-tier must be a number of at least 0 (given: {self.cpu_tier})")
        if not 0 < self.time_scale < math.inf:
            raise ConfigurationError(f"--time-scale must be a number above 0 (given: {self.time_scale})")
        if not 0 <= self.port <= LAST_PORT:
            raise ConfigurationError(f"port {self.port} does not exist: the last port is {LAST_PORT}")

    @property
    def served_profile(self) -> Profile:
        """The profile with the overrides. As vLLM requires, the longest request fits into the KV cache."""
        profile = replace(
            profile_named(self.profile), **self._overrides, prefix_caching=self.prefix_caching, hybrid=self.hybrid
        )
        if self.block_size is not None:
            blocks = max(2, profile.kv_cache_tokens // self.block_size)
            profile = replace(profile, block_size=self.block_size, num_gpu_blocks=blocks)
        profile = replace(profile, tier_blocks=int(self.cpu_tier * profile.num_gpu_blocks))
        return replace(profile, max_model_len=min(profile.max_model_len, profile.largest_request))

    @property
    def _overrides(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in ("max_num_seqs", "num_gpu_blocks", "max_loras")}
        return {name: value for name, value in values.items() if value is not None}
