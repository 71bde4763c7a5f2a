"""Replay a trace through a routing policy and simulated engines in virtual time.

The policy is the product's router or a baseline; the engines are those of :mod:`warmroute_lab.simulator.engine`. Events come
from one heap; there is no clock and no socket. Equal seeds give equal figures.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import IntEnum
from heapq import heappop, heappush
from itertools import count
from math import inf

from warmroute.engines.scraper import TICK
from warmroute.errors import ConfigurationError
from warmroute_lab.replay.fleet import DOWN, Fleet
from warmroute_lab.replay.outcome import Outcome, Sample
from warmroute_lab.replay.pods import Pod
from warmroute_lab.replay.policy import Policy
from warmroute_lab.replay.scrapes import RESPONSE_DELAY, Scrapes
from warmroute_lab.replay.shared_log import BATCH_INTERVAL, DELAY, SharedLog
from warmroute_lab.replay.trace import Trace, TracedRequest
from warmroute_lab.simulator.request import Output, Request

LONGEST = 31 * 86_400.0
"""Most seconds of virtual time. Engines are scraped all the time: a day takes about a minute."""
RETRY_DELAY = 0.1
"""Seconds until a request is sent again after its engine died or no engine was available."""
SAMPLE_INTERVAL = 1.0
"""Seconds between two samples of the pods' load."""
_UNANSWERED = _UNSENT = -1.0
Progress = Callable[[int], None]
"""Called with the number of answered requests."""


class _Event(IntEnum):
    """Events of the replay. Events of equal time happen in this order."""

    ENGINE = 0
    BOOT = 1
    KILL = 2
    SCALE = 3
    OBSERVED = 4
    SCRAPE = 5
    DELIVER = 6
    PUBLISH = 7
    SAMPLE = 8
    SEND = 9


class Replay:
    """One trace, one fleet, one policy for each picker."""

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
        """``new_policy`` makes the policy of one picker. ``strategy`` is its name in the outcome."""
        self._trace, self._fleet, self._speedup = trace, fleet, speedup
        self._strategy = strategy
        self._rng = random.Random(seed)
        self._policies = [new_policy(random.Random(f"{seed}/{i}")) for i in range(fleet.pickers)]
        self._shared_log = SharedLog(self._policies) if fleet.shared else None
        self._pods: list[Pod] = []
        self._scrapes: list[Scrapes] = []
        self._events: list[tuple[float, _Event, int, int]] = []
        self._order = count()
        requests = trace.requests
        self._ttft = [_UNANSWERED] * len(requests)
        self._e2e = [0.0] * len(requests)
        self._chosen = [-1] * len(requests)
        self._sent_at = [_UNSENT] * len(requests)
        self._last_sent = 0.0
        self._cached = 0
        self._retries = 0
        self._answered = 0
        self._samples: list[Sample] = []
        self._following: dict[int, list[int]] = {}
        self._progress: Progress = lambda answered: None
        self._handlers: dict[_Event, Callable[[int, float], None]] = {
            _Event.ENGINE: self._engine_due,
            _Event.BOOT: self._boot,
            _Event.KILL: self._kill,
            _Event.SCALE: self._scale,
            _Event.OBSERVED: self._observed,
            _Event.SCRAPE: self._scrape,
            _Event.DELIVER: self._deliver,
            _Event.PUBLISH: self._publish,
            _Event.SAMPLE: self._sample,
            _Event.SEND: self._send,
        }

    def run(self, progress: Progress = lambda answered: None) -> Outcome:
        """Replay until every request is answered.

        Raises ConfigurationError if a pod to restart does not exist by then, or if it would last more than :data:`LONGEST`.
        """
        self._progress = progress
        self._require_end()
        self._plan()
        events, handlers, total = self._events, self._handlers, len(self._trace.requests)
        while self._answered < total:
            now, kind, _, number = heappop(events)
            handlers[kind](number, now)
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
            planned_seconds=self._trace.duration / self._speedup,
            sent_seconds=self._last_sent,
            failed=sum(len(policy.failed) for policy in self._policies),
        )

    def _require_end(self) -> None:
        """Raise ConfigurationError if the replay would not end for months, whatever the answers take."""
        earliest: list[float] = []
        for request in self._trace.requests:
            at = request.at / self._speedup
            earliest.append(at if request.after is None else max(at, earliest[request.after] + self._pause(request)))
        if max(earliest) > LONGEST:
            raise ConfigurationError(
                f"{self._trace.name} at speedup {self._speedup:.3g} would last {max(earliest) / 86_400:.3g} days, more than "
                f"{LONGEST / 86_400:.0f} days: perhaps a timestamp or a think_ms is wrong; else choose a larger --speedup"
            )

    def _pause(self, request: TracedRequest) -> float:
        """Least time between an answer and the request after it."""
        return request.pause / self._speedup if self._trace.recorded else request.pause

    def _plan(self) -> None:
        """Start the fleet and enter the events that are known before."""
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
        if self._shared_log is not None:
            self._add(0.0, _Event.PUBLISH, 0)

    def _add(self, at: float, kind: _Event, number: int) -> None:
        heappush(self._events, (at, kind, next(self._order), number))

    def _policy_of(self, request: int) -> Policy:
        return self._policies[request % len(self._policies)]

    # Requests

    def _send(self, number: int, now: float) -> None:
        """Choose a pod and submit the request to its engine."""
        request = self._trace.requests[number]
        if self._sent_at[number] == _UNSENT:
            self._sent_at[number] = self._last_sent = now
        policy = self._policy_of(number)
        choice = policy.choose(request, number, now)
        if choice is None:
            self._retry(number, now)
            return
        self._chosen[number] = choice
        pod = self._pods[choice]
        if pod.engine is None:
            policy.finished(number, now)
            self._retry(number, now)
            return
        hashes = request.blocks(pod.engine.profile.block_size)
        pod.in_flight.add(number)
        index = choice * len(self._policies) + number % len(self._policies)
        soon = self._scrapes[index].sooner(now, self._rng)
        if soon is not None:
            self._schedule_scrape(index, soon)
        pod.engine.submit(Request(str(number), request.prompt_tokens, request.output_tokens, hashes), now)
        self._schedule(pod)

    def _retry(self, number: int, now: float) -> None:
        self._retries += 1
        self._add(now + RETRY_DELAY, _Event.SEND, number)

    def _schedule(self, pod: Pod) -> None:
        """Enter the engine's next event."""
        due = pod.engine.next_event() if pod.engine is not None else inf
        if due != pod.due:
            pod.due = due
            if due < inf:
                self._add(due, _Event.ENGINE, pod.number)

    def _engine_due(self, number: int, now: float) -> None:
        pod = self._pods[number]
        if pod.due == now:
            self._advance(pod, now)

    def _advance(self, pod: Pod, now: float) -> None:
        """Run the pod's engine up to ``now`` and deliver its outputs."""
        if pod.engine is None:
            return
        for output in pod.engine.advance(now):
            number = int(output.request.id)
            if self._ttft[number] == _UNANSWERED:
                self._ttft[number] = output.time - self._sent_at[number]
                self._policy_of(number).first_token(number, now)
            if output.finished:
                self._finish(number, pod, output, now)
        self._schedule(pod)

    def _finish(self, number: int, pod: Pod, output: Output, now: float) -> None:
        """Count an answered request and enter the requests that follow it."""
        self._e2e[number] = output.time - self._sent_at[number]
        self._cached += output.request.cached_tokens
        self._answered += 1
        pod.in_flight.remove(number)
        pod.finished.add(output.request, output.time)
        self._policy_of(number).finished(number, now)
        for follower in self._following.get(number, ()):
            request = self._trace.requests[follower]
            self._add(max(now + self._pause(request), request.at / self._speedup), _Event.SEND, follower)
        self._progress(self._answered)

    # The fleet

    def _join(self, now: float) -> None:
        """Add a pod with an empty cache; every policy begins to scrape it."""
        pod = Pod(len(self._pods))
        self._pods.append(pod)
        self._boot(pod.number, now)
        for policy in self._policies:
            policy.joined(pod.number, now)
            policy.told(pod.number, self._fleet.profile(pod.number))
            self._scrapes.append(Scrapes(pod, policy))
            self._schedule_scrape(len(self._scrapes) - 1, now + TICK * self._rng.random())

    def _boot(self, number: int, now: float) -> None:
        self._pods[number].boot(self._fleet.profile(number))

    def _scale(self, wanted: int, now: float) -> None:
        """Add pods, or stop sending requests to the last ones; requests on these run to their end."""
        serving = [pod for pod in self._pods if pod.serving]
        for _ in range(wanted - len(serving)):
            self._join(now)
        for pod in serving[wanted:]:
            pod.serving = False
            for policy in self._policies:
                policy.left(pod.number, now)

    def _kill(self, number: int, now: float) -> None:
        """Stop a pod's engine; the clients send its requests again.

        The times of a request without a token still count from its first sending, those of a request with an incomplete
        answer from the next sending.
        """
        if number >= len(self._pods):
            raise ConfigurationError(f"pod {number} cannot restart at {now:g} s: it does not exist at that time")
        pod = self._pods[number]
        if pod.engine is None:
            return  # it is down already
        pod.stop()
        for request in sorted(pod.in_flight):
            if self._ttft[request] != _UNANSWERED:
                self._ttft[request] = _UNANSWERED
                self._sent_at[request] = now
            self._policy_of(request).finished(request, now)
            self._retry(request, now)
        pod.in_flight.clear()
        self._add(now + DOWN, _Event.BOOT, number)

    def _sample(self, _: int, now: float) -> None:
        """Record the number of requests on each pod."""
        self._samples.append(Sample(now, tuple(len(pod.in_flight) for pod in self._pods if pod.serving)))
        self._add(now + SAMPLE_INTERVAL, _Event.SAMPLE, 0)

    # Shared state

    def _publish(self, _: int, now: float) -> None:
        """Every picker publishes its decisions; enter the next time."""
        assert self._shared_log is not None
        self._shared_log.publish(now)
        self._add(now + DELAY, _Event.DELIVER, 0)
        self._add(now + BATCH_INTERVAL, _Event.PUBLISH, 0)

    def _deliver(self, _: int, now: float) -> None:
        assert self._shared_log is not None
        self._shared_log.deliver(now)

    # Metrics

    def _scrape(self, index: int, now: float) -> None:
        """Scrape a pod for one policy and enter the next scrape."""
        scrapes = self._scrapes[index]
        pod = scrapes.pod
        if not pod.serving or now != scrapes.due:
            return
        if pod.engine is None:
            interval = scrapes.fail(now)
        else:
            scrapes.greet(now)
            self._advance(pod, now)
            interval = scrapes.read(now)
            self._add(now + RESPONSE_DELAY, _Event.OBSERVED, index)
        self._schedule_scrape(index, scrapes.next_at(now, interval, self._rng))

    def _schedule_scrape(self, index: int, at: float) -> None:
        """Enter a scrape in place of the one that was planned."""
        self._scrapes[index].due = at
        self._add(at, _Event.SCRAPE, index)

    def _observed(self, index: int, now: float) -> None:
        self._scrapes[index].deliver(now)
