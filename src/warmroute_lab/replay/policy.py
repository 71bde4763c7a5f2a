"""Routing policies of a replay: the interface, and the product's router behind it."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator

from warmroute.engines.scraper import TICK, busy_interval
from warmroute.pool.endpoint import Endpoint, EndpointSpec, EngineState
from warmroute.pool.pool import Pool
from warmroute.request.rejections import Rejection
from warmroute.routing.router import Router, RoutingConstants
from warmroute.settings import Settings
from warmroute.shared_state.inbox import Inbox
from warmroute.shared_state.outbox import Outbox
from warmroute.shared_state.shared_state_pb2 import Batch
from warmroute_lab.replay.trace import TracedRequest
from warmroute_lab.simulator.profile import Profile


class Policy:
    """Chooses a pod for each request. Pods have numbers; times are seconds of the replay.

    Its other methods are called on events that a proxy in the path of requests and responses sees. Baselines use them; the
    product's router does not need them.
    """

    busy_interval = 0.5
    """Seconds between two scrapes of a busy engine."""
    idle_interval = 2.0
    """Seconds between two scrapes of an idle engine."""
    tick = 0.0
    """Scrapes begin at multiples of this time in seconds; 0: at any time."""
    scrapes_after_requests = False
    """Whether an idle engine is scraped like a busy one once a request was sent to it."""
    failed: Collection[int] = ()
    """Numbers of the requests for which the strategy failed, and the router's fallback chose."""

    def choose(self, request: TracedRequest, number: int, now: float) -> int | None:
        """The pod for request ``number``, which is counted on it at once; None if no pod is available."""
        raise NotImplementedError

    def first_token(self, number: int, now: float) -> None:
        """The request got its first token."""

    def finished(self, number: int, now: float) -> None:
        """The request got its last token, or its engine died or was down."""

    def joined(self, pod: int, now: float) -> None:
        """A pod joined the fleet."""

    def told(self, pod: int, profile: Profile) -> None:
        """What the engine of a new pod really is. Metrics pages do not say all of it; the product's router is not told."""

    def left(self, pod: int, now: float) -> None:
        """The pod gets no more requests."""

    def unreachable(self, pod: int, now: float) -> None:
        """A scrape of the pod got no answer."""

    def restarted(self, pod: int, now: float) -> None:
        """The pod's engine is a new process."""

    def observed(self, pod: int, state: EngineState, now: float) -> None:
        """A scrape of the pod. The first one of a new process comes after :meth:`restarted`."""


class RouterPolicy(Policy):
    """The product's router on a pool that the replay feeds."""

    tick = TICK
    scrapes_after_requests = True

    def __init__(
        self, constants: RoutingConstants, settings: Settings, *, rng: random.Random, shared: bool = False
    ) -> None:
        self._settings = settings
        self.idle_interval = settings.idle_metrics_interval
        self._pool = Pool()
        self.shared = shared
        """Whether it publishes its decisions and applies those of others."""
        self._outbox = Outbox(retention=600.0)
        listeners = (self._outbox,) if shared else ()
        self.router = Router(self._pool, constants, rng=rng, now=0.0, listeners=listeners)
        self._inbox = Inbox(self.router, self._pool, self._outbox)
        self._endpoints: dict[int, Endpoint] = {}
        self._pods: dict[str, int] = {}
        self.failed: set[int] = set()

    def choose(self, request: TracedRequest, number: int, now: float) -> int | None:
        decision = self.router.pick(request.inference, now)
        self.router.upkeep(now)
        if isinstance(decision, Rejection):
            return None
        if decision.failed_strategy:
            self.failed.add(number)
        return self._pods[decision.endpoint.id]

    def joined(self, pod: int, now: float) -> None:
        spec = EndpointSpec("replay", f"pod-{pod}", f"10.0.{pod >> 8}.{pod & 255}", 8000)
        self._endpoints[pod] = self._pool.upsert(spec, now)
        self._pods[spec.id] = pod
        self.busy_interval = busy_interval(self._settings, len(self._endpoints))

    def left(self, pod: int, now: float) -> None:
        self._pool.remove(self._endpoints[pod].id, now)

    def unreachable(self, pod: int, now: float) -> None:
        self._pool.unreachable(self._endpoints[pod], now)

    def restarted(self, pod: int, now: float) -> None:
        self._pool.restarted(self._endpoints[pod], now)

    def observed(self, pod: int, state: EngineState, now: float) -> None:
        self._pool.observed(self._endpoints[pod], state, now)

    def publish(self, now: float) -> Iterator[bytes]:
        """The batches of what was decided since the last time. Each picker scrapes by itself, so states are left out."""
        while self._outbox:
            yield self._outbox.take(now).SerializeToString()

    def apply(self, batch: bytes, published_at: float, now: float) -> None:
        """Apply another picker's batch."""
        self._inbox.apply(Batch.FromString(batch), published_at, now)
