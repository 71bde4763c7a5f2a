"""The ready endpoints' columns, kept current, and the part of them that a request may go to."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import compress
from math import inf

from warmroute.routing.candidates import Candidates, Members
from warmroute.routing.cost import endpoint_factors
from warmroute.routing.endpoint_load import EndpointLoad, LoadConstants

STALE_CAP = 60.0
"""Seconds for which the staleness penalty grows."""
REFRESH_INTERVAL = 0.005
"""Least seconds between two passes over the figures that change with time alone. Until the next pass the ``wait`` of a queue
that has ended may be negative, by at most as much."""
MOST_SELECTIONS = 256
"""Subset hints whose members are remembered."""


class CandidateTable:
    """Candidates for one set of ready endpoints. A change of the set, or of who is available, needs a new table.

    An endpoint's figures change only when it is assigned a request, is scraped, or a virtual finish time passes:
    :meth:`refresh` looks at those alone.
    """

    __slots__ = (
        "_constants",
        "_last_observed",
        "_next_change",
        "_partly_served",
        "_selections",
        "_soonest",
        "_unrestricted",
        "all",
    )

    def __init__(self, loads: Sequence[EndpointLoad], constants: LoadConstants, now: float) -> None:
        self.all = Candidates(Members(loads))
        """Every ready endpoint."""
        self._constants = constants
        self._selections: OrderedDict[tuple[frozenset[str] | None, str], tuple[Members, list[bool]] | None] = (
            OrderedDict()
        )
        self._partly_served = _partly_served(loads)
        self._unrestricted = self._selection(None, "")
        self._next_change = [-inf] * len(loads)
        self._last_observed = max((load.observed_at for load in loads if load.observed_at is not None), default=-inf)
        self._soonest = -inf
        """When the next pass is due: at the earliest of ``_next_change``, or up to :data:`REFRESH_INTERVAL` later."""
        self.refresh(now)

    def select(self, allowed: frozenset[str] | None, model: str) -> Candidates:
        """The available endpoints, or all ready ones if none is available; of the ``allowed`` if that is not None, and of
        those that serve ``model`` if some do and others do not.

        ``allowed`` holds canonical targets (``ip:port``, ``[v6]:port``), or addresses for any port. The members of each
        set are remembered, so that a set that comes again costs no more than a decision without one.
        """
        model = model if model in self._partly_served else ""
        selection = self._unrestricted if allowed is None and not model else self._remembered((allowed, model))
        return self.all if selection is None else self.all.only(*selection)

    def _remembered(self, key: tuple[frozenset[str] | None, str]) -> tuple[Members, list[bool]] | None:
        if key in self._selections:
            self._selections.move_to_end(key)
            return self._selections[key]
        selection = self._selections[key] = self._selection(*key)
        if len(self._selections) > MOST_SELECTIONS:
            self._selections.popitem(last=False)
        return selection

    def _selection(self, allowed: frozenset[str] | None, model: str) -> tuple[Members, list[bool]] | None:
        """The members to choose from and where they are; None: all."""
        endpoints = [load.endpoint for load in self.all.loads]
        ready = [
            allowed is None or endpoint.target in allowed or endpoint.spec.address in allowed for endpoint in endpoints
        ]
        if model:
            serving = [
                chosen and (endpoint.models is None or model in endpoint.models.names)
                for chosen, endpoint in zip(ready, endpoints, strict=True)
            ]
            ready = serving if any(serving) else ready
        available = [chosen and endpoint.available for chosen, endpoint in zip(ready, endpoints, strict=True)]
        selected = available if any(available) else ready
        return None if all(selected) else (Members(list(compress(self.all.loads, selected))), selected)

    def refresh(self, now: float) -> None:
        """Recompute the figures that have changed with time alone, if a pass is due."""
        if self._soonest > now:
            return
        next_change = self._next_change
        for k in [k for k, due in enumerate(next_change) if due <= now]:
            self._update(k, now)
        self._soonest = max(min(next_change, default=inf), now + REFRESH_INTERVAL)

    def update(self, load: EndpointLoad, now: float) -> None:
        """Recompute the figures of an endpoint whose load has changed, if it is in the table."""
        k = self.all.members.position.get(load.holder)
        if k is not None:
            self._update(k, now)

    def outdated(self, load: EndpointLoad) -> None:
        """The endpoint's load has changed: :meth:`refresh` recomputes its figures, once for any number of changes."""
        k = self.all.members.position.get(load.holder)
        if k is not None:
            self._next_change[k] = self._soonest = -inf

    def update_all(self, now: float) -> None:
        """Recompute the figures of every endpoint: the pool's speed may have changed."""
        for k in range(len(self.all)):
            self._update(k, now)

    def _update(self, k: int, now: float) -> None:
        load = self.all.loads[k]
        constants = self._constants
        if load.observed_at is not None:
            self._last_observed = max(self._last_observed, load.observed_at)
        age = self._age(load, now)
        estimate = load.estimate(now, age, constants)
        stale_seconds, until = age - constants.staleness_threshold, estimate.until
        if stale_seconds < 0:
            stale_seconds, until = 0.0, min(until, now - stale_seconds)
        else:
            stale_seconds, until = min(stale_seconds, STALE_CAP), min(until, now + 1.0)
        self._next_change[k] = until
        self._soonest = min(self._soonest, max(until, now + REFRESH_INTERVAL))
        factors = endpoint_factors(
            constants.cost,
            waiting=estimate.waiting,
            queued=estimate.queued,
            running=estimate.running,
            seconds_per_token=load.seconds_per_token(constants),
            pending_at_zero=estimate.pending_at_zero,
            pending_rate=estimate.pending_rate,
            kv_usage=estimate.kv_usage,
            cache_fill=load.cache_fill,
            stale_seconds=stale_seconds,
            correction=load.prediction.correction,
        )
        self.all.store(k, factors, estimate.total, constants.cost)

    def _age(self, load: EndpointLoad, now: float) -> float:
        """Seconds since the engine's state was known.

        An engine that has never reported counts as known since it joined, but as no fresher than the freshest report in
        the pool: else all requests would go to each newcomer while metrics are unavailable.
        """
        if load.observed_at is not None:
            return now - load.observed_at
        return now - min(load.began_at, self._last_observed) if self._last_observed > -inf else 0.0


def _partly_served(loads: Sequence[EndpointLoad]) -> frozenset[str]:
    """The models that some engines list and others do not. An engine whose list is unknown is taken to serve everything."""
    lists = [load.endpoint.models.names for load in loads if load.endpoint.models is not None]
    return frozenset().union(*lists).difference(frozenset.intersection(*lists)) if lists else frozenset()
