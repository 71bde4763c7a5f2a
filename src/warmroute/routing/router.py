"""The router: a request and the pool to a decision. No IO; the time is passed in.

It listens to the pool, keeps the load books and the prefix index, and books every decision before the next one is made.
"""

from __future__ import annotations

import logging
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

from warmroute.pool.endpoint import Endpoint
from warmroute.pool.pool import Pool, PoolListener
from warmroute.pool.work import prefill_work
from warmroute.prefix.chain import EMPTY_CHAIN, Chain, build
from warmroute.prefix.index import PrefixIndex, slots_of
from warmroute.request.inference import InferenceRequest
from warmroute.request.rejections import Rejection, no_endpoint, shed
from warmroute.routing import strategies
from warmroute.routing.calibration import UNKNOWN, TokenLength
from warmroute.routing.cost import (
    BALANCE_TOKENS,
    CostConstants,
    crowd_of,
    holder_share,
    saturation_weights,
)
from warmroute.routing.load import Book, Fleet, LoadConstants, Row, slowness
from warmroute.routing.saturation import SaturationLimits, saturated

logger = logging.getLogger(__name__)

MAX_KNOWN_ADAPTERS = 1000
"""LoRA adapter names that are remembered as such."""
SLOWNESS_INTERVAL = 1.0
"""Seconds between two looks at who is slower than the median."""


@dataclass(frozen=True, slots=True)
class RoutingConstants:
    """What the router is told at start and when hot settings change; the settings of the same names say what each means."""

    load: LoadConstants
    saturation: SaturationLimits
    strategy: str
    max_endpoints: int
    prefix_match_threshold: float
    bytes_per_token: float
    cache_headroom: float
    index_limit: int
    remembered_decisions: int


@dataclass(slots=True)
class Decision:
    """Where a request goes and why."""

    book: Book
    targets: str
    """``ip:port``, or several separated by commas, best first: the value of the destination header."""
    strategy: str
    reason: str
    """``warm``: it holds more of the prompt than the threshold; ``partial``: it holds less; ``spread``: another holds more,
    but this one is sooner; ``cold``: nobody holds any of it; ``no-prompt``: there was nothing to match."""
    prompt_tokens: float
    cached_tokens: float
    chain: Chain
    adapter: str

    @property
    def endpoint(self) -> Endpoint:
        """The chosen endpoint."""
        return self.book.endpoint

    @property
    def match_ratio(self) -> float:
        """Share of the prompt that the endpoint probably holds."""
        return self.cached_tokens / self.prompt_tokens


class Router(PoolListener):
    """Chooses endpoints. One instance serves one pool."""

    def __init__(self, pool: Pool, constants: RoutingConstants, *, rng: random.Random, now: float) -> None:
        self._rng = rng
        self._books: dict[str, Book] = {}
        self._index = PrefixIndex(limit=constants.index_limit)
        self._token_length = TokenLength(constants.bytes_per_token)
        self._known_adapters: OrderedDict[str, None] = OrderedDict()
        self._choices = 0
        self._slowness_due = now
        self._constants = constants
        self._strategy = strategies.find(constants.strategy, rng=rng)
        self._history: deque[_Record] = deque(maxlen=constants.remembered_decisions)
        self._fleet: Fleet | None = None
        pool.subscribe(self, now)

    # ---------------------------------------------------------------- settings

    @property
    def strategy(self) -> str:
        """Name of the strategy in force."""
        return self._constants.strategy

    def apply(self, constants: RoutingConstants, now: float) -> None:
        """Change the constants while running. Raises ConfigurationError for an unknown strategy and then changes nothing."""
        strategy = strategies.find(constants.strategy, rng=self._rng)
        self._strategy, self._constants = strategy, constants
        self._token_length.begin_with(constants.bytes_per_token)
        self._fleet = None

    # ---------------------------------------------------------------- pool listener

    def endpoint_added(self, endpoint: Endpoint, now: float) -> None:
        """Open a book and a slot in the index."""
        self._books[endpoint.id] = Book(endpoint, self._index.open(self._capacity(endpoint)), now)
        self._fleet = None

    def endpoint_removed(self, endpoint: Endpoint, now: float) -> None:
        """Close them."""
        book = self._books.pop(endpoint.id)
        self._index.close(book.slot)
        self._token_length.forget(book)
        self._fleet = None

    def endpoint_changed(self, endpoint: Endpoint, now: float) -> None:
        """Another fleet to choose from."""
        self._fleet = None

    def endpoint_restarted(self, endpoint: Endpoint, now: float) -> None:
        """Its cache and its queue are empty."""
        book = self._books[endpoint.id]
        self._index.close(book.slot)
        book.slot = self._index.open(self._capacity(endpoint))
        book.reset(now)
        self._token_length.forget(book)
        self._fleet = None

    def endpoint_observed(self, endpoint: Endpoint, now: float) -> None:
        """Correct the book by what the engine reports."""
        state = endpoint.state
        if state is None:
            return
        book = self._books[endpoint.id]
        book.observe(state, self._constants.load)
        self._token_length.observe(book, state)
        self._index.resize(book.slot, self._capacity(endpoint))
        for adapter in state.loaded_adapters:
            self._known_adapters[adapter] = None
            if len(self._known_adapters) > MAX_KNOWN_ADAPTERS:
                self._known_adapters.popitem(last=False)
        if now >= self._slowness_due:
            self._slowness_due = now + SLOWNESS_INTERVAL
            slowness(self._books.values())
        fleet = self._fleet
        if fleet is not None and book.slot in fleet.position:
            fleet.update(fleet.position[book.slot], now)

    def _capacity(self, endpoint: Endpoint) -> int:
        """Bytes of prompt that the endpoint's KV cache holds, erring on the large side."""
        tokens = self._constants.load.capacity_tokens(endpoint)
        return int(tokens * self._constants.cache_headroom * self._token_length.bytes_per_token)

    # ---------------------------------------------------------------- decisions

    def pick(
        self,
        request: InferenceRequest,
        now: float,
        *,
        request_id: str = "",
        allowed: Callable[[Endpoint], bool] | None = None,
    ) -> Decision | Rejection:
        """Choose an endpoint and book the request on it.

        ``allowed`` restricts the choice (the gateway's subset hint). A Rejection if there is nothing to choose from (503) or
        all that can be chosen is saturated and the request is sheddable (429). An
        exception can only come from a strategy of somebody's own.
        """
        fleet = self._fleet_of(allowed, now)
        books = fleet.books
        if not books:
            if allowed is not None and self._books:
                return no_endpoint("No endpoint of the given subset is ready.", reason="empty-subset")
            return no_endpoint("No endpoint is ready.")
        constants = self._constants
        if request.sheddable and saturated(fleet, constants.saturation):
            return shed("Every endpoint is busy and the request may be refused.")

        weight = request.weight
        prompt = max(1.0, request.tokens or weight / self._token_length.bytes_per_token)
        cached, best_match, chain = strategies.NOTHING_CACHED, 0.0, EMPTY_CHAIN
        if weight and self._strategy.uses_prefix:
            chain = build(request.seed, request.parts)
            cached, best_match = self._match(chain, prompt / weight, prompt, fleet)
        offer = self._offer(request, fleet, prompt, cached, now)
        values = self._strategy(offer)
        k = _lowest(values, books)
        hit = cached.at(k)
        decision = Decision(
            book=books[k],
            targets=_targets(values, books, k, constants.max_endpoints),
            strategy=constants.strategy,
            reason=_reason(weight, hit, best_match, constants.prefix_match_threshold * prompt),
            prompt_tokens=prompt,
            cached_tokens=hit,
            chain=chain,
            adapter=request.model if offer.adapter_cost is not None else "",
        )
        if self._history.maxlen:
            self._history.append(_Record.of(request_id, decision, offer, values, constants.load.cost))
        self._assign(decision, request, fleet, k, now)
        if decision.reason == "warm" and logger.isEnabledFor(logging.INFO):
            ratio = f" {decision.match_ratio:.2f} > {constants.prefix_match_threshold:.2f}"
            logger.info("Do prefix-aware routing!", extra={"fields": {"request": request_id, "matching ratio": ratio}})
        return decision

    def _fleet_of(self, allowed: Callable[[Endpoint], bool] | None, now: float) -> Fleet:
        """What there is to choose from, up to date."""
        fleet = self._fleet
        if fleet is None:
            fleet = self._fleet = self._assemble(now)
        fleet.refresh(now)
        return fleet if allowed is None else self._assemble(now, allowed)

    def _offer(
        self, request: InferenceRequest, fleet: Fleet, prompt: float, cached: strategies.Cached, now: float
    ) -> strategies.Offer:
        queue_weight, delay_weight = saturation_weights(fleet.least_waiting())
        return strategies.Offer(
            request=request,
            fleet=fleet,
            prompt=prompt,
            cached=cached,
            adapter_cost=self._adapter_costs(fleet, request.model) if request.model in self._known_adapters else None,
            queue_weight=queue_weight,
            delay_weight=delay_weight,
            balance_weight=fleet.balance_weight(delay_weight),
            least_crowd=fleet.least_crowd(*cached),
            now=now,
        )

    def _match(
        self, chain: Chain, tokens_per_byte: float, prompt: float, fleet: Fleet
    ) -> tuple[strategies.Cached, float]:
        """What each endpoint of the fleet holds of a prompt of ``prompt`` tokens, and the most that any holds."""
        rest = fleet.candidates
        groups = self._index.match(chain, rest)
        if not groups:
            return strategies.NOTHING_CACHED, 0.0
        held = [(mask, min(chain.ends[depth - 1] * tokens_per_byte, prompt - 1)) for mask, depth in groups]
        best_match = held[-1][1]
        for mask, _ in groups:
            rest &= ~mask
        held.append((rest, 0.0))
        most, usual = held[0]  # often a system prompt that nearly all hold
        for mask, tokens in held:
            if mask.bit_count() > most.bit_count():
                most, usual = mask, tokens
        position = fleet.position
        others = {}
        for mask, tokens in held:
            if mask != most:
                for slot in slots_of(mask):
                    others[position[slot]] = tokens
        return strategies.Cached(usual, others), best_match

    def _assign(self, decision: Decision, request: InferenceRequest, fleet: Fleet, k: int, now: float) -> None:
        book = decision.book
        self._choices += 1
        book.last_chosen = self._choices
        work = prefill_work(decision.prompt_tokens) - prefill_work(decision.cached_tokens)
        constants = self._constants.load
        book.assign(work, book.drain_rate(constants), now)
        book.matched(decision.cached_tokens, decision.prompt_tokens, constants)
        if request.weight:  # else engines do not count it among the prompts
            self._token_length.sent(book, UNKNOWN if request.partial else request.weight)
        if decision.adapter:
            book.use_adapter(decision.adapter)
        if decision.chain.hashes:
            self._insert(book, decision.chain)
        fleet.update(k, now)
        if fleet is not self._fleet:
            self._update(book, now)

    def _insert(self, book: Book, chain: Chain) -> None:
        self._index.insert(book.slot, chain)
        book.fill = min(1.0, self._index.fill(book.slot) * self._constants.cache_headroom)

    def _assemble(self, now: float, allowed: Callable[[Endpoint], bool] | None = None) -> Fleet:
        """The fleet of the (allowed) endpoints that answer; of all that are ready where none does."""
        ready = [book for book in self._books.values() if book.endpoint.ready]
        if allowed is not None:
            ready = [book for book in ready if allowed(book.endpoint)]
        available = [book for book in ready if book.endpoint.available]
        return Fleet(available or ready, self._constants.load, now)

    def _adapter_costs(self, fleet: Fleet, adapter: str) -> Sequence[float]:
        price = self._constants.load.cost.adapter
        return [0.0 if adapter in book.adapters else price for book in fleet.books]

    # ---------------------------------------------------------------- responses (observed only)

    def opened(self, decision: Decision) -> None:
        """The end of this request will be reported with :meth:`finished`."""
        decision.book.in_flight += 1

    def finished(self, decision: Decision, now: float) -> None:
        """The response has ended or the client has gone."""
        decision.book.finished(now)
        self._update(decision.book, now)

    def served(self, decision: Decision, target: str, now: float) -> None:
        """The gateway reports that ``target`` served the request: after a retry that is another endpoint than chosen."""
        if target == decision.book.endpoint.target:
            return
        other = next((book for book in self._books.values() if book.endpoint.target == target), None)
        if other is None:
            return
        decision.book.finished(now)
        self._update(decision.book, now)
        decision.book = other
        other.in_flight += 1
        if decision.chain.hashes:
            self._insert(other, decision.chain)
        self._update(other, now)

    def _update(self, book: Book, now: float) -> None:
        if self._fleet is not None and book.slot in self._fleet.position:
            self._fleet.update(self._fleet.position[book.slot], now)

    # ---------------------------------------------------------------- upkeep and insight

    def sweep(self) -> bool:
        """A slice of the index's clean-up. True while there is more."""
        return self._index.sweep()

    @property
    def books(self) -> Iterable[Book]:
        """The load books, one for each member of the pool."""
        return self._books.values()

    @property
    def bytes_per_token(self) -> float:
        """Prompt bytes for each token, as measured."""
        return self._token_length.bytes_per_token

    def speed_of(self, book: Book) -> float:
        """Prefill tokens a second that the endpoint is believed to do."""
        return book.speed(self._constants.load)

    def held(self, book: Book) -> tuple[int, float]:
        """Checkpoints and tokens that the index believes the endpoint to hold."""
        checkpoints, weight = self._index.held(book.slot)
        return checkpoints, weight / self._token_length.bytes_per_token

    def load_of(self, book: Book, now: float) -> tuple[float, float, float]:
        """Waiting requests, running requests and pending prefill tokens, as the next decision would see them."""
        fleet = self._fleet
        if fleet is None or book.slot not in fleet.position:
            fleet = Fleet([book], self._constants.load, now)
        fleet.refresh(now)
        k = fleet.position[book.slot]
        return fleet.waiting[k], fleet.running[k], fleet.pending(k, now) / book.tau

    def decisions(self, now: float) -> list[dict[str, Any]]:
        """The last decisions, newest first, each endpoint's cost split into its terms. Never prompt text."""
        return [record.explain(now) for record in reversed(self._history)]


def _lowest(values: Sequence[float], books: Sequence[Book]) -> int:
    """Position of the lowest value; of equal ones the least recently chosen."""
    lowest = min(values)
    k = values.index(lowest)
    if values.count(lowest) > 1:
        return min((i for i in range(k, len(values)) if values[i] == lowest), key=lambda i: books[i].last_chosen)
    return k


def _reason(weight: int, hit: float, best_match: float, much: float) -> str:
    """Why an endpoint was chosen that holds ``hit`` tokens of the prompt; see :attr:`Decision.reason`."""
    if not weight:
        return "no-prompt"
    if hit > much:
        return "warm"
    if hit < best_match:
        return "spread"
    return "partial" if hit else "cold"


def _targets(values: Sequence[float], books: Sequence[Book], k: int, most: int) -> str:
    if most == 1:
        return books[k].endpoint.target
    others = nsmallest(
        most - 1, (i for i in range(len(books)) if i != k), key=lambda i: (values[i], books[i].last_chosen)
    )
    return ",".join(books[i].endpoint.target for i in (k, *others))


@dataclass(slots=True)
class _Record:
    """A decision as it was: the fleet's rows are kept, and split into terms only when somebody looks.

    Neither the request nor its chain is kept: what a hundred records hold is memory that the next request cannot use again
    while it is in the processor's caches, and that costs several times what it takes to fill in a record.
    """

    request_id: str
    at: float
    model: str
    strategy: str
    reason: str
    chosen: str
    targets: str
    prompt_tokens: float
    cached_tokens: float
    constants: CostConstants
    names: tuple[str, ...]
    values: list[float]
    cached: strategies.Cached
    adapter_cost: Sequence[float] | None
    queue_weight: float
    delay_weight: float
    balance_weight: float
    queues: bool
    least_crowd: float
    rows: list[Row]

    @classmethod
    def of(
        cls,
        request_id: str,
        decision: Decision,
        offer: strategies.Offer,
        values: Sequence[float],
        constants: CostConstants,
    ) -> _Record:
        fleet = offer.fleet
        return cls(
            request_id=request_id,
            at=offer.now,
            model=offer.request.model,
            strategy=decision.strategy,
            reason=decision.reason,
            chosen=decision.book.endpoint.id,
            targets=decision.targets,
            prompt_tokens=decision.prompt_tokens,
            cached_tokens=decision.cached_tokens,
            constants=constants,
            names=fleet.names,
            values=list(values),
            cached=offer.cached,
            adapter_cost=offer.adapter_cost,
            queue_weight=offer.queue_weight,
            delay_weight=offer.delay_weight,
            balance_weight=offer.balance_weight,
            queues=fleet.queues,
            least_crowd=offer.least_crowd,
            rows=fleet.rows[:],
        )

    def explain(self, now: float) -> dict[str, Any]:
        cost = self.constants
        prompt, balanced = prefill_work(self.prompt_tokens), min(self.prompt_tokens, BALANCE_TOKENS)
        endpoints = []
        for k, (name, row) in enumerate(zip(self.names, self.rows, strict=True)):
            waiting, running, tau, pending_at_zero, pending_rate, eviction, usage, slot_guard, kv_guard, stale = row
            cached = self.cached.at(k)
            uncached, share = prompt - prefill_work(cached), holder_share(self.prompt_tokens, cached)
            crowd = (1 - share) * crowd_of(waiting, running, queues=self.queues) + share * self.least_crowd
            terms = {
                "queue": self.queue_weight * (pending_at_zero - self.at * pending_rate),
                "prefill": tau * uncached * (1 + eviction),
                "delay": tau * uncached * (self.delay_weight * cost.waiting * waiting + cost.running * running * usage),
                "decode": tau * cost.decode * running,
                "balance": balanced * self.balance_weight * crowd,
                "slots": prompt * slot_guard,
                "kv": prompt * kv_guard,
                "adapter": self.adapter_cost[k] if self.adapter_cost is not None else 0.0,
                "stale": stale,
            }
            endpoints.append(
                {
                    "endpoint": name,
                    "value": self.values[k],
                    "cached_tokens": round(cached),
                    "waiting": round(waiting, 1),
                    "running": round(running, 1),
                    "terms": {term: round(value, 3) for term, value in terms.items()},
                }
            )
        return {
            "request": self.request_id,
            "seconds_ago": round(now - self.at, 3),
            "model": self.model,
            "strategy": self.strategy,
            "reason": self.reason,
            "chosen": self.chosen,
            "targets": self.targets,
            "prompt_tokens": round(self.prompt_tokens),
            "cached_tokens": round(self.cached_tokens),
            "endpoints": endpoints,
        }
