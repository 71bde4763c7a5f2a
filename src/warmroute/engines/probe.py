"""The exchange of requests and answers with one engine's metrics page. WITHOUT IO: answers and the time are passed in.

vLLM answers ``/metrics/?name[]=...`` (the slash matters) with those samples only: 1 kB rather than 50 kB or more. An engine
without the filter answers with a redirect, an error, nothing or everything. Then the whole page is asked for until the
engine restarts; after an error of the server (5xx), which may pass, for :data:`PLAIN_PAGES` pages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from enum import Enum
from urllib.parse import quote

from warmroute.engines.dialects import Dialect
from warmroute.engines.figures import Constants, Figures, read_constants, read_figures
from warmroute.engines.page import RankPage, ScrapedPage
from warmroute.engines.state_builder import StateBuilder
from warmroute.errors import ScrapeError
from warmroute.pool.endpoint import MOST_RANKS, EngineState

PLAIN_PAGES = 100
"""Whole pages that are read before the filter is tried again, if it was answered with a status of 500 to 599."""
MOST_IDLE_BYTES = 16 << 10
"""Size of an idle engine's page up to which it is kept to be compared with the next one. A filtered page has 1 to 3 kB; a
whole page differs every time."""

_KEY = "it wants an API key: --model-server-token-file"
HINTS = {
    401: _KEY,
    403: _KEY,
    404: "SGLang needs --enable-metrics; for another path: --model-server-metrics-path",
}
"""What is wrong, by status."""


class StatusError(ScrapeError):
    """The engine answered with a status other than 200."""


class Again(Enum):
    """Why an answer is not enough and the next request should follow at once."""

    UNFILTERED = "the engine does not filter its page"
    RESTARTED = "the engine is a new process: its KV cache and queue are gone, its constants must be read again"


class _Engine:
    """One engine behind the page, from page to page."""

    __slots__ = ("constants", "figures", "states")

    def __init__(self) -> None:
        self.constants = Constants()
        self.figures: Figures | None = None
        """Of the last page."""
        self.states = StateBuilder()

    def forget(self) -> None:
        """It is a new process, or may be one: discard everything but the estimated speeds."""
        self.constants, self.figures = Constants(), None
        self.states.interrupt()

    def is_restarted(self, figures: Figures, *, lost: bool) -> bool:
        """Whether the page comes from another process than the page before: the engine has restarted.

        Evidence, in this order: a counter that went back; a later start time; and, on pages with neither, an interruption.
        """
        before = self.figures
        if before is None:
            return False
        if any(figures.counters[name] < value for name, value in before.counters.items() if name in figures.counters):
            return True
        if figures.start_time is not None and before.start_time is not None:
            return figures.start_time > before.start_time
        return lost and not (figures.counters and before.counters)


class Probe:
    """The next request to one engine and the reading of its answer, from scrape to scrape.

    With ``split_ranks`` a page of several data-parallel engines gives a state for each; else their figures are added up.
    """

    def __init__(self, dialect: Dialect, path: str, *, split_ranks: bool = False) -> None:
        self._dialect = dialect
        self.path = path
        """Path of the whole page."""
        changing, constant = dialect.changing_names(), dialect.constant_names()
        self._filter_changing = _filter(path, changing)
        self._filter_all = _filter(path, (*changing, *constant))
        self._split_ranks = split_ranks
        self._engines = [_Engine()]
        self.states: tuple[EngineState, ...] = ()
        """The states of the last page that was of use: one, or one for each rank."""
        self.forget()

    def forget(self) -> None:
        """The engine is a new process, or may be one: discard everything but the estimated speeds."""
        self._filtered = True
        self._plain_pages: int | None = None
        """Whole pages to read until the filter is tried again; None: until the engine restarts."""
        self._lost = False
        self._idle_page = b""
        self._is_idle = False
        for engine in self._engines:
            engine.forget()

    def lost(self) -> None:
        """The engine could not be reached. When it answers again it may be another process with another page."""
        self._lost = True
        self._is_idle = False
        self._filtered = True
        for engine in self._engines:
            engine.constants = Constants()

    def query(self) -> str:
        """Path and query of the next request."""
        if not self._filtered:
            return self.path
        return self._filter_all if self._engines[0].constants.capacity_tokens is None else self._filter_changing

    def answer(self, status: int, body: bytes, asked_at: float) -> EngineState | Again:
        """The state according to the answer to :meth:`query`, or why to ask again at once. Of several ranks it is the first
        one's; :attr:`states` has all.

        Raises :class:`StatusError` or ScrapeError if the answer is of no use. Then the estimators are as they were.
        """
        if self._is_idle and body == self._idle_page and status == 200:
            self.states = tuple(replace(state, observed_at=asked_at) for state in self.states)
            return self.states[0]
        if self._filtered:
            try:
                return self._read(status, body, asked_at)
            except ScrapeError:
                self._filtered = False
                self._plain_pages = PLAIN_PAGES if status >= 500 else None
                return Again.UNFILTERED
        try:
            answer = self._read(status, body, asked_at)
        except ScrapeError:
            self._filtered = True
            raise
        if self._plain_pages is not None and answer is not Again.RESTARTED:
            self._plain_pages -= 1
            self._filtered = self._plain_pages <= 0
        return answer

    def _read(self, status: int, body: bytes, asked_at: float) -> EngineState | Again:
        """The state of one page. Nothing changes unless the whole page can be read."""
        if status != 200:
            hint = f" ({HINTS[status]})" if status in HINTS else ""
            raise StatusError(f"the engine answers its metrics path with status {status}{hint}")
        page = ScrapedPage(body)
        pages = self._ranks(page) if self._split_ranks else [page]
        figures = [read_figures(each, self._dialect) for each in pages]
        if len(pages) != len(self._engines):
            self._engines = [_Engine() for _ in pages]
        engines = self._engines
        if any(each.is_restarted(new, lost=self._lost) for each, new in zip(engines, figures, strict=True)):
            self.forget()
            return Again.RESTARTED
        constants = [
            read_constants(each, self._dialect) if engine.constants.capacity_tokens is None else engine.constants
            for each, engine in zip(pages, engines, strict=True)
        ]
        states = []
        for engine, new, constant in zip(engines, figures, constants, strict=True):
            states.append(engine.states.build(new, constant, asked_at))
            engine.constants, engine.figures = constant, new
        self.states, self._lost = tuple(states), False
        self._remember_idle(body)
        return states[0]

    def _ranks(self, page: ScrapedPage) -> list[ScrapedPage]:
        """The parts of the page, one for each data-parallel engine, if they are numbered from 0."""
        label = self._dialect.rank_label
        if label is None:
            return [page]
        found = {sample.labels.get(label) for series in self._dialect.waiting for sample in page.samples(series.name)}
        names = [str(rank) for rank in range(len(found))]
        if not 1 < len(found) <= MOST_RANKS or found != set(names):
            return [page]
        return [RankPage(page, label, name) for name in names]

    def _remember_idle(self, body: bytes) -> None:
        """Keep the filtered page of an idle engine: the next one has equal bytes and need not be parsed."""
        busy = any(state.running + state.waiting for state in self.states)
        self._is_idle = not busy and len(body) <= MOST_IDLE_BYTES
        self._idle_page = body if self._is_idle else b""


def _filter(path: str, names: Iterable[str]) -> str:
    return f"{path.rstrip('/')}/?" + "&".join(f"name[]={quote(name, safe=':')}" for name in dict.fromkeys(names))
