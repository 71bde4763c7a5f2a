"""What this picker has decided and found out since its last batch. WITHOUT IO.

It listens to the router's decisions and to the pool; :meth:`Outbox.take` makes the next batch. While another picker's batch
is applied it must not listen: see :attr:`Outbox.muted`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from math import inf

from xxhash import xxh32_intdigest

from warmroute.pool.endpoint import Endpoint, EndpointSpec, EngineState, Health, ServedModels
from warmroute.pool.pool import PoolListener
from warmroute.routing.decision import Decision
from warmroute.routing.decision_record import DecisionRecord
from warmroute.shared_state import shared_state_pb2 as pb
from warmroute.shared_state.logged_chains import LoggedChains

MOST_DECISIONS = 1000
"""Decisions in one batch."""
MOST_CHECKPOINTS = 20_000
"""Checkpoints in one batch, those of its last decision not counted: about 200 kB. A NATS server takes messages of 1 MB."""
MOST_KEPT = 20_000
"""Decisions that wait for a log that is away; the oldest are dropped."""
MOST_KEPT_CHECKPOINTS = 500_000
"""Checkpoints of their chains."""
MOST_EVENTS = 4096
"""Events that wait."""
REPEATS = 4
"""Times that a fact that lasts is said within the log's retention."""
LARGEST = 2**32 - 1
COLUMNS = (
    *("endpoint", "age", "prompt_tokens", "cached_tokens", "prompt_bytes", "flags", "adapter", "base", "added"),
    *("requests", "samples", "prompts"),
)
"""Columns of decisions with one number for each."""
EXACT, PARTIAL, FURTHER, READS_NO_CACHE = 1, 2, 4, 8
"""Bits of the column ``flags``."""
THOUSANDTHS = 1000
"""Unit of the column ``prompts``."""
EQUAL_FIGURES = tuple(
    field.name for field in fields(EngineState) if field.name not in ("observed_at", "loaded_adapters")
)
"""Figures that a report has as they are, under their names."""


class Outbox(PoolListener):
    """Collects and makes batches. Times are monotonic seconds."""

    def __init__(self, chains: LoggedChains, *, owns: Callable[[str], bool] = lambda name: True) -> None:
        """``owns``: whether this picker scrapes the endpoint of that id."""
        self._owns = owns
        self._chains = chains
        self._decisions: deque[Decision] = deque()
        self._states: dict[str, Endpoint] = {}
        """Endpoints with a new state, by id."""
        self._events: deque[tuple[Endpoint, pb.Event.Kind]] = deque(maxlen=MOST_EVENTS)
        self._reachable: dict[str, bool] = {}
        self._specs: dict[str, EndpointSpec] = {}
        self._members: dict[str, Endpoint] = {}
        self._models: dict[str, ServedModels | None] = {}
        self._changed_models: dict[str, Endpoint] = {}
        self._repeat_at = -inf
        self._checkpoints = 0
        """Of the decisions that wait."""
        self.dropped = 0
        """Decisions dropped because the log was away for long."""
        self.muted = False
        """Set while the pool changes because of another picker's batch."""

    # ---------------------------------------------------------------- what happens here

    def decided(self, decision: Decision, record: DecisionRecord) -> None:
        """The router has chosen an endpoint."""
        waiting = self._decisions
        waiting.append(decision)
        self._checkpoints += _checkpoints(decision)
        while len(waiting) > MOST_KEPT or self._checkpoints > MOST_KEPT_CHECKPOINTS:
            self._checkpoints -= _checkpoints(waiting.popleft())
            self.dropped += 1

    def measured(self, decision: Decision) -> None:
        """Nothing to tell: other pickers see the end of a response in the engine's figures."""

    def endpoint_added(self, endpoint: Endpoint, now: float) -> None:
        """A new member."""
        self._members[endpoint.id] = endpoint
        self._specs[endpoint.id] = endpoint.spec

    def endpoint_observed(self, endpoint: Endpoint, now: float) -> None:
        """An engine was scraped."""
        if not self.muted:
            self._states[endpoint.id] = endpoint

    def endpoint_restarted(self, endpoint: Endpoint, now: float) -> None:
        """An engine is a new process. If discovery says so, every picker knows it from there."""
        discovered = self._specs[endpoint.id] is not endpoint.spec
        self._specs[endpoint.id] = endpoint.spec
        if not self.muted:
            self._states.pop(endpoint.id, None)
            if not discovered:
                self._events.append((endpoint, pb.Event.RESTARTED))

    def endpoint_cache_emptied(self, endpoint: Endpoint, now: float) -> None:
        """An engine lost its KV cache."""
        if not self.muted:
            self._events.append((endpoint, pb.Event.CACHE_EMPTIED))

    def endpoint_changed(self, endpoint: Endpoint, now: float) -> None:
        """An engine stopped answering, answers again, was ejected, or lists other models."""
        models_before = self._models.get(endpoint.id)
        self._models[endpoint.id] = endpoint.models
        self._specs[endpoint.id] = endpoint.spec
        before = self._reachable.get(endpoint.id, True)
        self._reachable[endpoint.id] = endpoint.reachable
        if self.muted:
            return
        if endpoint.models != models_before:
            self._changed_models[endpoint.id] = endpoint
        if endpoint.reachable != before:
            self._events.append((endpoint, pb.Event.REACHABLE if endpoint.reachable else pb.Event.UNREACHABLE))
        if endpoint.health is Health.EJECTED:
            self._events.append((endpoint, pb.Event.EJECTED))

    def endpoint_removed(self, endpoint: Endpoint, now: float) -> None:
        """The member is forgotten."""
        self._states.pop(endpoint.id, None)
        self._reachable.pop(endpoint.id, None)
        self._models.pop(endpoint.id, None)
        self._changed_models.pop(endpoint.id, None)
        del self._specs[endpoint.id], self._members[endpoint.id]

    # ---------------------------------------------------------------- batches

    def __len__(self) -> int:
        """Decisions, states, lists of models and events that wait."""
        return len(self._decisions) + len(self._states) + len(self._events) + len(self._changed_models)

    def take(self, now: float, *, bytes_per_token: float = 0.0, leaving: bool = False) -> pb.Batch:
        """The next batch, published at ``now``; call again while something waits."""
        batch = pb.Batch(bytes_per_token=bytes_per_token, leaving=leaving)
        endpoints: dict[str, int] = {}
        adapters: dict[str, int] = {}
        if now >= self._repeat_at:
            self._repeat_at = now + self._chains.retention / REPEATS
            self._repeat()
        while self._events:
            endpoint, kind = self._events.popleft()
            batch.events.add(endpoint=_place(batch, endpoints, endpoint), kind=kind)
        for endpoint in self._states.values():
            if endpoint.state is not None:
                _add_report(batch, _place(batch, endpoints, endpoint), endpoint.state, adapters, now)
        self._states.clear()
        for endpoint in self._changed_models.values():
            _add_models(batch, _place(batch, endpoints, endpoint), endpoint.models)
        self._changed_models.clear()
        if self._decisions:
            self._add_decisions(batch, endpoints, adapters, now)
        batch.adapters.extend(adapters)
        return batch

    def _repeat(self) -> None:
        """Say again what has not changed for long, for pickers that start: the log forgets."""
        for endpoint in self._members.values():
            if not self._owns(endpoint.id):
                continue
            if not endpoint.reachable:
                self._events.append((endpoint, pb.Event.UNREACHABLE))
            if endpoint.models is not None:
                self._changed_models[endpoint.id] = endpoint

    def _add_decisions(self, batch: pb.Batch, endpoints: dict[str, int], adapters: dict[str, int], now: float) -> None:
        waiting, add = self._decisions, self._chains.add
        rows: list[tuple[int, ...]] = []
        hashes: list[int] = []
        distances: list[int] = []
        while waiting and len(rows) < MOST_DECISIONS and len(hashes) < MOST_CHECKPOINTS:
            decision = waiting.popleft()
            self._checkpoints -= _checkpoints(decision)
            base, new, steps = add(decision.chain, now)
            hashes += new
            distances += steps
            rows.append(
                (
                    _place(batch, endpoints, decision.load.endpoint),
                    _age(decision.at, now),
                    _whole(decision.prompt_tokens),
                    _whole(decision.cached_tokens),
                    _whole(decision.prompt_bytes),
                    EXACT * decision.exact + PARTIAL * decision.partial + READS_NO_CACHE * (not decision.reads_cache),
                    1 + _adapter(adapters, decision.adapter) if decision.adapter else 0,
                    base,
                    len(new),
                    decision.requests,
                    decision.samples,
                    _whole(THOUSANDTHS * decision.prompts),
                )
            )
            for chain in decision.further:
                base, new, steps = add(chain, now)
                hashes += new
                distances += steps
                rows.append((0, 0, 0, 0, _whole(chain.prompt_bytes), FURTHER, 0, base, len(new), 0, 0, 0))
        columns = batch.decisions
        for name, column in zip(COLUMNS, zip(*rows, strict=True), strict=True):
            getattr(columns, name).extend(column)
        columns.hashes.extend(hashes)
        columns.distances.extend(distances)


def incarnation_of(endpoint: Endpoint) -> int:
    """The endpoint's incarnation as a batch has it; 0 if discovery knows none."""
    return _digest(endpoint.spec.incarnation)


@lru_cache(maxsize=4096)
def _digest(incarnation: str) -> int:
    return xxh32_intdigest(incarnation.encode()) or 1 if incarnation else 0


def _place(batch: pb.Batch, endpoints: dict[str, int], endpoint: Endpoint) -> int:
    """The endpoint's position in the batch's table."""
    place = endpoints.get(endpoint.id)
    if place is None:
        place = endpoints[endpoint.id] = len(endpoints)
        batch.endpoints.add(id=endpoint.id, incarnation=incarnation_of(endpoint))
    return place


def _checkpoints(decision: Decision) -> int:
    """Checkpoints of its chains, those that they share counted for each."""
    return len(decision.chain.hashes) + sum(len(chain.hashes) for chain in decision.further)


def _add_models(batch: pb.Batch, place: int, models: ServedModels | None) -> None:
    if models is None:
        batch.served.add(endpoint=place, listed=False)
    else:
        batch.served.add(endpoint=place, listed=True, names=sorted(models.names), adapters=sorted(models.adapters))


def _adapter(adapters: dict[str, int], name: str) -> int:
    return adapters.setdefault(name, len(adapters))


def _age(at: float, now: float) -> int:
    """Microseconds."""
    return _whole((now - at) * 1e6)


def _whole(value: float) -> int:
    return int(value) if 0 <= value < LARGEST else LARGEST if value > 0 else 0


def _add_report(batch: pb.Batch, place: int, state: EngineState, adapters: dict[str, int], now: float) -> None:
    batch.reports.add(
        endpoint=place,
        age=_age(state.observed_at, now),
        loaded_adapters=[_adapter(adapters, name) for name in state.loaded_adapters],
        **{name: getattr(state, name) for name in EQUAL_FIGURES},
    )
