"""``warmroute bench replay``: replays of several strategies, as tables, a picture and JSON."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, groupby
from math import inf, nan
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from warmroute.errors import ConfigurationError
from warmroute.routing import strategies
from warmroute.settings import Settings
from warmroute_lab import json_file, plot, terminal
from warmroute_lab.replay import scenarios
from warmroute_lab.replay.baselines import BASELINES
from warmroute_lab.replay.fleet import Fleet, PodEvent, profile, saturation, with_cache
from warmroute_lab.replay.outcome import Outcome
from warmroute_lab.replay.policy import Policy
from warmroute_lab.replay.policy_registry import policy_factory
from warmroute_lab.replay.replay import Replay
from warmroute_lab.replay.trace import Trace
from warmroute_lab.replay.trace_files import read
from warmroute_lab.simulator.profile import DEFAULT_PROFILE

LOADS = (0.5, 0.8, 1.1)
"""Default loads as shares of saturation: below, near and above it."""
LATE = 1.1
"""Ratio of the time in which the requests were sent to the planned time above which the table says so."""


EMPHASISED = "PREFIX_CACHE"
"""The strategy that a picture emphasises, and whose pods it shows."""
MOMENTS = 160
"""Most columns of the picture of the load; samples in between are averaged."""
_BLIND = frozenset(
    ("LEAST_REQUEST", "ROUND_ROBIN", "RANDOM", "DEFAULT", "least-request", "round-robin", "random", "power-of-two")
)
"""Strategies that ignore cached prefixes."""
_DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The options of the command."""

    source: str
    """A file, or the name of a scenario."""
    strategies: Sequence[str]
    pods: int = 8
    profiles: Sequence[str] = ()
    """Profiles of the first pods, repeated; empty: the default of the trace or scenario."""
    speedups: Sequence[float] = ()
    """Empty: :data:`LOADS` times the speedup at saturation."""
    seed: int = 1
    requests: int | None = None
    skip: int = 0
    """Requests of a trace without sessions to leave out at the beginning; counted round."""
    closed_loop: bool = True
    """Whether each turn of a recorded session waits for the answer before it."""
    restarts: Sequence[PodEvent] = ()
    scalings: Sequence[PodEvent] = ()
    pickers: int | None = None
    """None: the scenario's number; for a file, one."""
    shared: bool = False
    """Replay the product's strategies three times: one picker, several that exchange nothing, several that share."""
    prefix_caching: bool = True
    """False: no engine keeps prompts."""
    cpu_tier: float = 0.0
    """Size of each engine's second cache tier, as a multiple of its KV cache."""

    def load(self) -> tuple[Trace, Fleet]:
        """The trace and the fleet. Raises ConfigurationError."""
        if self.pods < 1:
            raise ConfigurationError("--pods must be at least 1")
        kinds = tuple(profile(name) for name in self.profiles)
        path = Path(self.source)
        if _is_file(path):
            trace = read(path, seed=self.seed, limit=self.requests, skip=self.skip, closed_loop=self.closed_loop)
            kinds = kinds or (profile(DEFAULT_PROFILE),)
            fleet = Fleet(tuple(kinds[pod % len(kinds)] for pod in range(self.pods)))
        else:
            trace, fleet = scenarios.build(
                self.source, seed=self.seed, pods=self.pods, profiles=kinds, requests=self.requests
            )
        _require_fit(trace, fleet)
        profiles = tuple(
            with_cache(each, prefix_caching=self.prefix_caching, tier=self.cpu_tier) for each in fleet.profiles
        )
        return trace, Fleet(
            profiles,
            (*fleet.restarts, *self.restarts),
            (*fleet.scalings, *self.scalings),
            self.pickers or fleet.pickers,
        )


def _is_file(path: Path) -> bool:
    """Whether ``path`` is a trace file. False: nothing is there, or something else has the name of a scenario.

    Raises ConfigurationError for a directory and for a pipe. A pipe can be read once, and every parallel replay reads the
    trace.
    """
    try:
        if path.is_file():
            return True
        if str(path) in scenarios.SCENARIOS or not path.exists():
            return False
        fault = (
            "is a directory: name one trace file" if path.is_dir() else "is no regular file: write the trace to a file"
        )
    except OSError as error:
        raise ConfigurationError(f"cannot read the trace {path}: {error.strerror}") from error
    raise ConfigurationError(f"{path} {fault}")


def _require_fit(trace: Trace, fleet: Fleet) -> None:
    largest = max(request.prompt_tokens + request.output_tokens for request in trace.requests)
    smallest = min(fleet.profiles, key=lambda profile: profile.largest_request)
    if largest > smallest.largest_request:
        raise ConfigurationError(
            f"{trace.name} has a request of {largest} tokens, but the KV cache of {smallest.name} holds only "
            f"{smallest.largest_request}: choose another --profile"
        )


class _Run(NamedTuple):
    """One row of a table."""

    name: str
    fleet: Fleet
    factory: Callable[[random.Random], Policy]


def compare(plan: Plan, settings: Settings, console: Console) -> list[Outcome]:
    """Replay with every strategy at every speedup; print progress and a table for each speedup."""
    trace, fleet = plan.load()
    runs = [run for name in plan.strategies for run in _runs(name, fleet, settings, shared=plan.shared)]
    full = saturation(trace, fleet.profiles)
    speedups = plan.speedups or [load * full for load in LOADS]
    if not all(0 < speedup < inf for speedup in speedups):
        raise ConfigurationError("--speedup must be a number above 0")
    outcomes: list[Outcome] = []
    before: list[Outcome] = []
    with terminal.progress(console, MofNCompleteColumn(), TimeElapsedColumn()) as progress:
        for speedup in speedups:
            for name, fleet_of_run, factory in runs:
                replay = Replay(trace, fleet_of_run, factory, strategy=name, speedup=speedup, seed=plan.seed)
                outcomes.append(_with_progress(replay, progress, f"{name} at {speedup:.2f}", len(trace.requests)))
            latest = outcomes[-len(runs) :]
            if before and _held_up_alike(latest, before):
                console.print(
                    f"{trace.name}, speedup {speedup:.2f}: no more load than before. Questions wait for the previous "
                    "answer of their conversation, which takes longer. Use more --requests.",
                    highlight=False,
                )
            else:
                terminal.show(table(latest, load=speedup / full), console)
            for outcome in latest:
                if outcome.failed:
                    console.print(_failure(outcome), highlight=False, markup=False)
            before = latest
    return outcomes


def _runs(name: str, fleet: Fleet, settings: Settings, *, shared: bool) -> list[_Run]:
    """The replays of one strategy; baselines cannot share."""
    factory = policy_factory(name, settings)
    if not shared or name in BASELINES:
        return [_Run(name, fleet, factory)]
    sharing = policy_factory(name, settings, shared=True)
    return [
        _Run(f"{name}, one picker", replace(fleet, pickers=1), factory),
        _Run(f"{name}, {fleet.pickers} sharing", replace(fleet, shared=True), sharing),
        _Run(f"{name}, {fleet.pickers} blind", fleet, factory),
    ]


def _with_progress(replay: Replay, progress: Progress, description: str, total: int) -> Outcome:
    task = progress.add_task(description, total=total)
    outcome = replay.run(lambda answered: progress.update(task, completed=answered))
    progress.remove_task(task)
    return outcome


def table(outcomes: Sequence[Outcome], *, load: float) -> Table:
    """The strategies at one speedup, in order of mean TTFT. ``load`` is the speedup relative to saturation."""
    first = outcomes[0]
    at_most = "at most " if _late(outcomes) else ""
    grid = Table(
        title=f"{first.scenario}: {len(first.ttft)} requests, speedup {first.speedup:.2f}, "
        f"{at_most}{load:.0%} of saturation",
        caption=_caption(outcomes),
    )
    grid.add_column("strategy", no_wrap=True)
    for name in ("TTFT", "p50", "p90", "p99", "e2e", "hits", "imbalance"):
        grid.add_column(name, justify="right", no_wrap=True)
    for figures in sorted((outcome.figures() for outcome in outcomes), key=lambda figures: float(figures["ttft_mean"])):
        times = [f"{figures[key]:.3f}" for key in ("ttft_mean", "ttft_p50", "ttft_p90", "ttft_p99", "e2e_mean")]
        grid.add_row(str(figures["strategy"]), *times, f"{figures['hit_rate']:.1%}", f"{figures['imbalance']:.2f}")
    return grid


def _failure(outcome: Outcome) -> str:
    return (
        f"{outcome.strategy} failed for {outcome.failed} of {len(outcome.ttft)} requests; "
        f"{strategies.FALLBACK} chose for them"
    )


def _late(outcomes: Sequence[Outcome]) -> bool:
    """Whether answers held up the requests that follow them."""
    return max(outcome.sent_seconds for outcome in outcomes) > LATE * outcomes[0].planned_seconds


def _held_up_alike(outcomes: Sequence[Outcome], before: Sequence[Outcome]) -> bool:
    """Whether answers held up the requests so much that the higher speedup sent none of them earlier."""
    return _late(outcomes) and all(
        outcome.sent_seconds > earlier.sent_seconds / LATE for outcome, earlier in zip(outcomes, before, strict=True)
    )


def _caption(outcomes: Sequence[Outcome]) -> str:
    """Units, and the truth about the load where answers held up the requests that follow them."""
    units = "seconds; TTFT is the time to first token"
    planned = outcomes[0].planned_seconds
    sent = sorted(outcome.sent_seconds for outcome in outcomes)
    if not _late(outcomes):
        return units
    return (
        f"{units}\nThe load was lower than the speedup says. Questions wait for the previous answer of their conversation, "
        f"so the requests were sent in {_span(sent[0], sent[-1])} s instead of {planned:.3g} s. With more --requests the "
        "difference is smaller."
    )


def _span(low: float, high: float) -> str:
    least, most = f"{low:.3g}", f"{high:.3g}"
    return least if least == most else f"{least} to {most}"


def write_json(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Write the figures as a list of objects, in seconds and fractions. Raises ConfigurationError."""
    json_file.write(path, [outcome.figures() for outcome in outcomes])


def draw(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Draw a PNG: for each speedup, the TTFT distributions, and the load of one strategy's pods over time.

    That strategy is PREFIX_CACHE or, without it, the first. Raises ConfigurationError if it cannot be written.
    """
    rows = [list(group) for _, group in groupby(outcomes, key=lambda outcome: outcome.speedup)]
    with plot.style():
        figure, axes = plot.new(len(rows), row_height=2.3, extra_height=0.9)
        lines = _lines([outcome.strategy for outcome in rows[0]])
        for row, (left, right) in zip(rows, axes, strict=True):
            for outcome in row:
                plot.distribution(left, outcome.ttft, lines[outcome.strategy], outcome.strategy)
            left.set(ylabel="share of requests", title=f"{row[0].scenario}, speedup {row[0].speedup:.2f}")
            shown = next((outcome for outcome in row if outcome.strategy == EMPHASISED), row[0])
            _draw_load(figure, right, shown)
        for left in axes[1:, 0]:
            left.sharex(axes[0, 0])
        for left in axes[:, 0]:
            plot.finish_distribution(left)
        axes[-1, 0].set_xlabel("time to first token, s")
        axes[-1, 1].set_xlabel("time, s")
        plot.legend(figure, axes[0, 0].get_lines(), columns=4)
        plot.save(figure, path)


def _lines(strategies: Sequence[str]) -> dict[str, plot.Line]:
    """The line of each strategy: coloured if it uses cached prefixes, otherwise grey."""
    greys = cycle(zip(plot.GREYS, _DASHES, strict=True))
    colours = cycle((colour, dashes) for dashes in _DASHES for colour in plot.COLOURS)
    lines = {}
    for name in strategies:
        if name == EMPHASISED:
            lines[name] = plot.Line(plot.BLACK, width=3.2)
        else:
            lines[name] = plot.Line(*next(greys if name in _BLIND else colours), above=3)
    return lines


def _draw_load(figure: Any, axes: Any, outcome: Outcome) -> None:
    from matplotlib.ticker import MaxNLocator

    pods = max(len(sample.requests) for sample in outcome.samples)
    together = -(-len(outcome.samples) // MOMENTS)
    moments = [outcome.samples[i : i + together] for i in range(0, len(outcome.samples), together)]
    load = [
        [
            fmean(requests) if (requests := [s.requests[pod] for s in moment if pod < len(s.requests)]) else nan
            for moment in moments
        ]
        for pod in range(pods)
    ]
    width = (moments[-1][0].at - moments[0][0].at) / max(1, len(moments) - 1) or 1.0
    edges = [moments[0][0].at + i * width for i in range(len(moments) + 1)]
    mesh = axes.pcolormesh(edges, [pod - 0.5 for pod in range(pods + 1)], load, cmap=plot.COLOUR_SCALE, vmin=0)
    figure.colorbar(mesh, ax=axes, label="requests", pad=0.02, ticks=MaxNLocator(5, integer=True))
    axes.set(ylabel="pod", title=f"requests on each pod, {outcome.strategy}")
    axes.set_yticks(range(0, pods, -(-pods // 10)))
