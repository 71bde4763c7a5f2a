"""Records of decisions: who is told, and how they explain themselves."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.factories import engine_state, routing_constants
from tests.routing.test_router import LONG, Fixture, only, prompt
from warmroute.observability.recent_decisions import RecentDecisions
from warmroute.pool.endpoint import EndpointSpec
from warmroute.pool.pool import Pool
from warmroute.request.inference import NO_PROMPT, InferenceRequest
from warmroute.request.rejections import Rejection
from warmroute.routing.cached_tokens import CachedTokens
from warmroute.routing.cost import LEFT_OUT
from warmroute.routing.decision import Decision, Measurement
from warmroute.routing.decision_record import CACHED_STEP, DecisionRecord, duration
from warmroute.routing.router import Router


class Heard:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.decided_on: list[tuple[Decision, DecisionRecord, float]] = []
        self.measured_on: list[Decision] = []

    def decided(self, decision: Decision, record: DecisionRecord) -> None:
        self.decided_on.append((decision, record, decision.load.last_chosen))

    def measured(self, decision: Decision) -> None:
        self.measured_on.append(decision)


def listened(*, name: str = "p1") -> tuple[Router, Heard, Heard]:
    pool, first, second = Pool(), Heard(), Heard()
    pool.replace([EndpointSpec("ns", str(k), f"10.0.0.{k}", 8000) for k in range(2)], 0.0)
    rng = random.Random(1)
    return Router(pool, routing_constants(), rng=rng, now=0.0, listeners=(first, second), name=name), first, second


def test_every_listener_is_told_of_each_decision_once_it_is_booked() -> None:
    router, first, second = listened()
    for k in range(3):
        router.pick(prompt(LONG), float(k), request_id=f"r{k}", traceparent=f"00-{k:032x}-{k:016x}-01")
    assert first.decided_on == second.decided_on
    decisions, records, booked = zip(*first.decided_on, strict=True)
    assert [record.id for record in records] == ["p1-1", "p1-2", "p1-3"]
    assert [record.request_id for record in records] == ["r0", "r1", "r2"]
    assert records[2].trace_id == f"{2:032x}"
    assert [(decision.id, decision.request_id) for decision in decisions] == [
        (f"p1-{k + 1}", f"r{k}") for k in range(3)
    ]
    assert list(booked) == [1, 2, 3]
    assert all(decision.chain.hashes for decision in decisions)


def test_a_record_says_how_many_tokens_are_warm() -> None:
    router, heard, _ = listened()
    decision = router.pick(prompt(LONG), 0.0)
    assert isinstance(decision, Decision)
    (_, record, _) = heard.decided_on[0]
    assert record.warm_from == 0.5 * decision.prompt_tokens


def test_a_record_shows_the_load_before_its_own_request() -> None:
    router, heard, _ = listened()
    router.pick(prompt(LONG), 0.0)
    (_, record, _) = heard.decided_on[0]
    assert [endpoint.waiting for endpoint in record.endpoints] == [0, 0]


def test_listeners_are_told_what_was_measured_when_the_response_has_ended() -> None:
    router, heard, second = listened()
    decision = router.pick(prompt(LONG), 1.0)
    assert isinstance(decision, Decision)
    router.opened(decision)
    router.served(decision, decision.targets, 1.25)
    router.responded(decision, 200, 1.25)
    assert not heard.measured_on
    router.finished(decision, 3.0)
    assert heard.measured_on == second.measured_on == [decision]
    assert decision.measurement == Measurement(decision.targets, 200, 0.25, 2.0)


def test_a_preview_is_the_next_decision_and_books_nothing() -> None:
    router, heard, _ = listened()
    router.pick(prompt(LONG), 0.0)
    before = [(router.load_of(load, 1.0), router.held(load), load.last_chosen) for load in router.loads]
    for _ in range(3):
        preview = router.preview(prompt(LONG, "and then?"), 1.0)
        assert isinstance(preview, DecisionRecord)
        assert preview.id == ""
    assert [(router.load_of(load, 1.0), router.held(load), load.last_chosen) for load in router.loads] == before
    assert len(heard.decided_on) == 1
    router.pick(prompt(LONG, "and then?"), 1.0)
    _, record, _ = heard.decided_on[1]
    assert preview == replace(record, id="")


def test_a_preview_without_a_ready_endpoint_is_the_rejection() -> None:
    router, _, _ = listened()
    preview = router.preview(NO_PROMPT, 0.0, allowed=frozenset(("10.9.9.9:1",)))
    assert isinstance(preview, Rejection)
    assert preview.reason == "empty-subset"


def test_explained_costs_add_up() -> None:
    fixture = Fixture(3)
    fixture.scrape(0.0, running=3, kv_usage=0.9)
    for k in range(6):
        fixture.pick(prompt(LONG, str(k)), 0.1 * k, request_id=str(k))
    records = fixture.decisions.newest_first()
    assert [record.request_id for record in records] == ["5", "4", "3", "2", "1", "0"]
    for record in records:
        explained = record.explain(1.0, 10)
        costs = {e["endpoint"]: e["cost_ms"] for e in explained["endpoints"]}
        assert costs.keys() == {"default/0", "default/1", "default/2"}
        for endpoint in explained["endpoints"]:
            assert sum(endpoint["terms_ms"].values()) == pytest.approx(endpoint["cost_ms"], abs=0.01)
        if not record.cached.default and not record.cached.overrides:
            exact = dict(zip(record.names, record.values, strict=True))
            assert costs == {name: pytest.approx(1000 * exact[name], abs=0.01) for name in costs}


def test_an_explanation_shows_the_chosen_endpoint_first_and_the_next_best_ones() -> None:
    fixture = Fixture(20)
    fixture.pick(prompt(LONG), 0.0)
    record = fixture.decisions.newest_first()[0]
    record.values[:] = [float(k) for k in range(20)]
    record.chosen = "default/7"
    explained = record.explain(0.0, 4)
    assert [e["endpoint"] for e in explained["endpoints"]] == [f"default/{k}" for k in (7, 0, 1, 2)]
    assert explained["candidates"] == 20


@pytest.mark.parametrize(("filler", "exact_reasons"), [(0, ["warm", "warm"]), (12_400, ["warm", "partial"])])
def test_an_explanation_tells_no_end_of_another_clients_message(filler: int, exact_reasons: list[str]) -> None:
    """Two guesses of a message that another client sent, one of them right, are explained alike."""
    common = "a" * 3 * 4 * CACHED_STEP
    shown, reasons = [], []
    for guess in ("secret" * 100, "guess!" * 100):
        fixture = Fixture(1)
        fixture.pick(prompt(common, "secret" * 100), 0.0)
        fixture.scrape(10.0)
        fixture.pick(prompt(common, guess, "f" * filler), 10.0)
        record = fixture.decisions.newest_first()[0]
        shown.append(record.explain(10.0, 10))
        reasons.append(record.reason)
    assert reasons == exact_reasons
    assert shown[0] == shown[1]
    assert shown[0]["cached_tokens"] == 3 * CACHED_STEP


# ---------------------------------------------------------------- sentences


def last(fixture: Fixture, request: InferenceRequest, now: float = 10.0) -> DecisionRecord:
    fixture.pick(request, now)
    return fixture.decisions.newest_first()[0]


def test_the_sentence_of_a_warm_decision() -> None:
    fixture = Fixture(2)
    fixture.pick(prompt(LONG * 3), 0.0)
    fixture.scrape(10.0)
    record = last(fixture, prompt(LONG * 3, "and then?"))
    chosen, other = record.position, 1 - record.position
    record.names = tuple("ns/vllm-1" if k == chosen else "ns/vllm-2" for k in range(2))
    record.chosen = "ns/vllm-1"
    cached, tokens = record.cached.at(chosen), record.request.prompt_tokens
    assert cached > 13_000
    assert record.sentence(exact=True) == (
        f"holds {cached:,.0f} of {tokens:,.0f} tokens; cost {duration(record.cost(chosen, exact=True))}; "
        f"next best vllm-2: {duration(record.cost(other, exact=True))}"
    )
    assert record.sentence().startswith(f"holds at least 13,312 of {tokens:,.0f} tokens; ")


def test_the_sentence_of_a_spread_decision_names_who_holds_more() -> None:
    fixture = Fixture(2)
    holder = fixture.pick(prompt(LONG * 3), 0.0)
    fixture.scrape(10.0)
    fixture.pool.observed(fixture.endpoint(holder), engine_state(10.0, running=250, waiting=200, kv_usage=1.0), 10.0)
    record = last(fixture, prompt(LONG * 3))
    sentence = record.sentence(exact=True)
    assert f"; {holder} holds 13,4" in sentence
    assert ", but costs " in sentence
    assert f"; {holder} holds at least 13,312, but costs more or is left out, at most " in record.sentence()
    record.values[record.position], record.values[1 - record.position] = 700.0, 600.0 + LEFT_OUT
    assert record.sentence(exact=True).endswith(", but is left out")


def test_the_sentence_and_the_fields_show_who_was_left_out() -> None:
    """Not where cached tokens are rounded: who was left out would show whether a prompt is cached."""
    record = last(Fixture(2), prompt(LONG * 3))
    chosen, other = record.position, 1 - record.position
    assert record.explain(10.0, 2, exact=True)["endpoints"][1]["left_out"] is False
    busy = record.endpoints[chosen]._replace(waiting=20.0)
    record.endpoints[chosen] = busy
    record.values[other] += LEFT_OUT
    record.values[chosen] = record.cost(chosen, exact=True)
    cheaper = duration(record.cost(other, exact=True))
    assert record.sentence(exact=True).endswith(f"; next best {other}: {cheaper}, left out")
    assert [each["left_out"] for each in record.explain(10.0, 2, exact=True)["endpoints"]] == [False, True]
    assert record.sentence().endswith(f"; next best {other}")
    assert "left_out" not in record.explain(10.0, 2)["endpoints"][1]
    record.strategy, record.cached = "DEFAULT", CachedTokens(5000.0, {})  # it prices nothing as cached
    assert record.sentence().endswith(f"; next best {other}: {record.value(other):.2g}, left out")
    assert record.explain(10.0, 2)["endpoints"][1]["value"] < record.explain(10.0, 2)["endpoints"][0]["value"]
    record.strategy = "MINE"  # a custom one's values mean something else
    record.values[other] = 2 * LEFT_OUT
    assert record.value(other) == 2 * LEFT_OUT
    assert "left_out" not in record.explain(10.0, 2)["endpoints"][1]
    assert "left out" not in record.sentence()


def test_no_sentence_gives_the_next_best_endpoint_a_lower_cost_than_the_chosen_one() -> None:
    fixture = Fixture(2)
    record = last(fixture, prompt(LONG * 3))
    chosen, other = record.position, 1 - record.position
    record.cached = CachedTokens(default=0.0, overrides={chosen: CACHED_STEP - 1.0})  # shown as 0
    record.endpoints[chosen] = record.endpoints[chosen]._replace(running=0.1)
    assert record.cost(chosen, exact=True) < record.cost(other, exact=True)
    assert record.cost(chosen) > record.cost(other)
    assert record.sentence().endswith(f"; cost at most {duration(record.cost(chosen))}; next best 1")
    record.reason = "state"  # the cost did not decide
    assert record.sentence().endswith(f"; next best 1: at most {duration(record.cost(other))}")
    record.reason = "cold"
    assert record.explain(10.0, 2)["rounded_to"] == CACHED_STEP
    assert record.explain(10.0, 2, exact=True)["rounded_to"] == 1
    assert record.sentence(exact=True).endswith(f": {duration(record.cost(other, exact=True))}")


def test_the_sentence_of_a_request_without_a_prompt() -> None:
    assert last(Fixture(1), NO_PROMPT).sentence().startswith("no prompt to look for; ")
    assert "at most" not in last(Fixture(1), NO_PROMPT).sentence()
    assert last(Fixture(1), NO_PROMPT).sentence().endswith("; the only candidate")


def test_pages_do_not_show_whether_a_short_prompt_is_cached() -> None:
    fixture = Fixture(2)
    first = last(fixture, prompt("hello " * 100), 0.0).sentence()
    fixture.scrape(10.0)
    second = last(fixture, prompt("hello " * 100)).sentence()
    assert (
        first.partition(";")[0]
        == second.partition(";")[0]
        == ("a prompt of 150 tokens, too short to show what is cached")
    )


def test_endpoints_that_are_not_ready_are_marked() -> None:
    fixture = Fixture(2)
    for name in ("0", "1"):
        fixture.pool.unreachable(fixture.endpoint(name), 0.0)
    record = last(fixture, prompt(LONG), 1.0)
    fixture.scrape(2.0)
    assert [endpoint["state"] for endpoint in record.explain(3.0, 5)["endpoints"]] == ["unreachable"] * 2
    assert record.sentence().startswith("unreachable, and no candidate is ready; holds ")
    assert [endpoint["state"] for endpoint in last(fixture, prompt(LONG), 3.0).explain(3.0, 5)["endpoints"]] == [
        "ready",
        "ready",
    ]


def test_a_prompt_of_one_token_is_no_plural() -> None:
    record = last(Fixture(2), prompt("ab"), 0.0)
    assert record.sentence().startswith("a prompt of 1 token, too short")
    assert record.sentence(exact=True).startswith("holds 0 of 1 token; ")


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("LEAST_REQUEST", "LEAST_REQUEST gives it 0; next best 0: 1"),
        ("ROUND_ROBIN", "ROUND_ROBIN gives it 0; next best 0: as much, chosen later"),
    ],
)
def test_other_strategies_show_their_own_values(strategy: str, expected: str) -> None:
    fixture = Fixture(2, routing_strategy=strategy)
    fixture.pick(prompt(LONG), 0.0, allowed=only("0"))
    record = last(fixture, prompt(LONG), 0.0)
    assert expected in record.sentence()
    for endpoint in record.explain(0.0, 5)["endpoints"]:
        assert "value" in endpoint
        assert not {"cost_ms", "terms_ms"} & endpoint.keys()


def test_the_predicted_time_to_first_token_is_the_queue_and_the_uncached_prompt() -> None:
    fixture = Fixture(1, prefill_rate=1000.0)
    first = last(fixture, prompt("x" * 8000), 0.0)
    assert first.predicted_ttft(0, exact=True) == pytest.approx(2.0, rel=0.1)
    second = last(fixture, prompt("y" * 8000), 0.0)
    assert second.predicted_ttft(0, exact=True) == pytest.approx(4.0, rel=0.1)
    first.cached = CachedTokens(1000.0, {})
    assert first.predicted_ttft(0, exact=True) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0004, "0.4 ms"), (0.142, "142 ms"), (2.44, "2.4 s"), (5000.0, "5,000.0 s"), (0.0, "0.0 ms")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_oldest_decision_goes() -> None:
    recent = RecentDecisions(2)
    router, heard, _ = listened()
    for k in range(3):
        router.pick(prompt(LONG), float(k), request_id=str(k))
    for decision, record, _ in heard.decided_on:
        recent.decided(decision, record)
    assert [record.request_id for record in recent.newest_first()] == ["2", "1"]
