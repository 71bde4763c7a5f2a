"""What this picker has decided and found out since its last batch. WITHOUT IO.

It listens to the router's decisions and to the pool; :meth:`Outbox.take` makes the next batch. While another picker's batch
is applied it must not listen: see :attr:`Outbox.muted`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from math import inf

from warmroute.pool.endpoint import Endpoint, EndpointSpec, EngineState, Health, ServedModels
from warmroute.pool.pool import PoolListener
from warmroute.routing.decision import Decision
from warmroute.routing.decision_record import DecisionRecord
from warmroute.shared_state import shared_state_pb2 as pb
from warmroute.shared_state.decision_columns import DecisionColumns, Names, age

MOST_WAITING = 20
"""Batches of decisions that wait for a log that is away; the oldest are dropped."""
MOST_EVENTS = 4096
"""Events that wait."""
MOST_FACTS = 256 << 10
"""Bytes of events, figures and lists of models in one batch, from which on the rest waits for the next one."""
MOST_OF_A_KIND = 1024
"""Events in one batch, figures of engines, and lists of models, of each kind."""
LONGEST_LIST = 512 << 10
"""Bytes of one engine's list of models; a longer one is not shared. Together with these :data:`MOST_FACTS` it is less than
a NATS server takes."""
REPEATS = 4
"""Times that a fact that lasts is said within the log's retention."""
LEAST_REPEAT = 5.0
"""Seconds at least between two times that it is said for pickers that start."""
EQUAL_FIGURES = tuple(
    field.name for field in fields(EngineState) if field.name not in ("observed_at", "loaded_adapters")
)
"""Figures that a report has as they are, under their names."""


@dataclass(slots=True)
class LastTimes:
    """When something happened to an engine last, in monotonic seconds; -inf: never as far as this picker knows."""

    emptied: float = -inf
    """It lost its KV cache, by a restart or otherwise."""
    decided: float = -inf
    """This picker itself chose it."""


class Outbox(PoolListener):
    """Collects and makes batches. Times are monotonic seconds."""

    def __init__(self, *, retention: float, owns: Callable[[str], bool] = lambda name: True) -> None:
        """``retention``: seconds that the log goes back. ``owns``: whether this picker scrapes the endpoint of that id."""
        self._owns = owns
        self._retention = retention
        self._decisions: deque[DecisionColumns] = deque()
        """Batches, all but the last full."""
        self._states: dict[str, Endpoint] = {}
        """Endpoints with a new state, by id."""
        self._events: deque[tuple[Endpoint, pb.Event.Kind, float]] = deque(maxlen=MOST_EVENTS)
        """Each with its time."""
        self._last: dict[str, LastTimes] = {}
        self._reachable: dict[str, bool] = {}
        self._health: dict[str, Health] = {}
        self._specs: dict[str, EndpointSpec] = {}
        self._members: dict[str, Endpoint] = {}
        self._models: dict[str, ServedModels | None] = {}
        self._changed_models: dict[str, Endpoint] = {}
        self._repeat_at = -inf
        self._repeated_at = -inf
        """When that was for a picker that started."""
        self.dropped = 0
        """Decisions dropped because the log was away for long."""
        self.muted = False
        """Set while the pool changes because of another picker's batch."""

    # ---------------------------------------------------------------- what happens here

    def decided(self, decision: Decision, record: DecisionRecord) -> None:
        """The router has chosen an endpoint."""
        waiting = self._decisions
        if not waiting or waiting[-1].full:
            waiting.append(DecisionColumns())
            if len(waiting) > MOST_WAITING:
                self.dropped += len(waiting.popleft())
        waiting[-1].add(decision)
        last = self._last.get(decision.endpoint.id)
        if last is not None:  # else it has left
            last.decided = decision.at

    def measured(self, decision: Decision) -> None:
        """Nothing to tell: other pickers see the end of a response in the engine's figures."""

    def endpoint_added(self, endpoint: Endpoint, now: float) -> None:
        """A new member."""
        self._members[endpoint.id] = endpoint
        self._last[endpoint.id] = LastTimes()
        self._specs[endpoint.id] = endpoint.spec

    def endpoint_observed(self, endpoint: Endpoint, now: float) -> None:
        """An engine was scraped."""
        if not self.muted:
            self._states[endpoint.id] = endpoint

    def endpoint_restarted(self, endpoint: Endpoint, now: float) -> None:
        """An engine is a new process. If discovery says so, every picker knows it from there."""
        discovered = self._specs[endpoint.id] is not endpoint.spec
        self._specs[endpoint.id] = endpoint.spec
        self._models.pop(endpoint.id, None)
        self._last[endpoint.id].emptied = now
        if not self.muted:
            self._states.pop(endpoint.id, None)
            if not discovered:
                self._events.append((endpoint, pb.Event.RESTARTED, now))

    def endpoint_cache_emptied(self, endpoint: Endpoint, now: float) -> None:
        """An engine lost its KV cache."""
        self._last[endpoint.id].emptied = now
        if not self.muted:
            self._events.append((endpoint, pb.Event.CACHE_EMPTIED, now))

    def endpoint_changed(self, endpoint: Endpoint, now: float) -> None:
        """An engine stopped answering, answers again, was ejected, or lists other models."""
        models_before = self._models.get(endpoint.id)
        self._models[endpoint.id] = endpoint.models
        self._specs[endpoint.id] = endpoint.spec
        before = self._reachable.get(endpoint.id, True)
        self._reachable[endpoint.id] = endpoint.reachable
        health_before = self._health.get(endpoint.id)
        self._health[endpoint.id] = endpoint.health
        if self.muted:
            return
        if endpoint.models != models_before:
            self._changed_models[endpoint.id] = endpoint
        if endpoint.reachable != before:
            self._events.append((endpoint, pb.Event.REACHABLE if endpoint.reachable else pb.Event.UNREACHABLE, now))
        if endpoint.health is Health.EJECTED and health_before is not Health.EJECTED:
            self._events.append((endpoint, pb.Event.EJECTED, now))

    def endpoint_removed(self, endpoint: Endpoint, now: float) -> None:
        """The member is forgotten."""
        self._states.pop(endpoint.id, None)
        self._reachable.pop(endpoint.id, None)
        self._health.pop(endpoint.id, None)
        self._models.pop(endpoint.id, None)
        self._changed_models.pop(endpoint.id, None)
        del self._specs[endpoint.id], self._members[endpoint.id], self._last[endpoint.id]

    def last(self, endpoint: Endpoint) -> LastTimes:
        """When this picker saw the engine lose its cache, and when it chose it."""
        return self._last.get(endpoint.id) or LastTimes()

    # ---------------------------------------------------------------- batches

    def __len__(self) -> int:
        """Decisions, states, lists of models and events that wait."""
        decisions = sum(map(len, self._decisions))
        return decisions + len(self._states) + len(self._events) + len(self._changed_models)

    def take(self, now: float, *, bytes_per_token: float = 0.0, leaving: bool = False) -> pb.Batch:
        """The next batch, published at ``now``; call again while something waits.

        Lists of models go without decisions, so that a long one fits.
        """
        if now >= self._repeat_at:
            self._repeat(now)
        batch = pb.Batch(bytes_per_token=bytes_per_token, leaving=leaving)
        alone = not self._decisions or bool(self._changed_models)
        decisions = DecisionColumns() if alone else self._decisions.popleft()
        names, size = decisions.names, 0
        while self._events and len(batch.events) < MOST_OF_A_KIND and names.size + size < MOST_FACTS:
            endpoint, kind, at = self._events.popleft()
            size += batch.events.add(endpoint=names.endpoint(endpoint), kind=kind, age=age(at, now)).ByteSize()
        while self._states and len(batch.reports) < MOST_OF_A_KIND and names.size + size < MOST_FACTS:
            endpoint = self._states.pop(next(iter(self._states)))
            if endpoint.state is not None:
                size += _add_report(batch, names, endpoint, endpoint.state, now)
        while self._changed_models and len(batch.served) < MOST_OF_A_KIND and names.size + size < MOST_FACTS:
            endpoint = self._changed_models.pop(next(iter(self._changed_models)))
            size += _add_models(batch, names.endpoint(endpoint), endpoint.models)
        decisions.write(batch.decisions, now)
        names.write(batch)
        return batch

    def repeat_soon(self, now: float) -> None:
        """A picker has started. It may have read only the newest part of the log; call this before it takes its share of the
        endpoints, of which it knows no more than of the others."""
        self._repeat_at = min(self._repeat_at, self._repeated_at + LEAST_REPEAT)
        if now >= self._repeat_at:
            self._repeated_at = now
            self._repeat(now)

    def _repeat(self, now: float) -> None:
        """Say again what has not changed for long, for pickers that start: the log forgets."""
        self._repeat_at = now + self._retention / REPEATS
        for endpoint in self._members.values():
            if not self._owns(endpoint.id):
                continue
            if not endpoint.reachable:
                self._events.append((endpoint, pb.Event.UNREACHABLE, now))
            if endpoint.models is not None:
                self._changed_models[endpoint.id] = endpoint


def _add_models(batch: pb.Batch, place: int, models: ServedModels | None) -> int:
    """Returns the bytes that were added. A list that is too long counts as none: the engine may serve any model then."""
    if models is None:
        return batch.served.add(endpoint=place, listed=False).ByteSize()
    names, adapters = sorted(models.names), sorted(models.adapters)
    served = batch.served.add(endpoint=place, listed=True, names=names, adapters=adapters, aliases=models.aliases)
    if served.ByteSize() > LONGEST_LIST:
        served.Clear()
        served.endpoint = place
    return served.ByteSize()


def _add_report(batch: pb.Batch, names: Names, endpoint: Endpoint, state: EngineState, now: float) -> int:
    """Returns the bytes that were added, those of the tables not counted."""
    report = batch.reports.add(
        endpoint=names.endpoint(endpoint),
        age=age(state.observed_at, now),
        loaded_adapters=[names.adapter(name) for name in state.loaded_adapters],
        **{name: getattr(state, name) for name in EQUAL_FIGURES},
    )
    return report.ByteSize()
