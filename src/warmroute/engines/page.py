"""A metrics page in Prometheus' text format, read only where it is needed. WITHOUT IO."""

from __future__ import annotations

import re
from math import fsum, isfinite, nan
from typing import NamedTuple

from warmroute.engines.dialects import Capacity, Series
from warmroute.errors import ScrapeError

_QUOTED = rb'"(?:[^"\\\n]|\\.)*+"'
_REST_OF_LINE = re.compile(rb"[ \t]*+(?:\{((?:[^\"}\n]|" + _QUOTED + rb")*+)\})?[ \t]*+(\S++)")
"""Labels, if any, and value. The quantifiers never give back, so the time is linear in the line whatever it holds."""
_LABEL = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*+)[ \t]*+=[ \t]*+"((?:[^"\\\n]|\\.)*+)"')
_ESCAPES = re.compile(r"\\(.)")
_NAME_ENDS = b" \t{"


class Sample(NamedTuple):
    """One line of the page."""

    text: bytes
    """The labels as the page has them, without the braces."""
    value: float

    @property
    def labels(self) -> dict[str, str]:
        """The labels, parsed."""
        labels = {}
        for name, raw in _LABEL.findall(self.text):
            value = raw.decode(errors="replace")
            if "\\" in value:
                value = _ESCAPES.sub(lambda match: "\n" if match[1] == "n" else match[1], value)
            labels[name.decode()] = value
        return labels


class Page:
    """One page. Samples are looked for by name; lines that nobody asks for are not parsed."""

    __slots__ = ("_found", "_text")

    def __init__(self, body: bytes) -> None:
        self._text = b"\n" + body
        self._found: dict[str, list[Sample]] = {}

    def samples(self, name: str) -> list[Sample]:
        """The samples of exactly that name, in the page's order; none if the page has none.

        Raises ScrapeError when a line of that name cannot be read.
        """
        found = self._found.get(name)
        if found is None:
            found = self._found[name] = self._find(name)
        return found

    def figures(self, series: Series) -> list[float]:
        """The figures of a series, one for each sample that has one and is no replica of another; only finite ones."""
        figures: dict[object, float] = {}
        for sample in self.samples(series.name):
            figure = sample.value
            source: object = sample.text
            if series.where or series.label is not None or series.replicas:
                labels = sample.labels
                if any(labels.get(label, "") != value for label, value in series.where):
                    continue
                if series.label is not None:
                    figure = _number(labels.get(series.label, ""))
                if series.replicas:
                    source = frozenset(item for item in labels.items() if item[0] not in series.replicas)
            if isfinite(figure):
                figures[source] = max(figure, figures.get(source, figure))
        return [*figures.values()]

    def total(self, alternatives: tuple[Series, ...]) -> float | None:
        """The sum over the samples of the first series that the page has; None without any.

        An engine with several data-parallel ranks behind one address exports a sample for each rank. Counts add up: the
        address is one place to send a request to, and each of its ranks takes a share.
        """
        for series in alternatives:
            if figures := self.figures(series):
                return fsum(figures)
        return None

    def mean(self, alternatives: tuple[Series, ...]) -> float | None:
        """The mean over the samples of the first series that the page has; None without any.

        For shares of the ranks' caches: ranks have caches of equal size, so the mean is the used share of all of them. The
        largest share would tell nothing of a request's fate, since the engine itself picks the rank.
        """
        for series in alternatives:
            if figures := self.figures(series):
                return fsum(figures) / len(figures)
        return None

    def tokens(self, alternatives: tuple[Capacity, ...]) -> int | None:
        """KV-cache size in tokens over all ranks, by the first way that the page and its labels allow; else None."""
        for capacity in alternatives:
            count = fsum(self.figures(capacity.count))
            size = max(self.figures(capacity.size), default=0.0) if capacity.size is not None else 1.0
            if isfinite(count * size) and count * size >= 1:
                return int(count * size)
        return None

    def _find(self, name: str) -> list[Sample]:
        text, line_start = self._text, b"\n" + name.encode()
        found = []
        at = text.find(line_start)
        while at >= 0:
            end = at + len(line_start)
            if text[end : end + 1] in _NAME_ENDS and end < len(text):
                found.append(_sample(text, end, name))
            at = text.find(line_start, end)
        return found


def _sample(text: bytes, start: int, name: str) -> Sample:
    match = _REST_OF_LINE.match(text, start)
    if match is None:
        raise ScrapeError(f"a sample of {name} cannot be read")
    try:
        value = float(match[2])
    except ValueError:
        raise ScrapeError(f"a sample of {name} has no number for a value") from None
    return Sample(match[1] or b"", value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return nan
