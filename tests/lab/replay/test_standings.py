"""How strategies stand over all scenarios: the arithmetic, the file, the command and its workers."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from warmroute.cli import app
from warmroute.errors import ConfigurationError, WarmrouteError
from warmroute.settings import Settings
from warmroute_lab.replay import comparison, processes, standings
from warmroute_lab.replay.comparison import LOADS
from warmroute_lab.replay.scenarios import SCENARIOS
from warmroute_lab.replay.standings import Cell, Drawn, Options, Result, Standing

pytestmark = pytest.mark.integration

SMALL = Options(strategies=("PREFIX_CACHE", "round-robin"), seeds=(3,), pods=2, requests=30)
EXAMPLE = Result("PREFIX_CACHE", "agents", 0.5, 3, 2, 30, 0.2, 0.1, 0.3, 0.4, 2.0, 0.5, 0.1)


def quiet() -> Console:
    return Console(quiet=True)


def every(strategy: str, options: Options = SMALL) -> list[Result]:
    """Made-up results of a strategy in all cells."""
    return [
        replace(EXAMPLE, strategy=strategy, scenario=drawn.cell.scenario, load=drawn.cell.load, seed=drawn.seed)
        for drawn in options.draws()
    ]


def test_a_strategy_is_held_against_the_best_of_the_others() -> None:
    times = {"a": {"one": 2.0, "two": 1.0, "three": 4.0}, "b": {"one": 1.0, "two": 3.0, "three": 2.0}}
    assert standings.against_best(times, "one") == {"a": 2.0, "b": 0.5}
    assert standings.against_best(times, "two") == {"a": 0.5, "b": 3.0}
    assert Standing.of([2.0, 0.5]) == Standing(typical=1.0, worst=2.0)


def test_over_seeds_a_time_is_the_geometric_mean_so_that_no_slow_seed_outweighs_the_others() -> None:
    cell = Cell("agents", 0.5)
    times = {Drawn(cell, 1): {"one": 1.0, "two": 2.0}, Drawn(cell, 2): {"one": 100.0, "two": 50.0}}
    assert standings.over_seeds(times)[cell] == pytest.approx({"one": 10.0, "two": 10.0})


def test_the_tables_say_where_each_seed_was_worst() -> None:
    results = [*every("PREFIX_CACHE"), *every("round-robin")]
    results[4] = replace(results[4], ttft_mean=0.5, ttft_p99=1.2)
    worst = results[4].drawn.cell
    with (console := Console(width=100)).capture() as shown:
        standings.show(results, console)
    assert f"(2.50, {worst.scenario} {worst.load:g})" in shown.get()
    assert f"(3.00, {worst.scenario} {worst.load:g})" in shown.get()
    assert "2.50, 3.00" in shown.get()


def test_the_first_strategy_is_the_one_shown_in_detail() -> None:
    with (console := Console(width=100)).capture() as shown:
        standings.show([*every("llm-d"), *every("PREFIX_CACHE")], console)
    assert "llm-d: mean TTFT and p99 divided by those of the best other" in " ".join(shown.get().split())
    assert "llm-d, single seeds" in shown.get()


def test_a_draw_is_the_replay_that_bench_replay_makes() -> None:
    results = standings.measure(replace(SMALL, strategies=("PREFIX_CACHE",)), Settings(), quiet())
    assert [result.drawn for result in results] == SMALL.draws()
    plan = comparison.Plan(source="scale-out", strategies=("PREFIX_CACHE",), pods=2, seed=3, requests=30)
    alone = {outcome.speedup: outcome.figures() for outcome in comparison.compare(plan, Settings(), quiet())}
    assert [round(speedup, 6) for speedup in alone] == list(LOADS)
    for figures, load in zip(alone.values(), LOADS, strict=True):
        [result] = [each for each in results if each.drawn == Drawn(Cell("scale-out", load), 3)]
        assert (result.ttft_mean, result.ttft_p99) == (figures["ttft_mean"], figures["ttft_p99"])
        assert (result.requests, result.hit_rate) == (figures["requests"], figures["hit_rate"])


def test_the_command_writes_what_a_later_one_stands_against(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    arguments = ["bench", "standings", "--requests", "30", "--pods", "2", "--seed", "3"]

    def run(*more: str) -> str:
        result = CliRunner().invoke(app, [*arguments, *more], env={"COLUMNS": "120"})
        assert result.exit_code == 0, result.output
        return result.output

    whole = run("--strategy", "round-robin", "--strategy", "random", "--json", str(first))
    rows = json.loads(first.read_text())
    assert len(rows) == 2 * len(SCENARIOS) * len(LOADS)
    assert set(rows[0]) >= {"strategy", "scenario", "load", "seed", "requests", "ttft_mean", "ttft_p99", "hit_rate"}
    partly = run("--strategy", "round-robin", "--against", str(first), "--json", str(second), "--jobs", "1")
    assert partly == whole
    assert json.loads(second.read_text()) == [row for row in rows if row["strategy"] == "round-robin"]


@pytest.mark.parametrize(
    ("written", "options", "said"),
    [
        ("[]", SMALL, "no figures of other strategies on 2 pods"),
        ("{}", SMALL, "no figures of other strategies on 2 pods"),
        ('[{"strategy": "x"}]', SMALL, "no figures of `warmroute bench standings`"),
        ("[1]", SMALL, "no figures of `warmroute bench standings`"),
        ("not JSON", SMALL, "is not JSON"),
        (None, SMALL, "cannot read"),
        (every("llm-d"), replace(SMALL, seeds=(3, 4)), "no llm-d for multi-round at 0.5 with seed 4"),
        (every("llm-d"), replace(SMALL, pods=8), "no figures of other strategies on 8 pods"),
        (every("round-robin"), SMALL, "no figures of other strategies"),
    ],
)
def test_a_file_that_cannot_be_stood_against(
    tmp_path: Path, written: str | list[Result] | None, options: Options, said: str
) -> None:
    path = tmp_path / "figures.json"
    if isinstance(written, list):
        standings.write_json(path, written)
    elif written is not None:
        path.write_text(written)
    with pytest.raises(ConfigurationError, match=said):
        standings.run(options, Settings(), quiet(), against=path)


def test_a_fleet_that_cannot_take_a_request_is_refused_before_the_first_replay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(standings, "replay_all", lambda *_, **__: pytest.fail("a replay began"))
    options = replace(SMALL, profiles=("a10g-llama3.1-8b-graphs",))
    with pytest.raises(ConfigurationError, match=r"long-among-short has a request of \d+ tokens"):
        standings.measure(options, Settings(), quiet())


def test_what_cannot_stand_is_said_before_the_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standings, "replay_one", None)  # no work may begin
    with pytest.raises(ConfigurationError, match="at least two strategies"):
        standings.run(replace(SMALL, strategies=("PREFIX_CACHE",)), Settings(), quiet())
    with pytest.raises(ConfigurationError, match="lmetric"):
        standings.run(replace(SMALL, strategies=("PREFIX_CACHE", "nothing")), Settings(), quiet())


@pytest.mark.parametrize("load", [0.0, -1.0, math.nan, math.inf])
def test_a_load_is_a_number_above_0(load: float) -> None:
    with pytest.raises(ConfigurationError, match="--load must be a number above 0"):
        replace(SMALL, loads=(load,))


def test_the_tables_are_shown_even_if_the_figures_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The replays took many minutes, and a disk may be full."""
    monkeypatch.setattr(standings, "measure", lambda *_: [*every("PREFIX_CACHE"), *every("round-robin")])
    console = Console(file=StringIO(), width=200)
    with pytest.raises(ConfigurationError, match="cannot write /dev/full"):
        standings.run(SMALL, Settings(), console, output=Path("/dev/full"))
    assert "round-robin" in console.file.getvalue()  # type: ignore[attr-defined]


def test_other_requests_cannot_be_compared() -> None:
    results = [*every("PREFIX_CACHE"), *(replace(each, requests=31) for each in every("llm-d"))]
    with pytest.raises(ConfigurationError, match="llm-d had another number of requests in multi-round"):
        standings.show(results, quiet())


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LOG_INTERVAL", 0.0)
    with (console := Console(width=100, force_terminal=False)).capture() as shown:
        standings.measure(replace(SMALL, strategies=("random",), requests=5), Settings(), console)
    assert "33 of 33 replays" in shown.get()


def test_the_workers_have_ended_when_the_results_are_there() -> None:
    """Else the interpreter, at its end, may write to a pipe that is closed."""
    assert processes.replay_all(abs, [(-1,), (-2,)], quiet(), jobs=2) == [1, 2]
    assert multiprocessing.active_children() == []


def _die(*_: object) -> None:
    os._exit(1)


def test_a_worker_that_is_killed_is_an_error_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standings, "replay_one", _die)
    with pytest.raises(WarmrouteError, match="process was killed"):
        standings.measure(SMALL, Settings(), quiet())


def _fail_or_wait(seconds: float) -> None:
    if not seconds:
        raise ConfigurationError("it failed")
    time.sleep(seconds)


def test_an_error_or_an_interrupt_does_not_wait_for_the_replays_that_run() -> None:
    """Ctrl-C ends the workers, but a SIGINT may be sent to the command alone."""
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match="it failed"):
        processes.replay_all(_fail_or_wait, [(100.0,), (0.0,), (100.0,)], quiet(), jobs=2)
    assert time.monotonic() < began + 50
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("a_terminal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_the_command(number: signal.Signals) -> None:
    """Ctrl-C reaches the workers, too; of a signal to the command alone they learn by its end."""
    command = [sys.executable, "-m", "warmroute", "bench", "standings", "--jobs", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)
    try:
        _until(lambda: len(_alive(process.pid)) == 3)
        started = _alive(process.pid)  # two workers and multiprocessing's own resource tracker
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.wait(timeout=60) != 0
        _until(lambda: not any(_runs(pid) for pid in started))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _alive(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until(holds: Callable[[], bool], patience: float = 60.0) -> None:
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
