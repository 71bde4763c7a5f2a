"""The dialogue with one engine: what its pages mean and what to ask next."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.recordings import engine_recording
from warmroute.engines.dialects import (
    DIALECTS,
    SGLANG,
    TRITON_TENSORRT_LLM,
    TRTLLM_SERVE,
    VLLM,
    AdapterInfo,
    Capacity,
    Dialect,
    Series,
)
from warmroute.engines.probe import PLAIN_PAGES, Again, Probe, StatusError
from warmroute.errors import ScrapeError
from warmroute.pool.endpoint import MOST_ADAPTERS, EngineState


def vllm_page(
    *,
    waiting: float = 0,
    running: float = 0,
    computed: float = 0,
    start: float | None = 1000.0,
    extra: str = "",
    constants: bool = True,
) -> bytes:
    lines = [
        f'vllm:num_requests_running{{engine="0",model_name="m"}} {running}',
        f'vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}',
        'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25',
        f'vllm:prompt_tokens_by_source_total{{engine="0",source="local_compute"}} {computed}',
        'vllm:prompt_tokens_by_source_total{engine="0",source="local_cache_hit"} 7.0',
    ]
    if start is not None:
        lines.append(f"process_start_time_seconds {start}")
    if constants:
        lines.append('vllm:cache_config_info{block_size="16",num_gpu_blocks="1000",engine="0"} 1.0')
    return "\n".join([*lines, extra, ""]).encode()


def names_asked(probe: Probe) -> set[str]:
    return set(parse_qs(urlsplit(probe.query()).query).get("name[]", []))


def read(probe: Probe, body: bytes, at: float = 0.0) -> EngineState:
    answer = probe.answer(200, body, at)
    assert isinstance(answer, EngineState)
    return answer


# ---------------------------------------------------------------- what a page means


def test_a_real_vllm_page() -> None:
    state = read(Probe(VLLM, "/metrics"), engine_recording("vllm-0.26-metrics.txt"), 5.0)
    assert state == EngineState(
        observed_at=5.0,
        running=0,
        waiting=0,
        kv_usage=0.0,
        capacity_tokens=1041616,
        awaiting_first_token=0,
        first_tokens_total=1957.0,
        first_token_seconds_total=1945.8142125606537,
        prompt_tokens_total=6747926.0,
        prompt_requests_total=1957.0,
        computed_tokens_total=4069894.0,
        prefix_queries_total=6747926.0,
        prefix_hits_total=2678032.0,
        tier_queries_total=0.0,
        tier_hits_total=0.0,
        responses_total=1959.0,
        rejected_responses_total=2.0,
        max_model_len=32768,
        block_size=16,
        prefix_caching=True,
    )


def test_a_real_filtered_vllm_page() -> None:
    body = json.loads(engine_recording("vllm-0.26-responses.json"))["filtered_metrics"]["slash"].encode()
    state = read(Probe(VLLM, "/metrics"), body)
    assert (state.running, state.waiting, state.kv_usage) == (0, 0, 0.0)


def test_requests_without_a_token_are_told_by_two_counters() -> None:
    counters = (
        'vllm:time_to_first_token_seconds_count{{engine="0"}} {}\nvllm:request_prompt_tokens_count{{engine="0"}} {}'
    )
    probe = Probe(VLLM, "/metrics")
    state = read(probe, vllm_page(running=5, waiting=1, extra=counters.format(13, 10)))
    assert (state.awaiting_first_token, state.first_tokens_total) == (3, 13)
    assert probe.answer(200, vllm_page(running=5, start=2000.0, extra=counters.format(1, 0)), 1.0) is Again.RESTARTED
    assert read(probe, vllm_page(running=5, start=2000.0, extra=counters.format(1, 0)), 1.1).awaiting_first_token == 4


def test_an_engine_without_these_counters_tells_nothing_of_them() -> None:
    state = read(Probe(VLLM, "/metrics"), vllm_page(running=5, waiting=1))
    assert (state.awaiting_first_token, state.first_tokens_total) == (None, None)


def test_older_vllm_names() -> None:
    page = b"vllm:num_requests_running 1\nvllm:num_requests_waiting 2\nvllm:gpu_cache_usage_perc 0.5\n"
    state = read(Probe(VLLM, "/metrics"), page)
    assert (state.running, state.waiting, state.kv_usage) == (1, 2, 0.5)


def test_data_parallel_ranks_count_together() -> None:
    page = vllm_page(waiting=2, running=3) + vllm_page(waiting=1, running=4).replace(b'engine="0"', b'engine="1"')
    page = page.replace(b'engine="1",model_name="m"} 0.25', b'engine="1",model_name="m"} 0.75')
    state = read(Probe(VLLM, "/metrics"), page)
    assert (state.waiting, state.running) == (3, 7)
    assert state.kv_usage == pytest.approx(0.5)
    assert state.capacity_tokens == 32_000


def test_series_of_several_api_server_processes_are_one_engine() -> None:
    """All but one process have the engine's figures of long ago, or 0 (vllm-project/vllm pull request 28792)."""
    pids = range(271, 279)
    lines = [f'vllm:kv_cache_usage_perc{{engine="0",pid="{pid}"}} {0.653 if pid == 273 else 0.0}' for pid in pids]
    lines += [f'vllm:num_requests_running{{engine="0",pid="{pid}"}} {7 if pid == 273 else 0}' for pid in pids]
    lines += [f'vllm:num_requests_waiting{{engine="0",pid="{pid}"}} 0' for pid in pids]
    lines += [f'vllm:cache_config_info{{block_size="16",num_gpu_blocks="1000",pid="{pid}"}} 1' for pid in pids]
    state = read(Probe(VLLM, "/metrics"), "\n".join([*lines, ""]).encode())
    assert (state.kv_usage, state.running, state.waiting, state.capacity_tokens) == (0.653, 7, 0, 16_000)


def test_processes_and_data_parallel_ranks_together() -> None:
    usage = 'vllm:kv_cache_usage_perc{{engine="{}",pid="{}"}} {}\n'
    extra = usage.format(0, 1, 0.0) + usage.format(0, 2, 0.6) + usage.format(1, 1, 0.2) + usage.format(1, 2, 0.0)
    page = vllm_page(extra=extra).replace(b'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25\n', b"")
    assert read(Probe(VLLM, "/metrics"), page).kv_usage == pytest.approx(0.4)


@pytest.mark.parametrize(("text", "known"), [("True", True), ("False", False), ("true", True), ("", None), ("x", None)])
def test_whether_an_engine_keeps_prompts_and_in_which_blocks(text: str, known: bool | None) -> None:
    info = f'vllm:cache_config_info{{block_size="8320",num_gpu_blocks="1000",enable_prefix_caching="{text}"}} 1'
    state = read(Probe(VLLM, "/metrics"), vllm_page(constants=False, extra=info))
    assert (state.block_size, state.capacity_tokens, state.prefix_caching) == (8320, 8_320_000, known)


def ranks_page(*waiting: int, start: float = 1000.0, shift: int = 0) -> bytes:
    pages = [
        vllm_page(waiting=n, start=None).replace(b'engine="0"', b'engine="%d"' % (k + shift))
        for k, n in enumerate(waiting)
    ]
    return b"".join(pages) + f"process_start_time_seconds {start}\n".encode()


def test_ranks_behind_one_port_have_a_state_each_if_they_are_split() -> None:
    probe = Probe(VLLM, "/metrics", split_ranks=True)
    assert read(probe, ranks_page(2, 1, 0)).waiting == 2
    assert [(state.waiting, state.capacity_tokens) for state in probe.states] == [(2, 16_000), (1, 16_000), (0, 16_000)]
    assert probe.answer(200, ranks_page(2, 1, 0, start=2000.0), 1.0) is Again.RESTARTED
    assert read(probe, ranks_page(0, 0, 0, start=2000.0), 2.0).waiting == 0
    assert read(probe, ranks_page(0, 0, 0, start=2000.0), 3.0).waiting == 0
    assert [state.observed_at for state in probe.states] == [3.0] * 3


@pytest.mark.parametrize("page", [ranks_page(4), ranks_page(2, 2, shift=4), vllm_page(waiting=4)])
def test_one_engine_and_ranks_that_are_not_numbered_from_0_are_one(page: bytes) -> None:
    probe = Probe(VLLM, "/metrics", split_ranks=True)
    assert read(probe, page).waiting == 4
    assert len(probe.states) == 1


def test_the_latest_adapter_sample_counts() -> None:
    lora = "vllm:lora_requests_info"
    page = vllm_page(
        extra=f'{lora}{{max_lora="4",running_lora_adapters="old",waiting_lora_adapters=""}} 1.7e9\n'
        f'{lora}{{max_lora="4",running_lora_adapters="a, b",waiting_lora_adapters=" c,b "}} 1.8e9\n'
        f'{lora}{{max_lora="4",running_lora_adapters="",waiting_lora_adapters="x"}} 1.75e9'
    )
    state = read(Probe(VLLM, "/metrics"), page)
    assert state.loaded_adapters == {"a", "b", "c"}
    assert state.max_adapters == 4


def test_no_adapters_and_a_strange_limit() -> None:
    page = vllm_page(extra='vllm:lora_requests_info{max_lora="x",running_lora_adapters="",waiting_lora_adapters=","} 1')
    state = read(Probe(VLLM, "/metrics"), page)
    assert (state.loaded_adapters, state.max_adapters) == (frozenset(), 0)


@pytest.mark.parametrize(("awake", "sleeping"), [(1, False), (0, True)])
def test_a_sleeping_engine(awake: int, sleeping: bool) -> None:
    extra = f'vllm:engine_sleep_state{{sleep_state="awake"}} {awake}\nvllm:engine_sleep_state{{sleep_state="x"}} 1'
    assert read(Probe(VLLM, "/metrics"), vllm_page(extra=extra)).sleeping is sleeping


def test_sglang() -> None:
    page = b"""sglang:num_running_reqs{tp_rank="0",priority=""} 5.0
sglang:num_running_reqs{tp_rank="0",priority="3"} 5.0
sglang:num_queue_reqs{tp_rank="0"} 2.0
sglang:token_usage{tp_rank="0"} 0.28
sglang:max_total_num_tokens{tp_rank="0"} 471258.0
sglang:prompt_tokens_total{model_name="m"} 900.0
sglang:num_requests_total{model_name="m"} 9.0
sglang:cached_tokens_total{cache_source="device"} 300.0
sglang:cached_tokens_total{cache_source="host"} 100.0
"""
    assert read(Probe(SGLANG, "/metrics"), page) == EngineState(
        observed_at=0.0,
        running=5,
        waiting=2,
        kv_usage=0.28,
        capacity_tokens=471258,
        prompt_tokens_total=900.0,
        prompt_requests_total=9.0,
        prefix_queries_total=900.0,
        prefix_hits_total=400.0,
    )
    older = page.replace(
        b'sglang:max_total_num_tokens{tp_rank="0"} 471258.0',
        b'sglang:cache_config_info{page_size="64",num_pages="100"} 1',
    )
    assert read(Probe(SGLANG, "/metrics"), older).capacity_tokens == 6_400


def test_sglang_stages_of_one_pipeline_tell_of_the_same_requests_and_data_parallel_ranks_of_others() -> None:
    lines = [
        f'{name}{{moe_ep_rank="0",tp_rank="{2 * dp + tp}",pp_rank="{pp}",dp_rank="{dp}"}} {value}'
        for name, value in (
            ("sglang:num_running_reqs", 10),
            ("sglang:num_queue_reqs", 3),
            ("sglang:token_usage", 0.5),
            ("sglang:max_total_num_tokens", 100_000),
        )
        for dp in (0, 1)
        for pp in (0, 1)
        for tp in (0, 1)
    ]
    state = read(Probe(SGLANG, "/metrics"), "\n".join(lines).encode() + b"\n")
    assert (state.running, state.waiting, state.kv_usage, state.capacity_tokens) == (20, 6, 0.5, 200_000)


def test_trtllm_serve() -> None:
    page = b"""trtllm_num_requests_running{model_name="m"} 5
trtllm_num_requests_waiting{model_name="m"} 2
trtllm_kv_cache_utilization{model_name="m"} 0.5
trtllm_kv_cache_max_blocks{model_name="m"} 100
trtllm_kv_cache_tokens_per_block{model_name="m"} 32
trtllm_max_num_active_requests{model_name="m"} 64
"""
    state = read(Probe(TRTLLM_SERVE, TRTLLM_SERVE.path), page)
    assert (state.running, state.waiting, state.kv_usage) == (5, 2, 0.5)
    assert (state.capacity_tokens, state.max_num_seqs) == (3200, 64)


def test_triton() -> None:
    page = b"""nv_trt_llm_request_metrics{model="m",request_type="waiting",version="1"} 2
nv_trt_llm_request_metrics{model="m",request_type="scheduled",version="1"} 5
nv_trt_llm_request_metrics{model="m",request_type="max",version="1"} 512
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="m"} 0.4875
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="m"} 64
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="m"} 6239
"""
    state = read(Probe(TRITON_TENSORRT_LLM, "/metrics"), page)
    assert (state.running, state.waiting, state.kv_usage) == (5, 2, 0.4875)
    assert (state.capacity_tokens, state.max_num_seqs) == (399_296, 512)


@given(st.sampled_from([*DIALECTS]), st.integers(100, 599), st.binary(max_size=200))
def test_any_answer_is_a_state_a_retry_or_a_scrape_error(engine: str, status: int, body: bytes) -> None:
    dialect = DIALECTS[engine]
    probe = Probe(dialect, dialect.path)
    for text in (body, "".join(f"{name} 1\n" for name in dialect.changing_names()).encode() + body):
        for _ in range(2):
            try:
                probe.answer(status, text, 0.0)
            except ScrapeError:
                pass


ABSURD = st.sampled_from(
    ["1e308", "-1e308", "1e999", "NaN", "-1", "1e7", "1e9", "1e15", "9007199254740992", "1e-308", "0", "9" * 400]
)
FIGURES = ABSURD | st.floats().map(str) | st.integers(0, 200).map(str) | st.text(max_size=3)


@st.composite
def hostile_pages(draw: st.DrawFn, dialect: Dialect) -> bytes:
    """A page with all names of the dialect, with figures of any size as values and in the labels that are read."""
    names = sorted({*dialect.changing_names(), *dialect.constant_names()})
    labels = st.sampled_from(
        [
            "",
            '{engine="0"}',
            '{source="local_compute",mode="prefill_compute",request_type="waiting",kv_cache_block_type="max"}',
            '{sleep_state="awake",request_type="scheduled",kv_cache_block_type="fraction"}',
        ]
    )
    lines = []
    for name in names:
        lines += [f"{name}{draw(labels)} {draw(FIGURES)}" for _ in range(draw(st.integers(0, 2)))]
    told = ("kv_cache_size_tokens", "num_gpu_blocks", "block_size", "num_pages", "page_size", "max_lora")
    texts = {label: draw(FIGURES) for label in told}
    told_text = ",".join(f'{label}="{text}"' for label, text in texts.items() if '"' not in text and "\\" not in text)
    lines += [f"{name}{{{told_text}}} 1" for name in names if "config_info" in name or "lora" in name]
    lines.append(draw(st.text(max_size=20)))
    for series in (*dialect.waiting, *dialect.running):
        where = ",".join(f'{label}="{value}"' for label, value in series.where)
        lines.append(f"{series.name}{{{where}}} {draw(st.integers(0, 300))}")
    return "\n".join(lines).encode(errors="replace")


def within_bounds(state: EngineState) -> None:
    assert state.plausible, state
    if state.awaiting_first_token is not None:
        assert state.waiting <= state.awaiting_first_token


@given(st.data(), st.sampled_from([*DIALECTS]))
def test_any_sequence_of_pages_gives_states_within_bounds_or_scrape_errors(data: st.DataObject, engine: str) -> None:
    dialect = DIALECTS[engine]
    probe = Probe(dialect, dialect.path)
    at = 0.0
    for body in data.draw(st.lists(hostile_pages(dialect), max_size=5)):
        at += data.draw(st.sampled_from([0.0, 0.1, 2.0]))
        for _ in range(2):
            try:
                answer = probe.answer(200, body, at)
            except ScrapeError:
                continue
            if isinstance(answer, EngineState):
                within_bounds(answer)


@pytest.mark.parametrize("figure", ["1e7", "1e308", "-1", "NaN", "+Inf", "100001"])
@pytest.mark.parametrize("name", ["running", "waiting"])
def test_a_page_without_a_usable_number_of_requests_is_refused(name: str, figure: str) -> None:
    probe = Probe(VLLM, "/metrics")
    seen(probe)
    other = {"running": "waiting", "waiting": "running"}[name]
    page = f"vllm:num_requests_{name} {figure}\nvllm:num_requests_{other} 1\n".encode()
    assert probe.answer(200, page, 1.0) is Again.UNFILTERED
    with pytest.raises(ScrapeError, match=f"{name} requests"):
        probe.answer(200, page, 1.0)


def test_figures_out_of_bounds_count_as_unknown() -> None:
    page = (
        "vllm:num_requests_running 1\nvllm:num_requests_waiting 100000\nvllm:kv_cache_usage_perc 1e308\n"
        'vllm:cache_config_info{kv_cache_size_tokens="1e10",num_gpu_blocks="1e308",block_size="1e308"} 1\n'
        "vllm:request_prompt_tokens_sum 1e308\nvllm:request_prompt_tokens_count -1\n"
        "vllm:prefix_cache_queries_total 9007199254740992\n"
        'vllm:lora_requests_info{max_lora="1025",running_lora_adapters="a"} 1\n'
    )
    assert read(Probe(VLLM, "/metrics"), page.encode()) == EngineState(
        observed_at=0.0,
        running=1,
        waiting=100_000,
        kv_usage=1.0,
        prefix_queries_total=2.0**53,
        loaded_adapters=frozenset("a"),
    )


def test_more_adapters_than_an_engine_can_have_are_unknown() -> None:
    lora = 'vllm:lora_requests_info{{max_lora="4",running_lora_adapters="{}"}} 1'
    for count, known in ((MOST_ADAPTERS, MOST_ADAPTERS), (MOST_ADAPTERS + 1, 0)):
        page = vllm_page(extra=lora.format(",".join(map(str, range(count)))))
        assert len(read(Probe(VLLM, "/metrics"), page).loaded_adapters) == known


def test_an_adapter_limit_of_thousands_of_digits_is_unknown() -> None:
    page = vllm_page(extra=f'vllm:lora_requests_info{{max_lora="{"9" * 5000}",running_lora_adapters="a"}} 1')
    assert read(Probe(VLLM, "/metrics"), page).max_adapters == 0


def test_a_page_that_is_refused_leaves_the_estimators_as_they_were() -> None:
    counters = (
        'vllm:inter_token_latency_seconds_count{{engine="0"}} {}\nvllm:inter_token_latency_seconds_sum{{engine="0"}} {}\n'
        "vllm:request_prompt_tokens_count {}"
    )

    def page(i: int) -> bytes:
        extra = counters.format(i * 160, i * 8.0, i * 10)
        return vllm_page(waiting=4, running=16, computed=i * 4_000, extra=extra)

    def rates(*, refused: bool) -> tuple[float | None, float | None]:
        probe = Probe(VLLM, "/metrics")
        for i in range(12):
            state = read(probe, page(i), i * 0.5)
            if refused:
                bad = page(i + 1000).replace(b'waiting{engine="0",model_name="m"} 4', b"waiting 1e300")
                bad += b'vllm:lora_requests_info{max_lora="4 1\n'
                for _ in range(2):
                    try:
                        assert probe.answer(200, bad, i * 0.5 + 0.1) is Again.UNFILTERED
                    except ScrapeError:
                        pass
        return state.prefill_rate, state.decode_rate

    assert None not in rates(refused=False)
    assert rates(refused=True) == rates(refused=False)


# ---------------------------------------------------------------- what to ask


@pytest.mark.parametrize("dialect", DIALECTS.values())
def test_every_series_of_a_dialect_is_asked_for(dialect: Dialect) -> None:
    """Walks the values themselves, so a figure that the derived lists leave out is found."""

    def names(value: object) -> set[str]:
        if isinstance(value, AdapterInfo):
            return {value.name, value.loaded}
        if isinstance(value, Series):
            return {value.name}
        if isinstance(value, Capacity):
            return names(value.count) | names(value.size)
        return set().union(*map(names, value)) if isinstance(value, tuple) else set()

    every = set().union(*(names(getattr(dialect, field.name)) for field in fields(dialect)))
    assert every | {"process_start_time_seconds"} == {*dialect.changing_names(), *dialect.constant_names()}
    constants = (dialect.capacity, dialect.max_num_seqs, dialect.tier_tokens)
    assert set().union(*map(names, constants)) == {*dialect.constant_names()}


def test_constants_are_asked_for_once() -> None:
    probe = Probe(VLLM, "/metrics")
    assert probe.query().startswith("/metrics/?name[]=")
    assert "vllm:cache_config_info" in names_asked(probe)
    assert read(probe, vllm_page()).capacity_tokens == 16_000
    assert "vllm:cache_config_info" not in names_asked(probe)
    assert {"vllm:num_requests_waiting", "process_start_time_seconds"} <= names_asked(probe)
    assert read(probe, vllm_page(waiting=1, constants=False)).capacity_tokens == 16_000


@pytest.mark.parametrize(("status", "body"), [(404, b"nope"), (307, b""), (200, b""), (200, b"[]"), (200, b"a 1\n")])
def test_an_engine_that_does_not_filter_is_asked_for_the_whole_page_from_then_on(status: int, body: bytes) -> None:
    probe = Probe(VLLM, "/metrics")
    assert probe.answer(status, body, 0.0) is Again.UNFILTERED
    assert probe.query() == "/metrics"
    read(probe, vllm_page())
    assert probe.query() == "/metrics"


def test_an_incomplete_filtered_page_is_not_enough() -> None:
    assert Probe(VLLM, "/metrics").answer(200, b"vllm:num_requests_running 1\n", 0.0) is Again.UNFILTERED


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, " (it wants an API key: --model-server-token-file)"),
        (404, " (SGLang needs --enable-metrics; for another path: --model-server-metrics-path)"),
        (503, ""),
    ],
)
def test_what_is_wrong_with_the_page_is_told_with_the_setting(status: int, hint: str) -> None:
    probe = Probe(VLLM, "/metrics")
    assert probe.answer(status, b"", 0.0) is Again.UNFILTERED
    with pytest.raises(StatusError, match=f"status {status}{re.escape(hint)}$"):
        probe.answer(status, b"", 0.0)


def test_an_error_of_the_server_leads_to_the_whole_page_and_later_back_to_the_filter() -> None:
    probe = Probe(VLLM, "/metrics")
    assert probe.answer(500, b"", 0.0) is Again.UNFILTERED
    with pytest.raises(StatusError, match="503"):
        probe.answer(503, b"", 0.0)
    assert names_asked(probe), "the engine is not up yet"
    assert probe.answer(500, b"", 1.0) is Again.UNFILTERED
    for turn in range(PLAIN_PAGES):
        assert probe.query() == "/metrics"
        assert read(probe, vllm_page(waiting=1), turn + 2.0).waiting == 1
    assert names_asked(probe)


def test_an_engine_without_metrics_is_asked_anew_each_time() -> None:
    probe = Probe(VLLM, "/metrics")
    for _ in range(2):
        assert probe.answer(404, b"", 0.0) is Again.UNFILTERED
        with pytest.raises(StatusError):
            probe.answer(404, b"", 0.0)
    assert probe.answer(200, b"", 0.0) is Again.UNFILTERED
    with pytest.raises(ScrapeError, match="vllm:num_requests_waiting"):
        probe.answer(200, b"other 1\n", 0.0)


# ---------------------------------------------------------------- restarts


def seen(probe: Probe, **page: float | None) -> None:
    read(probe, vllm_page(**page))  # type: ignore[arg-type]


def test_a_later_start_time_is_another_process() -> None:
    probe = Probe(VLLM, "/metrics")
    seen(probe, start=1000.0, computed=50)
    assert probe.answer(200, vllm_page(start=1000.01, computed=60), 1.0) is Again.RESTARTED
    assert "vllm:cache_config_info" in names_asked(probe), "the constants may differ"
    assert read(probe, vllm_page(start=1000.01, computed=60), 1.0).capacity_tokens == 16_000


def test_an_earlier_start_time_is_not_another_process() -> None:
    probe = Probe(VLLM, "/metrics")
    seen(probe, start=1000.0, computed=50)
    seen(probe, start=999.0, computed=60)
    probe.lost()
    seen(probe, start=998.0, computed=60)


def test_a_counter_that_goes_back_is_another_process() -> None:
    probe = Probe(VLLM, "/metrics")
    seen(probe, start=None, computed=50)
    seen(probe, start=None, computed=50)
    assert probe.answer(200, vllm_page(start=None, computed=49), 1.0) is Again.RESTARTED


def test_an_engine_that_was_away_but_went_on_counting_is_the_same_process() -> None:
    probe = Probe(VLLM, "/metrics")
    seen(probe, start=1000.0, computed=50)
    probe.lost()
    seen(probe, start=1000.0, computed=50)
    seen(probe, start=None, computed=60)
    probe.lost()
    seen(probe, start=None, computed=60)


@pytest.mark.parametrize("running", [0, 1])
def test_an_engine_that_was_away_and_has_nothing_to_prove_its_identity_is_another_process(running: int) -> None:
    page = b"vllm:num_requests_running %d\nvllm:num_requests_waiting 0\n" % running
    probe = Probe(VLLM, "/metrics")
    read(probe, page)
    read(probe, page)
    probe.lost()
    assert probe.answer(200, page, 1.0) is Again.RESTARTED
    read(probe, page)


def test_an_engine_that_was_never_seen_did_not_restart() -> None:
    probe = Probe(VLLM, "/metrics")
    probe.lost()
    seen(probe)


def test_the_filter_is_tried_again_after_a_restart_or_a_silence() -> None:
    for event in (Probe.lost, Probe.forget):
        probe = Probe(VLLM, "/metrics")
        probe.answer(404, b"", 0.0)
        seen(probe)
        assert not names_asked(probe)
        event(probe)
        assert "vllm:cache_config_info" in names_asked(probe)


# ---------------------------------------------------------------- over time


def test_an_idle_engines_unchanged_page_is_as_fresh_as_it_was_asked_for() -> None:
    probe = Probe(VLLM, "/metrics")
    first = read(probe, vllm_page(), 1.0)
    second = read(probe, vllm_page(), 2.0)
    assert (first.observed_at, second.observed_at) == (1.0, 2.0)
    assert read(probe, vllm_page(waiting=1), 3.0).waiting == 1
    assert read(probe, vllm_page(), 4.0).waiting == 0


def test_an_idle_engines_unchanged_page_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Probe(VLLM, "/metrics")
    read(probe, vllm_page())
    monkeypatch.setattr("warmroute.engines.probe.ScrapedPage", None)
    read(probe, vllm_page())


def test_clients_that_went_away_before_a_restart_say_nothing_of_the_new_process() -> None:
    counters = (
        'vllm:time_to_first_token_seconds_count{{engine="0"}} {}\nvllm:request_prompt_tokens_count{{engine="0"}} {}'
    )
    probe = Probe(VLLM, "/metrics")
    read(probe, vllm_page(extra=counters.format(10, 4)))
    new = vllm_page(running=3, start=2000.0, extra=counters.format(3, 0))
    assert probe.answer(200, new, 1.0) is Again.RESTARTED
    assert read(probe, new, 1.0).awaiting_first_token == 0


def test_prefill_speed_is_measured_while_requests_wait_and_survives_a_restart() -> None:
    probe = Probe(VLLM, "/metrics")
    for i in range(6):
        finished = f"vllm:request_prompt_tokens_count {i * 10}"
        state = read(probe, vllm_page(waiting=4, computed=i * 4_000, extra=finished), i * 0.5)
    assert state.prefill_rate == pytest.approx(8_000, rel=0.01)
    assert probe.answer(200, vllm_page(start=2000.0), 3.0) is Again.RESTARTED
    assert read(probe, vllm_page(start=2000.0), 3.0).prefill_rate == pytest.approx(8_000, rel=0.01)


def test_decoding_speed_is_measured_and_survives_a_restart() -> None:
    counters = (
        'vllm:inter_token_latency_seconds_count{{engine="0"}} {}\nvllm:inter_token_latency_seconds_sum{{engine="0"}} {}'
    )
    probe = Probe(VLLM, "/metrics")
    for i in range(12):  # 16 answers at once, each of 20 tokens a second
        state = read(probe, vllm_page(running=16, extra=counters.format(i * 160, i * 8.0)), i * 0.5)
    assert state.decode_rate == pytest.approx(20 * (1 + 16 / 64))
    assert probe.answer(200, vllm_page(start=2000.0, extra=counters.format(0, 0.0)), 7.0) is Again.RESTARTED
    state = read(probe, vllm_page(start=2000.0, extra=counters.format(0, 0.0)), 7.0)
    assert state.decode_rate == pytest.approx(25)
    assert {"vllm:inter_token_latency_seconds_sum", "vllm:inter_token_latency_seconds_count"} <= names_asked(probe)


def test_the_pool_annotation_of_ack_names_the_engine_in_its_own_way() -> None:
    assert DIALECTS["trt-llm"] is DIALECTS["triton-tensorrt-llm"]
