"""vLLM's scheduler: which requests compute which tokens in the next step. WITHOUT IO.

Each step has one token budget for decodes and chunked prefills. Running requests come first; then waiting ones are admitted
first come, first served, with a lookup in the prefix cache. When blocks are short, the latest request is preempted. The
rules are those of vLLM 0.26's V1 scheduler: https://github.com/vllm-project/vllm/blob/main/vllm/v1/core/sched/scheduler.py.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from itertools import count

from warmroute_lab.simulator.blocks import BlockPool
from warmroute_lab.simulator.profile import Profile
from warmroute_lab.simulator.request import Counters, Request


@dataclass(slots=True)
class Batch:
    """The work of one step."""

    budget: int
    """Tokens that it can still take."""
    sampled: list[tuple[Request, int]] = field(default_factory=list)
    """Requests that get a token from the step, with their epochs."""
    prefill: int = 0
    """Prompt tokens."""
    pairs: int = 0
    """Pairs of a prompt token and a token that it attends to."""
    context: int = 0
    """Tokens that the decoded tokens attend to."""
    loading: float = 0.0
    """Seconds of loading LoRA adapters and blocks of the second tier."""
    idle: bool = False
    """A running request has all its tokens computed or in flight."""
    preempted: bool = False

    def sample(self, request: Request) -> None:
        """The request gets a token from the step."""
        request.issued += 1
        self.sampled.append((request, request.epoch))


class Scheduler:
    """The queue, the running requests and the KV cache of one engine."""

    def __init__(self, profile: Profile, counters: Counters) -> None:
        self.pool = BlockPool(profile.num_gpu_blocks, profile.tier_blocks)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._profile = profile
        self._counters = counters
        self._adapters: OrderedDict[str, None] = OrderedDict()  # resident, least recently used first
        self._anonymous = count(-1, -1)

    def schedule(self, now: float) -> Batch | None:
        """The work of the next step; None if there is nothing to compute."""
        limit = self._profile.max_num_batched_tokens
        batch = Batch(limit)
        self._continue_running(batch)
        if not batch.preempted and batch.budget and self.waiting:
            self._admit_waiting(batch, now)
        return None if batch.budget == limit else batch

    def remove(self, request: Request) -> bool:
        """Drop a waiting or running request; False if it is neither."""
        if request.running:
            self.running.remove(request)
            self.release(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        else:
            return False
        return True

    def release(self, request: Request) -> None:
        """Free a request's blocks. :meth:`drop_released` takes it off the running ones."""
        self.pool.release(request.blocks)
        request.blocks = []
        request.running = False

    def drop_released(self) -> None:
        """Take released requests off the running ones."""
        self.running = [request for request in self.running if request.running]

    def register(self, request: Request, tokens: int) -> None:
        """Enter the full blocks among a request's first ``tokens`` tokens into the prefix cache."""
        full, known = tokens // self._profile.block_size, request.registered
        if full > known and self._profile.prefix_caching:
            if len(request.hashes) < full:
                request.hashes = [*request.hashes, *(next(self._anonymous) for _ in range(full - len(request.hashes)))]
            self.pool.register(request.blocks[known:full], request.hashes[known:full])
            request.registered = full

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold that many tokens."""
        return -(-tokens // self._profile.block_size)

    def _continue_running(self, batch: Batch) -> None:
        """Give each running request its next chunk or token. When blocks are short, preempt the latest request."""
        block_size = self._profile.block_size
        running = self.running
        budget, index = batch.budget, 0
        while index < len(running) and budget:
            request = running[index]
            index += 1
            start = request.computed
            if start < request.target:
                tokens = min(request.target - start, budget)
            elif request.issued < request.output_tokens:
                tokens = 1
            else:
                batch.idle = True
                continue
            needed = -(-(start + tokens) // block_size) - len(request.blocks)
            if needed > 0:
                while needed > self.pool.free and len(running) >= index:
                    self._preempt(running[-1])
                    batch.preempted = True
                if len(running) < index:
                    break
                request.blocks += self.pool.allocate(needed)
            budget -= tokens
            if start < request.target:
                self._prefill(request, tokens, batch)
            else:
                request.computed = start + tokens
                batch.context += start
                batch.sample(request)
        batch.budget = budget

    def _admit_waiting(self, batch: Batch, now: float) -> None:
        """Admit waiting requests in order while there is room. Requests whose adapter finds no place are passed over."""
        running, waiting, profile = self.running, self.waiting, self._profile
        deferred: list[Request] = []
        adapters = {request.adapter for request in running if request.adapter is not None}
        while waiting and batch.budget and len(running) < profile.max_num_seqs:
            request = waiting[0]
            full = len(adapters) >= profile.max_loras
            if full and request.adapter is not None and request.adapter not in adapters:
                deferred.append(waiting.popleft())
                continue
            tokens = self._admit(request, batch)
            if not tokens:
                break
            waiting.popleft()
            if request.scheduled_at is None:
                request.scheduled_at = now
            if request.adapter is not None:
                adapters.add(request.adapter)
                batch.loading += self._load_adapter(request.adapter)
            batch.budget -= tokens
            self._prefill(request, tokens, batch)
        waiting.extendleft(reversed(deferred))

    def _admit(self, request: Request, batch: Batch) -> int:
        """Give a waiting request its cached blocks and blocks for its first chunk.

        Returns the tokens of that chunk; 0 if the whole prompt does not fit into the free blocks.
        """
        profile = self._profile
        block_size = profile.block_size
        pool = self.pool
        target = request.prompt_tokens + request.outputs
        limit = min(len(request.hashes), (target - 1) // block_size) if profile.prefix_caching else 0
        hits = pool.match(request.hashes, limit)
        if profile.hybrid:
            hits = pool.up_to_an_end(hits)
        if self.blocks_for(target) - len(hits) + pool.idle_among(hits) > pool.free:
            return 0
        pool.take(hits)
        found = len(hits) * block_size
        loaded = pool.tier_match(request.hashes, len(hits), limit) * block_size
        cached = found + loaded
        batch.loading += profile.timing.tier_token * loaded
        if request.scheduled_at is None:  # vLLM counts lookups of preempted requests in other series
            self._count_lookups(target, found, loaded)
            request.cached_tokens = cached
        tokens = min(target - cached, batch.budget)
        request.target = target
        request.computed = cached
        request.issued = request.outputs
        request.registered = len(hits)
        request.blocks = hits + pool.allocate(self.blocks_for(cached + tokens) - len(hits))
        request.running = True
        self.running.append(request)
        return tokens

    def _count_lookups(self, tokens: int, found: int, loaded: int) -> None:
        counters = self._counters
        if self._profile.prefix_caching:
            counters.prefix_queries += tokens
            counters.prefix_hits += found
        if self._profile.tier_blocks:
            counters.tier_queries += tokens - found
            counters.tier_hits += loaded

    def _prefill(self, request: Request, tokens: int, batch: Batch) -> None:
        """Compute the next ``tokens`` tokens of a prompt. The last ones give the first output token."""
        start = request.computed
        request.computed = computed = start + tokens
        batch.prefill += tokens
        batch.pairs += tokens * start + tokens * tokens // 2
        self.register(request, computed)
        if computed == request.target:
            batch.sample(request)
            if self._profile.hybrid and request.registered:
                self.pool.mark_end(request.hashes[request.registered - 1])

    def _preempt(self, request: Request) -> None:
        """Free a running request's blocks and put it at the head of the queue; it will be computed again."""
        self.running.remove(request)
        self.release(request)
        request.epoch += 1
        self.waiting.appendleft(request)
        self._counters.preemptions += 1

    def _load_adapter(self, adapter: str) -> float:
        """Make an adapter resident; the seconds that it takes."""
        resident = self._adapters
        missing = adapter not in resident
        resident[adapter] = None
        resident.move_to_end(adapter)
        if len(resident) > self._profile.max_loras:
            in_use = {request.adapter for request in self.running}
            del resident[next(name for name in resident if name not in in_use)]
        return self._profile.timing.adapter_load if missing else 0.0
