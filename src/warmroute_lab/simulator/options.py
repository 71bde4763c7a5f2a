"""Options of one simulated engine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from warmroute.errors import ConfigurationError
from warmroute_lab.simulator.faults import Faults
from warmroute_lab.simulator.profile import DEFAULT_PROFILE, Profile, profile_named

LAST_PORT = 65_535


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
            if value < (2 if name == "num_gpu_blocks" else 1):
                raise ConfigurationError(f"{name} is too small: {value}")
        if self.time_scale <= 0:
            raise ConfigurationError(f"time_scale must be above 0 (given: {self.time_scale})")
        if not 0 <= self.port <= LAST_PORT:
            raise ConfigurationError(f"port {self.port} does not exist: the last port is {LAST_PORT}")

    @property
    def served_profile(self) -> Profile:
        """The profile with the overrides. As vLLM requires, the longest request fits into the KV cache."""
        profile = replace(profile_named(self.profile), **self._overrides)
        return replace(profile, max_model_len=min(profile.max_model_len, profile.largest_request))

    @property
    def _overrides(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in ("max_num_seqs", "num_gpu_blocks", "max_loras")}
        return {name: value for name, value in values.items() if value is not None}
