"""Kubernetes Events about the InferencePool: `kubectl describe` shows them."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from uuid import uuid4

from warmroute.kubernetes.api import ApiError, Cluster
from warmroute.kubernetes.inference_pool import InferencePool
from warmroute.kubernetes.objects import Object, Resource, timestamp
from warmroute.tasks import BackgroundTask

logger = logging.getLogger(__name__)

MAX_PENDING = 16
"""Events not sent yet; further ones are dropped. The log has them all."""
MAX_MESSAGE = 1024
"""Longest message, in characters: `kubectl describe` shows it on one line."""


class EventReporter:
    """Creates Warning Events in the background. Failures are logged and not retried: not every Role allows Events."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._path = Resource("", "v1", "events", namespace).path
        self._pending: asyncio.Queue[Object] = asyncio.Queue(MAX_PENDING)
        self._task = BackgroundTask(self._run, "kubernetes events")

    def start(self) -> None:
        """Begin to send."""
        self._task.start()

    async def stop(self) -> None:
        """Stop sending; pending Events are lost. Safe before :meth:`start` and when called again."""
        await self._task.stop()

    def warn(self, pool: InferencePool, reason: str, message: str) -> None:
        """Report a Warning about ``pool``; dropped if too many are pending."""
        if not self._pending.full():
            self._pending.put_nowait(warning(pool, reason, message, datetime.now(UTC)))

    async def _run(self) -> None:
        while True:
            event = await self._pending.get()
            try:
                await self._cluster.create(self._path, event)
            except ApiError as error:
                logger.debug("event not created", extra={"fields": {"error": str(error)}})
            except Exception:
                logger.exception("an event could not be created")


def warning(pool: InferencePool, reason: str, message: str, now: datetime) -> Object:
    """The Event object."""
    time = timestamp(now)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{pool.name}.{uuid4().hex[:16]}", "namespace": pool.namespace},
        "involvedObject": {
            "apiVersion": pool.api_version,
            "kind": "InferencePool",
            "namespace": pool.namespace,
            "name": pool.name,
            "uid": pool.uid,
        },
        "type": "Warning",
        "reason": reason,
        "message": message[:MAX_MESSAGE],
        "source": {"component": "warmroute"},
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }
