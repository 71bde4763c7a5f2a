"""One endpoint of the pool: its spec from discovery, and the last state of its engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from math import inf
from typing import Literal

EndpointState = Literal["ready", "unreachable", "ejected", "sleeping", "gone"]

ENGINE_LABELS = ("llm-d.ai/engine-type", "inference.networking.k8s.io/engine-type")
"""Pod labels that name the engine, the newer first."""

ROLE_LABELS = ("llm-d.ai/role", "llmd.org/role")
"""Pod labels that name what a pod does, the newer first (https://github.com/llm-d/llm-d-router/issues/35)."""
ROLES_WITHOUT_CLIENTS = frozenset(("prefill", "encode", "encode-prefill"))
"""Roles of pods that work for other pods. decode, both, prefill-decode and pods without a role answer clients."""

MOST_RANKS = 64
"""Data-parallel engines behind one port."""
MOST_REQUESTS = 100_000
"""Requests running, waiting, or allowed to run at once. vLLM's default ``max_num_seqs`` is at most 1,024 (EngineArgs)."""
MOST_CAPACITY = 1_000_000_000
"""Tokens of a KV cache. A small model (Qwen2.5 0.5B: 24 layers * 2 heads * 64 * 2 * 2 bytes = 12 kB per token) in the memory
of 8 GPUs of 288 GB has 190 million."""
MOST_BLOCK_SIZE = 1 << 20
"""Tokens in a block of the KV cache: 16 by default, up to 8,320 in hybrid models, whose layers share blocks of one size."""
LOOKED_UP_BY = 5
"""Prompts by which an engine that keeps prompts has looked one up in its cache."""
MOST_COUNTED = 2.0**53
"""Value of a counter: beyond it a double cannot count by one."""
RATES = (1.0, 10_000_000.0)
"""Tokens per second of one engine. 10^7 is far above a node of 8 GPUs (about 400,000 prefill tokens per second with an 8B
model, 8 times the 50,000 of one H100)."""
MOST_ADAPTERS = 1_024
"""LoRA adapters in use, or that fit at once. vLLM's ``max_loras`` is 1 by default."""
MOST_SERVED_MODELS = 4_096
"""Models and adapters that one engine lists."""
LONGEST_MODEL_NAME = 512
"""Characters of a model's name."""
LONGEST_ADDRESS = 64
"""Characters of the longest text that is read as an IP address; an IPv6 address with a zone has fewer."""


def canonical_address(address: str) -> str:
    """An IP address as Python writes it (``2001:db8::1``), so that equal addresses are equal strings. Other text is returned
    unchanged."""
    return _canonical(address) if len(address) <= LONGEST_ADDRESS else address


@lru_cache(maxsize=4096)
def _canonical(address: str) -> str:
    try:
        return str(IPv6Address(address) if ":" in address else IPv4Address(address))
    except ValueError:
        return address


def rank_name(name: str, rank: int) -> str:
    """Name or id of a data-parallel engine behind the port of the endpoint ``name``."""
    return f"{name}-dp{rank}" if rank else name


def canonical_target(address: str, port: int) -> str:
    """``address:port`` as Envoy wants it; an IPv6 address in brackets. ``address`` is canonical."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """One endpoint as discovery lists it.

    ``address`` is an IPv4 or IPv6 address (no brackets), made canonical here; ``incarnation`` changes when the engine
    behind the name is another process (Kubernetes: pod uid and container id) and is empty if that is unknown. Any change of
    ``cache_generation`` says that the engine has lost its KV cache and keeps running. ``rank`` is the number of a
    data-parallel engine behind the port, which requests choose by the header ``X-data-parallel-rank``; None: the server
    chooses, or has one.
    """

    namespace: str
    name: str
    address: str
    port: int
    labels: Mapping[str, str] = field(default_factory=dict)
    incarnation: str = ""
    cache_generation: str = ""
    rank: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", canonical_address(self.address))

    @property
    def id(self) -> str:
        """The identity: ``namespace/name``, unique in a pool."""
        return f"{self.namespace}/{self.name}"

    def of_rank(self, rank: int) -> EndpointSpec:
        """The endpoint of one data-parallel engine behind the port. Rank 0 keeps the name."""
        return replace(self, name=rank_name(self.name, rank), rank=rank)

    @property
    def target(self) -> str:
        """``address:port`` as Envoy wants it; see :func:`canonical_target`."""
        return canonical_target(self.address, self.port)

    @property
    def answers_clients(self) -> bool:
        """Whether the labels give it a role in which it takes clients' requests. Discovery leaves out the others."""
        role = next((self.labels[label] for label in ROLE_LABELS if label in self.labels), "")
        return role.lower() not in ROLES_WITHOUT_CLIENTS

    @property
    def engine(self) -> str:
        """The engine that the labels name, for example ``vllm``; empty if none does."""
        return next((self.labels[label] for label in ENGINE_LABELS if label in self.labels), "")


@dataclass(frozen=True, slots=True)
class EngineState:
    """The figures of one scrape of an engine's metrics page.

    Figures are None if the engine does not export them.
    """

    observed_at: float
    """Monotonic seconds at which the page was asked for."""
    running: int
    """Requests in model execution batches."""
    waiting: int
    """Requests queued in the engine."""
    kv_usage: float
    """KV cache utilization, 0 to 1: blocks that requests use. Cached but idle blocks count as free."""
    capacity_tokens: int | None = None
    """Tokens that the KV cache holds."""
    max_num_seqs: int | None = None
    """Most requests that run at once. vLLM does not export it: ``--max-num-seqs`` is assumed then."""
    max_model_len: int | None = None
    """Most tokens of a request, prompt and answer together. The engine rejects longer ones."""
    block_size: int | None = None
    """Tokens in a block of the KV cache: prompts are found in whole blocks."""
    prefix_caching: bool | None = None
    """Whether the engine's GPU keeps prompts."""
    tier_tokens: int | None = None
    """Tokens that a second tier of the KV cache holds (host memory), copies of the first tier included."""
    loaded_adapters: frozenset[str] = frozenset()
    """LoRA adapters that were in use since the scrape before, and those that the engine lists as loaded."""
    max_adapters: int = 0
    """LoRA adapters that fit at once; 0 if unknown or none."""
    awaiting_first_token: int | None = None
    """Running and waiting requests without a first token; None if the engine's counters do not show it."""
    first_tokens_total: float | None = None
    """Counter: requests that got their first token."""
    first_token_seconds_total: float | None = None
    """Counter: their times to first token, in seconds."""
    prompt_tokens_total: float | None = None
    """Counter: prompt tokens of finished requests, cached ones included."""
    prompt_requests_total: float | None = None
    """Counter: the requests that ``prompt_tokens_total`` counts."""
    computed_tokens_total: float | None = None
    """Counter: prompt tokens computed rather than taken from a cache."""
    prefix_queries_total: float | None = None
    """Counter: prompt tokens looked up in the prefix cache."""
    prefix_hits_total: float | None = None
    """Counter: prompt tokens found in the prefix cache, in any tier."""
    tier_queries_total: float | None = None
    """Counter: prompt tokens looked up in a second tier of the cache (host memory, LMCache)."""
    tier_hits_total: float | None = None
    """Counter: of the tokens found, those in the second tier."""
    responses_total: float | None = None
    """Counter: HTTP responses to POST requests, of any status."""
    rejected_responses_total: float | None = None
    """Counter: of these, responses with a status of 400 to 499."""
    failed_responses_total: float | None = None
    """Counter: of these, responses with a status of 500 to 599."""
    prefill_rate: float | None = None
    """Measured tokens of prefill work per second while busy."""
    decode_rate: float | None = None
    """Measured output tokens per second of a request that runs alone."""
    sleeping: bool = False
    """The engine sleeps; it is chosen only if no endpoint is awake."""

    @property
    def caches_prompts(self) -> bool:
        """Whether prompts may be in the engine's cache: not if the page says that it keeps none, nor if it has finished
        prompts and looked none up. True if the page has no counter of lookups."""
        if self.prefix_queries_total:
            return True
        if self.prefix_caching is False:
            return False
        finished = self.first_tokens_total or self.prompt_requests_total or 0.0
        return self.prefix_queries_total is None or finished < LOOKED_UP_BY

    @property
    def plausible(self) -> bool:
        """Whether every figure is one that an engine can have: finite and within the bounds of this module."""
        slowest, fastest = RATES
        return (
            0 <= self.running <= MOST_REQUESTS
            and 0 <= self.waiting <= MOST_REQUESTS
            and 0 <= self.kv_usage <= 1
            and len(self.loaded_adapters) <= MOST_ADAPTERS
            and 0 <= self.max_adapters <= MOST_ADAPTERS
            and _within(self.awaiting_first_token, 0, self.running + self.waiting)
            and _within(self.capacity_tokens, 0, MOST_CAPACITY)
            and _within(self.max_num_seqs, 1, MOST_REQUESTS)
            and _within(self.max_model_len, 1, MOST_CAPACITY)
            and _within(self.block_size, 1, MOST_BLOCK_SIZE)
            and _within(self.tier_tokens, 0, MOST_CAPACITY)
            and _within(self.first_tokens_total, 0, MOST_COUNTED)
            and _within(self.first_token_seconds_total, 0, MOST_COUNTED)
            and _within(self.prompt_tokens_total, 0, MOST_COUNTED)
            and _within(self.prompt_requests_total, 0, MOST_COUNTED)
            and _within(self.computed_tokens_total, 0, MOST_COUNTED)
            and _within(self.prefix_queries_total, 0, MOST_COUNTED)
            and _within(self.prefix_hits_total, 0, MOST_COUNTED)
            and _within(self.tier_queries_total, 0, MOST_COUNTED)
            and _within(self.tier_hits_total, 0, MOST_COUNTED)
            and _within(self.responses_total, 0, MOST_COUNTED)
            and _within(self.rejected_responses_total, 0, MOST_COUNTED)
            and _within(self.failed_responses_total, 0, MOST_COUNTED)
            and _within(self.prefill_rate, slowest, fastest)
            and _within(self.decode_rate, slowest, fastest)
        )


@dataclass(frozen=True, slots=True)
class ServedModels:
    """The models that an engine lists: it answers 404 for any other."""

    names: frozenset[str]
    """At most :data:`MOST_SERVED_MODELS`."""
    adapters: frozenset[str] = frozenset()
    """Those that are LoRA adapters of another one."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Names of one model that is served under several, each with the name that stands for all: they share a cache."""


def _within(figure: float | None, least: float, most: float) -> bool:
    """Whether the figure is in the range, or None (not exported). NaN is not in it."""
    return figure is None or least <= figure <= most


class Health(Enum):
    """Passive health of an endpoint; :mod:`warmroute.routing.outlier_detection` has the rules."""

    HEALTHY = "healthy"
    """It takes requests."""
    EJECTED = "ejected"
    """It takes none until its backoff ends."""
    PROBING = "probing"
    """It takes one request."""
    TRIAL = "trial"
    """It takes none until that request has shown something."""


class RestartSign(Enum):
    """How a restart of an engine becomes known."""

    PAGE = "page"
    """Its metrics page is that of a new process, here or at another picker."""
    DISCOVERY = "discovery"
    """Discovery lists another incarnation."""


class Endpoint:
    """A member of the pool. Its identity is the object; discovery and scrapes change it through the pool only."""

    __slots__ = (
        "added_at",
        "engine",
        "gone_at",
        "health",
        "id",
        "models",
        "reachable",
        "restart_signs",
        "restarted_at",
        "sent_at",
        "silent_at",
        "spec",
        "state",
        "target",
    )

    def __init__(self, spec: EndpointSpec, *, engine: str, now: float) -> None:
        self.spec = spec
        self.id = spec.id
        self.target = spec.target
        self.engine = engine
        """Name of the engine's metric dialect, for example ``vllm``."""
        self.added_at = now
        self.gone_at: float | None = None
        """When discovery dropped it; it is kept for a while, so that a flapping pod keeps its cached prefixes."""
        self.reachable = True
        """False while the engine refuses connections or does not answer."""
        self.silent_at = -inf
        """When that was seen last; -inf: never."""
        self.health = Health.HEALTHY
        self.restarted_at = -inf
        """When the first sign of the last restart came; -inf if it has not restarted."""
        self.restart_signs: frozenset[RestartSign] = frozenset()
        """The signs of that restart that have come."""
        self.state: EngineState | None = None
        self.sent_at = -inf
        """When the first of the requests was sent that :attr:`state` is too old to show; if there is none, a time that the
        state shows."""
        self.models: ServedModels | None = None
        """What the engine serves; None if it is not known."""

    @property
    def ready(self) -> bool:
        """Whether discovery lists it now."""
        return self.gone_at is None

    @property
    def ejected(self) -> bool:
        """Whether passive health keeps it out."""
        return self.health in (Health.EJECTED, Health.TRIAL)

    @property
    def available(self) -> bool:
        """Ready, reachable, awake and not ejected: the router chooses from these while there are any."""
        awake = self.state is None or not self.state.sleeping
        return self.ready and self.reachable and awake and not self.ejected

    def __repr__(self) -> str:
        return f"<Endpoint {self.id} {self.target}>"


def endpoint_state(endpoint: Endpoint) -> EndpointState:
    """Whether the endpoint can be chosen, and if not, why."""
    if endpoint.gone_at is not None:
        return "gone"
    if not endpoint.reachable:
        return "unreachable"
    if endpoint.ejected:
        return "ejected"
    return "ready" if endpoint.available else "sleeping"
