"""What a cost benchmark found: a figure of ours beside its floor and its budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any

from rich.table import Table


class Against(StrEnum):
    """How a figure is held against its budget."""

    RATIO = "ratio"
    """Ours divided by the floor."""
    ADDED = "added"
    """Ours less the floor."""
    VALUE = "value"
    """Ours alone; a floor, if there is one, is only shown."""


UNITS: dict[str, Callable[[float], str]] = {
    "s": lambda seconds: f"{seconds * 1e3:.3f} ms" if seconds >= 2e-4 else f"{seconds * 1e6:.0f} us",
    "core": lambda cores: f"{cores:.3f} core",
    "bytes": lambda size: f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size:.0f} B",
}
"""How to write a figure down, by the unit in which it is kept: seconds, cores, bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the result. ``floor``, ``ours`` and, but for ratios, ``result`` and ``budget`` are in ``unit``."""

    what: str
    unit: str
    ours: float
    budget: float
    against: Against
    result: float
    """What is compared with the budget."""
    floor: float | None = None
    spread: tuple[float, float] | None = None
    """Lowest and highest result of the rounds, where it was measured in rounds."""

    @property
    def within(self) -> bool:
        """Whether the budget holds."""
        return self.result <= self.budget

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "what": self.what,
            "unit": self.unit,
            "floor": self.floor,
            "ours": self.ours,
            "against": str(self.against),
            "result": self.result,
            "spread": self.spread,
            "budget": self.budget,
            "within": self.within,
        }


def of_rounds(
    what: str, unit: str, against: Against, budget: float, *, floor: Sequence[float], ours: Sequence[float]
) -> Figure:
    """A figure of paired rounds: each round of ours is compared with the floor of the same round, then the median is taken.

    What slows the machine down for a while slows both of a pair down, and so leaves their ratio alone.
    """
    if len(floor) != len(ours) or not floor:
        raise ValueError(f"{len(floor)} rounds of the floor, {len(ours)} of ours")
    pairs = zip(ours, floor, strict=True)
    match against:
        case Against.RATIO:
            results = [mine / bare for mine, bare in pairs]
        case Against.ADDED:
            results = [mine - bare for mine, bare in pairs]
        case Against.VALUE:
            results = list(ours)
    return Figure(
        what=what,
        unit=unit,
        floor=median(floor),
        ours=median(ours),
        against=against,
        result=median(results),
        spread=(min(results), max(results)),
        budget=budget,
    )


def table(figures: Sequence[Figure], title: str) -> Table:
    """The figures for people."""
    result = Table(title=title)
    result.add_column("what")
    for column in ("floor", "ours", "result", "budget"):
        result.add_column(column, justify="right", no_wrap=True)
    result.add_column("", no_wrap=True)
    for figure in figures:
        write = UNITS[figure.unit]
        result.add_row(
            figure.what,
            "-" if figure.floor is None else write(figure.floor),
            write(figure.ours),
            _result(figure, figure.result),
            _result(figure, figure.budget),
            "[green]within[/]" if figure.within else "[bold red]OVER[/]",
        )
    return result


def _result(figure: Figure, value: float) -> str:
    match figure.against:
        case Against.RATIO:
            return f"x {value:.2f}"
        case Against.ADDED:
            return ("+ " if value >= 0 else "- ") + UNITS[figure.unit](abs(value))
        case Against.VALUE:
            return UNITS[figure.unit](value)
