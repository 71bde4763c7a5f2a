"""A picker's own batches until they are read back, and what it learns from that. Without NATS."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest

from tests.factories import routing_constants
from warmroute.pool.endpoint import EndpointSpec
from warmroute.pool.pool import Pool
from warmroute.request.inference import InferenceRequest, PromptPart
from warmroute.routing.decision import Decision
from warmroute.routing.router import Router
from warmroute.shared_state.inbox import Inbox
from warmroute.shared_state.nats_log import LARGEST_BATCH, Entry, LogError, LogOptions, NatsLog
from warmroute.shared_state.own_batches import MOST_UNREAD, MOST_UNREAD_BYTES, OwnBatches
from warmroute.shared_state.seal import Seal
from warmroute.shared_state.shared_state import BATCH_INTERVAL, ECHO_PATIENCE, SharedState
from warmroute.shared_state.shared_state_pb2 import Batch

OFFSET = -500.0
"""Own clock minus the log's clock."""
LONG = "a long prompt " * 200


class Clock:
    """A time that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Log(NatsLog):
    """Keeps what is published; ``stored`` is called for each batch before the next one."""

    def __init__(self, stored: Callable[[bytes], Awaitable[None]] | None = None) -> None:
        self.batches: list[bytes] = []
        self.most_bytes = LARGEST_BATCH
        self._error = ""
        self._stored = stored

    async def publish(self, batch: bytes) -> None:
        self.batches.append(batch)
        if self._stored is not None:
            await self._stored(batch)


class Picker:
    """The shared state of a picker that does not run by itself: the test passes on what it publishes."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        pool = Pool()
        options = LogOptions(("nats://127.0.0.1:9",), "test", None, None, 600.0, 1 << 20, 1)
        self.shared = SharedState(options, Seal(b"0123456789abcdef", "test"), pool, clock=clock)
        listeners = (self.shared.outbox,)
        self.router = Router(pool, routing_constants(), rng=random.Random(0), now=clock.now, listeners=listeners)
        self.shared._router = self.router
        self.shared._inbox = Inbox(self.router, pool, self.shared.outbox)
        self.shared.replayed = True
        self.shared._works_from = 0
        pool.replace([EndpointSpec("ns", "a", "10.0.0.1", 8000)], clock.now)

    def publish(self) -> Entry:
        """The next batch, as the log stores it 1 ms later."""
        return self.stored(self.shared._next_batch(self.shared.outbox.take(self.clock.now)))

    def stored(self, sealed: bytes) -> Entry:
        return Entry(sealed, 1, self.clock.now + 0.001 - OFFSET)

    async def read(self, entry: Entry) -> None:
        """It comes 2 ms later."""
        self.clock.now += 0.002
        await self.shared._received(entry)

    def pick(self, text: str) -> Decision:
        data = text.encode()
        request = InferenceRequest(model="m", parts=(PromptPart(data, len(data)),), prompt_bytes=len(data))
        decision = self.router.pick(request, self.clock.now)
        assert isinstance(decision, Decision)
        return decision


@pytest.mark.parametrize("away", [4.0, 90.0])
async def test_a_batch_that_is_sent_again_leaves_the_clock_right(away: float) -> None:
    """The first copy was stored, the connection was cut before it was read back, and it is read back after the second copy
    was sent."""
    clock = Clock()
    picker = Picker(clock)
    await picker.read(picker.publish())
    first = picker.publish()
    clock.now += away
    log = Log()
    await picker.shared._send_again(log, picker.shared._unread.to_send_again())
    again = picker.stored(log.batches[0])
    await picker.read(first)
    await picker.read(again)
    assert picker.shared._offset.offset == pytest.approx(OFFSET, abs=picker.shared._offset.error + 1e-6)
    assert picker.shared.lag == pytest.approx(0.002)
    await picker.read(picker.publish())
    assert picker.shared._offset.offset == pytest.approx(OFFSET, abs=0.002)


async def test_a_batch_that_is_read_back_while_others_are_sent_again_is_not_kept() -> None:
    clock = Clock()
    picker = Picker(clock)
    entries = [picker.publish() for _ in range(3)]

    async def last_comes(batch: bytes) -> None:
        if batch == entries[0].data:
            await picker.read(entries[2])

    log = Log(last_comes)
    await picker.shared._send_again(log, picker.shared._unread.to_send_again())
    assert log.batches == [entries[0].data, entries[1].data]
    for entry in entries:
        await picker.read(entry)
    assert not picker.shared._unread
    assert picker.shared._unread._bytes == 0


async def test_a_batch_that_a_later_one_overtook_is_sent_again_once() -> None:
    """A cluster that chooses a new leader, or loses a connection between its members, drops some."""
    clock = Clock()
    picker, log = Picker(clock), Log()
    entries = [picker.publish() for _ in range(4)]

    def times_sent_again() -> list[int]:
        return [log.batches.count(entry.data) for entry in entries]

    await picker.read(entries[0])
    await picker.shared._publish(log)
    assert times_sent_again() == [0, 0, 0, 0]
    await picker.read(entries[3])
    await picker.shared._publish(log)
    assert times_sent_again() == [0, 1, 1, 0]
    await picker.read(picker.stored(entries[1].data))
    await picker.read(picker.publish())
    await picker.shared._publish(log)
    assert times_sent_again() == [0, 1, 1, 0]  # what the log never stores does not come again and again
    await picker.shared._send_again(log, picker.shared._unread.to_send_again())
    assert times_sent_again() == [0, 1, 2, 0]


async def test_what_is_sent_again_counts_at_its_own_time() -> None:
    """The log stamps it later."""
    clock = Clock()
    one, other = Picker(clock), Picker(clock)
    for picker in (one, other):
        await picker.read(picker.publish())
    decision = one.pick(LONG)
    one.publish()
    clock.now += 20.0
    log = Log()
    await one.shared._send_again(log, one.shared._unread.to_send_again())
    await other.read(one.stored(log.batches[0]))
    assert other.shared.applied.decisions == 1
    load = other.router.load(next(iter(other.router.loads)).endpoint)
    assert load is not None
    assert list(load.sent.times) == pytest.approx([decision.at], abs=0.01)
    assert other.shared.pickers == 1


async def test_what_the_log_stamps_earlier_counts_at_that_time() -> None:
    """The sender's clock is 5 s wrong, as it is for a moment after another server has taken over."""
    clock = Clock()
    one, other = Picker(clock), Picker(clock)
    await other.read(other.publish())
    now = clock.now
    one.shared._offset.add(sent_at=now, stamped_at=now - OFFSET + 5, received_at=now)
    await other.read(one.stored(one.shared._next_batch(Batch())))
    assert other.shared._membership._heard[one.shared.id] == pytest.approx(now, abs=0.01)


async def test_a_loop_that_stood_still_gives_no_connection_up() -> None:
    """What has arrived meanwhile is read after its next turn."""
    clock = Clock()
    picker = Picker(clock)
    log = Log()

    async def turns(count: int) -> None:
        for _ in range(count):
            clock.now += BATCH_INTERVAL
            await picker.shared._publish(log)

    await picker.shared._publish(log)
    clock.now += 2 * ECHO_PATIENCE
    await picker.shared._publish(log)
    await picker.read(picker.stored(log.batches[0]))
    patience = round(ECHO_PATIENCE / BATCH_INTERVAL)
    await turns(patience - 5)
    await picker.read(picker.stored(log.batches[1]))
    await turns(patience - 5)
    with pytest.raises(LogError, match="no batch was read back"):
        await turns(10)


async def test_an_entry_that_only_looks_like_an_own_batch_is_not_one() -> None:
    """Its head is in clear: whoever may write to NATS can copy it, and needs no key for that."""
    clock = Clock()
    picker = Picker(clock)
    batch = picker.publish()
    clock.now += 2.0
    await picker.read(Entry(batch.data[:17], 1, clock.now - 1.0 - OFFSET))
    assert picker.shared.traffic.unreadable == 1
    assert picker.shared._offset.offset is None
    await picker.read(batch)
    assert picker.shared._offset.offset is not None
    assert not picker.shared._unread


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_the_oldest_batches_are_dropped_beyond_their_number_or_bytes(size: int) -> None:
    batches = OwnBatches()
    for sequence in range(MOST_UNREAD + 1):
        batches.add(sequence, bytes(size), now=1.0)
    fit = min(MOST_UNREAD, MOST_UNREAD_BYTES // size)
    assert [sequence for sequence, _ in batches.to_send_again()] == list(range(MOST_UNREAD + 1 - fit, MOST_UNREAD + 1))


def test_a_batch_that_is_read_back_meanwhile_is_not_sent_again() -> None:
    batches = OwnBatches()
    for sequence in (1, 2, 3):
        batches.add(sequence, b"batch", now=1.0)
    again = []
    for sequence, _ in batches.to_send_again():
        again.append(sequence)
        batches.remove(sequence + 1)
    assert again == [1, 3]
    assert len(batches) == 2
