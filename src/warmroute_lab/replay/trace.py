"""Requests to replay, read from trace files.

A prompt is a sequence of *pieces*, each with an identity and a length in tokens. Prompts share a prefix if their first
pieces are equal, so a trace needs no text. A piece has at most :data:`PIECE` tokens; the router sees cached prefixes in
whole pieces.
"""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from math import inf
from pathlib import Path

from warmroute.errors import ConfigurationError
from warmroute.prefix.chain import Chain, build
from warmroute.request.inference import InferenceRequest, PromptPart
from warmroute_lab.load.conversations import read_conversations
from warmroute_lab.simulator.blocks import Segment, hash_segments

PIECE = 512
"""Most tokens of a piece: the block size of Mooncake's traces."""
BYTES_PER_TOKEN = 4
"""Bytes of text per token."""
MOONCAKE_BUCKET = 3.0
"""Mooncake's timestamps are rounded down to multiples of this, in seconds."""
SHAREGPT_RATE = 10.0
"""Conversations of a ShareGPT file that begin per second at a speedup of 1."""
SHAREGPT_PAUSE = 10.0
"""Mean seconds between an answer and the next question of a ShareGPT conversation."""
SHAREGPT_ANSWER = 200
"""Tokens of an answer whose length is not in the file."""


@dataclass(eq=False)
class TracedRequest:
    """One request. Lengths are in tokens, times in seconds."""

    at: float
    """Earliest time of sending from the start of the trace; the speedup divides it."""
    prompt: tuple[Segment, ...]
    output_tokens: int
    answer: tuple[Segment, ...] = ()
    """The generated tokens, if a later prompt contains them."""
    after: int | None = None
    """Number of the request that must be answered before this one is sent."""
    pause: float = 0.0
    """Least time between the end of that answer and this request. The speedup does not change it."""

    @cached_property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return sum(tokens for _, tokens in self.prompt)

    @cached_property
    def inference(self) -> InferenceRequest:
        """The request as the router sees it: one part per piece.

        A part's content has nine bytes, which is no multiple of :data:`BYTES_PER_TOKEN`: the chain must not take it for text
        of the part's length and put checkpoints inside.
        """
        parts = tuple(
            PromptPart(identity.to_bytes(9, "big", signed=True), tokens * BYTES_PER_TOKEN)
            for identity, tokens in self.prompt
        )
        return InferenceRequest(parts=parts, prompt_bytes=self.prompt_tokens * BYTES_PER_TOKEN)

    @cached_property
    def chain(self) -> Chain:
        """The prompt's checkpoints: one at the end of each piece."""
        return build(self.inference.seed, self.inference.parts)

    def blocks(self, block_size: int) -> Sequence[int]:
        """Hashes of the engine's blocks, including those of a known answer."""
        if self._blocks is None or self._blocks[0] != block_size:
            self._blocks = block_size, array("q", hash_segments((*self.prompt, *self.answer), block_size))
        return self._blocks[1]

    _blocks: tuple[int, Sequence[int]] | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """The requests of a replay. Requests that follow no answer are in order of time."""

    name: str
    requests: Sequence[TracedRequest]

    @property
    def duration(self) -> float:
        """Seconds from the start to the last request, if no answer delays the request after it."""
        return max((request.at for request in self.requests), default=0.0)


def pieces(identity: int, tokens: int) -> tuple[Segment, ...]:
    """A text of ``tokens`` tokens as pieces. ``identity`` is that of :class:`Identities`."""
    return tuple((identity + i, min(PIECE, tokens - start)) for i, start in enumerate(range(0, tokens, PIECE)))


class Identities:
    """Source of texts without common prefixes."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def text(self, tokens: int) -> tuple[Segment, ...]:
        """A new text as pieces."""
        return pieces(next(self._numbers) << 20, tokens)


def read(path: Path, *, seed: int, limit: int | None = None) -> Trace:
    """The trace in a file: Mooncake's (one JSON object per line) or ShareGPT's (one JSON list).

    ``limit`` is the number of requests to keep. Raises ConfigurationError if the file cannot be read as either.
    """
    try:
        with path.open(encoding="utf-8") as file:
            first = file.read(1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the trace {path}: {error}") from error
    rng = random.Random(seed)
    requests = _sharegpt(path, rng) if first == "[" else _mooncake(path, rng)
    if not requests:
        raise ConfigurationError(f"the trace {path} has no requests")
    return Trace(path.stem, requests[:limit])


def _mooncake(path: Path, rng: random.Random) -> list[TracedRequest]:
    """``{"timestamp": ms, "input_length", "output_length", "hash_ids": [one per 512 tokens]}`` per line.

    Times are relative to the earliest one. Format: https://github.com/kvcache-ai/Mooncake.
    """
    requests = []
    earliest = inf
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                entry = json.loads(line)
                tokens, ids = int(entry["input_length"]), entry["hash_ids"]
                prompt = tuple((int(ids[i]), min(PIECE, tokens - i * PIECE)) for i in range(-(-tokens // PIECE)))
                if tokens < 1:
                    raise ValueError("input_length must be at least 1")
                at = entry["timestamp"] / 1000
                earliest = min(earliest, at)
                at += MOONCAKE_BUCKET * rng.random()
                requests.append(TracedRequest(at, prompt, max(1, int(entry["output_length"]))))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise ConfigurationError(
                    f"{path}:{number} is not a line of a Mooncake trace: {_reason(error)}"
                ) from error
    for request in requests:
        request.at -= earliest
    requests.sort(key=lambda request: request.at)
    return requests


def _reason(error: Exception) -> str:
    return f"no field {error}" if isinstance(error, KeyError) else str(error)


def _sharegpt(path: Path, rng: random.Random) -> list[TracedRequest]:
    """Conversations with Poisson arrivals; each request contains all turns before it."""
    identities = Identities()
    requests: list[TracedRequest] = []
    began = 0.0
    for turns in read_conversations(path):
        began += rng.expovariate(SHAREGPT_RATE)
        answers = [turn.answer_tokens or SHAREGPT_ANSWER for turn in turns]
        questions = [max(1, len(turn.question.encode()) // BYTES_PER_TOKEN) for turn in turns]
        pauses = [rng.expovariate(1 / SHAREGPT_PAUSE) for _ in turns]
        requests += conversation(
            identities, began, zip(questions, answers, pauses, strict=True), first=len(requests), opening=()
        )
    return sorted_by_time(requests)


def conversation(
    identities: Identities,
    began: float,
    turns: Iterable[tuple[int, int, float]],
    *,
    first: int,
    opening: tuple[Segment, ...],
) -> Iterator[TracedRequest]:
    """The requests of one conversation. ``turns`` are tokens of question, tokens of answer, and seconds before the question.

    ``opening`` comes before the first question; ``first`` is the number of the first request.
    """
    said = opening
    for turn, (question, output, pause) in enumerate(turns):
        said += identities.text(question)
        answer = identities.text(output)
        yield TracedRequest(
            began, said, output, answer, after=first + turn - 1 if turn else None, pause=pause if turn else 0.0
        )
        said += answer


def sorted_by_time(requests: Sequence[TracedRequest]) -> list[TracedRequest]:
    """The requests in order of time, each turn after the one before it, with ``after`` renumbered."""
    order = sorted(range(len(requests)), key=lambda number: (requests[number].at, number))
    place = {number: i for i, number in enumerate(order)}
    result = [requests[number] for number in order]
    for request in result:
        if request.after is not None:
            request.after = place[request.after]
    return result
