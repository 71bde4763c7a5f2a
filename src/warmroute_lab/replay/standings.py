"""How strategies stand against one another over every scenario, below, near and above saturation, and over several seeds.

The best strategy is another one in nearly each cell (a scenario at a load), so that each is held against the best of the
*others* there. Above saturation single replays are chaotic: one request elsewhere, and a mean doubles or halves, for every
strategy. A strategy's time in a cell is therefore the geometric mean of its times over the seeds; how each seed came out by
itself is shown, too.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context, parent_process
from pathlib import Path
from statistics import geometric_mean
from time import monotonic
from typing import NamedTuple, Self, TypeVar

from rich.console import Console
from rich.progress import MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from warmroute.errors import ConfigurationError, WarmrouteError
from warmroute.settings import Settings
from warmroute_lab import json_file, terminal
from warmroute_lab.replay.comparison import LOADS, Plan
from warmroute_lab.replay.fleet import saturation
from warmroute_lab.replay.policy_registry import policy_factory
from warmroute_lab.replay.replay import Replay
from warmroute_lab.replay.scenarios import SCENARIOS

LOG_INTERVAL = 30.0
"""Seconds between two lines of progress where there is no terminal."""


class Cell(NamedTuple):
    """A scenario at a load, which is a share of saturation."""

    scenario: str
    load: float


class Drawn(NamedTuple):
    """A cell with the requests that one seed draws."""

    cell: Cell
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to replay: each strategy in each cell with each seed."""

    strategies: Sequence[str]
    seeds: Sequence[int] = (1,)
    pods: int = 8
    requests: int | None = None
    """None: each scenario's own number."""
    jobs: int = 1
    """Replays that run at once, each in a process of its own."""

    def draws(self) -> list[Drawn]:
        """All cells, drawn with each of the seeds."""
        return [Drawn(Cell(name, load), seed) for seed, name, load in product(self.seeds, SCENARIOS, LOADS)]


@dataclass(frozen=True, slots=True)
class Result:
    """One replay: its figures are those of :meth:`warmroute_lab.replay.replay.Outcome.figures`; seconds and fractions."""

    strategy: str
    scenario: str
    load: float
    seed: int
    pods: int
    requests: int
    ttft_mean: float
    ttft_p50: float
    ttft_p90: float
    ttft_p99: float
    e2e_mean: float
    hit_rate: float
    imbalance: float

    @property
    def drawn(self) -> Drawn:
        """What was replayed."""
        return Drawn(Cell(self.scenario, self.load), self.seed)

    @classmethod
    def read(cls, row: object, path: Path) -> Self:
        """From what :func:`write_json` wrote to ``path``. Raises ConfigurationError."""
        try:
            return cls(**row)  # type: ignore[arg-type]
        except TypeError as error:
            raise ConfigurationError(f"{path} holds no figures of `warmroute bench standings`: {error}") from error


def run(
    options: Options, settings: Settings, console: Console, *, against: Path | None = None, output: Path | None = None
) -> None:
    """Replay, write the figures to ``output`` and show how the strategies stand, with those of the file ``against``.

    Raises ConfigurationError, and before the long work wherever it can be known before.
    """
    for name in options.strategies:
        policy_factory(name, settings)
    json_file.require_place(output)
    known = others(against, options) if against is not None else []
    if len({*options.strategies, *(result.strategy for result in known)}) < 2:
        raise ConfigurationError("to stand against others, name more of them: --strategy all, or --against")
    results = measure(options, settings, console)
    if output is not None:
        write_json(output, results)
    show([*results, *known], console)


def measure(options: Options, settings: Settings, console: Console) -> list[Result]:
    """Run all replays, with a progress bar on a terminal, elsewhere with a line now and then."""
    asked = list(product(options.draws(), options.strategies))
    order = {(drawn, name): position for position, (drawn, name) in enumerate(asked)}
    columns = MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    results = []
    with (
        ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"), initializer=_end_with_parent) as workers,
        terminal.progress(console, *columns, description="replays") as progress,
    ):
        task, said_at = progress.add_task("", total=len(asked)), monotonic()
        running = [workers.submit(_replay, *each, options.pods, options.requests, settings) for each in asked]
        try:
            for finished in as_completed(running):
                results.append(finished.result())
                progress.advance(task)
                if not console.is_terminal and monotonic() >= said_at + LOG_INTERVAL:
                    said_at = monotonic()
                    console.print(f"{len(results)} of {len(asked)} replays", highlight=False)
        except BrokenProcessPool as error:
            raise WarmrouteError("a replay's process was ended from outside; was there too little memory?") from error
        finally:
            workers.shutdown(wait=False, cancel_futures=True)
    return sorted(results, key=lambda result: order[result.drawn, result.strategy])


def _end_with_parent() -> None:
    """Let this worker end at once on Ctrl-C, and when its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _replay(drawn: Drawn, strategy: str, pods: int, requests: int | None, settings: Settings) -> Result:
    """One replay, in a worker."""
    (scenario, load), seed = drawn
    trace, fleet = Plan(source=scenario, strategies=(strategy,), pods=pods, seed=seed, requests=requests).load()
    speedup = load * saturation(trace, fleet.profiles)
    factory = policy_factory(strategy, settings)
    figures = Replay(trace, fleet, factory, strategy=strategy, speedup=speedup, seed=seed).run().figures()
    del figures["speedup"]
    return Result(**{**figures, "load": load, "seed": seed, "pods": pods})  # type: ignore[arg-type]


def write_json(path: Path, results: Iterable[Result]) -> None:
    """The results as a list of objects. Raises ConfigurationError."""
    json_file.write(path, [asdict(result) for result in results])


def others(path: Path, options: Options) -> list[Result]:
    """Results of strategies that are not to be replayed, from what an earlier run wrote to ``path``.

    Raises ConfigurationError if one lacks a cell or seed, or was measured on another number of pods.
    """
    rows = json_file.read(path)
    known = [Result.read(row, path) for row in rows] if isinstance(rows, list) else []
    known = [result for result in known if result.strategy not in options.strategies and result.pods == options.pods]
    by_strategy: dict[str, dict[Drawn, Result]] = {}
    for result in known:
        by_strategy.setdefault(result.strategy, {})[result.drawn] = result
    if not by_strategy:
        raise ConfigurationError(f"{path} holds no figures of other strategies on {options.pods} pods")
    for name, results in by_strategy.items():
        for each in options.draws():
            if each not in results:
                (scenario, load), seed = each
                raise ConfigurationError(f"{path} has no {name} for {scenario} at {load:g} with seed {seed}")
    return [results[each] for results in by_strategy.values() for each in options.draws()]


# ---------------------------------------------------------------- how they stand


Key = TypeVar("Key")
Times = Mapping[Key, Mapping[str, float]]
"""Seconds of each strategy, by what it was measured in."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A strategy against the best of the others: below 1 it is ahead of them all."""

    typical: float
    """Geometric mean of the ratios."""
    worst: float

    @classmethod
    def of(cls, ratios: Iterable[float]) -> Self:
        """Of at least one ratio."""
        ratios = list(ratios)
        return cls(geometric_mean(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{_short(self.typical)} ({_short(self.worst)})"


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.3g}"


def drawn(results: Iterable[Result], figure: str) -> dict[Drawn, dict[str, float]]:
    """The ``figure`` of each strategy, by cell and seed."""
    times: dict[Drawn, dict[str, float]] = {}
    for result in results:
        times.setdefault(result.drawn, {})[result.strategy] = getattr(result, figure)
    return times


def over_seeds(times: Times[Drawn]) -> dict[Cell, dict[str, float]]:
    """The geometric mean over the seeds, by cell."""
    seeds: dict[Cell, dict[str, list[float]]] = {}
    for (cell, _), of_strategy in times.items():
        for strategy, seconds in of_strategy.items():
            seeds.setdefault(cell, {}).setdefault(strategy, []).append(seconds)
    return {cell: {name: geometric_mean(each) for name, each in names.items()} for cell, names in seeds.items()}


def against_best(times: Times[Key], strategy: str) -> dict[Key, float]:
    """The strategy's time over that of the best other one."""
    return {
        key: of_strategy[strategy] / min(seconds for name, seconds in of_strategy.items() if name != strategy)
        for key, of_strategy in times.items()
    }


def show(results: Sequence[Result], console: Console) -> None:
    """Print how at least two strategies stand.

    The tables of single cells and seeds are of the first of them. Raises ConfigurationError if they were not given the same
    requests.
    """
    lengths: dict[Drawn, int] = {}
    for result in results:
        if lengths.setdefault(result.drawn, result.requests) != result.requests:
            raise ConfigurationError(
                f"{result.strategy} had other requests in {result.scenario}: say the same --requests"
            )
    strategies = list(dict.fromkeys(result.strategy for result in results))
    means, tails = drawn(results, "ttft_mean"), drawn(results, "ttft_p99")
    terminal.show(_strategies(over_seeds(means), over_seeds(tails), strategies), console)
    terminal.show(_cells(over_seeds(means), over_seeds(tails), strategies[0]), console)
    terminal.show(_seeds(means, tails, strategies[0]), console)


def _strategies(means: Times[Cell], tails: Times[Cell], strategies: Sequence[str]) -> Table:
    grid = Table(title=f"against the best other of each of {len(means)} cells: typical (worst)")
    grid.add_column("strategy", no_wrap=True)
    grid.add_column("mean TTFT", justify="right", no_wrap=True)
    grid.add_column("p99", justify="right", no_wrap=True)
    standings = {
        name: [Standing.of(against_best(times, name).values()) for times in (means, tails)] for name in strategies
    }
    for name, (mean, tail) in sorted(standings.items(), key=lambda item: item[1][0].typical):
        grid.add_row(name, str(mean), str(tail))
    return grid


def _cells(means: Times[Cell], tails: Times[Cell], strategy: str) -> Table:
    mean, tail = against_best(means, strategy), against_best(tails, strategy)
    loads = sorted({cell.load for cell in means})
    grid = Table(title=f"{strategy} against the best other: mean TTFT, p99")
    grid.add_column("scenario", no_wrap=True)
    for load in loads:
        grid.add_column(f"{load:g}", justify="right", no_wrap=True)
    for scenario in sorted({cell.scenario for cell in means}):
        cells = (Cell(scenario, load) for load in loads)
        grid.add_row(scenario, *(f"{mean[cell]:.2f}, {tail[cell]:.2f}" for cell in cells))
    return grid


def _seeds(means: Times[Drawn], tails: Times[Drawn], strategy: str) -> Table:
    grid = Table(title=f"{strategy}, each seed by itself: typical (worst, where)")
    grid.add_column("seed", justify="right")
    for name in ("mean TTFT", "p99"):
        grid.add_column(name, justify="right", no_wrap=True)
    both = [against_best(times, strategy) for times in (means, tails)]
    for seed in sorted({key.seed for key in means}):
        grid.add_row(str(seed), *_standings_of(both, seed))
    return grid


def _standings_of(both: Iterable[Mapping[Drawn, float]], seed: int) -> Iterator[str]:
    for ratios in both:
        of_seed = {key.cell: ratio for key, ratio in ratios.items() if key.seed == seed}
        standing, (scenario, load) = Standing.of(of_seed.values()), max(of_seed, key=of_seed.__getitem__)
        yield f"{standing.typical:.2f} ({standing.worst:.2f}, {scenario} {load:g})"
