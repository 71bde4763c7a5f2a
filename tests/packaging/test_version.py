"""The version is written once, in ``warmroute/__init__.py``; image tags and the change log follow it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from warmroute import __version__

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "Dockerfile",
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(path for path in (ROOT / "deploy").rglob("*.yaml") if "crds" not in path.parts),
]


@pytest.mark.integration
@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_the_command_prints_it(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "warmroute", *arguments]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert printed.stdout.split()[0] == __version__


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_image_tags_are_this_version(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    tags = re.findall(r"\bwarmroute(?:-lab)?:(\d[\w.]*)", text) + re.findall(r"newTag: [\"']?(\d[\w.]*)", text)
    assert set(tags) <= {__version__}


def test_the_change_log_has_it_or_what_will_become_it() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert __version__ in headings


def test_both_distributions_have_the_licence() -> None:
    assert (ROOT / "lab/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
