"""What the metrics count, what bounds them, and what they cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from random import Random
from time import perf_counter
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.factories import readings, registry_of, routing_constants
from warmroute.observability.endpoint_reading import EndpointReading
from warmroute.observability.instruments import PrefixCacheTally
from warmroute.observability.metrics import Metrics
from warmroute.observability.series import CATALOGUE
from warmroute.observability.shared_state_metrics import SharedStateReading
from warmroute.pool.endpoint import Endpoint, EndpointSpec, EngineState, endpoint_state
from warmroute.pool.pool import Pool
from warmroute.prefix.chain import EMPTY_CHAIN, build
from warmroute.request.inference import NO_PROMPT, InferenceRequest, PromptPart
from warmroute.request.rejections import malformed, no_endpoint, unknown_model
from warmroute.routing.confirmation import Confirmation
from warmroute.routing.decision import Decision
from warmroute.routing.endpoint_load import EndpointLoad
from warmroute.routing.prediction import Compared
from warmroute.routing.router import Router
from warmroute.settings import Settings

NOW = 100.0
CHAIN = build(b"", (PromptPart(b"hello", 5),))
CONFIRMED = Confirmation()
list(CONFIRMED.observe(EngineState(NOW, 0, 0, 0.0, prefix_queries_total=0.0, prefix_hits_total=0.0)))


class World:
    """A pool, its metrics and a settings object that can be replaced."""

    def __init__(self, names: str = "ab") -> None:
        self.settings = Settings(pool_name="qwen")
        self.pool = Pool()
        self.metrics = Metrics(lambda: self.settings, self.readings, clock=lambda: NOW)
        self.pool.subscribe(self.metrics, NOW)
        for name in names:
            self.pool.upsert(EndpointSpec("default", name, "10.0.0.1", 8000), NOW)

    def readings(self) -> list[EndpointReading]:
        return [
            EndpointReading(
                endpoint,
                waiting=1.5,
                running=2.0,
                pending_tokens=300.0,
                slowness=1.1,
                prefill_rate=9000.0,
                checkpoints=7,
                index_tokens=4000.0,
                confirmation=CONFIRMED,
                ttft=Compared(0.42, 0.47, 31),
            )
            for endpoint in self.pool.endpoints.values()
        ]

    def endpoint(self, name: str) -> Endpoint:
        return self.pool.endpoints[f"default/{name}"]

    def decision(self, name: str = "a", *, prompt: float = 100, cached: float = 54, reason: str = "warm") -> Decision:
        return Decision(
            at=NOW,
            load=EndpointLoad(self.endpoint(name), 0, NOW),
            targets="10.0.0.1:8000",
            strategy="PREFIX_CACHE",
            reason=reason,
            prompt_tokens=prompt,
            cached_tokens=cached,
            random_cached_tokens=cached / 4,
            prompt_bytes=0 if reason == "no-prompt" else 400,
            exact=False,
            partial=False,
            chain=EMPTY_CHAIN if reason == "no-prompt" else CHAIN,
            adapter="",
        )

    def told(self, name: str, lookups: float | None, hits: float | None) -> None:
        """The engine's page tells its prefix cache's counters."""
        state = EngineState(NOW, 0, 0, 0.0, prefix_queries_total=lookups, prefix_hits_total=hits)
        self.pool.observed(self.endpoint(name), state, NOW)

    def measured(self, name: str) -> tuple[float | None, float | None]:
        """What is exported of the engine's prefix cache: lookups and hits."""
        endpoint = f"default/{name}"
        return (
            self.value("warmroute_endpoint_prefix_lookup_tokens_total", endpoint=endpoint),
            self.value("warmroute_endpoint_prefix_hit_tokens_total", endpoint=endpoint),
        )

    def value(self, sample: str, /, **labels: str) -> float | None:
        return registry_of(self.metrics).get_sample_value(sample, labels)

    def labels_of(self, name: str, label: str) -> list[str]:
        return [
            sample.labels[label]
            for family in registry_of(self.metrics).collect()
            for sample in family.samples
            if sample.name == name
        ]


@pytest.fixture
def world() -> World:
    return World()


def test_a_routed_request(world: World) -> None:
    world.metrics.routed(world.decision(), model="qwen", body_bytes=2400)
    world.metrics.picked(40e-6)
    world.metrics.processed(300e-6)
    assert world.value("warmroute_requests_total", model="qwen") == 1
    assert world.value("warmroute_decisions_total", strategy="PREFIX_CACHE", reason="warm") == 1
    assert world.value("warmroute_picks_total", endpoint="default/a") == 1
    assert world.value("warmroute_picks_total", endpoint="default/b") == 0
    assert world.value("warmroute_prompt_tokens_total") == 100
    assert world.value("warmroute_matched_tokens_total") == 54
    assert world.value("warmroute_random_matched_tokens_total") == 13.5
    assert world.value("warmroute_match_ratio_bucket", le="0.5") == 0
    assert world.value("warmroute_match_ratio_bucket", le="0.6") == 1
    assert world.value("warmroute_pick_seconds_bucket", le="2e-05") == 0
    assert world.value("warmroute_pick_seconds_bucket", le="5e-05") == 1
    assert world.value("warmroute_pick_seconds_sum") == 40e-6
    assert world.value("warmroute_request_processing_seconds_count") == 1
    assert world.value("warmroute_request_body_bytes_bucket", le="4096.0") == 1


def test_bounds_of_buckets_are_inclusive(world: World) -> None:
    world.metrics.picked(50e-6)
    world.metrics.picked(7.0)
    assert world.value("warmroute_pick_seconds_bucket", le="5e-05") == 1
    assert world.value("warmroute_pick_seconds_bucket", le="1.0") == 1
    assert world.value("warmroute_pick_seconds_bucket", le="+Inf") == 2


def test_what_was_not_matched_has_no_ratio(world: World) -> None:
    world.metrics.routed(world.decision(prompt=1, cached=0, reason="no-prompt"), model="", body_bytes=0)
    assert world.value("warmroute_requests_total", model="") == 1
    assert world.value("warmroute_match_ratio_count") == 0
    assert world.value("warmroute_prompt_tokens_total") == 0


def test_errors_count_by_reason_and_status(world: World) -> None:
    world.metrics.routed(world.decision(), model="qwen", body_bytes=1)
    world.metrics.rejected(no_endpoint("none"), "qwen")
    world.metrics.rejected(malformed("no JSON"))
    world.metrics.rejected(unknown_model("typo"), "typo")
    assert world.value("warmroute_request_errors_total", reason="no-endpoints", status="503") == 1
    assert world.value("warmroute_request_errors_total", reason="malformed", status="400") == 1
    assert world.value("warmroute_requests_total", model="qwen") == 2
    assert sorted(world.labels_of("warmroute_requests_total", "model")) == ["", "other", "qwen"]


def test_clients_cannot_make_the_page_grow_or_fail(world: World) -> None:
    decision = world.decision()
    for model in ("x" * 129, "lone \ud800 surrogate"):
        world.metrics.routed(decision, model=model, body_bytes=1)
    assert world.value("warmroute_requests_total", model="other") == 2
    for i in range(1000):
        world.metrics.routed(decision, model=f"model {i}", body_bytes=1)
    models = world.labels_of("warmroute_requests_total", "model")
    assert len(models) == len(set(models)) == 200
    assert world.value("warmroute_requests_total", model="other") == 2 + 1000 - 199
    world.metrics.routed(decision, model="model 0", body_bytes=1)
    assert world.value("warmroute_requests_total", model="model 0") == 2
    generate_latest(registry_of(world.metrics))


def test_streams(world: World) -> None:
    world.metrics.stream_opened()
    world.metrics.stream_opened()
    world.metrics.stream_closed()
    world.metrics.stream_broken("internal")
    assert world.value("warmroute_streams_in_flight") == 1
    assert world.value("warmroute_streams_limit") == world.settings.max_streams
    assert world.value("warmroute_streams_broken_total", reason="internal") == 1
    assert world.value("warmroute_streams_broken_total", reason="protocol-error") == 0


def test_an_endpoint_as_the_router_and_its_engine_see_it(world: World) -> None:
    state = EngineState(observed_at=NOW - 3, running=5, waiting=4, kv_usage=0.25)
    world.pool.observed(world.endpoint("a"), state, NOW)
    a = {"endpoint": "default/a"}
    assert world.value("warmroute_endpoint_waiting_requests", **a) == 1.5
    assert world.value("warmroute_endpoint_engine_waiting_requests", **a) == 4
    assert world.value("warmroute_endpoint_kv_usage_ratio", **a) == 0.25
    assert world.value("warmroute_scrape_age_seconds", **a) == 3
    assert world.value("warmroute_index_checkpoints", **a) == 7
    assert world.labels_of("warmroute_endpoint_kv_usage_ratio", "endpoint") == ["default/a"]
    assert world.readings()[0].plain(NOW)["scrape"]["age_seconds"] == 3
    assert world.readings()[1].plain(NOW)["scrape"] is None


def test_the_age_of_a_page_that_never_came_counts_from_when_it_was_due(world: World) -> None:
    def age() -> float | None:
        return world.value("warmroute_scrape_age_seconds", endpoint="default/c")

    endpoint = world.pool.upsert(EndpointSpec("default", "c", "10.0.0.1", 8000), NOW - 50)
    assert age() == 50
    world.pool.observed(endpoint, EngineState(NOW - 20, 0, 0, 0.0), NOW - 20)
    assert age() == 20
    world.pool.restarted(endpoint, NOW - 10)
    assert age() == 10
    world.pool.observed(endpoint, EngineState(NOW - 3, 0, 0, 0.0), NOW - 3)
    assert age() == 3


def test_states(world: World) -> None:
    pool = world.pool
    for name in "def":
        pool.upsert(EndpointSpec("default", name, "10.0.0.1", 8000), NOW)
    pool.unreachable(world.endpoint("d"), NOW)
    pool.observed(world.endpoint("e"), EngineState(NOW, 0, 0, 0.0, sleeping=True), NOW)
    pool.remove("default/f", NOW)
    assert [endpoint_state(e) for e in pool.endpoints.values()] == [
        "ready",
        "ready",
        "unreachable",
        "sleeping",
        "gone",
    ]
    assert world.value("warmroute_endpoints", state="ready") == 2
    assert world.value("warmroute_endpoints", state="gone") == 1
    assert world.value("inference_pool_ready_pods", name="qwen") == 2


def test_the_series_of_an_endpoint_end_with_it(world: World) -> None:
    a, pool = world.endpoint("a"), world.pool
    world.metrics.scraped(a.id)
    world.metrics.scraped(a.id, "timeout")
    pool.restarted(a, NOW)
    assert world.value("warmroute_scrapes_total", endpoint=a.id, result="timeout") == 1
    assert world.value("warmroute_endpoint_restarts_total", endpoint=a.id) == 1
    decision = world.decision()
    pool.remove(a.id, NOW)
    pool.expire(NOW + pool.retention)
    world.metrics.scraped(a.id)  # what was under way may still end
    world.metrics.routed(decision, model="", body_bytes=1)
    assert a.id.encode() not in generate_latest(registry_of(world.metrics))


def test_hits_that_engines_measured_count_from_the_first_page_on(world: World) -> None:
    world.told("a", 9000, 7000)
    assert world.measured("a") == (0, 0)
    world.told("a", 9000, 7000)
    world.told("a", 10_000, 7250)
    world.told("b", 50, 0)
    assert world.measured("a") == (1000, 250)
    assert world.measured("b") == (0, 0)


def test_measured_hits_go_on_where_an_engine_restarts(world: World) -> None:
    world.told("a", 9000, 7000)
    world.told("a", 10_000, 7250)
    world.pool.restarted(world.endpoint("a"), NOW)
    world.told("a", 40, 10)
    assert world.measured("a") == (1040, 260)
    world.pool.restarted(world.endpoint("a"), NOW)  # discovery tells of the same restart, later
    world.told("a", 60, 15)
    assert world.measured("a") == (1060, 265)
    world.told("a", 80, 0)  # of two counters one that goes back is enough
    assert world.measured("a") == (1140, 265)


def test_measured_hits_of_another_engine_under_the_same_name(world: World) -> None:
    world.told("a", 100, 50)
    world.told("a", 300, 150)
    world.pool.upsert(EndpointSpec("default", "a", "10.0.0.2", 8000), NOW)
    world.told("a", 1e9, 1e8)  # it may have been there for long
    assert world.measured("a") == (200, 100)
    world.told("a", 1e9 + 10, 1e8 + 5)
    assert world.measured("a") == (210, 105)


def test_measured_hits_of_an_endpoint_that_left(world: World) -> None:
    world.told("a", 100, 50)
    world.told("a", 300, 150)
    world.pool.remove("default/a", NOW)
    assert world.measured("a") == (200, 100)  # it may come back
    world.pool.expire(NOW + world.pool.retention)
    assert world.measured("a") == (None, None)
    world.pool.upsert(EndpointSpec("default", "a", "10.0.0.1", 8000), NOW)
    assert world.measured("a") == (None, None)
    world.told("a", 400, 200)
    assert world.measured("a") == (0, 0)


def test_engines_that_do_not_count_hits_are_absent(world: World) -> None:
    world.told("a", None, None)
    world.told("b", 100, None)  # lookups alone would make the ratio too low
    world.told("b", 200, None)
    assert world.measured("a") == (None, None)
    assert world.measured("b") == (None, None)
    world.told("b", 300, 60)  # an engine that shows a counter once it counts
    assert world.measured("b") == (200, 60)
    world.told("b", None, None)
    world.told("b", 350, None)
    assert world.measured("b") == (250, 60)
    world.told("b", 30, None)  # restarted, and nothing found yet
    world.told("b", 70, 20)
    assert world.measured("b") == (320, 80)


def test_measured_hits_cost_a_request_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[object] = []
    monkeypatch.setattr(PrefixCacheTally, "read", lambda tally, lookups, hits: reads.append(tally))
    world.metrics.stream_opened()
    world.metrics.routed(world.decision(), model="qwen", body_bytes=1)
    world.metrics.picked(1e-5)
    world.metrics.processed(1e-4)
    world.metrics.responded(200)
    world.metrics.stream_closed()
    assert not reads
    world.told("a", 1, 1)
    assert len(reads) == 1


def test_pool_means_are_over_the_ready_endpoints_that_told(world: World) -> None:
    assert world.value("inference_pool_average_queue_size", name="qwen") is None
    world.pool.observed(world.endpoint("a"), EngineState(NOW, 1, 2, 0.2), NOW)
    world.pool.observed(world.endpoint("b"), EngineState(NOW, 1, 4, 0.4), NOW)
    assert world.value("inference_pool_average_queue_size", name="qwen") == 3
    assert world.value("inference_pool_average_kv_cache_utilization", name="qwen") == pytest.approx(0.3)
    assert world.value("inference_pool_average_running_requests", name="qwen") == 1
    for ours, theirs in (
        ("inference_pool_average_queue_size", "llm_d_epp_average_queue_size"),
        ("inference_pool_average_kv_cache_utilization", "llm_d_epp_average_kv_cache_utilization"),
        ("inference_pool_average_running_requests", "llm_d_epp_average_running_requests"),
        ("inference_pool_ready_pods", "llm_d_epp_ready_endpoints"),
    ):
        assert world.value(ours, name="qwen") == world.value(theirs, name="qwen")
    world.pool.unreachable(world.endpoint("b"), NOW)
    assert world.value("inference_pool_average_queue_size", name="qwen") == 2


def test_reloads_start_at_zero_and_settings_are_the_present_ones(world: World) -> None:
    assert world.value("warmroute_config_reloads_total", source="certificate", result="error") == 0
    world.metrics.reloaded("certificate", ok=False)
    assert world.value("warmroute_config_reloads_total", source="certificate", result="error") == 1
    world.settings = Settings(routing_strategy="RANDOM")
    assert world.labels_of("warmroute_settings_info", "routing_strategy") == ["RANDOM"]


def test_two_instances_share_nothing() -> None:
    one, two = World(), World()
    one.metrics.stream_opened()
    assert two.value("warmroute_streams_in_flight") == 0


@pytest.mark.parametrize(("encode", "decode"), [(generate_latest, parse), (generate_openmetrics, parse_openmetrics)])
def test_every_series_of_the_catalogue_is_exported_and_nothing_else(
    world: World, encode: Callable[[CollectorRegistry], bytes], decode: Callable[..., Any]
) -> None:
    exercise(world)
    families = {family.name: family for family in decode(encode(registry_of(world.metrics)).decode())}
    own = {name for name in families if name.startswith(("warmroute_", "inference_", "llm_d_epp_"))}
    named = {}
    for series in CATALOGUE:
        name = series.name.removesuffix("_total")
        name = name.removesuffix("_info") if name not in families else name
        family = families[name]
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == set(series.labels), series.name
        assert family.type in (series.type, "gauge" if series.type == "info" else series.type)
        named[name] = series
    assert own == set(named)
    assert "process_cpu_seconds" in families
    assert "process_resident_memory_bytes" in families


def exercise(world: World) -> None:
    """Make every series have a sample."""
    state = EngineState(NOW, 1, 2, 0.2, prefix_queries_total=9.0, prefix_hits_total=3.0)
    world.pool.observed(world.endpoint("a"), state, NOW)
    failed = dataclasses.replace(world.decision(), failed_strategy="./mine.py:choose")
    world.metrics.routed(failed, model="qwen", body_bytes=1)
    world.metrics.rejected(malformed("x"))
    world.metrics.scraped("default/a")
    world.metrics.loop_lagged(0.001)
    world.metrics.responded(200)
    hold_out(world)
    world.metrics.shared_state = lambda: SharedStateReading(
        away_seconds=None,
        why_away="",
        pickers=3,
        scrape_share=0.3,
        lag=0.002,
        replay_seconds=0.1,
        batches_out=1,
        batches_in=2,
        bytes_out=3,
        bytes_in=4,
        applied={"decision": 1},
        skipped={"duplicate": 1},
    )


def hold_out(world: World) -> None:
    """Twenty requests, half of them held out; each is answered after a second, the last with an error."""
    world.settings = Settings(pool_name="qwen", holdout=0.5)
    constants = routing_constants(holdout=0.5)
    router = Router(world.pool, constants, rng=Random(1), now=NOW, listeners=(world.metrics,))
    for k in range(20):
        request = InferenceRequest(parts=(PromptPart(b"x" * 4000, 4000),), prompt_bytes=4000)
        decision = router.pick(request, NOW)
        assert isinstance(decision, Decision)
        router.opened(decision)
        router.responded(decision, 200 if k < 19 else 500, NOW + 0.25)
        router.finished(decision, NOW + 1.0)


def test_a_holdout_is_counted_by_arm(world: World) -> None:
    hold_out(world)
    value = registry_of(world.metrics).get_sample_value

    def of_arms(name: str) -> list[float]:
        return [value(f"warmroute_arm_{name}_total", {"arm": arm}) or 0.0 for arm in ("strategy", "holdout")]

    requests, responses = of_arms("requests"), of_arms("responses")
    assert sum(requests) == 20
    assert min(requests) >= 4
    assert sum(responses) == 19
    assert of_arms("response_seconds") == responses
    assert of_arms("response_headers_seconds") == [each / 4 for each in responses]
    strategy, holdout = (
        matched / prompt for matched, prompt in zip(of_arms("matched_tokens"), of_arms("prompt_tokens"), strict=True)
    )
    assert 0 < holdout <= strategy < 1
    assert min(of_arms("predicted_ttft_seconds")) > 0


def test_without_a_holdout_nothing_is_counted_by_arm(world: World) -> None:
    router = Router(world.pool, routing_constants(), rng=Random(1), now=NOW, listeners=(world.metrics,))
    router.pick(NO_PROMPT, NOW)
    assert registry_of(world.metrics).get_sample_value("warmroute_arm_requests_total", {"arm": "strategy"}) is None


def test_a_request_costs_little_beside_one_observation_of_prometheus_client(world: World) -> None:
    metrics, decision = world.metrics, world.decision()
    reference = Histogram("reference", "", registry=CollectorRegistry())

    def request() -> None:
        metrics.stream_opened()
        metrics.picked(40e-6)
        metrics.routed(decision, model="qwen", body_bytes=2400)
        metrics.processed(3e-4)
        metrics.stream_closed()

    def observation() -> None:
        reference.observe(0.3)

    # About twice; the rest is room for a noisy machine.
    assert fastest(request) < 6 * fastest(observation)


def fastest(call: Callable[[], None], *, rounds: int = 20, calls: int = 200) -> float:
    best = float("inf")
    for _ in range(rounds):
        begin = perf_counter()
        for _ in range(calls):
            call()
        best = min(best, perf_counter() - begin)
    return best


def test_trust_is_exported_for_engines_whose_counters_show_it(world: World) -> None:
    def exported() -> list[str]:
        return world.labels_of("warmroute_endpoint_prefix_trust", "endpoint")

    assert exported() == ["default/a", "default/b"]
    readings = [replace(reading, confirmation=Confirmation()) for reading in world.readings()[:1]]
    (trust,) = [
        metric
        for metric in world.metrics.families([*readings, *world.readings()[1:]])
        if metric.name == "warmroute_endpoint_prefix_trust"
    ]
    assert [sample.labels["endpoint"] for sample in trust.samples] == ["default/b"]


def test_the_line_for_healthz_counts_the_pickers() -> None:
    reading = SharedStateReading(None, "", 1, 1.0, 0.0, 0.0, 0, 0, 0, 0, {}, {})
    assert reading.health() == "shared state: connected, 1 picker"
    assert replace(reading, pickers=3).health() == "shared state: connected, 3 pickers"


def test_close_times_to_first_token_can_be_told_apart() -> None:
    (reading,) = readings(1)
    plain = replace(reading, ttft=Compared(0.0096, 0.0173, 45)).plain(1.0)
    assert plain["time_to_first_token"]["sentence"] == "predicted 9.6 ms, measured 17 ms over the last minute"
