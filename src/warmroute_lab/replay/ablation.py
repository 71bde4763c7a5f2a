"""``warmroute bench ablate``: what each number of the cost is worth.

Each number is removed, halved and doubled; the rest stays. A row compares such a cost with the whole one in the same cells
with the same seeds. It shows how far seeds differ and how far sources (scenarios and traces) differ, so that noise is seen
as noise: a number is worth something if its removal costs time over all seeds and in all sources but one, whichever that is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import geometric_mean
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from warmroute.settings import Settings, changed
from warmroute.settings.settings import flag_of
from warmroute_lab import json_file, terminal
from warmroute_lab.replay.processes import replay_all
from warmroute_lab.replay.standings import Drawn, Options, Result, replay_one

NUMBERS = (
    "cost_eviction",
    "cost_waiting",
    "cost_pool_waiting",
    "cost_running",
    "cost_balance",
    "cost_balance_from",
    "cost_detour",
    "drain_factor",
    "prefill_rate",
)
"""Settings of the cost that act in replays, which have no adapters and no outages of metrics."""
POSITIVE = frozenset(("cost_balance_from", "drain_factor", "prefill_rate"))
"""Numbers that cannot be removed, since they divide."""
CHANGES = {"removed": 0.0, "halved": 0.5, "doubled": 2.0}
"""Factors by name."""
STRATEGY = "PREFIX_CACHE"


class Variation(NamedTuple):
    """A cost with one number changed, on a fleet of some size."""

    number: str
    """Name of the setting; empty: nothing is changed."""
    change: str

    def apply(self, settings: Settings) -> Settings:
        """The settings with the number changed."""
        if not self.number:
            return settings
        return changed(settings, {self.number: CHANGES[self.change] * getattr(settings, self.number)})


UNCHANGED = Variation("", "")


def variations(numbers: Sequence[str]) -> list[Variation]:
    """The changes of each number that are possible."""
    return [
        Variation(number, change)
        for number, change in product(numbers, CHANGES)
        if not (change == "removed" and number in POSITIVE)
    ]


@dataclass(frozen=True, slots=True)
class Effect:
    """A figure after a change, divided by the figure before it: above 1, the change costs time."""

    typical: float
    """Geometric mean over all cells and seeds."""
    seeds: tuple[float, float] | None
    """Least and most of the geometric means of single seeds; None: there is one seed."""
    without_one_source: tuple[float, float] | None
    """Least and most of the geometric means over all sources but one; None: there is one source."""

    @classmethod
    def of(cls, ratios: Mapping[Drawn, float]) -> Effect:
        """The effect in at least one draw."""
        seeds = sorted({drawn.seed for drawn in ratios})
        sources = sorted({drawn.cell.scenario for drawn in ratios})
        by_seed = [[ratio for drawn, ratio in ratios.items() if drawn.seed == seed] for seed in seeds]
        rest = [[ratio for drawn, ratio in ratios.items() if drawn.cell.scenario != source] for source in sources]
        return cls(_mean(ratios.values()), _range(by_seed), _range(rest))

    @property
    def known(self) -> bool:
        """Whether several seeds or several sources show how far the effect varies."""
        return self.seeds is not None or self.without_one_source is not None

    @property
    def noise(self) -> bool:
        """Whether the effect has not one direction over all seeds and all choices of sources."""
        ends: list[float] = [self.typical, *(self.seeds or ()), *(self.without_one_source or ())]
        return min(ends) <= 1 <= max(ends)

    def __str__(self) -> str:
        return f"{self.typical:.3f}  seeds {_shown(self.seeds)}  sources {_shown(self.without_one_source)}"


def _range(groups: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """Least and most of the groups' geometric means; None of a single group."""
    if len(groups) == 1:
        return None
    means = [_mean(group) for group in groups]
    return min(means), max(means)


def _shown(ends: tuple[float, float] | None) -> str:
    return f"{ends[0]:.2f} to {ends[1]:.2f}" if ends is not None else "-"


def _mean(ratios: Iterable[float]) -> float:
    return geometric_mean(list(ratios))


def effect(results: Sequence[Result], before: Sequence[Result], figure: str) -> Effect:
    """The effect on ``figure`` of the change between two lists of results in the same draws on the same fleets."""
    known = {(result.drawn, result.pods): getattr(result, figure) for result in before}
    ratios: dict[Drawn, list[float]] = {}
    for result in results:
        ratios.setdefault(result.drawn, []).append(getattr(result, figure) / known[result.drawn, result.pods])
    return Effect.of({drawn: geometric_mean(each) for drawn, each in ratios.items()})


def measure(
    fleets: Sequence[Options], numbers: Sequence[str], settings: Settings, console: Console
) -> dict[Variation, list[Result]]:
    """Replay the whole cost and each variation in every draw of every fleet."""
    asked = [
        (variation, drawn, options)
        for variation in (UNCHANGED, *variations(numbers))
        for options in fleets
        for drawn in options.draws()
    ]
    arguments = [(drawn, STRATEGY, options, variation.apply(settings)) for variation, drawn, options in asked]
    results: dict[Variation, list[Result]] = {}
    for (variation, _, _), result in zip(
        asked, replay_all(replay_one, arguments, console, jobs=fleets[0].jobs), strict=True
    ):
        results.setdefault(variation, []).append(result)
    return results


def table(results: Mapping[Variation, Sequence[Result]]) -> Table:
    """One row for each change."""
    before = results[UNCHANGED]
    cells = {(result.drawn.cell, result.pods) for result in before}
    grid = Table(
        title=f"time after a change divided by the time before, {len(cells)} cells: geometric mean",
        caption="Above 1: the change costs time. Behind each mean: the least and the most of single seeds, and of all "
        "sources but one; - where there is one only. A row whose ranges include 1 for mean and p99 is noise; telling noise "
        "takes several seeds and several sources (scenarios, traces).",
    )
    grid.add_column("number", no_wrap=True)
    for name in ("change", "mean TTFT", "p99 of TTFT", ""):
        grid.add_column(name)
    for variation, after in results.items():
        if variation is not UNCHANGED:
            mean, tail = (effect(after, before, figure) for figure in ("ttft_mean", "ttft_p99"))
            verdict = "unknown" if not mean.known else "noise" if mean.noise and tail.noise else ""
            grid.add_row(flag_of(variation.number), variation.change, str(mean), str(tail), verdict)
    return grid


def run(
    fleets: Sequence[Options],
    numbers: Sequence[str],
    settings: Settings,
    console: Console,
    *,
    output: Path | None = None,
) -> None:
    """Replay, print the table and write the figures to ``output``. Raises ConfigurationError."""
    json_file.require_place(output)
    results = measure(fleets, numbers or NUMBERS, settings, console)
    try:
        terminal.show(table(results), console)
    finally:
        if output is not None:
            rows = [
                {"number": variation.number, "change": variation.change} | result.plain()
                for variation, after in results.items()
                for result in after
            ]
            json_file.write(output, rows)
