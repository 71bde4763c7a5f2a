"""``warmroute demo``: a real Envoy, simulated engines and the picker on one machine."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from rich.console import Console

from warmroute.end_signals import on_end_signal
from warmroute.observability.debug_client import DEFAULT_URL
from warmroute.standalone.bootstrap import bootstrap
from warmroute.standalone.child import Child
from warmroute.standalone.envoy import EnvoyProcess
from warmroute.standalone.picker_process import PickerPorts, picker, start_picker
from warmroute.standalone.program import program
from warmroute.tasks import cancel
from warmroute_lab import terminal
from warmroute_lab.demo.options import ALL_PORT_FLAGS, HOST, DemoOptions
from warmroute_lab.demo.rounds import LONG, MODEL, ROUND1, ROUND2
from warmroute_lab.json_file import require_place, write
from warmroute_lab.load.chat_client import Answer, ChatClient
from warmroute_lab.load.multi_round import run_with_progress
from warmroute_lab.load.summary import Summary, table
from warmroute_lab.load.workload import Workload

LOG_MARK = "Do prefix-aware routing!"
"""The picker's log line for a request whose engine holds most of its prompt."""
LOAD = Workload(
    num_users=10,
    num_rounds=6,
    qps=8.0,
    shared_system_prompt=100,
    user_history_prompt=16_000,
    answer_len=20,
    model=MODEL,
)
"""Every user asks all its questions once. The contexts are long because the default profile's GPU is fast."""


class Demo:
    """The running parts. An async context manager; the parts are stopped in reverse order of their start."""

    def __init__(self, options: DemoOptions, directory: Path, console: Console) -> None:
        """``options`` must be settled. ``directory`` gets configurations, logs and the two requests."""
        self.options = options
        self.console = console
        self._directory = directory
        argv = [
            *(sys.executable, "-m", "warmroute", "simulate"),
            *("--count", str(options.pods), "--port", str(options.pod_port), "--name", "qwen"),
            *("--model", MODEL, "--profile", options.profile, "--time-scale", str(options.time_scale)),
        ]
        self.simulators = Child("warmroute simulate", argv, directory / "simulators.log")
        self._picker_ports = PickerPorts(
            options.epp_port, options.epp_health_port, options.metrics_port, options.debug_port
        )
        self._endpoints_file = directory / "endpoints.yaml"
        flags = ("--routing-strategy", "PREFIX_CACHE")
        self.picker = picker(self._endpoints_file, self._picker_ports, directory / "picker.log", flags)
        self.envoy = EnvoyProcess(bootstrap(options.proxy_config()), directory)
        self._parts = AsyncExitStack()

    async def __aenter__(self) -> Self:
        options = self.options
        self._endpoints_file.write_text(options.endpoints_document(), encoding="utf-8")
        async with AsyncExitStack() as parts:
            await self._started(
                f"{options.pods} simulated engines ({options.profile})",
                parts,
                self._start_simulators,
                self.simulators.stop,
            )
            await self._started(
                "the picker: warmroute serve --routing-strategy PREFIX_CACHE",
                parts,
                lambda: start_picker(self.picker, self._picker_ports),
                self.picker.stop,
            )
            await self._started("Envoy", parts, self.envoy.start, self.envoy.stop)
            await self.envoy.wait_for_stat("cluster.epp.membership_healthy", 1)
            self._parts = parts.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._parts.aclose()

    def _say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    async def _started(
        self,
        what: str,
        parts: AsyncExitStack,
        start: Callable[[], Awaitable[None]],
        stop: Callable[[], Awaitable[None]],
    ) -> None:
        parts.push_async_callback(stop)
        self._say(f"starting {what}")
        await start()

    async def _start_simulators(self) -> None:
        await self.simulators.start()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:

            async def healthy() -> bool:
                for target in self.options.targets:
                    try:
                        async with session.get(f"http://{target}/health") as response:
                            if response.status != 200:
                                return False
                    except (aiohttp.ClientError, TimeoutError):
                        return False
                return True

            await self.simulators.until(healthy, "healthy")

    async def first_death(self) -> None:
        """Raise ChildError when one of the processes ends by itself. Never returns."""
        children = (self.simulators, self.picker, self.envoy.child)
        ends = [asyncio.create_task(child.wait()) for child in children]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel(*ends)
        for child in children:
            child.require_running()

    @property
    def base_url(self) -> str:
        """OpenAI base URL through the picker."""
        return self.envoy.url + "/v1"

    @property
    def plain_base_url(self) -> str:
        """OpenAI base URL of the plain port."""
        return self.envoy.plain_url + "/v1"

    async def converse(self) -> dict[str, Any]:
        """Send the two requests of a conversation through the picker; print and return which engines answered."""
        self._say("\nA conversation: the second request begins with the first", "bold")
        async with ChatClient(self.base_url) as client:
            first = await self._ask(client, "round1", ROUND1)
            second = await self._ask(client, "round2", ROUND2)
        line = await self._log_line()
        self._say("the picker's log:")
        self.console.file.write(line + "\n")  # the console would expand its tabs
        if first.pod == second.pod:
            self._say(f"{first.pod} answered both: it had the first request in its cache", "green")
        else:
            self._say(f"{first.pod} answered round1, {second.pod} answered round2", "red")
        return {"round1_pod": first.pod, "round2_pod": second.pod, "log": line}

    async def _ask(self, client: ChatClient, name: str, body: bytes) -> Answer:
        (self._directory / f"{name}.json").write_bytes(body)
        answer = await client.ask(body)
        if not answer.complete or answer.ttft is None:
            raise self.envoy.child.failure(f"gave no answer to {name} ({answer.error})")
        self._say(
            f"{name}: {answer.pod}, TTFT {answer.ttft * 1000:.1f} ms, "
            f"{answer.cached_tokens} of {answer.prompt_tokens} prompt tokens from its cache"
        )
        return answer

    async def _log_line(self) -> str:
        found = ""

        async def logged() -> bool:
            nonlocal found
            found = next((line for line in reversed(self.picker.tail(200).splitlines()) if LOG_MARK in line), "")
            return bool(found)

        await self.picker.until(logged, f"logging `{LOG_MARK}`")
        return found

    async def measure(self) -> dict[str, Any]:
        """Send the load to the picker's port and to the plain port, one after the other; print and return the figures."""
        load = replace(LOAD, salt="picked")
        self._say(
            f"\nA load: {load.num_users} users, {load.num_rounds} rounds each, {load.qps:g} requests per second, "
            f"{load.user_history_prompt:,} words of context each; first through the picker, then without it",
            "bold",
        )
        title = f"through the picker (port {self.options.port})"
        picked = Summary.of(await run_with_progress(load, self.base_url, self.console, title=title, log_interval=5))
        others = replace(load, init_user_id=load.init_user_id + load.num_users, salt="plain")
        title = f"plain least requests (port {self.options.plain_port})"
        plain = Summary.of(
            await run_with_progress(others, self.plain_base_url, self.console, title=title, log_interval=5)
        )
        if not picked.requests or not plain.requests:
            raise self.envoy.child.failure("answered none of the load's requests")
        columns = [(f"{self.options.plain_port}: plain", plain), (f"{self.options.port}: picked", picked)]
        terminal.show(table("The same load with and without the picker", columns, self.options.pod_names), self.console)
        self._say("Before each load, no cache held any of its prompts.")
        if self.options.time_scale != 1:
            self._say(f"The engines ran {self.options.time_scale:g} times as fast as real ones.")
        ratio = picked.ttft.mean / plain.ttft.mean
        idle = [name for name in self.options.pod_names if not picked.pods.get(name)]
        self._say(
            f"Mean TTFT through the picker: {ratio:.2f} of the mean TTFT without it. "
            + (f"Engines without a request: {', '.join(idle)}." if idle else "Every engine had requests."),
            "green" if ratio < 1 and not idle else "yellow",
        )
        return {
            "plain": plain.figures(),
            "picked": picked.figures(),
            "ttft_mean_ratio": ratio,
            "idle_pods": idle,
        }

    def print_what_to_try(self) -> None:
        """Print commands to try while the demo runs. They work as printed."""
        chat, plain = self.base_url, self.plain_base_url
        debug = f"http://{HOST}:{self.options.debug_port}"
        other = "" if debug == DEFAULT_URL else f" --debug-url {debug}"
        long = self._directory / "long.json"
        long.write_bytes(LONG)
        file = shlex.quote(str(long))
        self._say(
            "\nEverything runs until Ctrl-C. Commands to try, the first one twice: then its prompt is cached:", "bold"
        )
        for line in (
            f"curl -i {chat}/chat/completions -H 'Content-Type: application/json' -d @{file}",
            f"curl -i {plain}/chat/completions -H 'Content-Type: application/json' -d @{file}",
            f"curl '{debug}/debug/endpoints?pretty=1'",
            f"{program()} explain X-REQUEST-ID{other}    (the response's header x-request-id)",
            f"{program()} top{other}    (or {debug}/ in a browser)",
            f"curl http://{HOST}:{self.options.metrics_port}/metrics",
            f"{program()} bench multi-round --base-url {plain} --compare {chat} --time 60 --qps 2",
            f"tail -f {shlex.quote(str(self.picker.log))}",
        ):
            self._say("  " + line)


async def run(
    options: DemoOptions, console: Console, *, once: bool, load: bool = True, json_file: Path | None = None
) -> int:
    """Run the demo, without the load if not ``load``; returns the exit status.

    SIGINT, SIGTERM and SIGHUP stop all parts. Raises ConfigurationError if a port that the user chose is taken, ChildError
    if a process fails.
    """
    wanted, options = options, options.settled()
    _say_what_moved(wanted, options, console)
    require_place(json_file)
    stopped = asyncio.Event()
    on_end_signal(stopped.set)
    directory = Path(tempfile.mkdtemp(prefix="warmroute-demo-"))
    show = asyncio.create_task(_show(Demo(options, directory, console), once=once, load=load, json_file=json_file))
    stop = asyncio.create_task(stopped.wait())
    await asyncio.wait({show, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not show.done():
        console.print("stopping", highlight=False)
        show.cancel()
        await asyncio.wait({show})
    if not show.cancelled():
        show.result()  # raises if it failed; then the logs are kept
    shutil.rmtree(directory, ignore_errors=True)
    return 130 if once and show.cancelled() else 0


def _say_what_moved(wanted: DemoOptions, settled: DemoOptions, console: Console) -> None:
    for name in sorted(wanted.movable):
        before, port = getattr(wanted, name), getattr(settled, name)
        if port != before:
            flag = ALL_PORT_FLAGS[name]
            console.print(f"port {before} is in use: {port} in its place ({flag} takes another)", highlight=False)


async def _show(demo: Demo, *, once: bool, load: bool, json_file: Path | None) -> None:
    async with demo:
        death = asyncio.create_task(demo.first_death())
        show = asyncio.create_task(_show_running(demo, once=once, load=load, json_file=json_file))
        try:
            await asyncio.wait({death, show}, return_when=asyncio.FIRST_COMPLETED)
            if show.done() and show.exception():
                # If a process died, its error explains more.
                await asyncio.wait({death}, timeout=0.5)
            if death.done():
                death.result()
            show.result()
        finally:
            await cancel(death, show)


async def _show_running(demo: Demo, *, once: bool, load: bool, json_file: Path | None) -> None:
    figures = await demo.converse()
    if load:
        figures |= await demo.measure()
    if json_file is not None:
        write(json_file, figures)
        demo.console.print(f"Figures: {json_file}", highlight=False, soft_wrap=True)
    if not once:
        demo.print_what_to_try()
        await asyncio.Event().wait()
