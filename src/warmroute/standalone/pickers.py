"""The pickers of `warmroute up`: one, or several that share their state through a NATS server of their own."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from warmroute.errors import WarmrouteError
from warmroute.observability.decision_log import STDOUT
from warmroute.settings.sources import variable_of
from warmroute.standalone.child import Child, ChildError
from warmroute.standalone.nats import NatsProcess
from warmroute.standalone.picker_process import PickerPorts, hangs, picker, start_picker
from warmroute.tasks import cancel

RESTART_DELAY = 1.0
"""Seconds before a process that ended is started again."""
ASK_INTERVAL = 1.0
"""Seconds between two questions whether a picker still answers."""
ASK_SECONDS = 2.0
"""Seconds without an answer after which a picker is said to hang."""

DECISION_LOG = variable_of("decision_log")

Say = Callable[[str], None]
"""Prints a line for the user."""


class Pickers:
    """A picker for each of ``ports``, over one endpoints file. ``directory`` gets NATS's files and the key."""

    def __init__(
        self,
        endpoints_file: Path,
        ports: Sequence[PickerPorts],
        directory: Path,
        flags: Sequence[str],
        environ: Mapping[str, str],
    ) -> None:
        """Raises ConfigurationError if there are several pickers and no NATS server is installed."""
        self._ports = tuple(ports)
        self._key_file = directory / "shared-state.key"
        self._nats = NatsProcess(directory) if len(ports) > 1 else None
        shared: tuple[str, ...] = ()
        if self._nats is not None:
            shared = ("--shared-state", self._nats.url, "--shared-state-key-path", str(self._key_file))
        self.children = tuple(
            picker(
                endpoints_file,
                each,
                None,
                (*flags, *shared),
                environ=_with_own_log(environ, number),
                name="the picker" if len(ports) == 1 else f"picker {number}",
            )
            for number, each in enumerate(self._ports, 1)
        )

    async def start(self) -> None:
        """Start them and wait until all are ready. Raises ConfigurationError, ChildError."""
        if self._nats is not None:
            self._key_file.touch(mode=0o600)
            self._key_file.write_text(secrets.token_hex(32))
            await self._nats.start()
        await asyncio.gather(*(start_picker(*each) for each in zip(self.children, self._ports, strict=True)))

    async def stop(self) -> None:
        """Stop them; safe before :meth:`start` and a second time."""
        await asyncio.gather(*(child.stop() for child in self.children))
        if self._nats is not None:
            await self._nats.stop()

    async def keep_running(self, say: Say) -> None:
        """Start each again whenever it ends, until cancelled."""
        work = [self._keep_picking(child, ports, say) for child, ports in zip(self.children, self._ports, strict=True)]
        if self._nats is not None:
            work.append(self._keep_sharing(self._nats, say))
        await asyncio.gather(*work)

    async def _keep_picking(self, child: Child, ports: PickerPorts, say: Say) -> None:
        meanwhile = "Envoy balances by least requests" if len(self.children) == 1 else "the others pick"
        while True:
            asking = asyncio.create_task(_tell_silence(child, ports, meanwhile, say))
            try:
                status = await child.wait()
            finally:
                await cancel(asking)
            say(f"{child.name} ended with status {status}; {meanwhile} until it is back")
            await asyncio.sleep(RESTART_DELAY)
            try:
                await start_picker(child, ports)
                say(f"{child.name} is back")
            except ChildError as error:
                say(str(error))

    async def _keep_sharing(self, nats: NatsProcess, say: Say) -> None:
        while True:
            status = await nats.child.wait()
            say(f"NATS ended with status {status}; the pickers go on with what they know until it is back")
            await asyncio.sleep(RESTART_DELAY)
            try:
                await nats.start()
                say("NATS is back")
            except WarmrouteError as error:
                say(str(error))


async def _tell_silence(child: Child, ports: PickerPorts, meanwhile: str, say: Say) -> None:
    """Say when the running picker does not answer, and when it does again, until cancelled."""
    silent = False
    while True:
        await asyncio.sleep(ASK_INTERVAL)
        before, silent = silent, await hangs(ports, ASK_SECONDS)
        if silent != before:
            say(f"{child.name} " + (f"does not answer; {meanwhile} until it does" if silent else "answers again"))


def _with_own_log(environ: Mapping[str, str], number: int) -> Mapping[str, str]:
    """The environment of the picker of that number: from the second one on, a decision log's file has the number in its
    name, since each picker rotates its own."""
    target = environ.get(DECISION_LOG, STDOUT)
    if number == 1 or not target or target == STDOUT:
        return environ
    return {**environ, DECISION_LOG: f"{target}-{number}"}
