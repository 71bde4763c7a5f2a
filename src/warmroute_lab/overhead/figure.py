"""One figure of the cost benchmark: the picker's value beside its floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any

from rich.table import Table


class Against(StrEnum):
    """How the picker's value is compared with the floor."""

    RATIO = "ratio"
    """The picker's value divided by the floor."""
    ADDED = "added"
    """The picker's value minus the floor."""
    VALUE = "value"
    """The picker's value. A floor, if there is one, is only shown."""


UNITS: dict[str, Callable[[float], str]] = {
    "s": lambda seconds: f"{seconds * 1e3:.3f} ms" if seconds >= 2e-4 else f"{seconds * 1e6:.0f} us",
    "core": lambda cores: f"{cores:.3f} core",
    "bytes": lambda size: f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size:.0f} B",
}
"""Format of a value, by its unit: seconds, cores, bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the result. ``floor`` and ``picker`` are in ``unit``; ``result`` and ``budget``, too, except ratios."""

    what: str
    unit: str
    picker: float
    """The picker's value."""
    budget: float
    """The project's upper bound of ``result``."""
    against: Against
    result: float
    """The comparison of the picker's value with the floor."""
    floor: float | None = None
    spread: tuple[float, float] | None = None
    """Lowest and highest result of the rounds; None without rounds."""

    @property
    def within(self) -> bool:
        """Whether the result is within the budget."""
        return self.result <= self.budget

    def plain(self, *, budgets: bool) -> dict[str, Any]:
        """The figure for JSON, with its budget if ``budgets``."""
        figure = {
            "what": self.what,
            "unit": self.unit,
            "floor": self.floor,
            "picker": self.picker,
            "against": str(self.against),
            "result": self.result,
            "spread": self.spread,
        }
        return figure | ({"budget": self.budget, "within": self.within} if budgets else {})


def of_rounds(
    what: str, unit: str, against: Against, budget: float, *, floor: Sequence[float], picker: Sequence[float]
) -> Figure:
    """The figure of several rounds: the picker is compared with the floor of the same round; the result is the median.

    A slow phase of the machine affects both values of a round, so their ratio changes little. Raises ValueError if the
    numbers of rounds differ or are 0.
    """
    if len(floor) != len(picker) or not floor:
        raise ValueError(f"{len(floor)} rounds of the floor, {len(picker)} of the picker")
    pairs = zip(picker, floor, strict=True)
    match against:
        case Against.RATIO:
            results = [value / least for value, least in pairs]
        case Against.ADDED:
            results = [value - least for value, least in pairs]
        case Against.VALUE:
            results = list(picker)
    return Figure(
        what=what,
        unit=unit,
        floor=median(floor),
        picker=median(picker),
        against=against,
        result=median(results),
        spread=(min(results), max(results)),
        budget=budget,
    )


def table(figures: Sequence[Figure], title: str, *, budgets: bool) -> Table:
    """The figures as a table, with the budgets if ``budgets``."""
    result = Table(title=title)
    result.add_column("what")
    for column in ("floor", "picker", "result", *(("budget", "") if budgets else ())):
        result.add_column(column, justify="right", no_wrap=True)
    for figure in figures:
        write = UNITS[figure.unit]
        result.add_row(
            figure.what,
            "-" if figure.floor is None else write(figure.floor),
            write(figure.picker),
            _result(figure, figure.result),
            *((_result(figure, figure.budget), _judgement(figure)) if budgets else ()),
        )
    return result


def _judgement(figure: Figure) -> str:
    return "[green]within[/]" if figure.within else "[bold red]over[/]"


def _result(figure: Figure, value: float) -> str:
    match figure.against:
        case Against.RATIO:
            return f"x {value:.2f}"
        case Against.ADDED:
            return ("+ " if value >= 0 else "- ") + UNITS[figure.unit](abs(value))
        case Against.VALUE:
            return UNITS[figure.unit](value)
