"""Scrapes the engines' metrics pages and writes their states into the pool."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from time import monotonic

from warmroute.engines.dialects import DIALECTS, Dialect
from warmroute.engines.fetch import NoConnectionError, PageFetcher, reason
from warmroute.engines.models import read_models
from warmroute.engines.probe import Again, Probe, StatusError
from warmroute.engines.scrape_target import ScrapeOutcome, ScrapeTarget
from warmroute.errors import ConfigurationError, ScrapeError
from warmroute.pool.endpoint import Endpoint, EngineState, ServedModels
from warmroute.pool.pool import Pool, PoolListener
from warmroute.settings import Settings
from warmroute.tasks import BackgroundTask, cancel

logger = logging.getLogger(__name__)

TICK = 0.05
"""Seconds between two searches for scrapes that are due. A wake-up costs more than a scrape; those of one tick share it."""
CONCURRENCY = 128
"""Scrapes in flight at once. One that hangs holds its place for ``--metrics-timeout``."""
SILENT_CONCURRENCY = 32
"""Places of :data:`CONCURRENCY` that endpoints may hold whose last scrape got no answer. The others stay free for those that
answer, however many hang."""
JITTER = 0.1
"""Share by which an interval varies, so that the scrapes of several engines do not synchronize."""
READING_SHARE = 0.05
"""Share of the event loop that reading a busy engine's pages may take: a page of 20,000 lines takes 10 to 40 ms, vLLM's
filtered one 0.3 ms. No page is read less often than that of an idle engine."""
LARGEST_EXCHANGE = 4
"""Most requests in one scrape: filtered, then the whole page, and both again if the page shows a restart."""

Fetch = Callable[[str], Awaitable[tuple[int, bytes]]]
"""URL to status and body; see :class:`~warmroute.engines.fetch.PageFetcher` for the errors."""


class Scraper(PoolListener):
    """Scrapes every ready endpoint of the pool, busy ones more often than idle ones.

    One task searches for scrapes that are due and starts them. ``clock`` returns monotonic seconds. ``on_result`` is called
    after every scrape, when the pool has its result.
    """

    def __init__(
        self,
        pool: Pool,
        settings: Settings,
        *,
        clock: Callable[[], float] = monotonic,
        on_result: Callable[[Endpoint, ScrapeOutcome], None] = lambda endpoint, outcome: None,
        fetch: Fetch | None = None,
        rng: random.Random | None = None,
        owns: Callable[[Endpoint], bool] = lambda endpoint: True,
    ) -> None:
        """``owns``: whether this picker scrapes the endpoint now, or another one that shares the state that it reads.

        Raises ConfigurationError if no dialect has the name of ``settings.model_server_runtime``."""
        self._pool = pool
        self._settings = settings
        self._dialect = _dialect(settings)
        self._clock = clock
        self._on_result = on_result
        self._fetcher = PageFetcher(settings)
        self._fetch = fetch or self._fetcher
        self._rng = rng or random.Random()
        self._owns = owns
        self._targets: dict[str, ScrapeTarget] = {}
        self._owner = BackgroundTask(self._run, "scraper")
        self._in_flight: set[asyncio.Task[None]] = set()
        pool.subscribe(self, clock())

    async def start(self) -> None:
        """Begin to scrape."""
        self._owner.start()

    async def stop(self) -> None:
        """End every scrape and close the connections; safe before :meth:`start` and a second time."""
        await self._owner.stop()
        await cancel(*self._in_flight)
        await self._fetcher.close()

    def apply(self, settings: Settings) -> None:
        """Change the hot settings. They take effect with each endpoint's next scrape, at most one new idle interval away.

        Raises ConfigurationError; then nothing has changed.
        """
        dialect = _dialect(settings)
        before, self._dialect, self._settings = self._dialect, dialect, settings
        self._fetcher.apply(settings)
        now, interval = self._clock(), settings.idle_metrics_interval
        for target in self._targets.values():
            if target.due > now + interval:
                target.due = now + interval * self._rng.random()  # each in a phase of its own
            if target.models_due > now + settings.model_list_interval:
                target.models_due = now + settings.model_list_interval * self._rng.random()
            if not settings.model_list_interval:  # what is known would grow old
                self._serves(target, None)
        if self._dialect is not before:
            for target in self._targets.values():
                if target.engine not in DIALECTS:  # read with the default dialect
                    target.abandon()
                    self._reset(target)

    # ---------------------------------------------------------------- the pool's changes

    def endpoint_added(self, endpoint: Endpoint, now: float) -> None:
        """Scrape it, beginning now. Ranks behind one port have one page."""
        if endpoint.spec.rank:
            return
        target = self._targets[endpoint.id] = ScrapeTarget(endpoint, now)
        self._reset(target)

    def endpoint_removed(self, endpoint: Endpoint, now: float) -> None:
        """Scrape it no longer."""
        if (target := self._targets.pop(endpoint.id, None)) is not None:
            target.abandon()

    def endpoint_changed(self, endpoint: Endpoint, now: float) -> None:
        """If its engine type has changed, read its page in the other dialect."""
        target = self._targets.get(endpoint.id)
        if target is not None and target.engine != endpoint.engine:
            target.abandon()
            self._reset(target)
            target.due = now

    def endpoint_restarted(self, endpoint: Endpoint, now: float) -> None:
        """Begin again: its address may be another one, and its constants must be read again."""
        target = self._targets.get(endpoint.id)
        if target is None or (target.task is not None and target.task is asyncio.current_task()):
            return  # the scrape in flight found the restart and goes on
        target.abandon()
        self._reset(target)
        target.due = now

    def _reset(self, target: ScrapeTarget) -> None:
        """Start again with the endpoint's present address and engine."""
        endpoint, settings = target.endpoint, self._settings
        dialect = self._dialect_of(endpoint)
        if settings.model_server_metrics_prefix is not None:
            dialect = dialect.renamed(settings.model_server_metrics_prefix)
        address, port = endpoint.spec.address, settings.model_server_metrics_port or endpoint.spec.port
        host = f"[{address}]" if ":" in address else address
        scheme = settings.model_server_metrics_scheme
        url, models_url = f"{scheme}://{host}:{port}", None
        if dialect.models_path is not None:
            models_scheme = scheme if port == endpoint.spec.port else "http"
            models_url = f"{models_scheme}://{host}:{endpoint.spec.port}{dialect.models_path}"
        probe = Probe(
            dialect,
            settings.model_server_metrics_path or dialect.path,
            split_ranks=settings.data_parallel_ranks and settings.shared_state is None,
        )
        target.begin(url, models_url, probe)

    def _dialect_of(self, endpoint: Endpoint) -> Dialect:
        dialect = DIALECTS.get(endpoint.engine)
        if dialect is not None:
            return dialect
        fields = {
            "endpoint": endpoint.id,
            "engine": endpoint.engine,
            "read-as": self._settings.model_server_runtime,
            "known": ", ".join(DIALECTS),
        }
        logger.warning("unknown engine; reading its metrics as the default engine's", extra={"fields": fields})
        return self._dialect

    # ---------------------------------------------------------------- scraping

    async def _run(self) -> None:
        while True:
            try:
                self.start_due(self._clock())
            except Exception:
                logger.exception("the scraper failed and goes on")
            await asyncio.sleep(TICK)

    def start_due(self, now: float) -> None:
        """Start the scrapes that are due at ``now`` as tasks. The owner task calls it every tick.

        The longest overdue come first, so none is left out. Endpoints that did not answer share
        :data:`SILENT_CONCURRENCY` places.
        """
        places = CONCURRENCY - len(self._in_flight)
        if places <= 0:
            return
        due, silent_places = [], SILENT_CONCURRENCY
        interval = busy_interval(self._settings, len(self._targets))
        for target in self._targets.values():
            if target.task is not None:
                silent_places -= target.hangs
            elif (target.due <= now or target.awaited(now, interval)) and target.endpoint.ready:
                if self._owns(target.endpoint):
                    due.append(target)
                else:
                    target.taken_over = True
        for target in sorted(due, key=lambda target: target.due):
            if places <= 0:
                return
            if target.hangs:
                if silent_places <= 0:
                    continue
                silent_places -= 1
            places -= 1
            target.task = asyncio.create_task(self._scrape(target))
            self._in_flight.add(target.task)
            target.task.add_done_callback(self._in_flight.discard)

    async def _scrape(self, target: ScrapeTarget) -> None:
        asked_at = target.asked_at = self._clock()
        target.reading = 0.0
        outcome, message = await self._outcome(target)
        if outcome is ScrapeOutcome.OK:
            if self._clock() - asked_at < self._settings.metrics_timeout:
                target.patience = 1.0
            await self._list_models(target)
        target.task = None
        pause = min(target.reading / READING_SHARE, self._settings.idle_metrics_interval)
        target.due = asked_at + max(self._settle(target, outcome), pause)
        target.soonest = asked_at + pause if outcome is ScrapeOutcome.OK else target.due
        if outcome is not target.outcome:
            self._log_change(target, outcome, message)
            target.outcome = outcome
        self._on_result(target.endpoint, outcome)

    async def _outcome(self, target: ScrapeTarget) -> tuple[ScrapeOutcome, str]:
        """Scrape the endpoint within one deadline. Returns how it ended, and why if it failed."""
        seconds = self._settings.metrics_timeout * target.patience
        try:
            async with asyncio.timeout(seconds):
                await self._exchange(target)
        except TimeoutError:  # before OSError, of which it is a subclass
            return ScrapeOutcome.TIMEOUT, f"no answer within {seconds:g} s"
        except NoConnectionError as error:
            return ScrapeOutcome.NO_CONNECTION, str(error)
        except OSError as error:
            return ScrapeOutcome.UNREACHABLE, reason(error)
        except StatusError as error:
            return ScrapeOutcome.STATUS, str(error)
        except ScrapeError as error:
            return ScrapeOutcome.PAGE, str(error)
        except Exception:
            logger.exception("a scrape failed", extra={"fields": {"endpoint": target.endpoint.id}})
            return ScrapeOutcome.INTERNAL, "a bug; see the traceback before"
        return ScrapeOutcome.OK, ""

    async def _exchange(self, target: ScrapeTarget) -> None:
        if target.taken_over:
            target.probe.forget()  # its figures are old
        for _ in range(LARGEST_EXCHANGE):
            asked_at = self._clock()
            url = target.url + target.probe.query()
            status, body = await self._fetch(url)
            began = target.answered_at = self._clock()
            try:
                answer = target.probe.answer(status, body, asked_at)
            finally:
                target.reading += self._clock() - began
            if answer is Again.RESTARTED:
                self._restarted(target)
            elif answer is not Again.UNFILTERED:
                if target.taken_over and _counter_fell(target.endpoint.state, answer):
                    self._restarted(target)
                target.taken_over = False
                now, states = self._clock(), target.probe.states
                starts = target.endpoint.state is None and target.outcome is ScrapeOutcome.UNREACHABLE
                ranks = self._pool.set_ranks(target.endpoint, len(states), now)
                if starts:  # prompts that it got before were refused
                    for endpoint in ranks:
                        self._pool.cache_emptied(endpoint, now)
                for endpoint, state in zip(ranks, states, strict=False):
                    self._pool.observed(endpoint, state, now)
                return
        raise ScrapeError("the engine's pages contradict each other")

    def _restarted(self, target: ScrapeTarget) -> None:
        target.models_due = 0.0  # an engine without a list is taken to serve everything
        for endpoint in self._pool.ranks_of(target.endpoint):
            self._pool.restarted(endpoint, self._clock())

    async def _list_models(self, target: ScrapeTarget) -> None:
        """Read the list of models that the engine serves, if it is time to. With another status than 200 it has none;
        without an answer that can be read the list that is known stays."""
        settings, url = self._settings, target.models_url
        if url is None or not settings.model_list_interval or target.models_due > self._clock():
            return
        target.models_due = self._clock() + self._varied(settings.model_list_interval)
        models = None
        try:
            async with asyncio.timeout(settings.metrics_timeout):
                status, body = await self._fetch(url)
            models = read_models(body) if status == HTTPStatus.OK else None
        except (OSError, ScrapeError) as error:  # TimeoutError is an OSError
            logger.debug("no list of models", extra={"fields": {"url": url, "error": str(error)}})
            return
        except Exception:  # it must not end the scrapes of this endpoint
            logger.exception("reading a list of models failed", extra={"fields": {"url": url}})
            return
        self._serves(target, models)

    def _serves(self, target: ScrapeTarget, models: ServedModels | None) -> None:
        for endpoint in self._pool.ranks_of(target.endpoint):
            self._pool.serves(endpoint, models, self._clock())

    def _settle(self, target: ScrapeTarget, outcome: ScrapeOutcome) -> float:
        """Update the endpoint's reachability in the pool. Returns the seconds until the next scrape."""
        settings, ranks = self._settings, self._pool.ranks_of(target.endpoint)
        if outcome in (ScrapeOutcome.UNREACHABLE, ScrapeOutcome.NO_CONNECTION, ScrapeOutcome.TIMEOUT):
            if target.unanswered(outcome, self._clock()):
                target.probe.lost()
                for endpoint in ranks:
                    self._pool.unreachable(endpoint, self._clock())
            return self._varied(target.backoff)
        target.silent = 0
        if outcome is not ScrapeOutcome.OK:
            for endpoint in ranks:
                self._pool.reachable(endpoint, self._clock())
            return self._varied(settings.idle_metrics_interval)
        interval = busy_interval(settings, len(self._targets)) if target.busy else settings.idle_metrics_interval
        if not target.phased:
            target.phased = True
            return interval * self._rng.random()
        return self._varied(interval)

    def _varied(self, seconds: float) -> float:
        return seconds * self._rng.uniform(1 - JITTER, 1 + JITTER)

    def _log_change(self, target: ScrapeTarget, outcome: ScrapeOutcome, message: str) -> None:
        fields = {"endpoint": target.endpoint.id, "url": target.url + target.probe.path}
        if outcome is ScrapeOutcome.OK:
            logger.info("metrics are back", extra={"fields": fields})
        else:
            logger.warning("no metrics", extra={"fields": {**fields, "reason": outcome.value, "error": message}})


def _counter_fell(known: EngineState | None, state: EngineState) -> bool:
    """Whether a counter went back since another picker scraped the engine: it has restarted."""
    if known is None:
        return False
    counters = (
        (known.first_tokens_total, state.first_tokens_total),
        (known.prompt_tokens_total, state.prompt_tokens_total),
        (known.prefix_queries_total, state.prefix_queries_total),
    )
    return any(before is not None and now is not None and now < before for before, now in counters)


def busy_interval(settings: Settings, endpoints: int) -> float:
    """Seconds between two scrapes of a busy endpoint in a pool of ``endpoints``, by ``--metrics-rate``."""
    slowest = max(settings.refresh_metrics_interval, settings.idle_metrics_interval)
    return min(max(settings.refresh_metrics_interval, endpoints / settings.metrics_rate), slowest)


def _dialect(settings: Settings) -> Dialect:
    try:
        return DIALECTS[settings.model_server_runtime]
    except KeyError:
        raise ConfigurationError(
            f"model_server_runtime: there is no engine {settings.model_server_runtime!r}; known: {', '.join(DIALECTS)}"
        ) from None
