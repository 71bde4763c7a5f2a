"""How many bytes of prompt make a token, learned from the engines' own counters."""

from __future__ import annotations

from dataclasses import dataclass

from warmroute.pool.endpoint import EngineState
from warmroute.routing.load import Book

RANGE = (1.5, 8.0)
"""Plausible bytes per token: dense scripts to repetitive English."""
WINDOW_REQUESTS = 50
"""Finished requests after which an endpoint's window is judged."""
AGREEMENT = 0.1
"""A window counts only if the engine's requests and ours differ by less than this share: others may use the engine too."""
SMOOTHING = 0.2
"""Weight of the newest window."""


@dataclass(slots=True)
class _Window:
    requests_at_start: float
    tokens_at_start: float
    sent: int = 0
    weight: int = 0


class TokenLength:
    """Bytes per token of the pool's model. One pool serves one base model, and its adapters share its tokenizer."""

    def __init__(self, initial: float) -> None:
        self.initial = initial
        self._learned: float | None = None
        self._windows: dict[Book, _Window] = {}

    @property
    def bytes_per_token(self) -> float:
        """The present estimate."""
        return self._learned or self.initial

    def sent(self, book: Book, weight: int) -> None:
        """A prompt of ``weight`` bytes went to the endpoint."""
        window = self._windows.get(book)
        if window is not None:
            window.sent += 1
            window.weight += weight

    def observe(self, book: Book, state: EngineState) -> None:
        """Compare what the engine counted with what it was sent."""
        requests, tokens = state.prompt_requests_total, state.prompt_tokens_total
        if requests is None or tokens is None:
            return
        window = self._windows.get(book)
        if window is None or requests < window.requests_at_start:
            self._windows[book] = _Window(requests, tokens)
            return
        finished = requests - window.requests_at_start
        if finished < WINDOW_REQUESTS:
            return
        counted = tokens - window.tokens_at_start
        if counted > 0 and window.weight and abs(finished - window.sent) <= AGREEMENT * finished:
            low, high = RANGE
            measured = min(max((window.weight / window.sent) / (counted / finished), low), high)
            self._learned = (
                measured if self._learned is None else self._learned + SMOOTHING * (measured - self._learned)
            )
        self._windows[book] = _Window(requests, tokens)

    def forget(self, book: Book) -> None:
        """The endpoint is gone."""
        self._windows.pop(book, None)
