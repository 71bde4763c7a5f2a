"""The request as routing sees it: what to match, how much work it is, who asks."""

from __future__ import annotations

from typing import NamedTuple


class PromptPart(NamedTuple):
    """A piece of the canonical prompt: one message, one document, one image.

    ``data`` are the bytes that identify it, framed so that no two conversations share bytes by accident. ``prompt_bytes`` is
    its length in the prompt, in bytes of text: ``len(data)`` for text, a fixed number for an image, whose data is a digest.
    """

    data: bytes
    prompt_bytes: int


class InferenceRequest(NamedTuple):
    """One inference request, parsed.

    ``seed`` holds what makes whole prompts incomparable (template settings, cache salt, last the model or adapter). A
    request without a prompt (GET, unknown path, not JSON) has no parts.
    """

    model: str = ""
    seed: bytes = b""
    parts: tuple[PromptPart, ...] = ()
    prompt_bytes: int = 0
    """Length of the prompt in bytes: the sum of the parts' bytes; of a body that was cut off, as estimated."""
    tokens: int | None = None
    """Exact prompt tokens where the client sent token ids; else None, and they are estimated from ``prompt_bytes``."""
    stream: bool = False
    max_tokens: int | None = None
    priority: int = 0
    """The client's own field of that name, as engines read it. It does not decide who is refused."""
    sheddable: bool = False
    """May be refused with 429 while the pool is saturated."""
    fairness_id: str = ""
    """Whom the request counts for, as the header of that name says. For strategies of somebody's own."""
    partial: bool = False
    """The body was cut off, and nobody knows how much of the prompt is missing."""

    def with_model(self, model: str) -> InferenceRequest:
        """The request as the engine gets it once its model's name is replaced: the engine caches by its own name."""
        return self._replace(model=model, seed=self.seed.removesuffix(self.model.encode()) + model.encode())

    def cut_off(self, seen: int, length: int | None) -> InferenceRequest:
        """The request of which only the first ``seen`` bytes of the body were read; of ``length``, if that is known.

        What is missing is taken to be like what was read, unless it is ``partial`` already.
        """
        if self.partial or length is None or length < seen:
            return self._replace(partial=True)
        factor = length / seen
        tokens = None if self.tokens is None else round(self.tokens * factor)
        return self._replace(prompt_bytes=round(self.prompt_bytes * factor), tokens=tokens)


NO_PROMPT = InferenceRequest()
"""What is routed by load alone."""
