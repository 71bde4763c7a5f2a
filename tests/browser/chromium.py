"""A headless Chromium, driven over the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from warmroute.standalone.child import Child

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60.0
"""Seconds that anything may take on a loaded machine."""


def chromium_path() -> str | None:
    """The browser: ``$CHROMIUM``, or the first of :data:`NAMES` in ``$PATH``; None if there is none."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class PageScriptError(Exception):
    """JavaScript in the page raised an error."""


class Chromium:
    """One browser process with one page. An async context manager."""

    def __init__(self, *, width: int = 1600, height: int = 1000, dark: bool = False) -> None:
        self._size = width, height
        self._dark = dark
        self._directory = Path(tempfile.mkdtemp(prefix="warmroute-chromium-"))
        path = chromium_path()
        assert path is not None
        argv = [
            *(path, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={self._directory}"),
            *("--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
            *("--disable-background-networking", "--disable-component-update", "--force-color-profile=srgb"),
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            "about:blank",
        ]
        self._child = Child("chromium", argv, self._directory / "log")
        self._http: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._reader: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)
        self.problems: list[str] = []
        """What the page's console and its security policy complained about."""

    async def __aenter__(self) -> Self:
        await self._child.start()
        port_file = self._directory / "DevToolsActivePort"

        async def listening() -> bool:
            return port_file.exists() and port_file.read_text().count("\n") >= 1

        await self._child.until(listening, "listening", PATIENCE)
        port = port_file.read_text().splitlines()[0]
        self._http = aiohttp.ClientSession(f"http://127.0.0.1:{port}")
        async with self._http.put("/json/new?about:blank") as answer:
            url = (await answer.json(content_type=None))["webSocketDebuggerUrl"]
        self._socket = await self._http.ws_connect(url, max_msg_size=0)
        self._reader = asyncio.create_task(self._read())
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        width, height = self._size
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        await self.prefer_dark(self._dark)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._child.stop()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._http is not None:
            await self._http.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _read(self) -> None:
        assert self._socket is not None
        async for message in self._socket:
            event = message.json()
            if "id" in event:
                self._answers.pop(event["id"]).set_result(event)
            elif event["method"] == "Runtime.exceptionThrown":
                self.problems.append(event["params"]["exceptionDetails"].get("exception", {}).get("description", "?"))
            elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                self.problems.append(event["params"]["entry"]["text"])

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol."""
        assert self._socket is not None
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(PATIENCE):
            event = await answer
        if "error" in event:
            raise RuntimeError(f"{method}: {event['error']}")
        result: dict[str, Any] = event["result"]
        return result

    async def open(self, url: str) -> None:
        """Load a page."""
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def prefer_dark(self, dark: bool) -> None:
        """What the page sees as the system's colour scheme."""
        scheme = "dark" if dark else "light"
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited. Raises PageScriptError."""
        result = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise PageScriptError(result["exceptionDetails"].get("exception", {}).get("description", script))
        return result["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until a JavaScript expression is true. Raises TimeoutError that names it."""

        async def holds() -> bool:
            return bool(await self.evaluate(condition))

        await until(holds, condition)

    async def text(self, selector: str) -> str:
        """The text that is shown in an element."""
        return str(await self.evaluate(f"document.querySelector({selector!r}).innerText"))

    async def screenshot(self) -> bytes:
        """The visible part of the page as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait until ``condition`` holds. Raises TimeoutError that names ``what``."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not await condition():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise TimeoutError(f"not so after {PATIENCE:g} s: {what}") from None
