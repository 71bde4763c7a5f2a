"""The data of the live page: figures once a second, and one JSON document of them for all viewers.

Security: figures that depend on what others' prompts have in common stay coarse. The sums of cached tokens, and of the
times predicted from them, count each decision rounded to a multiple of :data:`CACHED_STEP`, up or down at random, so they
are right on average. A reader who takes the difference of two sums learns no more of one prompt than that multiple.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from warmroute.observability.endpoint_reading import EndpointReading
from warmroute.observability.instruments import SECONDS
from warmroute.observability.live import document
from warmroute.observability.live.engine_history import POINT_SECONDS, EngineHistory
from warmroute.observability.live.notices import COMPUTING_SECONDS, STALE_SECONDS, Notice, bypassed, notices
from warmroute.observability.live.shared_prefixes import SharedPrefix, SharedPrefixes
from warmroute.observability.live.traffic import NO_REQUESTS, Arm, Totals, Traffic
from warmroute.observability.metrics import Metrics
from warmroute.observability.page_server import Page, Request, Routes, Slices
from warmroute.pool.endpoint import EngineState, endpoint_state
from warmroute.routing.decision import Decision
from warmroute.routing.decision_listener import DecisionListener
from warmroute.routing.decision_record import CACHED_STEP, DecisionRecord

INTERVAL = 1.0
"""Seconds between two samples."""
DECAY_EVERY = 5
"""Samples from one decay of the prefixes' counts to the next."""
MOST_PREFIXES = 16
"""Rows of the table of shared prefixes."""
MOST_DECISIONS = 10
"""Decisions of one document; at a higher request rate the page shows some of them."""
CANDIDATES = 3
"""Candidates of a decision that are explained."""

ENGINE_COLUMNS = (
    "endpoint",
    "target",
    "engine",
    "state",
    "waiting",
    "running",
    "engine_waiting",
    "engine_running",
    "queue_seconds",
    "kv_usage",
    "expected_hit_ratio",
    "measured_hit_ratio",
    "picks_per_second",
    "share_of_picks",
    "restarts",
    "scrape_age_seconds",
    "slowness",
)
"""Figures of an engine, in the order of its row."""


@dataclass(frozen=True, slots=True)
class PickerView:
    """How the feed reads the picker. Each callable is called for each sample and each document."""

    readings: Callable[[], Iterator[EndpointReading]]
    holders: Callable[[Sequence[int]], Collection[str]]
    """Ids of the endpoints that hold all of a prompt's first checkpoints."""
    decisions: Callable[[], Sequence[DecisionRecord]]
    """The latest decisions, newest first."""
    booked: Callable[[], int]
    """Requests given an endpoint since the start, other pickers' included."""
    holdout: Callable[[], float]
    """Share of the requests that is held out."""
    bytes_per_token: Callable[[], float]
    about: Callable[[], Mapping[str, str]]
    """Version, strategy and name of the pool."""


class LiveFeed(DecisionListener):
    """Samples the picker once a second while :meth:`run` runs. ``chance`` gives random numbers from 0 to 1."""

    def __init__(
        self,
        view: PickerView,
        metrics: Metrics,
        *,
        key: bytes,
        chance: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._view = view
        self._metrics = metrics
        self._chance = chance
        self._clock = clock
        self._began_at = clock()
        self._traffic = Traffic(SECONDS)
        self._traffic.add(Totals(self._began_at))
        self._prefixes = SharedPrefixes(key=key, now=self._began_at)
        self._histories: dict[str, EngineHistory] = {}
        self._rows: list[tuple[Any, ...]] = []
        self._states: Counter[str] = Counter()
        self._stale = 0
        self._samples = 0
        self._prompts = self._computing = 0
        self._prompt_tokens = self._cached_tokens = self._random_cached_tokens = 0.0
        self._arms = [NO_REQUESTS, NO_REQUESTS]
        """Of the strategy, and held out."""
        self._failures: Counter[str] = Counter()
        """Requests for which a strategy failed, by its name."""
        self._document: bytes | None = None
        self._making = asyncio.Lock()

    # ---------------------------------------------------------------- what is counted

    def decided(self, decision: Decision, record: DecisionRecord) -> None:
        """Count its cached tokens, the beginnings of its prompt and a strategy that failed. While a share is held out, count
        its predicted TTFT."""
        if decision.failed_strategy:
            self._failures[decision.failed_strategy] += 1
        cached = self._coarse(decision.cached_tokens)
        if self._view.holdout():
            former = self._arms[decision.held_out]
            predicted = record.predicted_ttft_holding(record.position, cached)
            self._arms[decision.held_out] = Arm(former.requests + 1, former.ttft_seconds + predicted)
        if decision.chain.hashes:
            self._prompts += 1
            self._prompt_tokens += decision.prompt_tokens
            self._cached_tokens += cached
            self._random_cached_tokens += self._coarse(decision.random_cached_tokens)
            self._prefixes.count(decision.chain)

    def measured(self, decision: Decision) -> None:
        """Nothing: the page shows what was predicted."""

    def _coarse(self, tokens: float) -> int:
        """The tokens as a multiple of CACHED_STEP that is right on average."""
        return int(tokens / CACHED_STEP + self._chance()) * CACHED_STEP

    async def run(self) -> None:
        """Sample once a second. Never returns."""
        while True:
            await self.sample()
            await asyncio.sleep(INTERVAL)

    async def sample(self) -> None:
        """Read every endpoint, in short slices."""
        slices = Slices()
        readings = await self._read_endpoints(slices)
        picks = sum(history.recent_picks for history in self._histories.values())
        now = self._clock()
        rows = []
        for reading in readings:
            rows.append(self._row(reading, self._histories[reading.endpoint.id], picks, now))
            await slices.pause()
        self._rows = rows
        self._states = Counter(endpoint_state(reading.endpoint) for reading in readings)
        self._stale = sum(reading.endpoint.ready and reading.page_age(now) > STALE_SECONDS for reading in readings)
        self._computing += sum(history.computing for history in self._histories.values())
        self._traffic.add(self._totals(now))
        if self._samples % DECAY_EVERY == 0:
            self._prefixes.decay(now)
        self._samples += 1
        self._document = None

    async def _read_endpoints(self, slices: Slices) -> list[EndpointReading]:
        """Add a point to the history of every endpoint; drop the histories of those that have left."""
        histories: dict[str, EngineHistory] = {}
        readings: list[EndpointReading] = []
        for reading in self._view.readings():
            endpoint = reading.endpoint
            history = histories[endpoint.id] = self._histories.get(endpoint.id) or EngineHistory()
            history.add(
                in_flight=reading.waiting + reading.running,
                picks=self._metrics.counts_of(endpoint.id).picks,
                work=None if endpoint.state is None else _work(endpoint.state),
            )
            readings.append(reading)
            await slices.pause()
        self._histories = histories
        return readings

    def _totals(self, now: float) -> Totals:
        """Counts since the start."""
        traffic = self._metrics.traffic()
        return Totals(
            now,
            requests=traffic.requests,
            booked=self._view.booked(),
            errors=traffic.errors,
            prompts=self._prompts,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            random_cached_tokens=self._random_cached_tokens,
            chosen_arm=self._arms[False],
            held_out_arm=self._arms[True],
            picks=traffic.picks,
            computing=self._computing,
            strategy_failures=dict(self._failures),
        )

    def _row(self, reading: EndpointReading, history: EngineHistory, picks: int, now: float) -> tuple[Any, ...]:
        endpoint, state, window = reading.endpoint, reading.endpoint.state, reading.confirmation.last_window
        return (
            endpoint.id,
            endpoint.target,
            endpoint.engine,
            endpoint_state(endpoint),
            round(reading.waiting, 1),
            round(reading.running, 1),
            None if state is None else state.waiting,
            None if state is None else state.running,
            round(reading.pending_tokens / reading.prefill_rate, 3),
            None if state is None else round(state.kv_usage, 3),
            None if window is None else round(window.expected, 2),
            None if window is None else round(window.measured, 2),
            round(history.picks_per_second, 2),
            round(history.recent_picks / picks, 3) if picks else 0.0,
            self._metrics.counts_of(endpoint.id).restarts,
            None if state is None else round(reading.page_age(now), 1),
            round(reading.slowness, 2),
        )

    # ---------------------------------------------------------------- what is read

    def routes(self) -> Routes:
        """The routes for a :class:`~warmroute.observability.page_server.PageServer`."""
        return {"/": document.page, "/debug/live": self._live_page, "/debug/live/history": self._history_page}

    async def _live_page(self, _: Request) -> Page:
        """The document of the last sample. It is made once, for its first reader."""
        async with self._making:
            body = self._document
            if body is None:
                sample = self._samples
                body = orjson.dumps(await self.figures())
                if sample == self._samples:  # else it is of the sample before
                    self._document = body
        return Page(body, "application/json", headers=UNCACHED)

    async def _history_page(self, _: Request) -> Page:
        """Five minutes of every endpoint, for a page that begins; then each document has the next second."""
        engines = {name: history.in_flight() for name, history in self._histories.items()}
        rates = self._traffic.request_rates(POINT_SECONDS)
        history = {"seconds": POINT_SECONDS, "in_flight": engines, "requests_per_second": [round(r, 2) for r in rates]}
        return Page(orjson.dumps(history), "application/json", headers=UNCACHED)

    async def figures(self) -> dict[str, Any]:
        """What the page shows, as data for JSON; made in short slices."""
        now = self._clock()
        traffic = self._traffic
        ratios, ttft = traffic.hit_ratios(), traffic.predicted_ttft()
        figures: dict[str, Any] = {
            "sample": self._samples,
            "uptime_seconds": round(now - self._began_at),
            "picker": self._view.about(),
            "notices": [notice._asdict() for notice in self._notices()],
            "traffic": {
                "requests_per_second": round(traffic.requests_per_second(), 2),
                "errors_per_second": round(traffic.errors_per_second(), 3),
                "error_share": round(traffic.error_share(), 4),
                "hit_ratio": None if ratios is None else round(ratios.chosen, 2),
                "random_hit_ratio": None if ratios is None else round(ratios.random, 2),
                "saved_tokens_per_second": None if ratios is None else float(f"{ratios.saved_per_second:.2g}"),
                "predicted_ttft_seconds": None if ttft is None else round(ttft[0], 4),
                "held_out_ttft_seconds": None if ttft is None else round(ttft[1], 4),
                "pick_p99_seconds": traffic.pick_seconds(0.99),
            },
            "states": dict(self._states),
            "engines": {"columns": ENGINE_COLUMNS, "rows": self._rows},
        }
        slices = Slices()
        places = {row[0]: place for place, row in enumerate(self._rows)}
        figures["prefixes"] = []
        for prefix in self._prefixes.top(MOST_PREFIXES):
            figures["prefixes"].append(self._shared_prefix(prefix, places))
            await slices.pause()
        figures["decisions"] = []
        for record in self._view.decisions()[:MOST_DECISIONS]:
            figures["decisions"].append(record.explain(now, CANDIDATES))
            await slices.pause()
        return figures

    def bypassed(self) -> bool:
        """Whether engines compute while no request has reached this picker for a minute."""
        waiting = ENGINE_COLUMNS.index("waiting")
        return bypassed(
            waiting=float(sum(row[waiting] for row in self._rows)),
            seconds_without_requests=self._traffic.seconds_without_requests(),
            computing=self._traffic.computing(COMPUTING_SECONDS),
        )

    def _notices(self) -> Sequence[Notice]:
        return notices(
            states=self._states,
            stale=self._stale,
            is_bypassed=self.bypassed(),
            error_share=self._traffic.error_share(),
            seconds_without_requests=self._traffic.seconds_without_requests(),
            failures=self._traffic.strategy_failures(),
        )

    def _shared_prefix(self, prefix: SharedPrefix, places: Mapping[str, int]) -> dict[str, Any]:
        """A row of the table; holders by their place in the table of engines."""
        holders = self._view.holders(prefix.hashes)
        return {
            "name": prefix.name,
            "tokens": int(float(f"{prefix.length / self._view.bytes_per_token():.2g}")),
            "requests_per_second": round(prefix.requests_per_second, 2),
            "holders": sorted(places[name] for name in holders if name in places),
        }


UNCACHED = {"Cache-Control": "no-store"}


def _work(state: EngineState) -> float | None:
    """Sum of the engine's counters that grow when it begins or ends a request; None if its page has none of them."""
    counters = (state.first_tokens_total, state.prompt_requests_total, state.prefix_queries_total)
    known = [counter for counter in counters if counter is not None]
    return sum(known) if known else None
