"""The request as routing sees it: model, prompt, work and priority."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class PromptPart(NamedTuple):
    """A piece of the canonical prompt: one message, one document, one image.

    ``data`` are the bytes that identify it, framed so that no two conversations share bytes by accident. ``prompt_bytes`` is
    its length in the prompt, in bytes of text: ``len(data)`` for text, a fixed number for an image, whose data is a digest.
    """

    data: bytes
    prompt_bytes: int


class InferenceRequest(NamedTuple):
    """One inference request, parsed.

    Prompts with different ``seed`` share no prefix: tools, template settings, cache salt, and last the model or adapter. A
    request without a prompt (GET, unknown path, not JSON) has no parts.
    """

    model: str = ""
    seed: bytes = b""
    parts: tuple[PromptPart, ...] = ()
    """The parts of the prompt; of several prompts, those of the first one and then of each further one."""
    head: int = 0
    """Of several prompts, the number of parts that each begins with; further prompts do not repeat them in ``parts``."""
    starts: tuple[int, ...] = ()
    """Indices in ``parts`` at which the second prompt and each further one continue after the head."""
    samples: int = 1
    """Answers that the client wants to each prompt (``n``). Engines queue each as a request of its own."""
    reads_cache: bool = True
    """Whether the engine may take a beginning of the prompt from its cache. Not if log probabilities of the prompt are
    asked for; the prompt is still cached then."""
    prompt_bytes: int = 0
    """Length of all prompts in bytes: the sum of their parts' bytes; of a body that was cut off, as estimated."""
    tokens: int | None = None
    """Exact tokens of all prompts where the client sent token ids; else None, and they are estimated from
    ``prompt_bytes``."""
    stream: bool = False
    max_tokens: int | None = None
    priority: int = 0
    """The body's field of that name, which engines read. It does not decide which requests are shed."""
    sheddable: bool = False
    """Rejected with 429 while the pool is saturated."""
    fairness_id: str = ""
    """The tenant or user for fairness, from the request header of that name. For custom strategies."""
    headers: Mapping[str, str] = NO_HEADERS
    """The request's headers, names in lower case; read-only and bounded. For custom strategies; otherwise empty."""
    session_id: str = ""
    """The client's session, from the request header that ``--session-header`` names. For custom strategies; otherwise
    empty."""
    state: str = ""
    """What only the engine that keeps it can go on with: a response, a conversation or a session, by its id."""
    partial: bool = False
    """The body was cut off, and the length of the rest of the prompt is unknown."""

    def lengths(self) -> list[int]:
        """Bytes of each prompt."""
        if not self.starts:
            return [self.prompt_bytes]
        sizes = [part.prompt_bytes for part in self.parts]
        head = sum(sizes[: self.head])
        bounds = (self.head, *self.starts, len(sizes))
        return [head + sum(sizes[start:stop]) for start, stop in pairwise(bounds)]

    def with_model(self, model: str) -> InferenceRequest:
        """The request with its model's name replaced, in the seed too: the engine caches under its own name."""
        return self._replace(model=model, seed=self.seed.removesuffix(self.model.encode()) + model.encode())

    def cut_off(self, seen: int, length: int | None) -> InferenceRequest:
        """The request if only the first ``seen`` bytes of the body were read, of ``length`` bytes if that is known.

        Prompt bytes and tokens are extrapolated, unless the request is ``partial`` already.
        """
        if self.partial or length is None or length < seen:
            return self._replace(partial=True)
        factor = length / seen
        tokens = None if self.tokens is None else round(self.tokens * factor)
        return self._replace(prompt_bytes=round(self.prompt_bytes * factor), tokens=tokens)


NO_PROMPT = InferenceRequest()
"""A request that is routed by load alone."""
