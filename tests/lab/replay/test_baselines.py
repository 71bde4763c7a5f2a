"""Each baseline's decision rule, as its source has it."""

from __future__ import annotations

import random

import pytest

from warmroute.pool.endpoint import EngineState
from warmroute_lab.replay.baseline_indexes import ExactIndex, HeadFirstIndex, PromptTree, SharedTable
from warmroute_lab.replay.baselines import (
    BASELINES,
    Aibrix,
    Baseline,
    LeastRequest,
    LLMDAffinity,
    LLMDBlend,
    LLMDNoHitLRU,
    LMetric,
    LMetricUncached,
    LongestPrefix,
    Mooncake,
    PowerOfTwo,
    RoundRobin,
    SGLang,
)
from warmroute_lab.replay.trace import BYTES_PER_TOKEN, Identities, TracedRequest

TEXTS = Identities()


def asked(*texts: tuple[tuple[int, int], ...]) -> TracedRequest:
    return TracedRequest(0.0, tuple(piece for text in texts for piece in text), 10)


def fresh(tokens: int) -> TracedRequest:
    return asked(TEXTS.text(tokens))


def made(name: str, pods: int = 3) -> Baseline:
    baseline = BASELINES[name](random.Random(7))
    for pod in range(pods):
        baseline.joined(pod, 0.0)
        baseline.observed(pod, state(), 0.0)
    return baseline


def state(
    *, waiting: int = 0, kv_usage: float = 0.0, capacity: int = 1_000_000, prefill_rate: float | None = None
) -> EngineState:
    return EngineState(
        observed_at=0.0,
        running=0,
        waiting=waiting,
        kv_usage=kv_usage,
        capacity_tokens=capacity,
        prefill_rate=prefill_rate,
    )


def send(baseline: Baseline, pod: int, request: TracedRequest, number: int) -> None:
    """The request goes to that pod, whatever the rule says."""
    baseline.decide = lambda request, now: pod  # type: ignore[method-assign]
    assert baseline.choose(request, number, 0.0) == pod
    del baseline.decide


@pytest.mark.parametrize("name", BASELINES)
def test_books_are_kept_and_emptied(name: str) -> None:
    baseline = made(name)
    for number in range(20):
        pod = baseline.choose(fresh(600), number, number / 10)
        assert pod in (0, 1, 2)
    assert sum(baseline.requests.values()) == 20
    for number in range(20):
        if number % 2:
            baseline.first_token(number, 3.0)
        baseline.finished(number, 4.0)
    assert set(baseline.requests.values()) == set(baseline.pending.values()) == {0}


@pytest.mark.parametrize("name", BASELINES)
def test_pods_that_do_not_answer_are_not_chosen(name: str) -> None:
    baseline = made(name, pods=2)
    baseline.unreachable(0, 1.0)
    assert {baseline.choose(fresh(600), number, 1.0) for number in range(10)} == {1}
    baseline.unreachable(1, 1.0)
    assert baseline.choose(fresh(600), 10, 1.0) is None
    baseline.restarted(0, 2.0)
    assert baseline.choose(fresh(600), 11, 2.0) == 0
    baseline.left(0, 3.0)
    assert baseline.choose(fresh(600), 12, 3.0) is None


def test_round_robin_takes_turns() -> None:
    baseline = made("round-robin")
    assert isinstance(baseline, RoundRobin)
    chosen = [baseline.choose(fresh(10), number, 0.0) for number in range(6)]
    assert chosen[:3] == chosen[3:]
    assert sorted(chosen[:3]) == [0, 1, 2]  # type: ignore[type-var]


def test_least_request_takes_the_emptiest() -> None:
    baseline = made("least-request")
    assert isinstance(baseline, LeastRequest)
    for number, pod in enumerate((0, 0, 1, 2, 2)):
        send(baseline, pod, fresh(10), number)
    assert baseline.decide(fresh(10), 0.0) == 1


def test_power_of_two_never_takes_the_fullest() -> None:
    baseline = made("power-of-two")
    assert isinstance(baseline, PowerOfTwo)
    send(baseline, 0, fresh(10), 0)
    assert {baseline.decide(fresh(10), 0.0) for _ in range(50)} == {1, 2}


def test_longest_prefix_needs_more_than_half() -> None:
    baseline = made("longest-prefix")
    assert isinstance(baseline, LongestPrefix)
    system = TEXTS.text(512)
    send(baseline, 0, asked(system, TEXTS.text(400)), 0)
    assert baseline.decide(asked(system, TEXTS.text(500)), 0.0) == 0
    assert baseline.decide(asked(system, TEXTS.text(512)), 0.0) in (1, 2)


def test_mooncake_adds_the_queue_to_what_must_be_computed() -> None:
    baseline = made("mooncake", pods=2)
    assert isinstance(baseline, Mooncake)
    system = TEXTS.text(1024)
    send(baseline, 0, asked(system), 0)
    baseline.first_token(0, 0.0)
    send(baseline, 0, fresh(900), 1)
    assert baseline.decide(asked(system, TEXTS.text(10)), 0.0) == 0  # 10 + 900 < 1034
    send(baseline, 0, fresh(200), 2)
    assert baseline.decide(asked(system, TEXTS.text(10)), 0.0) == 1  # 10 + 1100 > 1034


def test_lmetric_multiplies_by_the_requests() -> None:
    system = TEXTS.text(1024)
    both, uncached = made("lmetric", pods=2), made("lmetric-uncached", pods=2)
    assert isinstance(both, LMetric)
    assert isinstance(uncached, LMetricUncached)
    for baseline in (both, uncached):
        for number in range(3):
            send(baseline, 0, asked(system), number)
            baseline.first_token(number, 0.0)
    # pod 0: 300 tokens, 3 requests; pod 1: 1324 tokens, none
    assert uncached.decide(asked(system, TEXTS.text(300)), 0.0) == 0  # 300 x 4 < 1324
    assert both.decide(asked(system, TEXTS.text(300)), 0.0) == 0
    send(both, 0, fresh(100), 3)
    send(uncached, 0, fresh(100), 3)
    assert uncached.decide(asked(system, TEXTS.text(200)), 0.0) == 0  # 200 x 5 < 1224
    assert both.decide(asked(system, TEXTS.text(200)), 0.0) == 1  # (200 + 100) x 5 > 1224


def test_lmetric_of_uncached_tokens_settles_ties_by_load_then_work_then_number() -> None:
    baseline = made("lmetric-uncached", pods=3)
    request = asked(TEXTS.text(64))
    assert baseline.decide(request, 0.0) == 0
    send(baseline, 0, fresh(500), 0)
    send(baseline, 1, fresh(100), 1)
    send(baseline, 2, fresh(200), 2)
    assert baseline.decide(request, 0.0) == 1
    for number, pod in enumerate(range(3), start=3):
        send(baseline, pod, request, number)
    assert baseline.decide(request, 0.0) == 1


def test_llm_ds_affinity_filter_keeps_the_holders_until_they_are_late() -> None:
    baseline = made("llm-d", pods=3)
    assert isinstance(baseline, LLMDAffinity)
    text = TEXTS.text(6400)
    for number in range(2):
        send(baseline, number, asked(text, TEXTS.text(64)), number)
        baseline.first_token(number, 0.0)
    send(baseline, 0, fresh(100_000), 2)
    assert baseline.decide(asked(text, TEXTS.text(64)), 0.0) == 1, "of two holders, the one with fewer tokens in flight"
    send(baseline, 1, fresh(50_000), 6)
    assert baseline.decide(asked(text, TEXTS.text(6400)), 0.0) == 2, (
        "they hold half of it: the fewest tokens of all count"
    )
    baseline.first_token(6, 0.0)
    send(baseline, 1, fresh(200_000), 3)
    send(baseline, 0, fresh(200_000), 4)
    assert baseline.decide(asked(text), 0.0) == 1, "200,000 tokens take 12.6 s"
    send(baseline, 1, fresh(100_000), 5)
    assert baseline.decide(asked(text), 0.0) == 2, "18.8 s are more than the penalty"
    for number in (3, 5):
        baseline.first_token(number, 1.0)
    assert baseline.decide(asked(text), 1.0) == 1


def test_llm_d_tuned_has_a_penalty_of_five_seconds_at_the_engines_own_rate() -> None:
    baseline = made("llm-d-tuned", pods=2)
    text = TEXTS.text(6400)
    send(baseline, 0, asked(text), 0)
    send(baseline, 0, fresh(100_000), 1)
    assert baseline.decide(asked(text), 0.0) == 0, "106,400 tokens take 2.7 s at 40,000 a second"
    baseline.observed(0, state(prefill_rate=20_000.0), 0.0)
    assert baseline.decide(asked(text), 0.0) == 1, "and 5.3 s at 20,000"


def test_llm_d_spreads_cold_prompts_over_the_pods_in_turn() -> None:
    baseline = made("llm-d-no-hit-lru", pods=3)
    assert isinstance(baseline, LLMDNoHitLRU)
    baseline.observed(1, state(kv_usage=0.5), 0.0)
    chosen = [baseline.choose(fresh(1000), number, 0.0) for number in range(6)]
    assert set(chosen[:3]) == {0, 1, 2}
    assert chosen[3:] == chosen[:3]


def test_llm_d_weighs_prefix_3_queue_2_kv_2() -> None:
    baseline = made("llm-d-3-2-2", pods=2)
    assert isinstance(baseline, LLMDBlend)
    system = TEXTS.text(640)
    send(baseline, 0, asked(system), 0)
    baseline.observed(0, state(waiting=1), 0.0)
    baseline.observed(1, state(waiting=0), 0.0)
    assert baseline.decide(asked(system, TEXTS.text(64 * 4)), 0.0) == 0  # 3 x 10/14 > 2
    assert baseline.decide(asked(system, TEXTS.text(64 * 6)), 0.0) == 1  # 3 x 10/16 < 2
    baseline.observed(0, state(kv_usage=0.9), 0.0)
    assert baseline.decide(asked(system, TEXTS.text(64 * 6)), 0.0) == 0  # 3 x 10/16 > 2 x 0.9
    assert baseline.decide(asked(system, TEXTS.text(64 * 8)), 0.0) == 1  # 3 x 10/18 < 2 x 0.9


def test_llm_d_hashes_blocks_of_64_tokens_and_the_last_one_too() -> None:
    baseline = made("llm-d")
    assert isinstance(baseline, LLMDAffinity)
    text = TEXTS.text(200)
    assert len(baseline.blocks(asked(text))) == 4
    assert baseline.blocks(asked(text, TEXTS.text(100)))[:3] == baseline.blocks(asked(text))[:3]
    assert len(baseline.blocks(fresh(200_000))) == 2048


def test_llm_ds_index_evicts_heads_and_counts_over_gaps() -> None:
    holdings = HeadFirstIndex()
    holdings.insert(0, [1, 2, 3, 4], capacity=4)
    holdings.insert(1, [1], capacity=100)
    holdings.insert(0, [9], capacity=100)  # the first capacity counts: block 1 goes
    assert holdings.match([1, 2, 3, 4]) == {1: 1, 0: 3}
    assert holdings.match([5, 2]) == {}


def test_sglang_leaves_the_cache_when_unbalanced() -> None:
    baseline = made("sglang")
    assert isinstance(baseline, SGLang)
    system = TEXTS.text(1024)
    send(baseline, 2, asked(system), 0)
    assert baseline.decide(asked(system, TEXTS.text(2000)), 0.0) == 2  # 1024/3024 > 0.3
    assert baseline.decide(asked(system, TEXTS.text(2500)), 0.0) == 0  # too little: the first of the emptiest
    for number in range(1, 65):
        send(baseline, 2, asked(system), number)
    assert baseline.decide(asked(system), 0.0) == 0  # 65 - 0 > 64
    for number in range(65, 65 + 44):
        send(baseline, 0, fresh(10), number)
        send(baseline, 1, fresh(10), 1000 + number)
    assert baseline.decide(asked(system), 0.0) == 2  # 65 - 44 is allowed


def test_sglangs_tree_names_the_last_pod_and_forgets_the_oldest() -> None:
    tree = PromptTree(most_tokens=1112, interval=60.0, rng=random.Random(1))
    first, second = TEXTS.text(600), TEXTS.text(600)
    tree.insert(0, first, 0.0)
    tree.insert(1, first, 1.0)
    assert tree.match(first) == (1, 600)
    tree.drop(1)
    assert tree.match(first) == (0, 600)
    tree.insert(0, second, 2.0)
    assert tree.match(first)[1] == 600  # over the limit, but it is not time yet
    tree.insert(0, second, 60.0)
    assert tree.match(first) == (0, 512)  # the oldest leaf is gone
    assert tree.match(second) == (0, 600)


def test_aibrix_prefers_the_emptiest_when_they_differ_by_more_than_8() -> None:
    baseline = made("aibrix")
    assert isinstance(baseline, Aibrix)
    system = TEXTS.text(1024)
    for number in range(9):
        send(baseline, 0, asked(system), number)
    assert baseline.decide(asked(system), 0.0) in (1, 2)


def test_aibrix_takes_the_longest_match_that_is_not_too_busy() -> None:
    baseline = made("aibrix")
    system = TEXTS.text(1024)
    send(baseline, 0, asked(system, TEXTS.text(512)), 0)
    send(baseline, 1, asked(system), 1)
    assert baseline.decide(asked(system), 0.0) in (0, 1)
    for number in range(2, 7):
        send(baseline, 0, fresh(10), number)
    # requests 6, 1, 0: the mean is 2.3, one deviation 2.6
    assert baseline.decide(asked(system), 0.0) == 1


def test_aibrixs_table_is_shared_small_and_forgets() -> None:
    table = SharedTable(blocks=2000, block_bytes=4, seconds=100.0, bytes_per_token=BYTES_PER_TOKEN)
    old, new = fresh(1024), fresh(1024)
    table.insert(0, old, 0.0)
    assert table.match(old, (0, 1), 50.0) == {0: 1.0}
    assert table.match(old, (1,), 50.0) == {}
    assert table.match(old, (0,), 100.0) == {}
    table.insert(1, new, 50.0)
    assert table.match(old, (0,), 50.0) == {}  # its head was evicted first
    assert table.match(new, (0, 1), 50.0) == {1: 1.0}


def test_exact_holdings_leave_one_token_to_compute() -> None:
    holdings = ExactIndex()
    holdings.add(4)
    request = fresh(700)
    holdings.insert(4, request)
    assert holdings.match(request, (4,)) == {4: 699}
    holdings.resize(4, 512 * BYTES_PER_TOKEN)
    holdings.insert(4, fresh(10))
    assert holdings.match(request, (4,)) == {}
    holdings.insert(4, request)
    holdings.drop(4)
    assert holdings.match(request, (4,)) == {}
