"""What an engine's metrics page means for the next decisions: pages in, picks out. docs/engines.md lists the facts."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest

from tests.factories import routing_constants
from warmroute.engines.dialects import DIALECTS
from warmroute.engines.probe import Probe
from warmroute.pool.endpoint import EndpointSpec, EngineState, ServedModels
from warmroute.pool.pool import Pool
from warmroute.request.inference import InferenceRequest, PromptPart
from warmroute.routing.decision import Decision
from warmroute.routing.router import Router

TOKEN = 4
"""Bytes of prompt for each token, as the router assumes before it has learned."""
SYSTEM = 1500
"""Tokens of the system prompt that the requests share."""


def request(*texts: tuple[str, int], model: str = "m") -> InferenceRequest:
    """A prompt of texts, each with its length in tokens."""
    parts = tuple(
        PromptPart((text * (TOKEN * tokens))[: TOKEN * tokens].encode(), TOKEN * tokens) for text, tokens in texts
    )
    return InferenceRequest(
        model, seed=model.encode(), parts=parts, prompt_bytes=sum(part.prompt_bytes for part in parts)
    )


class Fleet:
    """Engines e0, e1, ... with a router in front of them. Each engine has a page and what it was sent."""

    def __init__(self, size: int, engine: str = "vllm") -> None:
        self.pool = Pool()
        self.pool.replace([EndpointSpec("ns", f"e{k}", f"10.0.0.{k}", 8000) for k in range(size)], 0.0)
        self.router = Router(self.pool, routing_constants(), rng=random.Random(1), now=0.0)
        self.probes = {f"e{k}": Probe(DIALECTS[engine], "/metrics", split_ranks=True) for k in range(size)}
        self.sent: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()

    def page(self, name: str, body: str, now: float) -> EngineState:
        """A scrape of the engine."""
        endpoint, probe = self.pool.endpoints[f"ns/{name}"], self.probes[name]
        state = probe.answer(200, body.encode(), now)
        assert isinstance(state, EngineState)
        for member, each in zip(self.pool.set_ranks(endpoint, len(probe.states), now), probe.states, strict=True):
            self.pool.observed(member, each, now)
        return state

    def send(self, prompt: InferenceRequest, now: float) -> Decision:
        decision = self.router.pick(prompt, now)
        assert isinstance(decision, Decision)
        self.sent[decision.endpoint.spec.name] += 1
        self.tokens[decision.endpoint.spec.name] += prompt.prompt_bytes // TOKEN
        return decision


def vllm(
    *,
    waiting: int = 0,
    running: int = 0,
    requests: int = 0,
    tokens: int = 0,
    hits: int = 0,
    caching: str = "True",
    blocks: int = 60_000,
    block_size: int = 16,
    extra: str = "",
    start: int = 1000,
) -> str:
    """A page of an engine that has answered ``requests`` prompts of ``tokens`` tokens in all."""
    looked_up = tokens if caching == "True" else 0
    return (
        f"process_start_time_seconds {start}\n"
        f"vllm:num_requests_running {running}\nvllm:num_requests_waiting {waiting}\n"
        f'vllm:cache_config_info{{block_size="{block_size}",num_gpu_blocks="{blocks}",'
        f'enable_prefix_caching="{caching}"}} 1\n'
        f"vllm:prefix_cache_queries_total {looked_up}\nvllm:prefix_cache_hits_total {hits}\n"
        f"vllm:time_to_first_token_seconds_count {requests + running}\nvllm:request_prompt_tokens_count {requests}\n"
        f"vllm:request_prompt_tokens_sum {tokens}\n"
        f'vllm:prompt_tokens_by_source_total{{source="local_compute"}} {tokens - hits}\n{extra}'
    )


@pytest.mark.parametrize("caching", ["False", "says nothing"])
def test_requests_with_one_system_prompt_spread_over_engines_without_a_cache(caching: str) -> None:
    """Without the label, an engine that finishes prompts and looks none up has none."""
    fleet, decisions = Fleet(3), []
    for turn in range(60):
        now = 0.2 * turn
        for name in fleet.probes:
            page = vllm(requests=fleet.sent[name], tokens=fleet.tokens[name], caching=caching)
            fleet.page(name, page, now)
        decisions.append(fleet.send(request(("s", SYSTEM), (str(turn), 20)), now + 0.1))
    settled = decisions[30:]
    assert {decision.cached_tokens for decision in settled} == {0.0}
    picks = Counter(decision.endpoint.spec.name for decision in settled)
    assert min(picks.values()) >= 8, picks
    assert [fleet.router.held(load) for load in fleet.router.loads] == [(0, 0.0)] * 3


def test_a_cache_that_is_off_is_forgotten_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    fleet = Fleet(1)
    for turn in range(30):
        fleet.page("e0", vllm(requests=turn, tokens=4000 * turn, caching="says nothing"), 0.2 * turn)
        fleet.send(request((str(turn), 4000)), 0.2 * turn + 0.1)
    assert len([record for record in caplog.records if "forgetting" in record.message]) == 1


def test_an_engine_that_keeps_nothing_and_does_not_say_so_is_found_out_by_its_hits() -> None:
    """SGLang with --disable-radix-cache: its series of cached tokens, which appears with the first one, never appears."""
    fleet, decisions = Fleet(3, "sglang"), []
    for turn in range(120):
        now = 0.2 * turn
        for name in fleet.probes:
            page = (
                "sglang:num_running_reqs 0\nsglang:num_queue_reqs 0\nsglang:max_total_num_tokens 900000\n"
                f"sglang:prompt_tokens_total {fleet.tokens[name]}\n"
                f"sglang:num_requests_total {fleet.sent[name]}\n"
            )
            fleet.page(name, page, now)
        decisions.append(fleet.send(request(("s", SYSTEM), (str(turn), 20)), now + 0.1))
    settled = decisions[60:]
    assert max(decision.cached_tokens for decision in settled) < 0.1 * SYSTEM
    assert min(Counter(decision.endpoint.spec.name for decision in settled).values()) >= 10


def test_an_engine_that_counts_lookups_and_no_hits_is_believed() -> None:
    """A release of TensorRT-LLM without ``trtllm_prompt_cached_tokens_total``."""
    fleet = Fleet(1, "trtllm-serve")
    for turn in range(60):
        page = (
            "trtllm_num_requests_waiting 0\ntrtllm_num_requests_running 0\ntrtllm_kv_cache_max_blocks 30000\n"
            f"trtllm_kv_cache_tokens_per_block 32\ntrtllm_prompt_tokens_total {fleet.tokens['e0']}\n"
            f"trtllm_request_success_total {turn}\n"
        )
        fleet.page("e0", page, 0.2 * turn)
        decision = fleet.send(request(("s", SYSTEM), (str(turn), 20)), 0.2 * turn + 0.1)
    assert decision.cached_tokens > 0.9 * SYSTEM


def test_a_queue_of_an_engine_without_a_cache_is_work() -> None:
    """Lookups that stay 0 are not prompts of no work."""
    fleet = Fleet(3)
    for turn in range(3):
        for name, waiting in (("e0", 20), ("e1", 4), ("e2", 4)):
            fleet.page(
                name,
                vllm(waiting=waiting, running=8, requests=100 + turn, tokens=4000 * (100 + turn), caching="False"),
                0.2 * turn,
            )
    loads = {load.endpoint.spec.name: fleet.router.load_of(load, 0.5) for load in fleet.router.loads}
    assert loads["e0"][0] == 20
    assert loads["e0"][2] > 20 * 3000
    assert [fleet.send(request((str(k), 200)), 0.5).endpoint.spec.name for k in range(6)].count("e0") == 0


def test_a_prompt_is_found_in_whole_blocks() -> None:
    fleet = Fleet(1)
    fleet.page("e0", vllm(block_size=1056, blocks=500), 0.0)
    fleet.send(request(("s", 5000)), 0.1)
    assert fleet.send(request(("s", 5000), ("q", 700)), 0.2).cached_tokens == 4 * 1056
    assert fleet.send(request(("s", 900), ("q", 10)), 0.3).cached_tokens == 0.0


def test_a_whole_prompt_that_is_cached_computes_its_last_block() -> None:
    fleet = Fleet(1)
    fleet.page("e0", vllm(block_size=64, blocks=500), 0.0)
    fleet.send(request(("s", 1600)), 0.1)
    assert fleet.send(request(("s", 1600)), 0.2).cached_tokens == 1536


def warm(fleet: Fleet, *, until: float) -> None:
    """One engine answers the turns of a conversation and finds each one's beginning."""
    hits = 0
    for turn in range(30):
        now = until * turn / 30
        fleet.page("e0", vllm(requests=turn, tokens=fleet.tokens["e0"], hits=hits), now)
        hits += int(fleet.send(request(("s", 5000), (str(turn % 10), 200)), now + 0.01).cached_tokens)
    fleet.hits = hits  # type: ignore[attr-defined]


SLEEP = (
    'vllm:engine_sleep_state{{sleep_state="awake"}} {}\nvllm:engine_sleep_state{{sleep_state="weights_offloaded"}} {}\n'
)


def test_a_sleeping_engine_has_lost_its_cache() -> None:
    fleet = Fleet(1)
    warm(fleet, until=10.0)
    prompt, hits = request(("s", 5000), ("0", 200)), fleet.hits  # type: ignore[attr-defined]
    after = {"requests": 30, "tokens": fleet.tokens["e0"], "hits": hits}
    fleet.page("e0", vllm(**after, extra=SLEEP.format(1, 0)), 10.1)
    assert fleet.router.pick(prompt, 10.2).cached_tokens > 5000  # type: ignore[union-attr]
    fleet.page("e0", vllm(**after, extra=SLEEP.format(0, 1)), 11.0)
    fleet.page("e0", vllm(**after, extra=SLEEP.format(1, 0)), 12.0)
    assert fleet.send(prompt, 12.1).cached_tokens == 0.0


def test_a_cache_that_was_reset_is_forgotten_when_the_hits_end() -> None:
    """``/reset_prefix_cache``, a sleep between two scrapes, or an engine process that restarted behind its API server."""
    fleet = Fleet(1)
    warm(fleet, until=10.0)
    hits = fleet.hits  # type: ignore[attr-defined]
    requests, forgotten = 30, False
    for turn in range(40):
        now = 11.0 + turn
        fleet.page("e0", vllm(requests=requests, tokens=fleet.tokens["e0"], hits=hits), now)
        requests += 1
        forgotten = forgotten or fleet.send(request(("s", 5000), (str(turn % 10), 200)), now + 0.1).cached_tokens == 0.0
    assert forgotten


def test_an_operator_says_that_a_cache_was_emptied() -> None:
    fleet = Fleet(1)
    fleet.page("e0", vllm(), 0.0)
    fleet.send(request(("s", 5000)), 0.1)
    fleet.pool.cache_emptied(fleet.pool.endpoints["ns/e0"], 0.2)
    assert fleet.send(request(("s", 5000)), 0.3).cached_tokens == 0.0
    assert fleet.send(request(("s", 5000)), 0.4).cached_tokens > 4900


def test_an_engine_with_a_host_tier_of_known_size_keeps_as_much() -> None:
    fleet = Fleet(1, "sglang")
    page = (
        "sglang:num_running_reqs 0\nsglang:num_queue_reqs 0\n"
        'sglang:max_total_num_tokens{tp_rank="0"} 20000\nsglang:hicache_host_total_tokens{tp_rank="0"} 90000\n'
    )
    fleet.page("e0", page, 0.0)
    for name in "abcdefgh":
        fleet.send(request((name, 10_000)), 0.1)
    assert fleet.send(request(("a", 10_000)), 0.2).cached_tokens > 9000


def test_an_engine_that_finds_prompts_in_a_second_tier_keeps_more_than_its_gpu_holds() -> None:
    """vLLM with CPU offloading or LMCache: its page says nothing of the tier's size."""
    fleet = Fleet(1)
    names = "abcdefgh"
    for turn in range(40):
        tier = (
            f"vllm:external_prefix_cache_queries_total {fleet.tokens['e0']}\n"
            f"vllm:external_prefix_cache_hits_total {max(0, fleet.tokens['e0'] - 80_000)}\n"
        )
        fleet.page("e0", vllm(requests=turn, tokens=fleet.tokens["e0"], blocks=20_000 // 16, extra=tier), 1.0 * turn)
        cached = fleet.send(request((names[turn % 8], 10_000)), turn + 0.5).cached_tokens
    assert cached > 9000


LORA = 'vllm:lora_requests_info{{max_lora="2",running_lora_adapters="{}",waiting_lora_adapters=""}} {}\n'


def test_short_requests_for_an_adapter_stay_on_one_engine() -> None:
    """No scrape finds one of them running; the page still shows that the adapter was used."""
    fleet, picks = Fleet(3), []
    for name in fleet.probes:
        fleet.page(name, vllm(extra=LORA.format("", 1.79e9)), 0.0)
    used = LORA.format("tuned", 1.79e9 + 0.5) + LORA.format("", 1.79e9 + 1)
    for turn in range(6):
        now = 1.0 + 3 * turn
        for name in fleet.probes:
            fleet.page(name, vllm(extra=used if name == "e1" else LORA.format("", 1.79e9)), now)
        picks.append(fleet.send(request((str(turn), 40), model="tuned"), now + 0.1).endpoint.spec.name)
    assert picks == ["e1"] * 6


def test_an_adapter_used_just_before_the_first_page_is_known() -> None:
    fleet = Fleet(3)
    for name in fleet.probes:
        used = LORA.format("tuned", 1.79e9 - 0.5) if name == "e2" else ""
        fleet.page(name, vllm(extra=used + LORA.format("", 1.79e9) + LORA.format("old", 1.79e9 - 3600)), 0.0)
    assert {fleet.send(request((str(k), 40), model="tuned"), 5.0 * k).endpoint.spec.name for k in range(6)} == {"e2"}
    assert fleet.pool.endpoints["ns/e2"].state.loaded_adapters == {"tuned"}  # type: ignore[union-attr]


def test_the_present_adapter_counts_though_several_processes_add_up_the_times_of_an_old_one() -> None:
    fleet = Fleet(1)
    old, present = LORA.format("old", 8 * 1.79e9), "present"
    fleet.page("e0", vllm(extra=old + LORA.format("", 1.79e9)), 0.0)
    fleet.page("e0", vllm(extra=old + LORA.format("", 1.79e9)), 1.0)
    state = fleet.page("e0", vllm(extra=old + LORA.format(present, 1.79e9 + 1) + LORA.format("", 1.79e9)), 2.0)
    assert state.loaded_adapters == {present}
    assert state.max_adapters == 2


def test_an_adapter_that_the_engine_lists_as_loaded_is_known() -> None:
    fleet = Fleet(3)
    for name in fleet.probes:
        loaded = 'vllm:lora_adapter_loaded{{adapter_name="{}",level="{}",pinned="False"}} 1\n'
        extra = loaded.format("tuned", "gpu") if name == "e2" else loaded.format("tuned", "cpu")
        fleet.page(name, vllm(extra=extra), 0.0)
    assert [fleet.send(request((str(k), 40), model="tuned"), 5.0 * k).endpoint.spec.name for k in range(4)] == [
        "e2"
    ] * 4


def test_a_model_goes_only_to_the_engines_that_list_it() -> None:
    """An engine without the adapter answers 404. Engines whose list is not known are taken to serve it."""
    fleet = Fleet(4)
    for name in fleet.probes:
        fleet.page(name, vllm(), 0.0)
        if name != "e3":
            tuned = frozenset({"tuned"}) if name == "e1" else frozenset()
            fleet.pool.serves(fleet.pool.endpoints[f"ns/{name}"], ServedModels(frozenset({"m"}) | tuned, tuned), 0.0)

    def picked(model: str, count: int = 60) -> set[str]:
        sends = (fleet.send(request((f"{model}{k}", 400), model=model), 0.1) for k in range(count))
        return {decision.endpoint.spec.name for decision in sends}

    assert picked("tuned", 4) == {"e1", "e3"}
    assert picked("m") == {"e0", "e1", "e2", "e3"}
    assert picked("listed by nobody") == {"e0", "e1", "e2", "e3"}
    fleet.pool.unreachable(fleet.pool.endpoints["ns/e1"], 0.2)
    fleet.pool.unreachable(fleet.pool.endpoints["ns/e3"], 0.2)
    assert picked("tuned") == {"e1", "e3"}, "the others would answer 404 for certain"


def test_a_new_cache_generation_forgets_what_was_cached() -> None:
    fleet = Fleet(1)
    fleet.page("e0", vllm(), 0.0)
    fleet.send(request(("s", 5000)), 0.1)
    spec = fleet.pool.endpoints["ns/e0"].spec
    fleet.pool.upsert(dataclasses.replace(spec, cache_generation="2"), 0.2)
    assert fleet.send(request(("s", 5000)), 0.3).cached_tokens == 0.0
    fleet.pool.upsert(dataclasses.replace(spec, cache_generation="2"), 0.4)
    assert fleet.send(request(("s", 5000)), 0.5).cached_tokens > 4900


def test_a_page_whose_names_have_another_beginning() -> None:
    """Ray Serve LLM."""
    body = vllm(waiting=3, requests=10, tokens=1000).replace("vllm:", "ray_vllm:")
    state = Probe(DIALECTS["vllm"].renamed("ray_vllm:"), "/metrics").answer(200, body.encode(), 0.0)
    assert isinstance(state, EngineState)
    assert (state.waiting, state.capacity_tokens, state.prefix_queries_total) == (3, 960_000, 1000.0)


def rank(number: int, *, waiting: int = 0) -> str:
    """The part of a page that one of several data-parallel engines has."""
    return (
        f'vllm:num_requests_running{{engine="{number}"}} 0\nvllm:num_requests_waiting{{engine="{number}"}} {waiting}\n'
        f'vllm:cache_config_info{{engine="{number}",block_size="16",num_gpu_blocks="60000"}} 1\n'
        f'vllm:prefix_cache_queries_total{{engine="{number}"}} 0\nvllm:prefix_cache_hits_total{{engine="{number}"}} 0\n'
    )


def test_each_rank_behind_a_port_has_a_cache_of_its_own() -> None:
    fleet = Fleet(1)
    fleet.page("e0", "".join(rank(number) for number in range(4)), 0.0)
    first = {name: fleet.send(request((name, 3000)), 0.1).endpoint for name in "abcd"}
    assert sorted(endpoint.spec.rank or 0 for endpoint in first.values()) == [0, 1, 2, 3], "four engines share the load"
    assert {endpoint.target for endpoint in first.values()} == {"10.0.0.0:8000"}
    for name, endpoint in first.items():
        decision = fleet.send(request((name, 3000), ("next turn", 100)), 0.2)
        assert decision.endpoint is endpoint
        assert decision.cached_tokens > 2900


def test_a_rank_with_a_queue_gets_less() -> None:
    fleet = Fleet(1)
    fleet.page("e0", "".join(rank(number, waiting=9 if number == 2 else 0) for number in range(4)), 0.0)
    assert {fleet.send(request((str(k), 500)), 0.1).endpoint.spec.rank for k in range(12)} == {0, 1, 3}


def test_other_endpoints_named_to_envoy_have_the_chosen_ones_rank() -> None:
    """There is one header for the rank, and a retry on another endpoint has it, too."""
    fleet = Fleet(3)
    fleet.router.apply(routing_constants(max_endpoints=3))
    for name in fleet.probes:
        fleet.page(name, "".join(rank(number) for number in range(2)), 0.0)
    targets = fleet.send(request(("a", 500)), 0.1).targets.split(",")
    assert sorted(targets) == ["10.0.0.0:8000", "10.0.0.1:8000", "10.0.0.2:8000"]


def test_two_names_of_one_model_share_a_cache() -> None:
    """An engine started with two served names."""
    fleet = Fleet(1)
    fleet.page("e0", vllm(), 0.0)
    names = ServedModels(frozenset({"a", "b", "c"}), aliases={"b": "a"})
    fleet.pool.serves(fleet.pool.endpoints["ns/e0"], names, 0.0)
    fleet.send(request(("s", 5000), model="a"), 0.1)
    assert fleet.send(request(("s", 5000), model="b"), 0.2).cached_tokens > 4900
    assert fleet.send(request(("s", 5000), model="c"), 0.3).cached_tokens == 0.0


def test_an_engine_that_is_stuck_while_idle_is_left_out_after_seconds() -> None:
    """Its page answers, its gauges are 0 and its counters stand still; no request returns."""
    fleet, picks = Fleet(3), []
    for turn in range(400):
        now = 0.1 * turn
        for name in fleet.probes:
            done = 0 if name == "e0" else fleet.sent[name]
            responses = f'http_requests_total{{method="POST",status="2xx"}} {done}\n'
            tokens = 0 if name == "e0" else fleet.tokens[name]
            fleet.page(name, vllm(requests=done, tokens=tokens, extra=responses), now)
        fleet.router.upkeep(now)
        picks.append(fleet.send(request((str(turn), 250)), now + 0.05).endpoint.spec.name)
    assert picks[150:].count("e0") <= 2, "only trials"


def test_an_engine_whose_page_takes_long_keeps_about_its_share() -> None:
    """Its pages come 1.5 s late and as rarely; each request takes a second. Ten requests a second for three engines."""
    fleet: Fleet = Fleet(3)
    sent: dict[str, list[float]] = {name: [] for name in fleet.probes}
    late: tuple[float, str] | None = None

    def page(name: str, now: float) -> str:
        done = sum(at <= now - 1.0 for at in sent[name])
        running = len(sent[name]) - done
        return vllm(requests=done, running=running, tokens=250 * len(sent[name]))

    for turn in range(300):
        now = 0.1 * turn
        for name in ("e1", "e2"):
            fleet.page(name, page(name, now), now)
        if late is None:
            late = now, page("e0", now)
        elif now - late[0] >= 1.5:
            fleet.page("e0", late[1], late[0])
            late = None
        sent[fleet.send(request((str(turn), 250)), now + 0.05).endpoint.spec.name].append(now + 0.05)
    assert len(sent["e0"]) > 0.2 * 300
