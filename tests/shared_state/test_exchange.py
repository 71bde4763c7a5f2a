"""Two pickers exchange batches, without a log between them."""

from __future__ import annotations

import math
import random
from dataclasses import fields, replace
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import engine_state, routing_constants
from warmroute.pool.endpoint import (
    LONGEST_MODEL_NAME,
    MOST_SERVED_MODELS,
    EndpointSpec,
    EngineState,
    Health,
    ServedModels,
)
from warmroute.pool.pool import ONE_RESTART_SECONDS, Pool
from warmroute.pool.work import prefill_work
from warmroute.request.inference import NO_PROMPT, InferenceRequest, PromptPart
from warmroute.routing.decision import Decision
from warmroute.routing.decision_record import DecisionRecord
from warmroute.routing.endpoint_load import EndpointLoad
from warmroute.routing.outlier_detection import FIRST_BACKOFF
from warmroute.routing.router import Router
from warmroute.routing.sent_request import MOST_REQUESTS_OF_ONE
from warmroute.shared_state import shared_state_pb2 as pb
from warmroute.shared_state.decision_columns import COLUMNS, MOST_DECISIONS, PROMPT_COLUMNS, RARE_COLUMNS
from warmroute.shared_state.inbox import MOST_REQUESTS, Inbox
from warmroute.shared_state.nats_log import LARGEST_BATCH
from warmroute.shared_state.outbox import LONGEST_LIST, MOST_OF_A_KIND, MOST_WAITING, Outbox

LONG = "a long prompt " * 200


class Picker:
    """A router with its outbox and inbox, on two endpoints."""

    def __init__(self, *, incarnation: str = "", names: tuple[str, ...] = ("a", "b")) -> None:
        self.pool = Pool()
        self.outbox = Outbox(retention=600)
        listeners = (self.outbox,)
        self.router = Router(self.pool, routing_constants(), rng=random.Random(0), now=0.0, listeners=listeners)
        self.pool.subscribe(self.outbox, 0.0)
        self.inbox = Inbox(self.router, self.pool, self.outbox)
        specs = [EndpointSpec("ns", name, "10.0.0.1", 8000 + k, {}, incarnation) for k, name in enumerate(names)]
        self.pool.replace(specs, 0.0)

    def pick(self, text: str, now: float, **fields: Any) -> Decision:
        data = text.encode()
        request = InferenceRequest(model="m", parts=(PromptPart(data, len(data)),), prompt_bytes=len(data))
        decision = self.router.pick(request._replace(**fields), now)
        assert isinstance(decision, Decision)
        return decision

    def load(self, name: str) -> EndpointLoad:
        return next(load for load in self.router.loads if load.endpoint.id == f"ns/{name}")

    def observe(self, name: str, at: float, **figures: Any) -> None:
        self.pool.observed(self.pool.endpoints[f"ns/{name}"], engine_state(at, **figures), at)


def two_whose_engine_counts_lookups() -> tuple[Picker, Picker]:
    """Two pickers of one engine, which has looked up nothing yet."""
    pickers = Picker(names=("a",)), Picker(names=("a",))
    for picker in pickers:
        picker.observe("a", 0.5, prefix_queries_total=0.0, prefix_hits_total=0.0)
    return pickers


def take_all(source: Picker, now: float) -> list[pb.Batch]:
    """All that waits, as :class:`~warmroute.shared_state.shared_state.SharedState` publishes it."""
    batches = [source.outbox.take(now)]
    while source.outbox:
        batches.append(source.outbox.take(now))
    return batches


def send(source: Picker, target: Picker, now: float, **options: Any) -> pb.Batch:
    """Publish at ``now``, apply 2 ms later; through bytes, as the log does."""
    batch = pb.Batch.FromString(source.outbox.take(now).SerializeToString())
    target.inbox.apply(batch, now, now + 0.002, **options)
    return batch


def test_the_other_picker_matches_what_this_one_sent() -> None:
    one, other = Picker(), Picker()
    decision = one.pick(LONG, 1.0)
    send(one, other, 1.02)
    assert other.router.holders(decision.chain.hashes) == [decision.endpoint.id]


def test_the_other_picker_counts_the_load() -> None:
    one, other = Picker(), Picker()
    name = one.pick(LONG, 1.0).endpoint.id.removeprefix("ns/")
    send(one, other, 1.02)
    waiting, _, pending = other.router.load_of(other.load(name), 1.03)
    assert waiting == 1
    assert pending == pytest.approx(one.router.load_of(one.load(name), 1.03)[2], rel=0.05)


def test_the_prompts_of_a_batch_are_as_long_for_the_other_picker_and_confirmed_like_here() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    for picker in (one, other):
        picker.observe("a", 0.0, prefix_queries_total=0.0, prefix_hits_total=0.0)
    texts = [letter.encode() * 40_000 for letter in "abc"]
    parts = tuple(PromptPart(text, len(text)) for text in texts)
    request = InferenceRequest(model="m", parts=parts, prompt_bytes=120_000, starts=(1, 2))
    decision = one.router.pick(request, 1.0)
    assert isinstance(decision, Decision)
    send(one, other, 1.02)
    lengths = [[round(sent.tokens) for sent in picker.load("a").confirmation._open] for picker in (one, other)]
    assert lengths == [[10_000] * 3, [30_000]]
    for picker in (one, other):  # the engine has looked up the three prompts and is idle
        picker.observe("a", 3.0, prefix_queries_total=30_000.0, prefix_hits_total=0.0)
        assert all(picker.router.holders(chain.hashes) for chain in decision.chains)


def test_a_request_without_a_prompt_is_load_alone() -> None:
    one, other = Picker(), Picker()
    assert isinstance(one.router.pick(NO_PROMPT, 1.0), Decision)
    send(one, other, 1.02)
    assert sum(len(load.sent) for load in other.router.loads) == 1
    assert all(other.router.held(load) == (0, 0) for load in other.router.loads)


def test_an_old_decision_is_known_but_is_no_load() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    one.pick(LONG, 1.0)
    other.inbox.apply(one.outbox.take(1.02), 1.02, 100.0)
    assert other.router.load_of(other.load("a"), 100.0)[0] == 0
    assert other.pick(LONG, 100.0).match_ratio > 0.9


def test_a_decision_that_a_scrape_includes_is_not_counted_again() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    one.pick(LONG, 1.0)
    other.observe("a", 1.5, running=1)
    send(one, other, 1.51)
    waiting, running, _ = other.router.load_of(other.load("a"), 1.52)
    assert waiting + running == 1


def test_prompts_that_become_known_after_the_scrape_that_counts_them_are_confirmed() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    long = "a very long prompt " * 2000
    lookups = 0.0
    for turn in range(20):
        now = float(turn)
        other.observe("a", now, prefix_queries_total=lookups, running=1)
        other.pick(f"{turn} own {long}", now + 0.1)
        decision = one.pick(f"{turn} {long}", now + 0.2)
        lookups += 2 * decision.prompt_tokens
        other.observe("a", now + 0.3, prefix_queries_total=lookups, running=1)
        send(one, other, now + 0.31)
    other.observe("a", now + 3.0, prefix_queries_total=lookups)  # idle: what it has not looked up, it has rejected
    assert other.router.holders(decision.chain.hashes) == ["ns/a"]


def test_another_incarnation_is_ignored() -> None:
    one, other = Picker(incarnation="old"), Picker(incarnation="new")
    one.pick(LONG, 1.0)
    send(one, other, 1.02)
    assert other.inbox.applied.unknown_endpoints == 1
    assert all(not load.sent for load in other.router.loads)


def replace_pod(picker: Picker, now: float) -> None:
    picker.pool.upsert(EndpointSpec("ns", "a", "10.0.0.1", 8000, {}, "new"), now)


def test_a_decision_belongs_to_the_incarnation_that_it_chose() -> None:
    """It waits while the log is away, and the pod is replaced meanwhile."""
    one, other = Picker(incarnation="old", names=("a",)), Picker(incarnation="new", names=("a",))
    before = one.pick(f"before {LONG}", 1.0)
    replace_pod(one, 5.0)
    after = one.pick(f"after {LONG}", 6.0)
    batch = send(one, other, 8.0)
    assert len(batch.endpoints) == 2
    assert other.inbox.applied.unknown_endpoints == 1
    assert other.router.holders(before.chain.hashes) == []
    assert other.router.holders(after.chain.hashes) == ["ns/a"]
    assert len(other.load("a").sent) == 1


@pytest.mark.parametrize("told", [True, False])
def test_decisions_from_before_a_restart_are_not_of_the_new_process(told: bool) -> None:
    """Whether the same batch tells the restart, or the other picker has seen it."""
    one, other = Picker(names=("a",)), Picker(names=("a",))
    before = one.pick(LONG, 1.0)
    picker = one if told else other
    picker.pool.restarted(picker.pool.endpoints["ns/a"], 1.01)
    after = one.pick(f"after {LONG}", 1.015 if told else 1.025)
    send(one, other, 1.03)
    assert other.router.holders(before.chain.hashes) == []
    assert other.router.holders(after.chain.hashes) == ["ns/a"]
    assert len(other.load("a").sent) == 1


def test_a_prompt_from_before_the_cache_was_emptied_is_load_alone() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    one.pick(LONG, 1.0)
    other.pool.cache_emptied(other.pool.endpoints["ns/a"], 1.01)
    send(one, other, 1.02)
    assert other.router.held(other.load("a")) == (0, 0)
    assert len(other.load("a").sent) == 1


def test_an_endpoint_that_is_not_there_is_ignored() -> None:
    one, other = Picker(names=("a",)), Picker(names=("b",))
    one.pick(LONG, 1.0)
    one.observe("a", 1.0)
    one.pool.cache_emptied(one.pool.endpoints["ns/a"], 1.0)
    one.pool.serves(one.pool.endpoints["ns/a"], ServedModels(frozenset({"m"})), 1.0)
    for batch in take_all(one, 1.02):
        other.inbox.apply(batch, 1.02, 1.02)
    assert other.inbox.applied.unknown_endpoints == 4


def test_a_place_beyond_the_table_of_endpoints_is_ignored() -> None:
    other = Picker(names=("a",))
    batch = pb.Batch(endpoints=[pb.Endpoint(id="ns/a")], events=[pb.Event(endpoint=1)], reports=[pb.Report(endpoint=1)])
    other.inbox.apply(batch, 1.0, 1.0)
    one = Picker(names=("a",))
    one.pick(LONG, 1.0)
    batch = one.outbox.take(1.0)
    batch.decisions.endpoint[0] = 1
    other.inbox.apply(batch, 1.0, 1.0)
    assert other.inbox.applied.unknown_endpoints == 3


@pytest.mark.parametrize("told", [True, False])
def test_an_endpoint_whose_incarnation_is_not_known_to_both_is_the_same(told: bool) -> None:
    one, other = (Picker(incarnation="new" if knows is told else "", names=("a",)) for knows in (True, False))
    one.pick(LONG, 1.0)
    send(one, other, 1.02)
    assert len(other.load("a").sent) == 1


def test_a_picker_that_knows_nothing_of_a_prompt_learns_from_its_next_turn_how_far_it_is_held() -> None:
    """It has read the first turn neither from the log nor before: the deepest checkpoint is enough."""
    one, other = Picker(names=("a",)), Picker(names=("a",))
    one.pick(LONG, 1.0)
    one.outbox.take(1.02)
    second = one.pick(LONG + "and what came next " * 50, 2.0)
    batch = send(one, other, 2.02)
    assert len(batch.decisions.hashes) < len(second.chain.hashes) / 2
    assert other.router.holders(second.chain.hashes) == ["ns/a"]


def test_a_prompt_that_is_used_again_is_told_again() -> None:
    """A picker that started meanwhile knows then what the engine holds, and that others have this beginning."""
    one, starter = Picker(names=("a",)), Picker(names=("a",))
    first = one.pick(LONG, 1.0)
    one.outbox.take(1.02)
    one.pick(LONG, 2.0)
    batch = send(one, starter, 2.02)
    assert list(batch.decisions.hashes) == [first.chain.hashes[-1]]
    assert starter.pick(LONG, 2.1).match_ratio > 0.9


def test_a_picker_that_starts_learns_a_system_prompt_from_the_next_conversation() -> None:
    """Not from the first one, which it did not read."""
    one, starter = Picker(names=("a",)), Picker(names=("a",))

    def ask(picker: Picker, question: str, now: float) -> Decision:
        parts = tuple(PromptPart(text.encode(), len(text)) for text in (LONG, question))
        return picker.pick("", now, parts=parts, prompt_bytes=sum(part.prompt_bytes for part in parts))

    ask(one, "first", 1.0)
    one.outbox.take(1.02)
    ask(one, "second", 2.0)
    assert len(send(one, starter, 2.02).decisions.hashes) == 2
    assert ask(starter, "third", 2.1).match_ratio > 0.9


EVERY_FIGURE: dict[str, Any] = {
    "running": 3,
    "waiting": 2,
    "kv_usage": 0.5,
    "capacity_tokens": 1000,
    "max_num_seqs": 64,
    "max_model_len": 8192,
    "block_size": 16,
    "prefix_caching": False,
    "tier_tokens": 0,
    "computed_tokens_total": 600.0,
    "tier_queries_total": 700.0,
    "tier_hits_total": 0.0,
    "rejected_responses_total": 2.0,
    "loaded_adapters": frozenset({"lora-1", "lora-2"}),
    "max_adapters": 4,
    "awaiting_first_token": 2,
    "first_tokens_total": 10.0,
    "first_token_seconds_total": 4.5,
    "prompt_tokens_total": 1000.0,
    "prompt_requests_total": 9.0,
    "prefix_queries_total": 1200.0,
    "prefix_hits_total": 400.0,
    "responses_total": 12.0,
    "failed_responses_total": 1.0,
    "prefill_rate": 4096.0,
    "decode_rate": 64.0,
    "sleeping": True,
}


def test_every_figure_is_tried() -> None:
    assert set(EVERY_FIGURE) | {"observed_at"} == {field.name for field in fields(EngineState)}


@pytest.mark.parametrize("figures", [EVERY_FIGURE, {}], ids=["every figure", "none"])
def test_a_state_comes_as_it_was(figures: dict[str, Any]) -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    one.observe("a", 1.0, **figures)
    send(one, other, 1.02)
    got = other.pool.endpoints["ns/a"].state
    assert got is not None
    assert got.observed_at == pytest.approx(1.0, abs=1e-5)
    assert replace(got, observed_at=1.0) == engine_state(1.0, **figures)


def test_what_another_told_is_not_told_again() -> None:
    one, other = Picker(), Picker()
    endpoint = one.pool.endpoints["ns/a"]
    one.observe("b", 1.0)
    one.pool.restarted(endpoint, 1.0)
    one.pool.unreachable(endpoint, 1.0)
    one.pick("prompt", 1.0)
    send(one, other, 1.02)
    assert len(other.outbox) == 0
    assert (other.inbox.applied.events, other.inbox.applied.reports, other.inbox.applied.decisions) == (3, 1, 1)
    other.observe("b", 1.03)
    assert len(other.outbox) == 1, "what it finds out itself is told"


def test_of_reports_that_are_replayed_one_a_second_is_applied() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    for at, replayed, running in ((1.0, True, 1), (1.9, True, 1), (2.0, True, 2), (2.1, False, 3)):
        one.observe("a", at, running=9 if at == 1.9 else running)
        send(one, other, at, replayed=replayed)
        state = other.pool.endpoints["ns/a"].state
        assert state is not None
        assert state.running == running
    assert other.inbox.applied.reports == 3


def test_a_restart_empties_the_cache_everywhere() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    one.pick(LONG, 1.0)
    send(one, other, 1.02)
    assert other.router.held(other.load("a"))[0]
    one.pool.restarted(one.pool.endpoints["ns/a"], 2.0)
    send(one, other, 2.02)
    assert other.router.held(other.load("a")) == (0, 0)


def test_the_figures_of_a_process_that_has_gone_are_not_told_after_its_restart() -> None:
    one = Picker(names=("a",))
    one.observe("a", 1.0, running=7)
    one.pool.restarted(one.pool.endpoints["ns/a"], 2.0)
    assert len(one.outbox) == 1, "the restart"
    (batch,) = take_all(one, 2.02)
    assert (len(batch.events), len(batch.reports)) == (1, 0)


def test_an_emptied_cache_is_empty_everywhere() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    one.pick(LONG, 1.0)
    send(one, other, 1.02)
    one.pool.cache_emptied(one.pool.endpoints["ns/a"], 2.0)
    send(one, other, 2.02)
    assert other.router.held(other.load("a")) == (0, 0)
    assert len(other.outbox) == 0


def test_one_restart_that_both_have_seen_is_no_crash_loop() -> None:
    """The log was away for 20 s: the other picker reads of the restart that it saw itself. It keeps what it has learned."""
    one, other = Picker(names=("a", "b", "c")), Picker(names=("a", "b", "c"))
    for picker, at in ((one, 10.0), (other, 12.0)):
        picker.pool.restarted(picker.pool.endpoints["ns/a"], at)
    decisions = [other.pick(f"{k} {LONG}", 13.0 + k) for k in range(6)]
    send(one, other, 30.0)
    assert other.pool.endpoints["ns/a"].health is Health.HEALTHY
    assert all(decision.endpoint.id in other.router.holders(decision.chain.hashes) for decision in decisions)


def test_a_restart_counts_at_its_time() -> None:
    """A starter reads of one 9 minutes ago; the next one 200 s later is none of a crash loop."""
    one, other = Picker(names=("a", "b", "c")), Picker(names=("a", "b", "c"))
    one.pool.restarted(one.pool.endpoints["ns/a"], 10.0)
    other.inbox.apply(one.outbox.take(20.0), 20.0, 550.0, replayed=True)
    assert other.load("a").began_at == pytest.approx(10.0)
    other.pool.restarted(other.pool.endpoints["ns/a"], 750.0)
    assert other.pool.endpoints["ns/a"].health is Health.HEALTHY


def test_two_restarts_that_come_together_are_two() -> None:
    one, other = Picker(names=("a", "b", "c")), Picker(names=("a", "b", "c"))
    for at in (10.0, 110.0):
        one.pool.restarted(one.pool.endpoints["ns/a"], at)
    other.inbox.apply(one.outbox.take(111.0), 111.0, 111.0)
    assert other.pool.endpoints["ns/a"].health is Health.EJECTED


@pytest.mark.parametrize("restarted", [True, False])
def test_a_picker_that_reads_the_log_late_keeps_what_it_has_learned_itself(restarted: bool) -> None:
    """It was ready without the log."""
    one, other = Picker(names=("a", "b")), Picker(names=("a", "b"))
    endpoint = one.pool.endpoints["ns/a"]
    (one.pool.restarted if restarted else one.pool.cache_emptied)(endpoint, 10.0)
    decisions = [other.pick(f"{k} {LONG}", 200.0 + k) for k in range(6)]
    other.inbox.apply(one.outbox.take(10.02), 10.02, 300.0, replayed=True)
    assert all(decision.endpoint.id in other.router.holders(decision.chain.hashes) for decision in decisions)


def test_a_restart_that_was_found_out_late_is_told_to_pickers_that_went_on_choosing() -> None:
    """The time of a restart is that of the first page of the new process."""
    one, other = Picker(names=("a",)), Picker(names=("a",))
    before = other.pick(LONG, 9.0)
    other.pick("another", 10.0 + ONE_RESTART_SECONDS / 2)
    one.pool.restarted(one.pool.endpoints["ns/a"], 10.0)
    send(one, other, 11.0)
    assert other.router.holders(before.chain.hashes) == []


def test_an_emptied_cache_that_every_picker_sees_is_emptied_once() -> None:
    """Discovery tells it to all, and each tells it on."""
    one, other = Picker(names=("a",)), Picker(names=("a",))
    for picker, at in ((one, 10.0), (other, 10.1)):
        picker.pool.cache_emptied(picker.pool.endpoints["ns/a"], at)
    decision = other.pick(LONG, 10.2)
    send(one, other, 10.3)
    assert other.router.holders(decision.chain.hashes) == ["ns/a"]
    one.pool.cache_emptied(one.pool.endpoints["ns/a"], 12.0)  # another one
    send(one, other, 12.02)
    assert other.router.held(other.load("a")) == (0, 0)


def test_the_cache_of_a_restarted_engine_is_emptied_once() -> None:
    """One picker sees the restart, the other one only that the cache is empty."""
    one, other = Picker(names=("a",)), Picker(names=("a",))
    one.pool.cache_emptied(one.pool.endpoints["ns/a"], 10.1)
    other.pool.restarted(other.pool.endpoints["ns/a"], 10.0)
    decision = other.pick(LONG, 10.2)
    send(one, other, 10.3)
    assert other.router.holders(decision.chain.hashes) == ["ns/a"]


def test_an_ejection_of_the_process_before_is_none_of_the_new_one() -> None:
    one, other = Picker(), Picker()
    one.pool.set_health(one.pool.endpoints["ns/a"], Health.EJECTED, 4.0)
    other.pool.restarted(other.pool.endpoints["ns/a"], 5.0)
    send(one, other, 5.5)
    assert other.pool.endpoints["ns/a"].health is Health.HEALTHY


def test_a_state_from_a_clock_that_is_ahead_is_of_now() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    one.observe("a", 1.0, running=3)
    other.inbox.apply(one.outbox.take(1.0), 9.0, 1.02)
    state = other.pool.endpoints["ns/a"].state
    assert state is not None
    assert (state.running, state.observed_at) == (3, 1.02)


def test_the_models_of_an_absurd_list_are_not_taken_over() -> None:
    other = Picker(names=("a",))
    for names in (["m", "x" * (LONGEST_MODEL_NAME + 1)], [str(k) for k in range(MOST_SERVED_MODELS + 1)]):
        batch = pb.Batch(endpoints=[pb.Endpoint(id="ns/a")], served=[pb.Served(endpoint=0, listed=True, names=names)])
        other.inbox.apply(batch, 1.0, 1.0)
        assert other.pool.endpoints["ns/a"].models == ServedModels(frozenset({"m"}))


def test_each_prompt_is_told_with_what_its_engine_held_and_what_is_new() -> None:
    one = Picker(names=("a",))
    first, second = (one.pick(LONG * turns, 1.0 + turns) for turns in (1, 3))
    columns = one.outbox.take(5.0).decisions
    held = second.chain.ends[second.held[0] - 1]
    assert 0 < held <= first.prompt_bytes
    assert list(columns.held_bytes) == [0, held]
    assert list(columns.new_bytes) == [first.prompt_bytes, second.prompt_bytes - held]


@pytest.mark.parametrize(("taken", "age"), [(0.5, 0), (1.5, 500_000), (1e9, 2**32 - 1)])
def test_the_age_of_a_decision_is_within_what_a_batch_can_say(taken: float, age: int) -> None:
    """Also after the machine has slept, or its clock went back."""
    one = Picker()
    one.pick(LONG, 1.0)
    assert list(one.outbox.take(taken).decisions.age) == [age]


def test_an_ejection_lasts_from_its_time_on() -> None:
    one, other = Picker(), Picker()
    one.pool.set_health(one.pool.endpoints["ns/a"], Health.EJECTED, 1.0)
    other.inbox.apply(one.outbox.take(1.0 + FIRST_BACKOFF / 2), 1.0 + FIRST_BACKOFF / 2, 1.0 + FIRST_BACKOFF / 2)
    assert other.pool.endpoints["ns/a"].health is Health.EJECTED
    other.router.upkeep(1.0 + FIRST_BACKOFF)
    assert other.pool.endpoints["ns/a"].health is Health.PROBING


def test_a_restart_that_discovery_tells_is_not_passed_on() -> None:
    one = Picker(names=("a",), incarnation="old")
    one.pool.upsert(EndpointSpec("ns", "a", "10.0.0.1", 8000, {}, "new"), 1.0)
    assert not one.outbox.take(1.0).events


@pytest.mark.parametrize("incarnation", ["old", "new"])
def test_a_restart_after_a_change_that_discovery_tells_is_passed_on(incarnation: str) -> None:
    """Of the labels, or of the process: an engine may end again in the same container."""
    one = Picker(names=("a",), incarnation="old")
    one.pool.upsert(EndpointSpec("ns", "a", "10.0.0.1", 8000, {"team": "x"}, incarnation), 1.0)
    one.pool.restarted(one.pool.endpoints["ns/a"], 50.0)
    assert [event.kind for event in one.outbox.take(50.0).events] == [pb.Event.RESTARTED]


@pytest.mark.parametrize("reachable", [True, False])
def test_reachability_is_shared(reachable: bool) -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    send(one, other, 0.5)  # what lasts is said with the first batch
    one.pool.unreachable(one.pool.endpoints["ns/a"], 1.0)
    if reachable:
        one.pool.reachable(one.pool.endpoints["ns/a"], 1.0)
    send(one, other, 1.02)
    assert other.pool.endpoints["ns/a"].reachable is reachable


@pytest.mark.parametrize("both_know", [True, False])
def test_a_page_from_before_an_engine_fell_silent_does_not_show_that_it_answers(both_know: bool) -> None:
    """NATS was away for some seconds: the figures of before come with the event, or after it."""
    one, other = Picker(names=("a", "b")), Picker(names=("a", "b"))
    pickers = (one, other) if both_know else (one,)
    for picker, at in zip(pickers, (4.8, 4.9), strict=False):
        picker.observe("a", at)
        picker.pool.unreachable(picker.pool.endpoints["ns/a"], 5.0)
    send(one, other, 10.0)
    there = other.pool.endpoints["ns/a"]
    assert not there.reachable
    assert there.state is not None
    one.observe("a", 10.5)
    send(one, other, 10.52)
    assert there.reachable


def test_an_engine_that_fell_silent_since_another_picker_heard_it_stays_silent() -> None:
    one, other = Picker(names=("a", "b")), Picker(names=("a", "b"))
    one.pool.unreachable(one.pool.endpoints["ns/a"], 5.0)
    one.pool.reachable(one.pool.endpoints["ns/a"], 7.0)
    other.pool.unreachable(other.pool.endpoints["ns/a"], 9.0)
    send(one, other, 10.0)
    assert not other.pool.endpoints["ns/a"].reachable


def test_an_ejection_is_shared() -> None:
    one, other = Picker(names=("a", "b")), Picker(names=("a", "b"))
    decision = one.pick("prompt", 1.0)
    for _ in range(6):
        one.router.responded(decision, 500, 1.0)
    assert decision.endpoint.health is Health.EJECTED
    send(one, other, 1.02)
    assert other.pool.endpoints[decision.endpoint.id].health is Health.EJECTED


def test_an_old_ejection_is_over() -> None:
    one, other = Picker(), Picker()
    one.pool.set_health(one.pool.endpoints["ns/a"], Health.EJECTED, 1.0)
    batch = one.outbox.take(1.0)
    assert batch.events
    other.inbox.apply(batch, 1.0, 100.0, replayed=True)
    assert other.pool.endpoints["ns/a"].health is Health.HEALTHY


def test_an_ejection_is_told_once() -> None:
    """Not again at each change of the endpoint: the others would prolong it."""
    one, other = Picker(), Picker()
    endpoint = one.pool.endpoints["ns/a"]

    def ejections(picker: Picker, now: float) -> int:
        return [event.kind for event in picker.outbox.take(now).events].count(pb.Event.EJECTED)

    one.pool.set_health(endpoint, Health.EJECTED, 1.0)
    one.pool.serves(endpoint, ServedModels(frozenset({"m"})), 2.0)
    one.pool.unreachable(endpoint, 3.0)
    one.pool.reachable(endpoint, 4.0)
    batch = one.outbox.take(5.0)
    assert [event.kind for event in batch.events].count(pb.Event.EJECTED) == 1
    other.inbox.apply(batch, 5.0, 5.0)
    other.pool.unreachable(other.pool.endpoints["ns/a"], 6.0)  # it knows the ejection from the first picker
    assert ejections(other, 6.02) == 0
    one.pool.set_health(endpoint, Health.TRIAL, 7.0)
    one.pool.set_health(endpoint, Health.EJECTED, 8.0)
    assert ejections(one, 8.02) == 1


def test_an_adapter_is_known_to_be_loaded() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    one.observe("a", 0.5, loaded_adapters=frozenset({"lora-2"}), max_adapters=2)
    one.outbox.take(0.5)
    one.pick("prompt", 1.0, model="lora-2")
    batch = send(one, other, 1.02)
    assert list(batch.adapters) == ["lora-2"]
    assert "lora-2" in other.load("a").adapters


def test_a_starter_takes_over_the_estimate_of_bytes_per_token() -> None:
    one, other = Picker(), Picker()
    batch = one.outbox.take(1.0, bytes_per_token=3.0)
    other.inbox.apply(batch, 1.0, 2.0)
    assert other.router.bytes_per_token == 4.0
    other.inbox.apply(batch, 1.0, 2.0, replayed=True)
    assert other.router.bytes_per_token == pytest.approx(3.0)


@pytest.mark.parametrize("estimate", [math.nan, math.inf, -1.0, 1e-300, 1e300])
def test_an_estimate_outside_the_range_is_not_taken_over(estimate: float) -> None:
    one, other = Picker(), Picker()
    other.inbox.apply(one.outbox.take(1.0, bytes_per_token=estimate), 1.0, 2.0, replayed=True)
    assert other.router.bytes_per_token == 4.0


def test_a_batch_with_more_groups_than_pickers_write_is_not_applied() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    one.pick(LONG, 1.0)
    batch = one.outbox.take(1.02)
    other.inbox.apply(batch, 1.02, 1.03)
    for name in COLUMNS:
        column = getattr(batch.decisions, name)
        column[:] = [0 if name == "prompts" else column[0]] * (MOST_DECISIONS + 1)
    for name in (*PROMPT_COLUMNS, "hashes"):
        del getattr(batch.decisions, name)[:]
    other.inbox.apply(batch, 1.02, 1.03)
    assert other.inbox.applied.unreadable == 1
    assert other.inbox.applied.decisions == 1


def rare(batch: pb.Batch, **numbers: int) -> None:
    """Give every group of the batch these numbers in the rare columns, 0 in the others."""
    rows = len(batch.decisions.endpoint)
    for name in RARE_COLUMNS:
        getattr(batch.decisions, name)[:] = [numbers.get(name, 0)] * rows


def test_one_decision_counts_no_more_requests_than_one_of_this_picker() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    one.pick(LONG, 1.0)
    batch = one.outbox.take(1.02)
    rare(batch, further=2**32 - 1)
    other.inbox.apply(batch, 1.02, 1.03)
    assert len(other.load("a").sent) == MOST_REQUESTS_OF_ONE


def test_each_sample_looks_its_prompt_up_and_finds_it() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    for picker in (one, other):
        picker.observe("a", 0.5, prefix_queries_total=0.0)
    decision = one.pick(LONG, 1.0, samples=3)
    send(one, other, 1.02)
    (here,), (sent,) = (picker.load("a").confirmation._open for picker in (one, other))
    assert (sent.tokens, sent.cached_tokens) == pytest.approx((here.tokens, here.cached_tokens), rel=0.01)
    assert sent.tokens == pytest.approx(3 * decision.prompt_tokens, rel=0.01)
    assert len(other.load("a").sent) == 3


def test_the_work_of_a_batch_is_that_of_its_prompts() -> None:
    """Four prompts of a quarter of the length attend to a quarter of the tokens."""
    one, other = Picker(names=("a",)), Picker(names=("a",))
    parts = tuple(PromptPart(f"{k} {LONG * 25}".encode(), len(f"{k} {LONG * 25}")) for k in range(4))
    prompt_bytes = sum(part.prompt_bytes for part in parts)
    decision = one.router.pick(
        InferenceRequest(model="m", parts=parts, prompt_bytes=prompt_bytes, starts=(1, 2, 3)), 1.0
    )
    assert isinstance(decision, Decision)
    send(one, other, 1.001)
    pending = other.router.load_of(other.load("a"), 1.002)[2]
    assert pending == pytest.approx(prefill_work(decision.prompt_tokens, 4.0), rel=0.05)


def test_one_batch_counts_a_bounded_number_of_requests() -> None:
    """703 bytes with 20 decisions of 100,000 requests held up the picker for 4.8 s."""
    one, other = Picker(names=("a",)), Picker(names=("a",))
    for k in range(200):
        one.pick(f"{k}", 1.0 + 0.1 * k)  # groups of their own
    batch = one.outbox.take(21.0)
    assert len(batch.decisions.endpoint) == 200
    rare(batch, further=2**32 - 1)
    other.inbox.apply(batch, 21.0, 21.0)
    assert len(other.load("a").sent) == MOST_REQUESTS


@pytest.mark.parametrize("bytes_of_one", [6 * 10**7, 2**32 - 1])
def test_a_prompt_that_is_longer_than_the_cache_evicts_nothing(bytes_of_one: int) -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    held = one.pick(LONG, 1.0)
    send(one, other, 1.02)
    one.pick(f"other {LONG}", 2.0)
    batch = one.outbox.take(2.02)
    batch.decisions.new_bytes[0] = batch.decisions.prompt_bytes[0] = bytes_of_one
    other.inbox.apply(batch, 2.02, 2.03)
    assert other.router.holders(held.chain.hashes) == ["ns/a"]


def test_a_prompt_that_the_engine_rejects_for_its_length_is_load_alone() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    for picker in (one, other):
        picker.observe("a", 0.5, max_model_len=1000)
    decision = one.pick(LONG * 10, 1.0)
    assert not send(one, other, 1.02).decisions.hashes
    assert other.router.holders(decision.chain.hashes) == []
    assert len(other.load("a").sent) == 1


def test_decisions_of_nearly_one_time_are_added_up() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    decisions = [one.pick(f"{k} {LONG}", 1.0 + 0.001 * k) for k in range(10)]
    batch = send(one, other, 1.012)
    assert list(batch.decisions.decisions) == [10]
    for decision in decisions:
        assert other.router.holders(decision.chain.hashes) == ["ns/a"]
    assert other.inbox.applied.decisions == len(other.load("a").sent) == 10
    here, there = (picker.router.load_of(picker.load("a"), 1.02) for picker in (one, other))
    assert there == pytest.approx(here, rel=0.05)


@pytest.mark.parametrize("long_first", [True, False])
def test_a_long_prompt_is_confirmed_by_itself(long_first: bool) -> None:
    """The engine may reject it, and accept those beside it."""
    one, other = two_whose_engine_counts_lookups()
    texts = {False: LONG, True: f"long {LONG * 20}"}
    decisions = {long: one.pick(texts[long], 1.0) for long in (long_first, not long_first)}
    assert list(send(one, other, 1.01).decisions.decisions) == [1, 1]
    assert other.router.holders(decisions[True].chain.hashes) == ["ns/a"]
    if not long_first:  # the counter's growth is of the first prompt in line
        tokens = decisions[False].prompt_tokens
        other.observe("a", 3.0, prefix_queries_total=tokens, prefix_hits_total=0.0)  # and is idle
        assert other.router.holders(decisions[False].chain.hashes) == ["ns/a"]
        assert other.router.holders(decisions[True].chain.hashes) == []


def test_short_prompts_that_the_engine_rejects_evict_little() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    for picker in (one, other):
        picker.observe("a", 0.5, capacity_tokens=20_000, prefix_queries_total=0.0, prefix_hits_total=0.0)
    held = other.pick(LONG, 0.9)
    for k in range(100):  # 280 KB, none of which the engine looks up
        one.pick(f"{k} {LONG}", 1.0 + 0.03 * k)
        send(one, other, 1.02 + 0.03 * k)
    assert other.router.holders(held.chain.hashes) == ["ns/a"]


def test_short_prompts_of_nearly_one_time_are_confirmed_at_once() -> None:
    """Together they are as long as a prompt that waits for the engine to look it up."""
    one, other = two_whose_engine_counts_lookups()
    for k in range(10):
        one.pick(f"{k} {LONG}", 1.0 + 0.001 * k)
    send(one, other, 1.02)
    (sent,) = other.load("a").confirmation._open
    assert sent.claim is None
    assert sent.prompts == 10
    assert one.load("a").cache_fill > 0
    assert other.load("a").cache_fill == pytest.approx(one.load("a").cache_fill)


def test_a_long_prompt_fills_the_cache_once_it_is_confirmed() -> None:
    one, other = two_whose_engine_counts_lookups()
    decision = one.pick(LONG * 20, 1.0)
    send(one, other, 1.02)
    for picker in (one, other):
        assert picker.load("a").cache_fill == 0.0
        picker.observe("a", 2.0, prefix_queries_total=decision.prompt_tokens, prefix_hits_total=0.0, running=1)
        assert picker.load("a").cache_fill > 0.0
    assert other.load("a").cache_fill == pytest.approx(one.load("a").cache_fill)


def test_a_prompt_that_reads_no_cache_waits_for_no_lookup() -> None:
    one, other = two_whose_engine_counts_lookups()
    decision = one.pick(LONG, 1.0, reads_cache=False)
    send(one, other, 1.02)
    assert not other.load("a").confirmation._open
    assert other.router.holders(decision.chain.hashes) == ["ns/a"]


def test_hits_are_expected_of_an_engine_as_its_own_picker_expects_them() -> None:
    """Whatever the trust in it is at each."""
    one, other = two_whose_engine_counts_lookups()
    one.pick(LONG, 1.0)
    send(one, other, 1.02)
    one.load("a").confirmation.trust = 0.5
    one.observe("a", 1.5, prefix_queries_total=0.0, prefix_hits_total=0.0, running=1)
    one.pick(LONG, 2.0)
    send(one, other, 2.02)
    expected = [picker.load("a").confirmation._open[-1].cached_tokens for picker in (one, other)]
    assert expected[0] == pytest.approx(expected[1], rel=0.01) != pytest.approx(0.5 * expected[1], rel=0.1)


def test_two_adapters_of_nearly_one_time_are_known_to_be_loaded() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    one.observe("a", 0.5, loaded_adapters=frozenset({"lora-1", "lora-2"}), max_adapters=2)
    one.outbox.take(0.5)
    for name in ("lora-1", "lora-2"):
        one.pick("prompt", 1.0, model=name)
    send(one, other, 1.02)
    assert all(name in other.load("a").adapters for name in ("lora-1", "lora-2"))


def test_requests_without_a_prompt_are_no_prompts_beside_others() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    one.pick(LONG, 1.0, partial=True)
    for _ in range(5):
        assert isinstance(one.router.pick(NO_PROMPT, 1.001), Decision)
    send(one, other, 1.02)
    unserved = [picker.router._outliers._records["ns/a"].unserved for picker in (one, other)]
    assert unserved == [1, 1]
    assert other.load("a").mean_work.tokens == pytest.approx(one.load("a").mean_work.tokens, rel=0.05)


def test_an_old_decision_is_none_of_the_prompts_in_flight() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    other.observe("a", 99.0, prompt_requests_total=0.0, prompt_tokens_total=0.0)
    one.pick(LONG, 1.0)
    other.inbox.apply(one.outbox.take(1.02), 1.02, 100.0)
    assert not other.router._bytes_per_token._windows[other.load("a")].in_flight
    assert other.router.booked == 0


@pytest.mark.parametrize("samples", [1, 3])
def test_lengths_of_prompts_are_known_to_all(samples: int) -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    for picker in (one, other):
        picker.observe("a", 0.5, prompt_requests_total=0.0, prompt_tokens_total=0.0)
    for k in range(4):
        one.pick(f"{k} {LONG}", 1.0 + 0.001 * k, samples=samples)
    send(one, other, 1.02)
    windows = [picker.router._bytes_per_token._windows[picker.load("a")] for picker in (one, other)]
    assert windows[0].in_flight == windows[1].in_flight
    assert len(windows[1].in_flight) == 4 * samples
    assert other.router.booked == 4


def test_the_next_pick_sees_what_another_picker_has_decided() -> None:
    """Its figures of that endpoint would hold for ever."""
    one, other = Picker(names=("b",)), Picker(names=("a", "b"))
    assert other.pick("before", 0.5).endpoint.id == "ns/a"
    one.pick(LONG * 10, 1.0)
    send(one, other, 1.001)
    assert other.router.load_of(other.load("b"), 1.004)[0] == 1


def test_a_group_counts_no_more_requests_than_its_decisions_may() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    for k in range(3):
        one.pick(f"{k} {LONG}", 1.0)
    batch = one.outbox.take(1.02)
    rare(batch, further=2**32 - 1)
    other.inbox.apply(batch, 1.02, 1.03)
    assert len(other.load("a").sent) == 3 * MOST_REQUESTS_OF_ONE


@pytest.mark.parametrize("kind", ["events", "reports", "served"])
def test_a_batch_with_more_facts_than_pickers_write_is_not_applied(kind: str) -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    one.pool.cache_emptied(one.pool.endpoints["ns/a"], 1.0)
    one.observe("a", 1.0)
    one.pool.serves(one.pool.endpoints["ns/a"], ServedModels(frozenset({"m"})), 1.0)
    batch = one.outbox.take(1.02)
    facts = getattr(batch, kind)
    facts.extend([facts[0]] * MOST_OF_A_KIND)
    other.inbox.apply(batch, 1.02, 1.03)
    assert other.inbox.applied.unreadable == 1
    assert other.inbox.applied.events == other.inbox.applied.reports == 0
    assert other.pool.endpoints["ns/a"].models is None


def test_many_facts_are_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmroute.shared_state.outbox.MOST_OF_A_KIND", 2)
    names = tuple(f"pod-{k}" for k in range(5))
    one = Picker(names=names)
    for name in names:
        one.pool.cache_emptied(one.pool.endpoints[f"ns/{name}"], 1.0)
        one.observe(name, 1.0)
        one.pool.serves(one.pool.endpoints[f"ns/{name}"], ServedModels(frozenset({"m"})), 1.0)
    batches = take_all(one, 1.02)
    for kind in ("events", "reports", "served"):
        assert [len(getattr(batch, kind)) for batch in batches] == [2, 2, 1]


@pytest.mark.parametrize(("most", "events", "reports"), [(200, 40, 8), (10, 1, 1)])
def test_long_facts_are_several_batches(monkeypatch: pytest.MonkeyPatch, most: int, events: int, reports: int) -> None:
    names = tuple(f"pod-{k}" for k in range(10))
    one = Picker(names=names)
    for name in names:
        for _ in range(10):
            one.pool.cache_emptied(one.pool.endpoints[f"ns/{name}"], 1.0)
        one.observe(name, 1.0)
    monkeypatch.setattr("warmroute.shared_state.outbox.MOST_FACTS", most)
    batches = take_all(one, 1.02)
    for kind, sent, at_once in (("events", 100, events), ("reports", 10, reports)):
        counts = [len(getattr(batch, kind)) for batch in batches]
        assert sum(counts) == sent
        assert max(counts) <= at_once


@pytest.mark.parametrize("column", ["endpoint", "work", "prompts", "checkpoints", "held_bytes", "hashes", "flags"])
def test_columns_of_different_lengths_are_not_applied(column: str) -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    one.pick(LONG, 1.0)
    batch = one.outbox.take(1.02)
    getattr(batch.decisions, column).extend([1, 1])
    other.inbox.apply(batch, 1.02, 1.03)
    assert other.inbox.applied.unreadable == 1
    assert not other.load("a").sent


def test_many_decisions_are_several_batches() -> None:
    one = Picker()
    for _ in range(MOST_DECISIONS + 1):
        one.pick("prompt", 1.0)
    assert sum(one.outbox.take(1.0).decisions.decisions) == MOST_DECISIONS
    assert sum(one.outbox.take(1.0).decisions.decisions) == 1


def test_a_log_that_is_away_for_long_costs_the_oldest_decisions() -> None:
    one = Picker(names=("a",))
    record = one.router.preview(NO_PROMPT, 1.0)
    assert isinstance(record, DecisionRecord)
    decision = one.pick("prompt", 1.0)
    for _ in range(MOST_WAITING * MOST_DECISIONS):
        one.outbox.decided(decision, record)
    assert one.outbox.dropped == MOST_DECISIONS
    assert len(one.outbox) == (MOST_WAITING - 1) * MOST_DECISIONS + 1


def test_prompts_whose_beginning_was_dropped_are_known_when_they_are_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("warmroute.shared_state.outbox.MOST_WAITING", 1)
    monkeypatch.setattr("warmroute.shared_state.decision_columns.MOST_DECISIONS", 2)
    one, other = Picker(names=("a",)), Picker(names=("a",))
    for _ in range(3):
        one.pick(LONG, 1.0)
    assert one.outbox.dropped == 2
    send(one, other, 1.02)
    assert other.pick(LONG, 1.03).match_ratio > 0.9


def test_long_prompts_cost_them_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmroute.shared_state.decision_columns.MOST_CHECKPOINTS", 50)
    one = Picker(names=("a",))
    for k in range(20 * MOST_WAITING):
        one.pick(f"{k} {LONG}", 1.0)
    assert one.outbox.dropped > 0
    taken = one.outbox.take(1.0).decisions
    assert 0 < len(taken.hashes) - len(one.pick(f"0 {LONG}", 1.0).chain.hashes) <= 50


def test_every_prompt_of_a_batch_comes_through() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    parts = tuple(PromptPart(f"{k} {LONG}".encode(), len(f"{k} {LONG}")) for k in range(3))
    request = InferenceRequest(
        model="m", parts=parts, prompt_bytes=sum(part.prompt_bytes for part in parts), starts=(1, 2), samples=2
    )
    decision = one.router.pick(request, 1.0)
    assert isinstance(decision, Decision)
    assert len(decision.chains) == 3
    one.pick(LONG, 1.0)
    send(one, other, 1.02)
    assert other.inbox.applied.decisions == 2
    for chain in decision.chains:
        assert other.router.holders(chain.hashes) == ["ns/a"]
    assert list(other.load("a").sent.times) == pytest.approx([1.0] * (decision.requests + 1), abs=0.01)
    assert len(other.load("a").sent) == len(one.load("a").sent)


def test_a_model_of_several_names_has_one_cache_everywhere() -> None:
    """Only the picker that scrapes an engine sees which names are of one model."""
    one, other = Picker(names=("a",)), Picker(names=("a",))
    one.pool.serves(one.pool.endpoints["ns/a"], ServedModels(frozenset({"m", "n"}), aliases={"n": "m"}), 1.0)
    send(one, other, 1.01)
    one.pick(LONG, 1.02, model="n", seed=b"n")
    send(one, other, 1.04)
    assert other.pick(LONG, 1.06, model="m", seed=b"m").match_ratio > 0.9
    assert other.pick(LONG, 1.06, model="n", seed=b"n").match_ratio > 0.9


def test_models_that_an_engine_lists_are_known_everywhere_and_said_again() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    models = ServedModels(frozenset({"base", "lora", "other"}), frozenset({"lora"}), {"other": "base"})
    one.pool.serves(one.pool.endpoints["ns/a"], models, 1.0)
    send(one, other, 1.02)
    assert other.pool.endpoints["ns/a"].models == models
    assert len(other.outbox) == 0
    starter = Picker(names=("a",))
    send(one, starter, 1.04)
    assert starter.pool.endpoints["ns/a"].models is None
    one.pool.unreachable(one.pool.endpoints["ns/a"], 1.04)
    one.outbox.take(1.05)
    send(one, starter, 1000.0)
    assert starter.pool.endpoints["ns/a"].models == models
    assert not starter.pool.endpoints["ns/a"].reachable
    one.pool.serves(one.pool.endpoints["ns/a"], None, 1001.0)
    send(one, other, 1001.0)
    assert other.pool.endpoints["ns/a"].models is None


def test_other_names_of_models_that_are_not_listed_are_left_out() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    aliases = {"n": "m", "unlisted": "m", "m": "unlisted"}
    one.pool.serves(one.pool.endpoints["ns/a"], ServedModels(frozenset({"m", "n"}), aliases=aliases), 1.0)
    send(one, other, 1.02)
    models = other.pool.endpoints["ns/a"].models
    assert models is not None
    assert models.aliases == {"n": "m"}


def test_lists_of_models_go_without_decisions() -> None:
    one = Picker(names=("a",))
    one.pick(LONG, 1.0)
    one.observe("a", 1.0)
    one.pool.serves(one.pool.endpoints["ns/a"], ServedModels(frozenset({"m"})), 1.0)
    assert len(one.outbox) == 3
    batches = take_all(one, 1.02)
    assert [(len(batch.served), len(batch.decisions.endpoint)) for batch in batches] == [(1, 0), (0, 1)]


def test_nothing_is_told_or_kept_of_an_endpoint_that_has_left() -> None:
    one = Picker(names=("a",))
    endpoint = one.pool.endpoints["ns/a"]
    one.pool.serves(endpoint, ServedModels(frozenset({"m"})), 1.0)
    one.observe("a", 1.0)
    one.pool.replace([], 2.0)
    one.pool.expire(2.0 + one.pool.retention)
    assert len(one.outbox) == 0
    outbox = one.outbox
    kept = (outbox._states, outbox._last, outbox._reachable, outbox._health, outbox._specs, outbox._members)
    assert not any((*kept, outbox._models, outbox._changed_models))


def test_figures_of_a_process_that_has_ended_are_not_told() -> None:
    one = Picker(names=("a",))
    one.observe("a", 1.0)
    one.pool.restarted(one.pool.endpoints["ns/a"], 1.01)
    batch = one.outbox.take(1.02)
    assert (len(batch.events), len(batch.reports)) == (1, 0)


def test_the_models_of_a_restarted_engine_are_told_again() -> None:
    """All forget its list with the restart; the new process has the same one."""
    one, other = Picker(names=("a",)), Picker(names=("a",))
    endpoint, models = one.pool.endpoints["ns/a"], ServedModels(frozenset({"m"}))
    one.pool.serves(endpoint, models, 1.0)
    send(one, other, 1.02)
    one.pool.restarted(endpoint, 2.0)
    send(one, other, 2.02)
    assert other.pool.endpoints["ns/a"].models is None
    one.pool.serves(endpoint, models, 3.0)
    send(one, other, 3.02)
    assert other.pool.endpoints["ns/a"].models == models


def adapters_of(tenant: int, count: int) -> ServedModels:
    names = frozenset(f"customer-{k:05d}-summarizer-lora-v{tenant}-2026-08" for k in range(count))
    return ServedModels(names | {"base"}, names)


def test_an_engine_that_another_picker_lost_before_it_answered_here_stays_reachable() -> None:
    """NATS was away, so both scraped it; it fell silent for both, and answered the other one first."""
    one, other = Picker(names=("a", "b")), Picker(names=("a", "b"))
    one.pool.unreachable(one.pool.endpoints["ns/a"], 5.0)
    one.observe("a", 6.0)
    there = other.pool.endpoints["ns/a"]
    other.pool.unreachable(there, 6.5)
    other.observe("a", 7.0)
    send(one, other, 10.0)
    assert there.reachable


def test_what_lasts_is_said_again_when_pickers_start_but_not_for_each_of_many() -> None:
    one = Picker(names=("a",))
    one.pool.serves(one.pool.endpoints["ns/a"], ServedModels(frozenset({"m"})), 1.0)
    said = [bool(one.outbox.take(1.0).served)]
    for at in (2.0, 7.0, 7.1, 8.0, 12.1):
        one.outbox.repeat_soon(at)
        said.append(bool(one.outbox.take(at).served))
    assert said == [True, True, True, False, False, True]


def test_what_lasts_is_said_again_by_the_picker_that_scrapes_the_engine() -> None:
    said = []
    for owns in (True, False):
        picker = Picker(names=("a",))
        picker.outbox._owns = lambda name, owns=owns: owns  # type: ignore[misc]
        picker.pool.serves(picker.pool.endpoints["ns/a"], ServedModels(frozenset({"m"})), 1.0)
        picker.pool.unreachable(picker.pool.endpoints["ns/a"], 1.0)
        take_all(picker, 1.0)
        batch = picker.outbox.take(1000.0)
        said.append((len(batch.served), len(batch.events)))
    assert said == [(1, 1), (0, 0)]


def test_a_picker_that_gives_engines_to_a_starter_says_what_lasts_before() -> None:
    """Of each that it scrapes; of no other one."""
    one = Picker(names=("a", "b", "c"))
    owned = {"ns/b", "ns/c"}
    one.outbox._owns = owned.__contains__
    take_all(one, 0.5)
    for endpoint in one.pool.endpoints.values():
        one.pool.serves(endpoint, ServedModels(frozenset({"m"})), 1.0)
    take_all(one, 1.0)
    one.outbox.repeat_soon(10.0)
    owned.clear()
    (batch,) = take_all(one, 10.0)
    assert [batch.endpoints[served.endpoint].id for served in batch.served] == ["ns/b", "ns/c"]


def test_a_list_that_is_not_known_any_more_is_that_of_its_engine() -> None:
    one, other = Picker(), Picker()
    for name in ("a", "b"):
        one.pool.serves(one.pool.endpoints[f"ns/{name}"], ServedModels(frozenset({name})), 1.0)
    send(one, other, 1.0)
    for models in (ServedModels(frozenset({"a", "x"})), None):
        one.pool.serves(one.pool.endpoints["ns/b" if models is None else "ns/a"], models, 2.0)
    send(one, other, 2.0)
    assert {name: endpoint.models for name, endpoint in other.pool.endpoints.items()} == {
        "ns/a": ServedModels(frozenset({"a", "x"})),
        "ns/b": None,
    }


def test_long_lists_of_models_are_spread_over_batches() -> None:
    """36 engines with 1,000 adapters each were one batch of 3.6 MB when they were said again."""
    names = tuple(f"pod-{k}" for k in range(36))
    one, other, starter = Picker(names=names), Picker(names=names), Picker(names=names)
    for k, name in enumerate(names):
        one.pool.serves(one.pool.endpoints[f"ns/{name}"], adapters_of(k, 1000), 1.0)
        one.observe(name, 1.0)
    for reader, at in ((other, 1.02), (starter, 1000.0)):
        batches = take_all(one, at)
        assert max(batch.ByteSize() for batch in batches) < LARGEST_BATCH
        for batch in batches:
            reader.inbox.apply(batch, at, at)
        for name in names:
            assert reader.pool.endpoints[f"ns/{name}"].models == one.pool.endpoints[f"ns/{name}"].models


def test_decisions_and_long_lists_fit_into_batches() -> None:
    names = tuple(f"pod-{k}" for k in range(100))
    one = Picker(names=names)
    for k, name in enumerate(names):
        one.pool.serves(one.pool.endpoints[f"ns/{name}"], adapters_of(k, 4000), 1.0)
        one.observe(name, 1.0, loaded_adapters=frozenset(f"{name}-{'x' * 500}-{n}" for n in range(20)))
    for k in range(1000):
        one.pick(f"{k} {LONG * 3}", 1.0)
    batches = take_all(one, 1.02)
    assert max(batch.ByteSize() for batch in batches) < LARGEST_BATCH
    assert sum(sum(batch.decisions.decisions) for batch in batches) == 1000
    assert sum(len(batch.reports) for batch in batches) == len(names)
    assert sum(served.listed for batch in batches for served in batch.served) == len(names)


def test_decisions_for_adapters_with_long_names_fit_into_batches() -> None:
    """The log was away, so each batch is full; 2 kB for each of the longest names."""
    one = Picker(names=("a",))
    adapters = [f"{k:04}" + (LONGEST_MODEL_NAME - 4) * chr(0x1F600) for k in range(MOST_DECISIONS)]
    one.pool.serves(one.pool.endpoints["ns/a"], ServedModels(frozenset(adapters), frozenset(adapters)), 0.5)
    take_all(one, 0.6)
    for name in adapters:
        one.pick(LONG, 1.0, model=name)
    batches = take_all(one, 2.0)
    assert max(batch.ByteSize() for batch in batches) < LARGEST_BATCH
    assert sum(sum(batch.decisions.decisions) for batch in batches) == MOST_DECISIONS


def test_a_list_that_is_too_long_for_a_batch_counts_as_none() -> None:
    one, other = Picker(names=("a",)), Picker(names=("a",))
    one.pool.serves(one.pool.endpoints["ns/a"], ServedModels(frozenset({"m"})), 1.0)
    send(one, other, 1.02)
    names = frozenset(f"{'x' * 500}-{k}" for k in range(4000))
    one.pool.serves(one.pool.endpoints["ns/a"], ServedModels(names), 2.0)
    assert send(one, other, 2.02).ByteSize() < LONGEST_LIST
    assert other.pool.endpoints["ns/a"].models is None


def test_a_decision_with_very_many_checkpoints_fits_into_a_batch() -> None:
    """Further prompts are left out when it has enough."""
    one, other = Picker(names=("a",)), Picker(names=("a",))
    turns = [PromptPart(f"{k}".encode(), len(f"{k}")) for k in range(40 * 4000)]
    request = InferenceRequest(
        model="m",
        parts=tuple(turns),
        prompt_bytes=sum(part.prompt_bytes for part in turns),
        starts=tuple(range(4000, len(turns), 4000)),
    )
    decision = one.router.pick(request, 1.0)
    assert isinstance(decision, Decision)
    assert sum(len(chain.hashes) for chain in decision.chains) >= len(turns)
    assert send(one, other, 1.02).ByteSize() < LARGEST_BATCH
    assert other.router.holders(decision.chains[0].hashes) == ["ns/a"]
    assert other.inbox.applied.decisions == 1


@given(st.binary(max_size=300))
def test_no_bytes_break_the_inbox(data: bytes) -> None:
    """Whoever has the key may have a bug."""
    try:
        batch = pb.Batch.FromString(data)
    except DecodeError:
        return
    Picker().inbox.apply(batch, 1.0, 2.0)


positions = st.integers(0, 3)
figures = st.one_of(st.integers(0, 10), st.just(2**32 - 1))


@st.composite
def remote_decisions(draw: st.DrawFn) -> pb.Decisions:
    """Columns that fit, with any figures."""
    groups = draw(st.integers(0, 8))
    prompts = draw(st.lists(st.integers(0, 3), min_size=groups, max_size=groups))
    checkpoints = draw(st.lists(st.integers(0, 4), min_size=sum(prompts), max_size=sum(prompts)))

    def column(values: st.SearchStrategy[int], length: int = groups) -> list[int]:
        return draw(st.lists(values, min_size=length, max_size=length))

    return pb.Decisions(
        endpoint=column(positions),
        age=column(figures),
        decisions=column(figures),
        work=column(figures),
        tokens=column(figures),
        cached_tokens=column(figures),
        prompt_bytes=column(figures),
        prompts=prompts,
        flags=column(figures),
        adapter=column(positions),
        further=column(figures),
        checkpoints=checkpoints,
        held_bytes=column(figures, len(checkpoints)),
        new_bytes=column(figures, len(checkpoints)),
        hashes=column(st.integers(0, 5), sum(checkpoints)),
    )


reports = st.builds(
    pb.Report,
    endpoint=positions,
    age=figures,
    running=figures,
    waiting=figures,
    kv_usage=st.floats(width=32),
    prefill_rate=st.floats(width=32),
    first_tokens_total=st.floats(),
    loaded_adapters=st.lists(positions, max_size=3),
)
events = st.builds(pb.Event, endpoint=positions, kind=st.integers(0, 9), age=figures)


@given(remote_decisions(), st.lists(reports, max_size=4), st.lists(events, max_size=4))
def test_no_figures_break_the_router(decisions: pb.Decisions, reports: list[pb.Report], events: list[pb.Event]) -> None:
    picker = Picker()
    names = [pb.Endpoint(id="ns/a"), pb.Endpoint(id="ns/b"), pb.Endpoint(id="ns/c")]
    batch = pb.Batch(endpoints=names, adapters=["x"], decisions=decisions, reports=reports, events=events)
    picker.inbox.apply(batch, 50.0, 51.0)
    picker.inbox.apply(batch, 99.0, 51.0)
    assert isinstance(picker.router.pick(NO_PROMPT, 52.0), Decision)
    picker.pick("prompt", 52.0)
