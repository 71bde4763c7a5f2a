"""Requests that were sent to an endpoint, as load and prefix index count them. WITHOUT IO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from warmroute.pool.endpoint import Endpoint
from warmroute.pool.work import prefill_work
from warmroute.prefix.chain import Chain
from warmroute.prefix.remote import PromptGrowth
from warmroute.routing.bytes_per_token import UNKNOWN
from warmroute.routing.confirmation import SentPrompt
from warmroute.routing.endpoint_load import EndpointLoad

MOST_REQUESTS_OF_ONE = 1024
"""Requests in an engine that one request of a client counts for, at most."""
NOT_ENTERED = -1
"""In place of the checkpoints that the endpoint had: the prompt is not in the prefix index, since the engine rejects it."""


@dataclass(slots=True, kw_only=True)
class RemoteRequests:
    """Requests that another picker has sent to one endpoint within some milliseconds, added up."""

    load: EndpointLoad
    """The load of the endpoint."""
    at: float
    """When the first was decided, in monotonic seconds of this process."""
    decisions: int
    """Requests of clients, at least 1."""
    requests: int
    """Requests that the engine queues: one for each prompt and sample."""
    work: float
    """Tokens of work that the endpoint must compute."""
    tokens: float = 0.0
    """Tokens that the engine looks up in its cache: of each prompt, once for each sample; 0 if none is looked up."""
    cached_tokens: float = 0.0
    """Of these, as many as the prefix index says that the endpoint holds."""
    prompt_bytes: int = 0
    """Bytes of the prompts, those of each sample counted; 0 if they have none."""
    growths: Sequence[PromptGrowth] = ()
    """Of the prompts that are in the sender's prefix index."""
    adapter: str = ""
    """The LoRA adapter that they ask for; empty if none."""
    length_known: bool = True
    """``prompt_bytes`` counts all of the prompts' bytes."""
    reads_cache: bool = True
    """The engine may take beginnings of the prompts from its cache."""


@dataclass(slots=True)
class SentRequest:
    """A request that this picker has sent to an endpoint."""

    load: EndpointLoad
    """The load of the endpoint that the request is booked on."""
    at: float
    """When it was decided, in monotonic seconds of this process."""
    prompt_tokens: float
    """At least 1."""
    cached_tokens: float
    """Tokens of the prompt that the endpoint probably holds."""
    prompt_bytes: int
    """Length of the prompt, estimated if ``partial``; 0: the request has none."""
    chain: Chain
    """Without checkpoints if it has no prompt."""
    further: tuple[Chain, ...] = ()
    """The chains of the second and further prompts of a batch, as many as are matched."""
    exact: bool = False
    """The client sent token ids: ``prompt_tokens`` is not estimated."""
    partial: bool = False
    """The body was cut off."""
    reads_cache: bool = True
    """The engine may take a beginning of the prompt from its cache."""
    adapter: str = ""
    """The LoRA adapter that the request asks for; empty if none."""
    requests: int = 1
    """Requests that the engine queues: one for each prompt and sample."""
    samples: int = 1
    """Answers that the client wants to each prompt."""
    prompts: float = 1.0
    """Prompts of equal length that have the work of those of the batch; 1 for a single prompt."""
    process: int = 0
    """The process of the endpoint's engine to which it was sent (``load.process`` then)."""
    held: tuple[int, ...] = ()
    """Checkpoints that the endpoint had before, of each chain, or :data:`NOT_ENTERED`."""
    until: int = 0
    """The prefix index's latest use when the prompts were inserted."""
    sent: tuple[SentPrompt, ...] = ()
    """The prompts as they wait for the engine's counters."""

    @property
    def endpoint(self) -> Endpoint:
        """The chosen endpoint."""
        return self.load.endpoint

    @property
    def outlived(self) -> bool:
        """Whether the engine's process has ended since, or the endpoint has left the pool: what becomes of the request says
        nothing of its successor."""
        return self.process != self.load.process

    @property
    def chains(self) -> tuple[Chain, ...]:
        """The chains of all prompts that are matched."""
        return (self.chain, *self.further)

    @property
    def length_known(self) -> bool:
        """Whether it has prompts, and their bytes are known."""
        return bool(self.further) or (self.prompt_bytes > 0 and not self.partial and self.requests == self.samples)

    @property
    def known_lengths(self) -> list[int]:
        """Bytes of each prompt; one UNKNOWN where they are not known one by one."""
        if self.further:
            return [chain.prompt_bytes for chain in self.chains]
        return [self.prompt_bytes if self.length_known else UNKNOWN]

    @property
    def uncached_work(self) -> float:
        """Tokens of work that the endpoint must compute."""
        return prefill_work(self.prompt_tokens, self.prompts) - prefill_work(self.cached_tokens, self.prompts)
