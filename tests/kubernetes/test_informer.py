"""When an informer asks again, by the times at which an API server that follows a script is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.waiting import eventually
from warmroute.kubernetes import informer as informer_module
from warmroute.kubernetes.api import UNREACHABLE, ApiError, Cluster
from warmroute.kubernetes.informer import Backoff, Informer
from warmroute.kubernetes.objects import Object, Resource

THINGS = Resource("example.com", "v1", "things", "default")
CORE = Resource("", "v1", "things", "default")


class Script(Cluster):
    """A cluster with one object. Each request takes the next step: an error, or the seconds that a watch lasts; a list takes
    none if the step is a watch's. The last step stays."""

    def __init__(self, *steps: Exception | float) -> None:
        super().__init__()
        self.steps = list(steps)
        self.asked: list[float] = []
        """Times of requests."""
        self.ended: list[float] = []
        """Times of their ends."""
        self.lists = 0

    def step(self) -> Exception | float:
        return self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]

    def begin(self) -> None:
        self.asked.append(asyncio.get_running_loop().time())
        if isinstance(self.steps[0], Exception):
            error = self.step()
            assert isinstance(error, Exception)
            self.end()
            raise error

    def end(self) -> None:
        self.ended.append(asyncio.get_running_loop().time())

    async def get(self, path: str, **query: str | int) -> Object:
        if path == THINGS.root:
            return {"resources": [{"name": "things"}]}
        self.begin()
        self.end()
        self.lists += 1
        return {"items": [{"metadata": {"name": "a"}}], "metadata": {"resourceVersion": "1"}}

    async def watch(self, path: str, seconds: int, **query: str | int) -> AsyncGenerator[list[bytes], None]:
        self.begin()
        yield []
        lasts = self.step()
        assert isinstance(lasts, float)
        await asyncio.sleep(lasts)
        yield [b'{"type":"ADDED","object":{"metadata":{"name":"b","resourceVersion":"2"}}}']
        self.end()

    def gaps(self) -> list[float]:
        """Seconds between the end of each request and the next one."""
        return [asked - ended for ended, asked in zip(self.ended, self.asked[1:], strict=False)]


@asynccontextmanager
async def following(
    cluster: Script,
    backoff: Backoff,
    changed: Callable[[str | None], None] = lambda name: None,
    resource: Resource = THINGS,
) -> AsyncIterator[Informer[Object]]:
    informer: Informer[Object] = Informer(cluster, resource, lambda item: item, changed, selector={}, backoff=backoff)
    informer.start()
    try:
        yield informer
    finally:
        await informer.stop()


async def test_the_delay_doubles_with_each_failure_up_to_its_bound() -> None:
    cluster = Script(ApiError(500, "broken"))
    async with following(cluster, Backoff(first=0.01, most=0.08)):
        await eventually(lambda: len(cluster.asked) > 8)
    gaps = cluster.gaps()
    assert all(gap >= 0.8 * min(0.08, 0.01 * 2**k) for k, gap in enumerate(gaps[:8]))
    assert min(gaps[5:8]) < 0.3, "it does not go on doubling"


async def test_a_kind_that_may_not_be_read_from_the_start_on_is_asked_for_less_often() -> None:
    cluster = Script(ApiError(403, "forbidden"))
    async with following(cluster, Backoff(first=0.01, most=0.01, missing=0.08)):
        await eventually(lambda: len(cluster.asked) > 5)
    assert cluster.gaps()[4] >= 0.8 * 0.08


async def test_a_server_may_not_ask_for_a_long_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer_module, "MOST_RETRY_AFTER", 0.05)
    cluster = Script(ApiError(429, "busy", retry_after=3600.0))
    async with following(cluster, Backoff(first=0.01, most=0.01)):
        await eventually(lambda: len(cluster.asked) > 2)


async def test_after_a_watch_that_lasted_the_delays_begin_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(informer_module, "STEADY", 0.5)
    failures = [ApiError(429, "busy")] * 6
    cluster = Script(*failures, 0.6, 0.6, ApiError(UNREACHABLE, "away"), 60.0)
    async with following(cluster, Backoff(first=0.01, most=10.0)):
        await eventually(lambda: len(cluster.asked) == 11)
    # the failures, a list, two watches, one that fails, one that goes on
    assert cluster.lists == 1
    gaps = cluster.gaps()
    assert gaps[5] >= 0.8 * 0.32
    assert gaps[7] < 0.3
    assert gaps[9] < 0.3


async def test_a_bug_in_what_follows_a_change_ends_no_watch(caplog: pytest.LogCaptureFixture) -> None:
    names: list[str | None] = []

    def changed(name: str | None) -> None:
        names.append(name)
        if names == [None, "b"]:
            raise RuntimeError("a bug")

    cluster = Script(0.01, 60.0)
    async with following(cluster, Backoff(first=0.01, most=0.05), changed) as informer:
        await eventually(lambda: cluster.lists == 2)
        await eventually(lambda: names == [None, "b", None])
        assert list(informer.objects) == ["a"]
    assert [record.getMessage() for record in caplog.records] == ["a watch failed and is started again"]


async def test_the_time_without_an_answer_does_not_uninstall_a_kind() -> None:
    """What a server answers just before and after its restart is no sign that lasts."""
    away = [ApiError(UNREACHABLE, "away")] * 10
    cluster = Script(0.01, ApiError(404, "gone"), *away, ApiError(404, "gone"), 60.0)
    held: list[int] = []
    async with following(
        cluster, Backoff(first=0.05, most=0.05, settle=0.3), lambda name: held.append(len(informer.objects))
    ) as informer:
        await eventually(lambda: cluster.lists == 2)
    assert held == [1, 2, 1], "nothing was dropped between the lists"


async def test_a_server_that_is_busy_is_told_once_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    busy = ApiError(429, "busy")
    cluster = Script(busy, busy, 60.0)
    async with following(cluster, Backoff(first=0.01, most=0.01)):
        await eventually(lambda: cluster.lists)
    assert not caplog.records
    cluster = Script(busy)
    async with following(cluster, Backoff(first=0.01, most=0.01, settle=0.2)):
        await eventually(lambda: "things.example.com cannot be watched; trying again" in caplog.text)
        await eventually(lambda: len(cluster.asked) > 40)
    assert caplog.text.count("cannot be watched") == 1


async def test_after_a_busy_moment_a_watch_goes_on_without_another_list() -> None:
    cluster = Script(0.01, ApiError(503, "busy"), 60.0)
    async with following(cluster, Backoff(first=0.01, most=0.01)) as informer:
        await eventually(lambda: len(cluster.asked) == 4)
        assert list(informer.objects) == ["a", "b"]
    assert cluster.lists == 1


async def test_the_start_waits_for_a_kind_that_fails_as_long_as_that_may_pass(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Script(ApiError(500, "broken"))
    async with following(cluster, Backoff(first=0.01, most=0.01, settle=0.3)) as informer:
        await eventually(lambda: caplog.records)
        assert not informer.settled
        await eventually(lambda: informer.settled)
        assert cluster.asked[-1] - cluster.asked[0] > 0.25
        await eventually(lambda: cluster.asked[-1] - cluster.asked[0] > 0.5)
        assert not informer.listed
    assert [record.getMessage() for record in caplog.records] == [
        "things.example.com cannot be watched; trying again",
        "things.example.com cannot be listed; going on without",
    ]


async def test_a_core_kind_is_always_installed() -> None:
    cluster = Script(0.01, ApiError(404, "not found"))
    async with following(cluster, Backoff(first=0.01, most=0.01, settle=0.1), resource=CORE) as informer:
        await eventually(lambda: len(cluster.asked) > 2)
        began = cluster.asked[2]
        await eventually(lambda: cluster.asked[-1] > began + 0.3)
        assert list(informer.objects) == ["a", "b"]
