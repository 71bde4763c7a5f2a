"""One endpoint of the pool: what discovery says of it and what its engine last told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """What discovery knows of one endpoint.

    ``address`` is an IPv4 or IPv6 address (no brackets); ``incarnation`` changes when the engine behind the same name is
    another one (Kubernetes: pod uid and container id) and is empty where nobody can tell.
    """

    namespace: str
    name: str
    address: str
    port: int
    labels: Mapping[str, str] = field(default_factory=dict)
    incarnation: str = ""

    @property
    def id(self) -> str:
        """The identity: ``namespace/name``, unique in a pool."""
        return f"{self.namespace}/{self.name}"

    @property
    def target(self) -> str:
        """``address:port`` as Envoy wants it; an IPv6 address in brackets."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class EngineState:
    """What one scrape of an engine's metrics page told.

    Counters are None where the engine does not export them.
    """

    observed_at: float
    """Monotonic seconds at which the page was asked for."""
    running: int
    """Requests in model execution batches."""
    waiting: int
    """Requests queued in the engine."""
    kv_usage: float
    """KV-cache blocks referenced by requests, 0 to 1. Cached but idle blocks count as free."""
    capacity_tokens: int | None = None
    """Tokens that the KV cache holds."""
    max_num_seqs: int | None = None
    """Most requests that run at once; not on vLLM's page, so inferred or configured."""
    loaded_adapters: frozenset[str] = frozenset()
    """LoRA adapters that are running or waiting on the engine."""
    max_adapters: int = 0
    """LoRA adapters that fit at once; 0 where unknown or none."""
    awaiting_first_token: int | None = None
    """Running and waiting requests that have no token yet; None where the engine's counters do not tell."""
    first_tokens_total: float | None = None
    """Counter: requests that got their first token."""
    prompt_tokens_total: float | None = None
    """Counter: prompt tokens of finished requests, cached ones included."""
    prompt_requests_total: float | None = None
    """Counter: the requests that ``prompt_tokens_total`` counts."""
    prefix_queries_total: float | None = None
    """Counter: prompt tokens looked up in the prefix cache."""
    prefix_hits_total: float | None = None
    """Counter: prompt tokens found in the prefix cache."""
    prefill_rate: float | None = None
    """Measured speed in prefill tokens per second while busy."""
    decode_rate: float | None = None
    """Measured tokens per second of one answer."""
    sleeping: bool = False
    """The engine sleeps; it is chosen only where nobody else is there."""


class Endpoint:
    """A member of the pool. Identity is the object; discovery and engines change it through the pool only."""

    __slots__ = ("added_at", "engine", "gone_at", "id", "reachable", "spec", "state", "target")

    def __init__(self, spec: EndpointSpec, *, engine: str, now: float) -> None:
        self.spec = spec
        self.id = spec.id
        self.target = spec.target
        self.engine = engine
        """Name of the engine's metric dialect, for example ``vllm``."""
        self.added_at = now
        self.gone_at: float | None = None
        """When discovery dropped it; it is kept for a while, so that a flapping pod keeps its cache."""
        self.reachable = True
        """False while the engine refuses connections or does not answer."""
        self.state: EngineState | None = None

    @property
    def ready(self) -> bool:
        """Discovery wants traffic on it."""
        return self.gone_at is None

    @property
    def available(self) -> bool:
        """Ready, answering and awake: what the router prefers to choose from."""
        return self.ready and self.reachable and not (self.state is not None and self.state.sleeping)

    def __repr__(self) -> str:
        return f"<Endpoint {self.id} {self.target}>"
