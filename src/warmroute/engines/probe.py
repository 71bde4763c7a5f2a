"""What to ask one engine next, and what its answer means. WITHOUT IO: answers and the time are passed in.

vLLM answers ``/metrics/?name[]=...`` (the slash matters) with those samples only, 1 kB instead of 50 kB or more. Engines
that do not know the filter answer with a redirect, an error, nothing or everything; then the whole page is asked for, and
from then on only that, until the engine restarts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from enum import Enum
from urllib.parse import quote

from warmroute.engines.decode import DecodeRate
from warmroute.engines.dialects import PROCESS_START_TIME, AdapterInfo, Dialect, Series
from warmroute.engines.first_tokens import FirstTokens
from warmroute.engines.page import Page
from warmroute.engines.prefill import PrefillRate
from warmroute.errors import ScrapeError
from warmroute.pool.endpoint import EngineState

_START_TIME = (Series(PROCESS_START_TIME),)


class StatusError(ScrapeError):
    """The engine answered, but not with a page."""


class Again(Enum):
    """Why an answer is not enough and the next one should be asked for at once."""

    UNFILTERED = "the engine does not filter its page"
    RESTARTED = "the engine is a new process: its KV cache and queue are gone, its constants must be read again"


class Probe:
    """The dialogue with one engine, from scrape to scrape."""

    def __init__(self, dialect: Dialect, path: str) -> None:
        self._dialect = dialect
        self.path = path
        """Path of the whole page."""
        changing, constant = dialect.changing_names(), dialect.constant_names()
        self._filter_changing = _filter(path, changing)
        self._filter_all = _filter(path, (*changing, *constant))
        self._prefill = PrefillRate()
        self._decode = DecodeRate()
        self._first_tokens = FirstTokens()
        self.forget()

    def forget(self) -> None:
        """The engine is, or may be, another process: nothing that was read before holds any more."""
        self._filtered = True
        self._capacity: int | None = None
        self._max_num_seqs: int | None = None
        self._start_time: float | None = None
        self._counters: dict[str, float] = {}
        self._seen = False
        self._lost = False
        self._idle_page = b""
        self._idle_state: EngineState | None = None
        self._prefill.interrupt()
        self._decode.interrupt()
        self._first_tokens.interrupt()

    def lost(self) -> None:
        """The engine could not be reached. When it answers again it may be another process, with other habits."""
        self._lost = True
        self._idle_state = None
        self._filtered = True
        self._capacity = None

    def query(self) -> str:
        """Path and query of the next request."""
        if not self._filtered:
            return self.path
        return self._filter_all if self._capacity is None else self._filter_changing

    def answer(self, status: int, body: bytes, asked_at: float) -> EngineState | Again:
        """The state that the answer to :meth:`query` tells, or why to ask again at once.

        Raises :class:`StatusError` or ScrapeError if the engine has nothing of use.
        """
        if self._idle_state is not None and body == self._idle_page and status == 200:
            return replace(self._idle_state, observed_at=asked_at)
        if self._filtered and status < 500:
            try:
                return self._read(status, body, asked_at)
            except ScrapeError:
                self._filtered = False
                return Again.UNFILTERED
        try:
            return self._read(status, body, asked_at)
        except ScrapeError:
            self._filtered = True
            raise

    def _read(self, status: int, body: bytes, asked_at: float) -> EngineState | Again:
        answer = self._state(_page(status, body, self._dialect), asked_at)
        # The filtered page of an idle engine is the same each time, byte for byte.
        self._idle_page, self._idle_state = b"", None
        if isinstance(answer, EngineState) and answer.running + answer.waiting == 0:
            self._idle_page, self._idle_state = body, answer
        return answer

    def _state(self, page: Page, asked_at: float) -> EngineState | Again:
        dialect = self._dialect
        counters = {
            name: total
            for name, alternatives in (
                ("prompt", dialect.prompt_tokens),
                ("requests", dialect.prompt_requests),
                ("computed", dialect.computed_tokens),
                ("first", dialect.first_tokens),
                ("queries", dialect.prefix_queries),
                ("hits", dialect.prefix_hits),
            )
            if (total := page.total(alternatives)) is not None
        }
        start_time = page.total(_START_TIME)
        if self._another_process(start_time, counters):
            self.forget()
            return Again.RESTARTED
        waiting = _count(page.total(dialect.waiting))
        running = _count(page.total(dialect.running))
        awake = page.total(dialect.awake)
        if self._capacity is None:
            self._capacity = page.tokens(dialect.capacity)
            self._max_num_seqs = _count(page.total(dialect.max_num_seqs)) or None
        requests = counters.get("requests")
        if requests is not None and "computed" in counters:
            self._prefill.observe(asked_at, counters["computed"], counters.get("first", requests), waiting)
        computed, seconds = page.total(dialect.request_computed_tokens), page.total(dialect.request_prefill_seconds)
        if requests is not None and computed is not None and seconds is not None:
            self._prefill.observe_requests(computed, requests, seconds)
        later, later_seconds = page.total(dialect.later_tokens), page.total(dialect.later_token_seconds)
        if later is not None and later_seconds is not None:
            self._decode.observe(asked_at, later, later_seconds)
        awaiting = None
        if requests is not None and "first" in counters:
            awaiting = self._first_tokens.awaiting(counters["first"], requests, running, waiting)
        adapters, max_adapters = _adapters(page, dialect.adapters)
        self._start_time, self._counters, self._seen, self._lost = start_time, counters, True, False
        return EngineState(
            observed_at=asked_at,
            running=running,
            waiting=waiting,
            awaiting_first_token=awaiting,
            kv_usage=min(max(page.mean(dialect.kv_usage) or 0.0, 0.0), 1.0),
            capacity_tokens=self._capacity,
            max_num_seqs=self._max_num_seqs,
            loaded_adapters=adapters,
            max_adapters=max_adapters,
            first_tokens_total=counters.get("first"),
            prompt_tokens_total=counters.get("prompt"),
            prompt_requests_total=counters.get("requests"),
            prefix_queries_total=counters.get("queries"),
            prefix_hits_total=counters.get("hits"),
            prefill_rate=self._prefill.tokens_per_second,
            decode_rate=self._decode.tokens_per_second,
            sleeping=awake == 0,
        )

    def _another_process(self, start_time: float | None, counters: dict[str, float]) -> bool:
        """Whether the page is that of another process than the page before.

        Its start time tells; where the page has none, a counter that went back does; where it has no counters either, that
        it could not be reached in between.
        """
        if not self._seen:
            return False
        if any(counters[name] < before for name, before in self._counters.items() if name in counters):
            return True
        if start_time is not None and self._start_time is not None:
            return start_time > self._start_time
        return self._lost and not (counters and self._counters)


def _filter(path: str, names: Iterable[str]) -> str:
    return f"{path.rstrip('/')}/?" + "&".join(f"name[]={quote(name, safe=':')}" for name in dict.fromkeys(names))


def _page(status: int, body: bytes, dialect: Dialect) -> Page:
    if status != 200:
        raise StatusError(f"the engine answers its metrics path with status {status}")
    page = Page(body)
    for what, alternatives in (("waiting", dialect.waiting), ("running", dialect.running)):
        if page.total(alternatives) is None:
            names = " or ".join(series.name for series in alternatives)
            raise ScrapeError(f"the metrics page does not tell the {what} requests ({names})")
    return page


def _count(figure: float | None) -> int:
    return max(0, round(figure)) if figure is not None else 0


def _adapters(page: Page, info: AdapterInfo | None) -> tuple[frozenset[str], int]:
    """The adapters in use and how many fit. Each set of adapters is a series of its own; the last one used is valid."""
    samples = page.samples(info.name) if info is not None else []
    if info is None or not samples:
        return frozenset(), 0
    labels = max(samples, key=lambda sample: sample.value).labels
    listed = f"{labels.get(info.running, '')},{labels.get(info.waiting, '')}".split(",")
    limit = labels.get(info.limit, "")
    return frozenset(filter(None, map(str.strip, listed))), int(limit) if limit.isdecimal() else 0
