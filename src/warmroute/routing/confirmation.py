"""Whether an engine accepted the prompts that were sent to it, and found in its cache what was expected. WITHOUT IO.

The engine's counter of prefix cache lookups grows by the length of each prompt that it accepts, and by nothing for a prompt
that it rejects. So a prompt is *accepted* once the counter has grown by its length, prompts being looked up in the order in
which they were sent; it is *rejected* if the engine is idle and the counter has not. Prompts of other clients grow the
counter, too, and may confirm a rejected one: then no more prompt tokens are believed cached than the engine has looked up.

Hits are compared for accepted prompts: the expected share of cached tokens against the share that the engine counted. Each
comparison of a window of prompts gives a ratio, measured over expected:

=====================  ==========================================================================================
ratio                  what it means
=====================  ==========================================================================================
below LOST_BELOW       the cache was emptied while the engine lived on (sleep, new weights, a restarted engine process
                       behind the old API server), if it had hits before. If it had none: it keeps no prompts
lower than 1           the engine evicts more than expected, or finds only some of what it keeps (hybrid models): the
                       EWMA of the ratios is the trust
=====================  ==========================================================================================

A window in which the engine rejected requests teaches nothing: those prompts were expected and never looked up.

Pickers that share their state learn of a prompt 10 to 100 ms after it was sent, perhaps after a scrape that counts its
lookup. So lookups that no known prompt explains are kept for :data:`SETTLING`, for prompts that become known late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from warmroute.pool.endpoint import EngineState
from warmroute.prefix.chain import Chain
from warmroute.prefix.remote import RemotePrompt

MOST_OPEN = 4096
"""Prompts of one endpoint that wait for the counter. Older ones stay undecided: were they accepted, a client could have
rejected prompts accepted by sending many."""
UNPROVEN_SHARE = 0.1
"""Share of an engine's cache that prompts may add before the engine has looked them up: as much as rejected ones could evict
from the index."""
FORGIVENESS = 1.25
"""Unproven tokens that one new token of an accepted prompt takes off: a few rejected prompts are forgotten, a flood of them
is not."""
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
NOTHING_FOUND_PROMPTS = 10
"""Prompts after which a window ends early if not one token was found."""
NOTHING_FOUND_TOKENS = 10_000.0
"""Expected tokens of these prompts, at least."""
LOST_BELOW = 0.1
"""Measured over expected hits of a window, below which the engine has lost what it held, or holds nothing."""
REJECTED_SHARE = 0.05
"""Responses with status 4xx, as a share of the accepted prompts of a window, above which the window teaches nothing."""
DISTRUST_UNFILLED_BELOW = 0.7
"""Trust below which expected cached tokens are scaled while the cache is not full: nothing was evicted, so the engine does
not find all that it keeps."""
DISTRUST_BELOW = 0.3
"""Trust below which they are scaled in a full cache. Block sizes and estimated lengths alone lower trust to about 0.8,
a cache that is overcommitted to about 0.6. With 0.7 the second counts as distrust, and affinity is lost when it matters:
mean TTFT 3.5 s in place of 2.9 s (``warmroute bench replay agents --seed 91``, 0.8 of saturation)."""
LEAST_FACTOR = 0.05
"""Lower bound of that factor, so that the expectation before scaling stays known."""


Claim = Chain | tuple[RemotePrompt, ...]
"""What an engine holds if it accepts what was sent: an own prompt, or another picker's prompts."""


@dataclass(slots=True, eq=False)
class SentPrompt:
    """A prompt that was sent to the engine, or several that another picker sent at nearly one time. Compared by identity."""

    at: float
    tokens: float
    cached_tokens: float
    claim: Claim | None
    prompts: int = 1
    """As windows count them."""

    @property
    def checkpoints(self) -> int:
        """Checkpoints of the claim."""
        match self.claim:
            case None:
                return 0
            case Chain() as chain:
                return len(chain.hashes)
            case prompts:
                return sum([len(prompt.hashes) for prompt in prompts])

    @property
    def new_tokens(self) -> float:
        """Tokens that the engine is expected to add to its cache."""
        return max(0.0, self.tokens - self.cached_tokens)


class HitRatios(NamedTuple):
    """Cached share of the prompts of one window, each 0 to 1."""

    expected: float
    """As the index had it."""
    measured: float
    """As the engine counted it; prompts of other clients count, too."""
    tier: float = 0.0
    """The part of ``measured`` that a second tier of the cache held."""


class Verdict(NamedTuple):
    """What became of a prompt whose claim waited for confirmation."""

    claim: Claim
    accepted: bool


class Confirmation:
    """The prompts on one endpoint that its engine's counters have not confirmed. Times are monotonic seconds."""

    __slots__ = (
        "_before",
        "_credit",
        "_expected",
        "_measured",
        "_open",
        "_open_checkpoints",
        "_proven",
        "_rejected",
        "_settled",
        "_settled_tokens",
        "_tier",
        "_unexplained",
        "emptied",
        "full",
        "last_window",
        "trust",
        "unproven",
        "windows",
    )

    def __init__(self) -> None:
        self.trust = 1.0
        """EWMA of measured over expected hits, at most 1."""
        self.last_window: HitRatios | None = None
        """Of the latest window that was compared; None before the first."""
        self.full = False
        """Whether the engine's cache is full according to the prefix index: then it evicts prompts."""
        self.windows = 0
        """Windows compared."""
        self._proven = False
        """Whether the engine has found what was expected since its cache was emptied last."""
        self.emptied = False
        """Whether the latest window shows that the cache was emptied; :meth:`forget` takes it back."""
        self.reset()

    def reset(self) -> None:
        """The engine is a new process. Trust stays: it says how well this engine's cache is predicted."""
        self._open: deque[SentPrompt] = deque()
        self._open_checkpoints = 0
        self.unproven = 0.0
        """Tokens of the prompts sent that the engine did not hold before, less those of accepted prompts. Those of rejected
        ones stay in it for a while."""
        self._before: EngineState | None = None
        """The state of the last scrape."""
        self._credit = 0.0
        """Tokens looked up that no prompt has used yet."""
        self._unexplained: deque[tuple[float, float]] = deque()
        """Tokens looked up that no prompt had used when none was left, with the time of the scrape."""
        self.forget()

    def forget(self) -> None:
        """The engine's cache is empty: nothing is expected of the prompts that wait. What they add to it is."""
        for prompt in self._open:
            prompt.cached_tokens = 0.0
        self.emptied = self._proven = False
        self._forget_window()

    @property
    def counts(self) -> bool:
        """Whether the engine's page has a counter of lookups, so that prompts can be confirmed."""
        return self._before is not None and self._before.prefix_queries_total is not None

    @property
    def factor(self) -> float:
        """What expected cached tokens are multiplied by."""
        threshold = DISTRUST_BELOW if self.full else DISTRUST_UNFILLED_BELOW
        return max(LEAST_FACTOR, self.trust) if self.trust < threshold else 1.0

    def sent(
        self,
        tokens: float,
        cached_tokens: float,
        claim: Claim | None,
        now: float,
        *,
        most_checkpoints: int,
        prompts: int = 1,
    ) -> SentPrompt:
        """A prompt was sent, or several that have these tokens together. ``claim`` is what is to be confirmed, if anything.

        Of the prompts that wait, the oldest stay undecided beyond MOST_OPEN and ``most_checkpoints`` of their claims.
        """
        prompt = SentPrompt(now, tokens, cached_tokens, claim, prompts)
        self.unproven += prompt.new_tokens
        self._open.append(prompt)
        self._open_checkpoints += prompt.checkpoints
        while len(self._open) > MOST_OPEN or self._open_checkpoints > most_checkpoints:
            self._next()
        return prompt

    def settle_late(self, tokens: float, cached_tokens: float, at: float, *, prompts: int = 1) -> bool:
        """Whether the engine's last scrape counts another picker's prompts, sent at ``at``. Then they are accepted; else
        they wait like others (:meth:`sent`).

        After more than :data:`SETTLING` nothing shows it any more: they are accepted, and no window counts them.
        """
        if self._before is None or at > self._before.observed_at:
            return False
        if at <= self._before.observed_at - SETTLING:
            return True
        if sum(lookups for _, lookups in self._unexplained) < NEARLY * tokens:
            return False
        self._settle(tokens, cached_tokens, prompts)
        while tokens > 0 and self._unexplained:
            scraped_at, lookups = self._unexplained.popleft()
            if lookups > tokens:
                self._unexplained.appendleft((scraped_at, lookups - tokens))
            tokens -= lookups
        return True

    def _settle(self, tokens: float, cached_tokens: float, prompts: int) -> None:
        self._settled += prompts
        self._settled_tokens += tokens
        self._expected += cached_tokens

    def withdraw(self, prompt: SentPrompt) -> None:
        """The engine did not serve the prompt: no lookups are to be expected."""
        if prompt in self._open:
            self._open.remove(prompt)
            self._open_checkpoints -= prompt.checkpoints

    def _next(self) -> SentPrompt:
        prompt = self._open.popleft()
        self._open_checkpoints -= prompt.checkpoints
        return prompt

    def observe(self, state: EngineState) -> Iterator[Verdict]:
        """A scrape: the prompts that it decides."""
        before, self._before = self._before, state
        if before is None:
            return
        lookups, lookups_before = state.prefix_queries_total, before.prefix_queries_total
        if lookups is None or lookups_before is None or lookups < lookups_before:
            return
        self._credit += lookups - lookups_before
        self._measured += _growth(before.prefix_hits_total, state.prefix_hits_total)
        self._tier += _growth(before.tier_hits_total, state.tier_hits_total)
        self._rejected += _growth(before.rejected_responses_total, state.rejected_responses_total)
        yield from self._accept()
        if state.running + state.waiting == 0:
            yield from self._reject(state.observed_at - SETTLING)
        unexplained = self._unexplained
        while unexplained and unexplained[0][0] <= state.observed_at - SETTLING:
            unexplained.popleft()
        if not self._open:
            self.unproven = max(0.0, self.unproven - self._credit)
            if self._credit:
                unexplained.append((state.observed_at, self._credit))
            self._credit = 0.0
        if state.prefix_hits_total is not None:
            self._compare()

    def _accept(self) -> Iterator[Verdict]:
        waiting = self._open
        while waiting and self._credit >= NEARLY * waiting[0].tokens:
            prompt = self._next()
            self._credit = max(0.0, self._credit - prompt.tokens)
            self.unproven = max(0.0, self.unproven - FORGIVENESS * prompt.new_tokens)
            self._settle(prompt.tokens, prompt.cached_tokens, prompt.prompts)
            if prompt.claim is not None:
                yield Verdict(prompt.claim, accepted=True)

    def _reject(self, sent_by: float) -> Iterator[Verdict]:
        waiting = self._open
        while waiting and waiting[0].at <= sent_by:
            prompt = self._next()
            if prompt.claim is not None:
                yield Verdict(prompt.claim, accepted=False)

    def _compare(self) -> None:
        """End the window if it is complete, or if nothing was found although much was expected."""
        complete = self._settled >= WINDOW_PROMPTS and self._settled_tokens >= WINDOW_TOKENS
        nothing_found = (
            not self._measured and self._settled >= NOTHING_FOUND_PROMPTS and self._expected >= NOTHING_FOUND_TOKENS
        )
        if not complete and not nothing_found:
            return
        if self._rejected <= REJECTED_SHARE * self._settled:
            self._learn()
        self._forget_window()

    def _learn(self) -> None:
        tokens = self._settled_tokens
        self.windows += 1
        self.last_window = HitRatios(
            *(min(1.0, part / tokens) for part in (self._expected, self._measured, self._tier))
        )
        if self._expected < LEAST_EXPECTED * tokens:
            return
        ratio = min(1.0, self._measured / self._expected)
        if ratio >= LOST_BELOW:
            self._proven = True
            self.trust += TRUST_WEIGHT * (ratio - self.trust)
        elif self._proven:
            self.emptied = True
        else:
            self.trust = ratio

    def _forget_window(self) -> None:
        self._settled = 0
        self._settled_tokens = self._expected = self._measured = self._tier = self._rejected = 0.0


def _growth(before: float | None, now: float | None) -> float:
    """How far a counter has moved; 0 if it is not exported."""
    return max(0.0, now - before) if now is not None and before is not None else 0.0
