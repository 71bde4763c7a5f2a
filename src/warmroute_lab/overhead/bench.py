"""``warmroute bench cost``: CPU, latency and memory of ``warmroute serve``, each beside its floor in the same run."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.progress import TimeElapsedColumn

from warmroute.standalone.child import Child
from warmroute.standalone.picker_process import start_picker
from warmroute_lab import terminal
from warmroute_lab.overhead.contenders import Contender, Contenders
from warmroute_lab.overhead.figure import Against, Figure, of_rounds, table
from warmroute_lab.overhead.in_process import index_memory, match_and_insert, pick, pick_in_subset
from warmroute_lab.overhead.live_page import live_page
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

_EVERY_SECOND = ("--idle-metrics-interval=1", "--refresh-metrics-interval=1")


async def run(options: CostOptions, console: Console, *, budgets: bool = False) -> list[Figure]:
    """Measure all figures and print them, with the project's budgets if ``budgets``.

    Raises ChildError, LoadError or OSError if something cannot be measured.
    """
    console.print(machine(), soft_wrap=True)
    steps = 8 + 2 * options.rounds + (3 * options.rounds if options.gateway else 0)
    with (
        TemporaryDirectory(prefix="warmroute-cost-") as directory,
        terminal.progress(console, TimeElapsedColumn()) as progress,
    ):
        task = progress.add_task("start", total=steps)
        measurement = _Measurement(
            options,
            Path(directory),
            lambda what: progress.update(task, description=what),
            lambda: progress.advance(task),
        )
        figures = await measurement.all()
    terminal.show(table(figures, "Cost of the picker", budgets=budgets), console)
    if budgets:
        over = [figure.what for figure in figures if not figure.within]
        console.print(f"over budget: {'; '.join(over)}" if over else "all budgets hold")
    return figures


def plain(figures: Sequence[Figure], *, budgets: bool = False) -> dict[str, Any]:
    """The figures and the machine for JSON, with the project's budgets if ``budgets``."""
    return {"machine": machine(), "figures": [figure.plain(budgets=budgets) for figure in figures]}


class _Measurement:
    """One run of the benchmark. ``announce`` shows the current step, ``advance`` counts finished ones."""

    def __init__(
        self, options: CostOptions, directory: Path, announce: Callable[[str], None], advance: Callable[[], None]
    ) -> None:
        self._options = options
        self._directory = directory
        self._announce = announce
        self._advance = advance

    async def all(self) -> list[Figure]:
        """All figures, in the order of the table."""
        figures = self._in_process()
        self._announce("live page")
        figures.append(self._step(await live_page(10 * self._options.rounds, random.Random(1))))
        self._announce("start")
        async with Contenders(self._directory, gateway=self._options.gateway) as contenders:
            bare = await contenders.bare("bare")
            figures += await self._idle(contenders, bare)
            decoding = await contenders.bare("decoding", "--decode")
            pickers = [await contenders.picker(FEW), await contenders.picker(MANY)]
            for gateway in (False, True) if self._options.gateway else (False,):
                figures += await self._cpu(SMALL, self._options.small_requests, bare, pickers, gateway=gateway)
                figures += await self._cpu(LARGE, self._options.large_requests, decoding, pickers, gateway=gateway)
            if self._options.gateway:
                figures += await self._latency(bare, pickers)
        return figures

    def _in_process(self) -> list[Figure]:
        """The figures that need no child process."""
        rng = random.Random(1)
        rounds, checkpoints = self._options.rounds, self._options.index_checkpoints
        self._announce("match and pick")
        figures = [self._step(match_and_insert(rounds)), self._step(pick(rounds, rng))]
        figures.append(self._step(pick_in_subset(rounds, rng)))
        self._announce("memory of the index")
        figures += [self._step(index_memory(checkpoints, shared=shared)) for shared in (False, True)]
        return figures

    def _step(self, figure: Figure) -> Figure:
        self._advance()
        return figure

    async def _idle(self, contenders: Contenders, bare: Contender) -> list[Figure]:
        """Memory, and CPU of scraping a hundred pods, of a picker that has served no request."""
        self._announce(f"idle with {MANY} pods")
        child, ports = contenders.new_picker(MANY, _EVERY_SECOND)
        argv = [sys.executable, "-m", "warmroute_lab.overhead.bare_scraper", *map(str, contenders.ports)]
        try:
            await start_picker(child, ports)
            async with Child("bare scraper", argv, self._directory / "bare-scraper.log") as bare_scraper:
                await asyncio.sleep(3)  # until all connections are open and the scrapes are spread over the interval
                floor, cores = await self._cores(bare_scraper.pid, child.pid)
                memory = resident_bytes(child.pid)
        finally:
            await child.stop()
        bare_memory = resident_bytes(bare.child.pid)
        self._advance()
        return [
            Figure(
                what=f"idle, {MANY} pods scraped at 1 Hz",
                unit="core",
                floor=floor,
                picker=cores,
                result=cores,
                budget=IDLE_BUDGET,
                against=Against.VALUE,
            ),
            Figure(
                what=f"resident memory, idle, {MANY} pods",
                unit="bytes",
                floor=bare_memory,
                picker=memory,
                result=memory - bare_memory,
                budget=MEMORY_BUDGET,
                against=Against.ADDED,
            ),
        ]

    async def _cores(self, *pids: int) -> list[float]:
        """CPU cores that each process uses."""
        before, began = [cpu_seconds(pid) for pid in pids], perf_counter()
        await asyncio.sleep(self._options.idle_seconds)
        seconds = perf_counter() - began
        return [(cpu_seconds(pid) - cpu) / seconds for pid, cpu in zip(pids, before, strict=True)]

    async def _cpu(
        self, size: int, requests: int, floor: Contender, pickers: Sequence[Contender], *, gateway: bool
    ) -> list[Figure]:
        """CPU per request of the server's process."""
        way = "through Envoy" if gateway else "gRPC"
        what = f"CPU per request, {size / 1000:g} KB, {way}"

        async def cost(contender: Contender, requests: int) -> float:
            load = contender.gateway if gateway else contender.ext_proc
            assert load is not None
            before = cpu_seconds(contender.child.pid)
            await load.run(contender.chats[size], requests, workers=WORKERS)
            return (cpu_seconds(contender.child.pid) - before) / requests

        return await self._compared(
            what, cost, requests, floor=floor, pickers=pickers, against=Against.RATIO, budget=CPU_BUDGET[size]
        )

    async def _latency(self, floor: Contender, pickers: Sequence[Contender]) -> list[Figure]:
        """Median latency of small requests."""
        what = "latency through Envoy, 1 connection, p50"

        async def p50(contender: Contender, requests: int) -> float:
            assert contender.gateway is not None
            return median(await contender.gateway.run(contender.chats[SMALL], requests, workers=1))

        requests = self._options.small_requests
        return await self._compared(
            what, p50, requests, floor=floor, pickers=pickers, against=Against.ADDED, budget=LATENCY_BUDGET
        )

    async def _compared(
        self,
        what: str,
        measure: Callable[[Contender, int], Awaitable[float]],
        requests: int,
        *,
        floor: Contender,
        pickers: Sequence[Contender],
        against: Against,
        budget: float,
    ) -> list[Figure]:
        """A figure in seconds for each picker."""
        rounds = await self._rounds(what, measure, requests, [floor, *pickers])
        return [
            of_rounds(
                f"{what}, {contender.name}",
                "s",
                against,
                budget,
                floor=rounds[floor.name],
                picker=rounds[contender.name],
            )
            for contender in pickers
        ]

    async def _rounds(
        self,
        what: str,
        measure: Callable[[Contender, int], Awaitable[float]],
        requests: int,
        contenders: Sequence[Contender],
    ) -> dict[str, list[float]]:
        """The values of each contender, one per round, by its name.

        The order of the contenders rotates from round to round. A first measurement of each is discarded as warm-up.
        """
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
