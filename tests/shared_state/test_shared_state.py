"""Pickers that share their state through a real NATS server."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.factories import engine_state, routing_constants
from tests.waiting import eventually
from warmroute.pool.endpoint import EndpointSpec, ServedModels
from warmroute.pool.pool import Pool
from warmroute.request.inference import InferenceRequest, PromptPart
from warmroute.routing.decision import Decision
from warmroute.routing.router import Router
from warmroute.shared_state import shared_state as module
from warmroute.shared_state.membership import SILENCE
from warmroute.shared_state.nats_log import Entry, LogError, LogOptions, NatsLog
from warmroute.shared_state.seal import VERSION, Seal
from warmroute.shared_state.shared_state import SharedState
from warmroute.shared_state.shared_state_pb2 import Batch
from warmroute.standalone.child import Child
from warmroute.standalone.nats import NatsProcess, nats_server_path
from warmroute.standalone.ports import free_port

pytestmark = pytest.mark.integration

LONG = "a long prompt " * 200
ENDPOINTS = [EndpointSpec("ns", f"pod-{k}", "10.0.0.1", 8000 + k) for k in range(10)]


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsProcess]:
    async with NatsProcess(tmp_path) as server:
        yield server


class Picker:
    """Router and shared state of one picker."""

    def __init__(self, url: str, key: bytes = b"0123456789abcdef") -> None:
        self.pool = Pool()
        options = LogOptions(
            servers=(url,),
            subject="warmroute.test",
            credentials=None,
            tls=None,
            max_age=600.0,
            max_bytes=64 << 20,
            replicas=1,
        )
        self.shared = SharedState(options, Seal(key, "test"), self.pool)
        constants, listeners = routing_constants(), (self.shared.outbox,)
        self.router = Router(
            self.pool, constants, rng=random.Random(0), now=self.now, listeners=listeners, name="picker"
        )
        self.pool.replace(ENDPOINTS, self.now)

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def pick(self, text: str) -> Decision:
        data = text.encode()
        request = InferenceRequest(model="m", parts=(PromptPart(data, len(data)),), prompt_bytes=len(data))
        decision = self.router.pick(request, self.now)
        assert isinstance(decision, Decision)
        return decision

    def holds(self, decision: Decision) -> bool:
        """Whether the index has the whole prompt on the endpoint that another picker chose."""
        return decision.endpoint.id in self.router.holders(decision.chain.hashes)


Start = Callable[..., Picker]


@pytest.fixture
async def start(nats: NatsProcess) -> AsyncIterator[Start]:
    """Starts pickers, and stops them in the end."""
    pickers: list[Picker] = []

    def start_one(key: bytes = b"0123456789abcdef") -> Picker:
        picker = Picker(nats.url, key)
        pickers.append(picker)
        picker.shared.start(picker.router)
        return picker

    yield start_one
    for picker in pickers:
        await picker.shared.stop()


async def together(*pickers: Picker) -> None:
    """Wait until all have heard of each other."""
    await eventually(lambda: all(picker.shared.replayed for picker in pickers), "the log is read")
    await eventually(
        lambda: all(picker.shared.pickers == len(pickers) for picker in pickers), "pickers know each other"
    )


async def test_what_one_decides_the_others_know(start: Start) -> None:
    one, other = start(), start()
    await together(one, other)
    decision = one.pick(LONG)
    await eventually(lambda: other.holds(decision), "the other picker knows the decision")


async def test_a_starter_reads_what_was_decided_before(start: Start) -> None:
    one = start()
    await together(one)
    decisions = [one.pick(f"{k} {LONG}") for k in range(50)]
    await eventually(lambda: not one.shared.outbox, "everything is published")
    starter = start()
    await eventually(lambda: starter.shared.replayed, "the log is read")
    assert all(starter.holds(decision) for decision in decisions)
    assert starter.shared.ready
    waiting = [starter.router.load_of(load, starter.now)[0] for load in starter.router.loads]
    assert sum(waiting) > 0


async def test_the_log_outlives_the_last_picker(start: Start) -> None:
    one = start()
    await together(one)
    decision = one.pick(LONG)
    await one.shared.stop()
    starter = start()
    await eventually(lambda: starter.shared.replayed, "the log is read")
    assert starter.holds(decision)


async def test_states_restarts_and_reachability_come_through(start: Start) -> None:
    one, other = start(), start()
    await together(one, other)
    endpoint, there = one.pool.endpoints["ns/pod-0"], other.pool.endpoints["ns/pod-0"]
    one.pool.observed(endpoint, engine_state(one.now, running=3), one.now)
    await eventually(lambda: there.state is not None and there.state.running == 3)
    assert there.state is not None
    assert abs(there.state.observed_at - one.now) < 30
    one.pool.unreachable(endpoint, one.now)
    await eventually(lambda: not there.reachable)
    one.pool.restarted(endpoint, one.now)
    await eventually(lambda: there.state is None)


async def test_each_endpoint_is_scraped_by_one(start: Start) -> None:
    pickers = [start(), start(), start()]
    await together(*pickers)
    for name in pickers[0].pool.endpoints:
        assert sum(picker.shared.owns(picker.pool.endpoints[name]) for picker in pickers) == 1
    assert sum(picker.shared.scrape_share for picker in pickers) == pytest.approx(1)


async def test_one_that_still_reads_the_log_leaves_the_scrapes_to_the_others(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = start()
    await together(one)
    reading = {"ready": False}
    monkeypatch.setattr(SharedState, "ready", property(lambda shared: shared is one.shared or reading["ready"]))
    starter = start()
    await eventually(lambda: starter.shared.pickers == 2, "the starter has heard of the other one")
    heard = one.shared.traffic.batches_in
    await eventually(lambda: one.shared.traffic.batches_in > heard + 1, "it is heard itself")
    assert one.shared.scrape_share == 1
    reading["ready"] = True
    await eventually(lambda: one.shared.pickers == 2, "it takes its share")


async def test_a_picker_that_leaves_says_so(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmroute.shared_state.membership.SILENCE", 1000.0)
    one, other = start(), start()
    await together(one, other)
    await other.shared.stop()
    await eventually(lambda: one.shared.pickers == 1, "the others know that it left")
    assert one.shared.scrape_share == 1


async def test_a_picker_that_dies_is_taken_over(start: Start) -> None:
    one, other = start(), start()
    await together(one, other)
    for task in other.shared._tasks:
        task.cancel()
    await eventually(lambda: one.shared.pickers == 1, "its silence is noticed")
    assert all(one.shared.owns(endpoint) for endpoint in one.pool.endpoints.values())


async def test_without_nats_it_is_ready_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "START_PATIENCE", 0.5)
    picker = Picker(NatsProcess(tmp_path).url)
    picker.shared.start(picker.router)
    assert not picker.shared.ready
    assert not picker.shared.owns(picker.pool.endpoints["ns/pod-0"])  # figures come from the log first
    await eventually(lambda: picker.shared.ready, "it is ready")
    await eventually(lambda: "not connected yet" not in picker.shared.why_away, "the failure is known")
    assert picker.shared.owns(picker.pool.endpoints["ns/pod-0"])
    picker.pick(LONG)
    await picker.shared.stop()
    assert [record.message for record in caplog.records].count("shared state is away; serving with what is known") == 1


async def test_a_server_without_jetstream_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    argv = [str(nats_server_path()), "--addr", "127.0.0.1", "--port", str(port)]
    async with Child("nats-server", argv, tmp_path / "nats.log") as server:
        await eventually(lambda: "Server is ready" in server.tail(), "the server")
        picker = Picker(f"nats://127.0.0.1:{port}")
        picker.shared.start(picker.router)
        try:
            await eventually(lambda: "away" in caplog.text, "the picker's try")
        finally:
            await picker.shared.stop()
    assert picker.shared.why_away == "the server has no JetStream: start it with `nats-server -js`"


async def test_limits_that_the_log_cannot_get_are_told(
    start: Start, nats: NatsProcess, caplog: pytest.LogCaptureFixture
) -> None:
    one = start()
    await together(one)
    other = Picker(nats.url)
    other.shared._options = replace(other.shared._options, replicas=3)
    other.shared.start(other.router)
    try:
        await together(one, other)
    finally:
        await other.shared.stop()
    (record,) = [record for record in caplog.records if "keeps its limits" in record.message]
    assert "replicas > 1 not supported" in record.__dict__["fields"]["error"]


async def test_nats_comes_back_and_pickers_catch_up(start: Start, nats: NatsProcess) -> None:
    one, other = start(), start()
    await together(one, other)
    before = one.pick(LONG)
    await eventually(lambda: other.holds(before))
    await nats.stop()
    await eventually(lambda: not one.shared.connected and not other.shared.connected, "the loss is noticed")
    meanwhile = one.pick("meanwhile " * 200)
    assert one.shared.ready
    assert one.holds(before)
    await eventually(lambda: one.shared.pickers == 1 == other.shared.pickers, "each is alone")
    await nats.start()
    await eventually(lambda: other.holds(meanwhile), "the other picker catches up")
    await together(one, other)


async def test_after_nats_has_lost_the_log_a_starter_knows_what_is_decided(start: Start, nats: NatsProcess) -> None:
    """The pickers went on from chains that only they had."""
    one, other = start(), start()
    await together(one, other)
    before = [one.pick(f"{k} {LONG}") for k in range(20)]
    await eventually(lambda: all(other.holds(decision) for decision in before))
    await nats.stop()
    await eventually(lambda: not one.shared.connected and not other.shared.connected, "the loss is noticed")
    await nats.start()
    await eventually(lambda: one.shared.connected and other.shared.connected, "the log is back")
    after = [one.pick(f"{k} {LONG} and more {LONG}") for k in range(20)]
    await eventually(lambda: all(other.holds(decision) for decision in after), "the old member knows them")
    starter = start()
    await eventually(lambda: starter.shared.replayed, "the log is read")
    assert all(starter.holds(decision) for decision in after)


async def test_a_starter_that_reads_the_newest_part_knows_what_is_decided_then(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it lacks chains, and the others append them again."""
    monkeypatch.setattr("warmroute.shared_state.nats_log.MOST_REPLAYED", 100)
    one, other = start(), start()
    await together(one, other)
    for k in range(20):
        one.pick(f"{k} {LONG}")
    await eventually(lambda: not one.shared.outbox)
    starter = start()
    await together(one, other, starter)
    assert starter.shared.applied.decisions == 0
    await eventually(lambda: starter.holds(one.pick(f"0 {LONG} and {LONG}")), "it knows the first one again")
    after = [one.pick(f"{k} {LONG} and more {LONG}") for k in range(20)]
    await eventually(lambda: all(starter.holds(decision) for decision in after), "it knows them")


async def test_a_starter_that_reads_the_newest_part_knows_what_lasts(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that does not answer and the models of the others, which were told before that part."""
    monkeypatch.setattr("warmroute.shared_state.nats_log.MOST_REPLAYED", 100)
    one = start()
    await together(one)
    models = ServedModels(frozenset({"m"}))
    for endpoint in one.pool.endpoints.values():
        one.pool.serves(endpoint, models, one.now)
    one.pool.unreachable(one.pool.endpoints["ns/pod-0"], one.now)
    for k in range(20):
        one.pick(f"{k} {LONG}")
    await eventually(lambda: not one.shared.outbox)
    starter = start()
    await together(one, starter)
    await eventually(lambda: not starter.pool.endpoints["ns/pod-0"].reachable, "it knows that one is silent")
    await eventually(lambda: all(endpoint.models == models for endpoint in starter.pool.endpoints.values()))


async def test_a_slow_server_holds_nobody_up(start: Start, nats: NatsProcess) -> None:
    """It stops reading: batches wait, and the connection is given up."""
    import os
    import signal

    one = start()
    await together(one)
    os.kill(nats.child.pid, signal.SIGSTOP)
    try:
        await eventually(lambda: not one.shared.connected, "the connection is given up")
        began = one.now
        for k in range(100):
            one.pick(f"{k} {LONG}")
        assert one.now - began < 5
        assert len(one.shared.outbox) == 100
    finally:
        os.kill(nats.child.pid, signal.SIGCONT)
    await eventually(lambda: one.shared.connected and not one.shared.outbox, "it is back")


async def test_what_was_published_into_the_void_is_published_again(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that chooses a new leader drops what comes meanwhile."""
    one, other = start(), start()
    await together(one, other)
    publish = NatsLog.publish

    async def lost(log: NatsLog, batch: bytes) -> None:
        return

    monkeypatch.setattr(NatsLog, "publish", lost)
    decision = one.pick(LONG)
    await eventually(lambda: not one.shared.connected, "that nothing comes back is noticed")
    monkeypatch.setattr(NatsLog, "publish", publish)
    await eventually(lambda: other.holds(decision), "it is published again")
    assert other.shared.applied.decisions == 1


async def test_a_picker_of_which_nothing_is_stored_notices_it_though_it_reads_the_others(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = start(), start()
    await together(one, other)
    publish = NatsLog.publish

    async def lost_for_other(log: NatsLog, batch: bytes) -> None:
        if log._received != other.shared._received:
            await publish(log, batch)

    monkeypatch.setattr(NatsLog, "publish", lost_for_other)
    await eventually(lambda: not other.shared.connected, "it is noticed")
    assert one.shared.connected
    monkeypatch.setattr(NatsLog, "publish", publish)
    await together(one, other)


async def test_a_batch_that_is_too_large_for_the_server_is_dropped(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended every connection: it was published again on each of them."""
    monkeypatch.setattr("warmroute.shared_state.outbox.MOST_FACTS", 64 << 20)
    monkeypatch.setattr("warmroute.shared_state.outbox.LONGEST_LIST", 64 << 20)
    one, other = start(), start()
    await together(one, other)
    held = one.pick(f"held {LONG}")
    await eventually(lambda: other.holds(held))
    names = frozenset(f"{'x' * 500}-{k}" for k in range(4000))
    one.pool.serves(one.pool.endpoints["ns/pod-0"], ServedModels(names), one.now)
    await eventually(lambda: one.shared.traffic.too_large == 1, "it is dropped")
    decision = one.pick(LONG)
    await eventually(lambda: other.holds(decision), "the connection goes on")
    assert one.shared.connected


async def test_a_picker_whose_connection_does_not_work_counts_as_leaving(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says hello on each connection, and then nothing comes."""
    one, other = start(), start()
    await together(one, other)

    async def broken(log: NatsLog, batch: bytes) -> None:
        raise LogError("broken")

    publish = NatsLog.publish
    heard = one.shared._membership.heard
    counted: list[int] = []

    def note(picker: int, at: float) -> None:
        counted.append(picker)
        heard(picker, at)

    async def broken_for_other(log: NatsLog, batch: bytes) -> None:
        await (broken if log._received == other.shared._received else publish)(log, batch)

    monkeypatch.setattr(NatsLog, "publish", broken_for_other)
    await eventually(lambda: one.shared.pickers == 1, "it does not count")
    monkeypatch.setattr(one.shared._membership, "heard", note)
    batches = one.shared.traffic.batches_in
    await eventually(lambda: one.shared.traffic.batches_in > batches + 2, "it has said hello again")
    assert not counted
    assert one.shared.scrape_share == 1
    monkeypatch.setattr(NatsLog, "publish", publish)
    await together(one, other)


async def test_another_key_is_counted_told_once_and_ignored(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    one, stranger = start(), start(b"another key, as long")
    await eventually(lambda: one.shared.replayed and stranger.shared.replayed)
    stranger.pick(LONG)
    await eventually(lambda: min(one.shared.traffic.unreadable, stranger.shared.traffic.unreadable) > 3)
    assert one.shared.applied.decisions == 0
    assert one.shared.pickers == 1
    assert caplog.text.count("batches cannot be read; do all pickers of the pool have the same key?") == 2


async def test_a_batch_from_the_future_keeps_no_picker_alive() -> None:
    """The log's clock was set forward, and this picker has not read one of its own batches since."""
    picker = Picker("nats://127.0.0.1:9")
    picker.shared.start(picker.router)
    now = picker.now
    picker.shared._offset.add(sent_at=now, stamped_at=now, received_at=now)
    batch = Seal(b"0123456789abcdef", "test").close(Batch(log_time=now + 3600).SerializeToString(), 1, 1)
    await picker.shared._received(Entry(batch, 1, now + 3600))
    assert picker.shared.pickers == 2
    picker.shared._membership.expire(picker.now + 2 * SILENCE)
    assert picker.shared.pickers == 1
    await picker.shared.stop()


async def test_unknown_versions_are_skipped(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    one = start()
    await eventually(lambda: one.shared.replayed)
    monkeypatch.setattr("warmroute.shared_state.seal.VERSION", VERSION + 1)
    newer = start()
    await eventually(lambda: newer.shared.replayed)
    newer.pick(LONG)
    await eventually(lambda: one.shared.traffic.unknown_versions > 0)
    assert one.shared.applied.decisions == 0


async def test_an_old_batch_that_somebody_stores_again_is_not_applied(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may write to NATS needs no key for that; a picker that started since does not know it as a duplicate."""
    one, other = start(), start()
    await together(one, other)
    monkeypatch.setattr(module, "LATEST", -1.0)
    one.pick(LONG)
    await eventually(lambda: other.shared.traffic.outdated > 0)
    assert other.shared.applied.decisions == 0


async def test_batches_that_cannot_be_applied_are_logged_once_in_a_while(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = start(), start()
    await together(one, other)
    seen = 0

    def broken(*_: object, **__: object) -> None:
        nonlocal seen
        seen += 1
        raise RuntimeError("a bug")

    monkeypatch.setattr("warmroute.shared_state.inbox.Inbox.apply", broken)
    await eventually(lambda: seen >= 4)
    assert len([record for record in caplog.records if "could not be applied" in record.message]) <= 2


async def test_a_batch_that_comes_twice_counts_once(start: Start, nats: NatsProcess) -> None:
    from nats import connect

    one, other = start(), start()
    await together(one, other)
    client = await connect(nats.url)
    seen: list[bytes] = []

    async def keep(message: object) -> None:
        seen.append(message.data)  # type: ignore[attr-defined]

    subscription = await client.subscribe("warmroute.test", cb=keep)
    one.pick(LONG)
    await eventually(lambda: other.shared.applied.decisions == 1 and seen)
    await subscription.unsubscribe()
    for data in seen:
        await client.publish("warmroute.test", data)
    await eventually(lambda: other.shared.traffic.duplicates > 0)
    await client.close()
    assert other.shared.applied.decisions == 1


async def test_the_log_tells_no_prompt(start: Start, nats: NatsProcess) -> None:
    from nats import connect

    one = start()
    await together(one)
    decision = one.pick(LONG)
    await eventually(lambda: not one.shared.outbox)
    client = await connect(nats.url)
    stream = client.jetstream()
    count = (await stream.stream_info("warmroute_test")).state.messages
    log = [(await stream.get_msg("warmroute_test", seq=number + 1)).data or b"" for number in range(count)]
    await client.close()
    assert all(len(batch) > 17 for batch in log)
    text = b"".join(log)
    for secret in (b"long prompt", b"pod-0", *(key.to_bytes(8, "little") for key in decision.chain.hashes)):
        assert secret not in text


async def test_two_hundred_endpoints_are_known_within_seconds(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """20,000 turns of 2,000 conversations: the starter knows what the picker knew that decided them."""
    specs = [EndpointSpec("ns", f"pod-{k}", f"10.0.0.{k + 1}", 8000, {}, f"uid-{k}") for k in range(200)]
    monkeypatch.setattr(f"{__name__}.ENDPOINTS", specs)
    rng = random.Random(1)
    one = start()
    await together(one)
    conversations: list[list[PromptPart]] = [[PromptPart(b"system" * 100, 600)] for _ in range(2000)]
    decisions: list[Decision] = []
    for number in range(20_000):
        parts = rng.choice(conversations)
        parts.append(PromptPart(f"{number} question".encode() * 30, len(f"{number} question") * 30))
        size = sum(part.prompt_bytes for part in parts)
        decision = one.router.pick(InferenceRequest(model="m", parts=tuple(parts), prompt_bytes=size), one.now)
        assert isinstance(decision, Decision)
        decisions.append(decision)
        if number % 500 == 0:
            await eventually(lambda: not one.shared.outbox, "it is published")
    await eventually(lambda: not one.shared.outbox, "everything is published")
    starter = start()
    began = time.process_time()
    await eventually(lambda: starter.shared.replayed, "the log is read")
    seconds = time.process_time() - began
    with capsys.disabled():
        print(f"\n{len(decisions)} decisions, {one.shared.traffic.bytes_out} bytes: {seconds:.2f} s of CPU")
    last = decisions[-4000:]
    known = sum(starter.holds(decision) for decision in last) / sum(one.holds(decision) for decision in last)
    assert known > 0.98
