"""Estimates which prompts every engine holds in its KV cache: the prefix index, corrected by the engines' counters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus

from warmroute.pool.endpoint import EngineState
from warmroute.prefix.chain import Chain
from warmroute.prefix.index import PrefixIndex, holders_of
from warmroute.prefix.remote import RemotePrompt
from warmroute.routing.cached_tokens import NOTHING_CACHED, CachedTokens
from warmroute.routing.candidates import Members
from warmroute.routing.confirmation import UNPROVEN_SHARE, SentPrompt, Verdict
from warmroute.routing.decision import Decision
from warmroute.routing.endpoint_load import EndpointLoad
from warmroute.routing.sent_request import NOT_ENTERED, RemoteRequests, SentRequest

LONG_TAIL = 16_384
"""Bytes of a prompt beyond what the endpoint holds (about 4,000 tokens) from which they are unconfirmed until the engine has
looked them up. Rejected prompts with less evict little."""
FULL = 0.9
"""Share of a holder's capacity from which the engine's cache counts as full."""
LENGTH_ERROR = 1.5
"""Factor by which an estimated prompt length must exceed the engine's limit for the engine to reject it for certain."""
USUAL_BLOCK = 16
"""Tokens of a block of the KV cache up to which cached tokens are not rounded down to whole blocks: the number of a prompt's
tokens is an estimate that errs by more. vLLM's default. A prompt of which 98 of 181 tokens are held would show 0.53 in place
of 0.54 (tests/routing/test_router.py)."""


class CacheModel:
    """The prefix index with one holder for each endpoint, and how far each holder is trusted.

    Capacities are in bytes of prompt; they include ``headroom``, the factor by which they exceed the KV cache.
    """

    def __init__(self, *, limit: int, headroom: float) -> None:
        self._index = PrefixIndex(limit=limit)
        self.headroom = headroom
        self._distrusted: dict[int, float] = {}
        """Factors on expected cached tokens, by holder, of engines that hold less than expected."""
        self._block_sizes: dict[int, int] = {}
        """Holders of the engines whose KV cache has blocks of a size in tokens, as a mask by that size."""
        self._without_cache = 0
        """Holders, as a mask, of the engines that keep no prompts."""

    # ---------------------------------------------------------------- members

    def open(self, capacity: int) -> int:
        """A new, empty holder for an engine whose cache takes ``capacity`` bytes."""
        return self._index.open(capacity)

    def close(self, holder: int) -> None:
        """Forget all that the holder holds."""
        self._distrusted.pop(holder, None)
        self._without_cache &= ~(1 << holder)
        self._set_block_size(holder, None)
        self._index.close(holder)

    def reopen(self, holder: int, capacity: int) -> int:
        """A new, empty holder in place of this one. What is known of the engine's cache stays."""
        size = next((size for size, holders in self._block_sizes.items() if holders >> holder & 1), None)
        keeps_none = self._without_cache >> holder & 1
        factor = self._distrusted.get(holder)
        self.close(holder)
        new = self.open(capacity)
        self._set_block_size(new, size)
        if factor is not None:
            self._distrusted[new] = factor
        self._without_cache |= keeps_none << new
        return new

    def sweep(self) -> bool:
        """A slice of the clean-up after closed holders. True while there is more."""
        return self._index.sweep()

    def holders(self, hashes: Sequence[int]) -> Iterator[int]:
        """The holders that hold the first checkpoints of a prompt."""
        return holders_of(self._index.holders(hashes))

    def held(self, holder: int) -> tuple[int, int]:
        """Checkpoints, as they count against the limit, and bytes of prompt that the holder holds."""
        return self._index.size(holder), self._index.held(holder)[1]

    # ---------------------------------------------------------------- decisions

    def _match_one(
        self, chain: Chain, tokens_per_byte: float, prompt_tokens: float, members: Members
    ) -> tuple[CachedTokens, float]:
        """The tokens of the prompt that each member holds, and the most that any holds."""
        rest = members.mask
        groups = self._index.match(chain, rest & ~self._without_cache)
        if not groups:
            return NOTHING_CACHED, 0.0
        # The last token is always computed: its logits give the first token of the answer.
        held = [(mask, min(chain.ends[depth - 1] * tokens_per_byte, prompt_tokens - 1)) for mask, depth in groups]
        if self._block_sizes:
            held = self._in_whole_blocks(held)
        for mask, _ in groups:
            rest &= ~mask
        held.append((rest, 0.0))
        if self._distrusted:
            held = self._discounted(held)
        best = max(tokens for _, tokens in held)
        most, default = held[0]  # often a system prompt that nearly all hold
        for mask, tokens in held:
            if mask.bit_count() > most.bit_count():
                most, default = mask, tokens
        overrides = {}
        for mask, tokens in held:
            if mask != most:
                for holder in holders_of(mask):
                    overrides[members.position[holder]] = tokens
        return CachedTokens(default, overrides), best

    def match(
        self, chains: Sequence[Chain], tokens_per_byte: float, prompt_tokens: float, members: Members
    ) -> tuple[CachedTokens, float]:
        """The tokens that each member holds of the prompts together, and the most that any holds. ``prompt_tokens``: of all
        together."""
        if len(chains) == 1:
            return self._match_one(chains[0], tokens_per_byte, prompt_tokens, members)
        default, more = 0.0, dict[int, float]()
        for chain in chains:
            cached, _ = self._match_one(chain, tokens_per_byte, max(1.0, chain.prompt_bytes * tokens_per_byte), members)
            default += cached.default
            for k, tokens in cached.overrides.items():
                more[k] = more.get(k, 0.0) + tokens - cached.default
        overrides = {k: default + tokens for k, tokens in more.items()}
        if len(overrides) == len(members.loads):  # one of them has to have the default
            _, default = overrides.popitem()
        return CachedTokens(default, overrides), max([default, *overrides.values()])

    def cached_tokens(self, decision: SentRequest, load: EndpointLoad) -> float:
        """The tokens of the decision's prompts that an endpoint holds."""
        if not decision.reads_cache or not decision.chain.hashes:
            return 0.0
        members, tokens_per_byte = Members((load,)), decision.prompt_tokens / decision.prompt_bytes
        cached, _ = self.match(decision.chains, tokens_per_byte, decision.prompt_tokens, members)
        return cached.at(0)

    def expect(self, decision: SentRequest, *, exact: bool) -> None:
        """The decision's prompts were sent to the engine. ``exact``: their length is known, not estimated.

        Nothing is expected of an engine that keeps no prompts.
        """
        load = decision.load
        if self._without_cache >> load.holder & 1:
            return
        if not decision.further:
            decision.held, decision.sent = self._expect_prompt(
                decision, decision.chain, decision.prompt_tokens, decision.cached_tokens, exact=exact
            )
            decision.until = self._index.uses
            return
        held: tuple[int, ...] = ()
        sent: tuple[SentPrompt, ...] = ()
        for chain in decision.chains:
            share = chain.prompt_bytes / decision.prompt_bytes
            tokens, cached_tokens = share * decision.prompt_tokens, share * decision.cached_tokens
            one_held, one_sent = self._expect_prompt(decision, chain, tokens, cached_tokens, exact=exact)
            held += one_held
            sent += one_sent
        decision.held, decision.sent, decision.until = held, sent, self._index.uses

    def _expect_prompt(
        self,
        decision: SentRequest,
        chain: Chain,
        tokens: float,
        cached_tokens: float,
        *,
        exact: bool,
    ) -> tuple[tuple[int], tuple[SentPrompt, ...]]:
        """One prompt of the decision was sent. Returns how many of its checkpoints the endpoint had before, and the prompt
        if it waits for the engine's counters.

        Nothing is expected of a prompt that the engine will reject for its length. A long new tail is unconfirmed until the
        engine has looked it up; a short one, too, while many tokens are unproven, and every new one that is never looked up.
        """
        load = decision.load
        state = load.endpoint.state
        longest = None if state is None else state.max_model_len
        if longest is not None and tokens > longest * (1.0 if exact else LENGTH_ERROR):
            return (NOT_ENTERED,), ()
        confirmation = load.confirmation
        if not confirmation.counts:
            return (self._insert(load, chain),), ()
        if not decision.reads_cache:
            known = self._index.known(load.holder, chain)[1]
            self._index.insert_unconfirmed(load.holder, chain)
            return (known,), ()
        # Each sample looks up the whole prompt, and all but the first one find it.
        again = (decision.samples - 1) * tokens
        looked_up, expected = tokens + again, cached_tokens / confirmation.factor + again
        if confirmation.settle_late(looked_up, expected, decision.at):
            return (self._insert(load, chain),), ()
        unconfirmed = None
        unproven_bytes = confirmation.unproven * chain.prompt_bytes / tokens
        proven = unproven_bytes <= UNPROVEN_SHARE * self._index.capacity(load.holder)
        if proven and chain.prompt_bytes < LONG_TAIL:
            held = self._insert(load, chain)
        else:
            confirmed, held = self._index.known(load.holder, chain)
            tail = chain.ends[-1] - (chain.ends[confirmed - 1] if confirmed else 0)
            if not tail or (proven and tail < LONG_TAIL):
                self._insert(load, chain)
            else:
                self._index.insert_unconfirmed(load.holder, chain)
                unconfirmed = chain
        sent = confirmation.sent(
            looked_up, expected, unconfirmed, decision.at, most_checkpoints=self._index.most_unconfirmed
        )
        return (held,), (sent,)

    def expect_remote(self, remote: RemoteRequests) -> None:
        """Another picker's prompts were sent to the engine. As :meth:`expect`, for all of them together.

        A prompt whose new part is longer than the engine's cache is an absurd figure: it is not entered.
        """
        load, confirmation = remote.load, remote.load.confirmation
        if self._without_cache >> load.holder & 1:
            return
        if not confirmation.counts:
            self._insert_remote(remote, confirmed=True)
            return
        if not remote.reads_cache:
            self._insert_remote(remote, confirmed=False)
            return
        if confirmation.settle_late(remote.tokens, remote.cached_tokens, remote.at, prompts=len(remote.growths)):
            self._insert_remote(remote, confirmed=True)
            return
        unproven_bytes = confirmation.unproven * remote.prompt_bytes / remote.tokens
        proven = unproven_bytes <= UNPROVEN_SHARE * self._index.capacity(load.holder)
        longest = max([growth.new_bytes for growth in remote.growths])
        confirmed = not longest or (proven and longest < LONG_TAIL)
        claim = self._insert_remote(remote, confirmed=confirmed)
        confirmation.sent(
            remote.tokens,
            remote.cached_tokens,
            None if confirmed else claim,
            remote.at,
            most_checkpoints=self._index.most_unconfirmed,
            prompts=len(remote.growths),
        )

    def _insert_remote(self, remote: RemoteRequests, *, confirmed: bool) -> tuple[RemotePrompt, ...]:
        holder = remote.load.holder
        capacity = self._index.capacity(holder)
        growths = [growth for growth in remote.growths if growth.new_bytes <= capacity]
        prompts = self._index.insert_remote(holder, growths, confirmed=confirmed)
        if confirmed:
            self._update_fill(remote.load)
        return prompts

    # ---------------------------------------------------------------- evidence

    def observe(self, load: EndpointLoad, state: EngineState, capacity: int) -> bool:
        """A scrape of the endpoint's engine: its counters confirm prompts and measure hits, within ``capacity``.

        Returns whether the engine's cache has been emptied while the engine keeps running: it sleeps, it keeps no prompts,
        or it finds nothing of what it found before. Then the caller gives the endpoint a new holder.
        """
        holder, confirmation = load.holder, load.confirmation
        self._index.resize(holder, capacity)
        self._set_block_size(holder, state.block_size)
        windows = confirmation.windows
        self._settle(load, confirmation.observe(state))
        confirmation.full = self._index.fill(holder) >= FULL
        load.cache_extent.observe_tier(state)
        if confirmation.windows > windows and confirmation.last_window is not None:
            load.cache_extent.observe_window(confirmation.last_window, full=confirmation.full)
        if confirmation.factor < 1:
            self._distrusted[holder] = confirmation.factor
        else:
            self._distrusted.pop(holder, None)
        if state.caches_prompts:
            self._without_cache &= ~(1 << holder)
        else:
            self._without_cache |= 1 << holder
        return confirmation.emptied or (
            (state.sleeping or not state.caches_prompts) and self._index.held(holder)[0] > 0
        )

    def responded(self, decision: Decision, status: int) -> None:
        """The engine's response to the decision's request: one that failed has computed nothing."""
        if status >= HTTPStatus.BAD_REQUEST:
            self.take_back(decision)

    def take_back(self, decision: Decision) -> None:
        """The endpoint has not served the decision's request. What a later request has used stays: it may be served."""
        if not decision.outlived:
            for sent in decision.sent:
                decision.load.confirmation.withdraw(sent)
            for chain, held in zip(decision.chains, decision.held, strict=False):  # none is held without a cache
                if held != NOT_ENTERED:
                    self._index.remove(decision.load.holder, chain, held, until=decision.until)
        decision.held, decision.sent = (), ()

    def _settle(self, load: EndpointLoad, verdicts: Iterable[Verdict]) -> None:
        for claim, accepted in verdicts:
            match claim:
                case Chain() if accepted:
                    self._insert(load, claim)
                case Chain():
                    self._index.discard(load.holder, claim)
                case prompts if accepted:
                    self._index.confirm_remote(load.holder, prompts)
                    self._update_fill(load)
                case prompts:
                    self._index.discard_remote(prompts)

    def _insert(self, load: EndpointLoad, chain: Chain) -> int:
        held = self._index.insert(load.holder, chain)
        self._update_fill(load)
        return held

    def _update_fill(self, load: EndpointLoad) -> None:
        # Where a second tier's size is learnt, the fill is that of the first tier: a new token moves another one out of it,
        # whatever the second one still holds. Where the page names that size, it is the fill of the second tier.
        load.cache_fill = min(1.0, self._index.fill(load.holder) * self.headroom * load.cache_extent.factor)

    def _set_block_size(self, holder: int, size: int | None) -> None:
        """Note the block size of the holder's engine; None, or at most :data:`USUAL_BLOCK`: found token by token."""
        bit, sizes = 1 << holder, self._block_sizes
        if size is not None and sizes.get(size, 0) & bit:
            return
        for other in [other for other, holders in sizes.items() if holders & bit]:
            sizes[other] &= ~bit
            if not sizes[other]:
                del sizes[other]
        if size is not None and size > USUAL_BLOCK:
            sizes[size] = sizes.get(size, 0) | bit

    def _in_whole_blocks(self, groups: list[tuple[int, float]]) -> list[tuple[int, float]]:
        """The groups of holders and cached tokens; engines find whole blocks only."""
        result = []
        for mask, tokens in groups:
            rest = mask
            for size, holders in self._block_sizes.items():
                if part := rest & holders:
                    result.append((part, tokens // size * size))
                    rest &= ~part
            if rest:
                result.append((rest, tokens))
        return result

    def _discounted(self, groups: list[tuple[int, float]]) -> list[tuple[int, float]]:
        """The groups of holders and cached tokens; a holder that is not trusted stands alone with fewer tokens."""
        result = []
        for mask, tokens in groups:
            trusted = mask
            for holder, factor in self._distrusted.items():
                if mask >> holder & 1:
                    trusted &= ~(1 << holder)
                    result.append((1 << holder, factor * tokens))
            if trusted:
                result.append((trusted, tokens))
        return result
