"""The prefill work of a prompt: computing its tokens and the attention between them."""

from __future__ import annotations

ATTENTION_SPAN = 32_768
"""Position in a prompt, in tokens, at which a token's attention costs as much as everything else.

Attention takes ``4 * layers * width`` floating-point operations for each pair of tokens, everything else two for each
parameter and token, so the position is ``parameters / (2 * layers * width)``: 27,700 for Mistral 7B, 30,600 for Llama
3.1 8B, 53,900 for Llama 3.1 70B (``num_hidden_layers`` and ``hidden_size`` of their config.json).
"""


def prefill_work(tokens: float, prompts: float = 1.0) -> float:
    """Work of the first ``tokens`` tokens of a prompt, in tokens at a prompt's beginning: ``x + x**2 / 65536``.

    ``prompts``: number of prompts of equal length that the tokens belong to. No prompt attends to another.
    """
    return tokens + tokens * tokens / (2 * ATTENTION_SPAN * prompts)
