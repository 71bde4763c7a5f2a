"""The picker's metrics for Prometheus.

The server's parts call a method of :class:`Metrics` for each event. Present values (load of the endpoints, index, settings)
are read when a page is rendered, so the series of an endpoint end when it leaves the pool.
"""

from __future__ import annotations

import platform
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import product
from statistics import fmean
from typing import Literal, NamedTuple, get_args

from prometheus_client import CollectorRegistry, GCCollector, Metric, ProcessCollector

from warmroute import __version__, runtime
from warmroute.observability import logs, series
from warmroute.observability.endpoint_reading import EndpointReading
from warmroute.observability.instruments import (
    BYTES,
    RATIO,
    SECONDS,
    ClientCounter,
    Counter,
    Histogram,
    PrefixCacheTally,
)
from warmroute.observability.shared_state_metrics import SharedStateReading
from warmroute.pool.endpoint import Endpoint, EndpointState, EngineState, Health, endpoint_state
from warmroute.pool.pool import PoolListener
from warmroute.request.rejections import Rejection
from warmroute.request.stream_ends import RefusalReason, StreamFault
from warmroute.routing.decision import Decision
from warmroute.routing.decision_record import DecisionRecord
from warmroute.settings import Settings

ReloadSource = Literal["endpoints-file", "certificate", "annotations"]
EndpointView = Callable[[], Iterable[EndpointReading]]
"""Reads every member of the pool one by one, also those that have left and are remembered."""


def _arm(decision: Decision) -> str:
    return "holdout" if decision.held_out else "strategy"


class TrafficCounts(NamedTuple):
    """Requests since the picker's start."""

    requests: float
    errors: float
    picks: tuple[int, ...]
    """Picks by bucket of :data:`~warmroute.observability.instruments.SECONDS`."""


class EndpointCounts(NamedTuple):
    """Of one endpoint since it joined."""

    picks: int
    restarts: int


@dataclass(slots=True)
class _Member:
    """Counters of one member of the pool."""

    target: str
    """``address:port`` of the engine that the counters are about."""
    picks: int = 0
    health: Health = Health.HEALTHY
    ejections: int = 0
    restarts: int = 0
    prefix_cache: PrefixCacheTally = field(default_factory=PrefixCacheTally)
    scrapes: Tally[str] = field(default_factory=Tally)


_ARM_SERIES = (
    series.ARM_REQUESTS,
    series.ARM_PROMPT_TOKENS,
    series.ARM_MATCHED_TOKENS,
    series.ARM_PREDICTED_SECONDS,
    series.ARM_RESPONSES,
    series.ARM_HEADERS_SECONDS,
    series.ARM_RESPONSE_SECONDS,
)
_ROUTER_GAUGES: tuple[tuple[series.MetricFamily, Callable[[EndpointReading], float]], ...] = (
    (series.WAITING, lambda reading: reading.waiting),
    (series.RUNNING, lambda reading: reading.running),
    (series.PENDING_TOKENS, lambda reading: reading.pending_tokens),
    (series.SLOWNESS, lambda reading: reading.slowness),
    (series.PREFILL_RATE, lambda reading: reading.prefill_rate),
    (series.INDEX_CHECKPOINTS, lambda reading: reading.checkpoints),
    (series.INDEX_TOKENS, lambda reading: reading.index_tokens),
)

_ENGINE_GAUGES: tuple[tuple[series.MetricFamily, Callable[[EngineState], float]], ...] = (
    (series.ENGINE_WAITING, lambda state: state.waiting),
    (series.ENGINE_RUNNING, lambda state: state.running),
    (series.KV_USAGE, lambda state: state.kv_usage),
)


_POOL_MEANS: tuple[tuple[tuple[series.MetricFamily, ...], Callable[[EngineState], float]], ...] = (
    (series.POOL_KV_USAGE, lambda state: state.kv_usage),
    (series.POOL_QUEUE_SIZE, lambda state: state.waiting),
    (series.POOL_RUNNING, lambda state: state.running),
)


class Metrics(PoolListener):
    """The metrics of one picker. Not thread-safe: one event loop owns it.

    Subscribe it to the pool: counters by endpoint are kept for the pool's members only. ``settings`` and ``endpoints`` are
    called for each page; ``clock`` must be the one that stamps the engines' states.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        endpoints: EndpointView,
        *,
        clock: Callable[[], float] = time.monotonic,
        decision_lines_dropped: Callable[[], int] = lambda: 0,
        shared_state: Callable[[], SharedStateReading] | None = None,
    ) -> None:
        """``shared_state`` reads the state that pickers share; None: it is not in use."""
        self._decision_lines_dropped = decision_lines_dropped
        self.shared_state = shared_state
        self._settings = settings
        self._endpoints = endpoints
        self._clock = clock
        self._streams = 0
        self._members: dict[str, _Member] = {}
        self._requests = ClientCounter(series.REQUESTS)
        self._errors = Counter(series.REQUEST_ERRORS)
        self._decisions = Counter(series.DECISIONS)
        self._strategy_failures = Counter(series.STRATEGY_FAILURES)
        self._broken = Counter(series.STREAMS_BROKEN)
        self._refused = Counter(series.STREAMS_REFUSED)
        self._responses = Counter(series.RESPONSES)
        self._reloads = Counter(series.RELOADS)
        # Zeros from the start: Prometheus sees no increase in a series that begins with 1.
        for fault in get_args(StreamFault):
            self._broken.add(fault, amount=0)
        for reason in get_args(RefusalReason):
            self._refused.add(reason, amount=0)
        for source, result in product(get_args(ReloadSource), ("ok", "error")):
            self._reloads.add(source, result, amount=0)
        self._prompt_tokens = Counter(series.PROMPT_TOKENS)
        self._matched_tokens = Counter(series.MATCHED_TOKENS)
        self._random_matched_tokens = Counter(series.RANDOM_MATCHED_TOKENS)
        self._arms = {each: Counter(each) for each in _ARM_SERIES}
        self._body_bytes = Histogram(series.BODY_BYTES, BYTES)
        self._match_ratio = Histogram(series.MATCH_RATIO, RATIO)
        self._pick = Histogram(series.PICK_SECONDS, SECONDS)
        self._processing = Histogram(series.PROCESSING_SECONDS, SECONDS)
        self._lag = Histogram(series.LOOP_LAG, SECONDS)
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        GCCollector(registry=self._process)

    # Events

    def stream_opened(self) -> None:
        """An ext_proc stream began."""
        self._streams += 1

    def stream_closed(self) -> None:
        """An ext_proc stream ended."""
        self._streams -= 1

    def stream_refused(self, reason: RefusalReason) -> None:
        """An ext_proc stream was ended before its first message."""
        self._refused.add(reason)

    def stream_broken(self, reason: StreamFault) -> None:
        """An ext_proc stream was ended by an error: the proxy's, or a bug of the picker."""
        self._broken.add(reason)

    def routed(self, decision: Decision, *, model: str, body_bytes: int) -> None:
        """A request for ``model`` was given an endpoint."""
        self._requests.add(model, self._clock())
        self._decisions.add(decision.strategy, decision.reason)
        if decision.failed_strategy:
            self._strategy_failures.add(decision.failed_strategy)
        self._body_bytes.observe(body_bytes)
        if decision.chain.hashes:
            self._prompt_tokens.add(amount=decision.prompt_tokens)
            self._matched_tokens.add(amount=decision.cached_tokens)
            self._random_matched_tokens.add(amount=decision.random_cached_tokens)
            self._match_ratio.observe(decision.match_ratio)
        member = self._members.get(decision.endpoint.id)
        if member is not None:
            member.picks += 1

    def decided(self, decision: Decision, record: DecisionRecord) -> None:
        """Count the request by arm while a share of the requests is held out."""
        if self._settings().holdout:
            arm = _arm(decision)
            self._arms[series.ARM_REQUESTS].add(arm)
            self._arms[series.ARM_PROMPT_TOKENS].add(arm, amount=decision.prompt_tokens)
            self._arms[series.ARM_MATCHED_TOKENS].add(arm, amount=decision.cached_tokens)
            predicted = record.predicted_ttft(record.position, exact=True)
            self._arms[series.ARM_PREDICTED_SECONDS].add(arm, amount=predicted)

    def measured(self, decision: Decision) -> None:
        """Count the response by arm while a share of the requests is held out."""
        measurement = decision.measurement
        if not self._settings().holdout or measurement is None or measurement.status is None:
            return
        if measurement.status < HTTPStatus.BAD_REQUEST:
            arm = _arm(decision)
            self._arms[series.ARM_RESPONSES].add(arm)
            self._arms[series.ARM_HEADERS_SECONDS].add(arm, amount=measurement.headers_seconds or 0.0)
            self._arms[series.ARM_RESPONSE_SECONDS].add(arm, amount=measurement.seconds)

    def rejected(self, rejection: Rejection, model: str = "") -> None:
        """A request was answered with an error. Models that were never routed get no label value of their own."""
        self._requests.add(model if not model or model in self._requests else series.OTHER, self._clock())
        self._errors.add(rejection.reason, str(rejection.status))

    def responded(self, status: int) -> None:
        """An engine answered a request with this HTTP status."""
        self._responses.add(str(status))

    def picked(self, seconds: float) -> None:
        """The router took ``seconds`` to choose an endpoint or to refuse."""
        self._pick.observe(seconds)

    def processed(self, seconds: float) -> None:
        """A request was answered after ``seconds`` of the picker's own work."""
        self._processing.observe(seconds)

    def scraped(self, endpoint_id: str, result: str = "ok") -> None:
        """A scrape of an engine ended; ``result`` is ``ok`` or the kind of failure."""
        member = self._members.get(endpoint_id)
        if member is not None:
            member.scrapes[result] += 1

    def reloaded(self, source: ReloadSource, *, ok: bool) -> None:
        """A source of configuration was read again; if not ``ok``, the former version stays in force."""
        self._reloads.add(source, "ok" if ok else "error")

    def loop_lagged(self, seconds: float) -> None:
        """The event loop ran something ``seconds`` after it was due."""
        self._lag.observe(seconds)

    # Changes of the pool

    def endpoint_added(self, endpoint: Endpoint, now: float) -> None:
        """Start its counters."""
        self._members[endpoint.id] = _Member(endpoint.target)

    def endpoint_removed(self, endpoint: Endpoint, now: float) -> None:
        """Drop its counters, so that its series end."""
        self._members.pop(endpoint.id, None)

    def endpoint_observed(self, endpoint: Endpoint, now: float) -> None:
        """Add up the counters of its engine's prefix cache."""
        if endpoint.state is not None:
            state = endpoint.state
            self._members[endpoint.id].prefix_cache.read(state.prefix_queries_total, state.prefix_hits_total)

    def endpoint_restarted(self, endpoint: Endpoint, now: float) -> None:
        """Count a restart of its engine."""
        member = self._members[endpoint.id]
        member.restarts += 1
        if endpoint.target != member.target:
            member.prefix_cache.replaced()
        member.target = endpoint.target

    def endpoint_changed(self, endpoint: Endpoint, now: float) -> None:
        """Count an ejection."""
        member = self._members[endpoint.id]
        if endpoint.health is Health.EJECTED and member.health is not Health.EJECTED:
            member.ejections += 1
        member.health = endpoint.health

    # What the live page reads

    def traffic(self) -> TrafficCounts:
        """Requests, errors and picks since the start."""
        return TrafficCounts(self._requests.total, self._errors.total, self._pick.counts)

    def counts_of(self, endpoint_id: str) -> EndpointCounts:
        """Picks and restarts of a member of the pool; zeros if it has left."""
        member = self._members.get(endpoint_id)
        return EndpointCounts(0, 0) if member is None else EndpointCounts(member.picks, member.restarts)

    # What Prometheus reads

    def readings(self) -> Iterator[EndpointReading]:
        """A reading of every member of the pool, made one by one."""
        return iter(self._endpoints())

    def families(self, readings: list[EndpointReading]) -> Iterator[Metric]:
        """Every metric of the catalogue and of the process. One with many samples comes in parts (:meth:`MetricFamily.parts
        <warmroute.observability.series.MetricFamily.parts>`), one after the other.

        Events may be counted while the parts are taken.
        """
        settings = self._settings()
        yield self._requests.collect()
        yield self._errors.collect()
        yield series.STREAMS_IN_FLIGHT.family([((), self._streams)])
        yield self._broken.collect()
        yield self._refused.collect()
        yield self._responses.collect()
        yield series.STREAMS_LIMIT.family([((), settings.max_streams)])
        yield self._body_bytes.collect()
        yield self._prompt_tokens.collect()
        yield self._matched_tokens.collect()
        yield self._random_matched_tokens.collect()
        for counter in self._arms.values():
            yield counter.collect()
        yield self._decisions.collect()
        yield self._strategy_failures.collect()
        yield self._match_ratio.collect()
        yield self._pick.collect()
        yield self._processing.collect()
        yield from self._endpoint_families(readings)
        yield series.INDEX_LIMIT.family([((), settings.index_limit)])
        if self.shared_state is not None:
            yield from self.shared_state().families()
        yield self._lag.collect()
        yield self._reloads.collect()
        yield series.LOG_LINES_DROPPED.family([((), logs.dropped_lines())])
        yield series.DECISION_LOG_DROPPED.family([((), self._decision_lines_dropped())])
        yield series.SETTINGS_INFO.family([(_texts(settings, series.SETTINGS_INFO.labels), 1)])
        form = "compiled" if runtime.compiled() else "source"
        yield series.BUILD_INFO.family([((__version__, platform.python_version(), form), 1)])
        yield from _pool_metrics(settings.pool_name or "default", readings)
        yield series.EXTENSION_INFO.family([(("", f"warmroute-{__version__}"), 1)])
        yield from self._process.collect()

    def _endpoint_families(self, readings: list[EndpointReading]) -> Iterator[Metric]:
        now = self._clock()
        states = Tally(endpoint_state(reading.endpoint) for reading in readings)
        yield series.ENDPOINTS.family([((state,), states[state]) for state in get_args(EndpointState)])
        for gauge, of_reading in _ROUTER_GAUGES:
            yield from gauge.parts(((reading.endpoint.id,), of_reading(reading)) for reading in readings)
        yield from series.PREFIX_TRUST.parts(
            ((reading.endpoint.id,), reading.confirmation.trust) for reading in readings if reading.confirmation.counts
        )
        compared = [(reading.endpoint.id, reading.ttft) for reading in readings if reading.ttft is not None]
        yield from series.PREDICTED_TTFT.parts(((name,), ttft.predicted) for name, ttft in compared)
        yield from series.MEASURED_TTFT.parts(((name,), ttft.measured) for name, ttft in compared)
        engines = [(r.endpoint.id, r.endpoint.state) for r in readings if r.endpoint.state is not None]
        for gauge, of_state in _ENGINE_GAUGES:
            yield from gauge.parts(((name,), of_state(state)) for name, state in engines)
        yield from series.SCRAPE_AGE.parts(((reading.endpoint.id,), reading.page_age(now)) for reading in readings)
        members = list(self._members.items())
        yield from series.EJECTIONS.parts(((name,), member.ejections) for name, member in members)
        yield from series.PICKS.parts(((name,), member.picks) for name, member in members)
        yield from series.RESTARTS.parts(((name,), member.restarts) for name, member in members)
        exported = [(name, member.prefix_cache) for name, member in members if member.prefix_cache.exported]
        yield from series.PREFIX_LOOKUPS.parts(((name,), cache.lookups) for name, cache in exported)
        yield from series.PREFIX_HITS.parts(((name,), cache.hits) for name, cache in exported)
        yield from series.SCRAPES.parts(
            ((name, result), count) for name, member in members for result, count in list(member.scrapes.items())
        )


def _pool_metrics(name: str, readings: list[EndpointReading]) -> Iterator[Metric]:
    """Figures of the whole pool, each under the names that other endpoint pickers give it."""
    states = [reading.endpoint.state for reading in readings if reading.endpoint.available]
    known = [state for state in states if state is not None]
    for names, of_state in _POOL_MEANS:
        mean = [((name,), fmean(map(of_state, known)))] if known else []
        for one in names:
            yield one.family(mean)
    for one in series.POOL_READY:
        yield one.family([((name,), len(states))])


def _texts(settings: Settings, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(str(getattr(settings, name)) for name in names)
