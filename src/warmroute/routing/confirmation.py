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

MOST_OPEN = 4096
"""Prompts of one endpoint that wait for the counter. Older ones stay undecided: were they accepted, a client could have
rejected prompts accepted by sending many."""
UNPROVEN_SHARE = 0.1
"""Share of an engine's cache up to which prompts are expected in it before the engine has looked them up."""
FORGIVENESS = 1.25
"""Unproven tokens that one accepted token takes off: a few rejected prompts are forgotten, a flood of them is not."""
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


class SentPrompt(NamedTuple):
    """A prompt that was sent to the engine."""

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
        "_open_checkpoints",
        "_settled",
        "_settled_tokens",
        "last_window",
        "trust",
        "unproven",
    )

    def __init__(self) -> None:
        self.trust = 1.0
        """EWMA of measured over expected hits, at most 1."""
        self.last_window: HitRatios | None = None
        """Of the latest window that was compared; None before the first."""
        self.reset()

    def reset(self) -> None:
        """The engine is a new process. Trust stays: it says how well this engine's cache is predicted."""
        self._open: deque[SentPrompt] = deque()
        self._open_checkpoints = 0
        self.unproven = 0.0
        """Tokens of the prompts sent, less those that the engine has looked up. Rejected prompts stay in it for a while."""
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

    def sent(
        self, tokens: float, cached_tokens: float, chain: Chain | None, now: float, *, most_checkpoints: int
    ) -> SentPrompt:
        """A prompt was sent. ``chain`` is what is to be confirmed, if anything.

        Of the prompts that wait, the oldest stay undecided beyond MOST_OPEN and ``most_checkpoints`` of their chains.
        """
        prompt = SentPrompt(now, tokens, cached_tokens, chain)
        self.unproven += tokens
        self._open.append(prompt)
        if chain is not None:
            self._open_checkpoints += len(chain.hashes)
        while len(self._open) > MOST_OPEN or self._open_checkpoints > most_checkpoints:
            self._next()
        return prompt

    def withdraw(self, prompt: SentPrompt) -> None:
        """The engine did not serve the prompt: no lookups are to be expected."""
        if prompt in self._open:
            self._open.remove(prompt)
            if prompt.chain is not None:
                self._open_checkpoints -= len(prompt.chain.hashes)

    def _next(self) -> SentPrompt:
        prompt = self._open.popleft()
        if prompt.chain is not None:
            self._open_checkpoints -= len(prompt.chain.hashes)
        return prompt

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
            self.unproven = max(0.0, self.unproven - self._credit)
            self._credit = 0.0
        self._compare()

    def _accept(self) -> Iterator[Verdict]:
        waiting = self._open
        while waiting and self._credit >= NEARLY * waiting[0].tokens:
            prompt = self._next()
            self._credit = max(0.0, self._credit - prompt.tokens)
            self.unproven = max(0.0, self.unproven - FORGIVENESS * prompt.tokens)
            self._settled += 1
            self._settled_tokens += prompt.tokens
            self._expected += prompt.cached_tokens
            if prompt.chain is not None:
                yield Verdict(prompt.chain, accepted=True)

    def _reject(self, sent_by: float) -> Iterator[Verdict]:
        waiting = self._open
        while waiting and waiting[0].at <= sent_by:
            prompt = self._next()
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
