"""Requests to replay.

A prompt is a sequence of *pieces*, each with an identity and a length in tokens. Prompts share a prefix if their first
pieces are equal, so a trace needs no text. A piece has at most :data:`PIECE` tokens; the router sees cached prefixes in
whole pieces.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count

from warmroute.prefix.chain import Chain, build
from warmroute.request.inference import InferenceRequest, PromptPart
from warmroute_lab.simulator.blocks import Segment, hash_segments

PIECE = 512
"""Most tokens of a piece: the block size of Mooncake's traces."""
BYTES_PER_TOKEN = 4
"""Bytes of text per token."""


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
    """Least time between the end of that answer and this request."""

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
    recorded: bool = False
    """Whether the pauses are recorded ones, which the speedup divides like all times of the recording."""

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
