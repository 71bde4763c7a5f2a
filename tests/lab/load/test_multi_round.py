"""The load's shape, its figures, and whole runs against a small server."""

import asyncio
import csv
import io
import itertools
import json
import re
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from rich.console import Console

from tests.waiting import eventually
from warmroute.errors import ConfigurationError
from warmroute_lab.load import multi_round, users
from warmroute_lab.load.chat_client import Answer
from warmroute_lab.load.conversations import Turn, read_conversations
from warmroute_lab.load.distribution import Distribution
from warmroute_lab.load.summary import Summary
from warmroute_lab.load.users import Record, Run
from warmroute_lab.load.workload import Workload

pytestmark = pytest.mark.integration

SEED = Workload(num_users=8, num_rounds=15, qps=0.1, answer_len=100, seconds=600)
"""The options of the seed's benchmark."""


# ---------------------------------------------------------------- shape


def test_the_opening_has_the_seeds_words() -> None:
    workload = Workload(shared_system_prompt=10, user_history_prompt=20)
    assert workload.opening(3) == (
        "Hi, here's some system prompt: hi hi hi hi hi hi hi hi hi hi."
        "For user 3, here are some other context: hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi."
    )


def test_a_salt_comes_before_everything_else() -> None:
    workload = Workload(shared_system_prompt=10, user_history_prompt=20)
    assert replace(workload, salt="3f2a").opening(3) == "Run 3f2a. " + workload.opening(3)


def test_the_body_has_the_seeds_keys_in_their_order() -> None:
    history = [{"content": "Hi", "role": "user"}]
    assert Workload(answer_len=24).body(1, 0, history) == (
        b'{"max_tokens":24,"messages":[{"content":"Hi","role":"user"}],"model":"/model/qwen","stream":true,'
        b'"stream_options":{"include_usage":true},"temperature":0}'
    )


def test_the_seeds_load_is_even_from_the_start_and_never_stops() -> None:
    times = sorted(at for at, _, _ in SEED.schedule())
    assert len(times) == SEED.planned_requests
    # 8 users with a gap of 80 s, each replaced when its 15th question is asked: 15/14 of the nominal rate.
    assert len(times) / 600 == pytest.approx(0.1 * 15 / 14, rel=0.03)
    for start in range(0, 600, 100):
        assert 8 <= sum(start <= at < start + 100 for at in times) <= 13
    assert times[0] == 0
    assert times[-1] < 600


def test_about_num_users_are_there_at_any_time() -> None:
    spans: dict[int, tuple[float, float]] = {}
    for at, user, _ in SEED.schedule():
        first, last = spans.get(user, (at, at))
        spans[user] = (min(first, at), max(last, at))
    for now in range(100, 500, 50):
        assert 7 <= sum(first <= now <= last + SEED.gap for first, last in spans.values()) <= 9


def test_users_that_were_there_before_begin_in_the_middle() -> None:
    first, *_, last = SEED.visits()
    assert first.first_round == 13
    assert last.first_round == 0
    rounds = [visit.first_round for visit in SEED.visits()]
    assert rounds == sorted(rounds, reverse=True)


def test_without_a_time_every_user_asks_everything_once() -> None:
    workload = Workload(num_users=3, num_rounds=2, qps=2, init_user_id=10)
    assert sorted(workload.schedule()) == [(0, 11, 0), (0.5, 12, 0), (1, 13, 0), (1.5, 11, 1), (2, 12, 1), (2.5, 13, 1)]
    assert workload.planned_requests == 6


@pytest.mark.parametrize("name", ["num_users", "num_rounds", "qps", "answer_len"])
def test_a_load_of_nothing_is_refused(name: str) -> None:
    nothing: dict[str, Any] = {name: 0}
    with pytest.raises(ConfigurationError, match=name.replace("_", "-")):
        Workload(**nothing)


@pytest.mark.parametrize("name", ["qps", "seconds"])
@pytest.mark.parametrize("value", [nan, inf])
def test_a_rate_and_a_time_are_numbers(name: str, value: float) -> None:
    """An infinite time has infinitely many users, who are counted before the load begins."""
    given: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match="must be more than 0 and finite"):
        Workload(**given)


def test_a_load_of_no_time_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="--time must be more than 0"):
        Workload(seconds=-1000)


def test_single_questions_keep_the_rate() -> None:
    workload = Workload(num_users=4, num_rounds=1, qps=2, seconds=10)
    assert [at for at, _, _ in workload.schedule()] == [i / 2 for i in range(20)]


def test_recorded_conversations_give_questions_and_lengths(tmp_path: Path) -> None:
    file = tmp_path / "sharegpt.json"
    entry = [
        {"from": "gpt", "value": "before the first question", "num_tokens": 9},
        {"from": "human", "value": "one?"},
        {"from": "gpt", "value": "1", "num_tokens": 3.0},
        {"from": "human", "value": "two?"},
    ]
    file.write_text(json.dumps([{"conversations": []}, {"id": "a", "conversations": entry}]))
    conversations = read_conversations(file)
    assert conversations == ((Turn("one?", 3), Turn("two?")),)
    assert isinstance(conversations[0][0].answer_tokens, int)
    workload = Workload(conversations=conversations, answer_len=2)
    assert workload.turn(5, 1).question == "two?"
    assert "uestion 3" in workload.turn(5, 2).question
    assert json.loads(workload.body(5, 0, []))["max_tokens"] == 2


@pytest.mark.parametrize("text", ["", "[1]", "[]", '{"a": 1}', '[{"conversations": [{"from": "human"}]}]'])
def test_another_file_is_refused(text: Any, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=str(file)):
        read_conversations(file)


# ---------------------------------------------------------------- figures


def answered(at: float, ttft: float, duration: float, *, cached: int | None, pod: str = "") -> Record:
    answer = Answer(sent_at=at, status=200, pod=pod, ttft=ttft, duration=duration, gaps=[0.1, 0.3])
    answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens = 100, 10, cached
    return Record(1, 1, answer)


def test_the_summarys_arithmetic() -> None:
    records = [
        answered(1000.0, 0.2, 1.2, cached=0, pod="b"),
        answered(1001.0, 0.4, 0.9, cached=80, pod="a"),
        answered(1003.0, 0.6, 1.0, cached=None, pod="b"),
        Record(1, 2, Answer(sent_at=900.0, error="HTTP 500")),
    ]
    summary = Summary.of(Run(Workload(qps=0.5), records, on_the_fly=2))
    assert (summary.start, summary.end) == (1000.0, 1004.0)
    assert (summary.requests, summary.failed, summary.on_the_fly) == (3, 1, 2)
    assert summary.processing_speed == pytest.approx(3 / 4)
    assert summary.input_tokens_per_second == pytest.approx(300 / 4)
    assert summary.output_tokens_per_second == pytest.approx(30 / 4)
    assert summary.generation_throughput == pytest.approx((10 / 1.0 + 10 / 0.5 + 10 / 0.4) / 3)
    assert summary.ttft.mean == pytest.approx(0.4)
    assert summary.itl.mean == pytest.approx(0.2)
    assert summary.hit_rate == pytest.approx(80 / 200)
    assert summary.pods == {"a": 1, "b": 2}


def test_percentiles_interpolate() -> None:
    assert Distribution.of([]) == Distribution(0, 0, 0, 0)
    assert Distribution.of([3.0]) == Distribution(3, 3, 3, 3)
    values = Distribution.of([float(i) for i in range(100, -1, -1)])
    assert (values.mean, values.p50, values.p90, values.p99) == (50, 50, 90, 99)
    assert Distribution.of([0.0, 1.0]).p90 == pytest.approx(0.9)


def test_the_performance_summary_reads_like_the_seeds() -> None:
    summary = Summary.of(Run(Workload(qps=0.1), [answered(1748231183.5, 0.3669, 2.3669, cached=None)]))
    assert summary.performance_block().splitlines() == [
        "==================== Performance summary ======================",
        "  QPS: 0.1000 reqs/s",
        "",
        "  Processing speed: 0.4225 reqs/s",
        "",
        "  Requests on-the-fly: 0",
        "",
        "  Input tokens per second: 42.2494 tokens/s",
        "",
        "  Output tokens per second: 4.2249 tokens/s",
        "",
        "  Average generation throughput (per request): 5.0000 tokens/req/s",
        "",
        "  Average TTFT: 0.3669s",
        "",
        "Time range: 1748231183.5 - 1748231185.8669 (2.37s)",
        "===============================================================",
    ]


def test_a_run_without_answers_has_a_summary() -> None:
    summary = Summary.of(Run(Workload(), [Record(1, 1, Answer(sent_at=1.0, error="no"))]))
    assert summary.failed == 1
    assert summary.hit_rate is None
    assert "QPS" in summary.performance_block()


# ---------------------------------------------------------------- whole runs


class FakeEngine:
    """Answers every question with its number; fails the first of each user if it ``fails_first``."""

    def __init__(self, *, fails_first: bool = False) -> None:
        self.fails_first = fails_first
        self.requests: list[dict[str, Any]] = []
        self.users: set[str] = set()

    async def __aenter__(self) -> str:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.answer)
        app.router.add_get("/v1/models", self.models)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}/v1"

    async def __aexit__(self, *_: Any) -> None:
        await self.runner.cleanup()

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "first"}, {"id": "second"}]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(await request.json())
        number, found = len(self.requests), re.search(r"user \d+,", str(self.requests[-1]["messages"]))
        if self.fails_first and found is not None and found[0] not in self.users:
            self.users.add(found[0])
            return web.Response(status=500, text="broken")
        chunks = [
            {"choices": [{"delta": {"content": f"answer {number}"}}]},
            {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 2}},
        ]
        text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        return web.Response(text=text, content_type="text/event-stream")


QUICK = Workload(num_users=2, num_rounds=3, qps=200, shared_system_prompt=2, user_history_prompt=3)


async def test_a_conversation_grows_by_the_real_answers() -> None:
    engine = FakeEngine()
    async with engine as url:
        result = await users.run(QUICK, url)
    assert len(result.records) == QUICK.planned_requests == 6
    assert result.on_the_fly == 0
    by_length = sorted(len(request["messages"]) for request in engine.requests)
    assert by_length == [1, 1, 3, 3, 5, 5]
    answers = {f"answer {i}" for i in range(1, 7)}
    for user in (1, 2):
        conversations = [
            request["messages"]
            for request in engine.requests
            if request["messages"][0]["content"].count(f"user {user},")
        ]
        for shorter, longer in itertools.pairwise(conversations):
            assert longer[: len(shorter)] == shorter
            assert longer[len(shorter)]["role"] == "assistant"
            assert longer[len(shorter)]["content"] in answers


async def test_a_failed_request_ends_no_conversation() -> None:
    engine = FakeEngine(fails_first=True)
    async with engine as url:
        result = await users.run(QUICK, url)
    assert [record.answer.complete for record in result.records].count(False) == 2
    # The first round failed, so the opening is said in the second.
    assert all("system prompt" in request["messages"][0]["content"] for request in engine.requests)
    assert max(len(request["messages"]) for request in engine.requests) == 3


async def test_a_run_with_a_time_ends_by_itself() -> None:
    engine = FakeEngine()
    async with engine as url:
        result = await users.run(Workload(num_users=2, num_rounds=2, qps=50, seconds=0.3), url)
    assert 1 <= len(result.records) <= 40
    assert result.on_the_fly == 0


async def test_the_command_compares_and_writes_a_line_a_request(tmp_path: Path) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=100)
    output = tmp_path / "requests.csv"
    plain, picked = FakeEngine(), FakeEngine()
    async with plain as a, picked as b:
        assert await multi_round.bench(QUICK, a, console, compare=b, output=output, log_interval=0)
    text = shown.getvalue()
    assert text.count("Performance summary") == 2
    assert "ratio" in text
    assert "of 6 requests" in text
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["base_url"] for row in rows] == [a] * 6 + [b] * 6
    assert not {row["user_id"] for row in rows[:6]} & {row["user_id"] for row in rows[6:]}


async def test_compared_servers_can_be_told_apart_on_a_narrow_terminal() -> None:
    shown = io.StringIO()
    plain, picked = FakeEngine(), FakeEngine()
    async with plain as a, picked as b:
        await multi_round.bench(QUICK, a, Console(file=shown, width=80), compare=b)
    _, table = shown.getvalue().split("Multi-round", 1)
    assert "…" not in table
    assert all(urlsplit(url).netloc in table for url in (a, b))


@pytest.mark.parametrize(
    ("urls", "labels"),
    [
        (["http://a:80/v1", "http://b:80/v1"], ["a:80", "b:80"]),
        (["http://a:80/v1", "https://me:secret@b/v1"], ["a:80", "b"]),
        (["http://a:80/x/v1", "http://a:80/y/v1"], ["http://a:80/x/v1", "http://a:80/y/v1"]),
        (["http://a:80/v1"], ["a:80"]),
    ],
)
def test_a_server_is_called_by_what_tells_it_apart(urls: list[str], labels: list[str]) -> None:
    assert multi_round.labels(urls) == labels


async def test_compared_loads_share_no_prefix_and_the_text_says_so() -> None:
    shown = io.StringIO()
    engine = FakeEngine()
    async with engine as url:
        await multi_round.bench(replace(QUICK, salt="mine"), url, Console(file=shown, width=200), compare=url)
    openings = [request["messages"][0]["content"].partition(" Hi,")[0] for request in engine.requests]
    assert openings == ["Run mine-1."] * 6 + ["Run mine-2."] * 6
    assert "no cache held them before, unless --salt mine was used before" in shown.getvalue()


async def test_without_a_salt_the_text_says_that_caches_may_be_warm() -> None:
    shown = io.StringIO()
    async with FakeEngine() as url:
        await multi_round.bench(QUICK, url, Console(file=shown, width=200))
    assert "caches may hold the prompts of earlier runs" in shown.getvalue()


async def test_what_was_answered_before_an_interrupt_is_shown_and_written(tmp_path: Path) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=100)
    output = tmp_path / "requests.csv"
    slow = replace(QUICK, num_rounds=50, qps=20)
    engine = FakeEngine()
    async with engine as url:
        bench = asyncio.create_task(multi_round.bench(slow, url, console, output=output))
        await eventually(lambda: len(engine.requests) >= 5)
        bench.cancel()
        with pytest.raises(asyncio.CancelledError):
            await bench
    assert "Interrupted. Answers received until then:" in shown.getvalue()
    assert "TTFT mean" in shown.getvalue()
    assert 4 <= len(output.read_text().splitlines()) - 1 <= len(engine.requests)


async def test_a_file_that_cannot_be_written_is_told_before_the_load(tmp_path: Path) -> None:
    engine = FakeEngine()
    async with engine as url:
        with pytest.raises(ConfigurationError, match="does not exist"):
            await multi_round.bench(QUICK, url, Console(quiet=True), output=tmp_path / "missing" / "requests.csv")
    assert not engine.requests


async def test_a_base_url_without_a_scheme_is_told() -> None:
    with pytest.raises(ConfigurationError, match="begins with http:// or https://"):
        await multi_round.bench(QUICK, "127.0.0.1:8000/v1", Console(quiet=True))
    with pytest.raises(ConfigurationError, match="begins with http:// or https://"):
        await multi_round.bench(QUICK, "", Console(quiet=True))


async def test_a_key_that_cannot_be_a_header_is_told() -> None:
    """A key from a file may end with a line break; one within it would be taken for a server without models."""
    engine = FakeEngine()
    async with engine as url:
        assert await multi_round.bench(replace(QUICK, model=""), url, Console(quiet=True), api_key=" key\n")
        with pytest.raises(ConfigurationError, match="--api-key"):
            await multi_round.bench(replace(QUICK, model=""), url, Console(quiet=True), api_key="key\nkey")


async def test_without_a_model_the_servers_first_is_asked_for() -> None:
    first, second = FakeEngine(), FakeEngine()
    async with first as a, second as b:
        await multi_round.bench(replace(QUICK, model=""), a, Console(quiet=True), compare=b)
        await multi_round.bench(replace(QUICK, model="mine"), a, Console(quiet=True))
    assert [request["model"] for request in first.requests] == ["first"] * 6 + ["mine"] * 6
    assert {request["model"] for request in second.requests} == {"first"}


async def test_the_command_says_when_nothing_was_answered() -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=100)
    assert not await multi_round.bench(QUICK, "http://127.0.0.1:1/v1", console)
    assert "6 requests failed; the first: " in shown.getvalue()
