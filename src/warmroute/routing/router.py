"""The router: from a request and the pool to a decision. WITHOUT IO: the time is passed in.

It listens to the pool, keeps each endpoint's load and the prefix index, and updates them with every decision before the
next one is made.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nsmallest

from warmroute.log_throttle import LogThrottle
from warmroute.pool.endpoint import Endpoint, Health
from warmroute.pool.pool import Pool, PoolListener
from warmroute.prefix.chain import EMPTY_CHAIN, Chain, build, build_each
from warmroute.request.inference import InferenceRequest
from warmroute.request.rejections import Rejection, no_endpoint, shed
from warmroute.routing import strategies
from warmroute.routing.bytes_per_token import RANGE, UNKNOWN, BytesPerToken
from warmroute.routing.cache_model import CacheModel
from warmroute.routing.cached_tokens import NOTHING_CACHED, CachedTokens
from warmroute.routing.candidate_table import CandidateTable
from warmroute.routing.candidates import Candidates
from warmroute.routing.cost import FULL_HIT_RATIO, HIT_RATIO_MEMORY, time_to_first_token
from warmroute.routing.decision import Decision, Measurement, reason_of
from warmroute.routing.decision_listener import DecisionListener
from warmroute.routing.decision_record import DecisionRecord
from warmroute.routing.endpoint_load import EndpointLoad, LoadConstants
from warmroute.routing.known_models import KnownModels
from warmroute.routing.outlier_detection import Evidence, OutlierDetection
from warmroute.routing.saturation import SaturationLimits, saturated
from warmroute.routing.sent_request import MOST_REQUESTS_OF_ONE, RemoteRequests
from warmroute.routing.slowness import update_slowness
from warmroute.routing.state_keepers import StateKeepers
from warmroute.routing.virtual_queue import ASSUMED_DURATION

logger = logging.getLogger(__name__)

WARM_MESSAGE = "Do prefix-aware routing!"
"""The log line of decisions whose reason is ``warm``; :mod:`warmroute.observability.warm_log` writes it."""
FAILURE_LOG_INTERVAL = 10.0
"""Least seconds between two log lines about failures of the strategy."""
MOST_MATCHED_PROMPTS = 256
"""Prompts of one request that are matched and entered, about 2 ms of work; further ones count as not cached."""
_NO_CHAINS = (EMPTY_CHAIN,)
SLOWNESS_INTERVAL = 1.0
"""Seconds between two updates of the endpoints' slowness."""


@dataclass(frozen=True, slots=True)
class RoutingConstants:
    """The router's share of the settings, which :class:`~warmroute.settings.Settings` explains."""

    load: LoadConstants
    saturation: SaturationLimits
    strategy: str
    holdout: float
    holdout_strategy: str
    max_endpoints: int
    prefix_match_threshold: float
    bytes_per_token: float
    cache_headroom: float
    index_limit: int


class Router(PoolListener):
    """Chooses endpoints. One instance serves one pool.

    ``listeners`` are told of each decision. ``name`` tells this router's decisions from those of other pickers.
    """

    def __init__(
        self,
        pool: Pool,
        constants: RoutingConstants,
        *,
        rng: random.Random,
        now: float,
        listeners: tuple[DecisionListener, ...] = (),
        name: str = "",
    ) -> None:
        self._pool = pool
        self._rng = rng
        self._outliers = OutlierDetection(self._health_changed)
        self._loads: dict[str, EndpointLoad] = {}
        self._caches = CacheModel(limit=constants.index_limit, headroom=constants.cache_headroom)
        self._states = StateKeepers()
        self._bytes_per_token = BytesPerToken(constants.bytes_per_token)
        self._models = KnownModels()
        self._choices = 0
        self._hit_ratio = FULL_HIT_RATIO
        """EWMA over requests: the share of the prompt's tokens that the candidate that held most of it held."""
        self._slowness_due = now
        self._constants = constants
        self._strategy = strategies.find(constants.strategy, rng=rng)
        self._holdout_strategy = strategies.find(constants.holdout_strategy, rng=rng)
        self._strategy_failures = LogThrottle(FAILURE_LOG_INTERVAL)
        self.listeners = listeners
        self._name = name
        self._table: CandidateTable | None = None
        pool.subscribe(self, now)

    # ---------------------------------------------------------------- settings

    @property
    def strategy(self) -> str:
        """Name of the strategy in force."""
        return self._constants.strategy

    @property
    def uses_headers(self) -> bool:
        """Whether the strategy in force reads the headers of requests."""
        return self._strategy.uses_headers or self._holdout_strategy.uses_headers

    def apply(self, constants: RoutingConstants) -> None:
        """Change the constants while running. Raises ConfigurationError for an unknown strategy and then changes
        nothing."""
        before, strategy, holdout_strategy = self._constants, self._strategy, self._holdout_strategy
        if constants.strategy != before.strategy:  # else a strategy's file would be run again, and its state be lost
            strategy = strategies.find(constants.strategy, rng=self._rng)
        if constants.holdout_strategy != before.holdout_strategy:
            holdout_strategy = strategies.find(constants.holdout_strategy, rng=self._rng)
        self._strategy, self._holdout_strategy, self._constants = strategy, holdout_strategy, constants
        self._bytes_per_token.begin_with(constants.bytes_per_token)
        self._caches.headroom = constants.cache_headroom
        self._table = None

    # ---------------------------------------------------------------- pool listener

    def endpoint_added(self, endpoint: Endpoint, now: float) -> None:
        """Begin to track its load and its KV cache."""
        self._loads[endpoint.id] = EndpointLoad(endpoint, self._caches.open(self._capacity(endpoint)), now)
        self._outliers.added(endpoint)
        self._table = None

    def endpoint_removed(self, endpoint: Endpoint, now: float) -> None:
        """Forget its load and its KV cache."""
        load = self._loads.pop(endpoint.id)
        load.reset(now)  # its requests have outlived it
        self._caches.close(load.holder)
        self._bytes_per_token.forget(load)
        self._outliers.removed(endpoint)
        self._table = None

    def endpoint_changed(self, endpoint: Endpoint, now: float) -> None:
        """It may have become available, or no longer be available, or serve other models."""
        self._table = None
        if endpoint.models is not None:
            self._models.add_adapters(endpoint.models.adapters)
            self._models.replace_aliases(
                load.endpoint.models for load in self._loads.values() if load.endpoint.models is not None
            )

    def endpoint_restarted(self, endpoint: Endpoint, now: float) -> None:
        """Its KV cache and its queue are empty."""
        load = self._loads[endpoint.id]
        load.reset(now)
        self._forget_cache(load)
        self._bytes_per_token.forget(load)
        self._outliers.restarted(endpoint, now)

    def endpoint_cache_emptied(self, endpoint: Endpoint, now: float) -> None:
        """Its KV cache is empty, its queue is not."""
        self._forget_cache(self._loads[endpoint.id])

    def endpoint_observed(self, endpoint: Endpoint, now: float) -> None:
        """Correct its load by what the engine reports."""
        state = endpoint.state
        if state is None:
            return
        load = self._loads[endpoint.id]
        load.observe(state, self._constants.load)
        self._bytes_per_token.observe(load, state)
        self._outliers.observed(endpoint, state, now)
        if self._caches.observe(load, state, self._capacity(endpoint, load.cache_extent.factor)):
            logger.info("forgetting an endpoint's cached prompts", extra={"fields": {"endpoint": endpoint.id}})
            self._forget_cache(load)
        self._models.add_adapters(state.loaded_adapters)
        if now >= self._slowness_due:
            self._slowness_due = now + SLOWNESS_INTERVAL
            update_slowness(self._loads.values())
            if self._table is not None:
                self._table.update_all(now)
        else:
            self._update(load, now)

    def _health_changed(self, endpoint: Endpoint, health: Health, evidence: Evidence | None, now: float) -> None:
        self._pool.set_health(endpoint, health, now)
        if evidence is not None:
            fields = {"endpoint": endpoint.id, "reason": evidence.value}
            logger.warning("endpoint ejected", extra={"fields": fields})
        elif health is Health.HEALTHY:
            logger.info("endpoint healthy again", extra={"fields": {"endpoint": endpoint.id}})

    def _capacity(self, endpoint: Endpoint, extent: float = 1.0) -> int:
        """Bytes of prompt that the endpoint's KV cache holds in all its tiers, times the headroom.

        ``extent``: factor by which they exceed the size on its page (:mod:`warmroute.routing.cache_extent`).
        """
        tokens = self._constants.load.capacity_tokens(endpoint) * extent
        state = endpoint.state
        if state is not None and state.tier_tokens is not None:
            tokens = max(tokens, state.tier_tokens)
        return int(tokens * self._constants.cache_headroom * self._bytes_per_token.estimate)

    def _forget_cache(self, load: EndpointLoad) -> None:
        """Give the endpoint a new, empty holder in the prefix index."""
        load.holder = self._caches.reopen(load.holder, self._capacity(load.endpoint, load.cache_extent.factor))
        load.cache_fill = 0.0
        load.confirmation.forget()
        self._table = None

    # ---------------------------------------------------------------- decisions

    def pick(
        self,
        request: InferenceRequest,
        now: float,
        *,
        request_id: str = "",
        traceparent: str = "",
        allowed: frozenset[str] | None = None,
    ) -> Decision | Rejection:
        """Choose an endpoint and count the request on it.

        ``allowed`` restricts the choice (the gateway's subset hint): canonical targets ``ip:port`` or ``[v6]:port``, or
        canonical addresses for any port (:func:`~warmroute.pool.endpoint.canonical_address`).

        Returns a Rejection if there is nothing to choose from (503), or if the request is sheddable and all candidates
        are saturated (429). Where a custom strategy fails, PREFIX_CACHE chooses.
        """
        share = self._constants.holdout
        choice = self._choose(request, now, allowed, held_out=share > 0 and self._rng.random() < share)
        if isinstance(choice, Rejection):
            return choice
        decision, context, values = choice
        record = None
        if self.listeners:  # before it is booked: the record shows the load that the decision saw
            record = self._record(decision, context, values)
            record.id = decision.id = f"{self._name}-{self._choices + 1}"
            record.request_id = decision.request_id = request_id
            record.traceparent = traceparent
        if context.most_cached is not None:
            self._hit_ratio += (context.most_cached / decision.prompt_tokens - self._hit_ratio) / HIT_RATIO_MEMORY
        candidates, load = context.candidates, decision.load
        if decision.prompt_bytes:  # else no first token comes
            factors = candidates.factors[candidates.members.position[load.holder]]
            predicted = time_to_first_token(factors, context.factors, cached_tokens=decision.cached_tokens)
            load.prediction.expect(predicted)
        self._book(decision, now)
        if record is not None:
            for listener in self.listeners:
                listener.decided(decision, record)
        return decision

    def preview(
        self, request: InferenceRequest, now: float, *, allowed: frozenset[str] | None = None
    ) -> DecisionRecord | Rejection:
        """The record, without an id, of the decision that :meth:`pick` would make now. Nothing is counted, and no listener
        is told."""
        choice = self._choose(request, now, allowed)
        return choice if isinstance(choice, Rejection) else self._record(*choice)

    def _choose(
        self, request: InferenceRequest, now: float, allowed: frozenset[str] | None, *, held_out: bool = False
    ) -> tuple[Decision, strategies.PickContext, Sequence[float]] | Rejection:
        """The decision, and the strategy's input and values. Nothing is counted yet."""
        candidates = self._current_table(now).select(allowed, request.model)
        rejection = self._reject(request, candidates, allowed)
        if rejection is not None:
            return rejection
        constants, loads = self._constants, candidates.loads
        chains, prompt_tokens, cached, most_cached = self._match(request, candidates)
        prompts = _equal_prompts(request.lengths()) if request.starts else 1.0
        context = strategies.PickContext(
            request=request,
            candidates=candidates,
            cached=cached,
            factors=candidates.request_factors(prompt_tokens, now, prompts=prompts, hit_ratio=self._hit_ratio),
            constants=constants.load.cost,
            adapter_costs=self._adapter_costs(candidates, request.model),
            most_cached=most_cached,
        )
        strategy, failed = constants.holdout_strategy if held_out else constants.strategy, ""
        try:
            values = self._holdout_strategy(context) if held_out else self._strategy(context)
        except Exception as error:  # a custom one may raise anything
            values, strategy, failed = context.costs(), strategies.FALLBACK, strategy
            self._strategy_failed(failed, error, now)
        k = self._states.keeper(request.state, candidates.members) if request.state else _lowest(values, loads)
        cached_tokens, warm_from = cached.at(k), constants.prefix_match_threshold * prompt_tokens
        decision = Decision(
            at=now,
            load=loads[k],
            targets=_targets(values, loads, k, constants.max_endpoints),
            strategy=strategy,
            held_out=held_out,
            failed_strategy=failed,
            reason=reason_of(
                cached_tokens,
                best=most_cached or 0.0,
                threshold=warm_from,
                has_prompt=request.prompt_bytes > 0,
                has_state=bool(request.state),
            ),
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            random_cached_tokens=cached.mean(len(loads)),
            prompt_bytes=request.prompt_bytes,
            exact=request.tokens is not None,
            partial=request.partial,
            chain=chains[0],
            adapter=request.model if context.adapter_costs is not None else "",
            further=tuple(chains[1:]),
            prompts=prompts,
            requests=min((1 + len(request.starts)) * request.samples, MOST_REQUESTS_OF_ONE),
            samples=request.samples,
            reads_cache=request.reads_cache,
        )
        return decision, context, values

    def _record(self, decision: Decision, context: strategies.PickContext, values: Sequence[float]) -> DecisionRecord:
        warm_from = self._constants.prefix_match_threshold * decision.prompt_tokens
        return DecisionRecord.of(decision, context, values, warm_from=warm_from)

    def _current_table(self, now: float) -> CandidateTable:
        table = self._table
        if table is None:
            ready = [load for load in self._loads.values() if load.endpoint.ready]
            table = self._table = CandidateTable(ready, self._constants.load, now)
        table.refresh(now)
        return table

    def _reject(
        self, request: InferenceRequest, candidates: Candidates, allowed: frozenset[str] | None
    ) -> Rejection | None:
        """Why no endpoint is chosen; None if one can be."""
        if not candidates.loads:
            if allowed is not None and self._loads:
                return no_endpoint("No endpoint of the given subset is ready.", reason="empty-subset")
            return no_endpoint("No endpoint is ready.")
        if request.sheddable and saturated(candidates, self._constants.saturation):
            return shed("Every endpoint is saturated, and requests of this criticality or priority are refused then.")
        return None

    def _match(
        self, request: InferenceRequest, candidates: Candidates
    ) -> tuple[Sequence[Chain], float, CachedTokens, float | None]:
        """The prompts' chains and tokens, the tokens that each candidate holds, and the most that any holds; None if nothing
        was looked up."""
        prompt_bytes = request.prompt_bytes
        prompt_tokens = max(1.0, request.tokens or prompt_bytes / self._bytes_per_token.estimate)
        if not prompt_bytes or not (self._strategy.uses_prefix or self._holdout_strategy.uses_prefix):
            return _NO_CHAINS, prompt_tokens, NOTHING_CACHED, None
        tokens_per_byte = prompt_tokens / prompt_bytes
        request = self._models.canonical(request)
        if request.starts:
            chains = build_each(
                request.seed, request.parts, head=request.head, starts=request.starts, most=MOST_MATCHED_PROMPTS
            )
        else:
            chains = [build(request.seed, request.parts)]
        if not request.reads_cache:
            return chains, prompt_tokens, NOTHING_CACHED, None
        cached, best = self._caches.match(chains, tokens_per_byte, prompt_tokens, candidates.members)
        return chains, prompt_tokens, cached, best

    def _strategy_failed(self, strategy: str, error: Exception, now: float) -> None:
        """Log it, at most once in :data:`FAILURE_LOG_INTERVAL` for both strategies together."""
        failures = self._strategy_failures.add(now)
        if failures:
            fields = {
                "strategy": strategy,
                "failures": failures,
                "error": strategies.failure(error),
            }
            logger.error("routing strategy failed; PREFIX_CACHE chose", extra={"fields": fields}, exc_info=error)

    def load(self, endpoint: Endpoint) -> EndpointLoad | None:
        """The load of a member of the pool; None if it is none."""
        return self._loads.get(endpoint.id)

    def learn(self, remote: RemoteRequests, now: float) -> None:
        """Another picker has sent requests to an endpoint: count them as if they had been decided here at that time.

        Those of long ago only say what the endpoint holds.
        """
        load, at = remote.load, remote.at
        if at > now - ASSUMED_DURATION:
            rate = load.drain_rate(self._constants.load)
            has_prompts = remote.prompt_bytes > 0
            load.assign_late(remote.work, rate, at, requests=remote.requests, has_prompt=has_prompts)
            self._choices += remote.decisions
            load.last_chosen = self._choices
            self._pool.sent(load.endpoint, at)
            if has_prompts:
                self._outliers.sent(load.endpoint, at, requests=remote.decisions)
                length = remote.prompt_bytes // remote.requests if remote.length_known else UNKNOWN
                self._bytes_per_token.sent(load, length, requests=remote.requests)
            if remote.adapter:
                load.adapters.use(remote.adapter, now)
            if self._table is not None:
                self._table.outdated(load)
        if remote.tokens and remote.growths:
            self._caches.expect_remote(remote)

    def learn_ejected(self, endpoint: Endpoint, now: float) -> None:
        """Another picker has ejected the endpoint because its responses failed."""
        self._outliers.ejected_elsewhere(endpoint, now)

    def learn_bytes_per_token(self, estimate: float) -> None:
        """Another picker's estimate: assumed until more is measured here. Ignored outside the range of estimates."""
        if RANGE[0] <= estimate <= RANGE[1]:
            self._bytes_per_token.begin_with(estimate)

    def _book(self, decision: Decision, now: float) -> None:
        """Count a decision that is made now on its endpoint, so that the next one sees it."""
        load, has_prompt = decision.load, decision.prompt_bytes > 0
        rate = load.drain_rate(self._constants.load)
        load.assign(decision.uncached_work, rate, now, requests=decision.requests, has_prompt=has_prompt)
        decision.process = load.process
        self._choices += 1
        load.last_chosen = self._choices
        self._pool.sent(load.endpoint, now)
        if has_prompt:  # else engines do not count it among the prompts
            self._outliers.sent(load.endpoint, now)
            for length in decision.known_lengths:
                self._bytes_per_token.sent(load, length, requests=decision.samples)
        if decision.adapter:
            load.adapters.use(decision.adapter, now)
        if decision.chain.hashes:
            self._caches.expect(decision, exact=decision.exact)
        self._update(load, now)

    def _adapter_costs(self, candidates: Candidates, model: str) -> Sequence[float] | None:
        """The cost of loading the adapter on each candidate; None if ``model`` is not known to be an adapter."""
        if not self._models.is_adapter(model):
            return None
        price = self._constants.load.cost.adapter
        return [0.0 if model in load.adapters else price for load in candidates.loads]

    def _update(self, load: EndpointLoad, now: float) -> None:
        if self._table is not None:
            self._table.update(load, now)

    # ---------------------------------------------------------------- responses (observed only)

    def opened(self, decision: Decision) -> None:
        """The gateway will report the end of this response: :meth:`finished` follows."""
        if not decision.outlived:
            decision.load.open_responses += 1
        decision.measurement = Measurement()

    def finished(self, decision: Decision, now: float) -> None:
        """The response has ended or the client has gone."""
        self._ended(decision, now)
        if decision.measurement is not None:
            decision.measurement.seconds = now - decision.at
            for listener in self.listeners:
                listener.measured(decision)

    def responded(self, decision: Decision, status: int, now: float) -> None:
        """The gateway shows the HTTP status of the endpoint's response."""
        if decision.measurement is not None:
            decision.measurement.status, decision.measurement.headers_seconds = status, now - decision.at
        if decision.outlived:
            return
        self._outliers.responded(decision.load.endpoint, status, now)
        self._caches.responded(decision, status)

    def remember(self, decision: Decision, state: str) -> None:
        """The endpoint of the decision keeps what it has named ``state`` in its response."""
        self._states.remember(state, decision.endpoint.id)

    def served(self, decision: Decision, target: str, now: float) -> None:
        """The gateway reports that ``target`` served the request: after a retry that is another endpoint than chosen.

        Only ready endpoints count: the address of a pod that is gone may be another pod's by now.
        """
        if decision.measurement is not None:
            decision.measurement.served = target
        chosen = decision.load.endpoint
        if chosen.ready and chosen.target == target:
            return
        ready = (load for load in self._loads.values() if load.endpoint.ready)
        other = next((load for load in ready if load.endpoint.target == target), None)
        if other is None:
            return
        self._caches.take_back(decision)
        self._ended(decision, now)
        decision.load, decision.process = other, other.process
        decision.cached_tokens = self._caches.cached_tokens(decision, other)
        other.open_responses += 1
        rate, has_prompt = other.drain_rate(self._constants.load), decision.prompt_bytes > 0
        other.assign_late(decision.uncached_work, rate, decision.at, requests=decision.requests, has_prompt=has_prompt)
        if decision.adapter:
            other.adapters.use(decision.adapter, now)
        if decision.chain.hashes:
            self._caches.expect(decision, exact=False)
        self._update(other, now)

    def _ended(self, decision: Decision, now: float) -> None:
        """The request has left its endpoint."""
        if not decision.outlived:
            decision.load.response_ended(now, sent_at=decision.at, requests=decision.requests)
            self._update(decision.load, now)

    # ---------------------------------------------------------------- upkeep, metrics and debug pages

    def upkeep(self, now: float) -> bool:
        """End backoffs and trials of ejected endpoints that are over, and do a slice of the prefix index's clean-up.

        Returns whether more of that clean-up is left.
        """
        self._outliers.advance(now)
        return self._caches.sweep()

    @property
    def booked(self) -> int:
        """Requests counted on endpoints since the start, other pickers' included."""
        return self._choices

    @property
    def loads(self) -> Iterable[EndpointLoad]:
        """The load of each member of the pool."""
        return self._loads.values()

    @property
    def bytes_per_token(self) -> float:
        """Prompt bytes for each token, as measured."""
        return self._bytes_per_token.estimate

    def speed_of(self, load: EndpointLoad) -> float:
        """Prefill tokens per second that the endpoint is estimated to compute."""
        return load.speed(self._constants.load)

    def held(self, load: EndpointLoad) -> tuple[int, float]:
        """Checkpoints, as they count against the limit, and tokens that the endpoint holds, by the prefix index."""
        checkpoints, prompt_bytes = self._caches.held(load.holder)
        return checkpoints, prompt_bytes / self._bytes_per_token.estimate

    def holders(self, hashes: Sequence[int]) -> list[str]:
        """Ids of the endpoints that hold the first checkpoints of a prompt, by the prefix index."""
        holders = set(self._caches.holders(hashes))
        return [load.endpoint.id for load in self._loads.values() if load.holder in holders]

    def load_of(self, load: EndpointLoad, now: float) -> tuple[float, float, float]:
        """Waiting requests, running requests and pending prefill tokens, as the next decision would see them."""
        table = self._table
        if table is None or load.holder not in table.all.members.position:
            table = CandidateTable([load], self._constants.load, now)
        table.refresh(now)
        candidates = table.all
        k = candidates.members.position[load.holder]
        return candidates.waiting[k], candidates.running[k], candidates.pending(k, now)


def _equal_prompts(lengths: Sequence[int]) -> float:
    """The number of prompts of equal length that have the length and the attention of these."""
    squares = sum([length * length for length in lengths])
    return sum(lengths) ** 2 / squares if squares else 1.0


def _lowest(values: Sequence[float], loads: Sequence[EndpointLoad]) -> int:
    """Position of the lowest value; of equal ones the least recently chosen endpoint's."""
    lowest = min(values)
    if values.count(lowest) == 1:
        return values.index(lowest)
    equal = [k for k, value in enumerate(values) if value == lowest]
    chosen = [loads[k].last_chosen for k in equal]
    return equal[chosen.index(min(chosen))]


def _targets(values: Sequence[float], loads: Sequence[EndpointLoad], k: int, most: int) -> str:
    """The chosen endpoint's target, then the next best, ``most`` in all. One header names the data-parallel rank for all, so
    the others have the chosen one's."""
    if most == 1:
        return loads[k].endpoint.target
    rank = loads[k].endpoint.spec.rank
    possible = (i for i in range(len(loads)) if i != k and loads[i].endpoint.spec.rank == rank)
    others = nsmallest(most - 1, possible, key=lambda i: (values[i], loads[i].last_chosen))
    return ",".join(loads[i].endpoint.target for i in (k, *others))
