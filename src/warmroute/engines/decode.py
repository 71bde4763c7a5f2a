"""How fast an engine generates an answer. WITHOUT IO.

It tells a slow GPU from a busy one: prefill speeds of equal GPUs differ several times with what their prompts are and with
how many are computed side by side, while the tokens of an answer come about equally fast where about equally many are
generated; and how many that were, the same counters tell.
"""

from __future__ import annotations

from warmroute.engines.measured import Measured

WINDOW = 1.0
"""Least seconds of one measurement."""
WINDOW_TOKENS = 256
"""Least tokens of one measurement."""
DOUBLED_AT = 64.0
"""Answers at once with which a step takes about twice as long as for one: reading so many contexts of a few thousand tokens
takes as long as reading the weights."""


class DecodeRate:
    """How many tokens of an answer an engine generates in a second if there is no other."""

    def __init__(self) -> None:
        self._measured = Measured()
        self._start: tuple[float, float, float] | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """None until there was something to measure."""
        return self._measured.rate

    def observe(self, at: float, tokens: float, seconds: float) -> None:
        """At ``at`` the engine had generated ``tokens`` in all, each so and so long after the one before it in its answer:
        ``seconds`` in all."""
        if self._start is None or tokens < self._start[1]:
            self._start = at, tokens, seconds
            return
        began, tokens_before, seconds_before = self._start
        spent = seconds - seconds_before
        if at - began >= WINDOW and tokens - tokens_before >= WINDOW_TOKENS and spent > 0:
            self._start = at, tokens, seconds
            at_once = spent / (at - began)
            self._measured.add((tokens - tokens_before) / spent * (1 + at_once / DOUBLED_AT))

    def interrupt(self) -> None:
        """The counters start anew; what was measured stays true of the engine."""
        self._start = None
