"""What an engine is: its cache, its limits and how long its work takes. Data only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from warmroute.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Timing:
    """How long an engine's work takes. Seconds; docs/simulator.md tells where each constant comes from.

    Three things work side by side: the API server's thread, the worker's thread that launches kernels, and the GPU.
    """

    accept: float
    """API server: from a request's first byte to the engine's queue."""
    accept_token: float
    """The same for each prompt token: parsing, validation, hand-over, block hashes."""
    schedule: float
    """Engine: from the end of a step to the launch of the next but one."""
    launch: float
    """Worker: launching a step that has prefill in it."""
    launch_decode: float
    """Worker: launching a step of decodes only (full CUDA graphs make it short)."""
    weights: float
    """GPU: the least time of a step; the weights are read once."""
    token: float
    """GPU: each token of a step, once that is more than reading the weights."""
    attention: float
    """GPU: each pair of a prefill token and a token that it attends to."""
    context: float
    """GPU: each cached token that a decode reads."""
    sequence: float
    """GPU and worker: each sequence of a step (sampling, metadata)."""
    output: float
    """API server: each output of a step (detokenize, serialise, send)."""
    first_output_token: float
    """API server: each prompt token, when the first output is detokenized."""
    adapter_load: float = 0.1
    """Worker: making a LoRA adapter resident."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One engine with one model on one kind of machine."""

    name: str
    description: str
    timing: Timing
    num_gpu_blocks: int
    block_size: int = 16
    max_num_seqs: int = 1024
    max_num_batched_tokens: int = 8192
    max_model_len: int = 32768
    max_loras: int = 4
    measured: bool = False
    """Fitted to a real engine; otherwise scaled from published figures."""

    @property
    def kv_cache_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.num_gpu_blocks * self.block_size


_H100_7B_GRAPHS = Timing(
    accept=0.002,
    accept_token=0.45e-6,
    schedule=0.0005,
    launch=0.005,
    launch_decode=0.0015,
    weights=0.0055,
    token=20.5e-6,
    attention=0.35e-9,
    context=19e-9,
    sequence=8e-6,
    output=20e-6,
    first_output_token=0.34e-6,
)

_PROFILES = (
    Profile(
        "h100-qwen2.5-7b-graphs",
        "vLLM 0.26, one H100 80 GB, Qwen2.5-7B shape, CUDA graphs",
        _H100_7B_GRAPHS,
        num_gpu_blocks=65101,
        measured=True,
    ),
    Profile(
        "h100-qwen2.5-7b-eager",
        "vLLM 0.26, one H100 80 GB, Qwen2.5-7B shape, --enforce-eager",
        replace(_H100_7B_GRAPHS, launch=0.0115, launch_decode=0.0115),
        num_gpu_blocks=65101,
        measured=True,
    ),
)

PROFILES = {profile.name: profile for profile in _PROFILES}
"""The profiles by name."""

DEFAULT_PROFILE = "h100-qwen2.5-7b-graphs"


def profile_named(name: str) -> Profile:
    """The profile of that name. Raises ConfigurationError that lists those there are."""
    try:
        return PROFILES[name]
    except KeyError:
        raise ConfigurationError(f"there is no profile {name!r}; there are: {', '.join(sorted(PROFILES))}") from None
