"""Leader election with a Lease: of several pickers one is ready, the others stand by."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from warmroute.kubernetes.api import UNREACHABLE, ApiError, Cluster
from warmroute.kubernetes.objects import Object, Resource
from warmroute.tasks import BackgroundTask

logger = logging.getLogger(__name__)

LEASE_DURATION = 15
"""Seconds without a renewal after which another picker takes the Lease."""
RETRY_INTERVAL = 2.0
"""Seconds between two reads of the Lease, and between two renewals."""
RENEW_TIMEOUT = 5.0
"""Seconds that one attempt to renew or take the Lease may last: a connection that hangs must not cost a leader its Lease."""
RELEASE_TIMEOUT = 3.0
"""Seconds that releasing the Lease may take when the picker stops."""

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def own_namespace(default: str) -> str:
    """Where this process runs: POD_NAMESPACE, else its service account's namespace, else ``default``."""
    try:
        return os.environ.get("POD_NAMESPACE") or _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except OSError:
        return default


def own_identity() -> str:
    """The pod's name: POD_NAME, else the host name, which is the pod's name by default."""
    return os.environ.get("POD_NAME") or socket.gethostname()


class LeaderElection:
    """Holds or awaits one Lease.

    A leader stays leader until it sees another holder. While the API server is away nobody can take over. If only this
    process is cut off, two pickers serve for a while, which costs cache hits but no requests. Whether another holder's Lease
    has expired is measured by the own clock, from when its last renewal was seen; clocks of nodes need not agree.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        name: str,
        identity: str,
        *,
        clock: Callable[[], float] = monotonic,
        duration: int = LEASE_DURATION,
        retry_interval: float = RETRY_INTERVAL,
        renew_timeout: float = RENEW_TIMEOUT,
    ) -> None:
        self.leading = False
        self._cluster = cluster
        self._leases = Resource("coordination.k8s.io", "v1", "leases", namespace)
        self._name = name
        self._identity = identity
        self._clock = clock
        self._duration = duration
        self._retry_interval = retry_interval
        self._renew_timeout = renew_timeout
        self._renewal: tuple[object, ...] = ()
        self._renewal_seen_at = 0.0
        self._problem: str | None = None
        self._task = BackgroundTask(self._run, "leader election")

    def start(self) -> None:
        """Begin to compete for the Lease."""
        self._task.start()

    async def stop(self) -> None:
        """Stop competing, and release the Lease so that another picker takes over at once. Safe to call at any time."""
        await self._task.stop()
        if self.leading:
            self.leading = False
            try:
                async with asyncio.timeout(RELEASE_TIMEOUT):
                    await self._release()
            except (ApiError, TimeoutError) as error:
                logger.warning("the Lease is not released; it expires", extra={"fields": {"error": str(error)}})

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._renew_timeout):
                    leading = await self._acquire()
                self._lead(leading)
                self._problem = None
            except ApiError as error:
                if error.status not in {UNREACHABLE, 409}:
                    self._unavailable(str(error))
            except TimeoutError:
                self._unavailable(f"no answer within {self._renew_timeout:g} s")
            except Exception:
                logger.exception("leader election failed and goes on")
            await asyncio.sleep(self._retry_interval)

    def _unavailable(self, problem: str) -> None:
        """Log why the Lease can be neither renewed nor taken, once for each reason in a row."""
        if problem != self._problem:
            self._problem = problem
            logger.warning("the Lease is unavailable", extra={"fields": {"error": problem}})

    async def _acquire(self) -> bool:
        """Renew the Lease if it is ours, take it if it is free or expired. Returns whether it is ours. Raises ApiError."""
        try:
            lease = await self._cluster.get(self._path)
        except ApiError as error:
            if error.status != 404:
                raise
            metadata = {"name": self._name, "namespace": self._leases.namespace}
            await self._cluster.create(
                self._leases.path,
                {
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": metadata,
                    "spec": self._spec({}),
                },
            )
            return True
        spec = lease.get("spec") or {}
        renewal = (spec.get("holderIdentity"), spec.get("renewTime"))
        if renewal != self._renewal:
            self._renewal, self._renewal_seen_at = renewal, self._clock()
        holder = spec.get("holderIdentity")
        expired = self._clock() - self._renewal_seen_at > (spec.get("leaseDurationSeconds") or self._duration)
        if holder and holder != self._identity and not expired:
            return False
        await self._cluster.update(self._path, lease | {"spec": self._spec(spec)})
        return True

    async def _release(self) -> None:
        lease = await self._cluster.get(self._path)
        spec = lease.get("spec") or {}
        if spec.get("holderIdentity") == self._identity:
            freed = spec | {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
            await self._cluster.update(self._path, lease | {"spec": freed})

    def _spec(self, before: Object) -> Object:
        spec = before | {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._duration,
            "renewTime": _now(),
        }
        if before.get("holderIdentity") != self._identity:
            spec |= {"acquireTime": spec["renewTime"], "leaseTransitions": (before.get("leaseTransitions") or 0) + 1}
        return spec

    def _lead(self, leading: bool) -> None:
        if leading != self.leading:
            self.leading = leading
            logger.info(
                "this picker leads" if leading else "another picker leads",
                extra={"fields": {"lease": self._name, "identity": self._identity}},
            )

    @property
    def _path(self) -> str:
        return f"{self._leases.path}/{self._name}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
