"""A vLLM engine in virtual time, WITHOUT IO: the caller passes the time in and gets outputs with their times.

It models what routing depends on: the scheduler (:mod:`warmroute_lab.simulator.scheduler`) with its prefix cache
(:mod:`warmroute_lab.simulator.blocks`); asynchronous scheduling, where a step is scheduled while the previous one runs; and
the single thread of the API server. Times come from the profile's :class:`~warmroute_lab.simulator.profile.Timing`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from math import inf, log1p
from random import Random

from warmroute_lab.simulator.blocks import BlockPool
from warmroute_lab.simulator.profile import Profile
from warmroute_lab.simulator.request import Counters, Output, Request
from warmroute_lab.simulator.scheduler import Batch, Scheduler

PIPELINE_DEPTH = 2
"""Steps in flight with vLLM's asynchronous scheduling."""
NOISE_PERIOD = 0.5
"""Seconds for which a factor of the host noise holds."""


@dataclass(slots=True)
class _Step:
    """A step in flight."""

    sampled: list[tuple[Request, int]]
    """Requests that get a token from it, with their epochs."""
    launched: float
    end: float
    steady: bool
    """The next step has the same requests, each with one token more."""


@dataclass(slots=True)
class _Coast:
    """Precomputed steps that only decode. Entry ``i`` holds the state after ``i + 1`` of them."""

    visible: list[float]
    """When the engine has the step's output."""
    times: list[tuple[float, float, float, float, float]]
    """Launch and end of the two steps in flight, and when the API server is free."""
    applied: int = 0
    """Steps that were applied."""


class Engine:
    """One engine. Times must not decrease: each ``now`` and ``until`` is at least the previous one."""

    def __init__(self, profile: Profile, *, every_token: bool = True, seed: int = 0) -> None:
        """``every_token=False`` reports only first and last tokens and computes steps that only decode in one go.

        ``seed`` is that of the host noise, if the profile has any.
        """
        self.profile = profile
        self.counters = Counters()
        self._scheduler = Scheduler(profile, self.counters)
        self._every_token = every_token
        self._timing = profile.timing
        self._slowness = _host_noise(profile.timing.launch_noise, Random(seed))
        self._api_free = -inf
        self._launched = -inf
        self._gpu_free = -inf
        self._inbox: deque[Request] = deque()  # not seen by a step yet
        self._in_flight: deque[_Step] = deque()
        self._outputs: deque[Output] = deque()
        self._coast: _Coast | None = None

    # State

    @property
    def pool(self) -> BlockPool:
        """The KV cache."""
        return self._scheduler.pool

    @property
    def running(self) -> int:
        """Requests in prefill or decoding."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Requests in the scheduler's queue. Like vLLM's gauge, without those that arrived after the last step."""
        return len(self._scheduler.waiting)

    @property
    def pending(self) -> int:
        """Unfinished requests."""
        return len(self._inbox) + self.waiting + self.running

    @property
    def deferred(self) -> int:
        """Waiting requests whose LoRA adapter finds no place beside the running ones."""
        running = {r.adapter for r in self._scheduler.running if r.adapter is not None}
        if len(running) < self.profile.max_loras:
            return 0
        return sum(r.adapter is not None and r.adapter not in running for r in self._scheduler.waiting)

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache in use by running requests. Cached blocks without a user count as free."""
        return 1.0 - self.pool.free / self.pool.usable

    @property
    def running_adapters(self) -> list[str]:
        """LoRA adapters of the running requests."""
        return sorted({r.adapter for r in self._scheduler.running if r.adapter is not None})

    @property
    def waiting_adapters(self) -> list[str]:
        """LoRA adapters of the waiting requests."""
        return sorted({r.adapter for r in self._scheduler.waiting if r.adapter is not None})

    # Input and output

    def submit(self, request: Request, now: float) -> None:
        """A request arrives at ``now``. Raises ValueError if it exceeds the KV cache."""
        if request.output_tokens < 1 or request.prompt_tokens < 1:
            raise ValueError("a request needs at least one prompt token and one output token")
        if request.prompt_tokens + request.output_tokens > self.profile.largest_request:
            raise ValueError("the request is larger than the KV cache")
        self._run(now)
        self._coast = None
        timing = self._timing
        self._api_free = max(self._api_free, now) + timing.accept + timing.accept_token * request.prompt_tokens
        request.arrived_at = now
        request.queued_at = self._api_free + timing.handover
        self._inbox.append(request)

    def abort(self, request: Request, now: float) -> None:
        """The client disconnected: drop the request. A finished or unknown request is ignored."""
        self._run(now)
        self._coast = None
        if not self._scheduler.remove(request):
            if request not in self._inbox:
                return
            self._inbox.remove(request)
        request.epoch += 1
        self.counters.aborted += 1

    def reset_prefix_cache(self, now: float) -> None:
        """Forget every prompt that no running request uses."""
        self._run(now)
        self.pool.reset()

    def next_event(self) -> float:
        """When :meth:`advance` has to be called next; infinity if the engine is idle."""
        due = self._outputs[0].time if self._outputs else inf
        if self._coast is not None:
            return min(due, self._coast.visible[-1])
        if self._in_flight:
            # A finished step may be processed late, as long as its outputs leave in time.
            delivery = self._timing.output if self._in_flight[0].sampled else 0.0
            return min(due, self._visible() + delivery)
        return min(due, self._inbox[0].queued_at) if self._inbox else due

    def advance(self, until: float) -> list[Output]:
        """Let time pass to ``until``; the outputs that left the API server by then, in order."""
        self._run(until)
        outputs = self._outputs
        due = []
        while outputs and outputs[0].time <= until:
            due.append(outputs.popleft())
        return due

    # The engine's loop

    def _run(self, until: float) -> None:
        while True:
            if self._coast is not None and not self._glide(until):
                return
            if self._in_flight:
                now = self._visible()
                if now > until:
                    return
                self._complete(self._in_flight.popleft(), now)
            elif self._inbox:
                now = self._inbox[0].queued_at
                if now > until:
                    return
            else:
                return
            while len(self._in_flight) < PIPELINE_DEPTH:
                now += self._timing.schedule
                step = self._schedule(now)
                if step is None:
                    break
                self._in_flight.append(step)
            if not self._every_token:
                self._foresee()

    def _visible(self) -> float:
        """When the engine has the output of the oldest step: the worker returns it between two launches."""
        steps = self._in_flight
        return max(steps[0].end, steps[1].launched) if len(steps) > 1 else steps[0].end

    def _complete(self, step: _Step, now: float) -> None:
        """Deliver the tokens of a step."""
        timing = self._timing
        live = [request for request, epoch in step.sampled if request.epoch == epoch]
        free = max(self._api_free, now) + timing.output * len(live)
        for request in live:
            if not request.outputs:
                free += timing.first_output_token * request.prompt_tokens
        self._api_free = free
        self.counters.generation_tokens += len(live)
        finished = False
        for request in live:
            request.outputs += 1
            done = request.outputs == request.output_tokens
            self._scheduler.register(request, request.prompt_tokens + request.outputs - 1)
            if request.outputs == 1:
                request.first_token_at = free
                self.counters.first_tokens += 1
                self.counters.first_token_seconds += free - request.arrived_at
                self.counters.prompt_tokens += request.prompt_tokens
                self.counters.cached_tokens += request.cached_tokens
            if done:
                request.finished_at = free
                self._scheduler.release(request)
                self.counters.finished += 1
                finished = True
            if done or self._every_token or request.outputs == 1:
                self._outputs.append(Output(free, request, request.outputs - request.delivered, done))
                request.delivered = request.outputs
        if finished:
            self._scheduler.drop_released()

    def _schedule(self, now: float) -> _Step | None:
        """Schedule and launch the next step; None if there is nothing to compute."""
        while self._inbox and self._inbox[0].queued_at <= now:
            self._scheduler.waiting.append(self._inbox.popleft())
        batch = self._scheduler.schedule(now)
        return None if batch is None else self._launch(batch, now)

    def _launch(self, batch: Batch, now: float) -> _Step:
        """The step of a batch with its times of launch and end (docs/simulator.md has the formula)."""
        self.counters.steps += 1
        timing, prefill = self._timing, batch.prefill
        tokens = self.profile.max_num_batched_tokens - batch.budget
        sequences = len(self._scheduler.running)
        launch = (timing.launch if prefill else timing.launch_decode) + timing.launch_sequence * sequences
        launch = launch * self._slowness[int(now / NOISE_PERIOD) % len(self._slowness)] + batch.loading
        gpu = (
            max(timing.weights, timing.token * tokens)
            + timing.attention * batch.pairs
            + (timing.context_mixed if prefill else timing.context) * batch.context
            + timing.sequence * sequences
        )
        begun = max(now, self._launched)
        self._launched = begun + launch
        self._gpu_free = max(max(begun, self._gpu_free) + gpu, self._launched)
        return _Step(batch.sampled, self._launched, self._gpu_free, not (prefill or batch.idle or batch.preempted))

    # Steps that only decode

    def _foresee(self) -> None:
        """If the next steps only decode for the same requests, compute their times up to the next change."""
        steps = self._in_flight
        if len(steps) < 2 or not (steps[0].steady and steps[1].steady):
            return
        if not len(steps[0].sampled) == len(steps[1].sampled) == len(self._scheduler.running):
            return
        block_size = self.profile.block_size
        running = self._scheduler.running
        ahead = min(r.output_tokens - r.issued for r in running)
        if ahead < 4:
            return
        if sum(-(-(r.computed + ahead) // block_size) - len(r.blocks) for r in running) > self.pool.free:
            return
        timing = self._timing
        sequences = len(running)
        fixed = max(timing.weights, timing.token * sequences) + timing.sequence * sequences
        context = sum(r.computed for r in running)
        arrival = self._inbox[0].queued_at if self._inbox else inf
        launched, end = steps[0].launched, steps[0].end
        next_launched, next_end = steps[1].launched, steps[1].end
        free, output = self._api_free, timing.output * sequences
        launch = timing.launch_decode + timing.launch_sequence * sequences
        schedule, per_token, slowness = timing.schedule, timing.context, self._slowness
        coast = _Coast([], [])
        for _ in range(ahead):
            visible = next_launched if next_launched > end else end
            if visible + schedule >= arrival:
                break
            free = (free if free > visible else visible) + output
            now = visible + schedule
            begun = now if now > next_launched else next_launched
            launched, end = next_launched, next_end
            next_launched = begun + launch * slowness[int(now / NOISE_PERIOD) % len(slowness)]
            next_end = (begun if begun > end else end) + fixed + per_token * context
            next_end = next_end if next_end > next_launched else next_launched
            context += sequences
            coast.visible.append(visible)
            coast.times.append((launched, end, next_launched, next_end, free))
        if coast.visible:
            self._coast = coast

    def _glide(self, until: float) -> bool:
        """Apply the precomputed steps up to ``until``. True when all are applied."""
        coast = self._coast
        assert coast is not None
        done = bisect_right(coast.visible, until)
        passed = done - coast.applied
        if passed:
            first, second = self._in_flight
            first.launched, first.end, second.launched, second.end, self._api_free = coast.times[done - 1]
            self._launched, self._gpu_free = second.launched, second.end
            running = self._scheduler.running
            self.counters.generation_tokens += passed * len(running)
            self.counters.steps += passed
            for request in running:
                request.computed += passed
                request.issued += passed
                request.outputs += passed
                needed = self._scheduler.blocks_for(request.computed) - len(request.blocks)
                if needed > 0:
                    request.blocks += self.pool.allocate(needed)
                self._scheduler.register(request, request.prompt_tokens + request.outputs - 1)
            coast.applied = done
        if done < len(coast.visible):
            return False
        self._coast = None
        return True


def _host_noise(mean: float, random: Random) -> list[float]:
    """Factors on the launch time, one for each :data:`NOISE_PERIOD`: mostly near 1, sometimes much larger.

    The excess has the distribution of a squared exponential variable. Each group of 16 periods has its 16 quantiles in
    random order, so that every engine is equally noisy over a minute.
    """
    quantiles = [log1p(-(i + 0.5) / 16) ** 2 for i in range(16)]
    factors = [1 + mean * value * len(quantiles) / sum(quantiles) for value in quantiles]
    return [factor for _ in range(64) for factor in random.sample(factors, len(factors))]
