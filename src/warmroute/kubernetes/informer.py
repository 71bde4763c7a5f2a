"""A local copy of the objects of one kind: list, then watch.

After a dropped connection the watch resumes from the last resource version (bookmarks keep it recent). When that version is
too old (410 Gone) the kind is listed again. While the API server is unreachable or answers what cannot be used, or reading
the kind is forbidden (403), the informer retries with exponential backoff and its last known objects stay in use. They are
dropped once the kind has not been installed (404) for a while; core kinds are always installed.

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
from warmroute.kubernetes.objects import Object, Resource, text
from warmroute.tasks import BackgroundTask

logger = logging.getLogger(__name__)

PAGE_SIZE = 200
"""Objects in one page of a list: about 1 MB of pods. Decoding a longer page would hold up the event loop."""
EVENTS_AT_ONCE = 50
"""Events handled before the informer yields to the event loop."""
WATCH_SECONDS = 60
"""Seconds after which the API server ends a watch. A dead connection is noticed 15 s later at the latest."""
STEADY = 1.0
"""A watch that lasted this many seconds resets the backoff. Also the longest delay after one that the server ended."""
MOST_RETRY_AFTER = 30.0
"""Seconds for which an informer waits at most when the API server asks it to."""
MOST_DOUBLINGS = 16
"""Failures that double the delay. Each bound of :class:`Backoff` is reached earlier."""
GONE = 410
"""The resource version is too old: the kind is listed again."""
MISSING = frozenset((403, 404))
"""Statuses of a kind that may not be read or is not installed."""
BUSY = frozenset((429, 503))
"""Statuses after which the watch resumes from the same resource version."""
PASSING = BUSY | {GONE}
"""Statuses that are ordinary unless they last."""

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
    """Time after which a failure lasts: it is logged, a kind that the API server fails to list no longer delays the start,
    and the objects of a kind that is not installed any more are dropped."""


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
        self._failing_since: float | None = None
        """When the present row of answers that say no began."""
        self._asked_at: float | None = None
        """When the present attempt began; None once its list or its watch has been answered."""
        self._unreadable: dict[str, str] = {}
        """Why an object cannot be read, by its name: told once."""
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
        while True:
            began = self._asked_at = clock()
            longest, least = STEADY, 0.0  # not a tight loop if the server ends each watch at once
            try:
                if self._version is None:
                    await self._list()
                await self._follow()
            except ApiError as failure:
                least = min(failure.retry_after, MOST_RETRY_AFTER)
                longest = self._longest_wait(failure)
                await self._failed(failure, clock())
            except Exception:
                logger.exception(
                    "a watch failed and is started again", extra={"fields": {"resource": str(self.resource)}}
                )
                self._version = None
                longest = least = backoff.most
            if clock() - began >= STEADY:
                failures = 0
            wait = min(longest, backoff.first * 2**failures) * random.uniform(0.8, 1.2)  # pickers do not retry in step
            failures = min(failures + 1, MOST_DOUBLINGS)
            await asyncio.sleep(max(wait, least * random.uniform(1.0, 1.2)))

    def _longest_wait(self, error: ApiError) -> float:
        """Upper bound of the backoff. After a restart an API server answers 403 until its RBAC caches are filled, so a kind
        that was listed before is asked for as often as after any other failure."""
        missing = error.status in MISSING and not self.listed
        return self._backoff.missing if missing else self._backoff.most

    async def _failed(self, error: ApiError, now: float) -> None:
        """Handle a failed list or watch."""
        if error.status == UNREACHABLE:
            self._failing_since = None
            return
        if self._failing_since is None:
            self._failing_since = self._asked_at or now
        lasts = now - self._failing_since >= self._backoff.settle
        if error.status not in BUSY:
            self._version = None
        if error.status == 403 or (error.status == 404 and self.resource.group):
            await self._missing(error, lasts=lasts)
            return
        if lasts or error.status not in PASSING:
            self._report(logging.WARNING, "cannot be watched; trying again", error)
        if lasts and not self.settled:
            self._go_without(error)

    async def _list(self) -> None:
        objects: dict[str, T] = {}
        names: set[str] = set()
        query: dict[str, str | int] = {**self._selector, "limit": PAGE_SIZE}
        while True:
            page = await self._cluster.get(self.resource.path, **query)
            try:
                items, version = list(page["items"] or ()), text(page["metadata"]["resourceVersion"])
                more = page["metadata"].get("continue")
            except (LookupError, TypeError, AttributeError) as error:
                raise ApiError(200, f"{self.resource.path}: the answer is not a list: {error!r}") from error
            for item in items:
                names.add(self._put(objects, item))
            if not more:
                break
            query["continue"] = more
        self._unreadable = {name: why for name, why in self._unreadable.items() if name in names}
        self.listed = True
        self._asked_at = None
        self._replace(objects)
        self._version = version

    def _replace(self, objects: dict[str, T]) -> None:
        self.objects = objects
        self.settled = True
        self._changed(None)

    def _put(self, objects: dict[str, T], item: Object) -> str:
        """Read ``item`` into ``objects``; returns its name. If ``read`` fails, the object's last good version stays, if
        there is one."""
        name = ""
        try:
            name = text(item["metadata"]["name"])
            objects[name] = self._read(item)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if name in self.objects:
                objects[name] = self.objects[name]
            why = repr(error)
            if self._unreadable.get(name) != why:
                self._unreadable[name] = why
                logger.warning(
                    "an object cannot be read; its last version stays in use",
                    extra={"fields": {"resource": str(self.resource), "name": name, "error": why}},
                )
        else:
            self._unreadable.pop(name, None)
        return name

    async def _follow(self) -> None:
        """Handle one watch's events until it ends."""
        handled = 0
        lines = self._cluster.watch(
            self.resource.path, WATCH_SECONDS, **self._selector, resourceVersion=self._version or ""
        )
        works: asyncio.TimerHandle | None = None
        try:
            async for batch in lines:
                self._asked_at = None
                works = works or asyncio.get_running_loop().call_later(STEADY, self._works)
                for line in batch:
                    if line:
                        self._handle(*self._event(line))
                        handled += 1
                        if handled % EVENTS_AT_ONCE == 0:
                            await asyncio.sleep(0)
        finally:
            if works is not None:
                works.cancel()
            await lines.aclose()

    def _event(self, line: bytes) -> tuple[str, Object, str]:
        """Type, object and resource version of an event. Raises ApiError for an error and for what is no event."""
        try:
            event = orjson.loads(line)
            kind, item = event["type"], event["object"]
            if kind == "ERROR":
                raise ApiError(int(item.get("code") or 500), str(item.get("message")))
            return kind, item, text(item["metadata"]["resourceVersion"])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ApiError(200, f"{self.resource.path}: the watch has a line that is no event: {error!r}") from error

    def _handle(self, kind: str, item: Object, version: str) -> None:
        if kind == "DELETED":
            name = str(item["metadata"].get("name"))
            self.objects.pop(name, None)
            self._unreadable.pop(name, None)
            self._changed(name)
        elif kind != "BOOKMARK":
            self._changed(self._put(self.objects, item))
        self._version = version

    def _works(self) -> None:
        """Note that a watch lasts."""
        self._failing_since = None
        if self._problem is not None:
            self._problem = None
            logger.info("%s can be read now", self.resource)

    async def _missing(self, error: ApiError, *, lasts: bool) -> None:
        """Handle 403 and 404. Without the right to read it, a kind that is not installed is 403 too: discovery decides."""
        if error.status == 403 and (not self.resource.group or await self._installed()):
            self._report(logging.WARNING, "may not be read; going on with what is known", error)
            if not self.settled:
                self._replace(self.objects)
        else:
            self._report(logging.INFO, "is not installed; going on without", error)
            if (self.objects and lasts) or not self.settled:
                self._replace({})

    def _go_without(self, error: ApiError) -> None:
        """Stop waiting for a kind that the server fails to list, for example because its conversion webhook is broken."""
        logger.warning("%s cannot be listed; going on without", self.resource, extra={"fields": {"error": str(error)}})
        self._replace(self.objects)

    async def _installed(self) -> bool:
        try:
            known = await self._cluster.get(self.resource.root)
            return any(entry["name"] == self.resource.plural for entry in known["resources"])
        except ApiError as error:
            return error.status != 404
        except (LookupError, TypeError):
            return True

    def _report(self, level: int, what: str, error: ApiError) -> None:
        """Log a problem unless it was the last one logged."""
        if what != self._problem:
            self._problem = what
            logger.log(level, "%s %s", self.resource, what, extra={"fields": {"error": str(error)}})
