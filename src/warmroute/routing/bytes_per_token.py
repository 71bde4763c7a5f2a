"""Prompt bytes per token, learned from the engines' counters."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from warmroute.pool.endpoint import EngineState
from warmroute.routing.endpoint_load import EndpointLoad

RANGE = (1.5, 8.0)
"""Plausible bytes per token: dense scripts to repetitive English."""
WINDOW_REQUESTS = 50
"""Finished requests after which an endpoint's window is judged."""
AGREEMENT = 0.1
"""A window counts only if at its end the requests that are lost, or in flight from other clients, are less than this
share of its finished ones."""
KEPT = 0.9
"""Weight that earlier windows keep with each new one (EWMA)."""
INITIAL_TOKENS = 200_000
"""Tokens for which the initial estimate counts; it decays like a window. One long prompt must not overturn it."""
MOST_IN_FLIGHT = 4096
"""Requests on one endpoint whose lengths are remembered."""
UNKNOWN = 0
"""Length of a prompt that another client sent, or of which only a part was seen."""


@dataclass(slots=True)
class _Window:
    """What one endpoint has finished since the window began. Requests are assumed to finish in the order of sending."""

    requests: float
    """The engine's counter of finished requests when the window began; ``tokens`` is that of their prompts' tokens."""
    tokens: float
    in_flight: deque[int]
    """Bytes of the prompts that were sent and have not finished, oldest first."""
    finished: int = 0
    prompt_bytes: int = 0
    unknown: int = 0
    """Those of the ``finished`` whose length is :data:`UNKNOWN`."""


class BytesPerToken:
    """Bytes per token of the pool's model. One pool serves one base model, and its adapters share its tokenizer."""

    def __init__(self, initial: float) -> None:
        self._windows: dict[EndpointLoad, _Window] = {}
        self._bytes = self._tokens = 0.0
        """Of the windows that counted, with decaying weight."""
        self._initial_tokens = float(INITIAL_TOKENS)
        self.begin_with(initial)

    @property
    def estimate(self) -> float:
        """The current estimate."""
        return self._estimate

    def begin_with(self, initial: float) -> None:
        """Assume ``initial`` until more is learned; what is learned already stays."""
        self._initial = initial
        self._update()

    def sent(self, load: EndpointLoad, prompt_bytes: int, *, requests: int = 1) -> None:
        """Requests with a prompt of ``prompt_bytes`` each, or of :data:`UNKNOWN` length, went to the endpoint."""
        window = self._windows.get(load)
        if window is not None:
            window.in_flight.extend([prompt_bytes] * requests)

    def observe(self, load: EndpointLoad, state: EngineState) -> None:
        """Compare the engine's counters with what it was sent. Call it after ``load.observe(state)``."""
        requests, tokens = state.prompt_requests_total, state.prompt_tokens_total
        if requests is None or tokens is None:
            return
        window = self._windows.get(load)
        present = min(state.running + state.waiting + len(load.sent), MOST_IN_FLIGHT)
        if window is None or not window.finished <= requests - window.requests <= MOST_IN_FLIGHT:
            self._windows[load] = _Window(requests, tokens, deque([UNKNOWN] * present, MOST_IN_FLIGHT))
            return
        in_flight = window.in_flight
        while window.finished < requests - window.requests:
            prompt_bytes = in_flight.popleft() if in_flight else UNKNOWN
            window.finished += 1
            window.prompt_bytes += prompt_bytes
            window.unknown += prompt_bytes == UNKNOWN
        if window.finished < WINDOW_REQUESTS:
            return
        excess = len(in_flight) - present
        tolerated = AGREEMENT * window.finished
        if not window.unknown and abs(excess) <= tolerated:
            self._bytes = KEPT * self._bytes + window.prompt_bytes
            low, high = RANGE  # one long prompt of another client must not overturn the pool's estimate
            counted = min(max(tokens - window.tokens, window.prompt_bytes / high), window.prompt_bytes / low)
            self._tokens = KEPT * self._tokens + counted
            self._initial_tokens *= KEPT
            self._update()
        elif abs(excess) > tolerated:  # start a new window with the requests in flight
            for _ in range(excess):
                in_flight.popleft()
            in_flight.extendleft([UNKNOWN] * -excess)
        self._windows[load] = _Window(requests, tokens, in_flight)

    def forget(self, load: EndpointLoad) -> None:
        """The endpoint is gone, or its engine is a new process."""
        self._windows.pop(load, None)

    def _update(self) -> None:
        low, high = RANGE
        prompt_bytes = self._bytes + self._initial * self._initial_tokens
        self._estimate = min(max(prompt_bytes / (self._tokens + self._initial_tokens), low), high)
