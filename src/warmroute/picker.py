"""The composition root: builds the parts from the settings, runs them, drains them.

:meth:`EndpointPicker.run` is the program's life. Each part gets its settings here, once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING

from warmroute import __version__, runtime
from warmroute.discovery.file import FileDiscovery
from warmroute.end_signals import on_end_signal
from warmroute.engines.scraper import ScrapeOutcome, Scraper
from warmroute.errors import ConfigurationError
from warmroute.extproc.budget import BodyBudget
from warmroute.extproc.server import Server, ServerOptions
from warmroute.extproc.session import Session, SessionRules
from warmroute.observability import bypass, lag, logs
from warmroute.observability.debug_pages import DebugPages
from warmroute.observability.decision_log import DecisionLog
from warmroute.observability.forget_page import ForgetPage
from warmroute.observability.live.feed import LiveFeed, PickerView
from warmroute.observability.log_writer import MOST_WAITING
from warmroute.observability.metrics import EndpointReading, Metrics
from warmroute.observability.metrics_pages import MetricsPages
from warmroute.observability.page_server import PageServer, is_loopback
from warmroute.observability.recent_decisions import RecentDecisions
from warmroute.observability.shared_state_metrics import SharedStateReading
from warmroute.observability.warm_log import WarmLog
from warmroute.pool.endpoint import Endpoint
from warmroute.pool.models import Criticality
from warmroute.pool.pool import Pool
from warmroute.prefix.index import UNCONFIRMED_SHARE
from warmroute.request.limits import LENIENT_MEMORY, LONG_BODY, TEXT_MEMORY, VALUE_MEMORY
from warmroute.routing import strategies
from warmroute.routing.cost import CostConstants
from warmroute.routing.decision_listener import DecisionListener
from warmroute.routing.decision_record import short_strategy
from warmroute.routing.endpoint_load import EndpointLoad, LoadConstants
from warmroute.routing.router import Router, RoutingConstants
from warmroute.routing.saturation import SaturationLimits
from warmroute.settings import Settings
from warmroute.tasks import cancel

if TYPE_CHECKING:
    from warmroute.kubernetes.discovery import KubernetesDiscovery
    from warmroute.kubernetes.lease import LeaderElection
    from warmroute.observability.tracing import PickSpans
    from warmroute.shared_state.shared_state import SharedState

logger = logging.getLogger(__name__)

EXPIRE_INTERVAL = 1.0
"""Seconds between two searches for endpoints whose retention is over."""
SWEEP_INTERVAL = 0.01
"""Seconds between two slices of the index's clean-up, so that requests pass between them."""
RESTART_DELAY = 1.0
"""Seconds before a background task that failed is started again."""
IDLE_MEMORY = 90 << 20
"""Bytes of memory of a picker of 100 endpoints before its first request (`warmroute bench cost`: resident memory, idle)."""
CHECKPOINT_MEMORY = 200
"""Bytes of memory of a checkpoint in the prefix index (`warmroute bench cost`: index, per checkpoint and endpoint)."""
OPEN_CHECKPOINT_MEMORY = 80
"""Bytes of memory of a checkpoint of an open prompt's chain: two integers and their places in lists."""
DECISION_MEMORY = 6_000
"""Bytes of memory of a decision's record at 100 endpoints (tracemalloc on CPython 3.11: 5.7 KB)."""
LOGGED_SHARE = 0.25
"""Checkpoints of the log that a picker remembers, as a share of those of its index."""
LOGGED_CHECKPOINT_MEMORY = 150
"""Bytes of memory of one of them: a dictionary entry, its places in a segment, and its integer once the index drops it."""
SHED_UP_TO = {"off": None, "sheddable": Criticality.SHEDDABLE, "upstream-v0.5": Criticality.STANDARD}
"""The setting ``shedding`` as a criticality."""


def routing_constants(settings: Settings) -> RoutingConstants:
    """The router's share of the settings."""
    return RoutingConstants(
        load=LoadConstants(
            cost=CostConstants(
                eviction=settings.cost_eviction,
                waiting=settings.cost_waiting,
                running=settings.cost_running,
                decode=settings.cost_decode,
                balance=settings.cost_balance,
                balance_from=settings.cost_balance_from,
                longest=settings.cost_longest,
                adapter=settings.cost_adapter,
                stale=settings.cost_stale,
            ),
            drain_factor=settings.drain_factor,
            queue_slack=settings.queue_slack,
            prefill_rate=settings.prefill_rate,
            max_num_seqs=settings.max_num_seqs,
            cache_tokens=settings.cache_tokens,
            staleness_threshold=settings.metrics_staleness_threshold,
        ),
        saturation=SaturationLimits(waiting=settings.saturation_queue_depth, kv_usage=settings.saturation_kv_usage),
        strategy=settings.routing_strategy,
        holdout=settings.holdout,
        holdout_strategy=settings.holdout_strategy,
        max_endpoints=settings.max_endpoints,
        prefix_match_threshold=settings.prefix_match_threshold,
        bytes_per_token=settings.bytes_per_token,
        cache_headroom=settings.cache_headroom,
        index_limit=settings.index_limit,
    )


def session_rules(settings: Settings) -> SessionRules:
    """A session's share of the settings."""
    return SessionRules(
        max_body_bytes=settings.max_body_bytes,
        max_json_values=settings.max_json_values,
        session_header=settings.session_header.lower(),
        observe_responses=settings.observe_responses,
        decision_metadata=settings.decision_metadata,
        enable_conformance_headers=settings.enable_conformance_headers,
        disable_endpoint_subset_filter=settings.disable_endpoint_subset_filter,
        strict_models=settings.strict_models,
        shed_up_to=SHED_UP_TO[settings.shedding],
    )


def memory_bound(settings: Settings) -> int:
    """Bytes of memory that the process takes at most. The limit in deploy/base/deployment.yaml is above it.

    A message of gRPC is held twice while it is decoded, and is at most twice as long as a body may be. Short bodies are read
    one at a time and are not counted in the budget.
    """
    short_body = VALUE_MEMORY * min(2 * LONG_BODY, settings.max_json_values)
    short_body += (TEXT_MEMORY + LENIENT_MEMORY) * LONG_BODY
    waiting_decisions = MOST_WAITING if settings.decision_log is not None else 0
    remembered = LOGGED_SHARE * settings.index_limit if settings.shared_state is not None else 0
    logged = int(1.5 * LOGGED_CHECKPOINT_MEMORY * remembered)  # chains in use keep half that number more
    return (
        IDLE_MEMORY
        + DECISION_MEMORY * (settings.debug_decisions + waiting_decisions)
        + int(CHECKPOINT_MEMORY + OPEN_CHECKPOINT_MEMORY * UNCONFIRMED_SHARE) * settings.index_limit
        + settings.body_memory
        + 2 * settings.max_body_bytes
        + short_body
        + logged
    )


def server_options(settings: Settings) -> ServerOptions:
    """The server's share of the settings."""
    return ServerOptions(
        host=settings.host,
        grpc_port=settings.grpc_port,
        grpc_health_port=settings.grpc_health_port,
        secure_serving=settings.secure_serving,
        cert_path=settings.cert_path,
        max_body_bytes=settings.max_body_bytes,
        body_timeout=settings.body_timeout,
        max_streams=settings.max_streams,
        tracing=settings.tracing,
    )


def shared_state(settings: Settings, pool: Pool) -> SharedState:
    """The shared state of the pool's pickers. Raises ConfigurationError."""
    if settings.ha_enable_leader_election:
        raise ConfigurationError(
            "--ha-enable-leader-election and --shared-state exclude each other: all pickers are ready"
        )
    if settings.shared_state_key_path is None:
        raise ConfigurationError("--shared-state needs --shared-state-key-path: the key that encrypts what is shared")
    try:
        from warmroute.shared_state.nats_log import LogOptions  # an extra
        from warmroute.shared_state.seal import Seal
        from warmroute.shared_state.shared_state import SharedState
    except ModuleNotFoundError as error:
        raise ConfigurationError("--shared-state needs NATS's client: pip install 'warmroute[shared-state]'") from error
    servers = tuple(url.strip() for url in (settings.shared_state or "").split(","))
    pool_name = f"{settings.pool_namespace}.{settings.pool_name or 'file'}"
    try:
        seal = Seal(settings.shared_state_key_path.read_bytes().strip(), pool_name)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--shared-state-key-path {settings.shared_state_key_path}: {error}") from error
    options = LogOptions(
        servers=servers,
        subject=f"{settings.shared_state_prefix}.{pool_name.replace('.', '_')}",
        credentials=settings.shared_state_credentials,
        tls=settings.shared_state_tls_path,
        max_age=settings.shared_state_history,
        max_bytes=settings.shared_state_bytes,
        replicas=settings.shared_state_replicas,
    )
    return SharedState(options, seal, pool, most_checkpoints=int(LOGGED_SHARE * settings.index_limit))


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
        self.metrics = Metrics(
            lambda: self.settings,
            self._readings,
            clock=monotonic,
            decision_lines_dropped=lambda: 0 if self.decision_log is None else self.decision_log.dropped,
        )
        self.decisions = RecentDecisions(settings.debug_decisions)
        self.live = LiveFeed(
            PickerView(
                readings=self._readings,
                holders=self._holders,
                decisions=self.decisions.newest_first,
                booked=lambda: self.router.booked,
                holdout=lambda: self.settings.holdout,
                bytes_per_token=lambda: self.router.bytes_per_token,
                about=self._about,
            ),
            self.metrics,
            key=secrets.token_bytes(16),
            chance=random.random,
            clock=monotonic,
        )
        self.shared_state = None if settings.shared_state is None else shared_state(settings, self.pool)
        self.metrics.shared_state = None if self.shared_state is None else self._shared_state_reading
        self.router = Router(
            self.pool,
            routing_constants(settings),
            rng=rng,
            now=now,
            listeners=self._listeners(),
            name=secrets.token_hex(4),
        )
        self.pool.subscribe(self.metrics, now)
        self.scraper = Scraper(self.pool, settings, clock=monotonic, on_result=self._scraped, owns=self._scrapes_itself)
        self._rules = session_rules(settings)
        self._budget = BodyBudget(settings.body_memory)
        self.server = Server(
            server_options(settings),
            new_session=self._new_session,
            observer=self.metrics,
            ready=self._ready,
            clock=monotonic,
        )
        self.metrics_pages = PageServer(
            settings.host,
            settings.metrics_port,
            MetricsPages(self.metrics, ready=lambda: self.server.ready).routes(),
            port_flag="--metrics-port",
        )
        pages = self._debug_pages()
        self.debug_pages = PageServer(
            settings.debug_host,
            settings.debug_port,
            {**pages.routes(), **self.live.routes()},
            port_flag="--debug-port",
            posts={**pages.posts(), **self._forget_page().posts()},
            only_local=is_loopback(settings.debug_host),
        )
        self.election: LeaderElection | None = None
        self.discovery = self._discovery(settings)
        self._tasks: list[asyncio.Task[None]] = []

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
        stop, hurry = asyncio.Event(), asyncio.Event()

        def signalled() -> None:
            (hurry if stop.is_set() else stop).set()

        on_end_signal(signalled)
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
        for name, work in (
            ("upkeep", self._upkeep),
            ("lag", lambda: lag.watch(self.metrics.loop_lagged)),
            ("live", self.live.run),
            ("bypass", lambda: bypass.watch(lambda: self._ready() and self.live.bypassed())),
        ):
            self._tasks.append(asyncio.create_task(_keep_running(name, work), name=name))
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
        await cancel(*self._tasks)
        self._tasks.clear()
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
        if strategies.is_file(settings.holdout_strategy):
            raise ConfigurationError("--holdout-strategy cannot be a file")
        if strategies.is_file(strategy) and strategy != self._given_strategy:
            # Else whoever may annotate the InferencePool could run any file of the container.
            raise ConfigurationError(
                f"the routing strategy {strategy!r} is a file: only --routing-strategy may name one"
            )
        self.scraper.apply(settings)
        try:
            self.router.apply(routing_constants(settings), monotonic())
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
        return Session(self.router, self._rules, models=self.pool.models, budget=self._budget, chance=self._chance)

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
                "unreadable": traffic.unreadable + applied.unreadable,
                "unknown-version": traffic.unknown_versions,
                "unknown-endpoint": applied.unknown_endpoints,
                "unknown-chain": applied.unknown_chains,
                "dropped": shared.outbox.dropped,
            },
        )

    def _scraped(self, endpoint: Endpoint, result: ScrapeOutcome) -> None:
        self.metrics.scraped(endpoint.id, result)

    def _readings(self) -> Iterator[EndpointReading]:
        """Read every endpoint, one by one."""
        now = monotonic()
        for load in list(self.router.loads):
            reading = self._reading(load, now)
            if reading is not None:
                yield reading

    def _holders(self, checkpoint: int) -> list[str]:
        return self.router.holders(checkpoint)

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
            settings=lambda: self.settings.model_dump(mode="json"),
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


async def _keep_running(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work``, which should never end, and start it again whenever it ends or fails."""
    while True:
        try:
            await work()
        except Exception:
            logger.exception("background task failed and is started again", extra={"fields": {"task": name}})
        await asyncio.sleep(RESTART_DELAY)


def serve(settings: Settings) -> None:
    """Configure logging and serve until a signal. Raises ConfigurationError."""
    import uvloop

    logs.configure(settings)
    uvloop.run(EndpointPicker(settings).run())
