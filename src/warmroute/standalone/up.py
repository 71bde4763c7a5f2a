"""`warmroute up`: Envoy and the picker before engines that run already, until a signal."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from warmroute.end_signals import end_events
from warmroute.errors import ConfigurationError
from warmroute.settings.flags import flags_of_settings
from warmroute.settings.sources import variable_of
from warmroute.standalone.bootstrap import bootstrap, endpoint_discovery, to_yaml
from warmroute.standalone.child import ChildError
from warmroute.standalone.engine_list import Engine, EngineList, document
from warmroute.standalone.engine_probe import probe_models
from warmroute.standalone.envoy import EnvoyProcess
from warmroute.standalone.greeting import greeting
from warmroute.standalone.pickers import Pickers, Say
from warmroute.standalone.up_options import UpOptions, picker_settings
from warmroute.tasks import cancel
from warmroute.token_file import read_token

LOOK_INTERVAL = 5.0
"""Seconds between two looks at host names, port ranges and the endpoints file."""
MOST_ENVOY_THREADS = 8


class Up:
    """The running parts. ``options`` are settled; ``directory`` gets the files of both."""

    def __init__(self, engines: EngineList, options: UpOptions, directory: Path, say: Say) -> None:
        self._list = engines
        self._directory = directory
        self._options = options
        self._say = say
        self._engines: list[Engine] = []
        self._version = 0
        """Of the list that Envoy has."""
        self._problem = ""
        """Why the last look at the engines failed; empty if it did not."""
        self._picker_file = engines.file or directory / "endpoints.yaml"
        self._envoy_file = directory / "envoy-endpoints.yaml"
        environ = options.picker_environ(os.environ)
        settings = picker_settings(environ)  # its faults are told before anything starts
        self._key_file = settings.model_server_token_file
        self._token = read_token(self._key_file) if self._key_file else ""
        self._ports = options.picker_ports()
        flags = ["--host", "127.0.0.1", "--debug-host", options.debug_host]
        if options.access_log:
            flags.append("--decision-metadata=true")
        self.pickers = Pickers(self._picker_file, self._ports, directory, flags, environ)
        for name in _unused(self.pickers.children[0].argv, os.environ):
            say(f"{name} is not used: `warmroute up` sets it itself")
        config = options.proxy_config(self._ports, self._envoy_file, response_headers=settings.observe_responses)
        threads = min(os.cpu_count() or 1, MOST_ENVOY_THREADS)
        self.envoy = EnvoyProcess(bootstrap(config), directory, concurrency=threads, on_stderr=True)

    async def run(self, program: str) -> None:
        """Serve until SIGINT, SIGTERM or SIGHUP, then wait for the requests in flight; a second signal ends that wait.

        Raises ConfigurationError if the engines cannot be listed or a port is taken, ChildError if Envoy ends.
        """
        stop, hurry = end_events()
        async with AsyncExitStack() as parts:
            starting = asyncio.create_task(self._start(parts))
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                await cancel(starting)
                return
            try:
                await starting
            except OSError as error:  # a full disk
                raise ConfigurationError(f"cannot write to {self._directory}: {error.strerror or error}") from error
            probes = await probe_models([engine.target for engine in self._engines], self._token)
            self._say(greeting(self._options, self._ports, self._engines, probes, program, key_file=self._key_file))
            await self._serve(stopped)
            await self._drain(hurry)

    async def _start(self, parts: AsyncExitStack) -> None:
        self._use(await self._list.look())
        parts.push_async_callback(self.pickers.stop)
        parts.push_async_callback(self.envoy.stop)
        count = self._options.pickers
        self._say(f"starting {'the endpoint picker' if count == 1 else f'{count} endpoint pickers, NATS'} and Envoy")
        await self.pickers.start()
        await self.envoy.start()

    async def _serve(self, stopped: asyncio.Task[bool]) -> None:
        """Until the signal. Raises ChildError if Envoy ends."""
        watching = [
            asyncio.create_task(work()) for work in (self._keep_looking, lambda: self.pickers.keep_running(self._say))
        ]
        dead = asyncio.create_task(self.envoy.child.wait())
        try:
            await asyncio.wait((stopped, dead), return_when=asyncio.FIRST_COMPLETED)
            if dead.done():
                self.envoy.child.require_running()
        finally:
            await cancel(*watching, dead)

    async def _drain(self, hurry: asyncio.Event) -> None:
        try:
            in_flight = await self.envoy.in_flight()
        except ChildError:
            return
        if not in_flight:
            self._say("stopping")
            return
        requests = "1 request" if in_flight == 1 else f"{in_flight} requests"
        self._say(f"stopping: waiting for {requests} in flight (Ctrl-C again: at once)")
        waits = [asyncio.create_task(work) for work in (self.envoy.drain(self._options.drain_timeout), hurry.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        await cancel(*waits)

    # ---------------------------------------------------------------- engines

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            try:
                self._use(await self._list.look())
                self._problem = ""
            except (ConfigurationError, OSError) as error:
                self._stays(str(error))
            except Exception as error:  # a bug must not end the watch
                self._stays(repr(error))

    def _stays(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self._say(f"the list of engines stays as it is: {problem}")

    def _use(self, engines: list[Engine]) -> None:
        """Let the picker and Envoy know the engines, if they are others than before."""
        if self._version and engines == self._engines:
            return
        names = [engine.name for engine in engines]
        if self._version and names != [engine.name for engine in self._engines]:
            self._say(f"the engines are now: {', '.join(names) or 'none'}")
        self._engines = engines
        self._version += 1
        if self._list.file is None:
            _replace(self._picker_file, document(engines))
        tree = endpoint_discovery([engine.target for engine in engines], version=str(self._version))
        _replace(self._envoy_file, to_yaml(tree))


def up(engines: EngineList, options: UpOptions, say: Say, program: str) -> None:
    """Run until a signal. Raises ConfigurationError, ChildError."""
    with tempfile.TemporaryDirectory(prefix="warmroute-up-") as directory:
        asyncio.run(Up(engines, options.settled(), Path(directory), say).run(program))


def _unused(argv: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The variables of settings that the picker gets as flags, which win."""
    settings = flags_of_settings()
    flags = [argument.partition("=")[0] for argument in argv]
    return [name for flag in flags if flag in settings and (name := variable_of(settings[flag])) in environ]


def _replace(path: Path, content: str) -> None:
    """Write the file whole: readers see the old one or the new one. Envoy reads it again only after a rename."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(content, encoding="utf-8")
    fresh.replace(path)
