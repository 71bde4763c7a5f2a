"""How many bytes of prompt make a token, learned from the engines' own counters."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from warmroute.pool.endpoint import EngineState
from warmroute.routing.load import Book

RANGE = (1.5, 8.0)
"""Plausible bytes per token: dense scripts to repetitive English."""
WINDOW_REQUESTS = 50
"""Finished requests after which an endpoint's window is judged."""
AGREEMENT = 0.1
"""A window counts only if at its end fewer requests than this share of it are lost, or under way from somebody else."""
KEPT = 0.9
"""Share that earlier windows keep with each new one."""
INITIAL_TOKENS = 200_000
"""Tokens for which the initial estimate counts, and is kept like a window: one long prompt must not overturn it."""
MOST_UNDER_WAY = 4096
"""Requests on one endpoint whose lengths are remembered."""
UNKNOWN = 0
"""Weight of a prompt that somebody else sent, or of which only a part was seen."""


@dataclass(slots=True)
class _Window:
    """What an endpoint has finished since the window began. Requests are taken to finish in the order they were sent in."""

    requests: float
    """The engine's counter of finished requests when the window began; ``tokens`` is that of their prompts' tokens."""
    tokens: float
    under_way: deque[int]
    """The weights of the prompts that were sent and have not finished, oldest first."""
    finished: int = 0
    weight: int = 0
    unknown: int = 0
    """Of the ``finished``: those of unknown weight."""


class TokenLength:
    """Bytes per token of the pool's model. One pool serves one base model, and its adapters share its tokenizer."""

    def __init__(self, initial: float) -> None:
        self._windows: dict[Book, _Window] = {}
        self._weight = self._tokens = 0.0
        """Of the windows that counted, the older ones less and less."""
        self._initial_tokens: float = INITIAL_TOKENS
        self.begin_with(initial)

    @property
    def bytes_per_token(self) -> float:
        """The present estimate."""
        return self._estimate

    def begin_with(self, initial: float) -> None:
        """Take ``initial`` for the ratio until more is learned; what is learned already stays."""
        self._initial = initial
        self._update()

    def sent(self, book: Book, weight: int) -> None:
        """A request with a prompt of ``weight`` bytes, or of :data:`UNKNOWN` length, went to the endpoint."""
        window = self._windows.get(book)
        if window is not None:
            window.under_way.append(weight)

    def observe(self, book: Book, state: EngineState) -> None:
        """Compare what the engine counted with what it was sent. The book has seen the state already."""
        requests, tokens = state.prompt_requests_total, state.prompt_tokens_total
        if requests is None or tokens is None:
            return
        window = self._windows.get(book)
        present = state.running + state.waiting + len(book.sent)
        if window is None or not window.finished <= requests - window.requests <= MOST_UNDER_WAY:
            self._windows[book] = _Window(requests, tokens, deque([UNKNOWN] * present, MOST_UNDER_WAY))
            return
        under_way = window.under_way
        while window.finished < requests - window.requests:
            weight = under_way.popleft() if under_way else UNKNOWN
            window.finished += 1
            window.weight += weight
            window.unknown += weight == UNKNOWN
        if window.finished < WINDOW_REQUESTS:
            return
        excess = len(under_way) - present
        tolerated = AGREEMENT * window.finished
        if not window.unknown and abs(excess) <= tolerated:
            self._weight = KEPT * self._weight + window.weight
            self._tokens = KEPT * self._tokens + (tokens - window.tokens)
            self._initial_tokens *= KEPT
            self._update()
        elif abs(excess) > tolerated:  # begin again with what is there
            for _ in range(excess):
                under_way.popleft()
            under_way.extendleft([UNKNOWN] * -excess)
        self._windows[book] = _Window(requests, tokens, under_way)

    def forget(self, book: Book) -> None:
        """The endpoint is gone, or its engine is a new process."""
        self._windows.pop(book, None)

    def _update(self) -> None:
        low, high = RANGE
        weight = self._weight + self._initial * self._initial_tokens
        self._estimate = min(max(weight / (self._tokens + self._initial_tokens), low), high)
