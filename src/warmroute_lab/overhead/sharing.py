"""``warmroute bench sharing``: what sharing state costs pickers under full load.

Two pairs of pickers serve the same pods: one pair shares its state over NATS, the other shares nothing. Each figure is the
CPU of the pickers' processes for a request, beside that of one picker of the second pair, in the same round. Only the
pickers that are measured get requests, each as many as it can take (a closed loop of :data:`OPEN` requests), so batches of
the log are as large as they get, and what each batch costs counts least. The CPU of load, pods and NATS is not counted.

All pickers are loaded first until the prefix indexes are full: an index that still grows is faster than one that evicts, and
that of pickers which share grows twice as fast.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import TimeElapsedColumn

from warmroute.standalone.child import Child
from warmroute.standalone.nats import NatsProcess
from warmroute.standalone.picker_process import start_picker
from warmroute_lab import terminal
from warmroute_lab.overhead.contenders import Contenders
from warmroute_lab.overhead.figure import Against, Figure, of_rounds, table
from warmroute_lab.overhead.machine import cpu_seconds, machine
from warmroute_lab.overhead.options import SMALL
from warmroute_lab.overhead.picker_load import Chats
from warmroute_lab.overhead.saturating_load import SaturatingLoad

ENDPOINTS = 20
RUNNING = 8
"""Requests that each pod shows as running, so that it is scraped as often as an engine under load."""
CONNECTIONS, STREAMS = 4, 16
OPEN = CONNECTIONS * STREAMS
"""Requests under way at each picker."""
BUDGET = 1 / 0.9
"""CPU per request of two pickers that share, relative to one that does not: with it two carry 1.8 times the requests."""
_FLAGS = ("--log-level=warning",)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingOptions:
    """Size of one run."""

    body_bytes: int = SMALL
    rounds: int = 9
    requests: int = 4_000
    """Requests for each picker and round."""
    warm_up: int = 60_000
    """Requests before the first round, of each picker alone and of the two that share together."""


@dataclass(frozen=True, slots=True)
class _Picker:
    child: Child
    load: SaturatingLoad


async def run(options: SharingOptions, console: Console, *, budgets: bool = False) -> list[Figure]:
    """Measure all figures and print them. Raises ChildError, LoadError or OSError if something cannot be measured."""
    console.print(machine(), soft_wrap=True)
    with (
        TemporaryDirectory(prefix="warmroute-sharing-") as directory,
        terminal.progress(console, TimeElapsedColumn()) as progress,
    ):
        task = progress.add_task("start", total=options.rounds + 3)
        async with AsyncExitStack() as stack:
            pairs, nats = await _start(stack, Path(directory))
            alone, blind, sharing = (pairs[0][:1], *pairs)
            chats = Chats(options.body_bytes)
            progress.update(task, description="fill the indexes")
            for pickers in (alone, blind[1:], sharing):
                await _load(pickers, chats, options.warm_up // len(pickers))
                progress.advance(task)
            progress.update(task, description="CPU per request")
            order = [alone, blind, sharing[:1], sharing]
            seconds: dict[int, list[float]] = {k: [] for k in range(len(order))}
            of_nats: list[float] = []
            for number in range(options.rounds):
                for k in (*range(number % 4, 4), *range(number % 4)):
                    before = cpu_seconds(nats.child.pid)
                    seconds[k].append(await _load(order[k], chats, options.requests))
                    if order[k] is sharing:
                        of_nats.append((cpu_seconds(nats.child.pid) - before) / options.requests / 2)
                progress.advance(task)
    names = ("two pickers that share nothing", "one picker that shares", "two pickers that share")
    figures = [
        of_rounds(f"CPU per request, {name}", "s", Against.RATIO, BUDGET, floor=seconds[0], picker=seconds[k])
        for k, name in enumerate(names, 1)
    ]
    figures.append(
        Figure(
            what="CPU per request of NATS, two pickers that share",
            unit="s",
            picker=median(of_nats),
            result=median(of_nats),
            spread=(min(of_nats), max(of_nats)),
            budget=BUDGET * median(seconds[0]),
            against=Against.VALUE,
        )
    )
    title = f"Cost of sharing state, bodies of {options.body_bytes} bytes; the floor is one picker that does not"
    terminal.show(table(figures, title, budgets=budgets), console)
    console.print(f"two pickers that share carry {2 / figures[2].result:.2f} times the requests of one that does not")
    return figures


def plain(figures: Sequence[Figure]) -> dict[str, Any]:
    """The figures and the machine for JSON."""
    return {"machine": machine(), "figures": [figure.plain(budgets=False) for figure in figures]}


async def _start(stack: AsyncExitStack, directory: Path) -> tuple[list[list[_Picker]], NatsProcess]:
    """The pair that shares nothing, the pair that shares, and their NATS server."""
    contenders = await stack.enter_async_context(Contenders(directory, gateway=False, running=RUNNING))
    nats = await stack.enter_async_context(NatsProcess(directory))
    key = directory / "key"
    key.write_bytes(bytes(32).hex().encode())
    sharing = (f"--shared-state={nats.url}", f"--shared-state-key-path={key}")
    pairs: list[list[_Picker]] = []
    for flags in (_FLAGS, (*_FLAGS, *sharing)):
        pair = []
        for _ in range(2):
            child, ports = contenders.new_picker(ENDPOINTS, flags)
            stack.push_async_callback(child.stop)
            await start_picker(child, ports)
            load = SaturatingLoad("127.0.0.1", ports.grpc, connections=CONNECTIONS, streams=STREAMS)
            stack.callback(load.close)
            await load.open()
            pair.append(_Picker(child, load))
        pairs.append(pair)
    return pairs, nats


async def _load(pickers: Sequence[_Picker], chats: Chats, requests: int) -> float:
    """Send each picker that many requests, to all at one time. Returns CPU seconds of their processes for a request."""
    before = sum(cpu_seconds(picker.child.pid) for picker in pickers)
    await asyncio.gather(*(picker.load.run(chats, requests) for picker in pickers))
    await asyncio.sleep(0.1)  # until the last batch is published and applied
    return (sum(cpu_seconds(picker.child.pid) for picker in pickers) - before) / requests / len(pickers)
