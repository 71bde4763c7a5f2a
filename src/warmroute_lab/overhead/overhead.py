"""What the picker itself costs: CPU, latency and memory of ``warmroute serve``, each beside its floor in the same run."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from warmroute.standalone.bootstrap import bootstrap
from warmroute.standalone.child import Child
from warmroute.standalone.envoy import EnvoyProcess
from warmroute.standalone.picker_process import PickerPorts, picker, start_picker
from warmroute.standalone.ports import free_port, free_range
from warmroute.standalone.proxy_config import ProxyConfig
from warmroute_lab.overhead.figure import Against, Figure, of_rounds, table
from warmroute_lab.overhead.in_process import index_memory, match_and_insert, pick, pick_in_subset
from warmroute_lab.overhead.machine import cpu_seconds, machine, resident_bytes
from warmroute_lab.overhead.options import (
    CPU_BUDGET,
    FEW,
    IDLE_BUDGET,
    LARGE,
    LATENCY_BUDGET,
    MANY,
    MEMORY_BUDGET,
    SMALL,
    WORKERS,
    CostOptions,
)
from warmroute_lab.overhead.picker_load import Chats, ExtProcLoad, GatewayLoad, Load

# What scraping costs is a figure of its own, so the pickers that serve requests do not scrape meanwhile.
_NO_SCRAPING = ("--idle-metrics-interval=3600", "--refresh-metrics-interval=3600", "--metrics-staleness-threshold=3600")
_EVERY_SECOND = ("--idle-metrics-interval=1", "--refresh-metrics-interval=1")


@dataclass(frozen=True, slots=True)
class _Contender:
    """A picker that is measured: a floor or one of ours."""

    name: str
    child: Child
    ext_proc: Load
    gateway: Load | None
    chats: dict[int, Chats]
    """By size; they go on from one comparison to the next, so that no prompt comes twice."""


async def bench(options: CostOptions, console: Console) -> list[Figure]:
    """Measure everything, print the table. Raises ChildError or LoadError if something does not run at all."""
    console.print(machine())
    steps = 7 + 2 * options.rounds + (3 * options.rounds if options.gateway else 0)
    with (
        TemporaryDirectory(prefix="warmroute-cost-") as directory,
        Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
        ) as progress,
    ):
        task = progress.add_task("start", total=steps)
        run = _Run(
            options,
            Path(directory),
            lambda what: progress.update(task, description=what),
            lambda: progress.advance(task),
        )
        figures = await run.measure()
    console.print(table(figures, "What the picker itself costs"))
    over = [figure.what for figure in figures if not figure.within]
    console.print(f"over budget: {'; '.join(over)}" if over else "every budget holds")
    return figures


def plain(figures: Sequence[Figure]) -> dict[str, Any]:
    """The figures and the machine, for JSON."""
    return {"machine": machine(), "figures": [figure.plain() for figure in figures]}


class _Run:
    """One run: what is started is ended with it."""

    def __init__(
        self, options: CostOptions, directory: Path, announce: Callable[[str], None], advance: Callable[[], None]
    ) -> None:
        self._options = options
        self._directory = directory
        self._announce = announce
        self._advance = advance
        self._first_pod = 0

    async def measure(self) -> list[Figure]:
        rng = random.Random(1)
        self._announce("match and pick")
        figures = [
            self._step(match_and_insert(self._options.rounds)),
            self._step(pick(self._options.rounds, rng)),
            self._step(pick_in_subset(self._options.rounds, rng)),
        ]
        self._announce("memory of the index")
        figures += [
            self._step(index_memory(self._options.index_checkpoints, shared=False)),
            self._step(index_memory(self._options.index_checkpoints, shared=True)),
        ]
        async with AsyncExitStack() as stack:
            self._announce("start")
            self._first_pod = free_range(MANY)
            argv = ["-m", "warmroute_lab.overhead.trivial_pods", f"--first-port={self._first_pod}", f"--count={MANY}"]
            await stack.enter_async_context(Child("pods", [sys.executable, *argv], self._directory / "pods.log"))
            bare = await self._bare(stack, "bare")
            figures += await self._idle(bare)
            decoding = await self._bare(stack, "decoding", "--decode")
            few = await self._ours(stack, FEW)
            many = await self._ours(stack, MANY)
            figures += await self._cpu(SMALL, self._options.small_requests, bare, few, many)
            figures += await self._cpu(LARGE, self._options.large_requests, decoding, few, many)
            if self._options.gateway:
                figures += await self._cpu(SMALL, self._options.small_requests, bare, few, many, gateway=True)
                figures += await self._cpu(LARGE, self._options.large_requests, decoding, few, many, gateway=True)
                figures += await self._latency(bare, few, many)
        return figures

    def _step(self, figure: Figure) -> Figure:
        self._advance()
        return figure

    # ---------------------------------------------------------------- who is measured

    async def _bare(self, stack: AsyncExitStack, name: str, *flags: str) -> _Contender:
        port = free_port()
        target = f"127.0.0.1:{self._first_pod}"
        argv = ["-m", "warmroute_lab.overhead.bare_picker", f"--port={port}", f"--target={target}", *flags]
        child = Child(name, [sys.executable, *argv], self._directory / f"{name}.log")
        await stack.enter_async_context(child)
        return await self._contender(stack, name, child, port)

    async def _ours(self, stack: AsyncExitStack, endpoints: int) -> _Contender:
        child, ports = self._picker(endpoints, _NO_SCRAPING)
        stack.push_async_callback(child.stop)
        await start_picker(child, ports)
        return await self._contender(stack, f"{endpoints} endpoints", child, ports.grpc)

    def _picker(self, endpoints: int, flags: Iterable[str]) -> tuple[Child, PickerPorts]:
        file = self._directory / f"endpoints-{endpoints}.json"
        pods = [{"name": f"pod-{k}", "address": "127.0.0.1", "port": self._first_pod + k} for k in range(endpoints)]
        file.write_bytes(orjson.dumps({"endpoints": pods}))
        ports = PickerPorts(grpc=free_port(), health=free_port(), metrics=free_port())
        log = self._directory / f"picker-{ports.grpc}.log"
        return picker(file, ports, log, ("--routing-strategy=PREFIX_CACHE", "--host=127.0.0.1", *flags)), ports

    async def _contender(self, stack: AsyncExitStack, name: str, child: Child, port: int) -> _Contender:
        target = f"127.0.0.1:{port}"
        load = await stack.enter_async_context(ExtProcLoad(target))
        gateway = None
        if self._options.gateway:
            pods = tuple(f"127.0.0.1:{self._first_pod + k}" for k in range(MANY))
            config = ProxyConfig(epp=(target,), endpoints=pods, plain_port=None)
            directory = self._directory / f"envoy-{port}"
            directory.mkdir()
            envoy = await stack.enter_async_context(EnvoyProcess(bootstrap(config), directory))
            gateway = await stack.enter_async_context(GatewayLoad(envoy.url))
        return _Contender(name, child, load, gateway, {size: Chats(size) for size in (SMALL, LARGE)})

    # ---------------------------------------------------------------- what is measured

    async def _idle(self, bare: _Contender) -> list[Figure]:
        """Memory at rest and the CPU of watching a hundred pods, of a picker that has served nothing."""
        self._announce(f"idle with {MANY} pods")
        child, ports = self._picker(MANY, _EVERY_SECOND)
        pods = [str(self._first_pod + k) for k in range(MANY)]
        asking = [sys.executable, "-m", "warmroute_lab.overhead.bare_scraper", *pods]
        try:
            await start_picker(child, ports)
            async with Child("bare scraper", asking, self._directory / "bare-scraper.log") as bare_scraper:
                await asyncio.sleep(3)  # connections are made and phases spread
                pids = (child.pid, bare_scraper.pid)
                before, began = [cpu_seconds(pid) for pid in pids], perf_counter()
                await asyncio.sleep(self._options.idle_seconds)
                seconds = perf_counter() - began
                cores, asking_cores = (
                    (cpu_seconds(pid) - cpu) / seconds for pid, cpu in zip(pids, before, strict=True)
                )
                memory = resident_bytes(child.pid)
        finally:
            await child.stop()
        floor = resident_bytes(bare.child.pid)
        self._advance()
        return [
            Figure(
                what=f"idle, {MANY} pods scraped at 1 Hz",
                unit="core",
                floor=asking_cores,
                ours=cores,
                result=cores,
                budget=IDLE_BUDGET,
                against=Against.VALUE,
            ),
            Figure(
                what=f"resident memory, idle, {MANY} pods",
                unit="bytes",
                floor=floor,
                ours=memory,
                result=memory - floor,
                budget=MEMORY_BUDGET,
                against=Against.ADDED,
            ),
        ]

    async def _cpu(
        self, size: int, requests: int, floor: _Contender, *ours: _Contender, gateway: bool = False
    ) -> list[Figure]:
        way = "through Envoy" if gateway else "gRPC"
        what = f"CPU per request, {size / 1000:g} KB, {way}"

        async def cost(contender: _Contender, requests: int) -> float:
            load = contender.gateway if gateway else contender.ext_proc
            assert load is not None
            before = cpu_seconds(contender.child.pid)
            await load.run(contender.chats[size], requests, workers=WORKERS)
            return (cpu_seconds(contender.child.pid) - before) / requests

        rounds = await self._rounds(what, cost, requests, floor, *ours)
        return [
            of_rounds(
                f"{what}, {contender.name}",
                "s",
                Against.RATIO,
                CPU_BUDGET[size],
                floor=rounds[floor.name],
                ours=rounds[contender.name],
            )
            for contender in ours
        ]

    async def _latency(self, floor: _Contender, *ours: _Contender) -> list[Figure]:
        what = "latency through Envoy, 1 connection, p50"

        async def p50(contender: _Contender, requests: int) -> float:
            assert contender.gateway is not None
            return median(await contender.gateway.run(contender.chats[SMALL], requests, workers=1))

        rounds = await self._rounds(what, p50, self._options.small_requests, floor, *ours)
        return [
            of_rounds(
                f"{what}, {contender.name}",
                "s",
                Against.ADDED,
                LATENCY_BUDGET,
                floor=rounds[floor.name],
                ours=rounds[contender.name],
            )
            for contender in ours
        ]

    async def _rounds(
        self, what: str, measure: Callable[[_Contender, int], Awaitable[float]], requests: int, *contenders: _Contender
    ) -> dict[str, list[float]]:
        """Each contender once in each round, in turned order, after a warm-up that does not count."""
        self._announce(what)
        for contender in contenders:
            await measure(contender, requests // 2)
        result: dict[str, list[float]] = {contender.name: [] for contender in contenders}
        order = list(contenders)
        for _ in range(self._options.rounds):
            for contender in order:
                result[contender.name].append(await measure(contender, requests))
            order = [*order[1:], order[0]]
            self._advance()
        return result
