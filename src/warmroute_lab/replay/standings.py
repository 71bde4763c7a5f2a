"""``warmroute bench standings``: all strategies in every scenario, below, near and above saturation, over several seeds.

A cell is a scenario at a load. Each strategy is compared with the best of the *others* in each cell. Above saturation,
single replays are chaotic: one request on another pod can double or halve a mean. A strategy's time in a cell is therefore
the geometric mean over the seeds; the seeds are also shown one by one.
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
    """A scenario at a load. The load is a share of saturation."""

    scenario: str
    load: float


class Drawn(NamedTuple):
    """A cell with the requests of one seed."""

    cell: Cell
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of the command: each strategy is replayed in each cell with each seed."""

    strategies: Sequence[str]
    seeds: Sequence[int] = (1,)
    pods: int = 8
    requests: int | None = None
    """None: the default of :mod:`~warmroute_lab.replay.scenarios`."""
    jobs: int = 1
    """Parallel replays, each in its own process."""

    def draws(self) -> list[Drawn]:
        """Every cell with every seed."""
        return [Drawn(Cell(name, load), seed) for seed, name, load in product(self.seeds, SCENARIOS, LOADS)]


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of one replay, in seconds and fractions (:meth:`warmroute_lab.replay.outcome.Outcome.figures`)."""

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
        """Cell and seed."""
        return Drawn(Cell(self.scenario, self.load), self.seed)

    @classmethod
    def read(cls, row: object, path: Path) -> Self:
        """One object of a file written by :func:`write_json`. Raises ConfigurationError that names ``path``."""
        try:
            return cls(**row)  # type: ignore[arg-type]
        except TypeError as error:
            raise ConfigurationError(f"{path} holds no figures of `warmroute bench standings`: {error}") from error


def run(
    options: Options, settings: Settings, console: Console, *, against: Path | None = None, output: Path | None = None
) -> None:
    """Replay, write the figures to ``output``, and print the comparison with the figures of the file ``against``.

    Raises ConfigurationError, if possible before the replays.
    """
    for name in options.strategies:
        policy_factory(name, settings)
    json_file.require_place(output)
    known = others(against, options) if against is not None else []
    if len({*options.strategies, *(result.strategy for result in known)}) < 2:
        raise ConfigurationError("a comparison needs at least two strategies: use --strategy all or --against")
    results = measure(options, settings, console)
    if output is not None:
        write_json(output, results)
    show([*results, *known], console)


def measure(options: Options, settings: Settings, console: Console) -> list[Result]:
    """Run all replays; print progress as a bar or, without a terminal, as a line every :data:`LOG_INTERVAL` seconds."""
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
            raise WarmrouteError("a replay's process was killed; possibly the machine has too little memory") from error
        finally:
            workers.shutdown(wait=False, cancel_futures=True)
    return sorted(results, key=lambda result: order[result.drawn, result.strategy])


def _end_with_parent() -> None:
    """Let this worker end at once on Ctrl-C and at the end of its parent."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _replay(drawn: Drawn, strategy: str, pods: int, requests: int | None, settings: Settings) -> Result:
    """One replay, in a worker process."""
    (scenario, load), seed = drawn
    trace, fleet = Plan(source=scenario, strategies=(strategy,), pods=pods, seed=seed, requests=requests).load()
    speedup = load * saturation(trace, fleet.profiles)
    factory = policy_factory(strategy, settings)
    figures = Replay(trace, fleet, factory, strategy=strategy, speedup=speedup, seed=seed).run().figures()
    del figures["speedup"]
    return Result(**{**figures, "load": load, "seed": seed, "pods": pods})  # type: ignore[arg-type]


def write_json(path: Path, results: Iterable[Result]) -> None:
    """Write the results as a list of objects. Raises ConfigurationError."""
    json_file.write(path, [asdict(result) for result in results])


def others(path: Path, options: Options) -> list[Result]:
    """Results of other strategies than those in ``options``, from a file of an earlier run.

    Raises ConfigurationError if a strategy lacks a cell or seed, or if no results are of that number of pods.
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


# ---------------------------------------------------------------- the comparison


Key = TypeVar("Key")
Times = Mapping[Key, Mapping[str, float]]
"""Seconds by cell (and seed), then by strategy."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A strategy's times divided by those of the best of the others: below 1, it is better than all of them."""

    typical: float
    """Geometric mean of the ratios."""
    worst: float

    @classmethod
    def of(cls, ratios: Iterable[float]) -> Self:
        """The standing of at least one ratio."""
        ratios = list(ratios)
        return cls(geometric_mean(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{_short(self.typical)} ({_short(self.worst)})"


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.3g}"


def drawn(results: Iterable[Result], figure: str) -> dict[Drawn, dict[str, float]]:
    """The given figure of each strategy, by cell and seed."""
    times: dict[Drawn, dict[str, float]] = {}
    for result in results:
        times.setdefault(result.drawn, {})[result.strategy] = getattr(result, figure)
    return times


def over_seeds(times: Times[Drawn]) -> dict[Cell, dict[str, float]]:
    """The geometric means over the seeds, by cell."""
    seeds: dict[Cell, dict[str, list[float]]] = {}
    for (cell, _), of_strategy in times.items():
        for strategy, seconds in of_strategy.items():
            seeds.setdefault(cell, {}).setdefault(strategy, []).append(seconds)
    return {cell: {name: geometric_mean(each) for name, each in names.items()} for cell, names in seeds.items()}


def against_best(times: Times[Key], strategy: str) -> dict[Key, float]:
    """The strategy's time divided by that of the best of the others."""
    return {
        key: of_strategy[strategy] / min(seconds for name, seconds in of_strategy.items() if name != strategy)
        for key, of_strategy in times.items()
    }


def show(results: Sequence[Result], console: Console) -> None:
    """Print the comparison of at least two strategies; single cells and seeds are those of the first one.

    Raises ConfigurationError if the strategies were replayed with different numbers of requests.
    """
    lengths: dict[Drawn, int] = {}
    for result in results:
        if lengths.setdefault(result.drawn, result.requests) != result.requests:
            raise ConfigurationError(
                f"{result.strategy} had another number of requests in {result.scenario}: use equal --requests"
            )
    strategies = list(dict.fromkeys(result.strategy for result in results))
    means, tails = drawn(results, "ttft_mean"), drawn(results, "ttft_p99")
    terminal.show(_strategies(over_seeds(means), over_seeds(tails), strategies), console)
    terminal.show(_cells(over_seeds(means), over_seeds(tails), strategies[0]), console)
    terminal.show(_seeds(means, tails, strategies[0]), console)


def _strategies(means: Times[Cell], tails: Times[Cell], strategies: Sequence[str]) -> Table:
    grid = Table(title=f"time divided by the best other strategy's in {len(means)} cells: geometric mean (worst)")
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
    grid = Table(title=f"{strategy} divided by the best other: mean TTFT, p99")
    grid.add_column("scenario", no_wrap=True)
    for load in loads:
        grid.add_column(f"{load:g}", justify="right", no_wrap=True)
    for scenario in sorted({cell.scenario for cell in means}):
        cells = (Cell(scenario, load) for load in loads)
        grid.add_row(scenario, *(f"{mean[cell]:.2f}, {tail[cell]:.2f}" for cell in cells))
    return grid


def _seeds(means: Times[Drawn], tails: Times[Drawn], strategy: str) -> Table:
    grid = Table(title=f"{strategy}, single seeds: geometric mean (worst, where)")
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
