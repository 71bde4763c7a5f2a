"""Replay a trace through pickers and simulated engines in virtual time.

The picker is the server's own router or a baseline; the engines are those of :mod:`warmroute_lab.simulator.engine`. One heap
of events, no clock, no sockets: the same seed gives the same figures.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from heapq import heappop, heappush
from itertools import count
from math import ceil, inf

from warmroute.engines.rates import DecodeRate, FirstTokens, PrefillRate
from warmroute.engines.scraper import BACKOFF, JITTER, TICK
from warmroute.errors import ConfigurationError
from warmroute.pool.endpoint import EngineState
from warmroute_lab.replay.fleet import DOWN, Fleet
from warmroute_lab.replay.outcome import Outcome, Sample
from warmroute_lab.replay.policy import Policy
from warmroute_lab.replay.trace import Trace
from warmroute_lab.simulator.engine import Engine, Output, Request

SCRAPE_DELAY = 0.005
"""Seconds from the engine's look at itself until the picker has its answer."""
RETRY_DELAY = 0.1
"""Seconds after which a request is sent again whose engine died or refused it."""
SAMPLE_INTERVAL = 1.0
"""Seconds between two looks at the load of the pods."""
_UNANSWERED = _UNSENT = -1.0
Progress = Callable[[int], None]
"""Hears how many requests are answered."""


class _Event(IntEnum):
    """What happens at one time happens in this order."""

    ENGINE = 0
    BOOT = 1
    KILL = 2
    SCALE = 3
    OBSERVED = 4
    SCRAPE = 5
    SAMPLE = 6
    SEND = 7


@dataclass(slots=True, eq=False)
class _Pod:
    """One pod: its engine, None while that does not run, and the requests on it."""

    number: int
    engine: Engine | None = None
    incarnation: int = 0
    under_way: set[int] = field(default_factory=set)
    serving: bool = True
    """False once it was scaled away."""
    prompt_tokens: int = 0
    """Of the requests that finished."""
    prefill_tokens: int = 0
    """Computed for the requests that finished."""
    prefill_seconds: float = 0.0
    """These requests' time from their first step to their first token."""
    later_tokens: int = 0
    """Tokens of these requests after the first."""
    later_token_seconds: float = 0.0
    """From their first tokens to their last."""
    due: float = inf
    """When the engine has its next event; events of other times on the heap are void."""


@dataclass(slots=True, eq=False)
class _Watch:
    """One picker's dialogue with one pod's metrics page."""

    pod: _Pod
    picker: Policy
    prefill: PrefillRate = field(default_factory=PrefillRate)
    decode: DecodeRate = field(default_factory=DecodeRate)
    first_tokens: FirstTokens = field(default_factory=FirstTokens)
    incarnation: int = 0
    """Of the engine that answered last; 0: none did."""
    silent: int = 0
    state: EngineState | None = None
    """The page that is on its way."""


class Replay:
    """One trace, one fleet, one strategy."""

    def __init__(
        self,
        trace: Trace,
        fleet: Fleet,
        new_policy: Callable[[random.Random], Policy],
        *,
        strategy: str,
        speedup: float = 1.0,
        seed: int = 0,
    ) -> None:
        """``new_policy`` makes one picker; it is called for each of the fleet's."""
        self._trace, self._fleet, self._speedup = trace, fleet, speedup
        self._strategy = strategy
        self._rng = random.Random(seed)
        self._pickers = [new_policy(random.Random(f"{seed}/{i}")) for i in range(fleet.pickers)]
        self._pods: list[_Pod] = []
        self._events: list[tuple[float, _Event, int, int]] = []
        self._order = count()
        self._watches: list[_Watch] = []
        requests = trace.requests
        self._ttft = [_UNANSWERED] * len(requests)
        self._e2e = [0.0] * len(requests)
        self._chosen = [-1] * len(requests)
        self._sent_at = [_UNSENT] * len(requests)
        self._cached = 0
        self._retries = 0
        self._answered = 0
        self._samples: list[Sample] = []
        self._following: dict[int, list[int]] = {}

    def run(self, progress: Progress = lambda answered: None) -> Outcome:
        """Replay to the last answer."""
        speedup, fleet = self._speedup, self._fleet
        for number, request in enumerate(self._trace.requests):
            if request.after is None:
                self._add(request.at / speedup, _Event.SEND, number)
            else:
                self._following.setdefault(request.after, []).append(number)
        for _ in fleet.profiles:
            self._join(0.0)
        for restart in fleet.restarts:
            self._add(restart.at / speedup, _Event.KILL, restart.number)
        for scaling in fleet.scalings:
            self._add(scaling.at / speedup, _Event.SCALE, scaling.number)
        self._add(0.0, _Event.SAMPLE, 0)

        total = len(self._trace.requests)
        events, pods = self._events, self._pods
        while self._answered < total:
            now, kind, _, number = heappop(events)
            if kind == _Event.ENGINE:
                pod = pods[number]
                if pod.due == now:
                    answered = self._answered
                    self._advance(pod, now)
                    if self._answered > answered:
                        progress(self._answered)
            elif kind == _Event.SEND:
                self._send(number, now)
            elif kind == _Event.SCRAPE:
                self._scrape(number, now)
            elif kind == _Event.OBSERVED:
                self._observed(number, now)
            elif kind == _Event.SAMPLE:
                self._samples.append(Sample(now, tuple(len(pod.under_way) for pod in pods if pod.serving)))
                self._add(now + SAMPLE_INTERVAL, _Event.SAMPLE, 0)
            elif kind == _Event.KILL:
                self._kill(number, now)
            elif kind == _Event.BOOT:
                self._boot(pods[number])
            else:
                self._scale(number, now)
        return Outcome(
            strategy=self._strategy,
            scenario=self._trace.name,
            speedup=self._speedup,
            ttft=self._ttft,
            e2e=self._e2e,
            pods=self._chosen,
            prompt_tokens=sum(request.prompt_tokens for request in self._trace.requests),
            cached_tokens=self._cached,
            retries=self._retries,
            samples=self._samples,
        )

    def _add(self, at: float, kind: _Event, number: int) -> None:
        heappush(self._events, (at, kind, next(self._order), number))

    def _picker_of(self, request: int) -> Policy:
        return self._pickers[request % len(self._pickers)]

    # ---------------------------------------------------------------- requests

    def _send(self, number: int, now: float) -> None:
        request = self._trace.requests[number]
        if self._sent_at[number] == _UNSENT:
            self._sent_at[number] = now
        picker = self._picker_of(number)
        choice = picker.choose(request, number, now)
        if choice is None:
            self._retry(number, now)
            return
        self._chosen[number] = choice
        pod = self._pods[choice]
        if pod.engine is None:
            picker.finished(number, now)
            self._retry(number, now)
            return
        hashes = request.blocks(pod.engine.profile.block_size)
        pod.under_way.add(number)
        pod.engine.submit(Request(str(number), request.prompt_tokens, request.output_tokens, hashes), now)
        self._schedule(pod)

    def _retry(self, number: int, now: float) -> None:
        self._retries += 1
        self._add(now + RETRY_DELAY, _Event.SEND, number)

    def _schedule(self, pod: _Pod) -> None:
        due = pod.engine.next_event() if pod.engine is not None else inf
        if due != pod.due:
            pod.due = due
            if due < inf:
                self._add(due, _Event.ENGINE, pod.number)

    def _advance(self, pod: _Pod, now: float) -> None:
        """Let the pod's engine run up to ``now`` and hand out what left it."""
        if pod.engine is None:
            return
        for output in pod.engine.advance(now):
            number = int(output.request.id)
            if self._ttft[number] == _UNANSWERED:
                self._ttft[number] = output.time - self._sent_at[number]
                self._picker_of(number).first_token(number, now)
            if output.finished:
                self._finish(number, pod, output, now)
        self._schedule(pod)

    def _finish(self, number: int, pod: _Pod, output: Output, now: float) -> None:
        self._e2e[number] = output.time - self._sent_at[number]
        self._cached += output.request.cached_tokens
        self._answered += 1
        pod.under_way.remove(number)
        work = output.request
        pod.prompt_tokens += work.prompt_tokens
        if work.scheduled_at is not None and work.first_token_at is not None:
            pod.prefill_tokens += work.prompt_tokens - work.cached_tokens
            pod.prefill_seconds += work.first_token_at - work.scheduled_at
            pod.later_tokens += work.output_tokens - 1
            pod.later_token_seconds += output.time - work.first_token_at
        self._picker_of(number).finished(number, now)
        for follower in self._following.get(number, ()):
            request = self._trace.requests[follower]
            self._add(max(now + request.pause, request.at / self._speedup), _Event.SEND, follower)

    # ---------------------------------------------------------------- the fleet

    def _join(self, now: float) -> None:
        """One pod more, with an empty cache."""
        pod = _Pod(len(self._pods))
        self._pods.append(pod)
        self._boot(pod)
        for picker in self._pickers:
            picker.joined(pod.number, now)
            self._watches.append(_Watch(pod, picker))
            self._add(now + TICK * self._rng.random(), _Event.SCRAPE, len(self._watches) - 1)

    def _boot(self, pod: _Pod) -> None:
        pod.incarnation += 1
        pod.prompt_tokens = pod.prefill_tokens = 0
        pod.prefill_seconds = 0.0
        pod.later_tokens, pod.later_token_seconds = 0, 0.0
        pod.engine = Engine(self._fleet.profile(pod.number), every_token=False, seed=pod.number)

    def _scale(self, wanted: int, now: float) -> None:
        serving = [pod for pod in self._pods if pod.serving]
        for _ in range(wanted - len(serving)):
            self._join(now)
        for pod in serving[wanted:]:
            pod.serving = False  # what runs on it runs to its end
            for picker in self._pickers:
                picker.left(pod.number, now)

    def _kill(self, number: int, now: float) -> None:
        """The engine dies; the clients send their requests again.

        Those that had no token yet still count from their first sending: they have been waiting since then.
        """
        if number >= len(self._pods):
            raise ConfigurationError(f"pod {number} is to restart at {now:g} s, but there is none yet")
        pod = self._pods[number]
        if pod.engine is None:
            return  # it is down already
        pod.engine = None
        pod.due = inf
        for request in sorted(pod.under_way):
            if self._ttft[request] != _UNANSWERED:  # it had begun to answer: what is asked again counts from here
                self._ttft[request] = _UNANSWERED
                self._sent_at[request] = now
            self._picker_of(request).finished(request, now)
            self._retry(request, now)
        pod.under_way.clear()
        self._add(now + DOWN, _Event.BOOT, number)

    # ---------------------------------------------------------------- metrics

    def _scrape(self, index: int, now: float) -> None:
        """A picker asks for a pod's metrics page, as the server's scraper would."""
        watch = self._watches[index]
        pod, picker, engine = watch.pod, watch.picker, watch.pod.engine
        if not pod.serving:
            return
        if engine is None:
            interval = BACKOFF[min(watch.silent, len(BACKOFF) - 1)]
            watch.silent += 1
            picker.unreachable(pod.number, now)
        else:
            if watch.incarnation != pod.incarnation:
                if watch.incarnation:
                    picker.restarted(pod.number, now)
                    watch.prefill.interrupt()
                    watch.decode.interrupt()
                    watch.first_tokens.interrupt()
                watch.incarnation, watch.silent = pod.incarnation, 0
            self._advance(pod, now)
            watch.prefill.observe_requests(pod.prefill_tokens, engine.counters.finished, pod.prefill_seconds)
            watch.decode.observe(now, pod.later_tokens, pod.later_token_seconds)
            watch.state = _state(engine, watch, now)
            self._add(now + SCRAPE_DELAY, _Event.OBSERVED, index)
            busy = watch.state.running + watch.state.waiting > 0
            interval = picker.busy_interval if busy else picker.idle_interval
        due = now + interval * self._rng.uniform(1 - JITTER, 1 + JITTER)
        if picker.tick:
            due = ceil(due / picker.tick) * picker.tick
        self._add(due, _Event.SCRAPE, index)

    def _observed(self, index: int, now: float) -> None:
        watch = self._watches[index]
        if watch.state is not None and watch.incarnation == watch.pod.incarnation and watch.pod.engine is not None:
            watch.picker.observed(watch.pod.number, watch.state, now)


def _state(engine: Engine, watch: _Watch, now: float) -> EngineState:
    """What a scrape of the engine's page tells."""
    counters, waiting = engine.counters, engine.waiting
    watch.prefill.observe(now, counters.prompt_tokens - counters.cached_tokens, counters.first_tokens, waiting)
    awaiting = watch.first_tokens.awaiting(counters.first_tokens, counters.finished, engine.running, waiting)
    return EngineState(
        observed_at=now,
        running=engine.running,
        waiting=waiting,
        kv_usage=engine.kv_usage,
        awaiting_first_token=awaiting,
        capacity_tokens=engine.profile.kv_cache_tokens,
        first_tokens_total=counters.first_tokens,
        prompt_tokens_total=watch.pod.prompt_tokens,
        prompt_requests_total=counters.finished,
        prefix_queries_total=counters.prefix_queries,
        prefix_hits_total=counters.prefix_hits,
        prefill_rate=watch.prefill.tokens_per_second,
        decode_rate=watch.decode.tokens_per_second,
    )
