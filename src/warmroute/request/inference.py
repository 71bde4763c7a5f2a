"""The request as routing sees it: what to match, how much work it is, who asks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A piece of the canonical prompt: one message, one document, one image.

    ``data`` are the bytes that identify it, framed so that no two conversations share bytes by accident; ``weight`` is its
    length in the prompt, in bytes of text (``len(data)`` for text; a fixed cost in place of a digest for an image).
    """

    data: bytes
    weight: int


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """One inference request, parsed.

    ``seed`` holds what makes whole prompts incomparable (model or adapter, cache salt, template settings). A request
    without a prompt (GET, unknown path, not JSON) has no parts.
    """

    model: str = ""
    seed: bytes = b""
    parts: tuple[PromptPart, ...] = ()
    weight: int = 0
    """Sum of the parts' weights, in bytes."""
    tokens: int | None = None
    """Exact prompt tokens where the client sent token ids; else None, and they are estimated from ``weight``."""
    stream: bool = False
    max_tokens: int | None = None
    priority: int = 0
    fairness_id: str = ""


NO_PROMPT = InferenceRequest()
"""What is routed by load alone."""
