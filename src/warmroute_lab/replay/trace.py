"""Requests to replay: what each asks, when, and which tokens it shares with others. Read from files here.

A prompt is a row of *pieces*: an identity and a length in tokens. Two prompts share tokens where their first pieces are
equal, so a trace needs no text. Pieces are at most :data:`PIECE` tokens long, which is also how exactly the picker knows
how much of a prompt an engine holds.
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
"""Most tokens of a piece: the blocks of Mooncake's traces."""
BYTES_PER_TOKEN = 4
"""Bytes of text that a token stands for."""
MOONCAKE_BUCKET = 3.0
"""Seconds to which Mooncake's timestamps are rounded down."""
SHAREGPT_RATE = 10.0
"""Conversations of a ShareGPT file that begin each second, at a speedup of 1."""
SHAREGPT_PAUSE = 10.0
"""Mean seconds between an answer and the next question of a ShareGPT conversation."""
SHAREGPT_ANSWER = 200
"""Tokens of an answer whose length the file does not tell."""


@dataclass(eq=False)
class TracedRequest:
    """One request. Lengths are in tokens, times in seconds."""

    at: float
    """Earliest time at which it is sent, from the start of the trace; divided by the speedup."""
    prompt: tuple[Segment, ...]
    output_tokens: int
    answer: tuple[Segment, ...] = ()
    """What the engine will generate, where a later prompt goes on with it."""
    after: int | None = None
    """Number of the request that must be answered before this one is sent."""
    pause: float = 0.0
    """Least seconds between that answer's end and this request; not divided by the speedup."""

    @cached_property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return sum(tokens for _, tokens in self.prompt)

    @cached_property
    def inference(self) -> InferenceRequest:
        """The request as the router sees it: one part for each piece.

        Nine bytes are never the length of a piece, so none is taken for its own text and cut inside.
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
        """Hashes of the engine's blocks, those of a known answer included."""
        if self._blocks is None or self._blocks[0] != block_size:
            self._blocks = block_size, array("q", hash_segments((*self.prompt, *self.answer), block_size))
        return self._blocks[1]

    _blocks: tuple[int, Sequence[int]] | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """The requests of a replay. Those that wait for no other are in order of time."""

    name: str
    requests: Sequence[TracedRequest]

    @property
    def duration(self) -> float:
        """Seconds from the start to the last request, if no answer takes longer than expected."""
        return max((request.at for request in self.requests), default=0.0)


def pieces(identity: int, tokens: int) -> tuple[Segment, ...]:
    """A text of ``tokens`` tokens as pieces. ``identity`` is that of :class:`Identities`."""
    return tuple((identity + i, min(PIECE, tokens - start)) for i, start in enumerate(range(0, tokens, PIECE)))


class Identities:
    """Texts that have nothing in common: each call of :meth:`text` makes up another one."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def text(self, tokens: int) -> tuple[Segment, ...]:
        """A text of its own, as pieces."""
        return pieces(next(self._numbers) << 20, tokens)


def read(path: Path, *, seed: int, limit: int | None = None) -> Trace:
    """The trace in a file: Mooncake's (a JSON object a line) or ShareGPT's (one JSON list).

    ``limit`` keeps the first requests only. Raises ConfigurationError if the file is neither.
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
    """``{"timestamp": ms, "input_length", "output_length", "hash_ids": [one for each 512 tokens]}`` a line.

    Times count from the earliest one.
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
                raise ConfigurationError(f"{path}:{number} is no line of a Mooncake trace: {error!r}") from error
    for request in requests:
        request.at -= earliest
    requests.sort(key=lambda request: request.at)
    return requests


def _sharegpt(path: Path, rng: random.Random) -> list[TracedRequest]:
    """Conversations in a Poisson stream; each turn sends all that was said before it."""
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
    """The requests of one conversation: ``turns`` are tokens of question and answer and the pause before the question.

    ``opening`` stands before the first question; ``first`` is the number of the first request.
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
    """The requests in order of time (a turn after the one before it), their ``after`` renumbered."""
    order = sorted(range(len(requests)), key=lambda number: (requests[number].at, number))
    place = {number: i for i, number in enumerate(order)}
    result = [requests[number] for number in order]
    for request in result:
        if request.after is not None:
            request.after = place[request.after]
    return result
