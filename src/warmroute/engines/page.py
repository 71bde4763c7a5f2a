"""Parser of Prometheus' text format that reads only the series that are asked for. WITHOUT IO.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/. The work that one page can cause is bounded: in lines,
and in bytes of the samples that are parsed.
"""

from __future__ import annotations

import re
from math import fsum, isfinite, nan

from warmroute.engines.dialects import Capacity, Series
from warmroute.errors import ScrapeError

MOST_LINES = 20_000
"""Lines of a page; a longer page is refused. vLLM 0.26 serves 500 lines (50 kB); pages of 625 kB were seen."""
MOST_SAMPLE_BYTES = 128 << 10
"""Bytes of sample lines that are parsed on one page. A series that would exceed them counts as absent. vLLM's filtered page
needs 3 kB, one of 64 data-parallel ranks about 60 kB; parsing hostile labels takes up to 0.3 us per byte."""

_NAME = re.compile(rb"[a-zA-Z_:][a-zA-Z0-9_:]*+(?=[ \t{])")
_ESCAPED = rb'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"'
_REST_OF_LINE = re.compile(rb"[ \t]*+(?:\{((?:[^\"}\n]++|" + _ESCAPED + rb")*+)\})?[ \t]*+(\S++)")
"""Labels, if any, and value. Possessive quantifiers keep the time linear in the line."""
_LABEL = re.compile(rb'(?<![a-zA-Z0-9_])([a-zA-Z_][a-zA-Z0-9_]*+)[ \t]*+=[ \t]*+"([^"\\\n]*+(?:\\.[^"\\\n]*+)*+)"')
"""One label. The look-behind keeps a search in a long run of letters linear."""
_ESCAPES = re.compile(r"\\(.)")


class Sample:
    """One sample line: its labels and its value."""

    __slots__ = ("_labels", "text", "value")

    def __init__(self, text: bytes, value: float) -> None:
        self.text = text
        """The labels as written on the page, without the braces."""
        self.value = value
        self._labels: dict[str, str] | None = None

    @property
    def labels(self) -> dict[str, str]:
        """The labels, parsed once."""
        if self._labels is None:
            # An iterator: a list of many labels would wake the garbage collector.
            self._labels = {match[1].decode(): _unescaped(match[2]) for match in _LABEL.finditer(self.text)}
        return self._labels


class ScrapedPage:
    """One page. Samples are looked up by name and parsed when they are first asked for."""

    __slots__ = ("_budget", "_lines", "_samples")

    def __init__(self, body: bytes) -> None:
        """Raises ScrapeError if the page has more than :data:`MOST_LINES` lines."""
        if body.count(b"\n") > MOST_LINES:
            raise ScrapeError(f"the metrics page has more than {MOST_LINES} lines")
        self._lines: dict[bytes, list[bytes]] = {}
        for line in body.split(b"\n"):
            if match := _NAME.match(line):
                self._lines.setdefault(match[0], []).append(line)
        self._samples: dict[str, list[Sample]] = {}
        self._budget = MOST_SAMPLE_BYTES

    def samples(self, name: str) -> list[Sample]:
        """The samples of exactly that name in the page's order.

        Empty if the page has none, or if they exceed what is left of :data:`MOST_SAMPLE_BYTES`. Raises ScrapeError if a line
        of that name cannot be parsed.
        """
        samples = self._samples.get(name)
        if samples is None:
            lines = self._lines.get(name.encode(), [])
            size = sum(map(len, lines))
            if size > self._budget:
                lines, size = [], 0
            self._budget -= size
            samples = self._samples[name] = [_sample(line, name) for line in lines]
        return samples

    def figures(self, series: Series) -> list[float]:
        """The finite figures of a series, one for each sample that matches; of replicas the largest."""
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

    def texts(self, series: Series) -> set[str]:
        """The texts of a series that is a label, of the samples that match and have it."""
        texts = set()
        for sample in self.samples(series.name):
            labels = sample.labels
            if series.label in labels and all(labels.get(label, "") == value for label, value in series.where):
                texts.add(labels[series.label])
        return texts

    def total(self, alternatives: tuple[Series, ...], most: float) -> float | None:
        """The sum over the samples of the first series on the page. Figures outside ``0..most`` are left out; None if none
        is left or the sum exceeds ``most``.

        An engine with several data-parallel ranks behind one address exports a sample for each rank. Each rank takes a share
        of the requests sent to the address, so counts add up.
        """
        for series in alternatives:
            if figures := [figure for figure in self.figures(series) if 0 <= figure <= most]:
                total = fsum(figures)
                return total if total <= most else None
        return None

    def share(self, alternatives: tuple[Series, ...]) -> float | None:
        """The mean over the samples of the first series on the page, each clamped to ``0..1``; None without any.

        For the used share of the ranks' caches, which are of equal size. The engine chooses the rank of a request, so the
        largest share would not predict where it lands.
        """
        for series in alternatives:
            if figures := self.figures(series):
                return fsum(min(max(figure, 0.0), 1.0) for figure in figures) / len(figures)
        return None

    def largest(self, alternatives: tuple[Series, ...], most: float) -> float | None:
        """The largest figure in ``1..most`` of the first series that has one; else None. For figures that ranks share."""
        for series in alternatives:
            if figures := [figure for figure in self.figures(series) if 1 <= figure <= most]:
                return max(figures)
        return None

    def tokens(self, alternatives: tuple[Capacity, ...], most: float) -> int | None:
        """KV-cache size in tokens over all ranks, from the first alternative that gives one in ``1..most``; else None."""
        for capacity in alternatives:
            count = self.total((capacity.count,), most)
            size: float | None = 1.0
            if capacity.size is not None:
                size = max((f for f in self.figures(capacity.size) if 0 <= f <= most), default=None)
            if count is not None and size is not None and 1 <= count * size <= most:
                return int(count * size)
        return None


class RankPage(ScrapedPage):
    """The samples of one data-parallel engine on a page, and those that name none."""

    __slots__ = ("_label", "_page", "_rank")

    def __init__(self, page: ScrapedPage, label: str, rank: str) -> None:
        self._page, self._label, self._rank = page, label, rank

    def samples(self, name: str) -> list[Sample]:
        """As those of the page, each parsed once for all ranks."""
        return [each for each in self._page.samples(name) if each.labels.get(self._label, self._rank) == self._rank]


def _sample(line: bytes, name: str) -> Sample:
    match = _REST_OF_LINE.match(line, len(name))
    if match is None:
        raise ScrapeError(f"a sample of {name} cannot be parsed")
    try:
        value = float(match[2])
    except ValueError:
        raise ScrapeError(f"the value of a sample of {name} is not a number") from None
    return Sample(match[1] or b"", value)


def _unescaped(raw: bytes) -> str:
    value = raw.decode(errors="replace")
    if "\\" in value:
        value = _ESCAPES.sub(lambda match: "\n" if match[1] == "n" else match[1], value)
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return nan
