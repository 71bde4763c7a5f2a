"""Bodies in, picks and tokens out: several prompts in one request, several answers to one, prompts that read no cache."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from tests.routing.test_router import Fixture
from warmroute.pool.work import prefill_work
from warmroute.prefix.chain import build, build_each
from warmroute.request.inference import InferenceRequest, PromptPart
from warmroute.request.parse import parse
from warmroute.routing.decision import Decision
from warmroute.routing.router import MOST_MATCHED_PROMPTS
from warmroute.routing.sent_request import MOST_REQUESTS_OF_ONE

COMPLETIONS, EMBEDDINGS = "/v1/completions", "/v1/embeddings"
SHARED = "What is said again and again at the beginning. " * 170  # 8 kB


def request(path: str, **body: Any) -> InferenceRequest:
    parsed = parse(path, "application/json", json.dumps({"model": "m", **body}).encode())
    assert isinstance(parsed, InferenceRequest), parsed
    return parsed


def pick(fixture: Fixture, parsed: InferenceRequest, now: float | None = None) -> Decision:
    """A decision; without a time, long after the one before it: everything has been computed."""
    if now is None:
        fixture.now += 100.0
    decision = fixture.router.pick(parsed, fixture.now if now is None else now)
    assert isinstance(decision, Decision)
    return decision


def pending(fixture: Fixture, name: str = "0") -> float:
    (load,) = [load for load in fixture.router.loads if load.endpoint.spec.name == name]
    return fixture.router.load_of(load, fixture.now)[2]


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize(("path", "field"), [(COMPLETIONS, "prompt"), (EMBEDDINGS, "input")])
def test_the_work_of_a_batch_is_the_sum_of_the_works_of_its_prompts(path: str, field: str) -> None:
    fixture = Fixture(1)
    decision = pick(fixture, request(path, **{field: [[k, *range(999)] for k in range(64)]}))
    assert (decision.prompt_tokens, decision.requests) == (64_000, 64)
    assert pending(fixture) == pytest.approx(64 * prefill_work(1_000), rel=1e-6) == pytest.approx(64_976, abs=1)


def test_prompts_of_different_lengths() -> None:
    fixture = Fixture(1)
    pick(fixture, request(COMPLETIONS, prompt=[list(range(n)) for n in (10, 500, 20_000)]))
    assert pending(fixture) == pytest.approx(sum(map(prefill_work, (10, 500, 20_000))), rel=1e-6)


def test_each_prompt_of_a_batch_is_matched() -> None:
    fixture = Fixture(3)
    first, second = (request(COMPLETIONS, prompt=[SHARED + f"{part} {k} " * 30 for k in range(16)]) for part in "ab")
    one = pick(fixture, first)
    assert one.cached_tokens == 0
    other = pick(fixture, second)
    assert other.endpoint is one.endpoint
    assert other.cached_tokens > 0.9 * 16 * len(SHARED) / fixture.router.bytes_per_token
    alone = pick(fixture, request(COMPLETIONS, prompt=SHARED + "a 7 " * 30))
    assert alone.endpoint is one.endpoint
    assert alone.reason == "warm"
    assert alone.match_ratio > 0.99


@pytest.mark.parametrize("counted", [False, True])
def test_empty_prompts_of_a_batch_do_not_count(counted: bool) -> None:
    fixture = Fixture(1)
    if counted:
        fixture.scrape(0.0, prefix_queries_total=0.0, prefix_hits_total=0.0)
    for path, body in (
        (COMPLETIONS, {"prompt": ["one", "", "two", ""]}),
        (COMPLETIONS, {"prompt": [[1, 2], [], [3], []]}),
        ("/v1/chat/completions/batch", {"messages": [[{"role": "user", "content": "Hi"}], [], [{"role": "user"}], []]}),
        ("/rerank", {"query": "q", "documents": ["a", "", "b"]}),
    ):
        parsed = request(path, **body)
        assert 0 not in parsed.lengths()
        pick(fixture, parsed)


def test_a_warm_batch_books_what_is_left() -> None:
    fixture = Fixture(1)
    texts = [SHARED + f"{k} " * 30 for k in range(16)]
    pick(fixture, request(COMPLETIONS, prompt=texts), 0.0)
    before = pending(fixture)
    pick(fixture, request(COMPLETIONS, prompt=texts), 0.0)
    assert pending(fixture) - before < 0.01 * before


def test_where_some_prompts_of_a_batch_are_held_counts() -> None:
    fixture = Fixture(2)
    texts = [chr(97 + k) * 8_000 for k in range(4)]
    for k, (text, name) in enumerate(zip(texts, "0111", strict=True)):
        pick_there = frozenset({f"10.0.0.{name}:8000"})
        assert isinstance(
            fixture.router.pick(request(COMPLETIONS, prompt=text), float(k), allowed=pick_there), Decision
        )
    decision = pick(fixture, request(COMPLETIONS, prompt=texts), 100.0)
    assert decision.endpoint.spec.name == "1"
    assert decision.match_ratio == pytest.approx(0.75, abs=0.02)


def test_a_batch_of_any_size_costs_a_bounded_number_of_steps() -> None:
    fixture = Fixture(2)
    decision = pick(fixture, request(EMBEDDINGS, input=[f"text {k} " * 40 for k in range(5_000)], n=10**9))
    assert len(decision.chains) == MOST_MATCHED_PROMPTS
    assert decision.requests == MOST_REQUESTS_OF_ONE


def test_the_tools_of_several_conversations_begin_each_of_them() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": SHARED}}]
    chats = [[{"role": "user", "content": f"{k} " * 50}] for k in range(3)]
    batch = request("/v1/chat/completions/batch", messages=chats, tools=tools)
    fixture = Fixture(3)
    first = pick(fixture, batch)
    assert first.prompt_bytes > 3 * len(SHARED)
    for messages in chats:
        alone = pick(fixture, request("/v1/chat/completions", messages=messages, tools=tools))
        assert alone.endpoint is first.endpoint
        assert alone.match_ratio > 0.99


def test_chains_with_a_common_head_are_those_of_whole_prompts() -> None:
    parts = [PromptPart(bytes([k]) * n, n) for k, n in enumerate((3_000, 50, 20_000, 7, 400))]
    head = parts[:2]
    each = build_each(b"s", parts, head=2, starts=(3, 4), most=9)
    assert each == [build(b"s", [*head, part]) for part in parts[2:]]
    assert build_each(b"s", parts, head=2, starts=(3, 4), most=2) == each[:2]
    assert build_each(b"s", parts, head=0, starts=(1,), most=9)[0] == build(b"s", parts[:1])


@pytest.mark.parametrize(("prompts", "samples"), [(4, 2), (16, 128)])
def test_bytes_per_token_are_learned_from_batches_and_samples(prompts: int, samples: int) -> None:
    fixture = Fixture(1, bytes_per_token=4.0)
    batch, requests = request(COMPLETIONS, prompt=["a" * 3_000] * prompts, n=samples), prompts * samples
    for _ in range(20):
        fixture.serve(batch, tokens=requests * 1_500.0, finished=requests, prefix_queries_total=None)
    for _ in range(40):
        fixture.serve(batch, tokens=requests * 1_500.0, finished=requests)
    assert fixture.router.bytes_per_token < 3.0


def test_each_sample_is_a_request_of_the_engine() -> None:
    fixture = Fixture(2)
    parsed = request("/v1/chat/completions", messages=[{"role": "user", "content": SHARED}], n=8)
    assert pick(fixture, parsed).requests == 8
    assert pending(fixture) == pytest.approx(prefill_work(parsed.prompt_bytes / 4), rel=0.2), (
        "the prompt is computed once"
    )


def test_lookups_of_samples_are_no_surprise() -> None:
    """The engine looks a prompt up once for each sample, and finds it but for the first time."""
    fixture = Fixture(1)
    fixture.scrape(0.0, prefix_queries_total=0.0, prefix_hits_total=0.0)
    tokens = 10_000
    for k in range(1, 40):
        pick(fixture, request(COMPLETIONS, prompt=[k] * tokens, n=4), float(k))
        fixture.scrape(k + 0.5, prefix_queries_total=4.0 * tokens * k, prefix_hits_total=3.0 * tokens * k)
    (load,) = fixture.router.loads
    assert load.confirmation.unproven == 0
    window = load.confirmation.last_window
    assert window is not None
    assert window.expected == pytest.approx(window.measured, abs=0.01)


# ---------------------------------------------------------------- prompts that read no cache

TEXT = "Some text that is scored. " * 1_000  # 26 kB
UNCACHED = [
    (COMPLETIONS, {"prompt": TEXT, "echo": True, "logprobs": 1, "max_tokens": 1}),
    (COMPLETIONS, {"prompt": TEXT, "echo": True, "logprobs": 0}),
    (COMPLETIONS, {"prompt": TEXT, "prompt_logprobs": 0}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT}], "prompt_logprobs": 5}),
    ("/generate", {"text": TEXT, "return_logprob": True, "logprob_start_len": 0}),
    ("/generate", {"text": TEXT, "return_logprob": [True], "logprob_start_len": [0]}),
    ("/inference/v1/generate", {"token_ids": [1] * 6_000, "sampling_params": {"prompt_logprobs": 1}}),
]
CACHED = [
    (COMPLETIONS, {"prompt": TEXT, "echo": True}),
    (COMPLETIONS, {"prompt": TEXT, "logprobs": 5}),
    (COMPLETIONS, {"prompt": TEXT, "prompt_logprobs": None}),
    ("/generate", {"text": TEXT, "return_logprob": True}),
    ("/generate", {"text": TEXT, "return_logprob": True, "logprob_start_len": -1}),
    ("/generate", {"text": TEXT, "return_logprob": False, "logprob_start_len": 0}),
]


@pytest.mark.parametrize(("path", "body"), UNCACHED)
@pytest.mark.parametrize("counted", [False, True])
def test_a_prompt_that_reads_no_cache_is_cold_and_warms_others(path: str, body: dict[str, Any], counted: bool) -> None:
    fixture = Fixture(3)
    if counted:
        fixture.scrape(0.0, prefix_queries_total=0.0, prefix_hits_total=0.0)
    parsed = request(path, **body)
    decisions = [pick(fixture, parsed, 0.0) for _ in range(40)]
    assert [decision.cached_tokens for decision in decisions] == [0] * 40
    assert max(Counter(decision.endpoint.id for decision in decisions).values()) < 20
    reads = pick(fixture, parsed._replace(reads_cache=True))
    assert reads.match_ratio > 0.99


@pytest.mark.parametrize(("path", "body"), CACHED)
def test_what_reads_the_cache_is_warm(path: str, body: dict[str, Any]) -> None:
    fixture = Fixture(3)
    assert [pick(fixture, request(path, **body)).match_ratio > 0.99 for _ in range(2)] == [False, True]


def test_prompts_that_are_never_looked_up_evict_nothing_and_leave_trust_alone() -> None:
    fixture = Fixture(1, cache_tokens=20_000)
    fixture.scrape(0.0, prefix_queries_total=0.0, prefix_hits_total=0.0)
    warm = request(COMPLETIONS, prompt="b" * 8_000)
    pick(fixture, warm)
    for k in range(200):
        pick(fixture, request(COMPLETIONS, prompt=f"{k:03}" * 8_000, prompt_logprobs=1), k * 0.01)
    assert pick(fixture, warm, 3.0).match_ratio > 0.99
    (load,) = fixture.router.loads
    assert load.confirmation.trust == 1.0
