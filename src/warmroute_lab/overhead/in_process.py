"""Benchmarks inside this process: hash, match, insert and pick, and the memory of the prefix index."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from statistics import median
from time import perf_counter

from warmroute.extproc import subset
from warmroute.extproc.ext_proc_pb2 import Metadata
from warmroute.extproc.headers import SUBSET_KEY, SUBSET_NAMESPACE
from warmroute.observability.recent_decisions import RecentDecisions
from warmroute.picker_options import routing_constants
from warmroute.pool.endpoint import EndpointSpec
from warmroute.pool.pool import Pool
from warmroute.prefix.chain import Chain, build
from warmroute.prefix.index import PrefixIndex
from warmroute.request.inference import InferenceRequest
from warmroute.request.parse import parse
from warmroute.request.rejections import Rejection
from warmroute.routing.router import Router
from warmroute.settings import Settings
from warmroute_lab.overhead.figure import Against, Figure, of_rounds
from warmroute_lab.overhead.options import LARGE, MANY, SMALL
from warmroute_lab.overhead.picker_load import PATH, Chats

MATCH_BUDGET = 150e-6
"""Seconds."""
PICK_BUDGET = 40e-6
"""Seconds."""
SUBSET_BUDGET = 1.2
"""Ratio to a pick without a hint."""
CHECKPOINT_BUDGET = 130.0
"""Bytes."""


def _parsed(chats: Chats) -> InferenceRequest:
    request = parse(PATH, "application/json", chats.next())
    assert not isinstance(request, Rejection)
    return request


def _timed(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


def match_and_insert(rounds: int) -> Figure:
    """Hash a 400 KB prompt, match it while a hundred endpoints hold parts of it, insert it at one of them. Floor: hash."""
    chats = Chats(LARGE)
    index = PrefixIndex()
    holders = [index.open(10**7) for _ in range(MANY)]
    candidates = sum(1 << holder for holder in holders)
    for holder in holders:
        request = _parsed(chats)
        index.insert(holder, build(request.seed, request.parts))
    turns = count()

    def everything(request: InferenceRequest) -> None:
        chain = build(request.seed, request.parts)
        index.match(chain, candidates)
        index.insert(holders[next(turns) % MANY], chain)

    hashing, complete = [], []
    for _ in range(rounds):
        requests = [_parsed(chats) for _ in range(40)]
        hashing.append(median(_timed(lambda r=request: build(r.seed, r.parts)) for request in requests))  # type: ignore[misc]
        complete.append(median(_timed(lambda r=request: everything(r)) for request in requests))  # type: ignore[misc]
    what = f"hash, match and insert, {LARGE / 1000:g} KB, {MANY} endpoints (floor: hash)"
    return of_rounds(what, "s", Against.VALUE, MATCH_BUDGET, floor=hashing, picker=complete)


def pick(rounds: int, rng: random.Random) -> Figure:
    """``Router.pick`` of a small chat while each of a hundred endpoints holds its system prompt. No floor."""
    (seconds,) = _picks(rounds, rng, (None,))
    return Figure(
        what=f"pick over {MANY} endpoints, all of which hold the system prompt",
        unit="s",
        picker=median(seconds),
        result=median(seconds),
        spread=(min(seconds), max(seconds)),
        budget=PICK_BUDGET,
        against=Against.VALUE,
    )


def pick_in_subset(rounds: int, rng: random.Random) -> Figure:
    """Such a pick with a subset hint that names all endpoints, read from the bytes of Envoy's metadata. Floor: without."""
    metadata = Metadata()
    targets = [f"10.0.0.{k}:8000" for k in range(MANY)]
    metadata.filter_metadata[SUBSET_NAMESPACE].update({SUBSET_KEY: targets})
    floor, hinted = _picks(rounds, rng, (None, metadata.SerializeToString()))
    what = f"pick with a subset hint of {MANY} endpoints (floor: without)"
    return of_rounds(what, "s", Against.RATIO, SUBSET_BUDGET, floor=floor, picker=hinted)


def _picks(rounds: int, rng: random.Random, hints: Sequence[bytes | None]) -> list[list[float]]:
    """For each hint, the median seconds of a pick in each round."""
    pool = Pool()
    settings = Settings(routing_strategy="PREFIX_CACHE")
    recent = RecentDecisions(settings.debug_decisions)
    router = Router(pool, routing_constants(settings), rng=rng, now=0.0, listeners=(recent,))
    pool.replace([EndpointSpec("default", f"pod-{k}", f"10.0.0.{k}", 8000) for k in range(MANY)], 0.0)
    chats = Chats(SMALL)
    clock = count()

    def once(request: InferenceRequest, hint: bytes | None) -> None:
        received = subset.hint_of(Metadata.FromString(hint)) if hint is not None else None
        allowed = subset.hinted(received) if received is not None else None
        router.pick(request, next(clock) * 2e-3, allowed=allowed)

    for _ in range(2 * MANY):
        once(_parsed(chats), None)
    seconds: list[list[float]] = [[] for _ in hints]
    for _ in range(rounds):
        for one, hint in zip(seconds, hints, strict=True):
            requests = [_parsed(chats) for _ in range(200)]
            one.append(median(_timed(partial(once, request, hint)) for request in requests))
    return seconds


def index_memory(checkpoints: int, *, shared: bool) -> Figure:
    """Bytes of the index per checkpoint and holder, with each checkpoint held by one endpoint or, if ``shared``, by all."""
    length = 250
    chains = checkpoints // length
    hashes = random.Random(1)

    def chain() -> Chain:
        return Chain(
            [hashes.getrandbits(64) for _ in range(length)], range(1600, 1600 * (length + 1), 1600), 1600 * length
        )

    gc.collect()
    tracemalloc.start()
    try:
        index = PrefixIndex(limit=10 * checkpoints)
        holders = [index.open(10**12) for _ in range(MANY)]
        before, _ = tracemalloc.get_traced_memory()
        if shared:
            for _ in range(chains // MANY):
                one = chain()
                for holder in holders:
                    index.insert(holder, one)
        else:
            for k in range(chains):
                index.insert(holders[k % MANY], chain())
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    held = sum(index.held(holder)[0] for holder in holders)
    size = (after - before) / held
    return Figure(
        what=f"index, per checkpoint and endpoint, held by {f'all {MANY}' if shared else 'one each'}",
        unit="bytes",
        picker=size,
        result=size,
        budget=CHECKPOINT_BUDGET,
        against=Against.VALUE,
    )
