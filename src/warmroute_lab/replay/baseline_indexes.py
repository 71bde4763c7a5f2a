"""Prefix indexes of the baselines, each with the rules of its project."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence

from warmroute.prefix.index import PrefixIndex, holders_of
from warmroute_lab.replay.trace import TracedRequest
from warmroute_lab.simulator.blocks import Segment


class ExactIndex:
    """The longest cached prefix of each pod, with LRU eviction within the tokens that its engine really keeps.

    It is as exact as an index can be without KV events, and more exact than the projects' own indexes.
    """

    def __init__(self) -> None:
        self._index = PrefixIndex(limit=1 << 62)
        self._slots: dict[int, int] = {}
        self._pods: dict[int, int] = {}
        self._capacity: dict[int, int] = {}

    def add(self, pod: int) -> None:
        """Add a pod with an empty cache."""
        slot = self._index.open(self._capacity.get(pod, 1 << 62))
        self._slots[pod], self._pods[slot] = slot, pod

    def drop(self, pod: int) -> None:
        """The pod's cache is empty again."""
        self._index.close(self._slots[pod])
        self.add(pod)

    def resize(self, pod: int, capacity: int) -> None:
        """Set a pod's capacity in bytes of prompt."""
        self._capacity[pod] = capacity
        self._index.resize(self._slots[pod], capacity)

    def match(self, request: TracedRequest, pods: Iterable[int]) -> dict[int, int]:
        """Cached tokens of the prompt by pod, if not 0. At least one token must be computed."""
        chain, tokens = request.chain, request.prompt_tokens
        candidates = sum(1 << self._slots[pod] for pod in pods)
        return {
            self._pods[holder]: min(chain.ends[depth - 1] * tokens // chain.prompt_bytes, tokens - 1)
            for mask, depth in self._index.match(chain, candidates)
            for holder in holders_of(mask)
        }

    def insert(self, pod: int, request: TracedRequest) -> None:
        """The pod caches the prompt."""
        self._index.insert(self._slots[pod], request.chain)


class HeadFirstIndex:
    """llm-d's approximate index: block to pods, and for each pod an LRU list with a fixed number of blocks.

    A prompt's blocks are inserted head first, so eviction removes the head of the oldest chain, and the rest of it cannot be
    matched any more. Matching stops at the first block without a holder, but counts each pod's blocks across gaps.
    """

    def __init__(self) -> None:
        self._pods: dict[int, set[int]] = {}
        self._used: dict[int, OrderedDict[int, None]] = {}
        self._capacity: dict[int, int] = {}

    def match(self, blocks: Iterable[int]) -> dict[int, int]:
        """Matched blocks by pod."""
        matched: dict[int, int] = {}
        for block in blocks:
            pods = self._pods.get(block)
            if not pods:
                break
            for pod in pods:
                matched[pod] = matched.get(pod, 0) + 1
        return matched

    def insert(self, pod: int, blocks: Iterable[int], capacity: int) -> None:
        """The pod caches the prompt. ``capacity`` in blocks is read at the pod's first insertion only."""
        used = self._used.setdefault(pod, OrderedDict())
        most = self._capacity.setdefault(pod, capacity)
        for block in blocks:
            used[block] = None
            used.move_to_end(block)
            self._pods.setdefault(block, set()).add(pod)
            if len(used) > most:
                evicted, _ = used.popitem(last=False)
                holders = self._pods[evicted]
                holders.discard(pod)
                if not holders:
                    del self._pods[evicted]


class SharedTable:
    """aibrix's table: one LRU list of blocks for all pods, with the pods that each block was sent to.

    It stores pieces, each counted with its number of blocks. Unlike the original, it evicts all blocks of a piece at once.
    """

    def __init__(self, *, blocks: int, block_bytes: int, seconds: float, bytes_per_token: int) -> None:
        """``seconds``: a pod counts as holder of a block for that long after the block was sent to it."""
        self._room, self._seconds = blocks, seconds
        self._blocks_per_token = bytes_per_token / block_bytes
        self._pieces: OrderedDict[int, tuple[float, dict[int, float]]] = OrderedDict()

    def match(self, request: TracedRequest, pods: Collection[int], now: float) -> dict[int, float]:
        """Matched share of the prompt by pod, if not 0. Matching does not count as use."""
        matched: dict[int, float] = {}
        candidates = set(pods)
        for key, end in zip(request.chain.hashes, request.chain.ends, strict=True):
            _, sent = self._pieces.get(key, (0.0, {}))
            candidates &= {pod for pod, at in sent.items() if now - at < self._seconds}
            if not candidates:
                break
            share = end / request.chain.prompt_bytes
            for pod in candidates:
                matched[pod] = share
        return matched

    def insert(self, pod: int, request: TracedRequest, now: float) -> None:
        """The pod caches the prompt. Blocks are used head first, so the head is evicted before the tail."""
        for key, (_, tokens) in zip(request.chain.hashes, request.prompt, strict=True):
            entry = self._pieces.get(key)
            if entry is None:
                blocks = tokens * self._blocks_per_token
                entry = self._pieces[key] = blocks, {}
                self._room -= int(blocks)
            entry[1][pod] = now
            self._pieces.move_to_end(key)
        while self._room < 0:
            _, (blocks, _) = self._pieces.popitem(last=False)
            self._room += int(blocks)


class _Node:
    """A node of :class:`PromptTree`: its children, and for each pod the time of the last use."""

    __slots__ = ("children", "last_pod", "pods", "tokens")

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.children: dict[int, _Node] = {}
        self.pods: dict[int, int] = {}
        self.last_pod = -1


class PromptTree:
    """SGLang's radix tree of prompts, with the pods (tenants) that each node was sent to.

    A match returns one pod: the last pod of the deepest node, or another pod of it. Every ``interval`` seconds, the least
    recently used leaves of pods with more than ``most_tokens`` are evicted.
    """

    def __init__(self, *, most_tokens: int, interval: float, rng: random.Random) -> None:
        self._most, self._interval, self._rng = most_tokens, interval, rng
        self._root = _Node(0)
        self._clock = 0
        self._tokens: dict[int, int] = {}
        self._evict_at = interval

    def match(self, prompt: Sequence[Segment]) -> tuple[int, int]:
        """A pod with the longest prefix, and the prefix's tokens; (-1, 0) without a match."""
        node, matched = self._root, 0
        for identity, tokens in prompt:
            child = node.children.get(identity)
            if child is None or not child.pods:
                break
            node = child
            matched += tokens
        if node is self._root:
            return -1, 0
        if node.last_pod not in node.pods:
            node.last_pod = next(iter(node.pods))
        if self._rng.random() < 1 / 8:
            self._clock += 1
            node.pods[node.last_pod] = self._clock
        return node.last_pod, matched

    def insert(self, pod: int, prompt: Sequence[Segment], now: float) -> None:
        """The pod caches the prompt."""
        self._clock += 1
        node = self._root
        for identity, tokens in prompt:
            child = node.children.get(identity)
            if child is None:
                child = node.children[identity] = _Node(tokens)
            node = child
            if pod not in node.pods:
                self._tokens[pod] = self._tokens.get(pod, 0) + tokens
            node.pods[pod] = self._clock
            node.last_pod = pod
        if now >= self._evict_at:
            self._evict_at = now + self._interval
            for each, tokens in self._tokens.items():
                if tokens > self._most:
                    self._evict(each)

    def drop(self, pod: int) -> None:
        """Remove a pod that left or is unhealthy."""
        for _, node in self._nodes():
            node.pods.pop(pod, None)
        self._tokens.pop(pod, None)

    def _evict(self, pod: int) -> None:
        """Evict the pod's least recently used nodes; the deepest of equally old ones, since only leaves go."""
        held = sorted(
            ((node.pods[pod], -depth, node) for depth, node in self._nodes() if pod in node.pods),
            key=lambda entry: entry[:2],
        )
        for _, _, node in held:
            if self._tokens[pod] <= self._most:
                return
            del node.pods[pod]
            self._tokens[pod] -= node.tokens

    def _nodes(self) -> Iterator[tuple[int, _Node]]:
        """All nodes with their depths."""
        stack = [(1, node) for node in self._root.children.values()]
        while stack:
            depth, node = stack.pop()
            yield depth, node
            stack += [(depth + 1, child) for child in node.children.values()]
