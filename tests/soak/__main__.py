"""``python -m tests.soak [--quick | --seconds N]``: exit status 0 if no honest client noticed.

A real Envoy and ``warmroute serve``, which is killed as soon as its resident memory exceeds the memory limit of
deploy/base/deployment.yaml, as the kernel would do it in a pod. Behind them simulated engines and hostile ones, before them
honest load and hostile clients. Nobody reads the picker's log. Everything listens on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.soak import honest_load, hostile_clients, hostile_engines
from tests.soak.honest_load import MODEL, Outcome, percentile
from warmroute.errors import WarmrouteError
from warmroute.standalone.bootstrap import bootstrap
from warmroute.standalone.child import Child
from warmroute.standalone.envoy import EnvoyProcess
from warmroute.standalone.picker_process import PickerPorts, picker, start_picker
from warmroute.standalone.ports import free_range
from warmroute.standalone.proxy_config import ProxyConfig

SECONDS, QUICK_SECONDS = 180.0, 30.0
ATTACKS = ("engines", *hostile_clients.ATTACKS)
ENGINES = 5
"""Simulated engines, beside the hostile ones."""
PICK_P99 = 0.050
"""Most seconds for the 99th percentile of the pick, by the picker's histogram warmroute_pick_seconds. What a client sees is
printed beside it: that includes its own wait for a core."""
GROWTH = 64 << 20
"""Most bytes by which the highest memory of the last third may exceed that of the second third."""
MANIFEST = Path(__file__).parents[2] / "deploy" / "base" / "deployment.yaml"
UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def memory_limit() -> int:
    """The limit in bytes of the picker's container."""
    (container,) = yaml.safe_load(MANIFEST.read_text())["spec"]["template"]["spec"]["containers"]
    number, unit = re.fullmatch(r"(\d+)([KMG]i)", container["resources"]["limits"]["memory"]).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


def resident(pid: int, line: str = "VmRSS") -> int:
    """Resident memory in bytes: ``VmRSS`` now, ``VmHWM`` at its highest. 0 once the process is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{line}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) << 10 if found else 0


async def watch_memory(child: Child, limit: int, samples: list[int]) -> None:
    """Note the resident memory ten times a second, and kill the process beyond ``limit``."""
    while child.returncode is None:
        samples.append(resident(child.pid))
        if samples[-1] > limit:
            os.kill(child.pid, 9)
            return
        await asyncio.sleep(0.1)


def with_unread_log(child: Child, fifo: Path) -> Child:
    """The same program with its output going to a pipe that nobody reads."""
    os.mkfifo(fifo)
    quoted = " ".join(f"'{part}'" for part in child.argv)
    return Child(child.name, ["sh", "-c", f"exec {quoted} > '{fifo}' 2>&1"], child.log)


async def run(seconds: float, attacks: Sequence[str], directory: Path) -> int:
    """The whole run; the exit status."""
    pages_of_engines = hostile_engines.PAGES if "engines" in attacks else ()
    first = free_range(ENGINES + len(pages_of_engines) + 5)
    hostile, ports = first + ENGINES, range(first, first + ENGINES + len(pages_of_engines))
    epp = PickerPorts(*range(ports[-1] + 1, ports[-1] + 5))
    endpoints = directory / "endpoints.json"
    entries = [{"name": f"engine-{port - first}", "address": "127.0.0.1", "port": port} for port in ports]
    endpoints.write_text(json.dumps({"endpoints": entries}))

    simulate = [sys.executable, "-m", "warmroute", "simulate", "--count", str(ENGINES), "--port", str(first)]
    simulators = Child("simulators", [*simulate, "--model", MODEL, "--time-scale", "20"], directory / "simulators.log")
    engines = Child("hostile engines", _module("hostile_engines", str(hostile)), directory / "hostile-engines.log")
    serving = with_unread_log(
        picker(endpoints, epp, directory / "picker.log", ["--routing-strategy=PREFIX_CACHE", "--log-level=debug"]),
        directory / "log-pipe",
    )
    pipe = os.open(directory / "log-pipe", os.O_RDWR | os.O_NONBLOCK)
    config = ProxyConfig(
        epp=(f"127.0.0.1:{epp.grpc}",), endpoints=tuple(f"127.0.0.1:{port}" for port in ports), failure_mode_allow=False
    )
    envoy = EnvoyProcess(bootstrap(config), directory)
    outcome, samples, limit = Outcome(), [], memory_limit()  # type: tuple[Outcome, list[int], int]
    async with AsyncExitStack() as stack:
        stack.callback(os.close, pipe)
        stack.push(lambda kind, error, _: print_log(pipe) if error is not None else None)
        await stack.enter_async_context(simulators)
        if pages_of_engines:
            await stack.enter_async_context(engines)
            await engines.until(_says(engines, "ready"), "ready")
        stack.push_async_callback(serving.stop)
        await start_picker(serving, epp)
        await stack.enter_async_context(envoy)
        tasks = [asyncio.create_task(watch_memory(serving, limit, samples))]
        tasks += [asyncio.create_task(honest_load.load(envoy.url, outcome))]
        tasks += [asyncio.create_task(honest_load.probe(f"127.0.0.1:{epp.grpc}", outcome))]
        pages = [f"http://127.0.0.1:{epp.debug}/debug/{page}?limit=100" for page in ("decisions", "endpoints")]
        pages.append(f"http://127.0.0.1:{epp.metrics}/metrics")
        clients = Child(
            "hostile clients",
            _module(
                "hostile_clients", ",".join(set(attacks) - {"engines"}), envoy.url, f"127.0.0.1:{epp.grpc}", *pages * 2
            ),
            directory / "hostile-clients.log",
        )
        if len(attacks) > ("engines" in attacks):
            await stack.enter_async_context(clients)
        began = time.monotonic()
        while time.monotonic() - began < seconds and serving.returncode is None:
            await asyncio.sleep(0.2)
        for child in (simulators, engines, clients):
            if child.started:
                child.require_running()
        own = await histograms(f"http://127.0.0.1:{epp.metrics}/metrics") if serving.returncode is None else {}
        ended, highest = serving.returncode, max(samples, default=0)
        highest = max(highest, resident(serving.pid, "VmHWM"))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return report(outcome, own, samples, highest, limit, ended)


async def histograms(url: str) -> dict[str, dict[float, float]]:
    """The picker's own histograms by name: cumulative counts by upper bound in seconds."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session, session.get(url) as answer:
        families = list(text_string_to_metric_families(await answer.text()))
    return {
        family.name: {
            float(sample.labels["le"]): sample.value for sample in family.samples if sample.name.endswith("_bucket")
        }
        for family in families
        if family.type == "histogram"
    }


def bucket_of(share: float, counts: dict[float, float]) -> float:
    """The upper bound in seconds of the bucket that holds this share of a histogram; NaN without one."""
    most = max(counts.values(), default=0.0)
    return next((bound for bound, count in sorted(counts.items()) if count and count >= share * most), float("nan"))


def report(
    outcome: Outcome,
    own: dict[str, dict[float, float]],
    samples: list[int],
    highest: int,
    limit: int,
    ended: int | None,
) -> int:
    """Print every criterion with its figure; 0 if all are met."""
    third = len(samples) // 3
    growth = max(samples[2 * third :], default=0) - max(samples[third : 2 * third], default=0)
    asked = outcome.answered + len(outcome.failures)
    pick = bucket_of(0.99, own.get("warmroute_pick_seconds", {}))
    lag = own.get("warmroute_event_loop_lag_seconds", {})
    criteria = [
        ("the picker lives", ended is None, "yes" if ended is None else f"ended with status {ended}"),
        ("honest requests failed", not outcome.failures, f"{len(outcome.failures)} of {asked}"),
        (
            "p99 of the pick",
            pick < PICK_P99,
            f"at most {pick * 1e3:g} ms of {PICK_P99 * 1e3:g}, by the picker's metric",
        ),
        ("highest memory", highest <= limit, f"{highest >> 20} MiB of {limit >> 20}"),
        ("memory is flat", growth <= GROWTH, f"{growth / 2**20:+.0f} MiB in the last third, of {GROWTH >> 20}"),
    ]
    for name, met, figure in criteria:
        print(f"{'ok  ' if met else 'FAIL'} {name}: {figure}")
    print(
        f"     the picker's event loop lags: p50 {bucket_of(0.5, lag) * 1e3:g} ms, p99 {bucket_of(0.99, lag) * 1e3:g} ms"
    )
    for name, values in (
        ("a pick over gRPC", outcome.picks),
        ("an honest request, engine included", outcome.latencies),
    ):
        p50, p99 = (percentile(values, share) * 1e3 for share in (0.5, 0.99))
        print(f"     {name}, on cores shared with Envoy, engines and attackers: p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    for failure, times in Counter(outcome.failures).most_common(10):
        print(f"     {times} x {failure}")
    return 0 if all(met for _, met, _ in criteria) else 1


def print_log(pipe: int) -> None:
    """What the picker has logged, as far as the pipe took it."""
    with contextlib.suppress(BlockingIOError):
        print(os.read(pipe, 1 << 16).decode(errors="replace"), file=sys.stderr)


def _module(name: str, *arguments: str) -> list[str]:
    """A hostile program. It has the lowest priority: in life it has a machine of its own, here it shares the cores."""
    return ["nice", "-n", "19", sys.executable, "-m", f"tests.soak.{name}", *arguments]


def _says(child: Child, word: str) -> Callable[[], Awaitable[bool]]:
    async def said() -> bool:
        return word in child.tail()

    return said


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"how long (default: {SECONDS:g})")
    parser.add_argument(
        "--quick", action="store_const", const=QUICK_SECONDS, dest="seconds", help=f"{QUICK_SECONDS:g} s"
    )
    parser.add_argument(
        "--attacks", default=",".join(ATTACKS), help="which, to find a guilty one (default: %(default)s)"
    )
    arguments = parser.parse_args()
    attacks = arguments.attacks.split(",")
    if unknown := set(attacks) - set(ATTACKS):
        parser.error(f"there is no attack {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="warmroute-soak-") as directory:
        try:
            return asyncio.run(run(arguments.seconds, attacks, Path(directory)))
        except WarmrouteError as error:
            print(f"FAIL {error}")
            return 1


if __name__ == "__main__":
    sys.exit(main())
