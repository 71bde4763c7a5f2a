"""A decision that another picker of the pool has made. WITHOUT IO."""

from __future__ import annotations

from typing import NamedTuple

from warmroute.prefix.chain import Chain


class RemoteDecision(NamedTuple):
    """Another picker sent a request to an endpoint."""

    endpoint: str
    """Its id."""
    at: float
    """When it was decided, in monotonic seconds of this process."""
    prompt_tokens: float
    """At least 1."""
    cached_tokens: float
    """Tokens of the prompt that the other picker expected the endpoint to hold."""
    prompt_bytes: int
    """0: the request had no prompt."""
    exact: bool
    """The tokens were given by the client, not estimated from bytes."""
    partial: bool
    """The body was cut off, and the length of the prompt is unknown."""
    adapter: str
    """The LoRA adapter that the request asks for; empty if none."""
    chain: Chain
    """Without checkpoints if it is not known here."""
    further: tuple[Chain, ...] = ()
    """The chains of the second and further prompts of a batch."""
    requests: int = 1
    """Requests that the engine queues: one for each prompt and sample."""
    samples: int = 1
    """Answers that the client wants to each prompt."""
    prompts: float = 1.0
    """Prompts of equal length that have the work of those of the batch."""
    reads_cache: bool = True
    """The engine may take a beginning of the prompt from its cache."""
