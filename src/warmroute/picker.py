"""The composition root: builds the parts from the settings, runs them, drains them.

:meth:`EndpointPicker.run` is the program's life. Each part gets its settings here, once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from warmroute import __version__, runtime
from warmroute.discovery.file import FileDiscovery
from warmroute.end_signals import end_events
from warmroute.engines.scraper import Scraper
from warmroute.errors import ConfigurationError
from warmroute.extproc.budget import MemoryBudget
from warmroute.extproc.server import Server
from warmroute.extproc.session import HEADERS_MEMORY, Session
from warmroute.observability import bypass, lag, logs
from warmroute.observability.debug_pages import DebugPages
from warmroute.observability.decision_log import DecisionLog
from warmroute.observability.endpoint_reading import EndpointReading
from warmroute.observability.forget_page import ForgetPage
from warmroute.observability.live.feed import LiveFeed, PickerView
from warmroute.observability.metrics import Metrics
from warmroute.observability.metrics_pages import MetricsPages
from warmroute.observability.page_server import PageServer, is_loopback
from warmroute.observability.recent_decisions import RecentDecisions
from warmroute.observability.shared_state_metrics import SharedStateReading
from warmroute.observability.warm_log import WarmLog
from warmroute.picker_options import routing_constants, server_options, session_rules, shared_state
from warmroute.pool.endpoint import Endpoint
from warmroute.pool.pool import Pool
from warmroute.routing import strategies
from warmroute.routing.decision_listener import DecisionListener
from warmroute.routing.decision_record import short_strategy
from warmroute.routing.endpoint_load import EndpointLoad
from warmroute.routing.router import Router
from warmroute.settings import Settings
from warmroute.tasks import BackgroundTask

if TYPE_CHECKING:
    from warmroute.kubernetes.discovery import KubernetesDiscovery
    from warmroute.kubernetes.lease import LeaderElection
    from warmroute.observability.tracing import PickSpans

logger = logging.getLogger(__name__)

EXPIRE_INTERVAL = 1.0
"""Seconds between two searches for endpoints whose retention is over."""
SWEEP_INTERVAL = 0.01
"""Seconds between two slices of the index's clean-up, so that requests pass between them."""


class EndpointPicker:
    """One endpoint picker. ``run`` serves until a signal; programs that embed it call ``start`` and ``stop``."""

    def __init__(self, settings: Settings, *, rng: random.Random | None = None) -> None:
        if settings.body_memory < 2 * settings.max_body_bytes:
            raise ConfigurationError("--body-memory must be at least twice --max-body-bytes, so that one body is read")
        now = monotonic()
        self.settings = settings
        self._given_strategy = settings.routing_strategy
        rng = rng or random.Random()
        self._chance = rng.random
        self.pool = Pool(default_engine=settings.model_server_runtime)
        self.decision_log = _decision_log(settings)
        self.pick_spans = _pick_spans() if settings.tracing else None
        self.shared_state = None if settings.shared_state is None else shared_state(settings, self.pool)
        self.metrics = Metrics(
            lambda: self.settings,
            self._readings,
            clock=monotonic,
            decision_lines_dropped=lambda: 0 if self.decision_log is None else self.decision_log.dropped,
            shared_state=None if self.shared_state is None else self._shared_state_reading,
        )
        self.decisions = RecentDecisions(settings.debug_decisions)
        self.live = self._live_feed()
        self.router = Router(
            self.pool,
            routing_constants(settings),
            rng=rng,
            now=now,
            listeners=self._listeners(),
            name=secrets.token_hex(4),
        )
        self.pool.subscribe(self.metrics, now)
        self.scraper = Scraper(
            self.pool,
            settings,
            clock=monotonic,
            on_result=lambda endpoint, outcome: self.metrics.scraped(endpoint.id, outcome),
            owns=self._scrapes_itself,
        )
        self._rules = session_rules(settings)
        self._budget, self._headers_budget = MemoryBudget(settings.body_memory), MemoryBudget(HEADERS_MEMORY)
        self.server = Server(
            server_options(settings),
            new_session=self._new_session,
            observer=self.metrics,
            ready=self._ready,
            clock=monotonic,
        )
        self.metrics_pages, self.debug_pages = self._metrics_server(), self._debug_server()
        self.election: LeaderElection | None = None
        self.discovery = self._discovery(settings)
        self._tasks = (
            BackgroundTask(self._upkeep, "upkeep"),
            BackgroundTask(lambda: lag.watch(self.metrics.loop_lagged), "lag"),
            BackgroundTask(self.live.run, "live"),
            BackgroundTask(lambda: bypass.watch(lambda: self._ready() and self.live.bypassed()), "bypass"),
        )

    def _listeners(self) -> tuple[DecisionListener, ...]:
        """The listeners of decisions, as the settings ask for them."""
        listeners: list[DecisionListener] = [self.decisions, self.live, self.metrics, WarmLog()]
        if self.decision_log is not None:
            listeners.append(self.decision_log)
        if self.shared_state is not None:
            listeners.append(self.shared_state.outbox)
        if self.pick_spans is not None:
            listeners.append(self.pick_spans)
        return tuple(listeners)

    def _live_feed(self) -> LiveFeed:
        view = PickerView(
            readings=self._readings,
            holders=self._holders,
            decisions=self.decisions.newest_first,
            booked=lambda: self.router.booked,
            holdout=lambda: self.settings.holdout,
            bytes_per_token=lambda: self.router.bytes_per_token,
            about=self._about,
        )
        return LiveFeed(view, self.metrics, key=secrets.token_bytes(16), chance=random.random, clock=monotonic)

    def _metrics_server(self) -> PageServer:
        return PageServer(
            self.settings.host,
            self.settings.metrics_port,
            MetricsPages(self.metrics, ready=lambda: self.server.ready).routes(),
            port_flag="--metrics-port",
        )

    def _debug_server(self) -> PageServer:
        pages = self._debug_pages()
        return PageServer(
            self.settings.debug_host,
            self.settings.debug_port,
            {**pages.routes(), **self.live.routes()},
            port_flag="--debug-port",
            posts={**pages.posts(), **self._forget_page().posts()},
            only_local=is_loopback(self.settings.debug_host),
        )

    def _discovery(self, settings: Settings) -> FileDiscovery | KubernetesDiscovery:
        if settings.endpoints_file is not None and settings.pool_name is not None:
            raise ConfigurationError("--pool-name and --endpoints-file are both given; endpoints come from one of them")
        if settings.endpoints_file is None and settings.pool_name is None:
            raise ConfigurationError(
                "say where the endpoints come from: either --pool-name NAME (with --pool-namespace) or --endpoints-file FILE"
            )
        if settings.endpoints_file is not None:
            if settings.ha_enable_leader_election:
                raise ConfigurationError("--ha-enable-leader-election needs Kubernetes: --pool-name in place of a file")
            return FileDiscovery(
                settings.endpoints_file,
                self.pool,
                reloaded=lambda ok: self.metrics.reloaded("endpoints-file", ok=ok),
                clock=monotonic,
            )

        from warmroute.kubernetes import lease  # an extra, and slow to import
        from warmroute.kubernetes.api import Cluster
        from warmroute.kubernetes.discovery import KubernetesDiscovery

        cluster = Cluster()
        if settings.ha_enable_leader_election:
            self.election = lease.LeaderElection(
                cluster,
                namespace=lease.own_namespace(settings.pool_namespace),
                name=f"warmroute-{settings.pool_namespace}-{settings.pool_name}",
                identity=lease.own_identity(),
            )
        return KubernetesDiscovery(
            cluster,
            settings,
            self.pool,
            apply=self.apply,
            reloaded=lambda ok: self.metrics.reloaded("annotations", ok=ok),
        )

    # ---------------------------------------------------------------- life

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or SIGHUP; then drain and stop. A second signal ends the drain at once."""
        stop, hurry = end_events()
        try:
            await self.start()
            runtime.settle()
            await stop.wait()
            await self.drain(hurry)
        finally:
            await self.stop()

    async def start(self) -> None:
        """Start every part. Raises ConfigurationError, with nothing left running."""
        try:
            self.discovery.load()
            await self.metrics_pages.start()
            await self.debug_pages.start()
            await self.server.start()
            await self.scraper.start()
            await self.discovery.start()
            if self.shared_state is not None:
                self.shared_state.start(self.router)
            if self.election is not None:
                self.election.start()
        except BaseException:
            await self.stop()
            raise
        for task in self._tasks:
            task.start()
        logger.info(
            "serving",
            extra={
                "fields": {
                    "grpc-port": self.server.grpc_port,
                    "grpc-health-port": self.server.grpc_health_port,
                    "metrics-port": self.metrics_pages.port,
                    "debug-port": self.debug_pages.port,
                    "secure": self.settings.secure_serving,
                    "strategy": self.router.strategy,
                    "endpoints": len(self.pool.endpoints),
                }
            },
        )

    async def drain(self, hurry: asyncio.Event) -> None:
        """Report not ready and give up leadership until open streams have ended. Returns at once when ``hurry`` is set."""
        logger.info("draining", extra={"fields": {"streams": self.server.open_streams}})
        waits = [asyncio.create_task(self._drained(), name="drain"), asyncio.create_task(hurry.wait(), name="hurry")]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        for failure in await asyncio.gather(*waits, return_exceptions=True):
            if isinstance(failure, Exception):
                logger.error("drain failed", exc_info=failure)

    async def _drained(self) -> None:
        resigned = [self.election.stop()] if self.election is not None else []
        drained = self.server.drain(self.settings.drain_timeout, quiet=self.settings.drain_quiet)
        await asyncio.gather(drained, *resigned)

    async def stop(self) -> None:
        """Stop every part; safe after a failed start."""
        for task in self._tasks:
            await task.stop()
        if self.election is not None:
            await self.election.stop()
        await self.discovery.stop()
        await self.scraper.stop()
        if self.shared_state is not None:
            await self.shared_state.stop()
        await self.server.stop()
        await self.metrics_pages.stop()
        await self.debug_pages.stop()
        if self.decision_log is not None:
            self.decision_log.close()
        if self.pick_spans is not None:
            await self.pick_spans.stop()

    def apply(self, settings: Settings) -> None:
        """Change hot settings while running. Raises ConfigurationError and changes nothing if they cannot be used."""
        strategy = settings.routing_strategy
        if strategies.is_file(strategy) and strategy != self._given_strategy:
            # Else a user who may annotate the InferencePool could run any file of the container.
            raise ConfigurationError(
                f"the routing strategy {strategy!r} is a file: only --routing-strategy may name one"
            )
        self.scraper.apply(settings)
        try:
            self.router.apply(routing_constants(settings))
        except ConfigurationError:
            self.scraper.apply(self.settings)
            raise
        self.settings = settings
        self._rules = session_rules(settings)
        self.pool.default_engine = settings.model_server_runtime
        logs.set_level(settings.log_level)

    async def _upkeep(self) -> None:
        while True:
            self.pool.expire(monotonic())
            more = self.router.upkeep(monotonic())
            await asyncio.sleep(SWEEP_INTERVAL if more else EXPIRE_INTERVAL)

    def _new_session(self) -> Session:
        return Session(
            self.router,
            self._rules,
            models=self.pool.models,
            budget=self._budget,
            headers_budget=self._headers_budget,
            chance=self._chance,
        )

    def _ready(self) -> bool:
        leading = self.election is None or self.election.leading
        return self.pool.synced and leading and (self.shared_state is None or self.shared_state.ready)

    def _scrapes_itself(self, endpoint: Endpoint) -> bool:
        return self.shared_state is None or self.shared_state.owns(endpoint)

    # ---------------------------------------------------------------- metrics and debug pages

    def _shared_state_reading(self) -> SharedStateReading:
        shared = self.shared_state
        assert shared is not None
        traffic, applied = shared.traffic, shared.applied
        return SharedStateReading(
            away_seconds=None if shared.away_since is None else monotonic() - shared.away_since,
            why_away=shared.why_away,
            pickers=shared.pickers,
            scrape_share=shared.scrape_share,
            lag=shared.lag,
            replay_seconds=shared.replay_seconds,
            batches_out=traffic.batches_out,
            batches_in=traffic.batches_in,
            bytes_out=traffic.bytes_out,
            bytes_in=traffic.bytes_in,
            applied={"decision": applied.decisions, "report": applied.reports, "event": applied.events},
            skipped={
                "duplicate": traffic.duplicates,
                "outdated": traffic.outdated,
                "unreadable": traffic.unreadable + applied.unreadable,
                "unknown-version": traffic.unknown_versions,
                "unknown-endpoint": applied.unknown_endpoints,
                "dropped": shared.outbox.dropped,
                "too-large": traffic.too_large,
            },
        )

    def _readings(self) -> Iterator[EndpointReading]:
        """Read every endpoint, one by one."""
        now = monotonic()
        for load in list(self.router.loads):
            reading = self._reading(load, now)
            if reading is not None:
                yield reading

    def _holders(self, hashes: Sequence[int]) -> list[str]:
        return self.router.holders(hashes)

    def _about(self) -> dict[str, str]:
        return {
            "version": __version__,
            "strategy": short_strategy(self.router.strategy),
            "pool": self.settings.pool_name or "",
        }

    def _reading(self, load: EndpointLoad, now: float) -> EndpointReading | None:
        """None if the endpoint has left the pool meanwhile."""
        if self.pool.endpoints.get(load.endpoint.id) is not load.endpoint:
            return None
        waiting, running, pending = self.router.load_of(load, now)
        checkpoints, tokens = self.router.held(load)
        return EndpointReading(
            endpoint=load.endpoint,
            waiting=waiting,
            running=running,
            pending_tokens=pending,
            slowness=load.slowness,
            prefill_rate=self.router.speed_of(load),
            checkpoints=checkpoints,
            index_tokens=tokens,
            confirmation=load.confirmation,
            ttft=load.prediction.compared,
        )

    def _forget_page(self) -> ForgetPage:
        return ForgetPage(
            self.settings.debug_token_file,
            endpoints=lambda: list(self.pool.endpoints.values()),
            forget=lambda endpoint: self.pool.cache_emptied(endpoint, monotonic()),
        )

    def _debug_pages(self) -> DebugPages:
        return DebugPages(
            loads=lambda: list(self.router.loads),
            reading=self._reading,
            decisions=self.decisions.newest_first,
            dry_run=self.server.dry_run.run,
            settings=lambda: self.settings,
            clock=monotonic,
        )


def _decision_log(settings: Settings) -> DecisionLog | None:
    if settings.decision_log is None:
        return None
    return DecisionLog(settings.decision_log, settings.decision_log_bytes, clock=monotonic)


def _pick_spans() -> PickSpans:
    try:
        from warmroute.observability.tracing import pick_spans
    except ImportError as error:
        raise ConfigurationError("--tracing needs OpenTelemetry: install Warmroute with its extra `otel`") from error
    return pick_spans(clock=monotonic)


def serve(settings: Settings) -> None:
    """Configure logging and serve until a signal. Raises ConfigurationError."""
    import uvloop

    logs.configure(settings)
    uvloop.run(EndpointPicker(settings).run())
