"""A decision: where a request goes and why."""

from __future__ import annotations

from dataclasses import dataclass

from warmroute.pool.endpoint import Endpoint
from warmroute.pool.work import prefill_work
from warmroute.prefix.chain import Chain
from warmroute.routing.bytes_per_token import UNKNOWN
from warmroute.routing.confirmation import SentPrompt
from warmroute.routing.endpoint_load import EndpointLoad


@dataclass(slots=True)
class Decision:
    """Where a request goes and why. Its explanation is the :class:`~warmroute.routing.decision_record.DecisionRecord`."""

    at: float
    """Monotonic seconds."""
    load: EndpointLoad
    """The load of the endpoint that the request is booked on."""
    targets: str
    """``ip:port``, or several separated by commas, best first: the value of the destination header."""
    strategy: str
    """The strategy that chose: the one in force, or the fallback where that failed."""
    reason: str
    """See :func:`reason_of`."""
    prompt_tokens: float
    """At least 1."""
    cached_tokens: float
    """Tokens of the prompt that the endpoint probably holds."""
    random_cached_tokens: float
    """Tokens of the prompt that a candidate chosen at random would hold: the mean over all candidates."""
    prompt_bytes: int
    """Length of the prompt, estimated if ``partial``; 0: the request has none."""
    exact: bool
    """The client sent token ids: ``prompt_tokens`` is not estimated."""
    partial: bool
    """The body was cut off."""
    chain: Chain
    adapter: str
    """The LoRA adapter that the request asks for; empty if none."""
    failed_strategy: str = ""
    """The strategy in force if it failed, else empty."""
    further: tuple[Chain, ...] = ()
    """The chains of the second and further prompts of a batch, as many as are matched."""
    prompts: float = 1.0
    """Prompts of equal length that have the work of those of the batch; 1 for a single prompt."""
    requests: int = 1
    """Requests that the engine queues: one for each prompt and sample."""
    samples: int = 1
    """Answers that the client wants to each prompt."""
    reads_cache: bool = True
    """The engine may take a beginning of the prompt from its cache."""
    held: tuple[int, ...] = ()
    """Checkpoints that the endpoint had before, of each chain."""
    sent: tuple[SentPrompt, ...] = ()
    """The prompts as they wait for the engine's counters."""
    held_out: bool = False
    """``--holdout-strategy`` chose."""
    id: str = ""
    """Unique among the decisions of all pickers; empty without listeners."""
    request_id: str = ""
    """The gateway's ``x-request-id``; clients may choose it and it may be empty."""
    measurement: Measurement | None = None
    """What the gateway has shown of the response so far; only while responses are observed."""

    @property
    def endpoint(self) -> Endpoint:
        """The chosen endpoint."""
        return self.load.endpoint

    @property
    def chains(self) -> tuple[Chain, ...]:
        """The chains of all prompts that are matched."""
        return (self.chain, *self.further)

    @property
    def known_lengths(self) -> list[int]:
        """Bytes of each prompt; one UNKNOWN where they are not known one by one."""
        if self.further:
            return [chain.prompt_bytes for chain in self.chains]
        return [UNKNOWN if self.partial or self.requests > self.samples else self.prompt_bytes]

    @property
    def uncached_work(self) -> float:
        """Tokens of work that the endpoint must compute."""
        return prefill_work(self.prompt_tokens, self.prompts) - prefill_work(self.cached_tokens, self.prompts)

    @property
    def match_ratio(self) -> float:
        """Share of the prompt that the endpoint probably holds."""
        return self.cached_tokens / self.prompt_tokens


@dataclass(slots=True)
class Measurement:
    """What the gateway showed of the response to a decision's request (``--observe-responses``)."""

    served: str = ""
    """``ip:port`` of the endpoint that served it; empty if the gateway does not report it."""
    status: int | None = None
    """HTTP status of the endpoint's response; None if none came."""
    headers_seconds: float | None = None
    """Seconds from the decision to the response's headers. A streaming engine sends them before the first token."""
    seconds: float = 0.0
    """Seconds from the decision to the end of the response."""


def reason_of(cached_tokens: float, *, best: float, threshold: float, has_prompt: bool, has_state: bool = False) -> str:
    """Why an endpoint was chosen that holds ``cached_tokens`` of the prompt.

    ``warm``: it holds more than ``threshold`` tokens; ``partial``: it holds some; ``spread``: another one holds more
    (``best``), but this one is cheaper; ``cold``: no endpoint holds any; ``no-prompt``: there was nothing to match;
    ``state``: it stores the state that the request continues (:mod:`warmroute.routing.state_keepers`).
    """
    if has_state:
        return "state"
    if not has_prompt:
        return "no-prompt"
    if cached_tokens > threshold:
        return "warm"
    if cached_tokens < best:
        return "spread"
    return "partial" if cached_tokens else "cold"
