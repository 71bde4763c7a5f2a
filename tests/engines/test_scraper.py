"""When the scraper asks which engine, and what it tells the pool. The engines and the clock are the test's."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from math import inf
from typing import Any

import pytest

from tests.factories import engine_state
from tests.waiting import eventually
from warmroute.engines import scraper as scraper_module
from warmroute.engines.fetch import NoConnectionError
from warmroute.engines.probe import Probe
from warmroute.engines.scrape_target import LONGEST_SILENCE, ScrapeOutcome
from warmroute.engines.scraper import Scraper, busy_interval
from warmroute.errors import ConfigurationError, ScrapeError
from warmroute.pool.endpoint import Endpoint, EndpointSpec, ServedModels
from warmroute.pool.pool import Pool, PoolListener
from warmroute.settings import Settings, changed

IDLE = b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"
BUSY = b"vllm:num_requests_running 3\nvllm:num_requests_waiting 1\n"


class Engines:
    """Stands for every engine: what they answer, and what they were asked."""

    def __init__(self) -> None:
        self.answer: Callable[[str], Awaitable[tuple[int, bytes]]] = self._idle
        self.asked: list[str] = []
        self.under_way = 0
        self.most_under_way = 0

    async def _idle(self, url: str) -> tuple[int, bytes]:
        return 200, IDLE

    def say(self, body: bytes = IDLE, *, status: int = 200) -> None:
        async def answer(url: str) -> tuple[int, bytes]:
            return status, body

        self.answer = answer

    def fail(self, error: Exception) -> None:
        async def answer(url: str) -> tuple[int, bytes]:
            raise error

        self.answer = answer

    def hang(self) -> asyncio.Event:
        """From now on nobody answers before the event; whoever is asked until then is idle."""
        go_on = asyncio.Event()

        async def answer(url: str) -> tuple[int, bytes]:
            await go_on.wait()
            return 200, IDLE

        self.answer = answer
        return go_on

    async def __call__(self, url: str) -> tuple[int, bytes]:
        self.asked.append(url)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            return await self.answer(url)
        finally:
            self.under_way -= 1


class Stage:
    """A pool, a scraper over it and a clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pool = Pool()
        self.engines = Engines()
        self.results: list[tuple[str, ScrapeOutcome]] = []
        self.others: set[str] = set()
        """Endpoints that another picker scrapes, by name."""
        self.settings = Settings(refresh_metrics_interval=0.5, idle_metrics_interval=2.0, model_list_interval=0.0)
        self.scraper = Scraper(
            self.pool,
            self.settings,
            clock=lambda: self.now,
            on_result=lambda endpoint, outcome: self.results.append((endpoint.spec.name, outcome)),
            fetch=self.engines,
            rng=random.Random(7),
            owns=lambda endpoint: endpoint.spec.name not in self.others,
        )

    def add(self, name: str = "a", address: str = "10.0.0.1", **labels: str) -> Endpoint:
        return self.pool.upsert(EndpointSpec("default", name, address, 8000, labels=labels), self.now)

    def read_slowly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Reading a page takes 0.06 s from now on."""
        read = Probe.answer

        def slow(probe: Probe, status: int, body: bytes, asked_at: float) -> Any:
            self.now += 0.06
            return read(probe, status, body, asked_at)

        monkeypatch.setattr(Probe, "answer", slow)

    async def settle(self) -> None:
        """Start what is due now and let it go as far as it can: nothing here waits for anything but the event loop."""
        self.scraper.start_due(self.now)
        for _ in range(20):
            await asyncio.sleep(0)

    async def seconds_to_next_scrape(self, *, step: float = 0.05, limit: float = 10.0) -> float:
        began, before = self.now, len(self.results)
        while len(self.results) == before:
            assert self.now - began < limit, "no further scrape"
            self.now += step
            await self.settle()
        return self.now - began


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    yield stage
    await stage.scraper.stop()
    assert stage.engines.under_way == 0, "a scrape outlives the scraper"


# ---------------------------------------------------------------- when


async def test_a_new_endpoint_is_scraped_at_once(stage: Stage) -> None:
    endpoint = stage.add()
    await stage.settle()
    assert endpoint.state is not None
    assert endpoint.state.observed_at == 1000.0
    assert stage.results == [("a", ScrapeOutcome.OK)]
    assert stage.engines.asked[0].startswith("http://10.0.0.1:8000/metrics/?name[]=")


async def test_an_ipv6_address_is_asked_in_brackets(stage: Stage) -> None:
    stage.add(address="2001:db8::1")
    await stage.settle()
    assert stage.engines.asked[0].startswith("http://[2001:db8::1]:8000/metrics")


async def test_busy_endpoints_are_scraped_more_often_than_idle_ones(stage: Stage) -> None:
    stage.add()
    await stage.settle()
    await stage.seconds_to_next_scrape()  # until here it is given its own phase
    assert 1.75 <= await stage.seconds_to_next_scrape() <= 2.3
    stage.engines.say(BUSY)
    await stage.seconds_to_next_scrape()
    assert 0.4 <= await stage.seconds_to_next_scrape() <= 0.6
    stage.scraper.apply(changed(stage.settings, {"refresh_metrics_interval": 1.0}))
    await stage.seconds_to_next_scrape()
    assert 0.85 <= await stage.seconds_to_next_scrape() <= 1.15


async def test_an_idle_endpoint_is_scraped_soon_after_a_request_was_sent_to_it(stage: Stage) -> None:
    endpoint = stage.add()
    await stage.settle()
    await stage.seconds_to_next_scrape()
    for pause in (0.2, 1.0):
        for _ in range(int(pause / 0.05)):
            stage.now += 0.05
            await stage.settle()
        before = len(stage.results)
        sent_at = stage.now
        while len(stage.results) == before:
            stage.pool.sent(endpoint, stage.now)  # further requests do not put it off
            stage.now += 0.05
            await stage.settle()
        assert stage.now - sent_at == pytest.approx(0.5, abs=0.06)
    assert 1.75 <= await stage.seconds_to_next_scrape() <= 2.3, "that page showed it idle again"


async def test_a_request_makes_no_scrape_come_before_the_pause_after_a_slow_page_or_a_failure(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = stage.add()
    stage.engines.say(b"no metrics")
    await stage.settle()
    stage.pool.sent(endpoint, stage.now)
    assert 1.75 <= await stage.seconds_to_next_scrape() <= 2.3
    stage.engines.say(IDLE)
    await stage.seconds_to_next_scrape()
    stage.read_slowly(monkeypatch)
    await stage.seconds_to_next_scrape()
    stage.pool.sent(endpoint, stage.now)
    assert 1.15 <= await stage.seconds_to_next_scrape() <= 1.35


async def test_a_page_that_takes_long_to_read_is_read_less_often(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.add()
    stage.engines.say(BUSY)
    for _ in range(3):
        await stage.seconds_to_next_scrape()
    stage.read_slowly(monkeypatch)
    await stage.seconds_to_next_scrape()
    assert 1.15 <= await stage.seconds_to_next_scrape() <= 1.35
    stage.scraper.apply(changed(stage.settings, {"idle_metrics_interval": 0.8}))
    await stage.seconds_to_next_scrape()
    assert 0.7 <= await stage.seconds_to_next_scrape() <= 0.95, "never less often than an idle engine"


async def test_a_long_interval_does_not_outlive_its_setting(stage: Stage) -> None:
    for i in range(20):
        stage.add(f"a{i}", f"10.0.0.{i}")
    stage.scraper.apply(changed(stage.settings, {"idle_metrics_interval": 3600.0}))
    await stage.settle()
    await stage.settle()
    stage.scraper.apply(stage.settings)
    began, before = stage.now, len(stage.results)
    first = await stage.seconds_to_next_scrape()
    while stage.now < began + 2.0:
        stage.now += 0.05
        await stage.settle()
    assert len({name for name, _ in stage.results[before:]}) == 20
    assert first < 0.5, "all at once"


def test_many_busy_endpoints_are_scraped_less_often_but_never_less_than_idle_ones() -> None:
    settings = Settings(refresh_metrics_interval=0.1, idle_metrics_interval=1.0, metrics_rate=200)
    assert [busy_interval(settings, endpoints) for endpoints in (1, 20, 100, 200, 5000)] == [0.1, 0.1, 0.5, 1.0, 1.0]
    rarely = Settings(refresh_metrics_interval=3.0, idle_metrics_interval=1.0)
    assert busy_interval(rarely, 5) == 3.0


async def test_a_busy_endpoint_among_many_waits_longer_for_its_scrape(stage: Stage) -> None:
    stage.scraper.apply(changed(stage.settings, {"metrics_rate": 1.0}))
    stage.engines.say(BUSY)
    stage.add()
    stage.add("b", "10.0.0.2")
    await stage.settle()
    for _ in range(4):
        await stage.seconds_to_next_scrape()  # until here they are given their phases
    spent = [await stage.seconds_to_next_scrape() for _ in range(8)]
    assert 6.5 <= sum(spent) <= 9.5, "two endpoints, one scrape in a second"


async def test_endpoints_that_come_together_are_scraped_apart(stage: Stage) -> None:
    stage.engines.say(BUSY)
    for i in range(100):
        stage.add(f"e{i}", f"10.0.1.{i}")
    await stage.settle()
    assert len(stage.results) == 100
    at_once = []
    for _ in range(20):
        before = len(stage.results)
        stage.now += 0.05
        await stage.settle()
        at_once.append(len(stage.results) - before)
    assert 180 <= sum(at_once) <= 260, "about two in a second each"
    assert max(at_once) <= 25, at_once


async def test_an_endpoint_that_is_not_ready_is_left_alone_until_it_is(stage: Stage) -> None:
    endpoint = stage.add()
    await stage.settle()
    stage.pool.remove(endpoint.id, stage.now)
    stage.now += 20.0
    await stage.settle()
    assert len(stage.results) == 1
    stage.add()
    await stage.settle()
    assert len(stage.results) == 2


async def test_a_forgotten_endpoint_is_not_scraped_any_more(stage: Stage) -> None:
    go_on = stage.engines.hang()
    endpoint = stage.add()
    await stage.settle()
    assert stage.engines.under_way == 1
    stage.pool.remove(endpoint.id, stage.now)
    stage.pool.expire(stage.now + 60.0)
    await stage.settle()
    assert stage.engines.under_way == 0
    go_on.set()
    stage.now += 20.0
    await stage.settle()
    assert stage.results == []
    assert endpoint.state is None


async def test_engines_that_hang_do_not_hold_up_the_others(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraper_module, "CONCURRENCY", 10)
    stage.engines.hang()
    for i in range(9):
        stage.add(f"hung{i}")
    await stage.settle()
    stage.engines.say()
    for i in range(30):
        stage.add(f"well{i}")
    for _ in range(30):
        await stage.settle()
    assert len(stage.results) == 30
    assert stage.engines.most_under_way == 10


async def test_hung_engines_leave_most_places_to_those_that_answer(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hung engine holds a place for a second of the test's clock; those that answer come last in the pool."""
    monkeypatch.setattr(scraper_module, "CONCURRENCY", 8)
    monkeypatch.setattr(scraper_module, "SILENT_CONCURRENCY", 2)

    async def answer(url: str) -> tuple[int, bytes]:
        if "10.1." not in url:
            return 200, IDLE
        asked_at = stage.now
        while stage.now < asked_at + 1.0:
            await asyncio.sleep(0)
        raise TimeoutError

    stage.engines.answer = answer
    for i in range(40):
        stage.add(f"hung{i}", f"10.1.0.{i}")
    for i in range(3):
        stage.add(f"well{i}", f"10.0.0.{i}")
    ages = []
    for step in range(400):
        stage.now += 0.05
        await stage.settle()
        if step >= 200:  # every hung engine has been tried and is known to be silent
            states = [stage.pool.endpoints[f"default/well{i}"].state for i in range(3)]
            ages += [stage.now - state.observed_at if state is not None else 1e9 for state in states]
    assert max(ages) <= 2.0 * 1.1 + 0.1, "the idle interval, its jitter and two ticks"
    tries = Counter(name for name, _ in stage.results if name.startswith("hung"))
    assert len(tries) == 40
    assert max(tries.values()) - min(tries.values()) <= 1, "the turn goes round"
    stage.engines.say()
    await stage.settle()


async def test_the_longest_overdue_endpoint_comes_first(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraper_module, "CONCURRENCY", 1)
    for i in range(5):
        stage.add(f"a{i}", f"10.0.0.{i}")
    for _ in range(10):
        await stage.settle()
    stage.results.clear()
    stage.now += 100.0
    for _ in range(5):
        await stage.settle()
    assert len({name for name, _ in stage.results}) == 5
    assert stage.engines.most_under_way == 1


# ---------------------------------------------------------------- silence and nonsense


async def test_the_requests_of_one_scrape_share_one_deadline(stage: Stage) -> None:
    """The filtered page is useless after half the time, and the whole page would take as long again."""
    stage.scraper.apply(changed(stage.settings, {"metrics_timeout": 0.2}))

    async def answer(url: str) -> tuple[int, bytes]:
        await asyncio.sleep(0.15)
        return (404, b"") if "name[]" in url else (200, IDLE)

    stage.engines.answer = answer
    stage.add()
    async with asyncio.timeout(60):
        while not stage.results:
            await stage.settle()
            await asyncio.sleep(0.01)
    assert stage.results == [("a", ScrapeOutcome.TIMEOUT)]


async def test_a_refused_connection_is_unreachable_at_once_and_is_tried_again_with_growing_pauses(stage: Stage) -> None:
    stage.engines.fail(ConnectionRefusedError("refused"))
    endpoint = stage.add()
    await stage.settle()
    assert not endpoint.reachable
    pauses = [await stage.seconds_to_next_scrape() for _ in range(4)]
    assert pauses == pytest.approx([0.5, 1.0, 2.0, 2.0], rel=0.15, abs=0.06)
    assert {outcome for _, outcome in stage.results} == {ScrapeOutcome.UNREACHABLE}
    stage.engines.say()
    await stage.seconds_to_next_scrape()
    assert endpoint.available
    stage.engines.fail(ConnectionRefusedError("refused"))
    await stage.seconds_to_next_scrape()
    assert await stage.seconds_to_next_scrape() == pytest.approx(0.5, rel=0.15, abs=0.06), "the pauses begin anew"


async def test_an_engine_that_answered_before_may_be_silent_for_a_while(stage: Stage) -> None:
    endpoint = stage.add()
    await stage.settle()
    stage.engines.fail(TimeoutError())
    await stage.seconds_to_next_scrape()
    assert stage.results[-1] == ("a", ScrapeOutcome.TIMEOUT)
    assert endpoint.reachable
    stage.engines.say()
    await stage.seconds_to_next_scrape()
    stage.engines.fail(TimeoutError())
    await stage.seconds_to_next_scrape()
    assert endpoint.reachable
    await stage.seconds_to_next_scrape()
    assert endpoint.reachable, "it answered before, and its connections are accepted"
    stage.now += LONGEST_SILENCE
    await stage.seconds_to_next_scrape()
    assert not endpoint.reachable
    stage.engines.say()
    await stage.seconds_to_next_scrape()
    assert endpoint.available


@pytest.mark.parametrize("error", [TimeoutError(), NoConnectionError("no connection within 1 s")])
async def test_an_engine_that_has_never_answered_is_unreachable_after_two_attempts(
    stage: Stage, error: Exception
) -> None:
    stage.engines.fail(error)
    endpoint = stage.add()
    await stage.settle()
    assert endpoint.reachable
    await stage.seconds_to_next_scrape()
    assert not endpoint.reachable


async def test_an_engine_that_no_longer_accepts_connections_is_unreachable_after_two_attempts(stage: Stage) -> None:
    endpoint = stage.add()
    await stage.settle()
    stage.engines.fail(NoConnectionError("no connection within 1 s"))
    await stage.seconds_to_next_scrape()
    assert endpoint.reachable
    await stage.seconds_to_next_scrape()
    assert not endpoint.reachable
    assert stage.results[-1] == ("a", ScrapeOutcome.NO_CONNECTION)


async def test_a_slow_page_is_waited_for(stage: Stage) -> None:
    """A page that takes longer than the timeout, from an engine that serves like the others."""
    stage.scraper.apply(changed(stage.settings, {"metrics_timeout": 0.1}))

    async def answer(url: str) -> tuple[int, bytes]:
        await asyncio.sleep(0.15)
        return 200, BUSY

    stage.engines.answer = answer
    endpoint = stage.add()
    async with asyncio.timeout(60):
        while endpoint.state is None:
            stage.now += 0.05
            await stage.settle()
            await asyncio.sleep(0.01)
    assert endpoint.available
    assert endpoint.state.running == 3


# ---------------------------------------------------------------- data-parallel ranks

RANKS = b"".join(
    b'vllm:num_requests_running{engine="%d"} %d\nvllm:num_requests_waiting{engine="%d"} 0\n' % (rank, 10 * rank, rank)
    for rank in range(3)
)


async def test_the_engines_of_one_page_are_members_of_their_own_and_share_its_scrapes(stage: Stage) -> None:
    stage.engines.say(RANKS)
    first = stage.add()
    await stage.settle()
    members = stage.pool.ranks_of(first)
    assert [member.id for member in members] == ["default/a", "default/a-dp1", "default/a-dp2"]
    assert [member.state.running if member.state is not None else None for member in members] == [0, 10, 20]
    await stage.seconds_to_next_scrape()
    assert len(stage.results) == 2, "one page, one scrape"
    stage.engines.fail(ConnectionRefusedError("refused"))
    await stage.seconds_to_next_scrape()
    assert [member.reachable for member in members] == [False] * 3
    stage.engines.say(BUSY)
    await stage.seconds_to_next_scrape()
    assert [(member.ready, member.reachable) for member in members] == [(True, True), (False, False), (False, False)]
    assert first.spec.rank is None
    stage.now += 100.0
    stage.pool.expire(stage.now)
    await stage.seconds_to_next_scrape()
    assert [*stage.pool.endpoints] == ["default/a"]


async def test_the_server_chooses_the_rank_if_the_setting_is_off(stage: Stage) -> None:
    stage.scraper.apply(stage.settings.model_copy(update={"data_parallel_ranks": False}))
    stage.engines.say(RANKS)
    first = stage.add()
    await stage.settle()
    assert stage.pool.ranks_of(first) == (first,)
    assert first.state is not None
    assert (first.spec.rank, first.state.running) == (None, 30)


# ---------------------------------------------------------------- the list of models


async def test_the_models_are_listed_at_the_endpoints_port_at_intervals(stage: Stage) -> None:
    stage.scraper.apply(changed(stage.settings, {"model_list_interval": 10.0, "idle_metrics_interval": 1.0}))

    async def answer(url: str) -> tuple[int, bytes]:
        return 200, b'{"data": [{"id": "m"}]}' if url.endswith("/v1/models") else IDLE

    stage.engines.answer = answer
    endpoint = stage.add()
    for _ in range(300):
        stage.now += 0.1
        await stage.settle()
    assert endpoint.models == ServedModels(frozenset({"m"}))
    asked = [url for url in stage.engines.asked if "metrics" not in url]
    assert asked == ["http://10.0.0.1:8000/v1/models"] * len(asked)
    assert 3 <= len(asked) <= 5
    assert {outcome for _, outcome in stage.results} == {ScrapeOutcome.OK}


async def test_another_interval_of_the_list_counts_at_once(stage: Stage) -> None:
    stage.scraper.apply(changed(stage.settings, {"model_list_interval": 3600.0}))

    async def answer(url: str) -> tuple[int, bytes]:
        return 200, b'{"data": [{"id": "m"}]}' if url.endswith("/v1/models") else IDLE

    def lists() -> int:
        return sum(url.endswith("/v1/models") for url in stage.engines.asked)

    stage.engines.answer = answer
    endpoint = stage.add()
    await stage.settle()
    await stage.seconds_to_next_scrape()
    assert lists() == 1
    stage.scraper.apply(changed(stage.settings, {"model_list_interval": 1.0}))
    for _ in range(60):
        stage.now += 0.1
        await stage.settle()
    assert lists() >= 3
    stage.scraper.apply(changed(stage.settings, {"model_list_interval": 0.0}))
    assert endpoint.models is None, "a list that is not read again would grow old"


def test_with_another_interval_the_lists_are_not_read_all_at_once(stage: Stage) -> None:
    for k in range(20):
        stage.add(str(k))
    targets = stage.scraper._targets.values()
    for target in targets:
        target.models_due = 3600.0
    stage.scraper.apply(changed(stage.settings, {"model_list_interval": 10.0}))
    assert len({target.models_due for target in targets}) == 20


async def test_the_models_of_an_engine_that_restarted_are_listed_at_once(stage: Stage) -> None:
    stage.scraper.apply(changed(stage.settings, {"model_list_interval": 10.0, "idle_metrics_interval": 1.0}))
    models, start = b'{"data": [{"id": "m"}, {"id": "adapter", "parent": "m"}]}', 1000

    async def answer(url: str) -> tuple[int, bytes]:
        return 200, models if url.endswith("/v1/models") else IDLE + b"process_start_time_seconds %d\n" % start

    stage.engines.answer = answer
    endpoint = stage.add()
    await stage.settle()
    assert endpoint.models == ServedModels(frozenset({"m", "adapter"}), frozenset({"adapter"}))
    models, start = b'{"data": [{"id": "m"}]}', 2000
    await stage.seconds_to_next_scrape()
    assert endpoint.models == ServedModels(frozenset({"m"})), "until then it would be taken to serve every model"


@pytest.mark.parametrize(
    "failure", [ConnectionRefusedError("refused"), TimeoutError(), ScrapeError("nonsense"), RuntimeError("a bug")]
)
async def test_a_list_that_cannot_be_had_changes_nothing(stage: Stage, failure: Exception) -> None:
    stage.scraper.apply(changed(stage.settings, {"model_list_interval": 0.1}))

    async def answer(url: str) -> tuple[int, bytes]:
        if url.endswith("/v1/models"):
            raise failure
        return 200, IDLE

    stage.engines.answer = answer
    endpoint = stage.add()
    stage.pool.serves(endpoint, ServedModels(frozenset({"m"})), stage.now)
    await stage.settle()
    await stage.seconds_to_next_scrape()
    assert endpoint.models == ServedModels(frozenset({"m"}))
    assert endpoint.available
    assert {outcome for _, outcome in stage.results} == {ScrapeOutcome.OK}


# ---------------------------------------------------------------- engines without a usable page


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [(404, b"", ScrapeOutcome.STATUS), (503, b"", ScrapeOutcome.STATUS), (200, b"<html>", ScrapeOutcome.PAGE)],
)
async def test_an_engine_without_a_page_can_be_chosen_all_the_same(
    stage: Stage, status: int, body: bytes, outcome: ScrapeOutcome
) -> None:
    stage.engines.say(body, status=status)
    endpoint = stage.add()
    await stage.settle()
    assert stage.results == [("a", outcome)]
    assert endpoint.available
    assert endpoint.state is None
    stage.engines.fail(ConnectionRefusedError())
    await stage.seconds_to_next_scrape()
    assert not endpoint.available
    stage.engines.say(body, status=status)
    await stage.seconds_to_next_scrape()
    assert endpoint.available, "it answers again"


async def test_only_changes_are_logged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "warmroute.engines.scraper")
    stage.add()
    await stage.settle()
    for fault in (ConnectionRefusedError("no"), ScrapeError("odd")):
        stage.engines.fail(fault)
        for _ in range(3):
            await stage.seconds_to_next_scrape()
    stage.engines.say()
    for _ in range(3):
        await stage.seconds_to_next_scrape()
    assert [record.getMessage() for record in caplog.records] == ["no metrics", "no metrics", "metrics are back"]


async def test_a_bug_in_one_scrape_stays_there(stage: Stage) -> None:
    async def answer(url: str) -> tuple[int, bytes]:
        if "10.0.0.1" in url:
            raise ZeroDivisionError
        return 200, IDLE

    stage.engines.answer = answer
    stage.add("a", "10.0.0.1")
    stage.add("b", "10.0.0.2")
    for _ in range(60):
        stage.now += 0.1
        await stage.settle()
    outcomes = Counter(stage.results)
    assert outcomes["a", ScrapeOutcome.INTERNAL] >= 2
    assert outcomes["b", ScrapeOutcome.OK] >= 2
    assert len(outcomes) == 2


# ---------------------------------------------------------------- restarts and changes


class Order(PoolListener):
    """What happened to an endpoint, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def endpoint_observed(self, endpoint: Endpoint, now: float) -> None:
        self.events.append("observed")

    def endpoint_restarted(self, endpoint: Endpoint, now: float) -> None:
        assert endpoint.state is None
        self.events.append("restarted")

    def endpoint_cache_emptied(self, endpoint: Endpoint, now: float) -> None:
        self.events.append("emptied")


async def test_a_restart_is_told_before_the_new_process_state(stage: Stage) -> None:
    order = Order()
    stage.pool.subscribe(order, stage.now)
    config = b'vllm:cache_config_info{block_size="16",num_gpu_blocks="10"} 1\n'
    stage.engines.say(IDLE + config + b"process_start_time_seconds 1000\n")
    endpoint = stage.add()
    await stage.settle()
    stage.engines.say(IDLE + config.replace(b'"10"', b'"20"') + b"process_start_time_seconds 2000\n")
    await stage.seconds_to_next_scrape()
    assert order.events == ["observed", "restarted", "observed"]
    assert endpoint.state is not None
    assert endpoint.state.capacity_tokens == 320
    await stage.seconds_to_next_scrape()
    assert order.events == ["observed", "restarted", "observed", "observed"]


@pytest.mark.parametrize(
    ("failure", "emptied"), [(OSError(111, "refused"), True), (ScrapeError("a strange page"), False)]
)
async def test_an_engine_that_begins_to_listen_has_none_of_the_prompts_sent_before(
    stage: Stage, failure: Exception, emptied: bool
) -> None:
    """They were refused, and its restarts are those since it joined: a start is none."""
    order = Order()
    stage.pool.subscribe(order, stage.now)
    endpoint = stage.add()
    stage.engines.fail(failure)
    await stage.settle()
    stage.engines.say()
    for _ in range(2):
        await stage.seconds_to_next_scrape()
        await stage.settle()
    assert endpoint.state is not None
    assert order.events.count("emptied") == emptied
    assert "restarted" not in order.events
    if emptied:
        assert order.events[:2] == ["emptied", "observed"]


async def test_an_answer_from_the_old_address_is_not_taken_for_the_new_one(stage: Stage) -> None:
    go_on = stage.engines.hang()
    endpoint = stage.add()
    await stage.settle()
    stage.engines.say(BUSY)
    stage.add(address="10.0.0.2")
    go_on.set()
    await stage.settle()
    assert endpoint.state is not None
    assert endpoint.state.running == 3
    assert "10.0.0.2" in stage.engines.asked[-1]
    assert stage.results == [("a", ScrapeOutcome.OK)]


async def test_the_label_chooses_the_dialect(stage: Stage) -> None:
    stage.engines.say(b"sglang:num_running_reqs 2\nsglang:num_queue_reqs 0\n")
    endpoint = stage.add(**{"llm-d.ai/engine-type": "sglang"})
    await stage.settle()
    assert endpoint.state is not None
    assert endpoint.state.running == 2
    stage.engines.say(b"trtllm_num_requests_running 5\ntrtllm_num_requests_waiting 0\n")
    stage.add(**{"llm-d.ai/engine-type": "trtllm-serve"})
    await stage.settle()
    assert endpoint.state.running == 5
    assert "/prometheus/metrics/?name[]=trtllm" in stage.engines.asked[-1]


async def test_an_unknown_engine_is_read_as_the_default_one(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    endpoint = stage.add(**{"llm-d.ai/engine-type": "strange"})
    await stage.settle()
    assert endpoint.state is not None
    assert [record.getMessage() for record in caplog.records] == [
        "unknown engine; reading its metrics as the default engine's"
    ]


async def test_an_unknown_engine_follows_the_default_one(stage: Stage) -> None:
    stage.add(**{"llm-d.ai/engine-type": "strange"})
    await stage.settle()
    stage.engines.asked.clear()
    stage.scraper.apply(stage.settings.model_copy(update={"model_server_runtime": "trtllm-serve"}))
    await stage.seconds_to_next_scrape()
    assert stage.engines.asked
    assert all("/prometheus/metrics" in url for url in stage.engines.asked)


async def test_port_path_and_scheme_can_be_set() -> None:
    pool, engines = Pool(), Engines()
    settings = Settings(
        model_server_metrics_port=9400, model_server_metrics_path="/m", model_server_metrics_scheme="https"
    )
    scraper = Scraper(pool, settings, fetch=engines)
    await scraper.start()
    pool.upsert(EndpointSpec("default", "a", "10.0.0.1", 8000), 0.0)
    try:
        await eventually(lambda: engines.asked)
    finally:
        await scraper.stop()
    assert engines.asked[0].startswith("https://10.0.0.1:9400/m/?name[]=")


@pytest.mark.parametrize(
    ("configured", "engine", "path"),
    [
        (None, "vllm", "/metrics"),
        (None, "trtllm-serve", "/prometheus/metrics"),
        ("/metrics", "trtllm-serve", "/metrics"),
        ("/m", "vllm", "/m"),
    ],
)
async def test_a_configured_path_wins_over_that_of_the_dialect(configured: str | None, engine: str, path: str) -> None:
    pool, engines = Pool(default_engine=engine), Engines()
    scraper = Scraper(pool, Settings(model_server_metrics_path=configured), fetch=engines)
    pool.upsert(EndpointSpec("default", "a", "10.0.0.1", 8000), 0.0)
    scraper.start_due(inf)
    for _ in range(20):
        await asyncio.sleep(0)
    await scraper.stop()
    assert engines.asked[0].startswith(f"http://10.0.0.1:8000{path}/?name[]=")


async def test_a_refused_change_of_settings_changes_nothing(stage: Stage) -> None:
    stage.engines.say(BUSY)
    stage.add(**{"llm-d.ai/engine-type": "strange"})
    await stage.settle()
    changes = {"model_server_runtime": "stranger", "idle_metrics_interval": 0.01, "refresh_metrics_interval": 0.01}
    refused = stage.settings.model_copy(update=changes)
    with pytest.raises(ConfigurationError, match="stranger"):
        stage.scraper.apply(refused)
    await stage.seconds_to_next_scrape()  # until here the endpoint is given its own phase
    assert await stage.seconds_to_next_scrape() >= 0.4, "at the interval before"
    assert stage.results[-1] == ("a", ScrapeOutcome.OK), "read with the dialect before"
    stage.add("b", "10.0.0.2")
    await stage.settle()
    assert stage.pool.endpoints["default/b"].state is not None


def test_an_unknown_default_engine_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="strange"):
        Scraper(Pool(), Settings(model_server_runtime="strange"))
    scraper = Scraper(Pool(), Settings())
    with pytest.raises(ConfigurationError, match="strange"):
        scraper.apply(Settings(model_server_runtime="strange"))


async def test_stopping_is_safe_at_any_time() -> None:
    scraper = Scraper(Pool(), Settings())
    await scraper.stop()
    await scraper.start()
    await scraper.stop()
    await scraper.stop()


# ---------------------------------------------------------------- engines that another picker scrapes


def counted(lookups: int) -> bytes:
    return IDLE + f"vllm:prefix_cache_queries_total {lookups}\nvllm:prefix_cache_hits_total 0\n".encode()


async def test_an_engine_of_another_picker_is_not_asked_until_it_is_taken_over(stage: Stage) -> None:
    stage.others = {"a"}
    stage.add("a")
    stage.add("b", "10.0.0.2")
    for _ in range(40):
        stage.now += 0.2
        await stage.settle()
    assert {name for name, _ in stage.results} == {"b"}
    stage.others = set()
    await stage.settle()
    assert ("a", ScrapeOutcome.OK) in stage.results, "at once: it was due all the time"


@pytest.mark.parametrize(("before", "after", "restarts"), [(500, 400, 1), (500, 600, 0)])
async def test_a_restart_while_another_picker_scraped_is_seen(
    stage: Stage, before: int, after: int, restarts: int
) -> None:
    """The figures that the other picker shared are compared with the first page of one's own."""
    seen: list[str] = []

    class Restarts(PoolListener):
        def endpoint_restarted(self, endpoint: Endpoint, now: float) -> None:
            seen.append(endpoint.id)

    stage.pool.subscribe(Restarts(), stage.now)
    stage.engines.say(counted(900))
    endpoint = stage.add("a")
    await stage.settle()
    stage.others = {"a"}
    stage.now += 5.0
    await stage.settle()
    stage.pool.observed(endpoint, engine_state(stage.now, prefix_queries_total=float(before)), stage.now)
    stage.others = set()
    stage.engines.say(counted(after))
    stage.now += 5.0
    await stage.settle()
    assert endpoint.state is not None
    assert endpoint.state.prefix_queries_total == after
    assert len(seen) == restarts
