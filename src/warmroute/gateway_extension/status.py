"""The status of the InferencePools that the extension serves: Accepted and ResolvedRefs for each Gateway.

A pool's status is for the gateway controller to write, but Envoy Gateway does not know InferencePool and writes none. An
entry that another controller wrote for the same Gateway is left as it is. Both replicas of the extension may write: they
write equal entries, and the API server refuses the second of two writes at once.

An entry is removed when its Gateway is translated without the pool. That of a Gateway that is deleted stays, since Envoy
Gateway makes no call for it.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime

from warmroute.gateway_extension.hooks import Gateway
from warmroute.gateway_extension.picked_pool import PickedPool
from warmroute.kubernetes.api import ApiError, Cluster
from warmroute.kubernetes.inference_pool import GA_GROUP
from warmroute.kubernetes.objects import Object, Resource, timestamp
from warmroute.tasks import BackgroundTask

logger = logging.getLogger(__name__)

CONTROLLER = "warmroute/gateway-extension"
"""``controllerName`` of our entries, where the API has that field (v1)."""
MESSAGE = "By Warmroute's gateway extension"
"""Start of the message of our conditions: v1alpha2 has no other field that says who wrote an entry."""
PERIOD = 60.0
"""Seconds until all pools are looked at again: a write may have failed, and a picker's Service may come or go."""
PAUSE = 5.0
"""Seconds between two looks at all pools, however often Envoy Gateway translates: in a rollout it does so for each pod."""
MAX_GATEWAYS = 1000
"""Gateways whose pools are remembered; the one translated longest ago is forgotten first."""


class StatusWriter:
    """Writes the status of pools in the background. Failures are logged and tried again after a while."""

    def __init__(self, cluster: Cluster, *, period: float = PERIOD, pause: float = PAUSE) -> None:
        self._cluster = cluster
        self._period = period
        self._pause = pause
        self._served: dict[Gateway, set[PickedPool]] = {}
        self._dropped: set[PickedPool] = set()
        """Pools that a Gateway has ceased to serve and whose status has not been written since."""
        self._changed = asyncio.Event()
        self._task = BackgroundTask(self._run, "pool status")
        self._failed: set[PickedPool] = set()
        """Pools whose last write failed: each failure is logged once."""

    def start(self) -> None:
        """Begin to write."""
        self._task.start()

    async def stop(self) -> None:
        """Stop writing. Safe before :meth:`start` and when called again."""
        await self._task.stop()

    def translated(self, pools_by_gateway: Mapping[Gateway, set[PickedPool]]) -> None:
        """Note what the Gateways of one translation serve."""
        for gateway, pools in pools_by_gateway.items():
            self._dropped |= self._served.pop(gateway, set()) - pools
            self._served[gateway] = pools
        while len(self._served) > MAX_GATEWAYS:
            del self._served[next(iter(self._served))]
        self._changed.set()

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            dropped, self._dropped = self._dropped, set()
            pools = dropped.union(*self._served.values())
            self._failed &= pools
            for pool in pools:
                await self._write(pool)
            await asyncio.sleep(self._pause)
            try:
                async with asyncio.timeout(self._period):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _write(self, pool: PickedPool) -> None:
        group, _, version = pool.api_version.partition("/")
        path = f"{Resource(group, version, 'inferencepools', pool.namespace).path}/{pool.name}"
        gateways = [gateway for gateway, pools in self._served.items() if pool in pools]
        others = self._served.keys() - set(gateways)
        try:
            item = await self._cluster.get(path)
            found = await self._has_picker(pool)
            changed = with_status(item, pool, gateways, others, picker_found=found, now=datetime.now(UTC))
            if changed is not None:
                await self._cluster.update(f"{path}/status", changed)
        except ApiError as error:
            if error.status == 404:  # the pool is gone
                return
            if error.status != 409 and pool not in self._failed:  # 409: the other replica was faster
                logger.warning("status not written", extra={"fields": {"pool": pool.name, "error": str(error)}})
                self._failed.add(pool)
        except Exception:
            logger.exception("status not written", extra={"fields": {"pool": pool.name}})
        else:
            self._failed.discard(pool)

    async def _has_picker(self, pool: PickedPool) -> bool:
        try:
            await self._cluster.get(f"{Resource('', 'v1', 'services', pool.namespace).path}/{pool.picker}")
        except ApiError as error:
            if error.status != 404:
                raise
            return False
        return True


def with_status(
    item: Object,
    pool: PickedPool,
    gateways: Iterable[Gateway],
    others: Collection[Gateway],
    *,
    picker_found: bool,
    now: datetime,
) -> Object | None:
    """The pool's object with the status that we want, or None if it has it.

    ``gateways`` serve the pool; our entries for the Gateways in ``others`` are removed. ``now`` is the time of transitions.
    """
    field = "parents" if pool.api_version.startswith(f"{GA_GROUP}/") else "parent"
    before = (item.get("status") or {}).get(field) or []
    generation = item["metadata"].get("generation", 1)
    entries = {_gateway_of(entry, pool): entry for entry in before if not _is_placeholder(entry)}
    for gateway in [one for one in others if _is_ours(entries.get(one))]:
        del entries[gateway]
    for gateway in gateways:
        existing = entries.get(gateway)
        if existing is None or _is_ours(existing):
            conditions = _conditions(pool, existing, generation, picker_found=picker_found, now=now)
            entries[gateway] = _entry(gateway, field, conditions)
    after = list(entries.values())
    if after == before:
        return None
    result = copy.deepcopy(item)
    result["status"] = (item.get("status") or {}) | {field: after}
    return result


def _entry(gateway: Gateway, field: str, conditions: list[Object]) -> Object:
    reference = {
        "group": "gateway.networking.k8s.io",
        "kind": "Gateway",
        "namespace": gateway.namespace,
        "name": gateway.name,
    }
    entry: Object = {"parentRef": reference, "conditions": conditions}
    return entry | {"controllerName": CONTROLLER} if field == "parents" else entry


def _conditions(
    pool: PickedPool, existing: Object | None, generation: int, *, picker_found: bool, now: datetime
) -> list[Object]:
    picker = f"Service {pool.picker} of its picker"
    wanted = [
        ("Accepted", True, "Accepted", "the pool is the backend of a route"),
        ("ResolvedRefs", True, "ResolvedRefs", f"the {picker} exists")
        if picker_found
        else ("ResolvedRefs", False, "InvalidExtensionRef", f"the {picker} does not exist"),
    ]
    since = {
        (condition["type"], condition["status"]): condition["lastTransitionTime"]
        for condition in (existing or {}).get("conditions") or []
    }
    return [
        {
            "type": kind,
            "status": str(holds),
            "reason": reason,
            "message": f"{MESSAGE}: {message}",
            "observedGeneration": generation,
            "lastTransitionTime": since.get((kind, str(holds)), timestamp(now)),
        }
        for kind, holds, reason, message in wanted
    ]


def _gateway_of(entry: Object, pool: PickedPool) -> Gateway | tuple[str, ...]:
    """The Gateway of an entry; for other kinds of parents a key that equals no Gateway."""
    reference = entry["parentRef"]
    kind, namespace = reference.get("kind", "Gateway"), reference.get("namespace") or pool.namespace
    if kind == "Gateway":
        return Gateway(namespace, reference["name"])
    return kind, namespace, reference["name"]


def _is_ours(entry: Object | None) -> bool:
    conditions = (entry or {}).get("conditions") or []
    return bool(conditions) and all(str(one.get("message")).startswith(MESSAGE) for one in conditions)


def _is_placeholder(entry: Object) -> bool:
    """Whether this is the default of the v1alpha2 CRD: "Waiting for controller"."""
    return bool(entry["parentRef"].get("kind") == "Status" and entry["parentRef"].get("name") == "default")
