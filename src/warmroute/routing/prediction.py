"""Predicted against measured time to first token of one endpoint. WITHOUT IO.

Each decision predicts a time to first token (:func:`~warmroute.routing.cost.time_to_first_token`). The engine counts first
tokens and sums their times. It serves in order, so each first token counted since the last scrape belongs to the oldest
prediction. First tokens of other clients' requests may be taken for ours; means over a minute hardly show it.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from warmroute.pool.endpoint import EngineState

WINDOW = 60.0
"""Seconds over which predictions and measurements are averaged."""
SLICE = 1.0
"""Seconds of first tokens that are added up."""
MOST_OPEN = 4096
"""Predictions of one endpoint that wait for their first token; beyond that the oldest are dropped."""
MOST_UNSEEN = 64
"""Open predictions of an engine beyond twice its requests: a page does not show all that were sent before it."""
LONGEST = 3600.0
"""Seconds that a prediction counts as at most. A sum of floats must not lose the others beside an absurd one."""
LEAST_COMPARED = 20
"""First tokens in the window from which the correction follows them."""
CORRECTION_RANGE = (0.5, 2.0)
"""Bounds of the correction."""
CORRECTION_WEIGHT = 0.05
"""EWMA weight of a scrape that shows first tokens: a busy endpoint is corrected within some five seconds."""


class Compared(NamedTuple):
    """Mean times to first token in seconds over the last :data:`WINDOW`."""

    predicted: float
    """As predicted then, correction included."""
    measured: float
    requests: int
    """First tokens measured."""


class _Sums(NamedTuple):
    """Sums over requests that got their first token."""

    predicted: float = 0.0
    uncorrected: float = 0.0
    predictions: float = 0.0
    measured: float = 0.0
    first_tokens: float = 0.0

    def plus(self, other: _Sums, sign: int = 1) -> _Sums:
        return _Sums(*(mine + sign * theirs for mine, theirs in zip(self, other, strict=True)))


class Prediction:
    """The predictions for one endpoint, and what its engine measured. Times are monotonic seconds."""

    __slots__ = ("_counters", "_open", "_slices", "_sums", "correction")

    def __init__(self) -> None:
        self.reset()
        self.restart()

    def reset(self) -> None:
        """The engine is a new process: its counters begin at 0, and its requests are gone. The correction stays."""
        self._open: deque[tuple[float, float]] = deque(maxlen=MOST_OPEN)
        self._counters: tuple[float, float] | None = None

    def restart(self) -> None:
        """The endpoint's speed was measured for the first time: earlier predictions assumed one and say nothing."""
        self.correction = 1.0
        """EWMA of measured over predicted, within :data:`CORRECTION_RANGE`: predictions are multiplied by it."""
        self._open.clear()
        self._slices: deque[tuple[float, _Sums]] = deque()
        self._sums = _Sums()

    def expect(self, seconds: float) -> None:
        """A request goes to the endpoint; its first token is predicted in ``seconds``, correction included."""
        seconds = min(seconds, LONGEST)
        self._open.append((seconds, seconds / self.correction))

    def observe(self, state: EngineState, *, sent_since: int = 0) -> None:
        """A scrape of the engine, to which ``sent_since`` requests were sent after it."""
        count, seconds, before = state.first_tokens_total, state.first_token_seconds_total, self._counters
        self._counters = None if count is None or seconds is None else (count, seconds)
        self._forget(state.observed_at)
        if before is None or count is None or seconds is None or count < before[0] or seconds < before[1]:
            return
        first_tokens = int(count - before[0])
        ours = [self._open.popleft() for _ in range(min(first_tokens, len(self._open)))]
        present = state.running + state.waiting
        idle = not present and not first_tokens
        # What else was predicted was rejected, or its client has gone.
        self._keep_newest(sent_since if idle else 2 * (present + sent_since) + MOST_UNSEEN)
        if not first_tokens:
            return
        self._add(
            state.observed_at,
            _Sums(
                sum(predicted for predicted, _ in ours),
                sum(uncorrected for _, uncorrected in ours),
                len(ours),
                seconds - before[1],
                first_tokens,
            ),
        )
        self._correct()

    def _keep_newest(self, most: int) -> None:
        while len(self._open) > most:
            self._open.popleft()

    @property
    def compared(self) -> Compared | None:
        """The means of the last minute; None without first tokens of this picker's requests."""
        sums = self._sums
        if sums.predictions < 1:
            return None
        return Compared(sums.predicted / sums.predictions, sums.measured / sums.first_tokens, round(sums.first_tokens))

    def _correct(self) -> None:
        sums = self._sums
        if sums.predictions >= LEAST_COMPARED and sums.uncorrected > 0:
            low, high = CORRECTION_RANGE
            ratio = sums.measured / sums.first_tokens / (sums.uncorrected / sums.predictions)
            self.correction += CORRECTION_WEIGHT * (min(max(ratio, low), high) - self.correction)

    def _add(self, at: float, sums: _Sums) -> None:
        if self._slices and at - self._slices[-1][0] < SLICE:
            began, earlier = self._slices.pop()
            self._slices.append((began, earlier.plus(sums)))
        else:
            self._slices.append((at, sums))
        self._sums = self._sums.plus(sums)

    def _forget(self, now: float) -> None:
        while self._slices and self._slices[0][0] <= now - WINDOW:
            self._sums = self._sums.plus(self._slices.popleft()[1], -1)
        if not self._slices:
            self._sums = _Sums()
