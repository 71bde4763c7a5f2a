"""The cost benchmark: arithmetic of the figures, the load, and a small whole run."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path

import grpc
import orjson
import pytest
from rich.console import Console
from typer.testing import CliRunner

from warmroute import cli
from warmroute.request.parse import parse
from warmroute.request.rejections import Rejection
from warmroute.standalone.child import Child
from warmroute.standalone.picker_process import start_picker
from warmroute.standalone.ports import free_port
from warmroute_lab.overhead import bench, in_process, machine, options
from warmroute_lab.overhead.contenders import Contenders
from warmroute_lab.overhead.figure import Against, Figure, of_rounds, table
from warmroute_lab.overhead.picker_load import PATH, Chats, ExtProcLoad, Load, LoadError
from warmroute_lab.overhead.saturating_load import SaturatingLoad

pytestmark = pytest.mark.integration


def test_a_ratio_is_taken_round_by_round() -> None:
    figure = of_rounds("cpu", "s", Against.RATIO, 1.4, floor=[1.0, 10.0, 2.0], picker=[1.2, 13.0, 3.0])
    assert figure.result == pytest.approx(1.3)  # not 3.0 / 2.0: the machine was slower in one round
    assert (figure.floor, figure.picker) == (2.0, 3.0)
    assert figure.spread == (pytest.approx(1.2), pytest.approx(1.5))
    assert figure.within


def test_what_is_added_is_the_difference_and_a_value_is_the_pickers_alone() -> None:
    added = of_rounds("latency", "s", Against.ADDED, 0.3e-3, floor=[1e-3, 2e-3], picker=[1.2e-3, 2.6e-3])
    assert added.result == pytest.approx(0.4e-3)
    assert not added.within
    value = of_rounds("match", "s", Against.VALUE, 150e-6, floor=[50e-6], picker=[150e-6])
    assert value.result == 150e-6
    assert value.within


@pytest.mark.parametrize(("floor", "picker"), [([], []), ([1.0], [1.0, 2.0])])
def test_rounds_must_be_pairs(floor: list[float], picker: list[float]) -> None:
    with pytest.raises(ValueError, match="rounds"):
        of_rounds("cpu", "s", Against.RATIO, 1.4, floor=floor, picker=picker)


def test_the_table_says_within_or_over_beside_each_budget() -> None:
    def value(what: str, unit: str, picker: float, budget: float) -> Figure:
        return Figure(what=what, unit=unit, picker=picker, result=picker, budget=budget, against=Against.VALUE)

    ratio = of_rounds("cpu", "s", Against.RATIO, 1.4, floor=[0.5e-3], picker=[0.6e-3])
    less = of_rounds("memory", "bytes", Against.ADDED, 40e6, floor=[45e6], picker=[44e6])
    console = Console(file=StringIO(), width=120)
    figures = [ratio, less, value("pick", "s", 50e-6, 40e-6), value("idle", "core", 0.02, 0.05)]
    console.print(table(figures, "costs", budgets=True))
    lines = {line.split("│")[1].strip(): line for line in console.file.getvalue().splitlines() if "│" in line}  # type: ignore[attr-defined]
    assert [cell.strip() for cell in lines["cpu"].split("│")[2:7]] == [
        "0.500 ms",
        "0.600 ms",
        "x 1.20",
        "x 1.40",
        "within",
    ]
    assert "- 1.0 MB" in lines["memory"]
    assert "50 us" in lines["pick"]
    assert "over" in lines["pick"]
    assert "0.020 core" in lines["idle"]
    without = Console(file=StringIO(), width=120)
    without.print(table(figures, "costs", budgets=False))
    shown = without.file.getvalue()  # type: ignore[attr-defined]
    assert "0.600 ms" in shown
    assert "x 1.20" in shown
    assert not any(word in shown for word in ("budget", "within", "over", "x 1.40"))
    assert "budget" not in ratio.plain(budgets=False)


def _shared(one: bytes, other: bytes) -> int:
    return next(k for k, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)


def test_chats_have_one_size_and_come_in_pairs_that_share_all_but_the_question() -> None:
    for size in (options.SMALL, options.LARGE):
        chats = Chats(size)
        bodies = [chats.next() for _ in range(4)]
        assert {len(body) for body in bodies} == {len(bodies[0])}
        assert len(bodies[0]) == pytest.approx(size, rel=0.05)
        assert all(not isinstance(parse(PATH, "application/json", body), Rejection) for body in bodies)
        first, same, other = bodies[:3]
        assert first[: _shared(first, same)].endswith(b'content":"0000000')
        shared = _shared(first, other)
        assert shared == pytest.approx(0.3 * size, abs=150)


class _Flaky(Load):
    """Fails at the third request."""

    def __init__(self) -> None:
        self.requests = 0

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def request(self, connection: int, body: bytes) -> None:
        self.requests += 1
        third = self.requests == 3
        await asyncio.sleep(0)
        if third:
            raise ConnectionError("gone")


async def test_one_failed_request_fails_the_run() -> None:
    async with _Flaky() as load:
        assert len(await load.run(Chats(options.SMALL), 2, workers=2)) == 2
        with pytest.raises(LoadError, match="gone"):
            await load.run(Chats(options.SMALL), 10, workers=2)


def test_cpu_and_memory_of_a_process_are_what_the_process_itself_sees() -> None:
    before = time.process_time()
    seen = machine.cpu_seconds(os.getpid())
    assert before <= seen <= time.process_time()
    held = bytearray(50_000_000)
    held[::4096] = b"x" * len(held[::4096])
    assert machine.resident_bytes(os.getpid()) > 50_000_000


def test_figures_that_need_no_process() -> None:
    for figure in (
        in_process.match_and_insert(rounds=1),
        in_process.pick(rounds=1, rng=random.Random(1)),
        in_process.pick_in_subset(rounds=1, rng=random.Random(1)),
        in_process.index_memory(5_000, shared=False),
        in_process.index_memory(50_000, shared=True),
    ):
        assert figure.result > 0
    assert (
        1 < in_process.index_memory(50_000, shared=True).result < in_process.index_memory(50_000, shared=False).result
    )


@asynccontextmanager
async def _bare(directory: Path, *flags: str) -> AsyncIterator[str]:
    target = f"127.0.0.1:{free_port()}"
    port = target.partition(":")[2]
    argv = [
        sys.executable,
        "-m",
        "warmroute_lab.overhead.bare_server",
        f"--port={port}",
        "--target=10.0.0.1:80",
        *flags,
    ]
    async with Child("bare", argv, directory / "bare.log"):
        yield target


async def test_the_bare_picker_answers_and_tells_when_a_body_is_no_json(tmp_path: Path) -> None:
    async with _bare(tmp_path, "--decode") as target, ExtProcLoad(target, connections=2) as load:
        assert len(await load.run(Chats(options.SMALL), 5, workers=2)) == 5
        with pytest.raises(grpc.aio.AioRpcError):
            await load.request(0, b"{")


@pytest.mark.slow
def test_a_whole_run_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = options.CostOptions(rounds=1, small_requests=8, large_requests=4, idle_seconds=0.2, index_checkpoints=25_000)
    monkeypatch.setattr(options, "QUICK", tiny)
    file = tmp_path / "overhead.json"
    result = CliRunner().invoke(cli.app, ["bench", "cost", "--quick", "--budgets", "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "budget" in result.output
    document = orjson.loads(file.read_bytes())
    figures = {figure["what"]: figure for figure in document["figures"]}
    assert len(figures) == 18
    assert document["machine"]
    assert sum("CPU per request" in what for what in figures) == 8
    for figure in figures.values():
        assert figure["within"] == (figure["result"] <= figure["budget"])


@pytest.mark.slow
def test_what_sharing_costs_in_miniature(tmp_path: Path) -> None:
    file = tmp_path / "sharing.json"
    argv = ["bench", "sharing", "--rounds", "1", "--requests", "100", "--warm-up", "100", "--json", str(file)]
    result = CliRunner().invoke(cli.app, argv)
    assert result.exit_code == 0, result.output
    assert "times the requests of one" in result.output
    figures = orjson.loads(file.read_bytes())["figures"]
    assert len(figures) == 4
    assert all(figure["picker"] > 0 for figure in figures)


async def test_load_on_a_picker_that_is_gone_fails(tmp_path: Path) -> None:
    contenders = Contenders(tmp_path, gateway=False)
    child, ports = contenders.new_picker(0, ())
    await start_picker(child, ports)
    load = SaturatingLoad("127.0.0.1", ports.grpc, connections=1, streams=2)
    try:
        await load.open()
        with pytest.raises(LoadError, match="no endpoint"):
            await load.run(Chats(options.SMALL), 5)
    finally:
        await child.stop()
    with pytest.raises(LoadError, match="ended"):
        await load.run(Chats(options.SMALL), 5)


def test_a_run_that_cannot_be_made_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> list[Figure]:
        raise LoadError("the picker did not answer")

    monkeypatch.setattr(bench, "run", broken)
    result = CliRunner().invoke(cli.app, ["bench", "cost", "--quick"])
    assert result.exit_code == 1
    assert "did not answer" in result.output
