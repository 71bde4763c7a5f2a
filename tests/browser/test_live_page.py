"""The live page in a real browser. Skipped where there is none: install Chromium, or name one by ``$CHROMIUM``."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import orjson
import pytest
import pytest_asyncio

from tests.browser.chromium import Chromium, chromium_path, until
from tests.factories import LOCAL, engine_state
from warmroute.picker import EndpointPicker
from warmroute.pool.endpoint import EndpointSpec
from warmroute.request.inference import InferenceRequest, PromptPart
from warmroute.settings import Settings

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(chromium_path() is None, reason="no browser: install Chromium, or name one by $CHROMIUM"),
]

HOSTILE = "<img src=x onerror=window.attacked=1>"
BIDI = "safe\u202eexe.live\u2066"


class Fleet:
    """A picker that serves its debug port only, over engines that are scraped and asked by hand."""

    def __init__(self, directory: Path, names: list[str]) -> None:
        file = directory / "endpoints.yaml"
        file.write_text("endpoints: []\n")
        settings = {**LOCAL, "endpoints_file": file, "routing_strategy": "PREFIX_CACHE", "debug_decisions": 500}
        self.picker = EndpointPicker(Settings(**settings), rng=random.Random(3))
        specs = [EndpointSpec("ns", name, f"10.0.{k // 250}.{k % 250}", 8000) for k, name in enumerate(names)]
        self.picker.pool.replace(specs, monotonic())
        self.serial = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.picker.debug_pages.port}/"

    def ask(self, count: int = 1, *, model: str = "qwen", words: int = 4000, request_id: str = "") -> None:
        for _ in range(count):
            self.serial += 1
            head, tail = b"shared " * words, b"question %d " % self.serial
            parts = (PromptPart(head, len(head)), PromptPart(tail, len(tail)))
            request = InferenceRequest(
                model=model, seed=b"m", parts=parts, prompt_bytes=sum(part.prompt_bytes for part in parts)
            )
            decision = self.picker.router.pick(request, monotonic(), request_id=request_id or f"request-{self.serial}")
            self.picker.metrics.routed(decision, model=model, body_bytes=request.prompt_bytes)  # type: ignore[arg-type]
            self.picker.metrics.picked(70e-6)

    def scrape(self, **figures: Any) -> None:
        for endpoint in list(self.picker.pool.endpoints.values()):
            now = monotonic()
            self.picker.pool.observed(endpoint, engine_state(now, **figures), now)


@asynccontextmanager
async def serving(directory: Path, names: list[str]) -> AsyncIterator[Fleet]:
    fleet = Fleet(directory, names)
    await fleet.picker.debug_pages.start()
    sampling = asyncio.create_task(fleet.picker.live.run())
    try:
        yield fleet
    finally:
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)
        await fleet.picker.debug_pages.stop()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Chromium]:
    async with Chromium() as chromium:
        yield chromium


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Chromium) -> AsyncIterator[Chromium]:
    """The browser; at the end the page must have made no complaint."""
    browser.problems.clear()
    yield browser
    assert browser.problems == []
    await browser.open("data:text/html,empty")


def names(count: int) -> list[str]:
    return [f"vllm-{k}" for k in range(count)]


def shows(text: str, selector: str = "body") -> str:
    """The JavaScript condition that the element shows the text."""
    return f"(document.querySelector({selector!r})?.innerText ?? '').includes({text!r})"


async def test_the_fleet_at_a_glance(page: Chromium, tmp_path: Path) -> None:
    async with serving(tmp_path, names(5)) as fleet:
        await page.open(fleet.url)
        fleet.scrape(running=3, waiting=1, kv_usage=0.4)
        fleet.ask(20)
        await page.until(shows("Serving", "#notices"))
        await page.until(shows("5 of 5", "#banner"))
        await page.until("document.querySelectorAll('#engines tbody tr').length === 5")
        await page.until(shows("random choice:", "#banner"))
        await page.until("document.querySelectorAll('#prefixes tbody tr').length >= 1")
        row = await page.text("#engines tbody tr")
        assert "vllm-0" in row
        assert "40 %" in row
        assert "live" in await page.text("#connection")
        assert "↻" not in await page.text("#engines tbody")
        for incarnation in ("first", "second"):
            fleet.picker.pool.replace(
                [EndpointSpec("ns", "vllm-0", "10.0.0.0", 8000, incarnation=incarnation)], monotonic()
            )
        await page.until(shows("↻ 1", "#engines tbody"))
        assert await page.evaluate("document.querySelectorAll('svg.cells .held').length") >= 1


async def test_decisions_have_a_sentence_and_on_a_click_their_costs(page: Chromium, tmp_path: Path) -> None:
    async with serving(tmp_path, names(3)) as fleet:
        fleet.ask(3)
        await page.open(fleet.url)
        await page.until("document.querySelectorAll('.decision').length === 3")
        assert "request-3" in await page.text(".decision")
        assert "tokens" in await page.text(".decision .sentence")
        await page.evaluate("document.querySelector('.decision button').click()")
        await page.until("document.querySelectorAll('.decision .candidate').length === 3")
        assert await page.evaluate("document.querySelectorAll('.candidate.chosen').length") == 1
        assert await page.evaluate("document.querySelectorAll('.stack i').length") >= 1
        # It pauses, so that the row stays.
        fleet.ask(5)
        sample = fleet.picker.live._samples
        await until(lambda: _true(fleet.picker.live._samples > sample + 2), "two more samples")
        assert await page.evaluate("document.querySelectorAll('.decision').length") == 3
        await page.evaluate("document.querySelector('#decisions h2 button').click()")
        await page.until("document.querySelectorAll('.decision').length === 8")


async def test_decisions_are_filtered(page: Chromium, tmp_path: Path) -> None:
    async with serving(tmp_path, names(3)) as fleet:
        fleet.ask(3, model="other")
        fleet.ask(1, request_id="wanted")
        fleet.ask(30)
        await page.open(fleet.url)
        await page.until("document.querySelectorAll('.decision').length >= 10")
        await _type(page, "[name=request]", "wanted")
        await page.until("document.querySelectorAll('.decision').length === 1")
        assert "wanted" in await page.text(".decision")
        await _type(page, "[name=request]", "")
        await _type(page, "[name=model]", "other")
        await page.until("document.querySelectorAll('.decision').length === 3")
        await _type(page, "[name=endpoint]", "nobody")
        await page.until(shows("none of the remembered decisions matches", "#decisions"))


async def test_a_dry_run_says_where_a_request_would_go(page: Chromium, tmp_path: Path) -> None:
    async with serving(tmp_path, names(3)) as fleet:
        await page.open(fleet.url)
        body = orjson.dumps({"model": "qwen", "messages": [{"role": "user", "content": "hello " * 3000}]}).decode()
        await _type(page, "#dry-run textarea", body)
        await page.evaluate("document.querySelector('#dry-run form').requestSubmit()")
        await page.until("document.querySelectorAll('#dry-run .candidate').length === 3")
        assert "→ vllm-" in await page.text("#dry-run .answer")
        await _type(page, "#dry-run textarea", "{")
        await page.evaluate("document.querySelector('#dry-run form').requestSubmit()")
        await page.until(shows("Refused with 400", "#dry-run"))
        assert fleet.picker.decisions.newest_first() == []


async def test_names_chosen_by_others_are_text(page: Chromium, tmp_path: Path) -> None:
    async with serving(tmp_path, [HOSTILE, BIDI, "</script><script>window.attacked=1</script>"]) as fleet:
        fleet.ask(6, model=HOSTILE, request_id=f"{HOSTILE}{BIDI}")
        await page.open(fleet.url)
        await page.until("document.querySelectorAll('.decision').length === 6")
        await page.until("document.querySelectorAll('#engines tbody tr').length === 3")
        await page.evaluate("document.querySelector('.decision button').click()")
        await page.until("document.querySelectorAll('.candidate').length === 3")
        assert await page.evaluate("window.attacked") is None
        assert await page.evaluate("document.querySelectorAll('img, body script ~ script').length") == 0
        shown = await page.text("body")
        assert HOSTILE in shown
        assert "safe\\u202eexe.live\\u2066" in shown
        assert "\u202e" not in await page.evaluate("document.documentElement.outerHTML")


async def test_a_hundred_engines_have_a_square_each_and_the_worst_come_first(page: Chromium, tmp_path: Path) -> None:
    async with serving(tmp_path, names(100)) as fleet:
        endpoint = fleet.picker.pool.endpoints["ns/vllm-77"]
        fleet.picker.pool.unreachable(endpoint, monotonic())
        fleet.ask(50)
        await page.open(fleet.url)
        await page.until("document.querySelectorAll('#fleet .squares span').length === 100")
        await page.until(shows("1 endpoint unreachable", "#notices"))
        assert "vllm-77" in await page.text("#engines tbody tr")
        assert await page.evaluate("document.querySelectorAll('#fleet .squares .unreachable').length") == 1
        await _type(page, "#engines input", "vllm-42")
        await page.until("document.querySelectorAll('#engines tbody tr').length === 1")


@pytest.mark.parametrize("width", [380, 800, 1920])
async def test_the_page_fits_its_window(page: Chromium, tmp_path: Path, width: int) -> None:
    async with serving(tmp_path, names(100)) as fleet:
        fleet.ask(20)
        await page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        try:
            await page.open(fleet.url)
            await page.until("document.querySelectorAll('.decision').length > 5")
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
        finally:
            await page.call(
                "Emulation.setDeviceMetricsOverride", width=1600, height=1000, deviceScaleFactor=1, mobile=False
            )


async def test_light_and_dark_follow_the_system_until_the_button_is_pressed(page: Chromium, tmp_path: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    async with serving(tmp_path, names(2)) as fleet:
        await page.prefer_dark(False)
        await page.open(fleet.url)
        light = await page.evaluate(ground)
        await page.prefer_dark(True)
        dark = await page.evaluate(ground)
        assert light != dark
        await page.evaluate("document.querySelector('#theme').click()")
        assert await page.evaluate(ground) == light
        await page.open(fleet.url)
        assert await page.evaluate(ground) == light
        await page.prefer_dark(False)


async def test_a_picker_that_does_not_answer_is_told(page: Chromium, tmp_path: Path) -> None:
    async with serving(tmp_path, names(2)) as fleet:
        await page.open(fleet.url)
        await page.until(shows("live", "#connection"))
        url, port = fleet.url, fleet.picker.debug_pages.port
        await fleet.picker.debug_pages.stop()
        await page.until(shows("no data", "#connection"))
        assert url.endswith(f":{port}/")
    page.problems.clear()  # the browser logs each refused connection


async def _type(page: Chromium, selector: str, text: str) -> None:
    await page.evaluate(
        f"(() => {{ const field = document.querySelector({selector!r}); field.value = {text!r}; "
        "field.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


async def _true(value: bool) -> bool:
    return value
