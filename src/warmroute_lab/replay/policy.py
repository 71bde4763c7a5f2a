"""What chooses the engine in a replay: the real router, and the interface that it shares with the baselines."""

from __future__ import annotations

import random

from warmroute.engines.scraper import TICK, busy_interval
from warmroute.pool.endpoint import Endpoint, EndpointSpec, EngineState
from warmroute.pool.pool import Pool
from warmroute.request.rejections import Rejection
from warmroute.routing.router import Router, RoutingConstants
from warmroute.settings import Settings
from warmroute_lab.replay.trace import TracedRequest


class Policy:
    """Chooses a pod for each request. Pods are numbers; times are seconds of the replay.

    It hears what a proxy that forwards the requests and responses would: baselines need it, the router does without.
    """

    busy_interval = 0.5
    """Seconds between two looks at a busy engine's metrics."""
    idle_interval = 2.0
    """The same for an idle engine."""
    tick = 0.0
    """Seconds between two times at which looks that are due begin; 0: each begins when it is due."""

    def choose(self, request: TracedRequest, number: int, now: float) -> int | None:
        """The pod for request ``number``; None if there is none. What it does to the picker's books is done at once."""
        raise NotImplementedError

    def first_token(self, number: int, now: float) -> None:
        """The request got its first token."""

    def finished(self, number: int, now: float) -> None:
        """The request got its last token, or its engine died."""

    def joined(self, pod: int, now: float) -> None:
        """There is one pod more."""

    def left(self, pod: int, now: float) -> None:
        """The pod is to get no more requests."""

    def unreachable(self, pod: int, now: float) -> None:
        """The pod's engine does not answer."""

    def restarted(self, pod: int, now: float) -> None:
        """The pod's engine answers again, as a new process."""

    def observed(self, pod: int, state: EngineState, now: float) -> None:
        """A look at the pod's metrics; the first one after :meth:`unreachable` comes after :meth:`restarted`."""


class RouterPolicy(Policy):
    """The server's router, as it is, on a pool that the replay feeds."""

    tick = TICK

    def __init__(self, constants: RoutingConstants, settings: Settings, *, rng: random.Random) -> None:
        self._settings = settings
        self.idle_interval = settings.idle_metrics_interval
        self._pool = Pool()
        self.router = Router(self._pool, constants, rng=rng, now=0.0)
        self._endpoints: dict[int, Endpoint] = {}
        self._pods: dict[str, int] = {}

    def choose(self, request: TracedRequest, number: int, now: float) -> int | None:
        decision = self.router.pick(request.inference, now)
        self.router.upkeep(now)
        return None if isinstance(decision, Rejection) else self._pods[decision.endpoint.id]

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
