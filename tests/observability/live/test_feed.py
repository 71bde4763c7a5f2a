"""The data of the live page: what it shows, to whom it costs what, and what stays coarse."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import orjson
import pytest

from tests.factories import engine_state, registry_of
from warmroute.observability.live import feed
from warmroute.observability.live.feed import ENGINE_COLUMNS, MOST_DECISIONS
from warmroute.observability.page_server import Request
from warmroute.picker import EndpointPicker
from warmroute.pool.endpoint import EndpointSpec
from warmroute.request.inference import InferenceRequest, PromptPart
from warmroute.routing.decision import Decision
from warmroute.routing.decision_record import CACHED_STEP, DecisionRecord
from warmroute.settings import Settings


class World:
    """A picker that is not started, its clock, and a feed that is sampled by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, endpoints: int = 3, **settings: Any) -> None:
        self.now = 1000.0
        monkeypatch.setattr("warmroute.picker.monotonic", lambda: self.now)
        file = tmp_path / "endpoints.yaml"
        file.write_text("endpoints: []\n")
        self.picker = EndpointPicker(
            Settings(endpoints_file=file, **({"routing_strategy": "PREFIX_CACHE"} | settings)), rng=random.Random(1)
        )
        self.feed = self.picker.live
        self.feed._clock = lambda: self.now
        self.feed._chance = random.Random(2).random
        specs = [EndpointSpec("ns", f"e{k}", f"10.0.{k // 250}.{k % 250}", 8000) for k in range(endpoints)]
        self.picker.pool.replace(specs, self.now)

    def ask(self, *texts: str, model: str = "m", request_id: str = "") -> Decision:
        parts = tuple(PromptPart(text.encode(), len(text.encode())) for text in texts)
        request = InferenceRequest(
            model=model, seed=model.encode(), parts=parts, prompt_bytes=sum(p.prompt_bytes for p in parts)
        )
        decision = self.picker.router.pick(request, self.now, request_id=request_id)
        assert isinstance(decision, Decision)
        self.picker.metrics.routed(decision, model=model, body_bytes=request.prompt_bytes)
        self.picker.metrics.picked(60e-6)
        return decision

    def scrape(self, **figures: Any) -> None:
        for endpoint in self.picker.pool.endpoints.values():
            self.picker.pool.observed(endpoint, engine_state(self.now, **figures), self.now)

    async def second(self, seconds: int = 1) -> None:
        for _ in range(seconds):
            self.now += 1.0
            await self.feed.sample()

    async def document(self) -> dict[str, Any]:
        page = await self.feed.routes()["/debug/live"](Request("GET", "/debug/live", [], {}))
        document: dict[str, Any] = orjson.loads(page.body)
        return document

    async def engines(self) -> dict[str, dict[str, Any]]:
        document = await self.document()
        assert document["engines"]["columns"] == list(ENGINE_COLUMNS)
        return {row[0]: dict(zip(ENGINE_COLUMNS, row, strict=True)) for row in document["engines"]["rows"]}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> World:
    return World(monkeypatch, tmp_path)


async def test_an_engine_has_a_row(world: World) -> None:
    await world.second()
    world.scrape(running=4, waiting=2, kv_usage=0.5)
    world.now += 0.5
    chosen = world.ask("x" * 40_000).endpoint.id
    await world.second()
    engines = await world.engines()
    assert list(engines) == ["ns/e0", "ns/e1", "ns/e2"]
    row = engines[chosen]
    assert row["state"] == "ready"
    assert row["target"].startswith("10.0.0.")
    assert (row["engine_waiting"], row["engine_running"], row["kv_usage"]) == (2, 4, 0.5)
    assert row["waiting"] >= 2
    assert row["queue_seconds"] > 0
    assert row["share_of_picks"] == 1
    assert row["picks_per_second"] == 1
    assert row["scrape_age_seconds"] == 1.5
    assert row["expected_hit_ratio"] is None


async def test_shares_and_rates_are_of_the_last_minute(world: World) -> None:
    await world.second()
    picked: Counter[str] = Counter()
    for k in range(30):
        picked[world.ask(f"{k} " * 500).endpoint.id] += 1
        await world.second()
    engines = await world.engines()
    assert {name: row["share_of_picks"] for name, row in engines.items()} == {
        name: pytest.approx(picked[name] / 30, abs=1e-3) for name in engines
    }
    assert (await world.document())["traffic"]["requests_per_second"] == 1
    await world.second(61)
    assert {row["picks_per_second"] for row in (await world.engines()).values()} == {0}


async def test_the_hit_ratio_stands_beside_that_of_random_choice(world: World) -> None:
    text = "The same beginning. " * 1000
    for k in range(60):
        world.ask(text, f"question {k}")
        await world.second()
    traffic = (await world.document())["traffic"]
    assert traffic["hit_ratio"] > 0.9
    assert traffic["random_hit_ratio"] < traffic["hit_ratio"]
    assert traffic["saved_tokens_per_second"] > 0
    assert 0.00005 < traffic["pick_p99_seconds"] < 0.0001


async def test_cached_tokens_are_counted_in_steps_that_are_right_on_average(world: World) -> None:
    sums = set()
    for tokens in (0.0, 700.0, 1500.0):
        total = 0
        for _ in range(2000):
            step = world.feed._coarse(tokens)
            assert step % CACHED_STEP == 0
            assert abs(step - tokens) < CACHED_STEP
            total += step
        assert total / 2000 == pytest.approx(tokens, abs=50)
        sums.add(total)
    assert 0 in sums


async def test_a_shared_prefix_has_its_holders(world: World) -> None:
    for k in range(10):
        world.ask("system prompt " * 1000, f"question {k} " * 100)
    await world.second()
    document = await world.document()
    (prefix,) = document["prefixes"]
    names = [row[0] for row in document["engines"]["rows"]]
    picked = {record.chosen for record in world.picker.decisions.newest_first()}
    assert {names[place] for place in prefix["holders"]} == picked
    assert prefix["tokens"] == pytest.approx(12_288 / 4, rel=0.2)


async def test_no_prompt_text_is_shown(world: World) -> None:
    for k in range(20):
        world.ask("confidential " * 1000, f"confidential question {k}")
    await world.second()
    page = await world.feed.routes()["/debug/live"](Request("GET", "/debug/live", [], {}))
    assert b"confidential" not in page.body
    assert page.headers["Cache-Control"] == "no-store"


async def test_decisions_come_with_their_sentence_and_are_bounded(world: World) -> None:
    for k in range(3 * MOST_DECISIONS):
        world.ask(f"{k} " * 5000, request_id=f"r{k}")
    await world.second()
    decisions = (await world.document())["decisions"]
    assert [decision["request"] for decision in decisions] == [f"r{k}" for k in range(29, 29 - MOST_DECISIONS, -1)]
    assert all(decision["sentence"] for decision in decisions)
    assert all(len(decision["endpoints"]) == 3 for decision in decisions)


async def test_the_document_is_made_once_for_all_readers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cost by counting: a second costs one reading of each endpoint, and one explanation of each decision that is shown,
    whatever the number of viewers and requests."""
    work: Counter[str] = Counter()
    explain, reading = DecisionRecord.explain, EndpointPicker._reading

    def counted_explain(*args: Any, **kwargs: Any) -> Any:
        work["explained"] += 1
        return explain(*args, **kwargs)

    def counted_reading(*args: Any) -> Any:
        work["read"] += 1
        return reading(*args)

    monkeypatch.setattr(DecisionRecord, "explain", counted_explain)
    monkeypatch.setattr(EndpointPicker, "_reading", counted_reading)
    for k in range(300):
        world.ask(f"{k} " * 100)
    await world.second()
    assert work == {"read": 3}
    for _ in range(10):
        await world.document()
    assert work == {"read": 3, "explained": MOST_DECISIONS}


async def test_history_starts_a_page(world: World) -> None:
    world.scrape(running=4)
    await world.second(12)
    page = await world.feed.routes()["/debug/live/history"](Request("GET", "/debug/live/history", [], {}))
    history = orjson.loads(page.body)
    assert history["seconds"] == 5
    assert history["in_flight"] == {f"ns/e{k}": [4.0, 4.0] for k in range(3)}
    assert len(history["requests_per_second"]) == 2


async def test_an_endpoint_that_leaves_while_a_sample_is_taken_is_left_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        async def pause(self) -> None:
            if "ns/e2" in world.picker.pool.endpoints:
                world.picker.pool.replace(
                    [EndpointSpec("ns", f"e{k}", f"10.0.0.{k}", 8000) for k in range(2)], world.now
                )
                world.picker.pool.expire(world.now + 3600)

    monkeypatch.setattr(feed, "Slices", Interrupted)
    await world.second()
    assert list(await world.engines()) == ["ns/e0", "ns/e1"]


async def test_a_picker_that_is_bypassed_is_told(world: World) -> None:
    for second in range(70):
        world.scrape(running=1, first_tokens_total=float(second))
        await world.second()
    notices = (await world.document())["notices"]
    assert notices[0]["level"] == "critical"
    assert "is it bypassed?" in notices[0]["text"]
    world.ask("hello")
    await world.second()
    assert (await world.document())["notices"][0]["level"] == "ok"


async def test_failures_of_the_strategy_are_told_for_a_minute(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    file = tmp_path / "my.py"
    file.write_text("def late(request, candidates):\n    return [1 / len(request.model) for _ in candidates]\n")
    world = World(monkeypatch, tmp_path, routing_strategy=f"{file}:late")
    await world.second()
    for model in ("", "m", ""):
        world.ask("hello", model=model)
    await world.second()
    told = {"level": "warning", "text": "my.py:late failed for 2 requests of the last minute; PREFIX_CACHE chose"}
    assert told in (await world.document())["notices"]
    await world.second(59)
    assert told in (await world.document())["notices"]
    await world.second()
    assert "failed" not in str((await world.document())["notices"])


async def test_requests_that_another_picker_routed_are_no_bypass(world: World) -> None:
    for second in range(70):
        world.scrape(running=1, first_tokens_total=float(second))
        world.picker.router._choices += 1  # as Router.learn does
        await world.second()
    assert (await world.document())["notices"][0]["level"] == "ok"


async def test_with_a_holdout_the_predicted_ttft_of_both_arms_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    world = World(monkeypatch, tmp_path, endpoints=8, holdout=0.3, holdout_strategy="RANDOM")
    for k in range(120):
        world.ask("The same beginning. " * 3000, f"question {k}")
        world.scrape()
        await world.second()
    traffic = (await world.document())["traffic"]
    assert 0 < traffic["predicted_ttft_seconds"] < traffic["held_out_ttft_seconds"]


async def test_the_predicted_ttft_of_the_arms_is_right_on_average(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Also of prompts so short that what is cached of them rounds down to nothing."""
    world = World(monkeypatch, tmp_path, endpoints=2, holdout=0.5, holdout_strategy="RANDOM")
    for k in range(250):
        world.ask("The same beginning. " * 150, f"question {k}" * 10)
        world.scrape()
        await world.second()
    traffic = (await world.document())["traffic"]
    shown = (traffic["predicted_ttft_seconds"], traffic["held_out_ttft_seconds"])
    value = registry_of(world.picker.metrics).get_sample_value
    for arm, seconds in zip(("strategy", "holdout"), shown, strict=True):
        requests = value("warmroute_arm_requests_total", {"arm": arm})
        total = value("warmroute_arm_predicted_ttft_seconds_total", {"arm": arm})
        assert requests
        assert total
        assert seconds == pytest.approx(total / requests, abs=0.03)


async def test_few_held_out_requests_show_no_predicted_ttft(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Each counts with an error of up to 1,024 tokens."""
    world = World(monkeypatch, tmp_path, endpoints=2, holdout=0.5)
    for k in range(24):
        world.ask("The same beginning. " * 150, f"question {k}")
        await world.second()
    assert (await world.document())["traffic"]["held_out_ttft_seconds"] is None


async def test_without_a_holdout_there_are_no_arms(world: World) -> None:
    world.ask("The same beginning. " * 3000)
    await world.second()
    assert (await world.document())["traffic"]["held_out_ttft_seconds"] is None


async def test_a_document_that_a_sample_overtook_is_not_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The document is made in slices, between which the next sample may be taken."""
    world.ask("x" * 5000)
    await world.second()
    samples: list[int] = []

    class Interrupted:
        async def pause(self) -> None:
            if not samples:
                samples.append(world.feed._samples)
                await world.second()

    monkeypatch.setattr(feed, "Slices", Interrupted)
    first, second = await world.document(), await world.document()
    assert first["sample"] == samples[0]
    assert second["sample"] == samples[0] + 1


async def test_engines_whose_metrics_never_came_are_told(world: World) -> None:
    """They look ready and idle: the engine wants an API key, say."""
    await world.second(14)
    assert (await world.document())["notices"][0]["level"] == "ok"
    await world.second(3)
    (notice,) = (await world.document())["notices"]
    assert notice == {"level": "warning", "text": "Metrics of 3 endpoints are older than 15 s or never came"}
    world.scrape()
    await world.second()
    assert (await world.document())["notices"][0]["level"] == "ok"
