"""Whether an engine accepted the prompts that were sent to it, and found in its cache what was expected. WITHOUT IO.

The engine's counter of prefix cache lookups grows by the length of each prompt that it accepts, and by nothing for a prompt
that it rejects. So a prompt is *accepted* once the counter has grown by its length, prompts being looked up in the order in
which they were sent; it is *rejected* if the engine is idle and the counter has not. Prompts of other clients grow the
counter, too, and may confirm a rejected one: then no more prompt tokens are believed cached than the engine has looked up.

Hits are compared for accepted prompts: the expected share of cached tokens against the share that the engine counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from warmroute.pool.endpoint import EngineState
from warmroute.prefix.chain import Chain

MOST_OPEN = 256
"""Prompts of one endpoint that wait for the counter; older ones count as accepted."""
LONGEST_WAIT = 60.0
"""Seconds after which a prompt counts as accepted if no scrape has decided it."""
SETTLING = 1.0
"""Seconds from sending a prompt until the page of an idle engine must show it: the way there and the tokenizer."""
NEARLY = 0.75
"""Share of a prompt's estimated tokens by which the counter must grow; estimates from bytes err
by about a tenth once :class:`~warmroute.routing.bytes_per_token.BytesPerToken` has learned, by more before."""
WINDOW_TOKENS = 50_000.0
"""Tokens of accepted prompts after which expected and measured hits are compared."""
WINDOW_PROMPTS = 20
"""Prompts after which they are compared."""
LEAST_EXPECTED = 0.05
"""Expected hit ratio below which nothing is learned from a window."""
TRUST_WEIGHT = 0.5
"""EWMA weight of the latest window."""
DISTRUST_BELOW = 0.3
"""Trust below which expected cached tokens are scaled. Block sizes and estimated lengths alone lower trust to about 0.8,
a cache that is overcommitted to about 0.6. With 0.7 the second counts as distrust, and affinity is lost when it matters:
mean TTFT 3.5 s in place of 2.9 s (``warmroute bench replay agents --seed 91``, 0.8 of saturation)."""
LEAST_FACTOR = 0.05
"""Lower bound of that factor, so that the expectation before scaling stays known."""


class _Prompt(NamedTuple):
    at: float
    tokens: float
    cached_tokens: float
    chain: Chain | None


class HitRatios(NamedTuple):
    """Cached share of the prompts of one window, each 0 to 1."""

    expected: float
    """As the index had it."""
    measured: float
    """As the engine counted it; prompts of other clients count, too."""


class Verdict(NamedTuple):
    """What became of a prompt whose chain waited for confirmation."""

    chain: Chain
    accepted: bool


class Confirmation:
    """The prompts on one endpoint that its engine's counters have not confirmed. Times are monotonic seconds."""

    __slots__ = (
        "_credit",
        "_expected",
        "_hits",
        "_lookups",
        "_measured",
        "_open",
        "_settled",
        "_settled_tokens",
        "last_window",
        "trust",
    )

    def __init__(self) -> None:
        self.trust = 1.0
        """EWMA of measured over expected hits, at most 1."""
        self.last_window: HitRatios | None = None
        """Of the latest window that was compared; None before the first."""
        self.reset()

    def reset(self) -> None:
        """The engine is a new process. Trust stays: it says how well this engine's cache is predicted."""
        self._open: deque[_Prompt] = deque()
        self._lookups: float | None = None
        self._hits = 0.0
        self._credit = 0.0
        """Tokens looked up that no prompt has used yet."""
        self._forget_window()

    @property
    def counts(self) -> bool:
        """Whether the engine's page has a counter of lookups, so that prompts can be confirmed."""
        return self._lookups is not None

    @property
    def factor(self) -> float:
        """What expected cached tokens are multiplied by."""
        return max(LEAST_FACTOR, self.trust) if self.trust < DISTRUST_BELOW else 1.0

    def sent(self, tokens: float, cached_tokens: float, chain: Chain | None, now: float) -> None:
        """A prompt was sent. ``chain`` is what is to be confirmed, if anything."""
        self._open.append(_Prompt(now, tokens, cached_tokens, chain))

    def is_overdue(self, now: float) -> bool:
        """Whether :meth:`overdue` has something to give."""
        return len(self._open) > MOST_OPEN or (bool(self._open) and self._open[0].at <= now - LONGEST_WAIT)

    def overdue(self, now: float) -> Iterator[Verdict]:
        """Prompts that count as accepted since nothing has decided them."""
        while self.is_overdue(now):
            prompt = self._open.popleft()
            if prompt.chain is not None:
                yield Verdict(prompt.chain, accepted=True)

    def observe(self, state: EngineState) -> Iterator[Verdict]:
        """A scrape: the prompts that it decides."""
        lookups, hits = state.prefix_queries_total, state.prefix_hits_total or 0.0
        before, hits_before = self._lookups, self._hits
        self._lookups, self._hits = lookups, hits
        if lookups is None or before is None or lookups < before:
            return
        self._credit += lookups - before
        self._measured += max(0.0, hits - hits_before)
        yield from self._accept()
        if state.running + state.waiting == 0:
            yield from self._reject(state.observed_at - SETTLING)
        if not self._open:
            self._credit = 0.0
        self._compare()

    def _accept(self) -> Iterator[Verdict]:
        waiting = self._open
        while waiting and self._credit >= NEARLY * waiting[0].tokens:
            prompt = waiting.popleft()
            self._credit = max(0.0, self._credit - prompt.tokens)
            self._settled += 1
            self._settled_tokens += prompt.tokens
            self._expected += prompt.cached_tokens
            if prompt.chain is not None:
                yield Verdict(prompt.chain, accepted=True)

    def _reject(self, sent_by: float) -> Iterator[Verdict]:
        waiting = self._open
        while waiting and waiting[0].at <= sent_by:
            prompt = waiting.popleft()
            if prompt.chain is not None:
                yield Verdict(prompt.chain, accepted=False)

    def _compare(self) -> None:
        if self._settled < WINDOW_PROMPTS or self._settled_tokens < WINDOW_TOKENS:
            return
        self.last_window = HitRatios(
            min(1.0, self._expected / self._settled_tokens), min(1.0, self._measured / self._settled_tokens)
        )
        if self._expected >= LEAST_EXPECTED * self._settled_tokens:
            self.trust += TRUST_WEIGHT * (min(1.0, self._measured / self._expected) - self.trust)
        self._forget_window()

    def _forget_window(self) -> None:
        self._settled = 0
        self._settled_tokens = self._expected = self._measured = 0.0
