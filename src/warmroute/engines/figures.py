"""The figures of one metrics page, each within bounds. WITHOUT IO.

The page is untrusted. A figure that is negative, not finite or beyond the bounds of EngineState counts as unknown. A page
whose required figures are unknown is rejected. Sums and differences of these figures cannot overflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from warmroute.engines.dialects import PROCESS_START_TIME, AdapterInfo, Dialect, Series
from warmroute.engines.page import Page
from warmroute.errors import ScrapeError
from warmroute.pool.endpoint import MOST_ADAPTERS, MOST_CAPACITY, MOST_COUNTED, MOST_REQUESTS

_START_TIME = (Series(PROCESS_START_TIME),)


@dataclass(frozen=True, slots=True)
class Constants:
    """Figures that do not change while an engine's process lives; None if unknown."""

    capacity_tokens: int | None = None
    """Tokens that the KV cache holds, at most :data:`MOST_CAPACITY`."""
    max_num_seqs: int | None = None
    """Most requests that run at once, at most :data:`MOST_REQUESTS`."""
    max_model_len: int | None = None
    """Most tokens of a request, prompt and answer together, at most :data:`MOST_CAPACITY`."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures that change from page to page."""

    running: int
    """Requests in execution, at most :data:`MOST_REQUESTS`."""
    waiting: int
    """Requests queued, at most :data:`MOST_REQUESTS`."""
    kv_usage: float = 0.0
    """Share of the KV cache in use, 0 to 1."""
    counters: Mapping[str, float] = field(default_factory=dict)
    """Counters, 0 to :data:`MOST_COUNTED`, by field of :class:`~warmroute.engines.dialects.Dialect`; absent if unknown."""
    start_time: float | None = None
    """Start of the process in Unix seconds."""
    sleeping: bool = False
    """The engine sleeps."""
    adapters: frozenset[str] = frozenset()
    """LoRA adapters running or waiting, at most :data:`MOST_ADAPTERS`."""
    max_adapters: int = 0
    """LoRA adapters that fit at once, at most :data:`MOST_ADAPTERS`; 0 if unknown."""


def read_figures(page: Page, dialect: Dialect) -> Figures:
    """The changing figures. Raises ScrapeError if the running or waiting requests are missing or cannot be used."""
    waiting = _required(page, dialect.waiting, "waiting")
    running = _required(page, dialect.running, "running")
    counters = {
        name: total
        for name, alternatives in dialect.counters().items()
        if (total := page.total(alternatives, MOST_COUNTED)) is not None
    }
    adapters, max_adapters = _adapters(page, dialect.adapters)
    return Figures(
        running=running,
        waiting=waiting,
        kv_usage=page.share(dialect.kv_usage) or 0.0,
        counters=counters,
        start_time=page.total(_START_TIME, MOST_COUNTED),
        sleeping=page.total(dialect.awake, MOST_COUNTED) == 0,
        adapters=adapters,
        max_adapters=max_adapters,
    )


def read_constants(page: Page, dialect: Dialect) -> Constants:
    """The constant figures."""
    max_num_seqs = page.total(dialect.max_num_seqs, MOST_REQUESTS)
    capacity = page.tokens(dialect.capacity, MOST_CAPACITY)
    return Constants(capacity, round(max_num_seqs or 0) or None, _max_model_len(page, dialect, capacity))


def _max_model_len(page: Page, dialect: Dialect, capacity: int | None) -> int | None:
    concurrency = page.total(dialect.max_concurrency, MOST_REQUESTS)
    if capacity is None or not concurrency or capacity > MOST_CAPACITY * concurrency:
        return None
    return round(capacity / concurrency) or None


def _required(page: Page, alternatives: tuple[Series, ...], what: str) -> int:
    total = page.total(alternatives, MOST_REQUESTS)
    if total is None:
        names = " or ".join(series.name for series in alternatives)
        raise ScrapeError(f"no usable number of {what} requests ({names}) on the metrics page")
    return round(total)


def _adapters(page: Page, info: AdapterInfo | None) -> tuple[frozenset[str], int]:
    """The adapters in use and how many fit. Each set of adapters is a sample; the one used last is valid."""
    samples = page.samples(info.name) if info is not None else []
    if info is None or not samples:
        return frozenset(), 0
    labels = max(samples, key=lambda sample: sample.value).labels
    listed = f"{labels.get(info.running, '')},{labels.get(info.waiting, '')}".split(",")
    adapters = frozenset(filter(None, map(str.strip, listed)))
    return adapters if len(adapters) <= MOST_ADAPTERS else frozenset(), _adapter_limit(labels.get(info.limit, ""))


def _adapter_limit(text: str) -> int:
    limit = int(text) if text.isdecimal() and len(text) <= len(str(MOST_ADAPTERS)) else 0
    return limit if limit <= MOST_ADAPTERS else 0
