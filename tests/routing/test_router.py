"""The router's choices, one behaviour a test."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from math import exp
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import engine_state, routing_constants
from warmroute.errors import ConfigurationError
from warmroute.observability.recent_decisions import RecentDecisions
from warmroute.pool.endpoint import Endpoint, EndpointSpec, ServedModels
from warmroute.pool.pool import Pool
from warmroute.pool.work import prefill_work
from warmroute.request.inference import NO_PROMPT, InferenceRequest, PromptPart
from warmroute.request.rejections import Rejection
from warmroute.routing import strategies
from warmroute.routing.cached_tokens import CachedTokens
from warmroute.routing.candidate_table import MOST_SELECTIONS
from warmroute.routing.decision import Decision
from warmroute.routing.decision_record import DecisionRecord
from warmroute.routing.endpoint_load import EndpointLoad
from warmroute.routing.outlier_detection import FIRST_BACKOFF
from warmroute.routing.router import Router
from warmroute.routing.sent_request import RemoteRequests


def prompt(*texts: str, model: str = "m") -> InferenceRequest:
    parts = tuple(PromptPart(text.encode(), len(text.encode())) for text in texts)
    return InferenceRequest(
        model=model, seed=model.encode(), parts=parts, prompt_bytes=sum(p.prompt_bytes for p in parts)
    )


class Fixture:
    """A pool of ``size`` endpoints called 0, 1, ... and its router."""

    def __init__(self, size: int, **settings: object) -> None:
        self.pool = Pool()
        self.pool.replace([EndpointSpec("default", str(k), f"10.0.0.{k}", 8000) for k in range(size)], 0.0)
        self.decisions = RecentDecisions(100)
        self.router = Router(
            self.pool,
            routing_constants(**settings),
            rng=random.Random(7),
            now=0.0,
            listeners=(self.decisions,),
            name="picker",
        )

        self.now = self.tokens = self.finished = 0.0
        """Of :meth:`serve`."""

    def endpoint(self, name: str) -> Endpoint:
        return self.pool.endpoints[f"default/{name}"]

    def scrape(self, now: float, **fields: object) -> None:
        """Everybody is idle, or as ``fields`` say."""
        for endpoint in self.pool.endpoints.values():
            self.pool.observed(endpoint, engine_state(now, **fields), now)

    def serve(self, *requests: InferenceRequest, tokens: float, finished: int = 1, **fields: object) -> None:
        """A tenth of a second: a scrape, the requests, and then ``finished`` ones of ``tokens`` tokens in all are done."""
        self.now += 0.1
        self.scrape(self.now, prompt_tokens_total=self.tokens, prompt_requests_total=self.finished, **fields)
        for request in requests:
            self.pick(request, self.now)
        self.tokens += tokens
        self.finished += finished

    def pick(self, request: InferenceRequest, now: float, **options: object) -> str:
        decision = self.router.pick(request, now, **options)  # type: ignore[arg-type]
        assert isinstance(decision, Decision)
        return decision.endpoint.spec.name


def only(*names: str) -> frozenset[str]:
    """A subset hint of the endpoints of these names."""
    return frozenset(f"10.0.0.{name}:8000" for name in names)


LONG = "The quick brown fox jumps over the lazy dog. " * 400


def test_the_next_turn_goes_to_the_warm_endpoint() -> None:
    fixture = Fixture(5)
    first = fixture.pick(prompt(LONG), 0.0)
    fixture.scrape(3.0)
    decision = fixture.router.pick(prompt(LONG, "and then?"), 3.0)
    assert isinstance(decision, Decision)
    assert decision.endpoint.spec.name == first
    assert decision.reason == "warm"
    assert decision.match_ratio > 0.95


@pytest.mark.parametrize(("block_size", "ratio"), [(None, "0.54"), (16, "0.54"), (64, "0.35")])
def test_only_large_blocks_of_the_cache_round_the_share_of_a_prompt(block_size: int | None, ratio: str) -> None:
    fixture = Fixture(1)
    fixture.scrape(0.0, block_size=block_size)
    fixture.pick(prompt("a" * 392), 0.0)
    fixture.scrape(3.0, block_size=block_size)
    decision = fixture.router.pick(prompt("a" * 392, "b" * 334), 3.0)
    assert isinstance(decision, Decision)
    assert f"{decision.match_ratio:.2f}" == ratio


def test_a_decision_says_what_a_random_candidate_would_hold() -> None:
    fixture = Fixture(4)
    decisions = [fixture.router.pick(prompt(LONG), float(k), allowed=only("0", "1", "2")) for k in range(3)]
    for decision, holders in zip(decisions, (0, 1, 1), strict=True):
        assert isinstance(decision, Decision)
        assert decision.random_cached_tokens == pytest.approx(holders / 3 * decision.cached_tokens)


@given(
    default=st.floats(0, 1e6),
    tokens=st.lists(st.none() | st.floats(0, 1e6), min_size=1, max_size=40),
)
def test_the_mean_of_cached_tokens_is_that_over_all_positions(default: float, tokens: list[float | None]) -> None:
    cached = CachedTokens(default, {k: held for k, held in enumerate(tokens) if held is not None})
    assert cached.mean(len(tokens)) == pytest.approx(fmean(cached.at(k) for k in range(len(tokens))), abs=1e-6)


def test_different_prompts_spread_over_an_idle_fleet() -> None:
    fixture = Fixture(5)
    chosen = []
    for k in range(10):
        fixture.scrape(10.0 * k)
        chosen.append(fixture.pick(prompt(f"{k}: {LONG}"), 10.0 * k))
    assert Counter(chosen) == Counter({str(k): 2 for k in range(5)})


def test_a_burst_in_one_millisecond_does_not_herd() -> None:
    fixture = Fixture(4)
    assert Counter(fixture.pick(prompt(f"{k}: {LONG}"), 0.0) for k in range(40)) == Counter(
        {str(k): 10 for k in range(4)}
    )


def test_a_burst_of_identical_prompts_costs_a_busy_fleet_one_prefill() -> None:
    fixture = Fixture(4)
    for name in "0123":
        fixture.pool.observed(fixture.endpoint(name), engine_state(0.0, running=20, waiting=2), 0.0)
    assert len({fixture.pick(prompt(LONG), 0.0) for _ in range(6)}) == 1


def test_a_burst_of_identical_prompts_wakes_an_idle_fleet() -> None:
    """To compute the prompt takes as long as to wait for it, and afterwards all have it."""
    fixture = Fixture(4)
    chosen = [fixture.pick(prompt(LONG), 0.0) for _ in range(12)]
    assert set(chosen[:4]) == {"0", "1", "2", "3"}
    assert Counter(chosen) == Counter({str(k): 3 for k in range(4)})


def test_a_hot_prefix_is_replicated_when_its_holder_is_busy() -> None:
    fixture = Fixture(4)
    fixture.pick(prompt(LONG), 0.0)
    chosen = Counter(fixture.pick(prompt(LONG, f"question {k}: {LONG[:2000]}"), 0.01) for k in range(200))
    assert len(chosen) == 4


def test_fully_cached_prompts_with_long_answers_do_not_pile_up() -> None:
    fixture = Fixture(4)
    holder = fixture.pick(prompt(LONG), 0.0)
    fixture.scrape(10.0)
    fixture.pool.observed(fixture.endpoint(holder), engine_state(10.0, running=250), 10.0)
    assert fixture.pick(prompt(LONG), 10.0) != holder


def test_requests_count_against_their_endpoint_as_far_as_prompts_come_back() -> None:
    """The hit ratio is that of the candidate that holds most. Previews, and prompts that are looked up nowhere, leave it."""
    fixture = Fixture(2)

    def hit_ratio() -> float:
        record = fixture.router.preview(prompt(LONG), fixture.now)
        assert isinstance(record, DecisionRecord)
        return record.request.hit_ratio

    assert hit_ratio() == 0.5, "until something is known"
    for k in range(100):
        fixture.serve(prompt(f"{k}: {LONG}"), tokens=4500.0)
    assert hit_ratio() == pytest.approx(0.5 * exp(-1), rel=0.01)
    for _ in range(100):
        fixture.serve(prompt(LONG)._replace(reads_cache=False), InferenceRequest(), tokens=4500.0)
    assert hit_ratio() == pytest.approx(0.5 * exp(-1), rel=0.01)
    for _ in range(500):
        fixture.serve(prompt(LONG), tokens=4500.0)
    assert hit_ratio() > 0.95


def test_a_full_kv_cache_is_avoided() -> None:
    fixture = Fixture(2)
    holder = fixture.pick(prompt(LONG), 0.0)
    fixture.scrape(10.0)
    fixture.pool.observed(fixture.endpoint(holder), engine_state(10.0, running=30, kv_usage=1.0), 10.0)
    assert fixture.pick(prompt(LONG), 10.0) != holder


def test_a_new_conversation_goes_where_the_cache_has_room() -> None:
    """Not to the endpoint that has the shared system prompt and a cache full of other conversations."""
    fixture = Fixture(2, cache_tokens=20_000, cache_headroom=1.0)
    system = "Be kind. " * 40
    holder = fixture.pick(prompt(system), 0.0)
    for k in range(1, 4):
        fixture.scrape(10.0 * k)
        fixture.pick(prompt(system, f"{k}: {LONG}"), 10.0 * k, allowed=only(holder))
    fixture.scrape(100.0)
    assert fixture.pick(prompt(system, f"new: {LONG}"), 100.0) != holder


def test_a_restarted_endpoint_is_cold() -> None:
    fixture = Fixture(3)
    holder = fixture.pick(prompt(LONG), 0.0)
    fixture.scrape(5.0)
    fixture.pool.restarted(fixture.endpoint(holder), 5.0)
    decision = fixture.router.pick(prompt(LONG), 5.0)
    assert isinstance(decision, Decision)
    assert decision.cached_tokens == 0


def test_prompts_between_two_signs_of_one_restart_are_kept() -> None:
    fixture = Fixture(1)
    spec = dataclasses.replace(fixture.endpoint("0").spec, incarnation="1")
    fixture.pool.upsert(spec, 0.0)
    fixture.pool.restarted(fixture.endpoint("0"), 10.0)
    decisions = [fixture.router.pick(prompt(f"{k} {LONG}"), 11.0) for k in range(5)]
    (load,) = fixture.router.loads
    waiting = fixture.router.load_of(load, 12.0)
    fixture.pool.upsert(dataclasses.replace(spec, incarnation="2"), 12.0)
    for decision in decisions:
        assert isinstance(decision, Decision)
        assert fixture.router.holders(decision.chain.hashes) == ["default/0"]
    assert fixture.router.load_of(load, 12.0) == waiting


def test_a_flapping_endpoint_keeps_its_cache() -> None:
    fixture = Fixture(3)
    holder = fixture.pick(prompt(LONG), 0.0)
    fixture.scrape(5.0)
    spec = fixture.endpoint(holder).spec
    fixture.pool.remove(spec.id, 5.0)
    assert fixture.pick(prompt("x"), 5.0) != holder
    fixture.pool.expire(30.0)
    fixture.pool.upsert(spec, 30.0)
    fixture.scrape(30.0)
    assert fixture.pick(prompt(LONG), 30.0) == holder
    fixture.pool.remove(spec.id, 30.0)
    fixture.pool.expire(91.0)
    fixture.pool.upsert(spec, 91.0)
    fixture.scrape(91.0)
    decision = fixture.router.pick(prompt(LONG), 91.0)
    assert isinstance(decision, Decision)
    assert decision.reason == "cold"


def test_unreachable_endpoints_are_avoided_unless_all_are() -> None:
    fixture = Fixture(3)
    for name in ("0", "1"):
        fixture.pool.unreachable(fixture.endpoint(name), 0.0)
    assert {fixture.pick(prompt(LONG + str(k)), 0.0) for k in range(5)} == {"2"}
    fixture.pool.unreachable(fixture.endpoint("2"), 0.0)
    assert {fixture.pick(prompt(LONG + str(k)), 0.0) for k in range(20)} == {"0", "1", "2"}
    fixture.scrape(1.0)
    fixture.pool.unreachable(fixture.endpoint("1"), 1.0)
    assert {fixture.pick(prompt(str(k)), 1.0) for k in range(20)} == {"0", "2"}, "who answers is preferred again"


def test_a_sleeping_engine_is_not_chosen() -> None:
    fixture = Fixture(2)
    fixture.pool.observed(fixture.endpoint("0"), engine_state(0.0, sleeping=True), 0.0)
    assert {fixture.pick(prompt(str(k)), 0.0) for k in range(4)} == {"1"}


def test_stale_metrics_are_a_penalty() -> None:
    fixture = Fixture(2)
    fixture.scrape(0.0)
    fixture.pool.observed(fixture.endpoint("1"), engine_state(20.0, running=30), 20.0)
    assert fixture.pick(prompt("hello"), 20.0) == "1"


def test_no_endpoint_is_a_refusal() -> None:
    rejection = Fixture(0).router.pick(prompt(LONG), 0.0)
    assert isinstance(rejection, Rejection)
    assert (rejection.status, rejection.reason) == (503, "no-endpoints")
    rejection = Fixture(2).router.pick(prompt(LONG), 0.0, allowed=frozenset({"10.9.9.9"}))
    assert isinstance(rejection, Rejection)
    assert (rejection.status, rejection.reason) == (503, "empty-subset")


def test_a_subset_names_targets_or_addresses_in_any_case() -> None:
    fixture = Fixture(0)
    fixture.pool.replace([EndpointSpec("default", str(k), f"2001:DB8::{k}", 8000 + k) for k in range(3)], 0.0)
    hint = frozenset({"[2001:db8::1]:8001", "2001:db8::2", "[2001:db8::0]:9000"})
    assert {fixture.pick(prompt(str(k)), 0.0, allowed=hint) for k in range(4)} == {"1", "2"}


def test_a_subset_of_endpoints_that_do_not_answer_is_used_all_the_same() -> None:
    fixture = Fixture(3)
    fixture.pool.unreachable(fixture.endpoint("1"), 0.0)
    assert {fixture.pick(prompt(str(k)), 0.0, allowed=only("1", "2")) for k in range(4)} == {"2"}
    assert fixture.pick(prompt("x"), 0.0, allowed=only("1")) == "1"


def test_a_remembered_subset_follows_the_pool() -> None:
    fixture = Fixture(3)
    hint = only("1", "2")
    assert {fixture.pick(prompt(str(k)), 0.0, allowed=hint) for k in range(4)} == {"1", "2"}
    fixture.pool.remove("default/1", 0.0)
    assert {fixture.pick(prompt(str(k)), 0.0, allowed=hint) for k in range(4)} == {"2"}
    fixture.pool.upsert(EndpointSpec("default", "3", "10.0.0.1", 8000), 0.0)
    assert {fixture.pick(prompt(f"new {k}"), 0.0, allowed=hint) for k in range(20)} == {"2", "3"}


def test_remembered_subsets_are_bounded() -> None:
    fixture = Fixture(20)
    for k in range(2 * MOST_SELECTIONS):
        hint = only(*(str(name) for name in range(20) if k >> name & 1), "19")
        fixture.pick(prompt("x"), 0.0, allowed=hint)
    assert fixture.router._table is not None
    assert len(fixture.router._table._selections) == MOST_SELECTIONS


def test_the_subset_that_comes_again_and_again_stays_remembered() -> None:
    fixture = Fixture(20)
    again = only("17", "18")
    for k in range(2 * MOST_SELECTIONS):
        fixture.pick(prompt("x"), 0.0, allowed=again)
        fixture.pick(prompt("x"), 0.0, allowed=only(*(str(name) for name in range(20) if k >> name & 1), "19"))
    assert fixture.router._table is not None
    assert (again, "") in fixture.router._table._selections


def test_measured_speeds_count_for_all_from_the_next_decision_on() -> None:
    fixture = Fixture(3)
    fixture.pick(prompt("x"), 0.0, allowed=only("1"))
    rates = {"default/0": 1000.0, "default/1": 4000.0, "default/2": 4000.0}
    for now in (2.0, 4.0):
        for endpoint in fixture.pool.endpoints.values():
            fixture.pool.observed(endpoint, engine_state(now, prefill_rate=rates[endpoint.id]), now)
    fixture.pick(prompt("x"), 4.0)
    (record, *_) = fixture.decisions.newest_first()
    assert [1 / one.seconds_per_token for one in record.endpoints] == pytest.approx([2000, 4000, 4000])


def test_a_subset_is_respected_and_booked() -> None:
    fixture = Fixture(4)
    chosen = Counter(fixture.pick(prompt(f"{k}: {LONG}"), 0.0, allowed=only("1", "3")) for k in range(10))
    assert chosen == Counter({"1": 5, "3": 5})
    assert fixture.pick(prompt("z" + LONG), 0.0) in {"0", "2"}


def test_fallbacks_come_in_order_of_cost() -> None:
    fixture = Fixture(4, max_endpoints=3)
    fixture.scrape(0.0)
    for name, running in (("0", 50), ("1", 10), ("2", 90), ("3", 30)):
        fixture.pool.observed(fixture.endpoint(name), engine_state(0.0, running=running), 0.0)
    decision = fixture.router.pick(prompt("hello"), 0.0)
    assert isinstance(decision, Decision)
    assert decision.targets == "10.0.0.1:8000,10.0.0.3:8000,10.0.0.0:8000"


def test_requests_without_a_prompt_follow_the_load() -> None:
    fixture = Fixture(3)
    fixture.scrape(0.0)
    fixture.pool.observed(fixture.endpoint("1"), engine_state(0.0, running=50), 0.0)
    assert Counter(fixture.pick(NO_PROMPT, 0.0) for _ in range(4)) == Counter({"0": 2, "2": 2})


def test_requests_without_a_prompt_predict_no_first_token() -> None:
    fixture = Fixture(1)
    (load,) = fixture.router.loads
    fixture.scrape(0.5, first_tokens_total=0.0, first_token_seconds_total=0.0)
    for k in range(100):
        fixture.pick(NO_PROMPT, 1.0 + k / 1000)
    fixture.pick(prompt(LONG), 1.2)
    fixture.scrape(3.0, first_tokens_total=1.0, first_token_seconds_total=0.5, running=1)
    assert load.prediction.compared is not None
    assert load.prediction.compared.predicted > 0.1, "that of the prompt"


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("observed_at", [0.5, 2.0])
def test_requests_without_a_prompt_are_no_work_of_prompts(own: bool, observed_at: float) -> None:
    fixture = Fixture(1)
    (load,) = fixture.router.loads
    fixture.scrape(observed_at)
    mean_work = load.mean_work.tokens
    for _ in range(100):
        if own:
            fixture.pick(NO_PROMPT, 2.0)
        else:
            fixture.router.learn(RemoteRequests(load=load, at=1.0, decisions=1, requests=1, work=1.0), 2.0)
    assert load.mean_work.tokens == mean_work


def test_what_other_pickers_send_takes_its_endpoints_turn_and_has_it_scraped_soon() -> None:
    fixture = Fixture(2, routing_strategy="ROUND_ROBIN")
    fixture.scrape(0.5)
    first, second = fixture.router.loads
    fixture.router.learn(RemoteRequests(load=first, at=1.0, decisions=1, requests=1, work=1.0), 2.0)
    assert (first.endpoint.sent_at, fixture.router.booked) == (1.0, 1)
    assert second.endpoint.sent_at < 0.5
    assert [fixture.pick(NO_PROMPT, 2.0) for _ in range(3)] == ["1", "0", "1"]


def test_fallbacks_have_the_rank_that_the_header_names() -> None:
    fixture = Fixture(0, max_endpoints=3)
    for name, rank in (("0", 0), ("1", 1), ("2", 0), ("3", 1)):
        fixture.pool.upsert(EndpointSpec("default", name, f"10.0.0.{name}", 8000, rank=rank), 0.0)
        fixture.pool.observed(fixture.endpoint(name), engine_state(0.0, running=10 * int(name)), 0.0)
    decision = fixture.router.pick(prompt("hello"), 0.0)
    assert isinstance(decision, Decision)
    assert decision.targets == "10.0.0.0:8000,10.0.0.2:8000"


def test_an_adapter_of_a_list_of_models_is_loaded_where_a_request_for_it_went() -> None:
    """Also where the gateway sent it, by a retry."""
    fixture = Fixture(2)
    fixture.scrape(0.0)
    models = ServedModels(frozenset({"base", "lora"}), frozenset({"lora"}))
    for name in ("0", "1"):
        fixture.pool.serves(fixture.endpoint(name), models, 0.0)
    decision = fixture.router.pick(prompt("hello", model="lora"), 0.0)
    assert isinstance(decision, Decision)
    (other,) = [load for load in fixture.router.loads if load is not decision.load]
    assert "lora" in decision.load.adapters
    assert "lora" not in other.adapters
    fixture.router.opened(decision)
    fixture.router.served(decision, other.endpoint.target, 0.1)
    assert "lora" in other.adapters


def test_the_work_of_a_request_is_that_of_its_prompt() -> None:
    fixture = Fixture(1)
    decision = fixture.router.pick(prompt(LONG * 10), 0.0)
    assert isinstance(decision, Decision)
    assert decision.uncached_work == pytest.approx(prefill_work(decision.prompt_tokens))


def test_an_adapter_goes_where_it_is_loaded_unless_that_is_dear() -> None:
    fixture = Fixture(3)
    fixture.scrape(0.0)
    fixture.pool.observed(
        fixture.endpoint("1"), engine_state(0.0, loaded_adapters=frozenset({"lora"}), max_adapters=2), 0.0
    )
    assert fixture.pick(prompt("hello", model="lora"), 0.0) == "1"
    fixture.pool.observed(fixture.endpoint("1"), engine_state(1.0, running=200, waiting=50), 1.0)
    assert fixture.pick(prompt(f"hello {LONG}", model="lora"), 1.0) != "1"


def test_default_is_prefix_blind() -> None:
    fixture = Fixture(4, routing_strategy="DEFAULT")
    chosen = set()
    for k in range(4):
        fixture.scrape(10.0 * k)
        chosen.add(fixture.pick(prompt(LONG), 10.0 * k))
    assert len(chosen) == 4


def test_the_simple_strategies() -> None:
    fixture = Fixture(3, routing_strategy="ROUND_ROBIN")
    assert [fixture.pick(prompt(LONG), 0.0) for _ in range(6)] == ["0", "1", "2", "0", "1", "2"]
    fixture = Fixture(3, routing_strategy="LEAST_REQUEST")
    fixture.scrape(0.0)
    fixture.pool.observed(fixture.endpoint("0"), engine_state(0.0, running=2), 0.0)
    assert Counter(fixture.pick(prompt(LONG), 0.0) for _ in range(4)) == Counter({"1": 2, "2": 2})
    fixture = Fixture(3, routing_strategy="random")
    assert min(Counter(fixture.pick(prompt(LONG), 0.0) for _ in range(300)).values()) > 60


def test_a_strategy_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("MOST_CACHED", f"{__name__}:most_cached", strategies.ENTRY_POINT_GROUP)
    monkeypatch.setattr(strategies, "entry_points", lambda group: [entry])
    fixture = Fixture(3, routing_strategy="most_cached")
    holder = fixture.pick(prompt(LONG), 0.0)
    assert {fixture.pick(prompt(LONG), 0.0) for _ in range(50)} == {holder}


def most_cached(request: InferenceRequest, candidates: Sequence[strategies.Candidate]) -> list[float]:
    return [-candidate.cached_tokens for candidate in candidates]


def test_an_unknown_strategy_is_refused_and_the_old_one_stays() -> None:
    fixture = Fixture(2)
    with pytest.raises(ConfigurationError, match="PREFIX_CACHE, DEFAULT"):
        fixture.router.apply(routing_constants(routing_strategy="NOPE"))
    assert fixture.router.strategy == "PREFIX_CACHE"


def test_a_strategys_file_is_not_run_again_by_another_setting(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "calls = []\ndef choose(request, candidates):\n    calls.append(0)\n    return [len(calls)] * len(candidates)\n"
    )
    strategy = f"{file}:choose"
    fixture = Fixture(1, routing_strategy=strategy)
    before = fixture.router.preview(prompt(LONG), 0.0)
    file.unlink()
    fixture.router.apply(routing_constants(routing_strategy=strategy, cost_stale=0.1))
    after = fixture.router.preview(prompt(LONG), 0.0)
    assert isinstance(before, DecisionRecord)
    assert isinstance(after, DecisionRecord)
    assert after.values[0] == before.values[0] + 1


def test_the_served_endpoint_takes_over_the_books() -> None:
    fixture = Fixture(2)
    fixture.scrape(0.0)
    decision = fixture.router.pick(prompt(LONG), 0.0)
    assert isinstance(decision, Decision)
    fixture.router.opened(decision)
    other = "1" if decision.endpoint.spec.name == "0" else "0"
    fixture.router.served(decision, fixture.endpoint(other).target, 0.1)
    loads = {load.endpoint.spec.name: load for load in fixture.router.loads}
    assert (loads[other].open_responses, loads["0" if other == "1" else "1"].open_responses) == (1, 0)
    fixture.scrape(5.0)
    assert fixture.router.held(loads[other])[0] > 0
    fixture.router.finished(decision, 5.0)
    assert loads[other].open_responses == 0


def test_a_request_that_nobody_known_served_stays_where_it_was_sent() -> None:
    fixture = Fixture(2)
    decision = fixture.router.pick(prompt(LONG), 0.0)
    assert isinstance(decision, Decision)
    chosen = decision.load
    fixture.router.opened(decision)
    fixture.router.served(decision, "10.9.9.9:8000", 0.1)
    assert decision.load is chosen
    assert (chosen.open_responses, len(chosen.sent)) == (1, 1)
    assert fixture.router.holders(decision.chain.hashes) == [chosen.endpoint.id]


def retried(fixture: Fixture, request: InferenceRequest) -> tuple[Decision, EndpointLoad, EndpointLoad]:
    """A request that another endpoint than the chosen one served, by a retry of the gateway; with the loads of both."""
    decision = fixture.router.pick(request, 1.0)
    assert isinstance(decision, Decision)
    chosen = decision.load
    (other,) = [load for load in fixture.router.loads if load is not chosen]
    fixture.router.opened(decision)
    fixture.router.served(decision, other.endpoint.target, 1.2)
    return decision, chosen, other


def test_a_chosen_endpoint_that_did_not_serve_the_request_does_not_hold_its_prompt() -> None:
    fixture = Fixture(2)
    fixture.scrape(0.5, prefix_queries_total=0.0, prefix_hits_total=0.0)
    decision, chosen, other = retried(fixture, prompt(LONG))
    fixture.router.responded(decision, 200, 1.2)
    assert fixture.router.holders(decision.chain.hashes) == [other.endpoint.id]
    assert fixture.router.held(chosen) == (0, 0)
    for load, lookups in ((chosen, 0.0), (other, decision.prompt_tokens)):
        state = engine_state(3.0, prefix_queries_total=lookups, prefix_hits_total=0.0)
        fixture.pool.observed(load.endpoint, state, 3.0)
    assert (chosen.confirmation.unproven, other.confirmation.unproven) == (decision.prompt_tokens, 0)
    assert fixture.router.holders(decision.chain.hashes) == [other.endpoint.id]


def test_the_work_of_a_retried_request_is_in_the_queue_of_the_endpoint_that_served_it() -> None:
    fixture = Fixture(2)
    fixture.scrape(0.5)
    decision, _, other = retried(fixture, prompt(LONG))
    waiting, _, pending = fixture.router.load_of(other, 1.2)
    assert waiting == 1
    assert 0.5 * decision.prompt_tokens < pending <= decision.uncached_work


def test_a_retried_request_that_a_scrape_has_counted_is_not_counted_twice() -> None:
    fixture = Fixture(2)
    fixture.scrape(0.5)
    decision = fixture.router.pick(prompt(LONG), 1.0)
    assert isinstance(decision, Decision)
    (other,) = [load for load in fixture.router.loads if load is not decision.load]
    fixture.router.opened(decision)
    fixture.scrape(1.1, running=1)
    fixture.router.served(decision, other.endpoint.target, 1.2)
    assert fixture.router.load_of(other, 1.2)[:2] == (0, 1)


def test_a_retried_request_finds_what_the_endpoint_holds_that_served_it() -> None:
    fixture = Fixture(2)
    fixture.scrape(0.0)
    chosen = fixture.pick(prompt(LONG), 0.0)
    fixture.scrape(0.9)
    decision, load, other = retried(fixture, prompt(LONG))
    assert load.endpoint.spec.name == chosen
    assert decision.cached_tokens == 0, "the chosen one held it, this one did not"
    assert fixture.router.holders(decision.chain.hashes) == [load.endpoint.id, other.endpoint.id]


def test_a_pod_that_is_gone_gets_no_bookings_of_the_pod_that_has_its_address_now() -> None:
    fixture = Fixture(3)
    fixture.scrape(0.0)
    gone = fixture.endpoint("1").spec
    fixture.pool.remove(gone.id, 1.0)
    fixture.pool.upsert(dataclasses.replace(gone, name="heir"), 1.0)
    decision = fixture.router.pick(prompt(LONG), 1.0, allowed=only("0"))
    assert isinstance(decision, Decision)
    fixture.router.opened(decision)
    fixture.router.served(decision, gone.target, 1.1)
    assert decision.endpoint.spec.name == "heir"
    open_responses = {load.endpoint.spec.name: load.open_responses for load in fixture.router.loads}
    assert open_responses == {"0": 0, "1": 0, "2": 0, "heir": 1}


def test_a_request_whose_pod_has_gone_is_booked_on_the_pod_that_has_its_address_now() -> None:
    fixture = Fixture(1)
    decision = fixture.router.pick(prompt(LONG), 0.0)
    assert isinstance(decision, Decision)
    fixture.router.opened(decision)
    gone = decision.endpoint.spec
    fixture.pool.remove(gone.id, 1.0)
    fixture.pool.upsert(dataclasses.replace(gone, name="heir"), 1.0)
    fixture.router.served(decision, gone.target, 1.1)
    assert decision.endpoint.spec.name == "heir"
    fixture.router.finished(decision, 2.0)
    assert [load.open_responses for load in fixture.router.loads] == [0, 0]


@pytest.mark.parametrize(("threshold", "reason"), [(0.5, "partial"), (0.499, "warm")])
def test_a_prompt_is_warm_beyond_the_threshold_and_not_at_it(threshold: float, reason: str) -> None:
    fixture = Fixture(1, prefix_match_threshold=threshold)
    fixture.pick(prompt("a" * 1024), 0.0)
    decision = fixture.router.pick(prompt("a" * 1024, "b" * 1024), 1.0)
    assert isinstance(decision, Decision)
    assert (decision.match_ratio, decision.reason) == (0.5, reason)


@pytest.mark.parametrize(("tier_tokens", "tokens"), [(None, 1000), (900, 1000), (5000, 5000)])
def test_the_larger_tier_of_a_cache_is_its_size(tier_tokens: int | None, tokens: int) -> None:
    fixture = Fixture(1, cache_headroom=1.0, bytes_per_token=4.0)
    fixture.scrape(0.0, capacity_tokens=1000, tier_tokens=tier_tokens)
    for k in range(40):
        fixture.pick(prompt(f"{k:04}" * 256), float(k))
    (load,) = fixture.router.loads
    assert fixture.router.held(load)[1] == pytest.approx(tokens, abs=50)


def test_how_much_of_a_cut_off_prompt_is_held_is_a_share_of_all_of_it() -> None:
    fixture = Fixture(1)
    seen = prompt("a" * 4000)
    fixture.pick(seen, 0.0)
    decision = fixture.router.pick(seen.cut_off(4000, 16_000), 1.0)
    assert isinstance(decision, Decision)
    assert (decision.prompt_tokens, decision.cached_tokens) == (4000, 1000)


def test_what_is_no_prompt_or_of_unknown_length_teaches_no_token_length() -> None:
    fixture = Fixture(1)
    for step in range(1000):
        request = prompt(f"{step:04}" * 750)
        unknown = step < 200
        # what is no prompt: a list of models, a count of tokens
        fixture.serve(NO_PROMPT, request.cut_off(3000, None) if unknown else request, tokens=9000 if unknown else 1000)
    assert fixture.router.bytes_per_token == pytest.approx(3.0, rel=0.1)


def test_lengths_are_those_of_the_prompts_that_finished() -> None:
    fixture = Fixture(1)
    under_way: list[int] = []
    for step in range(3000):
        size = 200 if step // 100 % 2 else 4000  # tokens of 3 bytes; twenty are under way while the sizes change
        running = len(under_way)
        under_way.append(size)
        done = len(under_way) > 20
        fixture.serve(
            prompt(f"{step:06}" * (size // 2)), tokens=under_way.pop(0) if done else 0, finished=done, running=running
        )
    assert fixture.router.bytes_per_token == pytest.approx(3.0, rel=0.03)


def test_what_a_dead_engine_had_under_way_is_not_what_its_successor_finished() -> None:
    fixture = Fixture(1)
    fixture.serve(*[prompt(f"{k:03}" * 10_000) for k in range(100)], tokens=0, finished=0)
    fixture.pool.restarted(fixture.endpoint("0"), fixture.now)
    fixture.tokens, fixture.finished = 60_000, 60
    fixture.serve(prompt(LONG), tokens=0, finished=0, running=40)
    assert fixture.router.bytes_per_token == 4.0


def test_counters_that_make_no_sense_do_no_harm() -> None:
    fixture = Fixture(1)
    for now, requests in ((0.0, 0.0), (1.0, 1e15), (2.0, 5.0), (3.0, 6.0)):
        fixture.scrape(now, prompt_tokens_total=requests, prompt_requests_total=requests)
        fixture.pick(prompt(LONG), now)
    assert fixture.router.bytes_per_token == 4.0


def test_bytes_per_token_are_learned_where_the_engine_serves_only_us() -> None:
    fixture = Fixture(1)
    for step in range(400):
        fixture.serve(prompt(f"{step:04}" * 750), tokens=1000)
    assert fixture.router.bytes_per_token == pytest.approx(3.0, rel=0.1)
    learned = fixture.router.bytes_per_token
    for _ in range(100):  # somebody else sends as well: at most the window that straddles the change counts
        fixture.serve(prompt(LONG), tokens=50_000, finished=5)
    assert fixture.router.bytes_per_token == pytest.approx(learned, rel=0.1)


@pytest.mark.parametrize("tokens", [1e6, 1e15])
def test_a_page_that_jumps_hardly_changes_the_bytes_per_token(tokens: float) -> None:
    """Another client's prompt of a million tokens, or a counter that is wrong."""
    fixture = Fixture(1)
    for step in range(2000):
        fixture.serve(prompt(f"{step:04}" * 750), tokens=1000)
    fixture.tokens += tokens
    for step in range(100):
        fixture.serve(prompt(f"{step:04}" * 750), tokens=1000)
    assert fixture.router.bytes_per_token == pytest.approx(3.0, rel=0.15)


def test_a_count_of_tokens_that_stands_still_changes_the_bytes_per_token_slowly() -> None:
    fixture = Fixture(1)
    for step in range(2600):
        fixture.serve(prompt(f"{step:04}" * 750), tokens=1000 if step < 2000 else 0)
    assert fixture.router.bytes_per_token < 6, "its windows count as the longest tokens that are plausible"


def test_who_holds_most_by_what_its_engine_finds_is_not_passed_over() -> None:
    """The engine finds 40 % of what it holds: a prompt that goes there goes to the one that holds most."""
    fixture = Fixture(2)
    first = fixture.pick(prompt(LONG), 0.0)
    for load in fixture.router.loads:
        load.confirmation.trust = 0.4
    fixture.scrape(40.0, prefix_queries_total=0.0, prefix_hits_total=0.0)
    decision = fixture.router.pick(prompt(LONG), 40.0)
    assert isinstance(decision, Decision)
    assert (decision.endpoint.spec.name, decision.reason) == (first, "partial")


def test_an_engine_that_finds_a_part_of_what_it_holds_does_so_after_its_cache_was_emptied() -> None:
    fixture = Fixture(1)
    (load,) = fixture.router.loads
    load.confirmation.trust = 0.4
    fixture.scrape(0.0, prefix_queries_total=0.0, prefix_hits_total=0.0)
    for emptied_at in (1.0, 2.0):
        fixture.pool.cache_emptied(load.endpoint, emptied_at)
        fixture.pick(prompt(LONG), emptied_at + 0.1)
        decision = fixture.router.pick(prompt(LONG), emptied_at + 0.2)
        assert isinstance(decision, Decision)
        assert decision.match_ratio == pytest.approx(0.4, abs=0.001)


@pytest.mark.parametrize("tier_queries", [None, 1.0], ids=["one tier", "a second tier of unknown size"])
def test_a_cache_fills_with_the_prompts_that_are_sent_there(tier_queries: float | None) -> None:
    fixture = Fixture(1)
    for now in (0.0, 1.0):
        fixture.scrape(now, capacity_tokens=9000, tier_queries_total=tier_queries)
    (load,) = fixture.router.loads
    fills = [load.cache_fill]
    for text in "abc":
        fixture.pick(prompt(text + LONG[1:]), 2.0)
        fills.append(load.cache_fill)
    assert fills == [0.0, pytest.approx(0.5), pytest.approx(1.0), 1.0]


@pytest.mark.parametrize(
    ("trust", "figures"),
    [(0.2, {}), (1.0, {"prefix_caching": False}), (1.0, {"block_size": 4096})],
    ids=["finds little", "keeps nothing", "large blocks"],
)
def test_a_new_endpoint_takes_over_nothing_of_one_that_has_left(trust: float, figures: dict[str, object]) -> None:
    fixture = Fixture(1)
    (left,) = fixture.router.loads
    left.confirmation.trust = trust
    fixture.scrape(0.0, **figures)
    fixture.pool.replace([], 1.0)
    fixture.pool.expire(100.0)
    fixture.router.upkeep(100.0)
    fixture.pool.upsert(EndpointSpec("default", "new", "10.0.0.9", 8000), 101.0)
    (new,) = fixture.router.loads
    assert new.holder == left.holder, "its number is used again"
    fixture.pick(prompt(LONG), 102.0)
    decision = fixture.router.pick(prompt(LONG), 103.0)
    assert isinstance(decision, Decision)
    assert decision.match_ratio == pytest.approx(1.0, abs=0.001)


def test_an_emptied_cache_is_not_full() -> None:
    fixture = Fixture(1)
    for now in (0.0, 1.0):
        fixture.scrape(now, capacity_tokens=9000)
    (load,) = fixture.router.loads
    fixture.pick(prompt(LONG), 2.0)
    assert load.cache_fill == pytest.approx(0.5)
    fixture.pool.cache_emptied(load.endpoint, 3.0)
    assert load.cache_fill == 0.0


def test_nothing_is_expected_of_prompts_that_were_sent_before_the_cache_was_emptied() -> None:
    fixture = Fixture(1)
    fixture.scrape(0.0, prefix_queries_total=0.0, prefix_hits_total=0.0)
    decisions = [fixture.router.pick(prompt(LONG), now) for now in (1.0, 2.0)]
    sent = [one for decision in decisions if isinstance(decision, Decision) for one in decision.sent]
    assert [one.cached_tokens > 0 for one in sent] == [False, True]
    fixture.pool.cache_emptied(fixture.endpoint("0"), 3.0)
    assert [one.cached_tokens for one in sent] == [0.0, 0.0]


def test_an_emptied_cache_leaves_nothing_behind_in_the_index() -> None:
    fixture = Fixture(1)
    (load,) = fixture.router.loads
    for at in range(10):
        fixture.pick(prompt(LONG), at)
        fixture.pool.cache_emptied(load.endpoint, at)
        while fixture.router.upkeep(at):
            pass
    assert load.holder < 2
    assert fixture.router.held(load) == (0, 0)


def test_a_full_cache_that_finds_half_of_what_is_expected_is_believed() -> None:
    fixture = Fixture(1)
    (load,) = fixture.router.loads
    load.confirmation.trust = 0.5
    for room, believed in ((100_000, 0.5), (4600, 1.0)):
        fixture.scrape(0.0, capacity_tokens=room)
        fixture.pick(prompt(LONG), 0.1)
        fixture.scrape(1.0, capacity_tokens=room)
        decision = fixture.router.pick(prompt(LONG), 1.1)
        assert isinstance(decision, Decision)
        assert decision.match_ratio == pytest.approx(believed, abs=0.001)


def test_an_endpoint_whose_responses_fail_gets_no_more_requests() -> None:
    fixture = Fixture(4)
    decision = fixture.router.pick(prompt(LONG), 0.0)
    assert isinstance(decision, Decision)
    failing = decision.endpoint
    for _ in range(5):
        fixture.router.responded(decision, 500, 0.1)
    assert failing.ejected
    assert {fixture.pick(prompt(LONG), 0.2) for _ in range(20)}.isdisjoint({failing.spec.name})


def test_an_ejection_and_its_end_are_logged_and_a_restart_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "warmroute")
    fixture = Fixture(4)
    decision = fixture.router.pick(prompt(LONG), 0.0)
    assert isinstance(decision, Decision)
    for _ in range(5):
        fixture.router.responded(decision, 500, 0.1)
    assert [record.message for record in caplog.records] == ["endpoint ejected"]
    fixture.pool.restarted(decision.endpoint, 5.0)
    assert not decision.endpoint.ejected
    assert [record.message for record in caplog.records] == ["endpoint ejected", "endpoint healthy again"]


def test_an_ejected_endpoint_comes_back_by_one_request_that_succeeds() -> None:
    fixture = Fixture(2, routing_strategy="ROUND_ROBIN")
    decision = fixture.router.pick(prompt(LONG), 0.0)
    assert isinstance(decision, Decision)
    failing = decision.endpoint
    for _ in range(5):
        fixture.router.responded(decision, 502, 0.1)
    fixture.router.upkeep(0.1 + FIRST_BACKOFF)
    picks = [fixture.router.pick(prompt(LONG), 11.0) for _ in range(6)]
    tried = [pick for pick in picks if isinstance(pick, Decision) and pick.endpoint is failing]
    assert len(tried) == 1
    fixture.router.responded(tried[0], 200, 11.1)
    assert Counter(fixture.pick(prompt(LONG), 12.0) for _ in range(6)) == {"0": 3, "1": 3}


def test_a_fifth_of_failures_in_the_engines_own_count_ejects_nobody_and_nine_tenths_do() -> None:
    fixture = Fixture(4)
    sick, well = fixture.endpoint("0"), fixture.endpoint("1")
    for turn in range(1, 11):
        at = float(turn)
        fixture.pool.observed(sick, engine_state(at, responses_total=10 * turn, failed_responses_total=9 * turn), at)
        fixture.pool.observed(well, engine_state(at, responses_total=10 * turn, failed_responses_total=2 * turn), at)
    assert (sick.ejected, well.ejected) == (True, False)


def conversation(number: int, size: int = 60_000) -> InferenceRequest:
    return prompt(f"{number} " + "All work and no play makes Jack a dull boy. " * (size // 44))


class Rejecting:
    """One engine of 100,000 tokens that has six conversations in its cache. It rejects what is sent to it from then on."""

    def __init__(self) -> None:
        self.fixture = Fixture(1)
        self.lookups = 0.0
        self.scrape(0.0)
        self.warm = [conversation(number) for number in range(6)]
        for turn, request in enumerate(self.warm):
            self.lookups += self.send(request, 1.0 + turn).prompt_tokens
            self.scrape(1.5 + turn, running=1)
        self.scrape(9.0)

    def send(self, request: InferenceRequest, now: float) -> Decision:
        decision = self.fixture.router.pick(request, now)
        assert isinstance(decision, Decision)
        return decision

    def scrape(self, now: float, running: int = 0) -> None:
        counters = {"prefix_queries_total": self.lookups, "prefix_hits_total": 0}
        self.fixture.scrape(now, capacity_tokens=100_000, running=running, **counters)

    def are_warm(self, now: float) -> bool:
        return all(self.send(request, now).reason == "warm" for request in self.warm)


def test_prompts_that_the_engines_reject_leave_warm_conversations_warm() -> None:
    """24 prompts of 400 KB are answered with 400 by the engine: its counters do not move."""
    engine = Rejecting()
    for number in range(24):
        engine.send(conversation(100 + number, 400_000), 10.0 + number)
        engine.scrape(10.9 + number)
    engine.scrape(40.0)
    assert engine.are_warm(41.0)
    assert engine.send(conversation(100, 400_000), 42.0).reason == "cold"


def test_nor_do_many_rejected_prompts_at_once() -> None:
    engine = Rejecting()
    for number in range(300):
        engine.send(conversation(100 + number, 40_000), 10.0 + number / 100)
    engine.scrape(40.0)
    assert engine.are_warm(41.0)


def test_nor_do_rejected_prompts_that_come_twice() -> None:
    engine = Rejecting()
    for number in range(48):
        engine.send(conversation(100 + number // 2, 60_000), 10.0 + number / 2)
        engine.scrape(10.3 + number / 2)
    engine.scrape(40.0)
    assert engine.are_warm(41.0)


def test_nor_do_many_short_rejected_prompts() -> None:
    engine = Rejecting()
    for number in range(200):
        engine.send(conversation(100 + number, 15_000), 10.0 + number / 10)
        engine.scrape(10.05 + number / 10)
    engine.scrape(40.0)
    assert engine.are_warm(41.0)


def test_nor_do_rejected_prompts_while_the_engine_is_busy_for_minutes() -> None:
    engine = Rejecting()
    for number in range(24):
        engine.send(conversation(100 + number, 60_000), 10.0 + number)
    for at in range(40, 240, 20):
        engine.send(conversation(1000 + at, 1000), float(at))
        engine.scrape(at + 0.5, running=1)
    assert engine.are_warm(250.0)


def test_a_response_after_its_endpoint_has_left_changes_nothing() -> None:
    fixture = Fixture(2)
    decision = fixture.router.pick(conversation(1), 0.0)
    assert isinstance(decision, Decision)
    fixture.pool.replace([], 1.0)
    fixture.pool.expire(1000.0)
    fixture.router.responded(decision, 500, 1001.0)


def test_a_failed_request_leaves_longer_ones_of_its_conversation_routable() -> None:
    fixture = Fixture(1)
    short, longer = prompt(LONG), prompt(LONG, "and then?")
    decision = fixture.router.pick(short, 0.0)
    assert isinstance(decision, Decision)
    fixture.pick(longer, 1.0)
    fixture.router.responded(decision, 500, 2.0)
    assert fixture.pick(longer, 3.0) == "0"


def test_a_failed_request_takes_nothing_that_a_later_one_has_used() -> None:
    fixture = Fixture(1)
    failed = fixture.router.pick(prompt(LONG, "first"), 0.0)
    served = fixture.router.pick(prompt(LONG, "second"), 0.01)
    assert isinstance(failed, Decision)
    assert isinstance(served, Decision)
    fixture.router.responded(served, 200, 0.5)
    fixture.router.responded(failed, 400, 1.0)
    holds = [fixture.router.holders(decision.chain.hashes) for decision in (failed, served)]
    assert holds == [[], ["default/0"]]
    third = fixture.router.pick(prompt(LONG, "third"), 2.0)
    assert isinstance(third, Decision)
    assert third.match_ratio > 0.95


def test_a_failed_request_takes_nothing_that_was_computed_again_after_the_cache_was_emptied() -> None:
    fixture = Fixture(1)
    failed = fixture.router.pick(prompt(LONG), 0.0)
    fixture.pool.cache_emptied(fixture.endpoint("0"), 0.1)
    again = fixture.router.pick(prompt(LONG), 0.2)
    assert isinstance(failed, Decision)
    assert isinstance(again, Decision)
    fixture.router.responded(failed, 500, 1.0)
    assert fixture.router.holders(again.chain.hashes) == ["default/0"]


def test_a_failed_batch_takes_back_all_its_prompts() -> None:
    fixture = Fixture(1)
    request = prompt(LONG, "first", "second", "third")._replace(head=1, starts=(2, 3))
    failed = fixture.router.pick(request, 0.0)
    assert isinstance(failed, Decision)
    assert len(failed.chains) == 3
    fixture.router.responded(failed, 400, 1.0)
    assert all(fixture.router.held(load) == (0, 0) for load in fixture.router.loads)


def test_a_prompt_longer_than_the_engine_takes_is_not_expected_in_its_cache() -> None:
    fixture = Fixture(1)
    fixture.scrape(0.0, max_model_len=4096)
    fixture.pick(conversation(1), 1.0)
    decision = fixture.router.pick(conversation(1), 2.0)
    assert isinstance(decision, Decision)
    assert decision.reason == "cold"


def test_a_request_that_was_not_served_makes_nothing_warm() -> None:
    fixture = Fixture(1)
    fixture.pick(conversation(1, 4000), 0.0)
    longer = prompt(*(part.data.decode() for part in conversation(1, 4000).parts), LONG)
    decision = fixture.router.pick(longer, 1.0)
    assert isinstance(decision, Decision)
    fixture.router.responded(decision, 400, 1.1)
    again = fixture.router.pick(longer, 2.0)
    assert isinstance(again, Decision)
    assert 0 < again.match_ratio < 0.3


def test_an_engine_whose_cache_holds_less_than_expected_is_believed_less() -> None:
    fixture = Fixture(1)
    lookups = 0.0
    shared = conversation(1)
    for turn in range(200):
        at = float(turn)
        fixture.scrape(at, prefix_queries_total=lookups, prefix_hits_total=0.0, running=1)
        decision = fixture.router.pick(shared, at + 0.5)
        assert isinstance(decision, Decision)
        lookups += decision.prompt_tokens
    last = fixture.router.pick(shared, 200.0)
    assert isinstance(last, Decision)
    assert last.match_ratio < 0.1


def test_a_share_of_the_requests_is_held_out() -> None:
    """The holdout balances requests; the rest goes to the endpoint that holds the prompt."""
    fixture = Fixture(4, holdout=0.25, holdout_strategy="LEAST_REQUEST")
    arms: dict[bool, list[Decision]] = {False: [], True: []}
    sentences: dict[bool, list[str]] = {False: [], True: []}
    for k in range(400):
        now = 2.0 * k
        fixture.scrape(now)
        decision = fixture.router.pick(prompt(LONG), now)
        assert isinstance(decision, Decision)
        arms[decision.held_out].append(decision)
        sentences[decision.held_out].append(fixture.decisions.newest_first()[0].sentence())
    assert 60 <= len(arms[True]) <= 140
    assert {decision.strategy for decision in arms[True]} == {"LEAST_REQUEST"}
    assert {decision.strategy for decision in arms[False]} == {"PREFIX_CACHE"}
    assert {decision.endpoint.id for decision in arms[True]} == {f"default/{k}" for k in range(4)}
    assert all(decision.cached_tokens for decision in arms[False][1:]), "the holdout leaves copies, and is matched, too"
    assert all("; held out (--holdout): LEAST_REQUEST gives it " in sentence for sentence in sentences[True])
    assert not any("held out" in sentence for sentence in sentences[False])


def test_an_unknown_holdout_strategy_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        Fixture(2, holdout=0.1, holdout_strategy="NO_SUCH")


def test_a_holdout_strategy_that_uses_prefixes_gets_them() -> None:
    fixture = Fixture(2, routing_strategy="LEAST_REQUEST", holdout=1.0, holdout_strategy="PREFIX_CACHE")
    chosen = []
    for k in range(4):
        fixture.scrape(10.0 * k)
        chosen.append(fixture.pick(prompt(LONG), 10.0 * k))
    assert len(set(chosen)) == 1
    assert fixture.decisions.newest_first()[0].reason == "warm"


def test_a_holdout_strategy_that_reads_headers_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("MOST_CACHED", f"{__name__}:most_cached", strategies.ENTRY_POINT_GROUP)
    monkeypatch.setattr(strategies, "entry_points", lambda group: [entry])
    assert Fixture(1, holdout=0.1, holdout_strategy="MOST_CACHED").router.uses_headers
    assert not Fixture(1, holdout=0.1, holdout_strategy="RANDOM").router.uses_headers


def test_a_strategy_that_uses_no_prefixes_stays_blind_beside_one_that_does() -> None:
    """DEFAULT counts the same cost as PREFIX_CACHE, less what is cached. Its decisions say all the same what was cached."""
    alone = Fixture(2, routing_strategy="DEFAULT")
    beside = Fixture(2, routing_strategy="DEFAULT", holdout=0.0, holdout_strategy="PREFIX_CACHE")
    held_out = Fixture(2, routing_strategy="PREFIX_CACHE", holdout=1.0, holdout_strategy="DEFAULT")
    choices = []
    for fixture in (alone, beside, held_out):
        chosen = []
        for k in range(3):
            fixture.scrape(10.0 * k)
            decision = fixture.router.pick(prompt(LONG), 10.0 * k)
            assert isinstance(decision, Decision)
            chosen.append(decision.endpoint.id)
            if k == 2:
                assert (decision.cached_tokens > 0) == (fixture is not alone)
        assert fixture.decisions.newest_first()[0].by_cost == (fixture is alone)
        choices.append(chosen)
    assert choices[0] == choices[1] == choices[2] == ["default/0", "default/1", "default/0"]
