"""The servers that the cost benchmark compares: the picker and the floors, each as a child process."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson

from warmroute.standalone.bootstrap import bootstrap
from warmroute.standalone.child import Child
from warmroute.standalone.envoy import EnvoyProcess
from warmroute.standalone.picker_process import PickerPorts, picker, start_picker
from warmroute.standalone.ports import free_port, free_range
from warmroute.standalone.proxy_config import ProxyConfig
from warmroute_lab.overhead.options import LARGE, MANY, SMALL
from warmroute_lab.overhead.picker_load import Chats, ExtProcLoad, GatewayLoad, Load

# Scraping has a figure of its own, so the pickers that serve requests do not scrape.
_NO_SCRAPING = ("--idle-metrics-interval=3600", "--refresh-metrics-interval=3600", "--metrics-staleness-threshold=3600")


@dataclass(frozen=True, slots=True)
class Contender:
    """A server that is measured, with its clients."""

    name: str
    child: Child
    ext_proc: Load
    gateway: Load | None
    """Requests through an Envoy of its own; None if the benchmark runs without Envoy."""
    chats: dict[int, Chats]
    """By size in bytes. They are used for all figures, so that no prompt is sent twice."""


class Contenders:
    """Starts contenders over a hundred pods and stops everything at its end. An async context manager."""

    def __init__(self, directory: Path, *, gateway: bool, running: int = 0) -> None:
        """``directory`` gets logs and configurations. ``gateway``: each contender has an Envoy. ``running``: requests that
        each pod shows as running."""
        self._directory = directory
        self._gateway = gateway
        self._running = running
        self._stack = AsyncExitStack()
        self.ports: range = range(0)
        """The pods' ports."""

    async def __aenter__(self) -> Self:
        first = free_range(MANY)
        self.ports = range(first, first + MANY)
        flags = f"--first-port={first}", f"--count={MANY}", f"--running={self._running}"
        argv = ["-m", "warmroute_lab.overhead.trivial_pods", *flags]
        await self._stack.enter_async_context(Child("pods", [sys.executable, *argv], self._directory / "pods.log"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def bare(self, name: str, *flags: str) -> Contender:
        """A bare ext_proc server: a floor."""
        port = free_port()
        target = f"127.0.0.1:{self.ports[0]}"
        argv = ["-m", "warmroute_lab.overhead.bare_server", f"--port={port}", f"--target={target}", *flags]
        child = Child(name, [sys.executable, *argv], self._directory / f"{name}.log")
        await self._stack.enter_async_context(child)
        return await self._contender(name, child, port)

    async def picker(self, endpoints: int) -> Contender:
        """The picker over that many endpoints, without scraping."""
        child, ports = self.new_picker(endpoints, _NO_SCRAPING)
        self._stack.push_async_callback(child.stop)
        await start_picker(child, ports)
        return await self._contender(f"{endpoints} endpoints", child, ports.grpc)

    def new_picker(self, endpoints: int, flags: Iterable[str]) -> tuple[Child, PickerPorts]:
        """A picker that is not started yet; the caller starts and stops it."""
        file = self._directory / f"endpoints-{endpoints}.json"
        pods = [
            {"name": f"pod-{k}", "address": "127.0.0.1", "port": port} for k, port in enumerate(self.ports[:endpoints])
        ]
        file.write_bytes(orjson.dumps({"endpoints": pods}))
        ports = PickerPorts(grpc=free_port(), health=free_port(), metrics=free_port())
        log = self._directory / f"picker-{ports.grpc}.log"
        return picker(file, ports, log, ("--routing-strategy=PREFIX_CACHE", "--host=127.0.0.1", *flags)), ports

    async def _contender(self, name: str, child: Child, port: int) -> Contender:
        target = f"127.0.0.1:{port}"
        load = await self._stack.enter_async_context(ExtProcLoad(target))
        gateway = await self._through_envoy(target, port) if self._gateway else None
        return Contender(name, child, load, gateway, {size: Chats(size) for size in (SMALL, LARGE)})

    async def _through_envoy(self, target: str, port: int) -> GatewayLoad:
        pods = tuple(f"127.0.0.1:{port}" for port in self.ports)
        config = ProxyConfig(epp=(target,), endpoints=pods, plain_port=None, failure_mode_allow=False)
        directory = self._directory / f"envoy-{port}"
        directory.mkdir()
        envoy = await self._stack.enter_async_context(EnvoyProcess(bootstrap(config), directory))
        return await self._stack.enter_async_context(GatewayLoad(envoy.url))
