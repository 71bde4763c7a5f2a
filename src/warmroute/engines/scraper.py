"""Scrape the engines' metrics pages and write what they tell into the pool."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from enum import StrEnum
from time import monotonic

from warmroute.engines.dialects import DIALECTS, Dialect
from warmroute.engines.fetch import PageFetcher
from warmroute.engines.probe import Again, Probe, StatusError
from warmroute.errors import ConfigurationError, ScrapeError
from warmroute.pool.endpoint import Endpoint
from warmroute.pool.pool import Pool, PoolListener
from warmroute.settings import Settings

logger = logging.getLogger(__name__)

TICK = 0.05
"""Seconds between two looks for scrapes that are due. Those that fall into one tick share its wake-up, and waking up
costs more than a scrape's own work."""
CONCURRENCY = 128
"""Scrapes under way at once. Engines that hang hold a place for the whole time limit."""
BACKOFF = (0.5, 1.0, 2.0)
"""Seconds until an engine that does not answer is tried again; the last holds for all further times."""
TIMEOUTS_ALLOWED = 1
"""Timeouts in a row after which an engine still counts as reachable: a long step or a collection may cause one."""
JITTER = 0.1
"""Share by which an interval varies, so that engines do not fall into step."""
LARGEST_EXCHANGE = 4
"""Most requests in one scrape: filtered, then the whole page, and both once more if that tells of a restart."""

Fetch = Callable[[str, float], Awaitable[tuple[int, bytes]]]
"""URL and seconds allowed to status and body; see :class:`~warmroute.engines.fetch.PageFetcher` for the errors."""


class ScrapeOutcome(StrEnum):
    """How a scrape ended: a label of the metrics."""

    OK = "ok"
    UNREACHABLE = "unreachable"
    """The connection was refused or broken."""
    TIMEOUT = "timeout"
    STATUS = "status"
    """The engine answered with another status than 200."""
    PAGE = "page"
    """The engine answered with something that does not tell its state."""
    INTERNAL = "internal"
    """A bug of ours."""


class _Target:
    """One endpoint as the scraper sees it."""

    __slots__ = ("due", "endpoint", "engine", "outcome", "phased", "probe", "silent", "task", "url")

    def __init__(self, endpoint: Endpoint, due: float) -> None:
        self.endpoint = endpoint
        self.engine = endpoint.engine
        self.url = ""
        self.probe: Probe
        self.due = due
        self.task: asyncio.Task[None] | None = None
        self.outcome = ScrapeOutcome.OK
        self.silent = 0
        """Scrapes in a row that got no answer."""
        self.phased = False
        """Whether it has been given its own phase, apart from those that were added with it."""


class Scraper(PoolListener):
    """Scrapes every ready endpoint of the pool: often while it is busy, seldom while it is idle.

    One task looks for scrapes that are due and starts them. ``clock`` gives monotonic seconds. ``on_result`` hears of
    every scrape that ended, after the pool did.
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
    ) -> None:
        """Raises ConfigurationError if no dialect has the name of ``settings.model_server_runtime``."""
        self._pool = pool
        self._settings = settings
        self._dialect = _dialect(settings)
        self._clock = clock
        self._on_result = on_result
        self._fetch = fetch
        self._fetcher: PageFetcher | None = None
        self._rng = rng or random.Random()
        self._targets: dict[str, _Target] = {}
        self._owner: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        pool.subscribe(self, clock())

    async def start(self) -> None:
        """Begin to scrape."""
        if self._fetch is None:
            self._fetch = self._fetcher = PageFetcher(self._settings)
        self._owner = asyncio.create_task(self._run(), name="scraper")

    async def stop(self) -> None:
        """End every scrape and close the connections; safe before :meth:`start` and a second time."""
        tasks = [*self._under_way] if self._owner is None else [self._owner, *self._under_way]
        self._owner = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._fetcher is not None:
            await self._fetcher.close()

    def apply(self, settings: Settings) -> None:
        """Change the hot settings; they count from each endpoint's next scrape on, at most the new idle interval away.

        Raises ConfigurationError.
        """
        before, self._dialect, self._settings = self._dialect, _dialect(settings), settings
        now, interval = self._clock(), settings.idle_metrics_interval
        for target in self._targets.values():
            if target.due > now + interval:
                target.due = now + interval * self._rng.random()  # each in a phase of its own
        if self._dialect is not before:
            for target in self._targets.values():
                if target.engine not in DIALECTS:  # read as the default one; of the others the pool tells
                    self._abandon(target)
                    self._aim(target)

    # ---------------------------------------------------------------- the pool's changes

    def endpoint_added(self, endpoint: Endpoint, now: float) -> None:
        """See :class:`~warmroute.pool.pool.PoolListener`."""
        target = self._targets[endpoint.id] = _Target(endpoint, now)
        self._aim(target)

    def endpoint_removed(self, endpoint: Endpoint, now: float) -> None:
        """See :class:`~warmroute.pool.pool.PoolListener`."""
        self._abandon(self._targets.pop(endpoint.id))

    def endpoint_changed(self, endpoint: Endpoint, now: float) -> None:
        """See :class:`~warmroute.pool.pool.PoolListener`."""
        target = self._targets[endpoint.id]
        if target.engine != endpoint.engine:
            self._abandon(target)
            self._aim(target)
            target.due = now

    def endpoint_restarted(self, endpoint: Endpoint, now: float) -> None:
        """See :class:`~warmroute.pool.pool.PoolListener`."""
        target = self._targets[endpoint.id]
        if target.task is not None and target.task is asyncio.current_task():
            return  # the scrape under way found it out and goes on
        self._abandon(target)
        self._aim(target)
        target.due = now

    def _aim(self, target: _Target) -> None:
        """Begin anew with the endpoint's present address and engine."""
        endpoint, settings = target.endpoint, self._settings
        dialect = DIALECTS.get(endpoint.engine)
        if dialect is None:
            logger.warning(
                "unknown engine; reading its metrics as the default engine's",
                extra={
                    "fields": {
                        "endpoint": endpoint.id,
                        "engine": endpoint.engine,
                        "read-as": settings.model_server_runtime,
                        "known": ", ".join(DIALECTS),
                    }
                },
            )
            dialect = self._dialect
        address, port = endpoint.spec.address, settings.model_server_metrics_port or endpoint.spec.port
        host = f"[{address}]" if ":" in address else address
        default_path = Settings.model_fields["model_server_metrics_path"].default
        configured = settings.model_server_metrics_path
        target.engine = endpoint.engine
        target.url = f"{settings.model_server_metrics_scheme}://{host}:{port}"
        target.probe = Probe(dialect, dialect.path if configured == default_path else configured)
        target.silent = 0

    def _abandon(self, target: _Target) -> None:
        """Nothing that is under way may be taken for an answer of the endpoint as it is now."""
        if target.task is not None:
            target.task.cancel()
            target.task = None

    # ---------------------------------------------------------------- scraping

    async def _run(self) -> None:
        while True:
            try:
                self.start_due(self._clock())
            except Exception:
                logger.exception("the scraper failed and goes on")
            await asyncio.sleep(TICK)

    def start_due(self, now: float) -> None:
        """Start the scrapes that are due at ``now`` as tasks. The owner task calls it every tick."""
        for target in self._targets.values():
            if target.due > now or target.task is not None or not target.endpoint.ready:
                continue
            if len(self._under_way) >= CONCURRENCY:
                return
            target.task = asyncio.create_task(self._scrape(target))
            self._under_way.add(target.task)
            target.task.add_done_callback(self._under_way.discard)

    async def _scrape(self, target: _Target) -> None:
        asked_at = self._clock()
        message = ""
        try:
            await self._exchange(target)
            outcome = ScrapeOutcome.OK
        except TimeoutError:  # an OSError too
            outcome, message = ScrapeOutcome.TIMEOUT, f"no answer within {self._settings.metrics_timeout:g} s"
        except OSError as error:
            outcome, message = ScrapeOutcome.UNREACHABLE, str(error)
        except StatusError as error:
            outcome, message = ScrapeOutcome.STATUS, str(error)
        except ScrapeError as error:
            outcome, message = ScrapeOutcome.PAGE, str(error)
        except Exception:
            logger.exception("a scrape failed", extra={"fields": {"endpoint": target.endpoint.id}})
            outcome, message = ScrapeOutcome.INTERNAL, "a bug; see the traceback before"
        target.task = None
        target.due = asked_at + self._settle(target, outcome)
        if outcome is not target.outcome:
            self._log_change(target, outcome, message)
            target.outcome = outcome
        self._on_result(target.endpoint, outcome)

    async def _exchange(self, target: _Target) -> None:
        assert self._fetch is not None
        for _ in range(LARGEST_EXCHANGE):
            asked_at = self._clock()
            url = target.url + target.probe.query()
            status, body = await self._fetch(url, self._settings.metrics_timeout)
            answer = target.probe.answer(status, body, asked_at)
            if answer is Again.RESTARTED:
                self._pool.restarted(target.endpoint, self._clock())
            elif answer is not Again.UNFILTERED:
                self._pool.observed(target.endpoint, answer, self._clock())
                return
        raise ScrapeError("the engine's pages contradict each other")

    def _settle(self, target: _Target, outcome: ScrapeOutcome) -> float:
        """Tell the pool what the outcome means for the endpoint. Returns the seconds until the next scrape."""
        settings, endpoint = self._settings, target.endpoint
        if outcome in (ScrapeOutcome.UNREACHABLE, ScrapeOutcome.TIMEOUT):
            target.silent += 1
            if outcome is ScrapeOutcome.UNREACHABLE or target.silent > TIMEOUTS_ALLOWED:
                target.probe.lost()
                self._pool.unreachable(endpoint, self._clock())
            return self._varied(BACKOFF[min(target.silent, len(BACKOFF)) - 1])
        target.silent = 0
        if outcome is not ScrapeOutcome.OK:
            self._pool.reachable(endpoint, self._clock())
            return self._varied(settings.idle_metrics_interval)
        state = endpoint.state
        busy = state is not None and state.running + state.waiting > 0
        interval = busy_interval(settings, len(self._targets)) if busy else settings.idle_metrics_interval
        if not target.phased:
            target.phased = True
            return interval * self._rng.random()
        return self._varied(interval)

    def _varied(self, seconds: float) -> float:
        return seconds * self._rng.uniform(1 - JITTER, 1 + JITTER)

    def _log_change(self, target: _Target, outcome: ScrapeOutcome, message: str) -> None:
        fields = {"endpoint": target.endpoint.id, "url": target.url + target.probe.path}
        if outcome is ScrapeOutcome.OK:
            logger.info("metrics are back", extra={"fields": fields})
        else:
            logger.warning("no metrics", extra={"fields": {**fields, "reason": outcome.value, "error": message}})


def busy_interval(settings: Settings, endpoints: int) -> float:
    """Seconds between two scrapes of a busy endpoint in a pool of so many: few endpoints can be looked at more often."""
    slowest = max(settings.refresh_metrics_interval, settings.idle_metrics_interval)
    return min(max(settings.refresh_metrics_interval, endpoints / settings.metrics_rate), slowest)


def _dialect(settings: Settings) -> Dialect:
    try:
        return DIALECTS[settings.model_server_runtime]
    except KeyError:
        raise ConfigurationError(
            f"model_server_runtime: there is no engine {settings.model_server_runtime!r}; known: {', '.join(DIALECTS)}"
        ) from None
