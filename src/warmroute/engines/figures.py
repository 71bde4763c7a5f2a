"""The figures of one metrics page, each within bounds. WITHOUT IO.

The page is untrusted. A figure that is negative, not finite or beyond the bounds of EngineState counts as unknown. A page
whose required figures are unknown is rejected. Sums and differences of these figures cannot overflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import NamedTuple

from warmroute.engines.dialects import PROCESS_START_TIME, AdapterInfo, Dialect, Series
from warmroute.engines.page import ScrapedPage
from warmroute.errors import ScrapeError
from warmroute.pool.endpoint import MOST_ADAPTERS, MOST_BLOCK_SIZE, MOST_CAPACITY, MOST_COUNTED, MOST_REQUESTS

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
    block_size: int | None = None
    """Tokens in a block of the KV cache, at most :data:`MOST_BLOCK_SIZE`."""
    prefix_caching: bool | None = None
    """Whether the engine keeps prompts in its KV cache."""
    tier_tokens: int | None = None
    """Tokens that a second tier of the KV cache holds, at most :data:`MOST_CAPACITY`."""


class AdapterSet(NamedTuple):
    """The adapters of one sample: those that were in use together."""

    labels: bytes
    """The sample's labels, which identify it from page to page."""
    used: float
    """Grows while this set is in use."""
    names: frozenset[str]


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
    adapter_sets: tuple[AdapterSet, ...] = ()
    """Sets of LoRA adapters that were running or waiting at one time, each of at most :data:`MOST_ADAPTERS`."""
    loaded_adapters: frozenset[str] = frozenset()
    """LoRA adapters that the engine holds ready for use, at most :data:`MOST_ADAPTERS`."""
    max_adapters: int = 0
    """LoRA adapters that fit at once, at most :data:`MOST_ADAPTERS`; 0 if unknown."""


def read_figures(page: ScrapedPage, dialect: Dialect) -> Figures:
    """The changing figures. Raises ScrapeError if the running or waiting requests are missing or cannot be used."""
    waiting = _required(page, dialect.waiting, "waiting")
    running = _required(page, dialect.running, "running")
    counters = {
        name: total
        for name, alternatives in dialect.counters().items()
        if (total := page.total(alternatives, MOST_COUNTED)) is not None
    }
    for name in dialect.late:
        if not any(page.samples(series.name) for series in getattr(dialect, name)):
            counters[name] = 0.0
    return Figures(
        running=running,
        waiting=waiting,
        kv_usage=page.share(dialect.kv_usage) or 0.0,
        counters=counters,
        start_time=page.total(_START_TIME, MOST_COUNTED),
        sleeping=page.total(dialect.awake, MOST_COUNTED) == 0,
        adapter_sets=_adapter_sets(page, dialect.adapters),
        loaded_adapters=_loaded_adapters(page, dialect.adapters),
        max_adapters=_max_adapters(page, dialect.adapters),
    )


def read_constants(page: ScrapedPage, dialect: Dialect) -> Constants:
    """The constant figures."""
    max_num_seqs = page.total(dialect.max_num_seqs, MOST_REQUESTS)
    capacity = page.tokens(dialect.capacity, MOST_CAPACITY)
    return Constants(
        capacity_tokens=capacity,
        max_num_seqs=round(max_num_seqs or 0) or None,
        max_model_len=_max_model_len(page, dialect, capacity),
        block_size=_whole(page.largest(dialect.block_size, MOST_BLOCK_SIZE)),
        prefix_caching=_yes_or_no(page, dialect.prefix_caching),
        tier_tokens=_whole(page.total(dialect.tier_tokens, MOST_CAPACITY)),
    )


def _whole(figure: float | None) -> int | None:
    return None if figure is None else round(figure) or None


def _yes_or_no(page: ScrapedPage, alternatives: tuple[Series, ...]) -> bool | None:
    """True if any rank says so, False if all that say anything say no."""
    texts = {text.lower() for series in alternatives for text in page.texts(series)}
    return True if "true" in texts else False if "false" in texts else None


def _max_model_len(page: ScrapedPage, dialect: Dialect, capacity: int | None) -> int | None:
    concurrency = page.total(dialect.max_concurrency, MOST_REQUESTS)
    if capacity is None or not concurrency or capacity > MOST_CAPACITY * concurrency:
        return None
    return round(capacity / concurrency) or None


def _required(page: ScrapedPage, alternatives: tuple[Series, ...], what: str) -> int:
    total = page.total(alternatives, MOST_REQUESTS)
    if total is None:
        names = " or ".join(series.name for series in alternatives)
        raise ScrapeError(f"no usable number of {what} requests ({names}) on the metrics page")
    return round(total)


def _adapter_sets(page: ScrapedPage, info: AdapterInfo | None) -> tuple[AdapterSet, ...]:
    if info is None:
        return ()
    sets = []
    for sample in page.samples(info.name):
        labels = sample.labels
        listed = f"{labels.get(info.running, '')},{labels.get(info.waiting, '')}".split(",")
        names = frozenset(filter(None, map(str.strip, listed)))
        if isfinite(sample.value):
            sets.append(AdapterSet(sample.text, sample.value, names if len(names) <= MOST_ADAPTERS else frozenset()))
    return tuple(sets)


def _loaded_adapters(page: ScrapedPage, info: AdapterInfo | None) -> frozenset[str]:
    if info is None:
        return frozenset()
    names = frozenset(
        name
        for sample in page.samples(info.loaded)
        if sample.value == 1
        and all(sample.labels.get(label) == value for label, value in info.on_gpu)
        and (name := sample.labels.get(info.adapter))
    )
    return names if len(names) <= MOST_ADAPTERS else frozenset()


def _max_adapters(page: ScrapedPage, info: AdapterInfo | None) -> int:
    """How many adapters fit at once; 0 if the page does not say."""
    if info is None:
        return 0
    texts = page.texts(Series(info.name, label=info.limit))
    return max((limit for text in texts if (limit := _adapter_limit(text))), default=0)


def _adapter_limit(text: str) -> int:
    limit = int(text) if text.isdecimal() and len(text) <= len(str(MOST_ADAPTERS)) else 0
    return limit if limit <= MOST_ADAPTERS else 0
