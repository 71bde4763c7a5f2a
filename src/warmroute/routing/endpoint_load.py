"""The in-flight load of one endpoint: updated with each decision, corrected by each scrape."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import exp, inf
from typing import NamedTuple

from warmroute.pool.endpoint import MOST_REQUESTS, Endpoint, EngineState
from warmroute.routing.adapters import LoadedAdapters
from warmroute.routing.cache_extent import CacheExtent
from warmroute.routing.confirmation import Confirmation
from warmroute.routing.cost import CostConstants
from warmroute.routing.departures import DepartureRate, SentSinceScrape
from warmroute.routing.mean_work import MeanWork
from warmroute.routing.prediction import Prediction
from warmroute.routing.virtual_queue import ASSUMED_DURATION, TRANSIT, VirtualQueue

SEQS_SPARE = 2
"""If an engine that does not export ``max_num_seqs`` runs more requests than the setting says, its limit is taken to be
this multiple of the most that were seen running."""
FULL_SHARE = 0.98
"""Share of an engine's limit of running requests from which it is at its limit: vLLM's page does not count the requests
that ended in the last step."""
KV_FULL = 0.95
"""KV cache utilization from which an engine admits a request only when another one leaves."""
PREFILL_SHARE = 0.01
"""If pending prefill is under this share of the expected wait for KV blocks, the endpoint is limited by capacity: that
wait counts in place of the pending prefill. Chosen with ``warmroute bench standings``: without it full hits pile up on one
endpoint with a full cache (scenario full-hits; p99 of a minute on one seed in nine); with 0.1 the p99 above saturation is a
tenth higher on long prompts. Of the wait for a sequence slot and the prefill, the longer counts."""
FEWEST_FOR_KV_MEAN = 4
"""Fewest running requests whose mean KV cache footprint predicts that of one more. With fewer, their number is taken
to be this."""
LEAST_UPDATE = 0.02
"""Seconds between two estimates of how many requests have finished since the last scrape."""


@dataclass(frozen=True, slots=True)
class LoadConstants:
    """The settings that estimates of load use; :class:`~warmroute.settings.Settings` explains them."""

    cost: CostConstants
    drain_factor: float
    queue_slack: int
    prefill_rate: float
    max_num_seqs: int
    cache_tokens: int
    staleness_threshold: float

    def capacity_tokens(self, endpoint: Endpoint) -> int:
        """Tokens that the endpoint's KV cache holds: as its engine exports, else as the settings assume."""
        known = endpoint.state.capacity_tokens if endpoint.state is not None else None
        return known or self.cache_tokens


class LoadEstimate(NamedTuple):
    """The load of an endpoint at one time. At time ``t`` the pending work is ``pending_at_zero - t * pending_rate``
    tokens, so that it need not be computed again as time passes."""

    waiting: float
    """Requests without a first token."""
    queued: float
    """Those of them that wait for their prefill: none while they wait for sequence slots or KV blocks."""
    running: float
    """Requests that have their first token."""
    total: float
    """Requests in flight."""
    pending_at_zero: float
    pending_rate: float
    kv_usage: float
    """KV cache utilization; above 1 if the requests would need more than there is."""
    until: float
    """Monotonic seconds until which the estimate holds if nothing is reported or assigned."""


class EndpointLoad:
    """In-flight requests and pending prefill of one endpoint. Times are monotonic seconds, work is in tokens."""

    __slots__ = (
        "adapters",
        "began_at",
        "cache_extent",
        "cache_fill",
        "confirmation",
        "decode_rate",
        "departures",
        "ended",
        "endpoint",
        "holder",
        "kv_usage",
        "last_chosen",
        "max_num_seqs",
        "mean_work",
        "most_running",
        "observed_at",
        "open_responses",
        "pool_rate",
        "prediction",
        "prefill_rate",
        "process",
        "queue",
        "reported_running",
        "reported_waiting",
        "sent",
        "slowness",
    )

    def __init__(self, endpoint: Endpoint, holder: int, now: float) -> None:
        self.endpoint = endpoint
        self.holder = holder
        """Its number in the prefix index."""
        self.last_chosen = 0
        """Serial number of the last decision for it."""
        self.process = 0
        """Number of the engine's process: each :meth:`reset` begins another one."""
        self.prefill_rate: float | None = None
        """Measured tokens of work a second."""
        self.pool_rate: float | None = None
        """Median prefill rate of the pool, used until its own is measured."""
        self.decode_rate: float | None = None
        self.slowness = 1.0
        """Speed ratio: the pool's median speed divided by its own (:mod:`warmroute.routing.slowness`)."""
        self.queue = VirtualQueue()
        self.mean_work = MeanWork()
        self.adapters = LoadedAdapters()
        self.confirmation = Confirmation()
        self.prediction = Prediction()
        self.cache_extent = CacheExtent()
        self.reset(now)

    def reset(self, now: float) -> None:
        """The engine is a new process: nothing queued, cached or observed. Its measured speed and mean work stay."""
        self.process += 1
        self.open_responses = 0
        """Own requests to this process whose end will be reported; only while responses are observed."""
        self.began_at = now
        self.queue.clear()
        self.mean_work.forget_counters()
        self.confirmation.reset()
        self.prediction.reset()
        self.adapters.clear()
        self.departures = DepartureRate()
        self.sent = SentSinceScrape()
        self.ended: deque[float] = deque(maxlen=MOST_REQUESTS)
        """Times of observed ends of own requests since the last scrape."""
        self.observed_at: float | None = None
        self.max_num_seqs: int | None = None
        self.most_running = 0
        """Most requests that a scrape has shown running."""
        self.reported_running = 0
        self.reported_waiting = 0
        self.kv_usage = 0.0
        self.cache_fill = 0.0
        """Share of its KV cache that holds prompts according to the prefix index: how likely a new token evicts
        another."""

    # ---------------------------------------------------------------- speed and capacity

    def speed(self, constants: LoadConstants) -> float:
        """Prefill tokens per second that the endpoint is estimated to compute."""
        return self.prefill_rate or self.pool_speed(constants)

    def pool_speed(self, constants: LoadConstants) -> float:
        """Median of the pool's prefill rates, in tokens per second; as the settings assume until one is measured."""
        return self.pool_rate or constants.prefill_rate

    def seconds_per_token(self, constants: LoadConstants) -> float:
        """Seconds of prefill that the cost counts for each token of work: the pool's median, times the endpoint's
        slowness."""
        return self.slowness / self.pool_speed(constants)

    def drain_rate(self, constants: LoadConstants) -> float:
        """Tokens of work a second at which the endpoint's virtual queue drains."""
        return self.speed(constants) * constants.drain_factor

    def seqs_limit(self, constants: LoadConstants) -> int:
        """Requests that the engine runs at once: as it exports, or as the settings assume unless more were seen."""
        if self.max_num_seqs is not None:
            return self.max_num_seqs
        assumed = constants.max_num_seqs
        return assumed if self.most_running <= assumed else SEQS_SPARE * self.most_running

    # ---------------------------------------------------------------- events

    def assign(self, work: float, rate: float, now: float, *, requests: int = 1, has_prompt: bool = True) -> None:
        """``work`` tokens in ``requests`` equal requests go to the endpoint, whose queue drains at ``rate`` tokens per
        second. Requests without a prompt are not in the mean work."""
        each = work / requests
        self.queue.assign(each, rate, now, requests=requests)
        self.sent.add(now, self.departures.per_second, requests=requests)
        if has_prompt:
            self.mean_work.assigned(each, requests=requests)

    def assign_late(self, work: float, rate: float, at: float, *, requests: int = 1, has_prompt: bool = True) -> None:
        """As :meth:`assign`, of requests that became known later than ``at``, when they were sent: by another picker, or by
        the gateway's retry. Not counted if a scrape includes them."""
        if self.observed_at is not None and at <= self.observed_at - TRANSIT:
            if has_prompt:
                self.mean_work.assigned(work / requests, requests=requests)
            return
        sent, assigned = self.sent.times, self.queue.assigned_at
        if sent and sent[-1] > at:  # both are kept in order of time
            at = sent[-1]
        if assigned and assigned[-1] > at:
            at = assigned[-1]
        self.assign(work, rate, at, requests=requests, has_prompt=has_prompt)

    def response_ended(self, now: float, *, requests: int = 1, sent_at: float = -inf) -> None:
        """A response that is observed has ended, well or not, and with it as many requests of the engine as it was assigned
        at ``sent_at``. If a page was read since then, one end counts: the others may be missing on it already."""
        self.open_responses -= 1
        shown = self.observed_at is not None and sent_at <= self.observed_at
        self.ended.extend([now] * (1 if shown else requests))

    def observe(self, state: EngineState, constants: LoadConstants) -> None:
        """A scrape: its counts replace what was sent and ended before the page was asked for."""
        at = state.observed_at
        sent = len(self.sent)
        self._forget_until(at)
        if self.observed_at is not None:
            self.departures.observe(
                before=self.reported_running + self.reported_waiting,
                sent=sent - len(self.sent),
                after=state.running + state.waiting,
                seconds=at - self.observed_at,
                counted=state.prompt_requests_total,
            )
            self.sent.count_again(self.departures.per_second)
        self.observed_at = at
        self.reported_running, self.reported_waiting = state.running, state.waiting
        self.most_running = max(self.most_running, state.running)
        self.kv_usage = state.kv_usage
        if state.max_num_seqs is not None:
            self.max_num_seqs = state.max_num_seqs
        if state.prefill_rate is not None:
            if self.prefill_rate is None:
                self.prediction.restart()
            self.prefill_rate = state.prefill_rate
        if state.decode_rate is not None:
            self.decode_rate = state.decode_rate
        self.mean_work.observe(state)
        self.prediction.observe(state, sent_since=len(self.sent))
        self._correct_queue(state, self.drain_rate(constants))
        self.adapters.observe(state.loaded_adapters, state.max_adapters, at)

    def _correct_queue(self, state: EngineState, rate: float) -> None:
        at = state.observed_at
        if state.awaiting_first_token is None:
            self.queue.correct_by_gauges(
                at, rate, running=state.running, waiting=state.waiting, sent_since=len(self.sent)
            )
        else:
            self.queue.correct_by_first_tokens(
                at,
                rate,
                awaiting=state.awaiting_first_token,
                first_tokens=state.first_tokens_total,
                mean_work=self.mean_work.tokens,
            )

    def _forget_until(self, at: float) -> None:
        """Drop requests that were sent or ended by ``at``: they are in what was reported, or too old to count."""
        self.sent.forget_until(at, self.departures.per_second)
        ended = self.ended
        while ended and ended[0] <= at:
            ended.popleft()

    # ---------------------------------------------------------------- the estimate

    def estimate(self, now: float, age: float, constants: LoadConstants) -> LoadEstimate:
        """The load at ``now``: what was reported ``age`` seconds ago, plus what was sent since, less what has probably
        finished."""
        rate = self.drain_rate(constants)
        self._expire(now, rate)
        sent = len(self.sent)
        at_least, at_most = 0.0, inf
        if self.observed_at is not None:
            at_least = float(self.reported_waiting)
            at_most = at_least + float(sent + constants.queue_slack)
        waiting, pending_at_zero, pending_rate, until = self.queue.estimate(
            rate, at_least, at_most, self.mean_work.tokens
        )
        reported = self.reported_running + self.reported_waiting
        total = float(reported + sent)
        gone = float(len(self.ended))
        if sent:
            until = min(until, self.sent.times[0] + ASSUMED_DURATION)
        leaving = self.departures.per_second
        if leaving * total:
            left = reported * exp(-leaving * age) + self.sent.left(now, leaving)
            gone = max(gone, total - left)
            until = min(until, now + max(LEAST_UPDATE, 0.5 / (leaving * total)))
        if self.ended and waiting > (still := max(total - len(self.ended), 0.0)):  # no more can wait than are left
            share = still / waiting
            pending_at_zero, pending_rate, waiting = pending_at_zero * share, pending_rate * share, still
        total = max(total - gone, self.open_responses, waiting)
        limit = self.seqs_limit(constants)
        slots_full = self.reported_running >= FULL_SHARE * limit
        if self.kv_usage >= KV_FULL:
            waiting = max(waiting, total - self.reported_running)  # the engine runs no more than it ran then
        elif slots_full:
            waiting = max(waiting, total - limit)
        running = total - waiting if total > waiting else 0.0
        kv_usage = self._kv_usage(total)
        queued = waiting
        leave_first, share = 0.0, PREFILL_SHARE
        if kv_usage >= KV_FULL:
            leave_first = waiting + 1
        if total + 1 > limit and (slots_full or running >= limit):
            leave_first, share = max(leave_first, total + 1 - limit), 1.0
        if leave_first:
            capacity_wait = self._capacity_wait(leave_first, total, constants)
            if pending_at_zero - now * pending_rate <= share * capacity_wait:
                pending_at_zero, pending_rate = capacity_wait, 0.0
                queued = 0.0 if capacity_wait else waiting
            elif pending_rate:
                until = min(until, (pending_at_zero - share * capacity_wait) / pending_rate)
        return LoadEstimate(waiting, queued, running, total, pending_at_zero, pending_rate, kv_usage, until)

    def _expire(self, now: float, rate: float) -> None:
        """Computed prompts wait no longer; without a report, each request ends after :data:`ASSUMED_DURATION`."""
        self.queue.expire(now)
        past = now - ASSUMED_DURATION
        sent, ended = self.sent.times, self.ended
        if (sent and sent[0] <= past) or (ended and ended[0] <= past):
            self._forget_until(past)
        if (self.began_at if self.observed_at is None else self.observed_at) <= past:
            # Not observed since: what was reported then has ended.
            self.reported_running = self.reported_waiting = 0
            self.kv_usage = 0.0
            self.queue.expire_unobserved(now, rate)

    def _kv_usage(self, total: float) -> float:
        """KV cache utilization with ``total`` requests, if each holds as much as the reported running ones on average. Those
        that leave make room for those that waited then."""
        running = self.reported_running
        more = total - running - self.reported_waiting
        if more < 0:
            more = min(0.0, total - running)
        return self.kv_usage * (1 + more / max(running, FEWEST_FOR_KV_MEAN))

    def _capacity_wait(self, leave_first: float, total: float, constants: LoadConstants) -> float:
        """The wait until that many of the ``total`` requests have left, as tokens of work that take as long in the cost. 0
        if scrapes have not shown how fast requests leave."""
        leaving = self.departures.per_second * total
        return leave_first / leaving / self.seconds_per_token(constants) if leaving else 0.0
