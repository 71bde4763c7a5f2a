"""One kind of object, kept equal to what the API server has: list, then watch.

What Kubernetes asks of a watcher: go on from the last resource version after a dropped connection (bookmarks keep it young);
list again when that version is too old (410 Gone); wait and ask again while the server is away, while the kind is not
installed (404) and while it may not be read (403). The objects that are known stay in use all the while.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import orjson

from warmroute.kubernetes.api import UNREACHABLE, ApiError, Cluster, Object

logger = logging.getLogger(__name__)

PAGE_SIZE = 200
"""Objects asked for at once, so that a long list does not hold the event loop: about a megabyte of pods."""
EVENTS_AT_ONCE = 50
"""Events handled before others on the event loop get their turn."""
WATCH_SECONDS = 60
"""How long one watch lasts: the longest that a connection can be dead without anybody noticing."""

STEADY = 1.0
"""Seconds that a connection must have lasted for its end not to count as one more failure."""

GONE = 410
BUSY = frozenset((429, 503))
"""Statuses that say nothing about the resource version: ask the same again later."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object in one namespace, as the API's addresses have it. ``group`` is empty for the core API."""

    group: str
    version: str
    plural: str
    namespace: str

    @property
    def root(self) -> str:
        """Path of the API group's version."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    @property
    def path(self) -> str:
        """Path of the collection."""
        return f"{self.root}/namespaces/{self.namespace}/{self.plural}"

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait before asking again, in seconds."""

    first: float = 0.1
    """After one failure; twice as long after each further one."""
    most: float = 5.0
    missing: float = 15.0
    """Where the kind is not installed or may not be read."""
    settle: float = 15.0
    """How long a kind that the API server fails to list may hold up the start."""


class Watch(Generic[T]):
    """The objects of one resource by name, each as ``read`` makes of it.

    ``changed`` is called with the name after an object came, changed or went, and with None after the whole list is new.
    ``settled`` turns true when it is known for the first time what there is (which may be: nothing that can be read),
    ``listed`` when the API server has answered with a list.
    """

    def __init__(
        self,
        cluster: Cluster,
        resource: Resource,
        read: Callable[[Object], T],
        changed: Callable[[str | None], None],
        *,
        selector: dict[str, str],
        patience: Patience,
    ) -> None:
        self.resource = resource
        self.objects: dict[str, T] = {}
        self.settled = False
        self.listed = False
        self._cluster = cluster
        self._read = read
        self._changed = changed
        self._selector = selector
        self._patience = patience
        self._version: str | None = None
        self._problem: str | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to list and watch."""
        self._task = asyncio.create_task(self._run(), name=f"watch {self.resource}")

    async def stop(self) -> None:
        """End it; safe before :meth:`start` and a second time. What is known stays."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        failures = 0
        patience = self._patience
        clock = asyncio.get_running_loop().time
        give_up = clock() + patience.settle
        while True:
            began = clock()
            wait = patience.first  # a server that ends each watch at once must not be asked in a tight loop
            try:
                if self._version is None:
                    await self._list()
                await self._follow()
            except ApiError as error:
                failures = 0 if clock() - began >= STEADY else failures
                wait = min(patience.most, patience.first * 2**failures)
                failures = min(failures + 1, 16)
                if error.status in {403, 404}:
                    await self._missing(error)
                    wait = patience.missing
                elif error.status != UNREACHABLE:
                    if error.status not in BUSY:
                        self._version = None
                        if error.status != GONE:
                            self._report(logging.WARNING, "cannot be watched; trying again", error)
                    if not self.settled and clock() >= give_up:
                        self._go_without(error)
            except Exception:
                logger.exception(
                    "a watch failed and is started again", extra={"fields": {"resource": str(self.resource)}}
                )
                self._version = None
                wait = patience.most
            else:
                failures = 0
                if clock() - began >= STEADY:
                    continue
            await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # so that a fleet of pickers does not ask in step

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
        """An object that makes no sense harms no other: its former version stays, if there is one."""
        name = item["metadata"]["name"]
        try:
            objects[name] = self._read(item)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if name in self.objects:
                objects[name] = self.objects[name]
            logger.warning(
                "an object cannot be understood; it stays as it was",
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
        """403 comes before 404: a kind that is not installed may seem forbidden. The API's own listing tells."""
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
        """One kind that the server fails to list, for example by a broken conversion, must not keep the others waiting."""
        logger.warning("%s cannot be listed; going on without", self.resource, extra={"fields": {"error": str(error)}})
        self._replace(self.objects)

    async def _installed(self) -> bool:
        try:
            known = await self._cluster.get(self.resource.root)
        except ApiError as error:
            return error.status != 404
        return any(entry["name"] == self.resource.plural for entry in known["resources"])

    def _report(self, level: int, what: str, error: ApiError) -> bool:
        """Log what hinders, once until it changes; whether it was news."""
        if what == self._problem:
            return False
        self._problem = what
        logger.log(level, "%s %s", self.resource, what, extra={"fields": {"error": str(error)}})
        return True
