"""Style and output of the benchmarks' pictures.

The colours are those of Okabe and Ito, which are distinguishable with any kind of colour blindness
(https://jfly.uni-koeln.de/color/). matplotlib is optional and slow to import, so it is imported when a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from math import log10
from pathlib import Path
from statistics import NormalDist
from typing import Any

from warmroute.errors import ConfigurationError
from warmroute_lab.json_file import require_place

BLACK, SKY = "#000000", "#56B4E9"
COLOURS = ("#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7", SKY)
"""The rest of the palette without its yellow, which is too light for a line on white."""
GREYS = ("#6e6e6e", "#7c7c7c", "#8a8a8a", "#989898")

WIDTH = 8.4
"""Inches. Documents show pictures about 850 pixels wide, so 9 points have the size of the text."""
DPI = 170
COLOUR_SCALE = "cividis"
"""Perceptually uniform colour map for areas, also with colour blindness."""

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "lines.solid_capstyle": "round",
}

_NORMAL = NormalDist()
_DEVIATIONS = tuple(z / 100 for z in range(-250, 251))
"""Points of a drawn distribution in standard deviations from the median: percentiles 0.6 to 99.4."""
_SHARES = (0.01, 0.1, 0.5, 0.9, 0.99)
_STEPS = ((0.9, (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)), (1.7, (1.0, 2.0, 5.0)), (3.3, (1.0, 3.0)))
"""Labelled multiples of each power of ten, by the largest number of decades of the axis."""


@dataclass(frozen=True, slots=True)
class Line:
    """The line of one distribution; ``dashes`` in matplotlib's notation, ``width`` in points."""

    colour: str
    dashes: Any = "solid"
    width: float = 1.3
    above: int = 2
    """Drawing order: higher numbers cover lower ones."""


def require(path: Path | None) -> None:
    """Raise ConfigurationError if a picture is requested and cannot be drawn. Called before long measurements."""
    require_place(path)
    if path is not None and find_spec("matplotlib") is None:
        raise ConfigurationError("--picture needs matplotlib: pip install matplotlib")


def style() -> AbstractContextManager[None]:
    """A context with the style. Needs matplotlib, see :func:`require`."""
    import matplotlib

    context: AbstractContextManager[None] = matplotlib.rc_context(_STYLE)
    return context


def new(rows: int, *, row_height: float, extra_height: float) -> tuple[Any, Any]:
    """A figure with two columns, and its axes by row and column. Heights in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05)
    figure = Figure(figsize=(WIDTH, row_height * rows + extra_height), layout=layout)
    return figure, figure.subplots(rows, 2, squeeze=False)


def distribution(axes: Any, seconds: Sequence[float], line: Line, label: str) -> None:
    """Draw the cumulative distribution on a normal-probability scale, where a log-normal distribution is a straight line."""
    ordered = sorted(seconds)
    count = len(ordered)
    axes.plot(
        [ordered[min(int(_NORMAL.cdf(z) * count), count - 1)] for z in _DEVIATIONS],
        _DEVIATIONS,
        color=line.colour,
        linewidth=line.width,
        linestyle=line.dashes,
        zorder=line.above,
        label=label,
    )


def finish_distribution(axes: Any) -> None:
    """Set scales and grid after all lines are drawn."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    decades = log10(high / low)
    steps = next((steps for most, steps in _STEPS if decades <= most), (1.0,))
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_minor_locator(LogLocator(subs=range(2, 10)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks([_NORMAL.inv_cdf(share) for share in _SHARES], [f"{share:.0%}" for share in _SHARES])
    axes.set_ylim(_DEVIATIONS[0], _DEVIATIONS[-1])
    axes.grid(visible=True)


def legend(figure: Any, lines: Sequence[Any], *, columns: int) -> None:
    """Draw the legend below all axes."""
    figure.legend(handles=lines, loc="outside lower center", ncols=columns, handlelength=2.8, columnspacing=1.6)


def save(figure: Any, path: Path) -> None:
    """Write the figure as a PNG with a palette of 256 colours, which halves its size. Raises ConfigurationError."""
    from PIL import Image

    buffer = BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png")
    palette = Image.new("P", (1, 1))
    palette.putpalette(_palette())
    reduced = Image.open(buffer).convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)
    try:
        reduced.save(path, format="PNG", optimize=True)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot write {path}: {error}") from error


def _palette() -> list[int]:
    """Red, green and blue of 256 colours: greys, shades of the lines' colours up to white, and the colour scale.

    A palette computed from the picture would replace the colour of thin lines. More greys would be so close to each other
    that white becomes grey.
    """
    import matplotlib
    from matplotlib.colors import to_rgb

    greys = [(i / 23,) * 3 for i in range(24)]
    fading = [
        tuple(1 - (1 - channel) * strength / 10 for channel in to_rgb(colour))
        for colour in COLOURS
        for strength in range(1, 11)
    ]
    scale = [matplotlib.colormaps[COLOUR_SCALE](i / 171)[:3] for i in range(172)]
    return [round(255 * channel) for colour in (*greys, *fading, *scale) for channel in colour]
