"""A prompt as a chain of checkpoints: each is a hash of the prompt up to its position.

Two prompts share checkpoint ``k`` if and only if they are equal up to its position (but for a 64-bit collision, which
costs one badly routed request and nothing else). Checkpoints are at the end of each part (message) and, inside a part,
at distances that grow with the position: dense at the beginning, where prompts branch, sparse further on. A 400 KB
prompt has about 120 of them (``len(build(b"", [PromptPart(bytes(400_000), 400_000)]).hashes)``), and the position at
which two prompts differ is known to within 1/16.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from xxhash import xxh3_64_intdigest

from warmroute.request.inference import PromptPart

MIN_STEP = 128
"""Least distance of two checkpoints inside a part, in bytes."""
MAX_STEP = 8192
"""Greatest distance of two checkpoints, in bytes."""
STEP_SHARE = 16
"""Between the two, the distance is the position divided by this."""
MAX_CHECKPOINTS = 8192
"""Most checkpoints of one prompt; prompts of up to 60 MB have fewer. The rest of a longer prompt is not matched."""
LONG_PART = 16_384
"""Bytes of a part from which on its pieces are hashed through a memoryview. Copying the pieces of shorter parts is
faster."""


def _positions() -> list[int]:
    positions = [MIN_STEP]
    while len(positions) < MAX_CHECKPOINTS:
        last = positions[-1]
        positions.append(last + min(max(last // STEP_SHARE, MIN_STEP), MAX_STEP))
    return positions


POSITIONS = _positions()
"""Positions of checkpoints inside parts. All prompts share these integer objects."""


@dataclass(slots=True)
class Chain:
    """The checkpoints of one prompt, in order.

    ``hashes[k]`` identifies the prompt up to ``ends[k]``, a position in bytes of prompt (an image counts its fixed
    cost).
    """

    hashes: Sequence[int]
    ends: Sequence[int]
    prompt_bytes: int
    """Bytes of the whole prompt."""


EMPTY_CHAIN = Chain((), (), 0)


def build(seed: bytes, parts: Sequence[PromptPart]) -> Chain:
    """The chain of a prompt. Prompts with different seeds share nothing.

    The hash is xxh3-64, chained through its seed argument: no bytes are hashed twice.
    """
    return _continued(xxh3_64_intdigest(seed), [], [], 0, parts)


def build_each(seed: bytes, parts: Sequence[PromptPart], *, head: int, starts: Sequence[int], most: int) -> list[Chain]:
    """The chains of the first ``most`` prompts in ``parts``, which all begin with the first ``head`` parts.

    ``starts`` are the indices at which the second and further prompts go on. The head is hashed once.
    """
    begin = build(seed, parts[:head])
    key = begin.hashes[-1] if begin.hashes else xxh3_64_intdigest(seed)
    bounds = [head, *starts[:most], len(parts)]
    return [
        _continued(key, list(begin.hashes), list(begin.ends), begin.prompt_bytes, parts[start:stop])
        for start, stop in pairwise(bounds[: most + 1])
    ]


def _continued(key: int, hashes: list[int], ends: list[int], position: int, parts: Sequence[PromptPart]) -> Chain:
    """The chain that has come to ``position`` with ``key``, its last hash, and goes on with ``parts``."""
    beginning = position
    upcoming = bisect_right(POSITIONS, position)  # index of the first of POSITIONS beyond `position`
    for data, prompt_bytes in parts:
        end = position + prompt_bytes
        first, upcoming = upcoming, bisect_right(POSITIONS, end, upcoming)
        if prompt_bytes == len(data):
            stops = POSITIONS[first:upcoming]
            if not stops or stops[-1] != end:
                stops.append(end)
            text = data if prompt_bytes < LONG_PART else memoryview(data)
            start = 0
            for checkpoint in stops:
                stop = checkpoint - position
                key = xxh3_64_intdigest(text[start:stop], key)
                hashes.append(key)
                start = stop
            ends += stops
        else:  # a digest in place of an image or a file: one checkpoint, at its end
            key = xxh3_64_intdigest(data, key)
            hashes.append(key)
            ends.append(end)
        position = end
        if len(hashes) > MAX_CHECKPOINTS:
            del hashes[MAX_CHECKPOINTS:], ends[MAX_CHECKPOINTS:]
            return Chain(hashes, ends, beginning + sum([part.prompt_bytes for part in parts]))
    return Chain(hashes, ends, position)


def common_checkpoints(segment: Sequence[int], hashes: Sequence[int], start: int) -> int:
    """How many checkpoints of a segment a chain has from ``start`` on: at least one, and with each all before it."""
    size = len(segment)
    end = start + size
    if end <= len(hashes):
        if hashes[end - 1] == segment[-1]:
            return size
        high = size - 1
    else:
        high = len(hashes) - start
    low = 1
    while low < high:
        middle = (low + high + 1) >> 1
        if segment[middle - 1] == hashes[start + middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
