"""A local copy of the objects of one kind: list, then watch.

After a dropped connection the watch resumes from the last resource version (bookmarks keep it recent). When that version is
too old (410 Gone) the kind is listed again. While the API server is unreachable, the kind is not installed (404) or reading
it is forbidden (403), the informer retries with exponential backoff and its last known objects stay in use.

Rules of a watch: https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import orjson

from warmroute.kubernetes.api import UNREACHABLE, ApiError, Cluster
from warmroute.kubernetes.objects import Object, Resource
from warmroute.tasks import BackgroundTask

logger = logging.getLogger(__name__)

PAGE_SIZE = 200
"""Objects in one page of a list: about 1 MB of pods. Decoding a longer page would hold up the event loop."""
EVENTS_AT_ONCE = 50
"""Events handled before the informer yields to the event loop."""
WATCH_SECONDS = 60
"""Seconds after which the API server ends a watch. A dead connection is noticed 15 s later at the latest."""

STEADY = 1.0
"""A watch that lasted this many seconds resets the backoff."""

MOST_DOUBLINGS = 16
"""Failures that double the delay. Each bound of :class:`Backoff` is reached earlier."""

GONE = 410
"""The resource version is too old: the kind is listed again."""
MISSING = frozenset((403, 404))
"""Statuses of a kind that may not be read or is not installed."""
BUSY = frozenset((429, 503))
"""Statuses after which the watch resumes from the same resource version."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays before a retry, in seconds."""

    first: float = 0.1
    """After one failure; doubles with each further one."""
    most: float = 5.0
    """Upper bound."""
    missing: float = 15.0
    """Upper bound for a kind that has never been listed and is not installed or forbidden."""
    settle: float = 15.0
    """Time after which a kind that the API server fails to list no longer delays the start."""


class Informer(Generic[T]):
    """The objects of one resource by name, each converted by ``read``.

    ``read`` raises LookupError, TypeError, ValueError or AttributeError for an object that it does not understand.
    ``changed`` is called with an object's name after it was added, changed or deleted, and with None after a list replaced
    all objects. ``listed`` is true once the API server has answered with a list; ``settled`` once the informer has a list or
    has given up waiting for one.
    """

    def __init__(
        self,
        cluster: Cluster,
        resource: Resource,
        read: Callable[[Object], T],
        changed: Callable[[str | None], None],
        *,
        selector: dict[str, str],
        backoff: Backoff,
    ) -> None:
        self.resource = resource
        self.objects: dict[str, T] = {}
        self.settled = False
        self.listed = False
        self._cluster = cluster
        self._read = read
        self._changed = changed
        self._selector = selector
        self._backoff = backoff
        self._version: str | None = None
        self._problem: str | None = None
        self._task = BackgroundTask(self._run, f"watch {resource}")

    def start(self) -> None:
        """Begin to list and watch."""
        self._task.start()

    async def stop(self) -> None:
        """Stop watching; safe before :meth:`start` and when called again. ``objects`` stays."""
        await self._task.stop()

    async def _run(self) -> None:
        failures = 0
        backoff = self._backoff
        clock = asyncio.get_running_loop().time
        give_up = clock() + backoff.settle
        while True:
            began = clock()
            wait = backoff.first  # not a tight loop if the server ends each watch at once
            try:
                if self._version is None:
                    await self._list()
                await self._follow()
            except ApiError as error:
                failures = 0 if clock() - began >= STEADY else failures
                wait = min(self._longest_wait(error), backoff.first * 2**failures)
                failures = min(failures + 1, MOST_DOUBLINGS)
                await self._failed(error, give_up=clock() >= give_up)
            except Exception:
                logger.exception(
                    "a watch failed and is started again", extra={"fields": {"resource": str(self.resource)}}
                )
                self._version = None
                wait = backoff.most
            else:
                failures = 0
                if clock() - began >= STEADY:
                    continue
            await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # pickers do not retry in step

    def _longest_wait(self, error: ApiError) -> float:
        """Upper bound of the backoff. After a restart an API server answers 403 until its RBAC caches are filled, so a kind
        that was listed before is asked for as often as after any other failure."""
        missing = error.status in MISSING and not self.listed
        return self._backoff.missing if missing else self._backoff.most

    async def _failed(self, error: ApiError, *, give_up: bool) -> None:
        """Handle a failed list or watch. ``give_up``: it is time to settle without a list."""
        if error.status in MISSING:
            await self._missing(error)
        elif error.status != UNREACHABLE:
            if error.status not in BUSY:
                self._version = None
                if error.status != GONE:
                    self._report(logging.WARNING, "cannot be watched; trying again", error)
            if give_up and not self.settled:
                self._go_without(error)

    async def _list(self) -> None:
        objects: dict[str, T] = {}
        query: dict[str, str | int] = {**self._selector, "limit": PAGE_SIZE}
        while True:
            page = await self._cluster.get(self.resource.path, **query)
            for item in page["items"] or ():
                self._put(objects, item)
            metadata = page["metadata"]
            if not metadata.get("continue"):
                break
            query["continue"] = metadata["continue"]
        self.listed = True
        self._replace(objects)
        self._version = metadata["resourceVersion"]
        if self._problem is not None:
            self._problem = None
            logger.info("%s can be read now", self.resource)

    def _replace(self, objects: dict[str, T]) -> None:
        self.objects = objects
        self.settled = True
        self._changed(None)

    def _put(self, objects: dict[str, T], item: Object) -> None:
        """Read ``item`` into ``objects``. If ``read`` fails, the object's last good version stays, if there is one."""
        name = item["metadata"]["name"]
        try:
            objects[name] = self._read(item)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if name in self.objects:
                objects[name] = self.objects[name]
            logger.warning(
                "an object cannot be read; its last version stays in use",
                extra={"fields": {"resource": str(self.resource), "name": name, "error": repr(error)}},
            )

    async def _follow(self) -> None:
        """Handle one watch's events until it ends."""
        handled = 0
        lines = self._cluster.watch(
            self.resource.path, WATCH_SECONDS, **self._selector, resourceVersion=self._version or ""
        )
        try:
            async for batch in lines:
                for line in batch:
                    if line:
                        self._handle(orjson.loads(line))
                        handled += 1
                        if handled % EVENTS_AT_ONCE == 0:
                            await asyncio.sleep(0)
        finally:
            await lines.aclose()

    def _handle(self, event: Object) -> None:
        kind, item = event["type"], event["object"]
        if kind == "ERROR":
            raise ApiError(int(item.get("code") or 500), str(item.get("message")))
        metadata = item["metadata"]
        if kind != "BOOKMARK":
            name: str = metadata["name"]
            if kind == "DELETED":
                self.objects.pop(name, None)
            else:
                self._put(self.objects, item)
            self._changed(name)
        self._version = metadata["resourceVersion"]

    async def _missing(self, error: ApiError) -> None:
        """Handle 403 and 404. Without the right to read it, a kind that is not installed is 403 too: discovery decides."""
        installed = error.status == 403 and await self._installed()
        if installed:
            if self._report(logging.WARNING, "may not be read; going on without", error):
                self._replace(self.objects)
        else:
            self._report(logging.INFO, "is not installed; going on without", error)
            if self.objects or not self.settled:
                self._replace({})
        self._version = None

    def _go_without(self, error: ApiError) -> None:
        """Stop waiting for a kind that the server fails to list, for example because its conversion webhook is broken."""
        logger.warning("%s cannot be listed; going on without", self.resource, extra={"fields": {"error": str(error)}})
        self._replace(self.objects)

    async def _installed(self) -> bool:
        try:
            known = await self._cluster.get(self.resource.root)
        except ApiError as error:
            return error.status != 404
        return any(entry["name"] == self.resource.plural for entry in known["resources"])

    def _report(self, level: int, what: str, error: ApiError) -> bool:
        """Log a problem unless it was the last one logged. Returns whether it was logged."""
        if what == self._problem:
            return False
        self._problem = what
        logger.log(level, "%s %s", self.resource, what, extra={"fields": {"error": str(error)}})
        return True
