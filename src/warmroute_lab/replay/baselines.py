"""Routing policies of other projects, re-implemented from their sources with their default constants, for comparison.

Each sees what the original sees. Where that is a proxy in the path of requests and responses, its counts are exact and
immediate, which is more than Warmroute's router has. The product does not contain them.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from warmroute.pool.endpoint import EngineState
from warmroute_lab.replay.baseline_indexes import ExactIndex, HeadFirstIndex, PromptTree, SharedTable
from warmroute_lab.replay.policy import Policy
from warmroute_lab.replay.trace import BYTES_PER_TOKEN, TracedRequest
from warmroute_lab.simulator.blocks import hash_segments
from warmroute_lab.simulator.profile import Profile


@dataclass(slots=True)
class _InFlight:
    pod: int
    uncached: int
    waits: bool = True


class Baseline(Policy):
    """Counts what a proxy counts: in-flight requests of each pod, and the prefill tokens of those without a first token."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.pods: list[int] = []
        """The available pods in order of their numbers."""
        self.requests: dict[int, int] = {}
        """In-flight requests of each pod."""
        self.pending: dict[int, int] = {}
        """Prefill tokens of each pod's requests without a first token."""
        self._in_flight: dict[int, _InFlight] = {}

    @abstractmethod
    def decide(self, request: TracedRequest, now: float) -> int:
        """One of :attr:`pods`, which is not empty."""

    def remember(self, request: TracedRequest, pod: int, now: float) -> int:
        """The prompt goes to the pod; returns the tokens that the pod must compute, as far as the policy knows."""
        return request.prompt_tokens

    def choose(self, request: TracedRequest, number: int, now: float) -> int | None:
        if not self.pods:
            return None
        pod = self.decide(request, now)
        uncached = self.remember(request, pod, now)
        self.requests[pod] += 1
        self.pending[pod] += uncached
        self._in_flight[number] = _InFlight(pod, uncached)
        return pod

    def first_token(self, number: int, now: float) -> None:
        entry = self._in_flight[number]
        self.pending[entry.pod] -= entry.uncached
        entry.waits = False

    def finished(self, number: int, now: float) -> None:
        entry = self._in_flight.pop(number)
        self.requests[entry.pod] -= 1
        if entry.waits:
            self.pending[entry.pod] -= entry.uncached

    def joined(self, pod: int, now: float) -> None:
        self.pods = sorted({*self.pods, pod})
        self.requests.setdefault(pod, 0)
        self.pending.setdefault(pod, 0)

    def left(self, pod: int, now: float) -> None:
        self.pods = [each for each in self.pods if each != pod]

    def unreachable(self, pod: int, now: float) -> None:
        self.left(pod, now)

    def restarted(self, pod: int, now: float) -> None:
        self.joined(pod, now)

    def least(self, value: Callable[[int], float], pods: Sequence[int] | None = None) -> int:
        """A pod with the lowest value, at random among equal ones."""
        pods = pods or self.pods
        values = [value(pod) for pod in pods]
        lowest = min(values)
        return self.rng.choice([pod for pod, each in zip(pods, values, strict=True) if each == lowest])


class RoundRobin(Baseline):
    """The pods in turn."""

    turn = 0

    def decide(self, request: TracedRequest, now: float) -> int:
        self.turn += 1
        return self.pods[self.turn % len(self.pods)]


class Random(Baseline):
    """A random pod."""

    def decide(self, request: TracedRequest, now: float) -> int:
        return self.rng.choice(self.pods)


class LeastRequest(Baseline):
    """The pod with the fewest in-flight requests."""

    def decide(self, request: TracedRequest, now: float) -> int:
        return self.least(self.requests.__getitem__)


class PowerOfTwo(Baseline):
    """Of two random pods, the one with fewer in-flight requests: Envoy's least-request balancer."""

    def decide(self, request: TracedRequest, now: float) -> int:
        return self.least(self.requests.__getitem__, self.rng.sample(self.pods, min(2, len(self.pods))))


class _Exact(Baseline):
    """A baseline with an exact prefix index, which is told how many tokens each engine keeps."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.index = ExactIndex()

    def uncached(self, request: TracedRequest) -> dict[int, int]:
        """Tokens of the prompt that each pod would have to compute."""
        matched = self.index.match(request, self.pods)
        return {pod: request.prompt_tokens - matched.get(pod, 0) for pod in self.pods}

    def remember(self, request: TracedRequest, pod: int, now: float) -> int:
        uncached = request.prompt_tokens - self.index.match(request, (pod,)).get(pod, 0)
        self.index.insert(pod, request)
        return uncached

    def joined(self, pod: int, now: float) -> None:
        if pod not in self.requests:
            self.index.add(pod)
        super().joined(pod, now)

    def told(self, pod: int, profile: Profile) -> None:
        self.index.resize(pod, profile.kept_tokens * BYTES_PER_TOKEN)

    def restarted(self, pod: int, now: float) -> None:
        self.index.drop(pod)
        super().restarted(pod, now)


class LongestPrefix(_Exact):
    """The pod with the longest cached prefix if that is more than half of the prompt; otherwise the fewest requests."""

    THRESHOLD = 0.5

    def decide(self, request: TracedRequest, now: float) -> int:
        uncached = self.uncached(request)
        least = min(uncached.values())
        if request.prompt_tokens - least > self.THRESHOLD * request.prompt_tokens:
            return self.least(self.requests.__getitem__, [pod for pod in self.pods if uncached[pod] == least])
        return self.least(self.requests.__getitem__)


class Mooncake(_Exact):
    """Mooncake's Conductor (FAST'25, algorithm 1) without transfers between nodes: the least predicted TTFT.

    TTFT is the pending prefill of the pod plus the uncached tokens of this prompt, both in tokens.
    """

    def decide(self, request: TracedRequest, now: float) -> int:
        uncached = self.uncached(request)
        return self.least(lambda pod: uncached[pod] + self.pending[pod])


class LMetric(_Exact):
    """LMetric (OSDI'26), the default of vLLM's kv_aware router: (uncached + pending prefill tokens) x (requests + 1)."""

    def decide(self, request: TracedRequest, now: float) -> int:
        uncached = self.uncached(request)
        return self.least(lambda pod: (uncached[pod] + self.pending[pod]) * (self.requests[pod] + 1))


class LMetricUncached(_Exact):
    """LMetric's other form (SGLang's lmetric policy): uncached tokens x (requests + 1).

    Ties: fewest requests, then least pending prefill, then the first pod.
    """

    def decide(self, request: TracedRequest, now: float) -> int:
        uncached = self.uncached(request)
        load, work = self.requests, self.pending
        return min(self.pods, key=lambda pod: (uncached[pod] * (load[pod] + 1), load[pod], work[pod], pod))


class _LLMD(Baseline):
    """llm-d-router with its approximate prefix index; scrapes every 50 ms.

    The index has blocks of 64 tokens of four bytes, and as many of them as the engine has blocks of 16 tokens: four times
    its capacity.
    """

    busy_interval = idle_interval = 0.05
    BLOCK_TOKENS = 64
    MOST_BLOCKS = 131_072 // BLOCK_TOKENS
    DEFAULT_CAPACITY = 31_250
    ENGINE_BLOCK_TOKENS = 16

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.index = HeadFirstIndex()
        self.states: dict[int, EngineState] = {}
        self._blocks: tuple[TracedRequest | None, Sequence[int]] = (None, ())

    def blocks(self, request: TracedRequest) -> Sequence[int]:
        """Hashes of the prompt's blocks, including a partial last one."""
        if self._blocks[0] is not request:
            rest = -request.prompt_tokens % self.BLOCK_TOKENS
            padded = (*request.prompt, (-1, rest)) if rest else request.prompt
            self._blocks = request, hash_segments(padded, self.BLOCK_TOKENS)[: self.MOST_BLOCKS]
        return self._blocks[1]

    def matched(self, request: TracedRequest) -> dict[int, float]:
        """Matched blocks over all blocks of the prompt, by pod, if not 0."""
        blocks = self.blocks(request)
        return {pod: count / len(blocks) for pod, count in self.index.match(blocks).items()}

    def remember(self, request: TracedRequest, pod: int, now: float) -> int:
        state = self.states.get(pod)
        capacity = state.capacity_tokens // self.ENGINE_BLOCK_TOKENS if state and state.capacity_tokens else None
        self.index.insert(pod, self.blocks(request), capacity or self.DEFAULT_CAPACITY)
        return request.prompt_tokens

    def observed(self, pod: int, state: EngineState, now: float) -> None:
        self.states[pod] = state


class LLMDBlend(_LLMD):
    """llm-d's bare chart: prefix 3, queue 2, KV cache utilization 2; scores are 0 to 1, the queue's min-max normalised."""

    def scores(self, request: TracedRequest) -> dict[int, float]:
        """The score of each pod; the highest wins."""
        matched = self.matched(request)
        waiting = {pod: self.states[pod].waiting if pod in self.states else 0 for pod in self.pods}
        most, least = max(waiting.values()), min(waiting.values())

        def score(pod: int) -> float:
            queue = (most - waiting[pod]) / (most - least) if most > least else 1.0
            kv_usage = self.states[pod].kv_usage if pod in self.states else 0.0
            return 3 * matched.get(pod, 0.0) + 2 * queue + 2 * (1 - kv_usage)

        return {pod: score(pod) for pod in self.pods}

    def decide(self, request: TracedRequest, now: float) -> int:
        scores = self.scores(request)
        return self.least(lambda pod: -scores[pod])


class LLMDNoHitLRU(LLMDBlend):
    """The blend with no-hit-lru-scorer 2: a prompt that no pod holds goes to the pod that longest ago got such a prompt."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._oldest_first: list[int] = []

    def decide(self, request: TracedRequest, now: float) -> int:
        scores = self.scores(request)
        if any(pod in self.pods for pod in self.matched(request)):
            return self.least(lambda pod: -scores[pod])
        order = [pod for pod in self._oldest_first if pod in scores]
        order = [pod for pod in self.pods if pod not in order] + order
        ranks = {pod: 1 - rank / max(1, len(order) - 1) for rank, pod in enumerate(order)}
        pod = self.least(lambda pod: -(scores[pod] + 2 * ranks[pod]))
        self._oldest_first = [each for each in self._oldest_first if each != pod] + [pod]
        return pod


class LLMDAffinity(_LLMD):
    """llm-d's guide "optimized baseline": prefix-cache-affinity-filter, then token-load-scorer.

    Of the pods that hold at least :data:`THRESHOLD` of the prompt: the one with the fewest in-flight uncached tokens, this
    prompt's included. All pods count if none holds as much, or if the least loaded holder has more than ``PEAK_PREFILL *
    PENALTY`` such tokens more than the least loaded other. Tokens are in flight until the response's first chunk.
    """

    THRESHOLD = 0.80
    PEAK_PREFILL = 15_928.0
    """Tokens per second; the guide's example."""
    PENALTY = 18.0
    """Seconds by which the TTFT on a pod that holds the prompt may exceed that of another pod; the guide's example."""

    def decide(self, request: TracedRequest, now: float) -> int:
        matched = self.matched(request)
        candidates = self.pods
        sticky = [pod for pod in self.pods if matched.get(pod, 0.0) >= self.THRESHOLD]
        others = [pod for pod in self.pods if pod not in sticky]
        if sticky and not others:
            candidates = sticky
        elif sticky:
            excess = min(self.pending[pod] for pod in sticky) - min(self.pending[pod] for pod in others)
            candidates = sticky if excess <= self.PEAK_PREFILL * self.PENALTY else self.pods
        tokens = request.prompt_tokens
        return self.least(lambda pod: self.pending[pod] + tokens * (1 - matched.get(pod, 0.0)), candidates)

    def remember(self, request: TracedRequest, pod: int, now: float) -> int:
        uncached = round(request.prompt_tokens * (1 - self.matched(request).get(pod, 0.0)))
        super().remember(request, pod, now)
        return uncached


class LLMDTuned(LLMDAffinity):
    """The guide's configuration measured for the card: a penalty of 5 s at the engine's own prefill rate.

    The rate is the highest that any engine has shown; until one has, 40,000 tokens per second, one H100's with a 7B model.
    """

    PENALTY = 5.0
    PEAK_PREFILL = 40_000.0

    def observed(self, pod: int, state: EngineState, now: float) -> None:
        super().observed(pod, state, now)
        rates = [each.prefill_rate for each in self.states.values() if each.prefill_rate]
        if rates:
            self.PEAK_PREFILL = max(rates)


class SGLang(Baseline):
    """SGLang's cache_aware: the fewest requests if the pods are unbalanced; otherwise the longest match above a threshold.

    The constants are the defaults of its command line. Ties go to the first pod, as in its source.
    """

    THRESHOLD, BALANCE_ABS, BALANCE_REL = 0.3, 64, 1.5
    MOST_TOKENS = (1 << 26) // BYTES_PER_TOKEN
    EVICTION_INTERVAL = 60.0

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.tree = PromptTree(most_tokens=self.MOST_TOKENS, interval=self.EVICTION_INTERVAL, rng=rng)

    def decide(self, request: TracedRequest, now: float) -> int:
        loads = [self.requests[pod] for pod in self.pods]
        least = self.pods[loads.index(min(loads))]
        if max(loads) - min(loads) > self.BALANCE_ABS and max(loads) > self.BALANCE_REL * min(loads):
            return least
        pod, matched = self.tree.match(request.prompt)
        if matched <= self.THRESHOLD * request.prompt_tokens:
            return least
        return pod if pod in self.pods else self.pods[0]

    def remember(self, request: TracedRequest, pod: int, now: float) -> int:
        self.tree.insert(pod, request.prompt, now)
        return request.prompt_tokens

    def left(self, pod: int, now: float) -> None:
        super().left(pod, now)
        self.tree.drop(pod)


class Aibrix(Baseline):
    """aibrix's prefix-cache: the fewest requests if they differ by more than 8; otherwise the longest match on a pod whose
    requests do not exceed the mean by more than one standard deviation.

    The constants are those of its code, not of its README.
    """

    IMBALANCE, DEVIATIONS = 8, 1.0

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.table = SharedTable(blocks=200_000, block_bytes=4, seconds=1200.0, bytes_per_token=BYTES_PER_TOKEN)

    def decide(self, request: TracedRequest, now: float) -> int:
        loads = {pod: self.requests[pod] for pod in self.pods}
        low = min(loads.values())
        candidates = self.pods
        if max(loads.values()) - low > self.IMBALANCE:
            candidates = [pod for pod in self.pods if loads[pod] == low]
        matched = self.table.match(request, candidates, now)
        limit = fmean(loads.values()) + self.DEVIATIONS * pstdev(loads.values())
        for pod in sorted(matched, key=lambda pod: (-matched[pod], loads[pod], pod)):
            if loads[pod] <= limit:
                return pod
        return self.least(loads.__getitem__, candidates)

    def remember(self, request: TracedRequest, pod: int, now: float) -> int:
        self.table.insert(pod, request, now)
        return request.prompt_tokens


BASELINES: dict[str, type[Baseline]] = {
    "round-robin": RoundRobin,
    "random": Random,
    "least-request": LeastRequest,
    "power-of-two": PowerOfTwo,
    "longest-prefix": LongestPrefix,
    "llm-d": LLMDAffinity,
    "llm-d-tuned": LLMDTuned,
    "llm-d-no-hit-lru": LLMDNoHitLRU,
    "llm-d-3-2-2": LLMDBlend,
    "sglang": SGLang,
    "aibrix": Aibrix,
    "mooncake": Mooncake,
    "lmetric": LMetric,
    "lmetric-uncached": LMetricUncached,
}
"""The baselines by name."""
