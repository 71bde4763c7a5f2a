"""A child process, stopped by its own pid."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from warmroute.errors import WarmrouteError
from warmroute.standalone import with_parent

POLL_INTERVAL = 0.02
"""Seconds between two calls of a probe."""
PATIENCE = 60.0
"""Seconds that a child may take to become ready. One that ends by itself is noticed at once."""
GRACE = 20.0
"""Seconds from SIGTERM to SIGKILL."""


class ChildError(WarmrouteError):
    """A child process could not be started, ended by itself or did not become ready; the message has the end of its log."""


class Running(ABC):
    """Runs inside an ``async with`` block: started at its beginning, stopped at its end."""

    @abstractmethod
    async def start(self) -> None: ...

    @abstractmethod
    async def stop(self) -> None: ...

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


class Child(Running):
    """One subprocess. Its output goes to ``log``, which :meth:`tail` reads; without one to this process's stderr.

    It runs in a process group of its own, so that a Ctrl-C reaches only the parent, which then stops its children in order.
    On Linux it gets SIGTERM when the thread that started it ends, so also when the parent is killed. On other systems it
    goes on then.
    """

    def __init__(
        self, name: str, argv: Sequence[str], log: Path | None, *, environ: Mapping[str, str] | None = None
    ) -> None:
        """``environ``: its environment, if it is not this process's."""
        self.name = name
        self.argv = tuple(argv)
        self.log = log
        self._environ = environ
        self._process: asyncio.subprocess.Process | None = None

    @property
    def started(self) -> bool:
        """It was started; it may have ended."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Raises ChildError before the start."""
        return self._started.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._started.returncode

    async def start(self) -> None:
        """Start the process; raises ChildError if its program cannot be run."""
        output = sys.stderr.fileno() if self.log is None else self.log.open("ab")
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environ,
                process_group=0,
            )
        except OSError as error:
            raise ChildError(f"{self.name} cannot be started: {error}") from error
        finally:
            if not isinstance(output, int):
                output.close()

    async def wait(self) -> int:
        """Wait until it ends. Returns its status."""
        return await self._started.wait()

    async def stop(self, grace: float = GRACE) -> None:
        """SIGTERM, and SIGKILL after ``grace`` seconds. Nothing happens if it was not started or has ended."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(grace):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def until(self, probe: Callable[[], Awaitable[bool]], what: str, patience: float = PATIENCE) -> None:
        """Call ``probe`` until it returns True.

        Raises ChildError if the process ends before that, or after ``patience`` seconds; ``what`` completes the sentence
        "it was not ...".
        """
        try:
            async with asyncio.timeout(patience):
                while True:
                    self.require_running()
                    if await probe():
                        return
                    await asyncio.sleep(POLL_INTERVAL)
        except TimeoutError:
            raise self.failure(f"was not {what} after {patience:g} s") from None

    def require_running(self) -> None:
        """Raise ChildError, with the end of the log, if the process has ended."""
        if self.returncode is not None:
            raise self.failure(f"ended with status {self.returncode}")

    def failure(self, what: str) -> ChildError:
        """The error that says ``what`` happened to this child and shows the end of its log."""
        if self.log is None:
            return ChildError(f"{self.name} {what}; its output above may say why")
        return ChildError(f"{self.name} {what}; the end of its log {self.log}:\n{self.tail()}")

    def tail(self, lines: int = 20) -> str:
        """The last lines of its log; empty without one."""
        if self.log is None:
            return ""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 64 * 1024))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def _command(self) -> Sequence[str]:
        """What is run so that it ends with this process. Raises OSError if there is no such program."""
        if sys.platform != "linux":
            return self.argv
        path = None if self._environ is None else self._environ.get("PATH", os.defpath)
        if shutil.which(self.argv[0], path=path) is None:  # else Python would start, and only then not find it
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), self.argv[0])
        return sys.executable, "-I", "-S", with_parent.__file__, str(os.getpid()), *self.argv

    @property
    def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise ChildError(f"{self.name} has not been started")
        return self._process
