"""A small API server that lists and watches as the real one does, and fails on demand as the real one does.

True to Kubernetes: one resource version for everything, pages with ``continue``, label and field selectors (a watcher sees
an object that no longer matches as DELETED), watches that resume from a version, bookmarks, 410 Gone as an ERROR event once
the history is compacted, optimistic locking, discovery, a bearer token, 403 before 404.
Not there: admission, schemas.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from aiohttp import web

Object = dict[str, Any]
TOKEN = "the-token-of-this-test"


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a collection's history."""

    version: int
    before: Object | None
    after: Object | None


class ApiServer:
    """Objects in memory behind ``http://127.0.0.1:port``. The methods without ``async`` change objects at once."""

    def __init__(self) -> None:
        self.port = 0
        self.version = 1
        self.missing: set[str] = set()
        """Resources (``plural.group``, ``plural`` for the core API) that are not installed."""
        self.forbidden: set[str] = set()
        """Resources that may not be touched."""
        self.failing: dict[str, int] = {}
        """Resources that cannot be served, and the status that says so."""
        self.bookmark_interval = 60.0
        self.watches = 0
        """Watches begun since the start."""
        self.lists = 0
        """List requests served, pages counted singly."""
        self.reads = 0
        """Requests for single objects served."""
        self._objects: dict[str, dict[str, Object]] = {}
        self._history: list[tuple[str, Change]] = []
        self._compacted = 0
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None

    # ---------------------------------------------------------------- life

    async def start(self) -> None:
        """Listen: on a free port at first, then on the same again."""
        app = web.Application(client_max_size=16 << 20)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def stop(self) -> None:
        """Refuse connections and reset those that are open. The objects stay."""
        runner, self._runner = self._runner, None
        if runner is not None:
            self._reset(runner)
            await runner.cleanup()

    def drop_connections(self) -> None:
        """Reset every connection; new ones are welcome."""
        assert self._runner is not None
        self._reset(self._runner)

    @staticmethod
    def _reset(runner: web.AppRunner) -> None:
        for connection in runner.server.connections if runner.server is not None else ():
            if connection.transport is not None:
                connection.transport.abort()

    def write_kubeconfig(self, path: Path, token: str = TOKEN) -> Path:
        """A kubeconfig for this server."""
        server = f"http://127.0.0.1:{self.port}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": server}}],
            "users": [{"name": "test", "user": {"token": token}}],
        }
        path.write_text(yaml.safe_dump(config))
        return path

    # ---------------------------------------------------------------- objects

    def apply(self, *objects: Object) -> None:
        """Create or replace objects; uid, creationTimestamp and namespace are added where they are not given."""
        for given in objects:
            item = copy.deepcopy(given)
            metadata = item["metadata"]
            metadata.setdefault("namespace", "default")
            path = collection(item)
            before = self._objects.get(path, {}).get(metadata["name"])
            old = before["metadata"] if before is not None else {}
            metadata.setdefault("uid", old.get("uid") or str(uuid4()))
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            metadata.setdefault("creationTimestamp", old.get("creationTimestamp") or now)
            self._record(path, before, item)

    def delete(self, item: Object) -> None:
        """Delete the object of that kind and name."""
        metadata = item["metadata"]
        path = collection(item)
        before = self._objects[path][metadata["name"]]
        gone = copy.deepcopy(before)
        self._record(path, before, None, gone)

    def get(self, item: Object) -> Object | None:
        """The object of that kind and name as it is now."""
        return self._objects.get(collection(item), {}).get(item["metadata"]["name"])

    def all(self, path: str) -> list[Object]:
        """The objects of a collection."""
        return list(self._objects.get(path, {}).values())

    def compact(self) -> None:
        """Forget the history: watches from older versions get 410 Gone."""
        self.forget(0)

    def forget(self, keep: int) -> None:
        """Forget all but the last ``keep`` changes."""
        if len(self._history) > keep:
            self._compacted = self._history[-keep - 1][1].version if keep else self.version
            del self._history[: len(self._history) - keep]
        elif keep == 0:
            self._compacted = self.version

    def _record(self, path: str, before: Object | None, after: Object | None, gone: Object | None = None) -> None:
        self.version += 1
        stored = self._objects.setdefault(path, {})
        if after is not None:
            after["metadata"]["resourceVersion"] = str(self.version)
            stored[after["metadata"]["name"]] = after
        elif gone is not None:
            gone["metadata"]["resourceVersion"] = str(self.version)
            del stored[gone["metadata"]["name"]]
            before = gone
        self._history.append((path, Change(self.version, before, after)))
        self._changed.set()
        self._changed = asyncio.Event()

    # ---------------------------------------------------------------- HTTP

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("authorization", "").lower() != f"bearer {TOKEN}":
            return status(401, "Unauthorized", "Unauthorized")
        parts = request.path.strip("/").split("/")
        group, version = ("", parts[1]) if parts[0] == "api" else (parts[1], parts[2])
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        if not rest:
            return self._discovery(group, version)
        path = "/" + "/".join(parts[: len(parts) - len(rest)] + rest[:3])
        plural, name = rest[2], rest[3] if len(rest) > 3 else None
        resource = f"{plural}.{group}" if group else plural
        if resource in self.forbidden:
            return status(403, "Forbidden", f'{resource} is forbidden: User "test" cannot list resource "{plural}"')
        if resource in self.failing:
            return status(self.failing[resource], "InternalError", "conversion webhook failed")
        if resource in self.missing:
            return web.Response(status=404, text="404 page not found\n")
        match request.method, name:
            case "GET", None if request.query.get("watch"):
                return await self._watch(request, path)
            case "GET", None:
                return self._list(request, path)
            case "GET", _:
                self.reads += 1
                found = self._objects.get(path, {}).get(name or "")
                return web.json_response(found) if found is not None else status(404, "NotFound", f"{name} not found")
            case "POST", None:
                item = await request.json()
                if item["metadata"]["name"] in self._objects.get(path, {}):
                    return status(409, "AlreadyExists", "already exists")
                self.apply(item)
                return web.json_response(self.get(item), status=201)
            case "PUT", _:
                item = await request.json()
                before = self.get(item)
                if before is None:
                    return status(404, "NotFound", f"{name} not found")
                if item["metadata"].get("resourceVersion") not in {None, before["metadata"]["resourceVersion"]}:
                    return status(409, "Conflict", "the object has been modified")
                self.apply(item)
                return web.json_response(self.get(item))
        return status(405, "MethodNotAllowed", request.method)

    def _discovery(self, group: str, version: str) -> web.Response:
        kinds = {
            "inference.networking.k8s.io/v1": ["inferencepools"],
            "inference.networking.x-k8s.io/v1alpha2": [
                *("inferencepools", "inferencemodels", "inferenceobjectives", "inferencemodelrewrites"),
            ],
            "llm-d.ai/v1alpha2": ["inferenceobjectives", "inferencemodelrewrites"],
            "/v1": ["pods", "events"],
        }
        there = [p for p in kinds.get(f"{group}/{version}", ()) if f"{p}.{group}".rstrip(".") not in self.missing]
        if not there:
            return web.Response(status=404, text="404 page not found\n")
        return web.json_response({"kind": "APIResourceList", "resources": [{"name": plural} for plural in there]})

    def _list(self, request: web.Request, path: str) -> web.Response:
        self.lists += 1
        start, version = 0, self.version
        if token := request.query.get("continue"):
            version, start = json.loads(token)
            if version < self._compacted:
                return status(410, "Expired", "The provided continue parameter is too old")
        wanted = [item for _, item in sorted(self._objects.get(path, {}).items()) if matches(item, request)]
        end = start + int(request.query.get("limit", len(wanted) or 1))
        metadata: Object = {"resourceVersion": str(version)}
        if end < len(wanted):
            metadata["continue"] = json.dumps([version, end])
        return web.json_response({"kind": "List", "metadata": metadata, "items": wanted[start:end]})

    async def _watch(self, request: web.Request, path: str) -> web.StreamResponse:
        self.watches += 1
        response = web.StreamResponse(headers={"content-type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        loop = asyncio.get_running_loop()
        end = loop.time() + float(request.query.get("timeoutSeconds", 1800))
        seen = int(request.query["resourceVersion"])
        if seen < self._compacted:
            await response.write(line("ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"}))
            return response
        try:
            while (now := loop.time()) < end:
                changed = self._changed
                if seen < self._compacted:  # compacted under our feet: what was not sent yet is lost
                    gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
                    await response.write(line("ERROR", gone))
                    return response
                events = b"".join(self._events(request, path, seen))
                seen = self.version
                if events:
                    await response.write(events)
                try:
                    await asyncio.wait_for(changed.wait(), min(self.bookmark_interval, end - now))
                except TimeoutError:
                    if request.query.get("allowWatchBookmarks"):
                        bookmark = {"metadata": {"resourceVersion": str(self.version)}}
                        await response.write(line("BOOKMARK", bookmark))
        except ConnectionError:
            pass
        return response

    def _events(self, request: web.Request, path: str, seen: int) -> Iterator[bytes]:
        for changed_path, change in self._history:
            if changed_path != path or change.version <= seen:
                continue
            was = change.before is not None and matches(change.before, request)
            is_now = change.after is not None and matches(change.after, request)
            if is_now:
                yield line("MODIFIED" if was else "ADDED", change.after)
            elif was:
                last = change.after or change.before or {}
                yield line("DELETED", last | {"metadata": last["metadata"] | {"resourceVersion": str(change.version)}})


def collection(item: Object) -> str:
    """The path of the collection that an object belongs to."""
    version = item["apiVersion"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    return f"{root}/namespaces/{item['metadata'].get('namespace', 'default')}/{item['kind'].lower()}s"


def matches(item: Object, request: web.Request) -> bool:
    """Whether an object is among what the request's selectors ask for."""
    metadata = item["metadata"]
    labels = metadata.get("labels") or {}
    for term in filter(None, request.query.get("labelSelector", "").split(",")):
        key, _, value = term.partition("=")
        if labels.get(key) != value:
            return False
    field = request.query.get("fieldSelector", "")
    return not field or field == f"metadata.name={metadata['name']}"


def status(code: int, reason: str, message: str) -> web.Response:
    """An error as Kubernetes words it."""
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }
    return web.json_response(body, status=code)


def line(kind: str, item: Object | None) -> bytes:
    """An event of a watch."""
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


@asynccontextmanager
async def api_server(*objects: Object) -> AsyncIterator[ApiServer]:
    """A running server with these objects."""
    server = ApiServer()
    server.apply(*objects)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
