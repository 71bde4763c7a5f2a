"""The demo: what it refuses, what it writes, and whole runs with the real Envoy."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from warmroute.errors import ConfigurationError
from warmroute.standalone.child import Child, ChildError
from warmroute.standalone.ports import free_port, free_range, require_free
from warmroute_lab.demo.demo import Demo
from warmroute_lab.demo.options import DemoOptions
from warmroute_lab.demo.rounds import LONG

pytestmark = pytest.mark.e2e

PORTS = ("port", "plain_port", "admin_port", "epp_port", "epp_health_port", "metrics_port", "debug_port", "pod_port")
ANY_PORTS: dict[str, Any] = dict.fromkeys(PORTS, 0)


def any_ports_flags() -> list[str]:
    return [f"--{name.replace('_', '-')}=0" for name in ANY_PORTS]


def console(shown: io.StringIO | None = None) -> Console:
    return Console(file=shown or io.StringIO(), width=120)


# ---------------------------------------------------------------- options


def test_every_port_0_becomes_a_port_of_its_own() -> None:
    options = DemoOptions(**ANY_PORTS).settled()
    ports = [getattr(options, name) for name in ANY_PORTS if name != "pod_port"]
    ports += [int(target.rpartition(":")[2]) for target in options.targets]
    assert 0 not in ports
    assert len(set(ports)) == 12


@pytest.mark.parametrize("name", ["port", "epp_health_port", "pod_port"])
def test_a_taken_port_is_named_with_its_flag(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} .*--{name.replace('_', '-')}"):
            DemoOptions(**{**ANY_PORTS, name: port}).settled()


@pytest.mark.parametrize("name", ["port", "epp_health_port", "pod_port"])
def test_a_taken_port_that_nobody_chose_is_replaced(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = DemoOptions(**{**ANY_PORTS, name: port}, movable=frozenset((name,))).settled()
    assert getattr(options, name) not in (0, port)
    assert port not in [int(target.rpartition(":")[2]) for target in options.targets]


def test_a_port_that_nobody_chose_gives_way_to_one_that_somebody_did() -> None:
    port = free_port()
    options = DemoOptions(**{**ANY_PORTS, "port": port, "epp_port": port}, movable=frozenset(("epp_port",))).settled()
    assert options.port == port
    assert options.epp_port not in (0, port)


def test_a_port_that_nobody_chose_gives_way_to_the_engines() -> None:
    first = free_range(3)
    options = DemoOptions(
        **{**ANY_PORTS, "pods": 3, "pod_port": first, "port": first + 1}, movable=frozenset(("port",))
    )
    settled = options.settled()
    assert settled.pod_port == first
    assert settled.port not in range(first, first + 3)


def test_a_port_wanted_twice_is_refused() -> None:
    port = free_port()
    with pytest.raises(ConfigurationError, match=f"{port} is given twice"):
        DemoOptions(**{**ANY_PORTS, "port": port, "metrics_port": port}).settled()


@pytest.mark.parametrize("options", [{"pods": 0}, {"time_scale": 0}, {"profile": "abacus"}])
def test_impossible_engines_are_refused(options: Any) -> None:
    with pytest.raises(ConfigurationError):
        DemoOptions(**options)


# ---------------------------------------------------------------- whole runs


async def test_two_rounds_land_on_one_engine_and_every_part_ends(tmp_path: Path) -> None:
    options = DemoOptions(**ANY_PORTS, pods=2).settled()
    shown = io.StringIO()
    async with Demo(options, tmp_path, console(shown)) as demo:
        figures = await demo.converse()
        demo.print_what_to_try()
    assert figures["round1_pod"] == figures["round2_pod"]
    assert '"matching ratio": " 0.54 > 0.50"' in figures["log"]
    text = shown.getvalue()
    assert figures["log"] in text
    assert f"curl -i {demo.base_url}/chat/completions" in text
    assert f"-d @{tmp_path}/long.json\n" in text
    assert (tmp_path / "long.json").read_bytes() == LONG
    assert f"curl 'http://127.0.0.1:{options.debug_port}/debug/endpoints?pretty=1'" in text
    assert [child.returncode for child in (demo.envoy.child, demo.picker, demo.simulators)] == [0, 0, 0]
    for port in (options.port, options.epp_port, options.pod_port):
        require_free("127.0.0.1", port, "nothing is left")


async def test_a_part_that_dies_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    options = DemoOptions(**ANY_PORTS, pods=1).settled()
    async with Demo(options, tmp_path, console()) as demo:
        death = asyncio.create_task(demo.first_death())
        os.kill(demo.simulators.pid, signal.SIGKILL)
        with pytest.raises(ChildError, match=r"(?s)warmroute simulate ended with status -9.*qwen listens on"):
            await death


async def test_a_part_that_does_not_start_stops_the_others(tmp_path: Path) -> None:
    options = DemoOptions(**ANY_PORTS, pods=1).settled()
    demo = Demo(options, tmp_path, console())
    demo.picker.argv = (*demo.picker.argv, "--routing-strategy", "NO_SUCH")
    with pytest.raises(ChildError, match=r"(?s)warmroute serve ended with status.*NO_SUCH"):
        await demo.__aenter__()
    assert demo.simulators.returncode == 0


async def test_sigterm_ends_a_running_demo_in_order(tmp_path: Path) -> None:
    demo = Child("demo", [sys.executable, "-m", "warmroute", "demo", *any_ports_flags()], tmp_path / "demo.log")

    async def loaded() -> bool:
        return "A load" in demo.tail(50)

    async with demo:
        await demo.until(loaded, "under load", patience=120)
        await demo.stop(grace=60)
    assert demo.returncode == 0
    assert "stopping" in demo.tail(50)


@pytest.mark.usefixtures("a_terminal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["ctrl-c", "closed-terminal"])
async def test_a_person_who_leaves_ends_it_in_order_too(tmp_path: Path, number: Any) -> None:
    demo = Child("demo", [sys.executable, "-m", "warmroute", "demo", *any_ports_flags()], tmp_path / "demo.log")

    async def half_started() -> bool:
        return "starting the picker" in demo.tail(50)

    async with demo:
        await demo.until(half_started, "half started", patience=120)
        os.kill(demo.pid, number)
        async with asyncio.timeout(60):
            assert await demo.wait() == 0


def test_without_its_load_the_engines_saw_the_conversation_only(tmp_path: Path) -> None:
    figures_file = tmp_path / "figures.json"
    argv = [*(sys.executable, "-m", "warmroute", "demo", "--once", "--no-load"), "--json", str(figures_file)]
    done = subprocess.run([*argv, *any_ports_flags()], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "A load" not in done.stdout
    assert json.loads(figures_file.read_text()).keys() == {"round1_pod", "round2_pod", "log"}


def test_a_default_port_in_use_is_replaced_and_named() -> None:
    flags = [flag for flag in any_ports_flags() if not flag.startswith("--metrics-port")]
    argv = [*(sys.executable, "-m", "warmroute", "demo", "--once", "--no-load", "--pods=1"), *flags]
    with ExitStack() as stack:
        with suppress(OSError):  # in use already
            stack.enter_context(socket.create_server(("127.0.0.1", 9090)))
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "port 9090 is in use: " in done.stdout
    assert "--metrics-port" in done.stdout


@pytest.mark.slow
def test_once_shows_the_gain_and_writes_the_figures(tmp_path: Path) -> None:
    figures_file = tmp_path / "figures.json"
    argv = [sys.executable, "-m", "warmroute", "demo", "--once", "--json", str(figures_file), *any_ports_flags()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Do prefix-aware routing!" in done.stdout
    assert '"matching ratio": " 0.54 > 0.50"' in done.stdout
    figures = json.loads(figures_file.read_text())
    assert figures["ttft_mean_ratio"] <= 0.6
    assert figures["idle_pods"] == []
    assert figures["picked"]["hit_rate"] > figures["plain"]["hit_rate"]
    assert sum(figures["picked"]["pods"].values()) == figures["picked"]["requests"] == 60
