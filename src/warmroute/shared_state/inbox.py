"""Applies the batches of other pickers to the router and the pool. WITHOUT IO.

Every figure of a batch is from outside: names that the pool does not have are ignored, positions beyond a table too, and
states are checked by :attr:`~warmroute.pool.endpoint.EngineState.plausible`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from warmroute.pool.endpoint import (
    LONGEST_MODEL_NAME,
    MOST_SERVED_MODELS,
    Endpoint,
    EngineState,
    ServedModels,
)
from warmroute.pool.pool import ONE_RESTART_SECONDS, Pool
from warmroute.prefix.remote import PromptGrowth
from warmroute.routing.outlier_detection import FIRST_BACKOFF
from warmroute.routing.router import Router
from warmroute.routing.sent_request import MOST_REQUESTS_OF_ONE, RemoteRequests
from warmroute.shared_state import shared_state_pb2 as pb
from warmroute.shared_state.decision_columns import (
    COLUMNS,
    MOST_DECISIONS,
    PROMPT_COLUMNS,
    RARE_COLUMNS,
    READS_NO_CACHE,
    UNKNOWN_LENGTH,
    incarnation_of,
)
from warmroute.shared_state.outbox import EQUAL_FIGURES, MOST_OF_A_KIND, Outbox

REPLAYED_REPORTS = 1.0
"""Seconds between two states of one engine that are applied when a picker reads the log at its start. Applying one costs
more than applying a decision, and prompts are confirmed often enough."""
ONE_EMPTYING_SECONDS = 1.0
"""Seconds within which two pickers see one emptying of a cache, by discovery."""
MOST_REQUESTS = 16 * MOST_REQUESTS_OF_ONE
"""Requests that the decisions of one batch count for: some milliseconds of work. Those beyond are left out."""
_ZEROS: dict[str, Any] = {"running": 0, "waiting": 0, "kv_usage": 0.0}
"""Figures that every report has; a batch leaves out zeros."""


@dataclass(slots=True)
class Applied:
    """Totals of what was applied."""

    decisions: int = 0
    reports: int = 0
    events: int = 0
    unknown_endpoints: int = 0
    """Decisions, states and events of endpoints that the pool does not have, or of an earlier process of the engine."""
    unreadable: int = 0
    """Batches with more of a kind than any picker writes, or whose columns of decisions have different lengths."""


class _Reading(NamedTuple):
    """A batch that is being applied."""

    published_at: float
    now: float
    replayed: bool
    endpoints: list[Endpoint | None]
    """Its table of endpoints; None: not a member of the pool."""
    adapters: Sequence[str]


class Inbox:
    """Applies batches. Times are monotonic seconds of this process."""

    def __init__(self, router: Router, pool: Pool, outbox: Outbox) -> None:
        self._router = router
        self._pool = pool
        self._outbox = outbox
        self.applied = Applied()

    def apply(self, batch: pb.Batch, published_at: float, now: float, *, replayed: bool = False) -> None:
        """Apply another picker's batch, published at ``published_at``; ``replayed``: read at the start, from the past."""
        if max(len(batch.events), len(batch.reports), len(batch.served)) > MOST_OF_A_KIND:
            self.applied.unreadable += 1
            return
        endpoints = [self._member(named) for named in batch.endpoints]
        reading = _Reading(min(published_at, now), now, replayed, endpoints, tuple(batch.adapters))
        self._outbox.muted = True
        try:
            for event in batch.events:
                self._apply_event(event, reading)
            for report in batch.reports:
                self._apply_report(report, reading)
            for served in batch.served:
                self._apply_models(served, reading)
        finally:
            self._outbox.muted = False
        self._apply_decisions(batch.decisions, reading)
        if replayed and batch.bytes_per_token:
            self._router.learn_bytes_per_token(batch.bytes_per_token)

    def _member(self, named: pb.Endpoint) -> Endpoint | None:
        """The pool's endpoint of that name, unless it is another incarnation now."""
        endpoint = self._pool.endpoints.get(named.id)
        if endpoint is None:
            return None
        own = incarnation_of(endpoint)
        return endpoint if not own or not named.incarnation or own == named.incarnation else None

    def _apply_event(self, event: pb.Event, reading: _Reading) -> None:
        endpoint = self._found(event.endpoint, reading)
        if endpoint is None:
            return
        self.applied.events += 1
        now, last = reading.now, self._outbox.last(endpoint)
        at = min(reading.published_at - event.age / 1e6, now)
        # What this picker has decided since then is of the new process.
        late = at < last.decided - ONE_RESTART_SECONDS
        match event.kind:
            case pb.Event.RESTARTED if not late and at > endpoint.restarted_at + ONE_RESTART_SECONDS:
                self._pool.restarted(endpoint, at)
            case pb.Event.CACHE_EMPTIED if not late and at > last.emptied + ONE_EMPTYING_SECONDS:
                self._pool.cache_emptied(endpoint, at)
            case pb.Event.UNREACHABLE if at >= endpoint.silent_at:  # else what came after it is known here
                self._pool.unreachable(endpoint, at)
            case pb.Event.REACHABLE if at >= endpoint.silent_at:
                self._pool.reachable(endpoint, now)
            case pb.Event.EJECTED if at > max(now - FIRST_BACKOFF, endpoint.restarted_at):
                self._router.learn_ejected(endpoint, at)

    def _apply_report(self, report: pb.Report, reading: _Reading) -> None:
        endpoint = self._found(report.endpoint, reading)
        if endpoint is None:
            return
        observed_at = reading.published_at - report.age / 1e6
        known = endpoint.state
        if reading.replayed and known is not None and observed_at < known.observed_at + REPLAYED_REPORTS:
            return
        self.applied.reports += 1
        self._pool.observed(endpoint, _state(report, reading.adapters, observed_at), reading.now)

    def _apply_decisions(self, decisions: pb.Decisions, reading: _Reading) -> None:
        """Apply all, or none if the columns contradict each other."""
        growths, hashes = _read_growths(decisions), len(decisions.hashes)
        columns = [getattr(decisions, name) for name in COLUMNS]
        groups, prompts = len(decisions.prompts), sum(decisions.prompts)
        rare_columns = [getattr(decisions, name) or (0,) * groups for name in RARE_COLUMNS]
        lengths = {len(column) for column in (*columns, *rare_columns)}
        if (
            groups > MOST_DECISIONS
            or lengths != {groups}
            or prompts != len(growths)
            or hashes != sum(decisions.checkpoints)
        ):
            self.applied.unreadable += 1
            return
        loads = [None if endpoint is None else self._router.load(endpoint) for endpoint in reading.endpoints]
        end, left = 0, MOST_REQUESTS
        for (
            (place, age, decisions_made, work, tokens, cached_tokens, prompt_bytes, prompts_sent),
            (flags, adapter, further),
        ) in zip(zip(*columns, strict=True), zip(*rare_columns, strict=True), strict=True):
            start, end, decided = end, end + prompts_sent, min(decisions_made, left)
            load = loads[place] if place < len(loads) else None
            at = min(reading.published_at - age / 1e6, reading.now)
            if load is None or at < load.endpoint.restarted_at:
                self.applied.unknown_endpoints += decided
                continue
            requests = min(decided + min(further, (MOST_REQUESTS_OF_ONE - 1) * decided), left)
            if not requests:
                continue
            left -= requests
            self.applied.decisions += decided
            held = at >= self._outbox.last(load.endpoint).emptied  # else the cache was emptied since
            remote = RemoteRequests(
                load=load,
                at=at,
                decisions=decided,
                requests=requests,
                work=work,
                tokens=tokens,
                cached_tokens=min(cached_tokens, tokens),
                prompt_bytes=prompt_bytes,
                growths=growths[start:end] if held else (),
                adapter=reading.adapters[adapter - 1] if 0 < adapter <= len(reading.adapters) else "",
                length_known=not flags & UNKNOWN_LENGTH,
                reads_cache=not flags & READS_NO_CACHE,
            )
            self._router.learn(remote, reading.now)

    def _apply_models(self, served: pb.Served, reading: _Reading) -> None:
        endpoint = self._found(served.endpoint, reading)
        if endpoint is None or len(served.names) > MOST_SERVED_MODELS:
            return
        names = frozenset(name for name in served.names if len(name) <= LONGEST_MODEL_NAME)
        aliases = {name: one for name, one in served.aliases.items() if name in names and one in names}
        models = ServedModels(names, frozenset(served.adapters) & names, aliases) if served.listed else None
        self._pool.serves(endpoint, models, reading.now)

    def _found(self, place: int, reading: _Reading) -> Endpoint | None:
        endpoint = reading.endpoints[place] if place < len(reading.endpoints) else None
        if endpoint is None:
            self.applied.unknown_endpoints += 1
        return endpoint


def _read_growths(decisions: pb.Decisions) -> list[PromptGrowth]:
    """What the prompts add to their endpoints; none if the columns have different lengths."""
    hashes = list(decisions.hashes)
    ends = list(accumulate(decisions.checkpoints, initial=0))
    columns = [getattr(decisions, name) for name in PROMPT_COLUMNS[1:]]
    if any(len(column) != len(decisions.checkpoints) for column in columns):
        return []
    return [
        PromptGrowth(hashes[start:end], held_bytes, new_bytes)
        for (start, end), held_bytes, new_bytes in zip(pairwise(ends), *columns, strict=True)
    ]


def _state(report: pb.Report, adapters: Sequence[str], observed_at: float) -> EngineState:
    given = {field.name: value for field, value in report.ListFields() if field.name in EQUAL_FIGURES}
    return EngineState(
        observed_at=observed_at,
        loaded_adapters=frozenset(adapters[place] for place in report.loaded_adapters if place < len(adapters)),
        **(_ZEROS | given),
    )
