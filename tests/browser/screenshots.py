"""``python -m tests.browser.screenshots [DIRECTORY]``: pictures of the live page on simulated traffic, in docs/images."""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
from pathlib import Path

from tests.browser.chromium import Chromium, chromium_path
from tests.browser.fleet import Load, running_fleet

IMAGES = Path(__file__).parents[2] / "docs/images"
FLEETS = {
    5: (Load(3.0, assistants=3, documents=8, answer_tokens=150), 0, 1.0),
    100: (Load(14.0, assistants=6, documents=30, answer_tokens=60), 2, 0.15),
}
"""By number of engines: the load, the engines that do not listen, and the speed of the others relative to real ones."""


async def take(engines: int, seconds: float, directory: Path) -> None:
    """Run the fleet and the load for ``seconds``; then take the pictures."""
    load, dead, time_scale = FLEETS[engines]
    with tempfile.TemporaryDirectory() as scratch:
        async with running_fleet(Path(scratch), load, engines=engines, dead=dead, time_scale=time_scale) as url:
            print(f"{engines} engines: {url}", flush=True)
            await asyncio.sleep(seconds)
            async with Chromium(width=1600, height=1040) as page:
                await page.open(url)
                await page.until("document.querySelectorAll('.decision').length > 10")
                for dark in (False, True):
                    await page.prefer_dark(dark)
                    await asyncio.sleep(1.5)
                    path = directory / f"live-{engines}-{'dark' if dark else 'light'}.png"
                    path.write_bytes(await page.screenshot())
                    print(path)
                if page.problems:
                    raise SystemExit(f"the page has problems: {page.problems}")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", default=IMAGES)
    parser.add_argument("--seconds", type=float, default=150.0, help="of traffic before the pictures")
    parser.add_argument("--engines", type=int, choices=FLEETS, action="append")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if chromium_path() is None:
        raise SystemExit("no browser: install Chromium (Debian: chromium) or say where it is by $CHROMIUM")
    for engines in options.engines or FLEETS:
        await take(engines, options.seconds, options.directory)


if __name__ == "__main__":
    asyncio.run(main())
