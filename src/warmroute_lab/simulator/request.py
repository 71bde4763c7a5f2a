"""One request on a simulated engine, and its outputs. WITHOUT IO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Request:
    """One request on one engine: its lengths in tokens, its progress, and its times in seconds of virtual time."""

    id: str
    prompt_tokens: int
    output_tokens: int
    """Tokens to generate, at least 1."""
    hashes: Sequence[int] = ()
    """Hashes of the full blocks of the prompt, or of prompt and answer. Further blocks count as unique."""
    adapter: str | None = None
    """LoRA adapter. It must also be part of the seed of ``hashes``."""

    cached_tokens: int = field(default=0, init=False)
    """Prompt tokens found in the cache at the first admission."""
    outputs: int = field(default=0, init=False)
    """Tokens generated so far."""
    arrived_at: float = field(default=0.0, init=False)
    """Arrival at the API server."""
    queued_at: float = field(default=0.0, init=False)
    """Arrival at the scheduler."""
    scheduled_at: float | None = field(default=None, init=False)
    """First admission."""
    first_token_at: float | None = field(default=None, init=False)
    """The first token left the API server."""
    finished_at: float | None = field(default=None, init=False)
    """The last token left the API server."""

    # State of the engine and its scheduler.
    computed: int = field(default=0, init=False)
    """Tokens in the KV cache, including those of steps in flight."""
    target: int = field(default=0, init=False)
    """Tokens to prefill before decoding begins."""
    issued: int = field(default=0, init=False)
    """Output tokens, including those of steps in flight."""
    delivered: int = field(default=0, init=False)
    """Output tokens that were reported."""
    blocks: list[int] = field(default_factory=list, init=False)
    registered: int = field(default=0, init=False)
    """Blocks that have a hash."""
    epoch: int = field(default=0, init=False)
    """Number of preemptions and aborts. Outputs of an earlier epoch are void."""
    running: bool = field(default=False, init=False)


@dataclass(frozen=True, slots=True)
class Output:
    """Tokens of one request that left the API server at ``time``."""

    time: float
    request: Request
    tokens: int
    finished: bool


@dataclass(slots=True)
class Counters:
    """Totals of one engine since its start. Tokens unless said otherwise."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens found in the cache at the first admission."""
    prefix_queries: int = 0
    """Tokens looked up in the prefix cache."""
    prefix_hits: int = 0
    """Tokens found in the first tier."""
    tier_queries: int = 0
    """Tokens looked up in the second tier."""
    tier_hits: int = 0
    preemptions: int = 0
    """Requests."""
    steps: int = 0
    """Steps of the engine."""
    first_tokens: int = 0
    """Requests with a first token."""
    first_token_seconds: float = 0.0
    """Their times to first token, summed."""
    finished: int = 0
    """Requests."""
    aborted: int = 0
    """Requests."""
