"""``warmroute bench standings``: all strategies in every scenario, below, near and above saturation, over several seeds.

A cell is a scenario at a load. Each strategy is compared with the best of the *others* in each cell. Above saturation,
single replays are chaotic: one request on another pod can double or halve a mean. A strategy's time in a cell is therefore
the geometric mean over the seeds; the seeds are also shown one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from math import inf
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple, Self, TypeVar

from rich.console import Console
from rich.table import Table

from warmroute.errors import ConfigurationError
from warmroute.settings import Settings
from warmroute_lab import json_file, terminal
from warmroute_lab.replay.comparison import LOADS, Plan
from warmroute_lab.replay.fleet import Fleet, saturation
from warmroute_lab.replay.policy_registry import policy_factory
from warmroute_lab.replay.processes import replay_all
from warmroute_lab.replay.replay import Replay
from warmroute_lab.replay.scenarios import SCENARIOS
from warmroute_lab.replay.trace import Trace


class Cell(NamedTuple):
    """A scenario or a trace at a load. The load is a share of saturation."""

    scenario: str
    """A name, or the path of a trace."""
    load: float


class Drawn(NamedTuple):
    """A cell with the requests of one seed."""

    cell: Cell
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of the command: each strategy is replayed in each cell with each seed."""

    strategies: Sequence[str]
    sources: Sequence[str] = tuple(SCENARIOS)
    """Scenarios and files of traces."""
    seeds: Sequence[int] = (1,)
    loads: Sequence[float] = LOADS
    pods: int = 8
    profiles: Sequence[str] = ()
    requests: int | None = None
    """None: all of a trace, and the default of :mod:`~warmroute_lab.replay.scenarios`. Of a trace without sessions, seed k
    gets the k-th part of that size."""
    closed_loop: bool = True
    jobs: int = 1
    """Parallel replays, each in its own process."""

    def __post_init__(self) -> None:
        """Raise ConfigurationError for an impossible load."""
        if not all(0 < load < inf for load in self.loads):
            raise ConfigurationError("--load must be a number above 0")

    def draws(self) -> list[Drawn]:
        """Every cell with every seed."""
        return [Drawn(Cell(name, load), seed) for seed, name, load in product(self.seeds, self.sources, self.loads)]

    def plan(self, source: str, seed: int) -> Plan:
        """The trace and the fleet of a cell."""
        return Plan(
            source=source,
            strategies=(),
            pods=self.pods,
            profiles=tuple(self.profiles),
            seed=seed,
            requests=self.requests,
            skip=(seed - 1) * self.requests if self.requests is not None else 0,
            closed_loop=self.closed_loop,
        )


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

    def plain(self) -> dict[str, Any]:
        """The figures for JSON."""
        return asdict(self)

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
    """Replay, print the comparison with the figures of the file ``against``, and write the new ones to ``output``.

    Raises ConfigurationError, if possible before the replays.
    """
    for name in options.strategies:
        policy_factory(name, settings)
    json_file.require_place(output)
    known = others(against, options) if against is not None else []
    if len({*options.strategies, *(result.strategy for result in known)}) < 2:
        raise ConfigurationError("a comparison needs at least two strategies: use --strategy all or --against")
    results = measure(options, settings, console)
    try:
        show([*results, *known], console)
    finally:
        if output is not None:
            write_json(output, results)


def measure(options: Options, settings: Settings, console: Console) -> list[Result]:
    """Run all replays, in order of seed, cell and strategy.

    Raises ConfigurationError before the first one if the fleet cannot take a request of the first seed.
    """
    for source in options.sources:
        options.plan(source, options.seeds[0]).load()
    asked = [(drawn, name, options, settings) for drawn in options.draws() for name in options.strategies]
    return replay_all(replay_one, asked, console, jobs=options.jobs)


def replay_one(drawn: Drawn, strategy: str, options: Options, settings: Settings) -> Result:
    """One replay of the product's strategy with ``settings``, or of a baseline."""
    (source, load), seed = drawn
    trace, fleet, full = _loaded(options.plan(source, seed))
    speedup = load * full
    factory = policy_factory(strategy, settings)
    figures = Replay(trace, fleet, factory, strategy=strategy, speedup=speedup, seed=seed).run().figures()
    del figures["speedup"]
    changed = {"scenario": source, "load": load, "seed": seed, "pods": options.pods}
    return Result(**{**figures, **changed})  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def _loaded(plan: Plan) -> tuple[Trace, Fleet, float]:
    """The trace, the fleet and the speedup at saturation. A worker's next replay often has the same trace."""
    trace, fleet = plan.load()
    return trace, fleet, saturation(trace, fleet.profiles)


def write_json(path: Path, results: Iterable[Result]) -> None:
    """Write the results as a list of objects. Raises ConfigurationError."""
    json_file.write(path, [result.plain() for result in results])


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
    terminal.show(_cells(means, tails, strategies[0]), console)
    terminal.show(_seeds(means, tails, strategies[0]), console)


BELOW = "Below 1: faster than the fastest of the others. Above 1: slower."


def _strategies(means: Times[Cell], tails: Times[Cell], strategies: Sequence[str]) -> Table:
    grid = Table(
        title=f"time divided by the best other strategy's in {len(means)} cells: geometric mean (worst cell)",
        caption=f"{BELOW} A cell is a scenario or trace at a load.",
    )
    grid.add_column("strategy", no_wrap=True)
    grid.add_column("mean TTFT", justify="right", no_wrap=True)
    grid.add_column("p99 of TTFT", justify="right", no_wrap=True)
    standings = {
        name: [Standing.of(against_best(times, name).values()) for times in (means, tails)] for name in strategies
    }
    for name, (mean, tail) in sorted(standings.items(), key=lambda item: item[1][0].typical):
        grid.add_row(name, str(mean), str(tail))
    return grid


def _cells(means: Times[Drawn], tails: Times[Drawn], strategy: str) -> Table:
    """The strategy in each cell over the seeds; scenarios in which it loses most come first."""
    mean, tail = (against_best(over_seeds(times), strategy) for times in (means, tails))
    loads = sorted({cell.load for cell in mean})
    grid = Table(
        title=f"{strategy}: mean TTFT and p99 divided by those of the best other, by share of saturation",
        caption=f"{BELOW} Behind each: the least and the most of single seeds.",
    )
    grid.add_column("scenario or trace", no_wrap=True)
    for load in loads:
        grid.add_column(f"{load:.0%}", justify="right", no_wrap=True)
    spreads = [_spreads(against_best(times, strategy)) for times in (means, tails)]
    worst = {scenario: max(ratio for cell, ratio in mean.items() if cell.scenario == scenario) for scenario, _ in mean}
    for scenario in sorted(worst, key=lambda name: -worst[name]):
        cells = [Cell(scenario, load) for load in loads]
        grid.add_row(
            _shown(scenario),
            *(f"{mean[cell]:.2f}{spreads[0][cell]}, {tail[cell]:.2f}{spreads[1][cell]}" for cell in cells),
        )
    return grid


def _shown(scenario: str) -> str:
    """A scenario, or a trace's file without folder and suffixes."""
    return Path(scenario).name.partition(".")[0]


def _spreads(ratios: Mapping[Drawn, float]) -> dict[Cell, str]:
    """The least and the most over the seeds, by cell, as text; empty for a single seed."""
    of_cells: dict[Cell, list[float]] = {}
    for (cell, _), ratio in ratios.items():
        of_cells.setdefault(cell, []).append(ratio)
    return {
        cell: f" ({_short(min(each))} to {_short(max(each))})" if len(each) > 1 else ""
        for cell, each in of_cells.items()
    }


def _seeds(means: Times[Drawn], tails: Times[Drawn], strategy: str) -> Table:
    grid = Table(title=f"{strategy}, single seeds: geometric mean (worst cell)", caption=BELOW)
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
        yield f"{standing.typical:.2f} ({standing.worst:.2f}, {_shown(scenario)} {load:g})"
