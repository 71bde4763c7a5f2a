"""``python -m tests.browser.screenshots [DIRECTORY]``: pictures of the live page on simulated traffic, in docs/images."""

from __future__ import annotations

import argparse
import asyncio
import io
import logging
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser.chromium import Chromium, chromium_path
from tests.browser.fleet import Load, Scene, running

IMAGES = Path(__file__).parents[2] / "docs/images"
SCENES = (
    Scene(5, Load(3.5, assistants=3, documents=8, answer_tokens=200), dead=0, time_scale=0.3, kv_blocks=7000),
    Scene(100, Load(7.0, assistants=6, documents=30, answer_tokens=80), dead=2, time_scale=0.04, kv_blocks=5000),
)


async def take(scene: Scene, seconds: float, directory: Path) -> None:
    """Run the fleet and the load for ``seconds``; then take the pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        async with running(scene, Path(scratch)) as url:
            print(f"{scene.engines} engines: {url}", flush=True)
            await asyncio.sleep(seconds)
            async with Chromium(width=1600, height=1040) as page:
                await page.open(url)
                await page.until("document.querySelectorAll('.decision').length > 10")
                for dark in (False, True):
                    await page.prefer_dark(dark)
                    await asyncio.sleep(1.5)
                    path = directory / f"live-{scene.engines}-{'dark' if dark else 'light'}.png"
                    path.write_bytes(smaller(await page.screenshot()))
                    print(path)
                if page.problems:
                    raise SystemExit(f"the page has problems: {page.problems}")


def smaller(png: bytes) -> bytes:
    """The picture with a palette of 128 colours: a third of the size."""
    output = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.save(output, "PNG", optimize=True)
    return output.getvalue()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", default=IMAGES)
    parser.add_argument("--seconds", type=float, default=150.0, help="of traffic before the pictures")
    parser.add_argument("--engines", type=int, choices=[scene.engines for scene in SCENES], action="append")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if chromium_path() is None:
        raise SystemExit("no browser: install Chromium (Debian: chromium) or say where it is by $CHROMIUM")
    for scene in SCENES:
        if not options.engines or scene.engines in options.engines:
            await take(scene, options.seconds, options.directory)


if __name__ == "__main__":
    asyncio.run(main())
