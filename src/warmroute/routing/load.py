"""The load books: what each endpoint has to do, kept at decision time and corrected by scrapes.

A scraped gauge is old before it arrives; requests of the same millisecond would all see the same idle endpoint. So each
decision is booked at once into a *virtual queue*: the time at which the endpoint will have computed the prompt, if it
computes one after the other at its measured speed. Entries leave the queue when their time has passed, so nothing can stick;
and each scrape corrects it, by as much as the engine tells:

================  ================================  ===================================================================
the engine tells  what is in the queue              bounds
================  ================================  ===================================================================
first tokens      the latest assigned, laid anew    as many as have no token, and what a scrape may not have seen yet
                  with each scrape
gauges            what is left by its own time      of those that wait no fewer than reported, no more than that, a
                                                    little slack and what was sent since; of all what is there
nothing, or no    what is left by its own time      what was assigned within the last 30 s
longer
================  ================================  ===================================================================
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf
from statistics import median
from typing import NamedTuple

from warmroute.pool.endpoint import Endpoint, EngineState
from warmroute.pool.work import prefill_work
from warmroute.routing.cost import (
    ALONE,
    BALANCE_TOKENS,
    HIT_WINDOW,
    KV_FROM,
    NEARLY,
    CostConstants,
    balance_weight,
    eviction_price,
    holder_share,
    slots_excess,
)

ASSUMED_DURATION = 30.0
"""Seconds after which a request counts as finished where neither a scrape nor the response tells."""
STALE_CAP = 60.0
"""The staleness penalty grows for this many seconds."""
WORK_SMOOTHING = 0.1
"""Least weight of the newest request in the running mean of what a request has to compute."""
UNKNOWN_WORK = 500.0
"""Tokens that a request of others has to compute where nothing tells how many."""
TAU_RANGE = (0.5, 2.0)
"""Bounds of an endpoint's slowness against the median."""
TAU_CERTAIN = 1.5
"""Least factor by which prefill speeds must differ to count where engines tell nothing else: it may be their prompts that
differ, or how many are computed side by side. Equal GPUs were seen to differ up to nine times."""
TAU_AGREED = 1.25
"""Least factor by which both prefill and decoding must differ where engines tell both. By replay: without decoding, bursts
of equal prompts above saturation have half more p99."""
LEAVING_SMOOTHING = 0.9
"""Share that the finished requests of earlier scrapes keep at the next one."""
SLOTS_SPARE = 2
"""An engine that runs more requests than it was said to is taken to have slots for so many times as many."""
FULL = 0.95
"""KV-cache usage from which an engine takes a request up only when another one leaves."""
EXPLAINED = 0.01
"""Where prefill is less than this share of the wait for room, it is room that requests wait for. By replay: without this,
full hits pile up on one endpoint with a full cache (p99 of a minute on one seed in nine); with 0.1, p99 above saturation
is a tenth higher on a trace of long prompts."""
FEW = 4
"""From so many requests on, what they hold of the KV cache on average tells what another one will hold."""
LEAST_UPDATE = 0.02
"""Seconds between two estimates of how many requests have finished since the last scrape."""
LEAST_REST = 0.25
"""Share of its work that the request at the head of an engine's queue has at least before it if it has no token yet."""
STEP_TOKENS = 8192
"""Tokens of an engine's longest step: a request shows in its gauges only after the step during which it came."""
TRANSIT = 0.05
"""Seconds from a decision until the engine's scheduler could have the request."""
MOST_UNCONFIRMED = 1024
"""Assigned requests of which the book remembers that they may still be without a token."""
UNKNOWN_MAX_ADAPTERS = 4
"""LoRA adapters that an engine is taken to keep where its page does not tell."""


@dataclass(frozen=True, slots=True)
class LoadConstants:
    """How the books are kept; the settings of the same names say what each means."""

    cost: CostConstants
    drain_factor: float
    queue_slack: int
    prefill_rate: float
    max_num_seqs: int
    cache_tokens: int
    staleness_threshold: float

    def capacity_tokens(self, endpoint: Endpoint) -> int:
        """Tokens that the endpoint's KV cache holds, as it tells or as is assumed."""
        known = endpoint.state.capacity_tokens if endpoint.state is not None else None
        return known or self.cache_tokens


class _Assigned(NamedTuple):
    """A request that may be without a token: when it was assigned, its work in tokens, when that should be done."""

    at: float
    work: float
    done_at: float


class Load(NamedTuple):
    """What is on an endpoint, as far as its book can tell. Its pending work at a time ``t`` is
    ``pending_at_zero - t * pending_rate`` tokens, so that it need not be computed again as time passes."""

    waiting: float
    """Requests without a token."""
    running: float
    """Requests that have one."""
    total: float
    pending_at_zero: float
    pending_rate: float
    usage: float
    """Share of the KV cache that they use; more than 1 where they would use more than there is."""
    until: float
    """When the book would say something else though nothing was reported or assigned."""


class Book:
    """The load of one endpoint. Times are monotonic seconds, work is in tokens."""

    __slots__ = (
        "adapters",
        "began_at",
        "busy_until",
        "decode_rate",
        "done",
        "endpoint",
        "fill",
        "finish_times",
        "first_tokens",
        "hit_rate",
        "in_flight",
        "kv_usage",
        "last_chosen",
        "left",
        "max_adapters",
        "max_num_seqs",
        "mean_work",
        "most_running",
        "observed_at",
        "pool_rate",
        "prefill_rate",
        "reported_running",
        "reported_waiting",
        "request_seconds",
        "sent",
        "slot",
        "tau",
        "unconfirmed",
        "work_counters",
        "works_seen",
    )

    def __init__(self, endpoint: Endpoint, slot: int, now: float) -> None:
        self.endpoint = endpoint
        self.slot = slot
        self.last_chosen = 0
        self.in_flight = 0
        """Own requests whose end is awaited; only with observed responses."""
        self.prefill_rate: float | None = None
        self.pool_rate: float | None = None
        """The median of the pool's, which counts until its own is known."""
        self.decode_rate: float | None = None
        self.tau = 1.0
        self.max_num_seqs: int | None = None
        self.most_running = 0
        """Most requests that were seen to run at once."""
        self.mean_work = UNKNOWN_WORK
        """Tokens of work that a request has to compute on the average: of all on the engine where it counts them, else of
        our own."""
        self.works_seen = 0.0
        self.adapters: OrderedDict[str, None] = OrderedDict()
        self.max_adapters = 0
        self.reset(now)

    def reset(self, now: float) -> None:
        """The engine is a new process: empty queue, nothing observed. What was learned of its speed stays."""
        self.began_at = now
        self.finish_times: deque[float] = deque()
        self.busy_until = 0.0
        self.unconfirmed: deque[_Assigned] = deque(maxlen=MOST_UNCONFIRMED)
        self.work_counters: tuple[float, float] | None = None
        """Tokens that the engine has computed, and requests that got their first token, as of the last scrape."""
        self.first_tokens: float | None = None
        """How many requests had their first token when the queue was laid anew; None if the last scrape could not tell."""
        self.sent: deque[float] = deque()
        self.done: deque[float] = deque()
        self.observed_at: float | None = None
        self.reported_running = 0
        self.reported_waiting = 0
        self.left = self.request_seconds = 0.0  # requests that finished, and request-seconds spent, both smoothed
        self.kv_usage = 0.0
        self.fill = 0.0
        """Share of its cache that holds prompts, as the index has it: how likely a new token evicts another."""
        self.hit_rate = 1.0
        """Share that it held of the prompts that it was lately given: how likely somebody asks for what is evicted."""
        self.adapters.clear()

    def speed(self, constants: LoadConstants) -> float:
        """Prefill tokens a second that the endpoint is believed to do."""
        return self.prefill_rate or self.pool_rate or constants.prefill_rate

    def drain_rate(self, constants: LoadConstants) -> float:
        """Tokens of work a second at which the endpoint's virtual queue drains."""
        return self.speed(constants) * constants.drain_factor

    def observe(self, state: EngineState, constants: LoadConstants) -> None:
        """A scrape: its counts replace what was sent and done before it was taken."""
        at = state.observed_at
        sent = len(self.sent)
        self._forget_until(at)
        if self.observed_at is not None:
            before, total = self.reported_running + self.reported_waiting, state.running + state.waiting
            left = max(0, before + sent - len(self.sent) - total)
            self.left = LEAVING_SMOOTHING * self.left + left
            seconds = (at - self.observed_at) * (before + total) / 2
            self.request_seconds = LEAVING_SMOOTHING * self.request_seconds + seconds
        self.observed_at = at
        self.reported_running, self.reported_waiting = state.running, state.waiting
        self.most_running = max(self.most_running, state.running)
        self.kv_usage = state.kv_usage
        if state.max_num_seqs is not None:
            self.max_num_seqs = state.max_num_seqs
        if state.prefill_rate is not None:
            self.prefill_rate = state.prefill_rate
        if state.decode_rate is not None:
            self.decode_rate = state.decode_rate
        self._observe_work(state)
        self._reconcile(state, constants)
        self.max_adapters = state.max_adapters
        for adapter in state.loaded_adapters:
            self.use_adapter(adapter)

    def _observe_work(self, state: EngineState) -> None:
        """Learn what a request has to compute from the engine's counters, which know those of others, too."""
        lookups, hits, requests = state.prefix_queries_total, state.prefix_hits_total, state.first_tokens_total
        if lookups is None or hits is None or requests is None:
            return
        computed = lookups - hits
        before_computed, before_requests = self.work_counters or (0.0, 0.0)
        self.work_counters = computed, requests
        if requests > before_requests and computed >= before_computed:
            self._average_work((computed - before_computed) / (requests - before_requests), requests - before_requests)

    def _average_work(self, work: float, requests: float) -> None:
        self.works_seen += requests
        self.mean_work += min(1.0, requests * max(WORK_SMOOTHING, 1 / self.works_seen)) * (work - self.mean_work)

    def _reconcile(self, state: EngineState, constants: LoadConstants) -> None:
        """Correct the virtual queue by what the engine tells; it may not have seen the latest requests yet."""
        at, rate, assigned = state.observed_at, self.drain_rate(constants), self.unconfirmed
        unseen_from = at - TRANSIT - STEP_TOKENS / rate
        unseen = sum(1 for request in assigned if unseen_from < request.at <= at)
        if state.awaiting_first_token is None:
            self.first_tokens = None
            self._forget_gone(
                at,
                constants,
                long_ago=-inf if state.waiting else at - ASSUMED_DURATION,
                present=state.running + state.waiting + unseen,
            )
            return
        # First come, first served: those without a token are the latest that were assigned, less one for each first token
        # since the last scrape. If there are more than those, others sent them, and before.
        known = sum(1 for request in assigned if request.at <= at)
        told = known
        if self.first_tokens is not None and state.first_tokens_total is not None:
            told -= int(state.first_tokens_total - self.first_tokens)
        self.first_tokens = state.first_tokens_total
        awaiting = min(max(told, state.awaiting_first_token), state.awaiting_first_token + unseen)
        for _ in range(known - awaiting):
            assigned.popleft()
        self._lay_anew(at, rate, foreign=max(0, awaiting - known))

    def _forget_gone(
        self, at: float, constants: LoadConstants, *, long_ago: float, present: float = inf, unknown: int = 0
    ) -> None:
        """Drop from the virtual queue what cannot be there at ``at``: what is done, what was sent by ``long_ago``, and what
        is more than the ``present`` requests. Lay it anew, too, if more than ``unknown`` of its entries are not remembered
        any more: it has got so long because the endpoint is faster than believed."""
        assigned, finish_times = self.unconfirmed, self.finish_times
        while assigned and assigned[0].done_at <= at:
            assigned.popleft()
        while finish_times and finish_times[0] <= at:
            finish_times.popleft()
        before = len(assigned)
        while assigned and (len(assigned) - len(self.sent) > present or assigned[0].at <= long_ago):
            assigned.popleft()
        if len(assigned) < before or len(finish_times) > len(assigned) + unknown:
            self._lay_anew(at, self.drain_rate(constants))

    def _lay_anew(self, at: float, rate: float, *, foreign: int = 0) -> None:
        """The virtual queue as of ``at``: ``foreign`` requests of others, then those that may be without a token."""
        assigned = self.unconfirmed
        finish_times = deque(at + (k + 1) * self.mean_work / rate for k in range(foreign))
        self.busy_until = finish_times[-1] if foreign else at
        self.finish_times, self.unconfirmed = finish_times, deque(maxlen=MOST_UNCONFIRMED)
        for request in assigned:
            seconds = request.work / rate
            if not finish_times and request.at <= at:
                seconds = min(max(request.done_at - at, LEAST_REST * seconds), seconds)
            self._enqueue(request.work, seconds, request.at)

    def use_adapter(self, adapter: str) -> None:
        """The adapter is (or is about to be) loaded: most recently used of those that fit."""
        self.adapters[adapter] = None
        self.adapters.move_to_end(adapter)
        while len(self.adapters) > (self.max_adapters or UNKNOWN_MAX_ADAPTERS):
            self.adapters.popitem(last=False)

    def _forget_until(self, at: float) -> None:
        """Requests that were sent or done by ``at`` are part of what was reported, or too old to count."""
        for times in (self.sent, self.done):
            while times and times[0] <= at:
                times.popleft()

    def assign(self, uncached: float, rate: float, now: float) -> None:
        """A request with that many tokens to compute goes to the endpoint, which drains ``rate`` tokens a second."""
        self._enqueue(uncached, uncached / rate, now)
        self.sent.append(now)
        if self.work_counters is None:
            self._average_work(uncached, 1.0)

    def matched(self, cached: float, prompt: float, constants: LoadConstants) -> None:
        """A prompt of ``prompt`` tokens goes to the endpoint, which holds ``cached`` of them."""
        window = HIT_WINDOW * constants.capacity_tokens(self.endpoint)
        self.hit_rate += min(1.0, prompt / window) * (cached / prompt - self.hit_rate)

    def _enqueue(self, work: float, seconds: float, at: float) -> None:
        start = self.busy_until if self.busy_until > at else at
        self.busy_until = start + seconds
        self.finish_times.append(self.busy_until)
        self.unconfirmed.append(_Assigned(at, work, self.busy_until))

    def load(self, now: float, age: float, constants: LoadConstants) -> Load:
        """What is on the endpoint: what was reported ``age`` seconds ago, what was sent since and what has probably left."""
        self._expire(now, constants)
        finish_times, sent = self.finish_times, len(self.sent)
        waiting, pending_at_zero, rate = self._queue(constants)
        reported = self.reported_running + self.reported_waiting
        total: float = reported + sent
        gone: float = len(self.done)
        until = finish_times[0] if finish_times else inf
        if sent:
            until = min(until, self.sent[0] + ASSUMED_DURATION)
        leaving = self.leaving_rate()
        if leaving * total:
            gone = max(gone, (total - sent / 2) * (1 - exp(-leaving * age)))
            until = min(until, now + max(LEAST_UPDATE, 0.5 / (leaving * total)))
        if self.done and waiting > (still := max(total - len(self.done), 0.0)):  # ends were seen: no more can wait
            share = still / waiting
            pending_at_zero, rate, waiting = pending_at_zero * share, rate * share, still
        total = max(total - gone, self.in_flight, waiting)
        running = total - waiting if total > waiting else 0.0
        usage = self.kv_usage * (1 + (total - reported) / max(reported, FEW)) if self.kv_usage else 0.0
        if usage >= FULL or running >= self.slots(constants):
            room = self._wait_for_room(waiting, running, constants)
            explained_until = (pending_at_zero - EXPLAINED * room) / rate if rate else -inf
            if room and explained_until <= now:
                pending_at_zero, rate = room, 0.0
            elif room:
                until = min(until, explained_until)
        return Load(waiting, running, total, pending_at_zero, rate, usage, until)

    def _expire(self, now: float, constants: LoadConstants) -> None:
        """Prompts that should be computed by now wait no longer; where nothing tells, every request ends after a while."""
        finish_times, sent, done = self.finish_times, self.sent, self.done
        while finish_times and finish_times[0] <= now:
            finish_times.popleft()
        past = now - ASSUMED_DURATION
        if (sent and sent[0] <= past) or (done and done[0] <= past):
            self._forget_until(past)
        if (self.began_at if self.observed_at is None else self.observed_at) <= past:
            # Not seen since: what was there then has ended, whatever was reported of it.
            self.reported_running = self.reported_waiting = 0
            self.kv_usage = 0.0
            self._forget_gone(now, constants, long_ago=past, unknown=MOST_UNCONFIRMED)

    def _queue(self, constants: LoadConstants) -> tuple[float, float, float]:
        """Waiting requests, and their work as in :class:`Load`, within what the last scrape allows."""
        waiting: float = len(self.finish_times)
        rate = self.drain_rate(constants) if waiting else 0.0
        pending_at_zero = self.busy_until * rate
        if (
            self.observed_at is None or self.first_tokens is not None
        ):  # nothing is known, or it is laid anew by counters
            return waiting, pending_at_zero, rate
        most = self.reported_waiting + len(self.sent) + constants.queue_slack
        if waiting > most:  # the endpoint is faster than believed
            share = most / waiting
            return most, pending_at_zero * share, rate * share
        if waiting < self.reported_waiting:  # it is slower, or others send to it too
            pending_at_zero += (self.reported_waiting - waiting) * self.mean_work
            waiting = self.reported_waiting
        return waiting, pending_at_zero, rate

    def slots(self, constants: LoadConstants) -> int:
        """Requests that the engine runs at once: as it tells, or as is assumed unless more were seen."""
        if self.max_num_seqs is not None:
            return self.max_num_seqs
        assumed = constants.max_num_seqs
        return assumed if self.most_running <= assumed else SLOTS_SPARE * self.most_running

    def _wait_for_room(self, waiting: float, running: float, constants: LoadConstants) -> float:
        """Work that the engine could do until those that wait and one more have each seen another request leave; 0 if
        scrapes have not shown how fast they leave."""
        leaving = self.leaving_rate() * running
        return (waiting + 1) / leaving * self.drain_rate(constants) if leaving else 0.0

    def leaving_rate(self) -> float:
        """Share of its requests that the endpoint finishes each second, as scrapes have shown."""
        return self.left / self.request_seconds if self.request_seconds else 0.0

    def finished(self, now: float) -> None:
        """A request whose response is observed has ended, well or not."""
        self.in_flight -= 1
        self.done.append(now)


Row = tuple[float, ...]
"""One endpoint as it entered a decision: ``waiting, running, tau, tau*pending_at_zero, tau*pending_rate, eviction price,
usage, slot_guard, kv_guard, stale``. A plain tuple, because one is made with every update and hardly any is read."""


class Fleet:
    """The books of the endpoints to choose from, as columns: one list for each number, one position for each endpoint.

    A decision over a hundred endpoints is one pass over these lists (:meth:`costs`). They hold what enters the cost: pending
    work is multiplied by the endpoint's ``tau`` here, as it is not in :class:`Load`. What an endpoint has there changes only
    when it is assigned a request, is scraped, or a virtual finish time passes: :meth:`refresh` looks at those alone.
    """

    __slots__ = (
        "_constants",
        "_guarded",
        "_last_observed",
        "_next_change",
        "_queueing",
        "_soonest",
        "base",
        "books",
        "candidates",
        "delay",
        "fixed",
        "guards",
        "names",
        "pending_at_zero",
        "pending_rate",
        "per_token",
        "per_uncached",
        "position",
        "present",
        "rows",
        "running",
        "total",
        "waiting",
    )

    def __init__(self, books: Sequence[Book], constants: LoadConstants, now: float) -> None:
        self.books = tuple(books)
        self.names = tuple(book.endpoint.id for book in books)
        self._constants = constants
        self.position = {book.slot: k for k, book in enumerate(books)}
        self.candidates = sum(1 << book.slot for book in books)
        """The fleet's slots as a mask for the prefix index."""
        size = len(books)
        self.waiting: list[float] = [0.0] * size
        self.total: list[float] = [0.0] * size
        self.running = [0.0] * size
        self.present = [0.0] * size
        """``waiting + running``."""
        self._queueing: set[int] = set()
        """Positions at which more than :data:`ALONE` requests wait."""
        self.pending_at_zero = [0.0] * size
        self.pending_rate = [0.0] * size
        self.per_uncached = [0.0] * size
        self.delay = [0.0] * size
        self.guards = [0.0] * size
        self.fixed = [0.0] * size
        self.base = [0.0] * size
        """``pending_at_zero + fixed``."""
        self.per_token = [0.0] * size
        """``per_uncached + delay``."""
        self._guarded: set[int] = set()
        """Positions whose guards are not 0; hardly ever any."""
        self.rows: list[Row] = [()] * size
        """What the columns say, once more by endpoint: to keep it as it was takes one copy of this list."""
        self._next_change = [-inf] * size
        self._last_observed = max((book.observed_at for book in books if book.observed_at is not None), default=-inf)
        self._soonest = -inf
        """No later than the earliest of ``_next_change``."""
        self.refresh(now)

    def refresh(self, now: float) -> None:
        """Bring every column up to date: recompute what has changed by itself."""
        if self._soonest > now:
            return
        next_change = self._next_change
        for k in [k for k, due in enumerate(next_change) if due <= now]:
            self.update(k, now)
        self._soonest = min(next_change, default=inf)

    def update(self, k: int, now: float) -> None:
        """Recompute the columns of the endpoint at position ``k`` from its book."""
        book = self.books[k]
        constants = self._constants
        cost = constants.cost
        if book.observed_at is not None:
            self._last_observed = max(self._last_observed, book.observed_at)
        age = self._age(book, now)
        waiting, running, total, pending_at_zero, pending_rate, kv_usage, until = book.load(now, age, constants)
        stale_for = age - constants.staleness_threshold
        if stale_for < 0:
            stale, until = 0.0, min(until, now - stale_for)
        else:
            stale, until = cost.stale * min(stale_for, STALE_CAP), min(until, now + 1.0)
        self._next_change[k] = until
        self._soonest = min(self._soonest, until)

        self.waiting[k], self.running[k], self.total[k] = waiting, running, total
        self.present[k] = waiting + running
        _keep(self._queueing, k, waiting > ALONE)
        tau, usage = book.tau, min(1.0, kv_usage)
        pending_at_zero, pending_rate = tau * pending_at_zero, tau * pending_rate
        self.pending_at_zero[k], self.pending_rate[k] = pending_at_zero, pending_rate
        eviction = eviction_price(cost, book.fill, book.hit_rate)
        self.per_uncached[k] = per_uncached = tau * (1 + eviction + cost.running * running * usage)
        self.delay[k] = delay = tau * cost.waiting * waiting
        self.fixed[k] = fixed = tau * cost.decode * running + stale
        self.base[k], self.per_token[k] = pending_at_zero + fixed, per_uncached + delay
        kv_guard = cost.kv * max(0.0, kv_usage - KV_FROM)
        slot_guard = cost.slots * slots_excess(running, book.slots(constants))
        self.guards[k] = guards = kv_guard + slot_guard
        _keep(self._guarded, k, guards > 0)
        self.rows[k] = (
            waiting,
            running,
            tau,
            pending_at_zero,
            pending_rate,
            eviction,
            usage,
            slot_guard,
            kv_guard,
            stale,
        )

    def _age(self, book: Book, now: float) -> float:
        """Seconds since the engine's state was known. One that has never told is known since it came, but no better than the
        best known one: else all requests would go to each newcomer where metrics cannot be had."""
        if book.observed_at is not None:
            return now - book.observed_at
        return now - min(book.began_at, self._last_observed) if self._last_observed > -inf else 0.0

    def pending(self, k: int, now: float) -> float:
        """Prefill tokens that the endpoint has to compute, times its slowness ``tau``."""
        return self.pending_at_zero[k] - now * self.pending_rate[k]

    def least_waiting(self) -> float:
        """``min W``."""
        return 0.0 if 0.0 in self.waiting else min(self.waiting)

    @property
    def queues(self) -> bool:
        """Whether more than :data:`~warmroute.routing.cost.ALONE` requests wait on some endpoint."""
        return bool(self._queueing)

    @property
    def crowd(self) -> Sequence[float]:
        """``C`` of every endpoint."""
        return self.present if self._queueing else self.running

    def least_crowd(self, usual: float, others: Mapping[int, float]) -> float:
        """``least C`` where every endpoint holds ``usual`` tokens of a prompt, but for ``others`` by their positions."""
        best = max(usual, max(others.values(), default=0.0))
        if not best:
            return 0.0
        crowd, enough = self.crowd, NEARLY * best
        if usual < enough:
            return min([crowd[k] for k, tokens in others.items() if tokens >= enough])
        least = min(crowd)
        if others.get(crowd.index(least), usual) >= enough:  # nearly always: hardly anybody holds less
            return least
        return min([here for k, here in enumerate(crowd) if others.get(k, usual) >= enough])

    def costs(
        self,
        tokens: float,
        usual: float,
        others: Mapping[int, float],
        *,
        queue_weight: float,
        delay_weight: float,
        balance_weight: float,
        least_crowd: float,
        now: float,
    ) -> list[float]:
        """``J`` of every endpoint for a prompt of ``tokens`` tokens, of which each holds ``usual``, but for ``others``.

        ``usual`` is what most hold, often nothing or a system prompt: all are priced as if they held it, in one pass, and
        the few others are then corrected by the difference.
        """
        prompt, spared, share = prefill_work(tokens), prefill_work(usual), holder_share(tokens, usual)
        full_balance = balance_weight * min(tokens, BALANCE_TOKENS)
        costs = self._equal_costs(
            prompt,
            prompt - spared,
            queue_weight=queue_weight,
            delay_weight=delay_weight,
            balance=(1 - share) * full_balance,
            same=share * full_balance * least_crowd,
            now=now,
        )
        if others:
            per_uncached, delay, crowd = self.per_uncached, self.delay, self.crowd
            for k, cached in others.items():
                costs[k] -= (prefill_work(cached) - spared) * (per_uncached[k] + delay_weight * delay[k])
                costs[k] -= (holder_share(tokens, cached) - share) * full_balance * (crowd[k] - least_crowd)
        return costs

    def _equal_costs(
        self,
        prompt: float,
        uncached: float,
        *,
        queue_weight: float,
        delay_weight: float,
        balance: float,
        same: float,
        now: float,
    ) -> list[float]:
        """What every endpoint costs that must do ``uncached`` of the work ``prompt``, and ``same`` for each."""
        if queue_weight == delay_weight == 1 and not self._guarded:
            # Nearly always: nobody is full and somebody has no queue. What is a constant then is in `base` and `per_token`.
            return [
                base - now * rate + uncached * per_token + balance * crowd + same
                for base, rate, per_token, crowd in zip(
                    self.base, self.pending_rate, self.per_token, self.crowd, strict=True
                )
            ]
        time, delayed = queue_weight * now, delay_weight * uncached
        return [
            queue_weight * pending
            - time * rate
            + uncached * per_uncached
            + delayed * delay
            + prompt * guards
            + balance * crowd
            + same
            + fixed
            for pending, rate, per_uncached, delay, guards, crowd, fixed in zip(
                self.pending_at_zero,
                self.pending_rate,
                self.per_uncached,
                self.delay,
                self.guards,
                self.crowd,
                self.fixed,
                strict=True,
            )
        ]

    def balance_weight(self, delay_weight: float) -> float:
        """What each request of a crowd counts for with each token of a prompt, on top of its work."""
        crowd = self.crowd
        return balance_weight(self._constants.cost, sum(crowd) / len(crowd), delay_weight)


def _keep(positions: set[int], k: int, wanted: bool) -> None:
    if wanted:
        positions.add(k)
    else:
        positions.discard(k)


def slowness(books: Iterable[Book]) -> None:
    """Set ``tau`` of each book: how slow it is against the pool's median, 1 where that is not certain; and ``pool_rate``.

    Where engines tell how fast they decode, an endpoint is slow or fast only if both its prefill and its decoding are; then
    that of the two counts which is nearer to 1.
    """
    books = list(books)
    rates = {book: book.prefill_rate for book in books if book.prefill_rate}
    prefill = _slowness_of(rates)
    pool_rate = median(rates.values()) if rates else None
    decode = _slowness_of({book: book.decode_rate for book in books if book.decode_rate})
    low, high = TAU_RANGE
    certain = TAU_AGREED if decode else TAU_CERTAIN
    for book in books:
        book.pool_rate = pool_rate
        tau = prefill.get(book, 1.0)
        agreed = decode.get(book, 1.0) if decode else tau
        if min(tau, agreed) >= certain:
            book.tau = min(tau, agreed, high)
        elif max(tau, agreed) <= 1 / certain:
            book.tau = max(tau, agreed, low)
        else:
            book.tau = 1.0


def _slowness_of(rates: Mapping[Book, float]) -> dict[Book, float]:
    if not rates:
        return {}
    typical = median(rates.values())
    return {book: typical / rate for book, rate in rates.items()}
