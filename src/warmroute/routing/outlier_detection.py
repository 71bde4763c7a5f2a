"""Passive health: an endpoint that accepts requests and does not serve them is ejected for a while. WITHOUT IO.

Three kinds of evidence count against an endpoint:

* Failures: the EWMA of failed responses passes :data:`FAILURE_SHARE`. A response counts where the gateway shows it (5xx
  except 501 and 503) or where the engine's page counts responses by status (vLLM: ``http_requests_total``).
* A stall: requests were sent, and no counter of the engine has moved since. A page that counts responses counts rejections
  (4xx), too. Where it does not, an engine that holds no request may have rejected them all: that is not a stall.
* A crash loop: the engine restarts again and again, each time soon after the time before. It begins ejected then, twice as
  long with each restart, so that it does not fail a share of all requests each time.

The state of an endpoint:

=========  ==================================================  =====================================================
state      meaning                                             next
=========  ==================================================  =====================================================
HEALTHY    takes requests                                      EJECTED on evidence
EJECTED    takes none until its backoff ends                   PROBING when the backoff ends
PROBING    takes one request                                   TRIAL when that request is sent
TRIAL      takes none until that request has shown something   HEALTHY on success; EJECTED on failure or time-out, with
                                                               twice the backoff
=========  ==================================================  =====================================================

At most half of the ready endpoints are kept out, so a fault that all engines share (or a client whose requests every engine
rejects) cannot empty the pool. The design follows Envoy's outlier detection and the half-open state of a circuit breaker:
https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import NamedTuple

from warmroute.pool.endpoint import Endpoint, EngineState, Health
from warmroute.pool.pool import ONE_RESTART_SECONDS

FAILURE_WEIGHT = 0.2
"""EWMA weight of the newest response."""
FAILURE_SHARE = 0.6
"""Failure EWMA above which an endpoint is ejected. From a clean record five failures in a row pass it: 1 - 0.8**5 = 0.67;
three where both the gateway and the engine's page show responses, since each counts twice then."""
NOT_FAILURES = frozenset((501, 503))
"""5xx statuses that say nothing of the engine's health: an API it lacks, and a queue that is full."""
STALLED_REQUESTS = 5
"""Requests sent without any movement of the engine's counters that count as evidence."""
STALLED_SECONDS = 60.0
"""Seconds without movement after the first of these requests. A prefill of 1M tokens takes about as long."""
IDLE_STALLED_SECONDS = 10.0
"""The same for an engine that counts responses and holds no request: no prefill can take that long there, and a rejected
request would show in a counter."""
TRIAL_SECONDS = 60.0
"""Seconds that a trial request has to show something."""
FIRST_BACKOFF = 10.0
"""Seconds out after the first ejection; each failed trial doubles them."""
LONGEST_BACKOFF = 300.0
"""Upper bound of the backoff in seconds."""
CRASH_LOOP_SECONDS = 300.0
"""Seconds after a restart within which another one belongs to a crash loop. Kubernetes forgets a container's crashes after
600 s."""


class Evidence(Enum):
    """Why an endpoint was ejected."""

    FAILURES = "failures"
    """Most of the latest responses failed."""
    STALLED = "stalled"
    """Requests were sent, and the engine's counters did not move."""
    CRASH_LOOP = "crash-loop"
    """The engine has restarted several times, each time soon after the time before."""
    TRIAL_FAILED = "trial-failed"
    """The trial request failed or showed nothing in time."""


class _Counters(NamedTuple):
    """An engine's counters; a counter that its page lacks stays 0."""

    work: float
    """Sum of the counters that move when the engine works."""
    responses: float
    failed: float

    @classmethod
    def of(cls, state: EngineState) -> _Counters:
        work = (
            (state.first_tokens_total or 0.0)
            + (state.prompt_tokens_total or 0.0)
            + (state.prompt_requests_total or 0.0)
            + (state.prefix_queries_total or 0.0)
        )
        return cls(work, state.responses_total or 0.0, state.failed_responses_total or 0.0)


@dataclass(slots=True)
class _Record:
    endpoint: Endpoint
    failures: float = 0.0
    """EWMA of observed responses: 1 is a failure, 0 a success."""
    counters: _Counters | None = None
    """The engine's counters at the last scrape."""
    since: float = -inf
    """Requests sent earlier say nothing of the engine: its counters moved, its process began or its probing began then."""
    unserved: int = 0
    """Requests sent since then."""
    unserved_since: float = 0.0
    """When the first of these was sent."""
    backoff: float = FIRST_BACKOFF
    until: float = 0.0
    """End of the backoff, or of the trial's time."""
    restarted_at: float = -inf
    """When the engine restarted last."""
    crashes: int = 0
    """Its restarts in a row that came soon after the one before."""

    @property
    def health(self) -> Health:
        return self.endpoint.health

    def begin(self, now: float) -> None:
        """Count the requests from now on."""
        self.since, self.unserved = now, 0


class OutlierDetection:
    """Watches every endpoint of a pool and changes its health by ``change(endpoint, health, evidence, now)``.

    Times are monotonic seconds. Every call is O(1) except :meth:`advance` and an ejection, which count the endpoints.
    """

    def __init__(self, change: Callable[[Endpoint, Health, Evidence | None, float], None]) -> None:
        self._change = change
        self._records: dict[str, _Record] = {}

    def added(self, endpoint: Endpoint) -> None:
        """Watch a new endpoint."""
        self._records[endpoint.id] = _Record(endpoint)

    def removed(self, endpoint: Endpoint) -> None:
        """The endpoint has left the pool."""
        self._records.pop(endpoint.id, None)

    def restarted(self, endpoint: Endpoint, now: float) -> None:
        """The engine is a new process: it begins healthy, unless it is in a crash loop."""
        before = self._records[endpoint.id]
        since = now - before.restarted_at
        if since < ONE_RESTART_SECONDS and before.crashes:
            before.counters = None
            return
        record = self._records[endpoint.id] = _Record(endpoint, restarted_at=now, since=now)
        if since < CRASH_LOOP_SECONDS:
            record.crashes = before.crashes + (since >= ONE_RESTART_SECONDS)
        if record.health is not Health.HEALTHY:
            self._change(record.endpoint, Health.HEALTHY, None, now)
        if record.crashes:
            record.backoff = min(FIRST_BACKOFF * 2 ** min(record.crashes - 1, 10), LONGEST_BACKOFF)
            self._eject(record, Evidence.CRASH_LOOP, now)

    def sent(self, endpoint: Endpoint, at: float, *, requests: int = 1) -> None:
        """Requests with a prompt were sent to the endpoint at ``at``; of another picker's requests this is known later."""
        record = self._records[endpoint.id]
        if at < record.since:
            return
        if not record.unserved:
            record.unserved_since = at
        record.unserved += requests
        if endpoint.health is Health.PROBING:
            record.until = at + TRIAL_SECONDS
            self._change(record.endpoint, Health.TRIAL, None, at)

    def responded(self, endpoint: Endpoint, status: int, now: float) -> None:
        """The gateway shows that the endpoint's response to a request had this HTTP status."""
        record = self._records.get(endpoint.id)
        if record is not None:
            failed = status >= 500 and status not in NOT_FAILURES
            self._count(record, responses=1, failed=int(failed), now=now)

    def ejected_elsewhere(self, endpoint: Endpoint, now: float) -> None:
        """Another picker has ejected a healthy endpoint because its responses failed."""
        record = self._records.get(endpoint.id)
        if record is not None and record.health is Health.HEALTHY:
            self._eject(record, Evidence.FAILURES, now)

    def observed(self, endpoint: Endpoint, state: EngineState, now: float) -> None:
        """A scrape of the endpoint's engine."""
        record = self._records[endpoint.id]
        before, counters = record.counters, _Counters.of(state)
        record.counters = counters
        if counters == before:
            self._check_stall(record, state, now)
            return
        record.begin(now)
        if before is None:  # the first page may count what was sent before it
            return
        responses, failed = counters.responses - before.responses, counters.failed - before.failed
        if responses > 0 and failed >= 0:
            self._count(record, responses=responses, failed=failed, now=now)
        elif counters.work > before.work:
            self._succeeded(record, now)

    def advance(self, now: float) -> None:
        """End the backoffs and trials whose time is over."""
        for record in self._records.values():
            if record.health is Health.EJECTED and now >= record.until:
                record.failures = 0.0
                record.begin(now)
                self._change(record.endpoint, Health.PROBING, None, now)
            elif record.health is Health.TRIAL and now >= record.until:
                self._eject(record, Evidence.TRIAL_FAILED, now)

    def _count(self, record: _Record, *, responses: float, failed: float, now: float) -> None:
        share = min(1.0, failed / responses)
        record.failures = share + (record.failures - share) * (1 - FAILURE_WEIGHT) ** responses
        if failed < responses:
            self._succeeded(record, now)
        elif record.health is Health.TRIAL:
            self._eject(record, Evidence.TRIAL_FAILED, now)
        if record.failures > FAILURE_SHARE:
            self._eject(record, Evidence.FAILURES, now)

    def _succeeded(self, record: _Record, now: float) -> None:
        record.begin(now)
        if record.health in (Health.TRIAL, Health.PROBING):
            record.failures, record.backoff = 0.0, FIRST_BACKOFF
            self._change(record.endpoint, Health.HEALTHY, None, now)

    def _check_stall(self, record: _Record, state: EngineState, now: float) -> None:
        holds_requests = state.running + state.waiting > 0
        seconds = STALLED_SECONDS if holds_requests else IDLE_STALLED_SECONDS
        if (
            record.unserved >= STALLED_REQUESTS
            and state.observed_at - record.unserved_since >= seconds
            and (holds_requests or state.responses_total is not None)
        ):
            self._eject(record, Evidence.STALLED, now)

    def _eject(self, record: _Record, evidence: Evidence, now: float) -> None:
        if record.health is Health.EJECTED or (record.health is Health.HEALTHY and not self._may_eject()):
            return
        if evidence is Evidence.TRIAL_FAILED:
            record.backoff = min(2 * record.backoff, LONGEST_BACKOFF)
        record.until = now + record.backoff
        self._change(record.endpoint, Health.EJECTED, evidence, now)

    def _may_eject(self) -> bool:
        """Whether at most half of the ready endpoints are out after one more ejection."""
        ready = [record for record in self._records.values() if record.endpoint.ready]
        return 2 * (1 + sum(record.health is not Health.HEALTHY for record in ready)) <= len(ready)
