"""The pool: discovery and scrapes write to it; listeners (router, scraper, metrics) are called for every change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import inf

from warmroute.pool.endpoint import Endpoint, EndpointSpec, EngineState, Health, RestartSign, ServedModels, rank_name
from warmroute.pool.models import ModelTable

RETENTION = 60.0
"""Seconds for which an endpoint that discovery dropped is remembered, so that flapping does not cost its cache."""
ONE_RESTART_SECONDS = 15.0
"""Seconds within which two signs of a restart mean one: the metrics page shows it first, the pod's status later. Engines
take longer to load their weights."""


class PoolListener:
    """Called for every change, synchronously and in order. Override the methods that matter."""

    def endpoint_added(self, endpoint: Endpoint, now: float) -> None:
        """A new member; it has no state yet."""

    def endpoint_removed(self, endpoint: Endpoint, now: float) -> None:
        """The member is forgotten; if discovery lists it again, it is a new object."""

    def endpoint_changed(self, endpoint: Endpoint, now: float) -> None:
        """Readiness, address, labels, reachability, passive health or the models that it serves changed."""

    def endpoint_observed(self, endpoint: Endpoint, now: float) -> None:
        """``endpoint.state`` is new."""

    def endpoint_cache_emptied(self, endpoint: Endpoint, now: float) -> None:
        """The engine behind it lost its KV cache and kept its queue."""

    def endpoint_restarted(self, endpoint: Endpoint, now: float) -> None:
        """The engine behind it lost its KV cache and its queue: its process ended."""


class Pool:
    """The endpoints by id, and the models. Not thread-safe: one event loop owns it."""

    def __init__(self, *, default_engine: str = "vllm", retention: float = RETENTION) -> None:
        self.endpoints: dict[str, Endpoint] = {}
        self.models = ModelTable()
        self.default_engine = default_engine
        self.retention = retention
        self.synced = False
        """True once discovery has delivered its first full list."""
        self._ranks: dict[str, int] = {}
        """Data-parallel engines behind the port of an endpoint, by its id, if there are several."""
        self._listeners: list[PoolListener] = []

    def subscribe(self, listener: PoolListener, now: float) -> None:
        """Call ``listener`` for the present members, and for every change from now on."""
        self._listeners.append(listener)
        for endpoint in self.endpoints.values():
            listener.endpoint_added(endpoint, now)
            if endpoint.state is not None:
                listener.endpoint_observed(endpoint, now)

    def replace(self, specs: Iterable[EndpointSpec], now: float) -> None:
        """Make the pool equal to a full list from discovery. If two specs have one id, the last counts."""
        wanted = {spec.id: spec for spec in specs}
        known = {rank_name(i, rank) for i in wanted for rank in range(self._ranks.get(i, 1))}
        for endpoint_id in [i for i in self.endpoints if i not in known]:
            self.remove(endpoint_id, now)
        for spec in wanted.values():
            self.upsert(spec, now)
        self.synced = True

    def upsert(self, spec: EndpointSpec, now: float) -> Endpoint:
        """Add a member or bring it up to date; a changed incarnation or address counts as a restart.

        Of an endpoint with several ranks each one is a member; the first one is returned.
        """
        ranks = self._ranks.get(spec.id, 1)
        for rank in range(1, ranks):
            self._upsert(spec.of_rank(rank), now)
        return self._upsert(spec if ranks == 1 else spec.of_rank(0), now)

    def set_ranks(self, endpoint: Endpoint, ranks: int, now: float) -> tuple[Endpoint, ...]:
        """Make one member for each of the ``ranks`` data-parallel engines behind the endpoint's port; at most MOST_RANKS.

        ``endpoint`` is the first of them. Returns all in order. If discovery has dropped it, nothing changes.
        """
        before = self._ranks.get(endpoint.id, 1)
        if not self._has(endpoint):
            return (endpoint,)
        if ranks != before and endpoint.ready:  # adding members brings a dropped one back
            spec = endpoint.spec
            for rank in range(ranks, before):
                self.remove(rank_name(endpoint.id, rank), now)
            self._ranks[endpoint.id] = ranks
            if ranks == 1:
                del self._ranks[endpoint.id]
            self.upsert(replace(spec, rank=None), now)
        return self.ranks_of(endpoint)

    def ranks_of(self, endpoint: Endpoint) -> tuple[Endpoint, ...]:
        """The members behind the endpoint's port, of which it is the first."""
        ranks = self._ranks.get(endpoint.id, 1)
        if ranks == 1:
            return (endpoint,)
        return tuple(self.endpoints[rank_name(endpoint.id, rank)] for rank in range(ranks))

    def _upsert(self, spec: EndpointSpec, now: float) -> Endpoint:
        endpoint = self.endpoints.get(spec.id)
        engine = spec.engine or self.default_engine
        if endpoint is None:
            endpoint = self.endpoints[spec.id] = Endpoint(spec, engine=engine, now=now)
            for listener in self._listeners:
                listener.endpoint_added(endpoint, now)
            return endpoint
        old = endpoint.spec
        if old == spec and endpoint.gone_at is None and endpoint.engine == engine:
            return endpoint
        endpoint.spec, endpoint.engine, endpoint.gone_at = spec, engine, None
        endpoint.target = spec.target
        if old.target != spec.target:  # a new process, whatever the page of the old one has shown
            endpoint.reachable = True
            self._restart(endpoint, now, RestartSign.DISCOVERY)
        elif old.incarnation and spec.incarnation and old.incarnation != spec.incarnation:
            endpoint.reachable = True
            self.restarted(endpoint, now, RestartSign.DISCOVERY)
        elif old.cache_generation != spec.cache_generation:
            self.cache_emptied(endpoint, now)
        self._changed(endpoint, now)
        return endpoint

    def remove(self, endpoint_id: str, now: float) -> None:
        """Stop routing to a member at once; it is forgotten after ``retention`` seconds unless it returns."""
        for rank in range(1, self._ranks.get(endpoint_id, 1)):
            self.remove(rank_name(endpoint_id, rank), now)
        endpoint = self.endpoints.get(endpoint_id)
        if endpoint is not None and endpoint.gone_at is None:
            endpoint.gone_at = now
            self._changed(endpoint, now)

    def expire(self, now: float) -> None:
        """Forget the members that discovery dropped ``retention`` seconds ago or earlier."""
        for endpoint in list(self.endpoints.values()):
            if endpoint.gone_at is not None and now - endpoint.gone_at >= self.retention:
                del self.endpoints[endpoint.id]
                self._ranks.pop(endpoint.id, None)
                for listener in self._listeners:
                    listener.endpoint_removed(endpoint, now)

    def observed(self, endpoint: Endpoint, state: EngineState, now: float) -> None:
        """A scrape succeeded. Ignored, like all evidence of an engine, once the member is forgotten.

        A state with a figure that no engine can have, or older than the one that is known, is dropped whole: the endpoint
        is reachable, and its state ages as if there had been no scrape. A page that was asked for before the engine fell
        silent, read by another picker, does not make it reachable.
        """
        known, answers = endpoint.state, state.observed_at >= endpoint.silent_at
        if not state.plausible or (known is not None and state.observed_at < known.observed_at):
            if answers:
                self.reachable(endpoint, now)
            return
        if not self._has(endpoint):
            return
        available_before = endpoint.available
        endpoint.state = state
        endpoint.reachable = endpoint.reachable or answers
        for listener in self._listeners:
            listener.endpoint_observed(endpoint, now)
        if endpoint.available != available_before:
            self._changed(endpoint, now)

    def reachable(self, endpoint: Endpoint, now: float) -> None:
        """The engine answers, though without a usable state."""
        if self._has(endpoint) and not endpoint.reachable:
            endpoint.reachable = True
            self._changed(endpoint, now)

    def sent(self, endpoint: Endpoint, at: float) -> None:
        """A request was sent to the endpoint at ``at``, by this picker or another one. Its engine is scraped soon after."""
        shown = -inf if endpoint.state is None else endpoint.state.observed_at
        if endpoint.sent_at <= shown < at:
            endpoint.sent_at = at

    def unreachable(self, endpoint: Endpoint, now: float) -> None:
        """The engine refuses connections or does not answer."""
        endpoint.silent_at = max(endpoint.silent_at, now)
        if self._has(endpoint) and endpoint.reachable:
            endpoint.reachable = False
            self._changed(endpoint, now)

    def set_health(self, endpoint: Endpoint, health: Health, now: float) -> None:
        """The endpoint's passive health has changed."""
        endpoint.health = health
        self._changed(endpoint, now)

    def restarted(self, endpoint: Endpoint, now: float, sign: RestartSign = RestartSign.PAGE) -> None:
        """There is evidence that the engine behind the endpoint is a new process. Ignored if it is the second sign of a
        restart of which another one came less than :data:`ONE_RESTART_SECONDS` ago."""
        if not self._has(endpoint):
            return
        if now - endpoint.restarted_at < ONE_RESTART_SECONDS and sign not in endpoint.restart_signs:
            endpoint.restart_signs |= {sign}
        else:
            self._restart(endpoint, now, sign)

    def _restart(self, endpoint: Endpoint, now: float, sign: RestartSign) -> None:
        endpoint.restarted_at, endpoint.restart_signs = now, frozenset({sign})
        available_before = endpoint.available
        endpoint.state = endpoint.models = None
        for listener in self._listeners:
            listener.endpoint_restarted(endpoint, now)
        if endpoint.available != available_before:
            self._changed(endpoint, now)

    def serves(self, endpoint: Endpoint, models: ServedModels | None, now: float) -> None:
        """The engine lists these models; None: it has no list."""
        if self._has(endpoint) and endpoint.models != models:
            endpoint.models = models
            self._changed(endpoint, now)

    def cache_emptied(self, endpoint: Endpoint, now: float) -> None:
        """Report that the engine has lost its KV cache: its weights have changed, or its cache was reset."""
        if self._has(endpoint):
            for listener in self._listeners:
                listener.endpoint_cache_emptied(endpoint, now)

    def _has(self, endpoint: Endpoint) -> bool:
        return self.endpoints.get(endpoint.id) is endpoint

    def _changed(self, endpoint: Endpoint, now: float) -> None:
        for listener in self._listeners:
            listener.endpoint_changed(endpoint, now)
