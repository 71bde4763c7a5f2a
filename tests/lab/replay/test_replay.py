"""The replay: virtual time, what happens to pods, figures, and the command."""

from __future__ import annotations

import io
import json
import os
import random
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.recordings import mooncake_trace
from warmroute.cli import app
from warmroute.errors import ConfigurationError
from warmroute.settings import Settings
from warmroute_lab.replay import comparison, scenarios
from warmroute_lab.replay.baselines import BASELINES, RoundRobin
from warmroute_lab.replay.fleet import DOWN, Fleet, PodEvent, profile, saturation, with_cache
from warmroute_lab.replay.outcome import Outcome, Sample
from warmroute_lab.replay.policy import Policy, RouterPolicy
from warmroute_lab.replay.policy_registry import names, policy_factory
from warmroute_lab.replay.replay import Replay
from warmroute_lab.replay.trace import Identities, Trace, TracedRequest, conversation, sorted_by_time
from warmroute_lab.replay.trace_files import read
from warmroute_lab.simulator.profile import DEFAULT_PROFILE

pytestmark = pytest.mark.integration

SMALL = profile(f"{DEFAULT_PROFILE}/8")


class Follow(Policy):
    """Chooses what it is told, and remembers what it hears."""

    def __init__(self, *choices: int) -> None:
        self.choices = list(choices)
        self.heard: list[tuple[str, int, float]] = []

    def choose(self, request: TracedRequest, number: int, now: float) -> int | None:
        self.heard.append(("choose", number, now))
        return self.choices.pop(0) if len(self.choices) > 1 else self.choices[0]

    def finished(self, number: int, now: float) -> None:
        self.heard.append(("finished", number, now))

    def unreachable(self, pod: int, now: float) -> None:
        self.heard.append(("unreachable", pod, now))

    def restarted(self, pod: int, now: float) -> None:
        self.heard.append(("restarted", pod, now))

    def joined(self, pod: int, now: float) -> None:
        self.heard.append(("joined", pod, now))

    def left(self, pod: int, now: float) -> None:
        self.heard.append(("left", pod, now))

    def times(self, what: str) -> list[float]:
        return [at for kind, _, at in self.heard if kind == what]


def run(requests: list[TracedRequest], picker: Policy, fleet: Fleet | None = None, speedup: float = 1.0) -> Outcome:
    fleet = fleet or Fleet((SMALL, SMALL))
    return Replay(Trace("test", requests), fleet, lambda rng: picker, strategy="test", speedup=speedup).run()


def test_a_warm_engine_answers_sooner() -> None:
    text = Identities().text(4096)
    requests = [TracedRequest(at, text, 5) for at in (0.0, 10.0, 20.0)]
    outcome = run(requests, Follow(0, 0, 1))
    cold, warm, elsewhere = outcome.ttft
    assert warm < cold / 3
    assert elsewhere == pytest.approx(cold, rel=0.05)
    assert outcome.pods == [0, 0, 1]
    assert outcome.hit_rate == pytest.approx(1 / 3, abs=0.01)


def test_a_turn_waits_for_the_answer_before_it_and_hits_it() -> None:
    identities = Identities()
    requests = list(conversation(identities, 1.0, [(500, 200, 0.0), (12, 5, 2.0)], first=0, opening=()))
    picker = Follow(0)
    outcome = run(requests, picker)
    assert picker.times("choose")[1] == pytest.approx(picker.times("finished")[0] + 2.0)
    assert outcome.cached_tokens == (500 + 200 - 1) // 16 * 16


def test_the_speedup_compresses_arrivals_only() -> None:
    requests = [TracedRequest(at, Identities().text(100), 50) for at in (0.0, 100.0)]
    slow, fast = Follow(0), Follow(0)
    plain, quick = run(requests, slow), run(requests, fast, speedup=4.0)
    assert slow.times("choose") == [0.0, 100.0]
    assert fast.times("choose") == [0.0, 25.0]
    assert plain.e2e == pytest.approx(quick.e2e, rel=0.01)


def test_a_restart_loses_the_cache_and_repeats_what_was_under_way() -> None:
    text = Identities().text(4096)
    requests = [TracedRequest(0.0, text, 5), TracedRequest(4.9, text, 500), TracedRequest(40.0, text, 5)]
    picker = Follow(0)
    outcome = run(requests, picker, Fleet((SMALL,), restarts=(PodEvent(5.0, 0),)))
    assert outcome.retries > 1
    assert 20.1 < outcome.ttft[1] < 25.0  # from the first attempt on, over 20 s without an engine
    assert outcome.e2e[1] > outcome.ttft[1]
    assert [kind for kind, _, _ in picker.heard if kind in {"unreachable", "restarted"}][-1] == "restarted"
    assert min(picker.times("unreachable")) < 7.5
    assert len(picker.times("restarted")) == 1


def test_an_engine_that_is_down_cannot_die_again() -> None:
    requests = [TracedRequest(at, Identities().text(500), 50) for at in (0.0, 4.9, 40.0)]
    twice = Fleet((SMALL,), restarts=(PodEvent(5.0, 0), PodEvent(5.0 + DOWN / 2, 0)))
    once = Fleet((SMALL,), restarts=(PodEvent(5.0, 0),))
    assert run(requests, Follow(0), twice).ttft == pytest.approx(run(requests, Follow(0), once).ttft)


def test_a_request_that_nobody_can_take_waits_from_its_first_sending() -> None:
    class Cautious(Follow):
        """Knows of no pod until there is one."""

        def choose(self, request: TracedRequest, number: int, now: float) -> int | None:
            return 0 if now > 30.0 else None

    outcome = run([TracedRequest(10.0, Identities().text(100), 5)], Cautious(0))
    assert outcome.ttft[0] > 20.0


def test_the_router_learns_the_length_of_a_token_from_what_engines_count() -> None:
    trace, fleet = scenarios.build("bursts", seed=1, pods=4, requests=1500)
    made: list[RouterPolicy] = []

    def make(rng: random.Random) -> Policy:
        picker = policy_factory("PREFIX_CACHE", Settings(bytes_per_token=3.0))(rng)
        assert isinstance(picker, RouterPolicy)
        made.append(picker)
        return picker

    Replay(trace, fleet, make, strategy="test", speedup=0.8, seed=1).run()
    assert made[0].router.bytes_per_token == pytest.approx(4.0, rel=0.15)


def test_an_answer_that_breaks_off_is_asked_for_anew_and_counts_from_there() -> None:
    requests = [TracedRequest(0.0, Identities().text(64), 4000)]
    died = 5.0
    outcome = run(requests, Follow(0), Fleet((SMALL,), restarts=(PodEvent(died, 0),)))
    assert DOWN < outcome.ttft[0] < DOWN + 1
    whole = run(requests, Follow(0))
    assert whole.e2e[0] > died > whole.ttft[0]
    assert outcome.e2e[0] == pytest.approx(outcome.ttft[0] - whole.ttft[0] + whole.e2e[0], rel=0.05)


def test_a_piece_is_one_checkpoint_whatever_its_number() -> None:
    """Also where its number is written with as many bytes as it stands for: 8 bytes across position 128."""
    request = TracedRequest(0.0, ((1, 31), (12345678, 2)), 5)
    assert list(request.chain.ends) == [4 * 31, 4 * 33]


def test_pods_come_and_go() -> None:
    requests = [TracedRequest(float(at), Identities().text(50), 5) for at in range(30)]
    picker = Follow(0)
    outcome = run(requests, picker, Fleet((SMALL,) * 2, scalings=(PodEvent(10.0, 4), PodEvent(20.0, 1))))
    assert picker.times("joined") == [0.0, 0.0, 10.0, 10.0]
    assert [(pod, at) for kind, pod, at in picker.heard if kind == "left"] == [(1, 20.0), (2, 20.0), (3, 20.0)]
    assert [len(sample.requests) for sample in outcome.samples[:9:8]] == [2, 2]
    assert {len(sample.requests) for sample in outcome.samples} == {1, 2, 4}


def test_pickers_share_the_requests() -> None:
    requests = [TracedRequest(float(at), Identities().text(50), 5) for at in range(9)]
    made: list[Follow] = []

    def new_policy(rng: random.Random) -> Policy:
        made.append(Follow(0))
        return made[-1]

    Replay(Trace("test", requests), Fleet((SMALL,), pickers=3), new_policy, strategy="test").run()
    assert [[number for kind, number, _ in picker.heard if kind == "choose"] for picker in made] == [
        [0, 3, 6],
        [1, 4, 7],
        [2, 5, 8],
    ]


def test_the_router_learns_from_scrapes_and_routes_to_the_warm_pod() -> None:
    identities = Identities()
    texts = [identities.text(3000) for _ in range(4)]
    requests = [TracedRequest(turn * 5 + i, text, 20) for turn in range(3) for i, text in enumerate(texts)]
    factory = policy_factory("PREFIX_CACHE", Settings())
    outcome = Replay(Trace("t", requests), Fleet((SMALL,) * 4), factory, strategy="PREFIX_CACHE").run()
    assert outcome.pods[:4] == outcome.pods[4:8] == outcome.pods[8:]
    assert len(set(outcome.pods)) == 4


def test_the_same_seed_gives_the_same_figures() -> None:
    def once() -> dict[str, str | float]:
        trace, fleet = scenarios.build("restart", seed=5, pods=4, requests=150)
        factory = policy_factory("PREFIX_CACHE", Settings())
        return Replay(trace, fleet, factory, strategy="PREFIX_CACHE", speedup=0.8, seed=5).run().figures()

    assert once() == once()


def test_imbalance() -> None:
    samples = [Sample(1.0, (2, 2)), Sample(2.0, (4, 0))]
    outcome = Outcome("s", "t", 1.0, [1.0], [1.0], [0], 10, 5, 0, samples)
    assert outcome.imbalance == pytest.approx(2 / 4)


# ---------------------------------------------------------------- fleets and loads


def test_saturation_is_where_round_robin_falls_behind() -> None:
    identities = Identities()
    requests = [TracedRequest(i / 4, identities.text(2000), 2) for i in range(200)]
    fleet = Fleet((SMALL, SMALL))
    full = saturation(Trace("test", requests), fleet.profiles)
    below = run(requests, RoundRobin(random.Random(1)), fleet, speedup=0.8 * full)
    above = run(requests, RoundRobin(random.Random(1)), fleet, speedup=1.5 * full)
    assert max(below.ttft) < 2.0
    assert max(above.ttft) > 5 * max(below.ttft)


def mean_ttft(plan: comparison.Plan, strategy: str, load: float) -> float:
    trace, fleet = plan.load()
    speedup = load * saturation(trace, fleet.profiles)
    replay = Replay(
        trace, fleet, policy_factory(strategy, Settings()), strategy=strategy, speedup=speedup, seed=plan.seed
    )
    return fmean(replay.run().ttft)


@pytest.mark.parametrize(
    "engines",
    [
        {"source": "shared-prompts", "pods": 4, "prefix_caching": False},
        {"source": "agents", "pods": 2, "profiles": [f"{DEFAULT_PROFILE}/16"], "cpu_tier": 4.0},
    ],
    ids=["cache off", "second tier"],
)
def test_the_router_finds_out_what_the_best_baselines_are_told(engines: dict[str, Any]) -> None:
    """At most 5 % more mean TTFT than the best of three with an exact index of what each engine keeps."""
    plan = comparison.Plan(strategies=[], seed=2, requests=250, **engines)
    best = min(mean_ttft(plan, name, 0.5) for name in ("lmetric", "lmetric-uncached", "mooncake"))
    assert mean_ttft(plan, "PREFIX_CACHE", 0.5) <= 1.05 * best


def test_a_fleet_without_a_cache_saturates_earlier() -> None:
    plan = comparison.Plan(source="full-hits", strategies=[], requests=200)
    trace, fleet = plan.load()
    _, off = replace(plan, prefix_caching=False).load()
    assert saturation(trace, off.profiles) < 0.7 * saturation(trace, fleet.profiles)
    with pytest.raises(ConfigurationError, match="--cpu-tier"):
        replace(plan, cpu_tier=-1.0).load()


def test_smaller_gpus_have_a_share_of_speed_and_cache() -> None:
    whole = profile(DEFAULT_PROFILE)
    assert SMALL.timing.token == 8 * whole.timing.token
    assert SMALL.timing.accept == whole.timing.accept
    assert SMALL.num_gpu_blocks == whole.num_gpu_blocks // 8
    assert profile(f"{DEFAULT_PROFILE}/4/2").num_gpu_blocks == SMALL.num_gpu_blocks
    for wrong in ("nothing", f"{DEFAULT_PROFILE}/x", f"{DEFAULT_PROFILE}/0.5"):
        with pytest.raises(ConfigurationError):
            profile(wrong)


@pytest.mark.parametrize("share", ["nan", "inf", "1e5"])
def test_an_engine_has_a_kv_cache(share: str) -> None:
    with pytest.raises(ConfigurationError, match="--profile"):
        profile(f"{DEFAULT_PROFILE}/{share}")


@pytest.mark.parametrize("tier", [-1.0, nan, inf])
def test_a_second_tier_has_a_size(tier: float) -> None:
    with pytest.raises(ConfigurationError, match="--cpu-tier must be a number of at least 0"):
        with_cache(SMALL, prefix_caching=True, tier=tier)


@pytest.mark.parametrize("text", ["3", "x@4", "3@", "@", "1@nan", "1@inf", "1@-5"])
def test_pod_events_are_checked(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--restart"):
        PodEvent.parse(text, "--restart")


def test_a_fleet_is_checked() -> None:
    wrong: list[dict[str, Any]] = [{"scalings": (PodEvent(1.0, number),)} for number in (0, 1001)]
    for fleet in (*wrong, {"restarts": (PodEvent(1.0, 2),)}, {"pickers": 0}):
        with pytest.raises(ConfigurationError):
            Fleet((SMALL, SMALL), **fleet)


# ---------------------------------------------------------------- traces and scenarios


def test_mooncakes_trace(tmp_path: Path) -> None:
    file = tmp_path / "mooncake_conversation.jsonl"
    file.write_text(mooncake_trace())
    trace = read(file, seed=1, limit=400)
    assert len(trace.requests) == 400
    first = trace.requests[0]
    assert sum(tokens for _, tokens in first.prompt) == first.prompt_tokens
    assert all(tokens == 512 for _, tokens in first.prompt[:-1])
    times = [request.at for request in trace.requests]
    assert times == sorted(times)
    assert len(set(times)) == 400  # spread over the three seconds to which the file rounds
    assert first.inference.prompt_bytes == 4 * first.prompt_tokens == first.chain.prompt_bytes


def test_sharegpt_conversations(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "x" * 400},
        {"from": "gpt", "value": "answer", "num_tokens": 33},
        {"from": "human", "value": "y" * 40},
    ]
    file = tmp_path / "conversations.json"
    file.write_text(json.dumps([{"conversations": turns}] * 3))
    requests = read(file, seed=1).requests
    assert len(requests) == 6
    first, second = requests[0], next(request for request in requests if request.after == 0)
    assert (first.prompt_tokens, first.output_tokens, second.prompt_tokens) == (100, 33, 100 + 33 + 10)
    assert second.prompt[: len(first.prompt)] == first.prompt
    assert second.output_tokens == 200


def test_a_trace_may_begin_at_any_time(tmp_path: Path) -> None:
    def at(start: int) -> list[float]:
        file = tmp_path / f"{start}.jsonl"
        entry = {"input_length": 100, "output_length": 5, "hash_ids": [1]}
        lines = [json.dumps({"timestamp": start + 3000 * k, **entry}) for k in range(5)]
        file.write_text("\n\n".join(lines) + "\n\n")
        return [request.at for request in read(file, seed=1).requests]

    assert at(1_700_000_000_000) == pytest.approx(at(0), abs=1e-3)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"timestamp": 0, "input_length": 0, "output_length": 1, "hash_ids": []}',
        '{"timestamp": 0}',
        '{"timestamp": 0, "input_length": 600, "hash_ids": [1]}',
        "[]",
    ],
)
def test_files_that_are_no_trace(tmp_path: Path, text: str) -> None:
    file = tmp_path / "trace"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match="trace") as refusal:
        read(file, seed=1)
    assert "Error(" not in str(refusal.value)


def test_sorting_keeps_turns_in_order() -> None:
    text = Identities().text(10)
    requests = sorted_by_time(
        [TracedRequest(2.0, text, 1), TracedRequest(2.0, text, 1, after=0), TracedRequest(1.0, text, 1)]
    )
    assert [request.after for request in requests] == [None, None, 1]


@pytest.mark.parametrize("name", scenarios.SCENARIOS)
def test_scenarios_saturate_the_fleet_at_1(name: str) -> None:
    trace, fleet = scenarios.build(name, seed=3, pods=4, requests=200)
    assert saturation(trace, fleet.profiles) == pytest.approx(1.0, rel=0.01)
    times = [request.at for request in trace.requests if request.after is None]
    assert times == sorted(times)
    assert all(request.after < number for number, request in enumerate(trace.requests) if request.after is not None)
    again, _ = scenarios.build(name, seed=3, pods=4, requests=200)
    other, _ = scenarios.build(name, seed=4, pods=4, requests=200)
    prompts = [request.prompt for request in trace.requests]
    assert [request.prompt for request in again.requests] == prompts
    assert [request.prompt for request in other.requests] != prompts


def test_the_scenarios_fleets() -> None:
    fleets = {name: scenarios.build(name, seed=1, pods=8, requests=50)[1] for name in scenarios.SCENARIOS}
    assert len({each.name for each in fleets["mixed-gpus"].profiles}) == 2
    assert len(fleets["restart"].restarts) == 1
    assert len(fleets["scale-out"].profiles) == 4
    assert fleets["scale-out"].scalings[0].number == 8
    assert fleets["three-pickers"].pickers == 3


# ---------------------------------------------------------------- the command


def test_names() -> None:
    assert names([]) == ["PREFIX_CACHE", "LEAST_REQUEST", "ROUND_ROBIN"]
    assert names(["llm-d", "all"])[:2] == ["llm-d", "PREFIX_CACHE"]
    assert len(names(["all", "all"])) == 1 + len(BASELINES)
    with pytest.raises(ConfigurationError, match="lmetric"):
        policy_factory("nothing", Settings())


def test_pickers_that_share_know_what_one_picker_knows(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    arguments = ["bench", "replay", "agents", "--requests", "400", "--pods", "4", "--speedup", "0.8", "--shared"]
    arguments += ["--strategy", "PREFIX_CACHE", "--strategy", "round-robin", "--pickers", "3", "--json", str(figures)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = {row["strategy"]: row for row in json.loads(figures.read_text())}
    assert list(rows) == [
        "PREFIX_CACHE, one picker",
        "PREFIX_CACHE, 3 sharing",
        "PREFIX_CACHE, 3 blind",
        "round-robin",
    ]
    one, sharing, blind = (row["hit_rate"] for name, row in rows.items() if name.startswith("PREFIX"))
    assert abs(one - sharing) < 0.02
    assert blind < one - 0.05


def test_the_table_says_that_a_strategy_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fail.py").write_text(
        "def f(request, candidates):\n    return [0.0] * (2 if request.model == 'sample' else 1)\n"
    )
    arguments = ["bench", "replay", "agents", "--requests", "60", "--pods", "3", "--speedup", "0.5", "--pickers", "2"]
    result = CliRunner().invoke(app, [*arguments, "--strategy", "fail.py:f", "--strategy", "PREFIX_CACHE"])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "fail.py:f failed for 60 of 60 requests; PREFIX_CACHE chose for them" in said
    assert said.count("failed for") == 1


def test_the_command(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.png"
    arguments = ["bench", "replay", "agents", "--requests", "60", "--pods", "3", "--speedup", "0.5", "--speedup", "1"]
    arguments += ["--strategy", "PREFIX_CACHE", "--strategy", "llm-d", "--restart", "1@2", "--scale-to", "4@1"]
    result = CliRunner().invoke(app, [*arguments, "--pickers", "2", "--json", str(figures), "--picture", str(picture)])
    assert result.exit_code == 0, result.output
    assert "PREFIX_CACHE" in result.output
    rows = json.loads(figures.read_text())
    assert [(row["strategy"], row["speedup"]) for row in rows] == [
        ("PREFIX_CACHE", 0.5),
        ("llm-d", 0.5),
        ("PREFIX_CACHE", 1.0),
        ("llm-d", 1.0),
    ]
    expected = "strategy scenario speedup requests ttft_mean ttft_p50 ttft_p90 ttft_p99 e2e_mean hit_rate imbalance"
    assert list(rows[0]) == expected.split()
    assert rows[0]["requests"] == 60
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_replayed_or_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["bench", "replay", *arguments, "--strategy", "random"])
        assert isinstance(result.exception, ConfigurationError), result.output
        return str(result.exception)

    trace = tmp_path / "trace.jsonl"
    ids = list(range(60_000 // 512 + 1))
    trace.write_text(json.dumps({"timestamp": 0, "input_length": 60_000, "output_length": 1, "hash_ids": ids}))
    profile = f"{DEFAULT_PROFILE}/40"
    assert "a request of 60001 tokens, but the KV cache of" in error(str(trace), "--profile", profile)
    missing = tmp_path / "missing" / "figures.json"
    assert f"the directory of {missing} does not exist" in error("bursts", "--requests", "10", "--json", str(missing))
    assert f"{tmp_path} is a directory" in error("bursts", "--requests", "10", "--json", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    monkeypatch.setattr(comparison, "compare", lambda *_: pytest.fail("it replays"))
    for option in ("--json", "--picture"):
        assert "you may not" in error("bursts", "--requests", "10", option, str(tmp_path / "figures"))


@pytest.mark.parametrize("speedup", ["0", "-1", "nan", "inf"])
def test_a_speedup_is_a_number_above_0(speedup: str) -> None:
    result = CliRunner().invoke(app, ["bench", "replay", "bursts", "--requests", "10", "--speedup", speedup])
    assert str(result.exception) == "--speedup must be a number above 0"


def test_a_trace_that_would_last_for_months_is_refused() -> None:
    """One wrong timestamp or think time, and a replay would not end."""
    text = Identities().text(16)
    late = [TracedRequest(0.0, text, 1), TracedRequest(40 * 86_400.0, text, 1)]
    thinking = [TracedRequest(0.0, text, 1), TracedRequest(1.0, text, 1, after=0, pause=1e297)]
    for requests in (late, thinking):
        with pytest.raises(ConfigurationError, match=r"more than 31 days.* timestamp .*think_ms.*--speedup"):
            run(requests, Follow(0))
    run(late, Follow(0), speedup=1e6)


def test_what_is_no_regular_file_is_said(tmp_path: Path) -> None:
    """The workers of `bench standings` read the trace again, which a pipe does not allow."""
    os.mkfifo(tmp_path / "pipe")
    for source, what in (
        (str(tmp_path / "pipe"), "is no regular file: write the trace to a file"),
        ("x" * 300, "File name too long"),
    ):
        result = CliRunner().invoke(app, ["bench", "replay", source])
        assert isinstance(result.exception, ConfigurationError)
        assert what in str(result.exception)


def test_the_picture_of_a_replay_that_is_over_at_once(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    outcome = run([TracedRequest(0.0, Identities().text(16), 1)], Follow(0))
    comparison.draw(tmp_path / "picture.png", [outcome])
    assert (tmp_path / "picture.png").stat().st_size > 0


def test_a_table_says_when_answers_held_up_the_requests() -> None:
    """Three users cannot send 45 requests in 0.8 s: each waits for its answers, whatever the speedup."""
    from rich.console import Console

    shown = io.StringIO()
    console = Console(file=shown, width=100)
    plan = comparison.Plan(source="multi-round", strategies=["random"], requests=50)
    late = comparison.compare(plan, Settings(), console)
    assert min(outcome.sent_seconds / outcome.planned_seconds for outcome in late) > 10
    text = " ".join(shown.getvalue().split())
    assert text.count("The load was lower than the speedup says.") == 1
    assert text.count("no more load than before. Questions wait") == 2
    assert f"{late[0].sent_seconds:.3g} s instead of {late[0].planned_seconds:.3g} s" in " ".join(
        shown.getvalue().split()
    )

    shown.truncate(0)
    on_time = comparison.compare(replace(plan, source="bursts", requests=40), Settings(), console)
    assert [outcome.sent_seconds for outcome in on_time] == pytest.approx([each.planned_seconds for each in on_time])
    assert "The load was lower" not in shown.getvalue()


def test_default_speedups_are_below_near_and_above_saturation() -> None:
    from rich.console import Console

    plan = comparison.Plan(source="bursts", strategies=["round-robin"], pods=2, requests=40)
    outcomes = comparison.compare(plan, Settings(), Console(quiet=True))
    assert [outcome.speedup for outcome in outcomes] == pytest.approx([0.5, 0.8, 1.1])


@pytest.mark.parametrize(("name", "named"), [("mine.py", False), ("mine.py:choose", False), ("NEAREST", True)])
def test_the_baselines_are_named_where_a_name_is_unknown(name: str, named: bool) -> None:
    with pytest.raises(ConfigurationError) as caught:
        policy_factory(name, Settings())
    assert ("baselines: round-robin" in str(caught.value)) is named
