"""A prompt as a chain of checkpoints: hashes that each stand for everything before them.

Two prompts share checkpoint ``k`` if and only if they are equal up to its position (but for a 64-bit collision, which costs
one badly routed request and nothing else). Checkpoints stand at the end of each part (message) and, inside a part, at
distances that grow with the position: dense where prompts branch, sparse where a prompt is long. A 400 KB prompt has about
250 of them, and what lies between two is known to within 1/32 of its position.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from warmroute.request.inference import PromptPart

MIN_STEP = 64
"""Least distance of two checkpoints inside a part, in bytes."""
MAX_STEP = 8192
"""Greatest distance of two checkpoints, in bytes."""
STEP_SHARE = 32
"""Between the two, the distance is the position divided by this."""
MAX_CHECKPOINTS = 8192
"""Checkpoints of one prompt; what comes after them is not matched. A bound for absurd prompts only."""


def _positions() -> list[int]:
    positions = [MIN_STEP]
    while len(positions) < MAX_CHECKPOINTS:
        last = positions[-1]
        positions.append(last + min(max(last // STEP_SHARE, MIN_STEP), MAX_STEP))
    return positions


POSITIONS = _positions()
"""Where checkpoints stand inside parts. All prompts share them, and so the integers too."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The checkpoints of one prompt, in order.

    ``hashes[k]`` identifies the prompt up to ``ends[k]``, a position in bytes of weight; ``weight`` is the whole prompt's.
    """

    hashes: Sequence[int]
    ends: Sequence[int]
    weight: int


EMPTY_CHAIN = Chain((), (), 0)


def build(seed: bytes, parts: Sequence[PromptPart]) -> Chain:
    """The chain of a prompt. Prompts with different seeds share nothing.

    The hash is xxh3-64, chained through its seed argument: no bytes are copied or hashed twice.
    """
    key = xxh3_64_intdigest(seed)
    hashes: list[int] = []
    ends: list[int] = []
    position = 0
    for data, weight in parts:
        end = position + weight
        start = 0
        if weight == len(data):  # else a digest that stands for something larger: one checkpoint, at its end
            first = bisect_right(POSITIONS, position)
            inside = POSITIONS[first : bisect_left(POSITIONS, end, first)]
            for checkpoint in inside:
                stop = checkpoint - position
                key = xxh3_64_intdigest(data[start:stop], key)
                hashes.append(key)
                start = stop
            ends += inside
        if weight:
            key = xxh3_64_intdigest(data[start:], key)
            hashes.append(key)
            ends.append(end)
        position = end
        if len(hashes) > MAX_CHECKPOINTS:
            break
    if len(hashes) > MAX_CHECKPOINTS:
        del hashes[MAX_CHECKPOINTS:], ends[MAX_CHECKPOINTS:]
    return Chain(hashes, ends, sum(part.weight for part in parts))
