"""Profiles of engines: cache size, limits, and step times. Data only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from warmroute.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of an engine's work in seconds, unless said otherwise. docs/simulator.md has the source of each constant.

    Three parts work concurrently: the API server's thread, the worker's thread that launches kernels, and the GPU.
    """

    accept: float
    """API server: receiving a request. Requests are received one at a time."""
    accept_token: float
    """API server, per prompt token: parsing, validation, block hashes."""
    handover: float
    """From the API server to the engine's queue; concurrent for several requests."""
    schedule: float
    """Engine: from the end of a step to the launch of the next but one."""
    launch: float
    """Worker: launching a step with prefill."""
    launch_decode: float
    """Worker: launching a step of decodes only (full CUDA graphs make it short)."""
    launch_sequence: float
    """Worker, per sequence of a step."""
    launch_noise: float
    """Worker: mean relative excess of the launch times, which is mostly small and sometimes large."""
    weights: float
    """GPU: least time of a step, which reads the weights once."""
    token: float
    """GPU, per token of a step, if that takes longer than reading the weights."""
    attention: float
    """GPU, per pair of a prefill token and a token that it attends to."""
    context: float
    """GPU, per cached token that a decode reads."""
    context_mixed: float
    """GPU, per cached token that a decode reads in a step with prefill, where attention kernels are slower for decodes."""
    sequence: float
    """GPU, per sequence of a step."""
    output: float
    """API server, per output of a step: detokenize, serialise, send."""
    first_output_token: float
    """API server, per prompt token: detokenizing the first output."""
    adapter_load: float = 0.1
    """Worker: loading a LoRA adapter."""
    tier_token: float = 2.5e-6
    """Worker, per cached token that comes from the second tier: 57 kB (Qwen2.5-7B) at 23 GB/s, half of PCIe 5.0 x16."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One engine with one model on one kind of machine."""

    name: str
    description: str
    timing: Timing
    num_gpu_blocks: int
    block_size: int = 16
    """Tokens in a block of the KV cache."""
    max_num_seqs: int = 1024
    max_num_batched_tokens: int = 8192
    max_model_len: int = 32768
    max_loras: int = 4
    prefix_caching: bool = True
    """False: ``--no-enable-prefix-caching``. No prompt is kept, and none is looked up."""
    tier_blocks: int = 0
    """Blocks of a second tier of the KV cache in host memory (CPU offloading, LMCache). 0: none."""
    hybrid: bool = False
    """Some layers (Mamba, sliding window) keep their state at the ends of prompts only: a prefix that ends elsewhere is not
    found."""
    measured: bool = False
    """True: fitted to a real engine. False: scaled from published figures."""

    @property
    def kv_cache_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.num_gpu_blocks * self.block_size

    @property
    def kept_tokens(self) -> int:
        """Tokens of prompts that stay findable. The second tier has copies of the first one's blocks."""
        return max(self.kv_cache_tokens, self.tier_blocks * self.block_size) if self.prefix_caching else 0

    @property
    def largest_request(self) -> int:
        """Most tokens of one request, prompt and answer. As in vLLM, one block is never allocated."""
        return (self.num_gpu_blocks - 1) * self.block_size


_H100_7B = Timing(
    accept=0.0013,
    accept_token=0.6e-6,
    handover=0.0015,
    schedule=0.0004,
    launch=0.005,
    launch_decode=0.0015,
    launch_sequence=0.0,
    launch_noise=0.0,
    weights=0.0057,
    token=20.3e-6,
    attention=0.68e-9,
    context=21e-9,
    context_mixed=40e-9,
    sequence=6.5e-6,
    output=36e-6,
    first_output_token=0.34e-6,
)
_EAGER = {"launch": 0.0135, "launch_decode": 0.0112, "launch_sequence": 15e-6, "launch_noise": 0.2}

_PROFILES = (
    Profile(
        "h100-qwen2.5-7b-graphs",
        "vLLM 0.26, one H100 80 GB, Qwen2.5-7B shape, CUDA graphs (vLLM's default)",
        _H100_7B,
        num_gpu_blocks=65_101,
        measured=True,
    ),
    Profile(
        "h100-qwen2.5-7b-eager",
        "vLLM 0.26, one H100 80 GB, Qwen2.5-7B shape, --enforce-eager",
        replace(_H100_7B, **_EAGER),
        num_gpu_blocks=65_101,
        measured=True,
    ),
    Profile(
        "h200-qwen2.5-7b-graphs",
        "estimate: one H200 141 GB, Qwen2.5-7B",
        replace(_H100_7B, weights=0.0040, context=14.7e-9, context_mixed=28e-9),
        num_gpu_blocks=121_000,
        max_model_len=131_072,
    ),
    Profile(
        "l20-qwen2.5-7b-eager",
        "estimate: one L20 48 GB, Qwen2.5-7B, --enforce-eager",
        replace(
            _H100_7B,
            **_EAGER,
            weights=0.0185,
            token=195e-6,
            attention=5.3e-9,
            context=78e-9,
            context_mixed=150e-9,
            sequence=25e-6,
        ),
        num_gpu_blocks=28_300,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
    ),
    Profile(
        "a10g-llama3.1-8b-graphs",
        "estimate: one A10G 24 GB, Llama-3.1-8B",
        replace(
            _H100_7B,
            weights=0.030,
            token=200e-6,
            attention=7.5e-9,
            context=220e-9,
            context_mixed=420e-9,
            sequence=40e-6,
        ),
        num_gpu_blocks=1_900,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
        max_model_len=16_384,
    ),
    Profile(
        "2xh100-qwen2.5-32b-graphs",
        "estimate: two H100 80 GB, Qwen2.5-32B, tensor parallel",
        replace(
            _H100_7B,
            launch=0.008,
            launch_decode=0.0025,
            weights=0.012,
            token=60e-6,
            attention=1.1e-9,
            context=44e-9,
            context_mixed=84e-9,
            sequence=10e-6,
        ),
        num_gpu_blocks=17_600,
    ),
    Profile(
        "4xh100-llama3.1-70b-graphs",
        "estimate: four H100 80 GB, Llama-3.1-70B, tensor parallel",
        replace(
            _H100_7B,
            launch=0.010,
            launch_decode=0.003,
            weights=0.013,
            token=70e-6,
            attention=1.1e-9,
            context=27e-9,
            context_mixed=52e-9,
            sequence=10e-6,
        ),
        num_gpu_blocks=26_700,
        max_model_len=131_072,
    ),
)

PROFILES = {profile.name: profile for profile in _PROFILES}
"""The profiles by name."""

DEFAULT_PROFILE = "h100-qwen2.5-7b-graphs"


def profile_named(name: str) -> Profile:
    """The profile of that name. Raises ConfigurationError with the known names for an unknown one."""
    try:
        return PROFILES[name]
    except KeyError:
        raise ConfigurationError(f"there is no profile {name!r}; there are: {', '.join(sorted(PROFILES))}") from None
