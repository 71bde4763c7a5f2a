"""Keeps this picker's state shared: publishes its batches, applies those of the others, and says who scrapes what.

Everything here is an aid. While the log is away, the picker goes on with what it knows, tries again with backoff, and never
becomes unready. No request waits for the log: decisions are put into a bounded queue, which a task empties.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from time import monotonic

from google.protobuf.message import DecodeError

from warmroute.log_throttle import LogThrottle
from warmroute.pool.endpoint import Endpoint
from warmroute.pool.pool import Pool
from warmroute.routing.router import Router
from warmroute.shared_state.clock import ClockOffset
from warmroute.shared_state.duplicates import Duplicates
from warmroute.shared_state.inbox import Applied, Inbox
from warmroute.shared_state.membership import HEARTBEAT, SILENCE, Membership
from warmroute.shared_state.nats_log import Entry, LogError, LogOptions, NatsLog, Position
from warmroute.shared_state.outbox import Outbox
from warmroute.shared_state.own_batches import OwnBatch, OwnBatches
from warmroute.shared_state.seal import VERSION, Seal, UnreadableError, head_of
from warmroute.shared_state.shared_state_pb2 import Batch
from warmroute.tasks import cancel

logger = logging.getLogger(__name__)

BATCH_INTERVAL = 0.02
"""Seconds between two batches. Half of it is how late another picker learns of a decision, on average; each batch costs
every picker about 0.1 ms (docs/shared-state.md)."""
START_PATIENCE = 5.0
"""Seconds after which a picker that has not read the log yet is ready without it."""
LONGEST_TURN = 0.1
"""Seconds of one turn that count as silence: a loop that stood still has not read yet what has arrived meanwhile."""
ECHO_PATIENCE = 3.0
"""Seconds without a batch of one's own read back after which the connection is given up."""
BACKOFF = (0.1, 0.2, 0.5, 1.0)
"""Seconds until the log is tried again; the last value repeats."""
JITTER = 0.2
"""Share by which the backoff varies, so that pickers do not come back at one time."""
SLICE = 0.01
"""Seconds of applying batches after which requests get their turn."""
LATEST = 60.0
"""Seconds between publishing and storing a batch after which it is not applied. Batches that were not read back come again
when NATS is back; the limit bounds what somebody can store again who may write to NATS and does not have the key."""
FAILURE_LOG_INTERVAL = 10.0
"""Least seconds between two log lines about batches that could not be applied."""
UNREADABLE_LOG_INTERVAL = 600.0
"""Least seconds between two log lines about batches that cannot be read."""


@dataclass(slots=True)
class Traffic:
    """Totals of what went to the log and came from it."""

    batches_out: int = 0
    bytes_out: int = 0
    batches_in: int = 0
    bytes_in: int = 0
    duplicates: int = 0
    unknown_versions: int = 0
    unreadable: int = 0
    """Written with another key, or not a batch."""
    outdated: int = 0
    """Stored more than :data:`LATEST` after they were published."""
    too_large: int = 0
    """Own batches that were dropped because the server takes none of that size."""


class SharedState:
    """The state that pickers share. Give :attr:`outbox` to the router as a listener, then :meth:`start`."""

    def __init__(
        self,
        options: LogOptions,
        seal: Seal,
        pool: Pool,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._options = options
        self._seal = seal
        self._pool = pool
        self._clock = clock
        self.id = secrets.randbits(64)
        """The number of this picker."""
        self._membership = Membership(self.id)
        self.outbox = Outbox(retention=options.max_age, owns=self._membership.owns)
        pool.subscribe(self.outbox, clock())
        self._inbox: Inbox | None = None
        self._router: Router | None = None
        self._offset = ClockOffset()
        self._duplicates = Duplicates()
        self._sequence = 0
        self._unread = OwnBatches()
        self._silence = 0.0
        """Seconds in which the loop ran and no batch of one's own was read back, nor anything of before this connection."""
        self._turn_at = 0.0
        """When the loop had its last turn."""
        self._published_at = 0.0
        self._position: Position | None = None
        self._works_from: float = inf
        """Sequence number from which on a batch that is read back shows that the connection works; 0: one was."""
        self._caught_up_at: int | None = None
        """Place in the log from which on it was written after this picker came."""
        self._began_slice = 0.0
        self._failures = LogThrottle(FAILURE_LOG_INTERVAL)
        self._unreadable = LogThrottle(UNREADABLE_LOG_INTERVAL)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._started_at = 0.0

        self.traffic = Traffic()
        self.connected = False
        """Whether the log is there."""
        self.away_since: float | None = None
        """Since when it is not, in monotonic seconds; None while it is there."""
        self.why_away = "not connected yet"
        self.replayed = False
        """Whether the log was read up to the time at which this picker came."""
        self.replay_seconds = 0.0
        """Time from the connection until that was done."""
        self.lag = 0.0
        """Seconds from publishing to reading back, of the latest batch of one's own."""

    # ---------------------------------------------------------------- life

    def start(self, router: Router) -> None:
        """Begin to read and to publish for ``router``."""
        self._router = router
        self._inbox = Inbox(router, self._pool, self.outbox)
        self._started_at = self.away_since = self._clock()
        self._tasks = [
            asyncio.create_task(self._run(), name="shared-state"),
            asyncio.create_task(self._watch_members(), name="shared-state-members"),
        ]

    async def stop(self) -> None:
        """Tell the others that this picker leaves, and disconnect; safe before :meth:`start` and a second time."""
        self._stopping.set()
        tasks, self._tasks = self._tasks, []
        if tasks:
            await asyncio.wait(tasks[:1], timeout=1.0)
        await cancel(*tasks)

    @property
    def ready(self) -> bool:
        """Whether the picker may serve: the log is read, or it was waited for long enough."""
        return self.replayed or self._clock() >= self._started_at + START_PATIENCE

    # ---------------------------------------------------------------- scrapes

    def owns(self, endpoint: Endpoint) -> bool:
        """Whether this picker scrapes the endpoint. It scrapes none before it has read the log, whose figures are older and
        belong to the decisions beside them."""
        return self.ready and self._membership.owns(endpoint.id)

    @property
    def pickers(self) -> int:
        """Live pickers, this one included."""
        return self._membership.alive

    @property
    def scrape_share(self) -> float:
        """Share of the pool's endpoints that this picker scrapes."""
        endpoints = self._pool.endpoints.values()
        return sum(map(self.owns, endpoints)) / len(endpoints) if endpoints else 0.0

    @property
    def applied(self) -> Applied:
        """Totals of what was applied of other pickers' batches."""
        return self._inbox.applied if self._inbox is not None else Applied()

    async def _watch_members(self) -> None:
        while True:
            self._membership.expire(self._clock())
            await asyncio.sleep(HEARTBEAT / 2)

    # ---------------------------------------------------------------- the connection

    async def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                await self._serve()
            except LogError as error:
                failures = 0 if self.connected else failures + 1
                self._lost(str(error))
            except Exception as error:
                failures += 1
                self._lost(f"a bug: {error!r}")
                logger.exception("shared state failed and goes on")
            if not self._stopping.is_set():
                pause = BACKOFF[min(failures, len(BACKOFF) - 1)]
                await asyncio.sleep(pause * random.uniform(1 - JITTER, 1 + JITTER))

    async def _serve(self) -> None:
        """One connection, until it ends or this picker stops. Raises LogError."""
        while not self._pool.synced:  # decisions for endpoints that are not listed yet would be lost
            await asyncio.sleep(BATCH_INTERVAL)
        async with NatsLog(self._options, self._received) as log:
            connected_at = self._clock()
            self._works_from = inf
            hello, before, after = await log.begin(self._next_batch(Batch()))
            self._offset.add(sent_at=before, stamped_at=hello.stamped_at, received_at=after)
            self._unread.remove(self._sequence)
            self._published_at = -inf  # the others do not count the first one
            self._caught_up_at = hello.number
            self._silence, self._turn_at = 0.0, self._clock()
            self._began_slice = self._turn_at
            await log.read(self._position)
            if self._position is None or self._position.created != log.created:
                self._position = Position(log.created, 0, 0.0)
            await self._send_again(log, self._unread.to_send_again())
            self._works_from = self._sequence + 1
            self._found(log)
            while not self._stopping.is_set():
                await self._publish(log)
                if not self.replayed:
                    self.replay_seconds = self._clock() - connected_at
                await asyncio.sleep(BATCH_INTERVAL)
            while self.outbox:
                await self._send(log, self.outbox.take(self._clock()))
            await self._send(log, self.outbox.take(self._clock(), leaving=True))
            await log.flush()

    def _found(self, log: NatsLog) -> None:
        fields = {"server": log.server, "stream": self._options.stream}
        if self.away_since is not None:
            fields["away-seconds"] = f"{self._clock() - self.away_since:.1f}"
        logger.info("shared state connected", extra={"fields": fields})
        stream = {"stream": self._options.stream}
        if log.changed_limits:
            logger.info("the log has the limits of the settings now", extra={"fields": stream})
        if log.keeps_limits:
            fields = stream | {"error": log.keeps_limits}
            logger.warning("the log keeps its limits, the settings name others", extra={"fields": fields})
        self.connected, self.away_since, self.why_away = True, None, ""

    def _lost(self, why: str) -> None:
        first = self.connected or self.why_away == "not connected yet"
        self.connected, self.why_away = False, why
        if self.away_since is None:
            self.away_since = self._clock()
        if first:
            message = "shared state is away; serving with what is known"
            logger.warning(message, extra={"fields": {"error": why}})

    # ---------------------------------------------------------------- out

    async def _publish(self, log: NatsLog) -> None:
        now = self._clock()
        self._silence += min(now - self._turn_at, LONGEST_TURN)
        self._turn_at = now
        if self._silence >= ECHO_PATIENCE:
            raise LogError(log.error or f"no batch was read back for {ECHO_PATIENCE:g} s")
        await self._send_again(log, self._unread.lost())
        heartbeat = now >= self._published_at + HEARTBEAT
        if not self.outbox and not heartbeat:
            return
        estimate = self._router.bytes_per_token if heartbeat and self._router is not None else 0.0
        await self._send(log, self.outbox.take(now, bytes_per_token=estimate))
        while self.outbox:
            await self._send(log, self.outbox.take(self._clock()))

    async def _send(self, log: NatsLog, batch: Batch) -> None:
        sealed = self._next_batch(batch)
        await self._publish_sealed(log, self._sequence, sealed)

    async def _publish_sealed(self, log: NatsLog, sequence: int, sealed: bytes) -> None:
        """Publish, or drop what the server does not take: it would end this connection, and each one after it."""
        if len(sealed) > log.most_bytes:
            self.traffic.too_large += 1
            self._unread.remove(sequence)
            return
        await log.publish(sealed)

    async def _send_again(self, log: NatsLog, batches: Iterator[tuple[int, OwnBatch]]) -> None:
        """Batches that were never read back may be lost. The others drop those that are not."""
        for sequence, batch in batches:
            batch.sent_again_at = self._clock()
            await self._publish_sealed(log, sequence, batch.sealed)

    def _next_batch(self, batch: Batch) -> bytes:
        """Encrypt the batch with the next sequence number."""
        self._sequence += 1
        # Nobody leaves an engine to a picker that is not ready, or whose figures may not come.
        batch.leaving = batch.leaving or not self.ready or self._works_from > 0
        batch.log_time = self._offset.log_time(self._clock())
        sealed = self._seal.close(batch.SerializeToString(), self.id, self._sequence)
        self._published_at = self._clock()
        self._unread.add(self._sequence, sealed, self._published_at)
        self.traffic.batches_out += 1
        self.traffic.bytes_out += len(sealed)
        return sealed

    # ---------------------------------------------------------------- in

    async def _received(self, entry: Entry) -> None:
        """An entry of the log, one's own included. Raises nothing."""
        if self._caught_up_at is not None and entry.number <= self._caught_up_at:
            self._silence = 0.0
        try:
            self._read(entry)
        except (UnreadableError, DecodeError):
            self.traffic.unreadable += 1
            unreadable = self._unreadable.add(self._clock())
            if unreadable:
                message = "batches cannot be read; do all pickers of the pool have the same key?"
                logger.warning(message, extra={"fields": {"batches": unreadable, "stream": self._options.stream}})
        except Exception:
            failures = self._failures.add(self._clock())
            if failures:
                fields = {"batches": failures}
                logger.exception("a batch of shared state could not be applied", extra={"fields": fields})
        if self._position is not None:
            self._position = self._position._replace(number=entry.number, stamped_at=entry.stamped_at)
        if not self.replayed and self._caught_up_at is not None and entry.number >= self._caught_up_at:
            self.replayed = True
            self._published_at = -inf  # the others learn at once that it scrapes
            fields = {"batches": self.traffic.batches_in, "decisions": self.applied.decisions, "pickers": self.pickers}
            logger.info("shared state read", extra={"fields": fields})
        if self._clock() >= self._began_slice + SLICE:
            await asyncio.sleep(0)
            self._began_slice = self._clock()

    def _read(self, entry: Entry) -> None:
        head, now = head_of(entry.data), self._clock()
        if head.picker == self.id:
            self._echo(head.sequence, entry, now)
            return
        traffic = self.traffic
        traffic.batches_in += 1
        traffic.bytes_in += len(entry.data)
        if head.version != VERSION:
            traffic.unknown_versions += 1
            return
        batch = Batch.FromString(self._seal.open(entry.data))
        if not self._duplicates.is_new(head.picker, head.sequence):
            traffic.duplicates += 1
            return
        if not abs(entry.stamped_at - batch.log_time) <= LATEST:  # NaN is not, either
            traffic.outdated += batch.log_time != 0
            return
        # A batch that was sent again is stamped later. A stamp may be later than now if the log's clock was set forward.
        published_at = min(self._offset.own_time(min(entry.stamped_at, batch.log_time)), now)
        if batch.leaving:
            self._membership.left(head.picker)
        elif published_at > now - SILENCE:
            if not self._membership.has(head.picker):
                self.outbox.repeat_soon(now)
            self._membership.heard(head.picker, published_at)
        assert self._inbox is not None
        self._inbox.apply(batch, published_at, now, replayed=not self.replayed)

    def _echo(self, sequence: int, entry: Entry, now: float) -> None:
        """An own batch is read back, if it is one that was sent, not only its head. Raises UnreadableError."""
        batch = self._unread.get(sequence)
        if batch is None:
            return
        if batch.sealed != entry.data:
            raise UnreadableError("another batch was sent")
        self._unread.read_back(sequence)
        self._silence = 0.0
        if 0 < self._works_from <= sequence:
            self._works_from = 0
            self._published_at = -inf  # the others learn at once that it scrapes
        self.lag = now - batch.sent_again_at
        self._offset.add(sent_at=batch.sent_at, stamped_at=entry.stamped_at, received_at=now)
