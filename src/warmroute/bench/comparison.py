"""Strategies side by side: run the replays, show them as a table, a picture and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from warmroute.bench import scenarios
from warmroute.bench.fleet import Fleet, PodEvent, profile, saturation
from warmroute.bench.replay import Outcome, Replay
from warmroute.bench.strategy import picker_factory
from warmroute.bench.trace import Trace, read
from warmroute.errors import ConfigurationError
from warmroute.settings import Settings
from warmroute.simulator.profile import DEFAULT_PROFILE

LOADS = (0.5, 0.8, 1.1)
"""Default loads, as shares of saturation: below, near and above it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to replay."""

    source: str
    """A file or a scenario's name."""
    strategies: Sequence[str]
    pods: int = 8
    profiles: Sequence[str] = ()
    """Those of the first pods, repeated; none: the source's default."""
    speedups: Sequence[float] = ()
    """None: :data:`LOADS` times what saturates the fleet."""
    seed: int = 1
    requests: int | None = None
    restarts: Sequence[PodEvent] = ()
    scalings: Sequence[PodEvent] = ()
    pickers: int | None = None
    """None: the scenario's number, or one."""

    def load(self) -> tuple[Trace, Fleet]:
        """The requests and the fleet. Raises ConfigurationError."""
        if self.pods < 1:
            raise ConfigurationError("--pods must be at least 1")
        kinds = tuple(profile(name) for name in self.profiles)
        path = Path(self.source)
        if path.is_file():
            trace = read(path, seed=self.seed, limit=self.requests)
            kinds = kinds or (profile(DEFAULT_PROFILE),)
            fleet = Fleet(tuple(kinds[pod % len(kinds)] for pod in range(self.pods)))
        else:
            trace, fleet = scenarios.build(
                self.source, seed=self.seed, pods=self.pods, profiles=kinds, requests=self.requests
            )
        return trace, Fleet(
            fleet.profiles,
            (*fleet.restarts, *self.restarts),
            (*fleet.scalings, *self.scalings),
            self.pickers or fleet.pickers,
        )


def compare(plan: Plan, settings: Settings, console: Console) -> list[Outcome]:
    """Replay the plan with every strategy at every speedup; progress is shown where there is a terminal."""
    trace, fleet = plan.load()
    factories = {name: picker_factory(name, settings) for name in plan.strategies}
    full = saturation(trace, fleet.profiles)
    speedups = plan.speedups or [load * full for load in LOADS]
    if min(speedups) <= 0:
        raise ConfigurationError("--speedup must be more than 0")
    outcomes = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        for speedup in speedups:
            for name, factory in factories.items():
                replay = Replay(trace, fleet, factory, strategy=name, speedup=speedup, seed=plan.seed)
                outcomes.append(_with_progress(replay, progress, f"{name} at {speedup:.2f}", len(trace.requests)))
            console.print(table(outcomes[-len(factories) :], load=speedup / full))
    return outcomes


def _with_progress(replay: Replay, progress: Progress, description: str, total: int) -> Outcome:
    task = progress.add_task(description, total=total)
    outcome = replay.run(lambda answered: progress.update(task, completed=answered))
    progress.remove_task(task)
    return outcome


def table(outcomes: Sequence[Outcome], *, load: float) -> Table:
    """The strategies at one speedup, the lowest mean TTFT first."""
    first = outcomes[0]
    grid = Table(
        title=f"{first.scenario}: {len(first.ttft)} requests, speedup {first.speedup:.2f}, {load:.0%} of saturation",
        caption="seconds; TTFT is the time to first token",
    )
    grid.add_column("strategy", no_wrap=True)
    for name in ("TTFT", "p50", "p90", "p99", "e2e", "hits", "imbalance"):
        grid.add_column(name, justify="right", no_wrap=True)
    for figures in sorted((outcome.figures() for outcome in outcomes), key=lambda figures: float(figures["ttft_mean"])):
        times = [f"{figures[key]:.3f}" for key in ("ttft_mean", "ttft_p50", "ttft_p90", "ttft_p99", "e2e_mean")]
        grid.add_row(str(figures["strategy"]), *times, f"{figures['hit_rate']:.1%}", f"{figures['imbalance']:.2f}")
    return grid


def write_json(path: Path, outcomes: Iterable[Outcome]) -> None:
    """The figures as a list of objects; seconds and fractions."""
    path.write_text(json.dumps([outcome.figures() for outcome in outcomes], indent=1) + "\n", encoding="utf-8")


def draw(path: Path, outcomes: Sequence[Outcome]) -> None:
    """A PNG: for each speedup the distributions of the TTFT, and the load of the first strategy's pods over time.

    Raises ConfigurationError if matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigurationError("--picture needs matplotlib: pip install 'warmroute[bench]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [list(group) for _, group in groupby(outcomes, key=lambda outcome: outcome.speedup)]
    figure, axes = pyplot.subplots(len(rows), 2, figsize=(11, 3.2 * len(rows)), squeeze=False, layout="constrained")
    for (distribution, load), row in zip(axes, rows, strict=True):
        _draw_distributions(distribution, row)
        _draw_load(load, row[0])
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _draw_distributions(axes: Any, outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        ordered = sorted(outcome.ttft)
        share = [(i + 1) / len(ordered) for i in range(len(ordered))]
        axes.plot(ordered, share, label=outcome.strategy, linewidth=2 if outcome is outcomes[0] else 1)
    axes.set(
        xscale="log",
        xlabel="time to first token, s",
        ylabel="share of requests",
        title=f"{outcomes[0].scenario}, speedup {outcomes[0].speedup:.2f}",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _draw_load(axes: Any, outcome: Outcome) -> None:
    pods = max(len(sample.requests) for sample in outcome.samples)
    for pod in range(pods):
        seen = [sample for sample in outcome.samples if pod < len(sample.requests)]
        axes.plot([sample.at for sample in seen], [sample.requests[pod] for sample in seen], linewidth=0.8)
    axes.set(xlabel="s", ylabel="requests on each pod", title=outcome.strategy)
    axes.grid(alpha=0.3)
