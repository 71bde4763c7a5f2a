"""Applies the batches of other pickers to the router and the pool. WITHOUT IO.

Every figure of a batch is from outside: names that the pool does not have are ignored, positions beyond a table too, and
states are checked by :attr:`~warmroute.pool.endpoint.EngineState.plausible`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

from warmroute.pool.endpoint import (
    LONGEST_MODEL_NAME,
    MOST_SERVED_MODELS,
    Endpoint,
    EngineState,
    ServedModels,
)
from warmroute.pool.pool import ONE_RESTART_SECONDS, Pool
from warmroute.prefix.chain import EMPTY_CHAIN, Chain
from warmroute.routing.bytes_per_token import RANGE
from warmroute.routing.outlier_detection import FIRST_BACKOFF
from warmroute.routing.router import Router
from warmroute.routing.sent_request import MOST_REQUESTS_OF_ONE, SentRequest
from warmroute.shared_state import shared_state_pb2 as pb
from warmroute.shared_state.decision_columns import (
    COLUMNS,
    EXACT,
    FURTHER,
    MOST_DECISIONS,
    PARTIAL,
    RARE_COLUMNS,
    READS_NO_CACHE,
    THOUSANDTHS,
    incarnation_of,
)
from warmroute.shared_state.logged_chains import LONGEST_PROMPT, Addition, LoggedChains
from warmroute.shared_state.outbox import EQUAL_FIGURES, MOST_OF_A_KIND, Outbox

REPLAYED_REPORTS = 1.0
"""Seconds between two states of one engine that are applied when a picker reads the log at its start. Applying one costs
more than applying a decision, and prompts are confirmed often enough."""

ONE_EMPTYING_SECONDS = 1.0
"""Seconds within which two pickers see one emptying of a cache, by discovery."""


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
    unknown_chains: int = 0
    """Prompts whose chain begins with checkpoints that are not known here: counted as load, but not in the index."""


_ZEROS: dict[str, Any] = {"running": 0, "waiting": 0, "kv_usage": 0.0}
"""Figures that every report has; a batch leaves out zeros."""


MOST_ROWS = 2 * MOST_DECISIONS
"""Rows of decisions in one batch: the prompts of its last decision may exceed MOST_DECISIONS. A row can take half a
millisecond."""
MOST_FURTHER_REQUESTS = 16 * MOST_REQUESTS_OF_ONE
"""Requests that the decisions of one batch count for, the first of each not counted: about 40 ms of work."""
MOST_BYTES_PER_TOKEN = int(RANGE[1])


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

    def __init__(self, router: Router, pool: Pool, chains: LoggedChains, outbox: Outbox) -> None:
        self._router = router
        self._pool = pool
        self._chains = chains
        self._outbox = outbox
        self.applied = Applied()
        self.lacked_at = -inf
        """When the latest decision whose chain is not known here was published."""

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
            case pb.Event.UNREACHABLE:
                self._pool.unreachable(endpoint, now)
            case pb.Event.REACHABLE:
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
        added, hashes, distances = list(decisions.added), list(decisions.hashes), list(decisions.distances)
        rows = len(added)
        columns = [getattr(decisions, name) for name in COLUMNS]
        rare_columns = [getattr(decisions, name) or (0,) * rows for name in RARE_COLUMNS]
        lengths = {len(column) for column in (*columns, *rare_columns)}
        if rows > MOST_ROWS or lengths != {rows} or not sum(added) == len(hashes) == len(distances):
            self.applied.unreadable += 1
            return
        loads = [None if endpoint is None else self._router.load(endpoint) for endpoint in reading.endpoints]
        start, further_requests = 0, MOST_FURTHER_REQUESTS
        decision: SentRequest | None = None
        held = True  # else the cache was emptied since the decision
        for row, (ordinary, rare) in enumerate(
            zip(zip(*columns, strict=True), zip(*rare_columns, strict=True), strict=True)
        ):
            place, age, prompt_tokens, cached_tokens, prompt_bytes, base, known, count = ordinary
            prompt_bytes = min(prompt_bytes, LONGEST_PROMPT)
            addition = Addition(base, known, hashes[start : start + count], distances[start : start + count])
            start += count
            chain = self._chains.join(addition, prompt_bytes, reading.published_at)
            if chain is None:
                self.applied.unknown_chains += 1
                self.lacked_at = max(self.lacked_at, reading.published_at)
            if row and rare[0] & FURTHER:
                if decision is not None and chain is not None and held and prompt_bytes and decision.prompt_bytes:
                    _add_chain(decision, chain)
                continue
            if decision is not None:
                self._router.learn(decision, reading.now)
                decision = None
            load = loads[place] if place < len(loads) else None
            at = min(reading.published_at - age / 1e6, reading.now)
            if load is None or at < load.endpoint.restarted_at:
                self.applied.unknown_endpoints += 1
                continue
            self.applied.decisions += 1
            held = at >= self._outbox.last(load.endpoint).emptied
            # No fewer than its bytes can have: by them it is found to be too long for the engine.
            prompt_tokens = min(max(prompt_tokens, prompt_bytes // MOST_BYTES_PER_TOKEN, 1), LONGEST_PROMPT)
            cached_tokens, chain = min(cached_tokens, prompt_tokens), (chain if held else None) or EMPTY_CHAIN
            decision = SentRequest(load, at, prompt_tokens, cached_tokens, prompt_bytes, chain)
            if any(rare):
                _add_rare(decision, rare, reading.adapters, most_requests=1 + further_requests)
                further_requests -= decision.requests - 1
        if decision is not None:
            self._router.learn(decision, reading.now)

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


def _add_chain(decision: SentRequest, chain: Chain) -> None:
    """A further prompt of the decision, or its first one that is known here."""
    if decision.chain.hashes:
        decision.further += (chain,)
    else:
        decision.chain = chain


def _add_rare(decision: SentRequest, rare: tuple[int, ...], adapters: Sequence[str], *, most_requests: int) -> None:
    """What ordinary requests do not have: the numbers of :data:`RARE_COLUMNS`."""
    flags, adapter, requests, samples, prompts = rare
    decision.exact, decision.partial = flags & EXACT != 0, flags & PARTIAL != 0
    decision.reads_cache = not flags & READS_NO_CACHE
    decision.adapter = adapters[adapter - 1] if 0 < adapter <= len(adapters) else ""
    decision.requests = min(max(requests, 1), MOST_REQUESTS_OF_ONE, most_requests)
    decision.samples = min(max(samples, 1), decision.requests)
    decision.prompts = max(prompts / THOUSANDTHS, 1.0)


def _state(report: pb.Report, adapters: Sequence[str], observed_at: float) -> EngineState:
    given = {field.name: value for field, value in report.ListFields() if field.name in EQUAL_FIGURES}
    return EngineState(
        observed_at=observed_at,
        loaded_adapters=frozenset(adapters[place] for place in report.loaded_adapters if place < len(adapters)),
        **(_ZEROS | given),
    )
