"""``warmroute demo``: a real Envoy, simulated engines and the picker on one machine, and what they do for a conversation."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import signal
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

from warmroute.standalone.bootstrap import bootstrap
from warmroute.standalone.child import Child
from warmroute.standalone.envoy import EnvoyProcess
from warmroute.standalone.picker_process import PickerPorts, picker, start_picker
from warmroute_lab.demo.options import HOST, DemoOptions
from warmroute_lab.demo.rounds import MODEL, ROUND1, ROUND2
from warmroute_lab.json_file import require_place, write
from warmroute_lab.load.chat_client import Answer, ChatClient
from warmroute_lab.load.multi_round import run_with_progress
from warmroute_lab.load.summary import Summary, table
from warmroute_lab.load.workload import Workload

LOG_MARK = "Do prefix-aware routing!"
"""What the picker logs when it sends a request to an engine that holds most of its prompt."""
BUDGET = 0.6
"""The mean TTFT through the picker is meant to be at most this share of that without it."""
LOAD = Workload(
    num_users=10,
    num_rounds=6,
    qps=8.0,
    shared_system_prompt=100,
    user_history_prompt=16_000,
    answer_len=20,
    model=MODEL,
)
"""The multi-round load: every user asks all rounds once. The contexts are long because the default engine's GPU is fast."""


class Demo:
    """All parts running; entered and left as an async context manager, the last started stopped first."""

    def __init__(self, options: DemoOptions, directory: Path, console: Console) -> None:
        """``options`` must be settled. ``directory`` gets the configurations, the logs and the two requests."""
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
        """Return never; raises ChildError as soon as one of the processes ends by itself."""
        children = (self.simulators, self.picker, self.envoy.child)
        ends = [asyncio.create_task(child.wait()) for child in children]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
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
        """Send the two rounds of a conversation through the picker; print and return who answered and why."""
        self._say("\nA conversation: the second request repeats the first and goes on", "bold")
        async with ChatClient(self.base_url) as client:
            first = await self._ask(client, "round1", ROUND1)
            second = await self._ask(client, "round2", ROUND2)
        line = await self._log_line()
        self._say("the picker's log:")
        self.console.file.write(line + "\n")  # as it is: the console would expand its tabs
        if first.pod == second.pod:
            self._say(f"both were answered by {first.pod}, which has the first in its cache", "green")
        else:
            self._say(f"round1 was answered by {first.pod}, round2 by {second.pod}", "red")
        return {"round1_pod": first.pod, "round2_pod": second.pod, "log": line}

    async def _ask(self, client: ChatClient, name: str, body: bytes) -> Answer:
        (self._directory / f"{name}.json").write_bytes(body)
        answer = await client.ask(body)
        if not answer.complete or answer.ttft is None:
            raise self.envoy.child.failure(f"gave no answer to {name} ({answer.error})")
        self._say(
            f"{name}: answered by {answer.pod}, TTFT {answer.ttft * 1000:.1f} ms, "
            f"{answer.cached_tokens} of {answer.prompt_tokens} prompt tokens from its cache"
        )
        return answer

    async def _log_line(self) -> str:
        found = ""

        async def logged() -> bool:
            nonlocal found
            found = next((line for line in reversed(self.picker.tail(200).splitlines()) if LOG_MARK in line), "")
            return bool(found)

        await self.picker.until(logged, f"seen to log {LOG_MARK!r}")
        return found

    async def measure(self) -> dict[str, Any]:
        """Put the multi-round load on both ports in turn; print and return the figures."""
        load = LOAD
        self._say(
            f"\nA load: {load.num_users} users, {load.num_rounds} rounds each, {load.qps:g} requests per second, "
            f"{load.user_history_prompt:,} words of context each",
            "bold",
        )
        title = f"through the picker (port {self.options.port})"
        picked = Summary.of(await run_with_progress(load, self.base_url, self.console, title=title, log_interval=5))
        others = replace(load, init_user_id=load.init_user_id + load.num_users)
        title = f"plain least requests (port {self.options.plain_port})"
        plain = Summary.of(
            await run_with_progress(others, self.plain_base_url, self.console, title=title, log_interval=5)
        )
        if not picked.requests or not plain.requests:
            raise self.envoy.child.failure("answered none of the load's requests")
        columns = [(f"{self.options.plain_port}: plain", plain), (f"{self.options.port}: picked", picked)]
        self.console.print(table("Multi-round, the same engines", columns, self.options.pod_names))
        self._say(
            "Both started cold: each had users of its own, whose contexts no engine had seen. The picked one ran first,\n"
            "so only the plain one found the shared system prompt in the caches."
        )
        if self.options.time_scale != 1:
            self._say(
                f"The engines ran {self.options.time_scale:g} times as fast as real ones, which shortens these times."
            )
        ratio = picked.ttft.mean / plain.ttft.mean
        idle = [name for name in self.options.pod_names if not picked.pods.get(name)]
        met = ratio <= BUDGET and not idle
        self._say(
            f"Mean TTFT: {ratio:.2f} of that without the picker (meant to be at most {BUDGET}); "
            + (f"idle: {', '.join(idle)}" if idle else "no engine was idle"),
            "green" if met else "yellow",
        )
        return {
            "plain": plain.figures(),
            "picked": picked.figures(),
            "ttft_mean_ratio": ratio,
            "idle_pods": idle,
        }

    def print_what_to_try(self) -> None:
        """The commands with which a person goes on."""
        chat, plain = self.base_url, self.plain_base_url
        file = shlex.quote(str(self._directory / "round2.json"))
        self._say("\nEverything keeps running until Ctrl-C. To try:", "bold")
        for line in (
            f"curl -i {chat}/chat/completions -H 'Content-Type: application/json' -d @{file}",
            f"curl -i {plain}/chat/completions -H 'Content-Type: application/json' -d @{file}",
            f"curl http://{HOST}:{self.options.debug_port}/debug/decisions?pretty=1",
            f"curl http://{HOST}:{self.options.metrics_port}/metrics",
            f"warmroute bench multi-round --base-url {plain} --compare {chat} --time 60 --qps 2",
            f"tail -f {shlex.quote(str(self.picker.log))}",
        ):
            self._say("  " + line)


async def run(
    options: DemoOptions, console: Console, *, once: bool, load: bool = True, json_file: Path | None = None
) -> int:
    """The whole demo, without its load if not ``load``; the exit status.

    Raises ConfigurationError for taken ports, ChildError when a process fails. SIGINT, SIGTERM and a terminal that is
    closed end it in order.
    """
    options = options.settled()
    require_place(json_file)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            loop.add_signal_handler(number, stopped.set)
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
        show.result()  # if it failed, the logs stay for whoever reads the error
    shutil.rmtree(directory, ignore_errors=True)
    return 130 if once and show.cancelled() else 0


async def _show(demo: Demo, *, once: bool, load: bool, json_file: Path | None) -> None:
    async with demo:
        death = asyncio.create_task(demo.first_death())
        show = asyncio.create_task(_show_running(demo, once=once, load=load, json_file=json_file))
        try:
            await asyncio.wait({death, show}, return_when=asyncio.FIRST_COMPLETED)
            if show.done() and show.exception():
                # Perhaps because a process died, which explains it better.
                await asyncio.wait({death}, timeout=0.5)
            if death.done():
                death.result()
            show.result()
        finally:
            for task in (death, show):
                task.cancel()
            await asyncio.gather(death, show, return_exceptions=True)


async def _show_running(demo: Demo, *, once: bool, load: bool, json_file: Path | None) -> None:
    figures = await demo.converse()
    if load:
        figures |= await demo.measure()
    if json_file is not None:
        write(json_file, figures)
        demo.console.print(f"The figures: {json_file}", highlight=False)
    if not once:
        demo.print_what_to_try()
        await asyncio.Event().wait()
