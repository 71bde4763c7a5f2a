"""A vLLM engine in virtual time, WITHOUT IO: the caller passes the time in and gets outputs with their times back.

What is modelled is what a router can notice: one token budget for each step, shared by decodes and chunked prefills;
first come, first served admission with the cache looked up at admission; the block pool of
:mod:`warmroute_lab.simulator.blocks`; preemption; asynchronous scheduling, where a step is scheduled while the one before it
runs; and a single-threaded API server before and behind the engine. Times come from the profile's
:class:`~warmroute_lab.simulator.profile.Timing`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf, log1p
from random import Random

from warmroute_lab.simulator.blocks import BlockPool
from warmroute_lab.simulator.profile import Profile

PIPELINE_DEPTH = 2
"""Steps in flight at once: vLLM's asynchronous scheduling."""
NOISE_PERIOD = 0.5
"""Seconds for which a host stays as slow as it is."""


@dataclass(slots=True, eq=False)
class Request:
    """One request on one engine: what it asks, and how far it is. Times are in seconds of the caller's time."""

    id: str
    prompt_tokens: int
    output_tokens: int
    """How many tokens will be generated; at least 1."""
    hashes: Sequence[int] = ()
    """Hashes of the full blocks of the prompt, or of prompt and output. Blocks beyond count as unique."""
    adapter: str | None = None
    """LoRA adapter; it must also be part of the hashes' seed."""

    cached_tokens: int = field(default=0, init=False)
    """Prompt tokens found in the cache at the first admission."""
    outputs: int = field(default=0, init=False)
    """Tokens generated so far."""
    arrived_at: float = field(default=0.0, init=False)
    queued_at: float = field(default=0.0, init=False)
    """When the engine could first see it."""
    scheduled_at: float | None = field(default=None, init=False)
    first_token_at: float | None = field(default=None, init=False)
    """When the first token left the API server."""
    finished_at: float | None = field(default=None, init=False)

    _computed: int = field(default=0, init=False)  # tokens in the KV cache, steps in flight included
    _target: int = field(default=0, init=False)  # tokens to prefill before decoding
    _issued: int = field(default=0, init=False)  # outputs, steps in flight included
    _delivered: int = field(default=0, init=False)
    _blocks: list[int] = field(default_factory=list, init=False)
    _registered: int = field(default=0, init=False)  # blocks that have their hash
    _epoch: int = field(default=0, init=False)  # counts preemptions; outputs of an older epoch are void
    _running: bool = field(default=False, init=False)


@dataclass(frozen=True, slots=True)
class Output:
    """Tokens of one request that left the API server at ``time``."""

    time: float
    request: Request
    tokens: int
    finished: bool


@dataclass(slots=True)
class Counters:
    """Totals since the start."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt tokens, those found in the cache at the first admission."""
    prefix_queries: int = 0
    """Tokens looked up in the prefix cache."""
    prefix_hits: int = 0
    preemptions: int = 0
    steps: int = 0
    first_tokens: int = 0
    """Requests that got their first token."""
    finished: int = 0
    aborted: int = 0


@dataclass(slots=True)
class _Step:
    """A scheduled step. ``sampled`` are the requests that get a token from it, with their epochs."""

    sampled: list[tuple[Request, int]]
    launched: float
    end: float
    steady: bool  # the next step will be the same with one token more for each request


@dataclass(slots=True)
class _Draft:
    """A step that is being made up."""

    budget: int
    """Tokens that it can still take."""
    sampled: list[tuple[Request, int]] = field(default_factory=list)
    prefill: int = 0
    """Prompt tokens in it."""
    pairs: int = 0
    """Pairs of a prompt token and one that it attends to."""
    context: int = 0
    """Tokens that the decoded ones attend to."""
    load: float = 0.0
    """Seconds of loading adapters."""
    idle: bool = False
    """A running request has nothing to do but to be handed out."""
    preempted: bool = False

    def sample(self, request: Request) -> None:
        """The request gets a token from the step."""
        request._issued += 1
        self.sampled.append((request, request._epoch))


@dataclass(slots=True)
class _Coast:
    """Steps foreseen while nothing but decoding happens: what holds after the first ``i + 1`` of them."""

    visible: list[float]
    times: list[tuple[float, float, float, float, float]]  # launched, end of the two in flight; API server free
    applied: int = 0


class Engine:
    """One engine. Time never goes back: each ``now`` and ``until`` must be at least the one before."""

    def __init__(self, profile: Profile, *, every_token: bool = True, seed: int = 0) -> None:
        """``every_token=False`` reports first and last tokens only, and passes quickly over steps that only decode.

        ``seed`` decides when the host is slow, if the profile says that it is at times.
        """
        self.profile = profile
        self.counters = Counters()
        self.pool = BlockPool(profile.num_gpu_blocks)
        self._every_token = every_token
        self._timing = profile.timing
        self._slowness = _host_noise(profile.timing.launch_noise, Random(seed))
        self._api_free = -inf
        self._launched = -inf
        self._gpu_free = -inf
        self._inbox: deque[Request] = deque()  # with the API server, or with the engine since its last step
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._in_flight: deque[_Step] = deque()
        self._outputs: deque[Output] = deque()
        self._adapters: OrderedDict[str, None] = OrderedDict()  # resident, least recently used first
        self._anonymous = count(-1, -1)
        self._coast: _Coast | None = None

    # What a metrics page tells

    @property
    def running(self) -> int:
        """Requests being prefilled or decoded."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests in the scheduler's queue. Like vLLM's gauge, without those that no step has seen yet."""
        return len(self._waiting)

    @property
    def pending(self) -> int:
        """Requests submitted and not finished."""
        return len(self._inbox) + len(self._waiting) + len(self._running)

    @property
    def deferred(self) -> int:
        """Of the waiting requests, those whose LoRA adapter finds no place beside the running ones."""
        running = {r.adapter for r in self._running if r.adapter is not None}
        if len(running) < self.profile.max_loras:
            return 0
        return sum(r.adapter is not None and r.adapter not in running for r in self._waiting)

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache that running requests use; what is merely cached counts as free."""
        return 1.0 - self.pool.free / self.pool.usable

    @property
    def running_adapters(self) -> list[str]:
        """LoRA adapters of the running requests."""
        return sorted({r.adapter for r in self._running if r.adapter is not None})

    @property
    def waiting_adapters(self) -> list[str]:
        """LoRA adapters of the waiting requests."""
        return sorted({r.adapter for r in self._waiting if r.adapter is not None})

    # What a driver calls

    def submit(self, request: Request, now: float) -> None:
        """A request's bytes arrive at ``now``. Raises ValueError if it can never fit."""
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
        """The client is gone: drop the request wherever it is. A request that is finished or unknown is ignored."""
        self._run(now)
        self._coast = None
        if request._running:
            self._running.remove(request)
            self._leave(request)
        elif request in self._waiting:
            self._waiting.remove(request)
        elif request in self._inbox:
            self._inbox.remove(request)
        else:
            return
        request._epoch += 1
        self.counters.aborted += 1

    def next_event(self) -> float:
        """When :meth:`advance` will next have something to do; infinity if the engine is idle."""
        due = self._outputs[0].time if self._outputs else inf
        if self._coast is not None:
            return min(due, self._coast.visible[-1])
        if self._in_flight:
            # Steps that are over are worked off late just as well; only their outputs must leave in time.
            delivery = self._timing.output if self._in_flight[0].sampled else 0.0
            return min(due, self._visible() + delivery)
        return min(due, self._inbox[0].queued_at) if self._inbox else due

    def advance(self, until: float) -> list[Output]:
        """Let time pass to ``until``; what left the API server by then, in order."""
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
        """When the engine gets the output of the oldest step: the worker hands it over between two launches."""
        steps = self._in_flight
        return max(steps[0].end, steps[1].launched) if len(steps) > 1 else steps[0].end

    def _complete(self, step: _Step, now: float) -> None:
        """Hand out a step's tokens."""
        timing = self._timing
        live = [request for request, epoch in step.sampled if request._epoch == epoch]
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
            self._register(request, request.prompt_tokens + request.outputs - 1)
            if request.outputs == 1:
                request.first_token_at = free
                self.counters.first_tokens += 1
                self.counters.prompt_tokens += request.prompt_tokens
                self.counters.cached_tokens += request.cached_tokens
            if done:
                request.finished_at = free
                self._leave(request)
                self.counters.finished += 1
                finished = True
            if done or self._every_token or request.outputs == 1:
                self._outputs.append(Output(free, request, request.outputs - request._delivered, done))
                request._delivered = request.outputs
        if finished:
            self._running = [request for request in self._running if request._running]

    def _schedule(self, now: float) -> _Step | None:
        """Make up the next step; None if there is nothing to compute."""
        while self._inbox and self._inbox[0].queued_at <= now:
            self._waiting.append(self._inbox.popleft())
        limit = self.profile.max_num_batched_tokens
        draft = _Draft(limit)
        self._continue_running(draft)
        if not draft.preempted and draft.budget and self._waiting:
            self._admit_waiting(draft, now)
        if draft.budget == limit:
            return None
        return self._launch(draft, limit - draft.budget, now)

    def _continue_running(self, draft: _Draft) -> None:
        """Give each running request its next chunk or token; where blocks are short, the latest is preempted."""
        block_size = self.profile.block_size
        running = self._running
        budget, index = draft.budget, 0
        while index < len(running) and budget:
            request = running[index]
            index += 1
            start = request._computed
            if start < request._target:
                tokens = min(request._target - start, budget)
            elif request._issued < request.output_tokens:
                tokens = 1
            else:
                draft.idle = True
                continue
            needed = -(-(start + tokens) // block_size) - len(request._blocks)
            if needed > 0:
                while needed > self.pool.free and len(running) >= index:
                    self._preempt(running[-1])
                    draft.preempted = True
                if len(running) < index:
                    break
                request._blocks += self.pool.allocate(needed)
            budget -= tokens
            if start < request._target:
                self._prefill(request, tokens, draft)
            else:
                request._computed = start + tokens
                draft.context += start
                draft.sample(request)
        draft.budget = budget

    def _admit_waiting(self, draft: _Draft, now: float) -> None:
        """Admit waiting requests in turn, as long as there is room; those pass whose adapter has none."""
        running, waiting, profile = self._running, self._waiting, self.profile
        deferred: list[Request] = []
        adapters = {request.adapter for request in running if request.adapter is not None}
        while waiting and draft.budget and len(running) < profile.max_num_seqs:
            request = waiting[0]
            full = len(adapters) >= profile.max_loras
            if full and request.adapter is not None and request.adapter not in adapters:
                deferred.append(waiting.popleft())
                continue
            tokens = self._admit(request, draft.budget)
            if not tokens:
                break
            waiting.popleft()
            if request.scheduled_at is None:
                request.scheduled_at = now
            if request.adapter is not None:
                adapters.add(request.adapter)
                draft.load += self._load_adapter(request.adapter)
            draft.budget -= tokens
            self._prefill(request, tokens, draft)
        waiting.extendleft(reversed(deferred))

    def _prefill(self, request: Request, tokens: int, draft: _Draft) -> None:
        """Compute so many more tokens of a prompt; its first token comes with the last of them."""
        start = request._computed
        request._computed = computed = start + tokens
        draft.prefill += tokens
        draft.pairs += tokens * start + tokens * tokens // 2
        self._register(request, computed)
        if computed == request._target:
            draft.sample(request)

    def _launch(self, draft: _Draft, tokens: int, now: float) -> _Step:
        """The step of so many tokens, and when it is launched and ends."""
        self.counters.steps += 1
        timing, prefill = self._timing, draft.prefill
        sequences = len(self._running)
        launch = (timing.launch if prefill else timing.launch_decode) + timing.launch_sequence * sequences
        launch = launch * self._slowness[int(now / NOISE_PERIOD) % len(self._slowness)] + draft.load
        gpu = (
            max(timing.weights, timing.token * tokens)
            + timing.attention * draft.pairs
            + (timing.context_mixed if prefill else timing.context) * draft.context
            + timing.sequence * sequences
        )
        begun = max(now, self._launched)
        self._launched = begun + launch
        self._gpu_free = max(max(begun, self._gpu_free) + gpu, self._launched)
        return _Step(draft.sampled, self._launched, self._gpu_free, not (prefill or draft.idle or draft.preempted))

    def _admit(self, request: Request, budget: int) -> int:
        """Give a waiting request its cached blocks and room for its first chunk; 0 if its prompt does not fit yet."""
        block_size = self.profile.block_size
        pool = self.pool
        target = request.prompt_tokens + request.outputs
        hits = pool.match(request.hashes, min(len(request.hashes), (target - 1) // block_size))
        if self._blocks_for(target) - len(hits) + pool.idle_among(hits) > pool.free:
            return 0
        pool.take(hits)
        cached = len(hits) * block_size
        if request.scheduled_at is None:  # vLLM counts those of preempted requests apart
            self.counters.prefix_queries += target
            self.counters.prefix_hits += cached
            request.cached_tokens = cached
        tokens = min(target - cached, budget)
        request._target = target
        request._computed = cached
        request._issued = request.outputs
        request._registered = len(hits)
        request._blocks = hits + pool.allocate(self._blocks_for(cached + tokens) - len(hits))
        request._running = True
        self._running.append(request)
        return tokens

    def _register(self, request: Request, tokens: int) -> None:
        """Enter the full blocks among a request's first ``tokens`` tokens into the prefix cache."""
        full, known = tokens // self.profile.block_size, request._registered
        if full > known:
            if len(request.hashes) < full:
                request.hashes = [*request.hashes, *(next(self._anonymous) for _ in range(full - len(request.hashes)))]
            self.pool.register(request._blocks[known:full], request.hashes[known:full])
            request._registered = full

    def _preempt(self, request: Request) -> None:
        """Take a running request's blocks away; it will be recomputed, before all that wait."""
        self._running.remove(request)
        self._leave(request)
        request._epoch += 1
        self._waiting.appendleft(request)
        self.counters.preemptions += 1

    def _leave(self, request: Request) -> None:
        self.pool.release(request._blocks)
        request._blocks = []
        request._running = False

    def _load_adapter(self, adapter: str) -> float:
        """Seconds that it takes to make an adapter resident."""
        resident = self._adapters
        missing = adapter not in resident
        resident[adapter] = None
        resident.move_to_end(adapter)
        if len(resident) > self.profile.max_loras:
            in_use = {request.adapter for request in self._running}
            del resident[next(name for name in resident if name not in in_use)]
        return self._timing.adapter_load if missing else 0.0

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.profile.block_size)

    # Passing over steps that only decode

    def _foresee(self) -> None:
        """If the steps to come only decode for the same requests, work out their times up to the next change."""
        steps = self._in_flight
        if len(steps) < 2 or not (steps[0].steady and steps[1].steady):
            return
        if not len(steps[0].sampled) == len(steps[1].sampled) == len(self._running):
            return
        block_size = self.profile.block_size
        running = self._running
        ahead = min(r.output_tokens - r._issued for r in running)
        if ahead < 4:
            return
        if sum(-(-(r._computed + ahead) // block_size) - len(r._blocks) for r in running) > self.pool.free:
            return
        timing = self._timing
        sequences = len(running)
        fixed = max(timing.weights, timing.token * sequences) + timing.sequence * sequences
        context = sum(r._computed for r in running)
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
        """Apply the foreseen steps up to ``until``; true when they are used up."""
        coast = self._coast
        assert coast is not None
        done = bisect_right(coast.visible, until)
        passed = done - coast.applied
        if passed:
            first, second = self._in_flight
            first.launched, first.end, second.launched, second.end, self._api_free = coast.times[done - 1]
            self._launched, self._gpu_free = second.launched, second.end
            running = self._running
            self.counters.generation_tokens += passed * len(running)
            self.counters.steps += passed
            for request in running:
                request._computed += passed
                request._issued += passed
                request.outputs += passed
                needed = self._blocks_for(request._computed) - len(request._blocks)
                if needed > 0:
                    request._blocks += self.pool.allocate(needed)
                self._register(request, request.prompt_tokens + request.outputs - 1)
            coast.applied = done
        if done < len(coast.visible):
            return False
        self._coast = None
        return True


def _host_noise(mean: float, random: Random) -> list[float]:
    """Factors on the launch time, one for each :data:`NOISE_PERIOD`: mostly near 1, at times far above.

    The excess is distributed as the square of an exponential variable. Each run of 16 periods gets the 16 quantiles of it
    in random order, so that a minute of one engine is as noisy as a minute of another.
    """
    quantiles = [log1p(-(i + 0.5) / 16) ** 2 for i in range(16)]
    factors = [1 + mean * value * len(quantiles) / sum(quantiles) for value in quantiles]
    return [factor for _ in range(64) for factor in random.sample(factors, len(factors))]
