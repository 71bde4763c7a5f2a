"""Events about the InferencePool: what cannot be sent harms nothing else."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

import pytest

from tests.fixtures.kubernetes.objects import POOL, changed
from tests.waiting import eventually
from warmroute.kubernetes.api import ApiError, Cluster
from warmroute.kubernetes.events import MAX_MESSAGE, MAX_PENDING, EventReporter, warning
from warmroute.kubernetes.inference_pool import read_pool
from warmroute.kubernetes.objects import Object

IDENTIFIED = read_pool(changed(POOL, metadata__namespace="default", metadata__uid="u"))


class Recorder(Cluster):
    """A cluster that keeps the messages of the Events it is given, once ``failures`` have been raised."""

    def __init__(self, *failures: Exception) -> None:
        super().__init__()
        self.failures = list(failures)
        self.messages: list[str] = []

    async def create(self, path: str, body: Object) -> Object:
        if self.failures:
            raise self.failures.pop(0)
        self.messages.append(body["message"])
        return body


async def test_more_events_than_may_wait_are_dropped_and_none_is_sent_after_the_end() -> None:
    cluster = Recorder()
    reporter = EventReporter(cluster, "default")
    for k in range(MAX_PENDING + 5):
        reporter.warn(IDENTIFIED, "Test", str(k))
    reporter.start()
    await eventually(lambda: len(cluster.messages) == MAX_PENDING)
    assert cluster.messages == [str(k) for k in range(MAX_PENDING)]
    await reporter.stop()
    reporter.warn(IDENTIFIED, "Test", "late")
    await asyncio.sleep(0.02)
    assert "late" not in cluster.messages


async def test_an_event_that_cannot_be_created_costs_no_other_and_only_a_bug_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = Recorder(ApiError(403, "forbidden"), RuntimeError("a bug"))
    reporter = EventReporter(cluster, "default")
    for k in range(3):
        reporter.warn(IDENTIFIED, "Test", str(k))
    with caplog.at_level(logging.INFO, "warmroute"):
        reporter.start()
        await eventually(lambda: cluster.messages == ["2"])
        await reporter.stop()
    assert [record.getMessage() for record in caplog.records] == ["an event could not be created"]


def test_a_long_message_is_cut() -> None:
    assert warning(IDENTIFIED, "Test", "x" * 5000, datetime.now(UTC))["message"] == "x" * MAX_MESSAGE
