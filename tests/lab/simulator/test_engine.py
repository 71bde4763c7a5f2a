"""The simulated engine: what a router can notice of vLLM, each fact by itself."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute_lab.simulator.blocks import chain_seed, hash_segments
from warmroute_lab.simulator.engine import Engine
from warmroute_lab.simulator.profile import PROFILES, Profile
from warmroute_lab.simulator.request import Output, Request

GRAPHS = PROFILES["h100-qwen2.5-7b-graphs"]
EAGER = PROFILES["h100-qwen2.5-7b-eager"]


def request(
    name: str, segments: list[tuple[int, int]], output_tokens: int = 1, *, adapter: str | None = None
) -> Request:
    seed = chain_seed(adapter=adapter)
    tokens = sum(length for _, length in segments)
    return Request(name, tokens, output_tokens, hash_segments(segments, 16, seed), adapter)


def drain(engine: Engine) -> list[Output]:
    outputs = []
    while (due := engine.next_event()) < inf:
        outputs += engine.advance(due)
    assert engine.pending == 0
    assert engine.pool.free == engine.pool.usable
    assert engine.kv_usage == 0
    return outputs


def serve(engine: Engine, *requests: Request, at: float = 0.0) -> list[Output]:
    for each in requests:
        engine.submit(each, at)
    return drain(engine)


def ttft(each: Request) -> float:
    assert each.first_token_at is not None
    return each.first_token_at - each.arrived_at


def test_tokens_come_one_by_one() -> None:
    engine = Engine(GRAPHS)
    only = request("a", [(1, 100)], 5)
    outputs = serve(engine, only)
    assert [output.tokens for output in outputs] == [1] * 5
    assert [output.finished for output in outputs] == [False] * 4 + [True]
    times = [output.time for output in outputs]
    assert times == sorted(times)
    assert times[0] == only.first_token_at
    assert times[-1] == only.finished_at
    assert engine.counters.generation_tokens == 5


def test_eight_equal_prompts_at_once_cost_one_prefill() -> None:
    requests = [request(str(i), [(1, 8192)], 4) for i in range(8)]
    engine = Engine(GRAPHS)
    serve(engine, *requests)
    assert [each.cached_tokens for each in requests] == [0] + [8176] * 7
    alone = request("alone", [(2, 8192)], 4)
    serve(Engine(GRAPHS), alone)
    assert ttft(requests[7]) < 1.5 * ttft(alone)


def test_eight_different_prompts_at_once_cost_eight() -> None:
    requests = [request(str(i), [(i, 8192)], 4) for i in range(8)]
    serve(Engine(GRAPHS), *requests)
    assert ttft(requests[7]) > 6 * ttft(requests[0])


@pytest.mark.parametrize(("tokens", "cached"), [(15, 0), (16, 0), (17, 16), (32, 16), (33, 32), (4096, 4080)])
def test_a_known_prompt_computes_its_last_token_again(tokens: int, cached: int) -> None:
    engine = Engine(GRAPHS)
    serve(engine, request("first", [(1, tokens)]))
    again = request("again", [(1, tokens)])
    serve(engine, again, at=10)
    assert again.cached_tokens == cached


def test_answers_are_cached_but_for_their_last_token() -> None:
    engine = Engine(GRAPHS)
    conversation = hash_segments([(1, 32), (2, 33)], 16)
    serve(engine, Request("turn 1", 32, 33, conversation))
    turn2 = request("turn 2", [(1, 32), (2, 33), (3, 100)])
    serve(engine, turn2, at=10)
    assert turn2.cached_tokens == 64  # 32 + 33 tokens, the last one has no keys and values yet

    engine = Engine(GRAPHS)
    serve(engine, Request("turn 1", 32, 32, conversation))
    turn2 = request("turn 2", [(1, 32), (2, 33), (3, 100)])
    serve(engine, turn2, at=10)
    assert turn2.cached_tokens == 48


def test_first_come_first_served_even_behind_a_giant() -> None:
    giant, small = request("giant", [(1, 30_000)]), request("small", [(2, 16)])
    engine = Engine(GRAPHS)
    engine.submit(giant, 0.0)
    engine.submit(small, 0.05)
    drain(engine)
    assert giant.first_token_at is not None
    assert small.first_token_at is not None
    assert small.first_token_at >= giant.first_token_at - 0.3  # it comes into the giant's last chunk at best
    assert ttft(small) > 0.5


def test_the_cache_is_looked_up_at_admission_not_on_arrival() -> None:
    profile = replace(GRAPHS, max_num_seqs=1)
    engine = Engine(profile)
    first, second = request("first", [(1, 1600)], 3), request("second", [(1, 1600)], 3)
    engine.submit(first, 0.0)
    engine.submit(second, 0.0)
    drain(engine)
    assert second.cached_tokens == 1584
    assert second.scheduled_at is not None
    assert first.scheduled_at is not None
    assert first.finished_at is not None
    assert second.scheduled_at > first.scheduled_at + 0.02


def test_no_more_than_max_num_seqs_run() -> None:
    engine = Engine(replace(GRAPHS, max_num_seqs=3))
    for i in range(8):
        engine.submit(request(str(i), [(i, 100)], 50), 0.0)
    engine.advance(0.2)
    assert (engine.running, engine.waiting) == (3, 5)
    drain(engine)


def test_a_prompt_that_does_not_fit_waits_and_holds_up_the_rest() -> None:
    engine = Engine(replace(GRAPHS, num_gpu_blocks=101))
    big, bigger, small = request("big", [(1, 960)], 60), request("bigger", [(2, 800)], 2), request("small", [(3, 16)])
    for each in (big, bigger, small):
        engine.submit(each, 0.0)
    engine.advance(0.2)
    assert (engine.running, engine.waiting) == (1, 2)
    drain(engine)
    assert big.finished_at is not None
    assert small.first_token_at is not None
    assert small.first_token_at > big.finished_at - 0.02
    assert engine.counters.preemptions == 0


def test_when_the_cache_is_full_the_youngest_is_preempted_and_recomputed() -> None:
    engine = Engine(replace(GRAPHS, num_gpu_blocks=42))
    old, young = request("old", [(1, 300)], 200), request("young", [(2, 300)], 200)
    serve(engine, old, young)
    assert engine.counters.preemptions >= 1
    assert old.outputs == young.outputs == 200
    assert old.finished_at is not None
    assert young.finished_at is not None
    assert old.finished_at < young.finished_at
    assert engine.counters.prefix_queries == old.prompt_tokens + young.prompt_tokens
    assert engine.counters.prefix_hits == 0, "what the preempted one found of its own is none"


def test_the_preempted_comes_before_those_that_wait() -> None:
    engine = Engine(replace(GRAPHS, num_gpu_blocks=42))
    old, young, later = request("old", [(1, 300)], 200), request("young", [(2, 300)], 200), request("later", [(3, 500)])
    serve(engine, old, young, later)
    assert engine.counters.preemptions >= 1
    assert young.finished_at is not None
    assert later.scheduled_at is not None
    assert later.scheduled_at > young.finished_at - 0.02


def test_what_can_never_fit_is_refused() -> None:
    engine = Engine(replace(GRAPHS, num_gpu_blocks=10))
    with pytest.raises(ValueError, match="larger than the KV cache"):
        engine.submit(request("huge", [(1, 200)]), 0.0)
    with pytest.raises(ValueError, match="at least one"):
        engine.submit(Request("empty", 0, 1), 0.0)
    assert engine.pending == 0


def test_adapters_do_not_share_blocks_and_load_once() -> None:
    engine = Engine(replace(GRAPHS, max_loras=1))
    base = request("base", [(1, 160)])
    serve(engine, base)
    first = request("first", [(1, 160)], adapter="a")
    serve(engine, first, at=10)
    second = request("second", [(1, 160)], adapter="a")
    serve(engine, second, at=20)
    assert first.cached_tokens == 0
    assert second.cached_tokens == 144
    assert ttft(first) > ttft(second) + 0.9 * GRAPHS.timing.adapter_load


def test_only_so_many_adapters_in_one_batch() -> None:
    engine = Engine(replace(GRAPHS, max_loras=1))
    one, other, base = (
        request("one", [(1, 100)], 60, adapter="a"),
        request("other", [(2, 100)], 60, adapter="b"),
        request("base", [(3, 100)], 60),
    )
    for each in (one, other, base):
        engine.submit(each, 0.0)
    engine.advance(0.3)
    assert engine.running_adapters == ["a"]
    assert engine.waiting_adapters == ["b"]
    assert engine.deferred == 1
    assert engine.running == 2  # the base model's request passes by
    drain(engine)


def test_an_adapter_in_use_stays_loaded() -> None:
    engine = Engine(replace(GRAPHS, max_loras=2))
    long = request("long", [(1, 100)], 2000, adapter="a")
    engine.submit(long, 0.0)
    for at, adapter in ((1.0, "b"), (2.0, "c")):
        short = request(adapter, [(2, 100)], 2, adapter=adapter)
        engine.advance(at)
        engine.submit(short, at)
    engine.advance(3.0)
    again = request("again", [(3, 100)], 2, adapter="a")
    engine.submit(again, 3.0)
    drain(engine)
    assert long.finished_at is not None
    assert again.finished_at is not None
    assert long.finished_at > again.finished_at
    assert ttft(again) < ttft(short) - 0.9 * GRAPHS.timing.adapter_load


def test_abort_frees_at_once_wherever_the_request_is() -> None:
    engine = Engine(replace(GRAPHS, max_num_seqs=1))
    running, waiting, late = (request(str(i), [(i, 1000)], 100) for i in range(3))
    engine.submit(running, 0.0)
    engine.submit(waiting, 0.0)
    engine.advance(0.3)
    engine.submit(late, 0.3)
    assert engine.pool.free < engine.pool.usable
    engine.abort(late, 0.3)
    engine.abort(waiting, 0.3)
    engine.abort(running, 0.3)
    engine.abort(running, 0.3)
    assert engine.pool.free == engine.pool.usable
    drain(engine)
    assert engine.counters.aborted == 3
    assert running.finished_at is None


def test_an_idle_engine_has_nothing_to_come() -> None:
    engine = Engine(GRAPHS)
    assert engine.next_event() == inf
    assert engine.advance(100.0) == []


def test_prefill_hides_the_launch_but_decoding_does_not() -> None:
    """Eager and graphs prefill alike; eager decodes at the pace of the launches."""
    spans = {}
    for profile in (GRAPHS, EAGER):
        long = request("long", [(1, 8192)], 100)
        serve(Engine(profile), long)
        assert long.finished_at is not None
        assert long.first_token_at is not None
        spans[profile.name] = ttft(long), (long.finished_at - long.first_token_at) / 99
    (graphs_ttft, graphs_itl), (eager_ttft, eager_itl) = spans.values()
    assert eager_ttft == pytest.approx(graphs_ttft, rel=0.05)
    assert eager_itl > 1.8 * graphs_itl


def test_a_seed_decides_when_the_host_is_slow() -> None:
    ends = []
    for seed in (0, 0, 1):
        only = request("a", [(1, 100)], 500)
        engine = Engine(EAGER, seed=seed)
        serve(engine, only)
        ends.append(only.finished_at)
    assert ends[0] == ends[1] != ends[2]


jobs = st.lists(
    st.tuples(
        st.floats(0, 0.5),  # pause before it
        st.integers(1, 4),  # shared prefix
        st.integers(0, 40),  # its blocks
        st.integers(1, 60),  # tokens of its own
        st.integers(1, 80),  # output
        st.sampled_from([None, None, "a", "b"]),
        st.booleans(),  # aborted halfway
    ),
    min_size=1,
    max_size=25,
)


@given(jobs, st.sampled_from([GRAPHS, EAGER]), st.integers(60, 200))
def test_nothing_leaks_and_passing_over_steps_changes_nothing(
    work: list[tuple[float, int, int, int, int, str | None, bool]], base: Profile, blocks: int
) -> None:
    """The same load step by step and in strides: same times, same hits; in the end every block is free again."""
    profile = replace(base, num_gpu_blocks=blocks, max_num_seqs=6, max_num_batched_tokens=256, max_loras=1)
    results = []
    for every_token in (True, False):
        engine = Engine(profile, every_token=every_token, seed=3)
        requests, outputs, now = [], [], 0.0
        for number, (pause, prefix, prefix_blocks, own, output_tokens, adapter, aborted) in enumerate(work):
            now += pause
            each = request(
                str(number), [(prefix, 16 * prefix_blocks), (100 + number, own)], output_tokens, adapter=adapter
            )
            outputs += engine.advance(now)
            engine.submit(each, now)
            requests.append(each)
            assert 0 <= engine.kv_usage <= 1
            assert engine.running <= profile.max_num_seqs
            if aborted:
                now += pause
                engine.abort(each, now)
        outputs += drain(engine)
        assert engine.pool.free == engine.pool.usable
        assert sum(engine.pool._users) == 0
        for each, (*_, aborted) in zip(requests, work, strict=True):
            tokens = sum(output.tokens for output in outputs if output.request is each)
            assert aborted or tokens == each.output_tokens == each.outputs
        assert [output.time for output in outputs] == sorted(output.time for output in outputs)
        results.append(
            [(each.cached_tokens, each.first_token_at, each.finished_at) for each in requests if each.finished_at]
            + [engine.counters.generation_tokens, engine.counters.preemptions, engine.counters.prefix_hits]
        )
    for stepped, passed in zip(*results, strict=True):
        assert passed == pytest.approx(stepped, rel=1e-9)


# ---------------------------------------------------------------- other caches


def cached(engine: Engine, segments: list[tuple[int, int]], *, at: float) -> int:
    each = request("r", segments)
    serve(engine, each, at=at)
    return each.cached_tokens


def test_an_engine_without_a_prefix_cache_keeps_and_looks_up_nothing() -> None:
    engine = Engine(replace(GRAPHS, prefix_caching=False))
    assert [cached(engine, [(1, 4000)], at=10.0 * turn) for turn in range(3)] == [0, 0, 0]
    assert (engine.counters.prefix_queries, engine.counters.prefix_hits) == (0, 0)
    assert engine.counters.prompt_tokens == 12_000


def test_a_second_tier_has_what_the_first_has_evicted() -> None:
    engine = Engine(replace(GRAPHS, num_gpu_blocks=400, tier_blocks=1600))
    for turn in range(4):
        assert cached(engine, [(turn, 4000)], at=10.0 * turn) == 0
    assert cached(engine, [(0, 4000)], at=50.0) == 3984
    assert engine.counters.tier_hits == 3984
    assert engine.counters.prefix_hits == 0
    one_tier = Engine(replace(GRAPHS, num_gpu_blocks=400))
    for turn in range(4):
        cached(one_tier, [(turn, 4000)], at=10.0 * turn)
    assert cached(one_tier, [(0, 4000)], at=50.0) == 0


def test_loading_from_the_second_tier_is_faster_than_computing() -> None:
    engine = Engine(replace(GRAPHS, num_gpu_blocks=700, tier_blocks=2800))
    first, again = request("a", [(0, 8000)]), request("b", [(0, 8000)])
    serve(engine, first)
    serve(engine, request("c", [(1, 8000)]), at=10.0)
    serve(engine, again, at=20.0)
    assert ttft(again) < 0.3 * ttft(first)


def test_a_hybrid_engine_finds_a_prefix_only_where_a_prompt_ended() -> None:
    engine = Engine(replace(GRAPHS, hybrid=True))
    assert cached(engine, [(0, 1600), (1, 400)], at=0.0) == 0
    assert cached(engine, [(0, 1600), (2, 400)], at=10.0) == 0, "no prompt ended after the shared part"
    assert cached(engine, [(0, 1600), (1, 400), (3, 100)], at=20.0) == 2000


def test_a_reset_forgets_what_no_request_uses() -> None:
    engine = Engine(replace(GRAPHS, tier_blocks=1000))
    assert cached(engine, [(0, 4000)], at=0.0) == 0
    assert cached(engine, [(0, 4000)], at=10.0) == 3984
    engine.reset_prefix_cache(20.0)
    assert cached(engine, [(0, 4000)], at=30.0) == 0
    assert cached(engine, [(0, 4000)], at=40.0) == 3984


def test_a_reset_while_requests_run_keeps_their_blocks() -> None:
    engine = Engine(GRAPHS)
    running = request("a", [(0, 4000)], 200)
    engine.submit(running, 0.0)
    engine.advance(0.5)
    engine.reset_prefix_cache(0.6)
    drain(engine)
    assert running.outputs == 200
    assert cached(engine, [(0, 4000)], at=100.0) == 3984
