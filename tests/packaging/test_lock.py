"""The lock: hashes for everything, one version of a package in all files, and what the pyproject.toml files ask for."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCKS = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "requirements").glob("*.txt"))}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PRODUCT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LAB = tomllib.loads((ROOT / "lab/pyproject.toml").read_text(encoding="utf-8"))
GROUPS = PRODUCT["dependency-groups"]


def entries(lock: str) -> Iterator[tuple[Requirement, int]]:
    """Each pinned requirement with the number of its hashes."""
    for entry in re.split(r"\n(?=\S)", re.sub(r"^ *#.*\n", "", LOCKS[lock], flags=re.MULTILINE)):
        pin, *hashes = entry.replace("\\\n", "").split(" --hash=sha256:")
        yield Requirement(pin), len(hashes)


def pinned(lock: str, python: str) -> dict[str, Version]:
    """Version by package on Linux with that Python."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.5",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
    }
    return {
        canonicalize_name(pin.name): Version(next(iter(pin.specifier)).version)
        for pin, _ in entries(lock)
        if pin.marker is None or pin.marker.evaluate(environment)
    }


def wanted(project: dict[str, dict[str, object]], *extras: str) -> list[str]:
    table = project["project"]
    optional = table.get("optional-dependencies", {})
    assert isinstance(optional, dict)
    assert isinstance(table["dependencies"], list)
    return [*table["dependencies"], *(requirement for extra in extras for requirement in optional[extra])]


CONTENTS = {
    "build": [*GROUPS["build"], *GROUPS["compile"]],
    "docs": GROUPS["docs"],
    "wheels": GROUPS["wheels"],
    "image": wanted(PRODUCT, "kubernetes"),
    "demo": [*wanted(PRODUCT, "standalone"), *wanted(LAB), *GROUPS["build"]],
    "dev": [*wanted(PRODUCT, *PRODUCT["project"]["optional-dependencies"]), *wanted(LAB, "plot"), *GROUPS["dev"]],
}


def test_there_are_no_other_locks() -> None:
    assert set(LOCKS) == set(CONTENTS)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", CONTENTS)
def test_a_lock_has_what_the_projects_ask_for(lock: str, python: str) -> None:
    """After a change of dependencies: `make lock`."""
    versions = pinned(lock, python)
    for text in CONTENTS[lock]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name != "warmroute" and (requirement.marker is None or requirement.marker.evaluate()):
            assert name in versions, f"{text} is not in requirements/{lock}.txt: run `make lock`"
            assert versions[name] in requirement.specifier, f"{text}, but {versions[name]} in requirements/{lock}.txt"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", CONTENTS)
def test_a_package_has_one_version_in_all_locks(lock: str, python: str) -> None:
    everything = pinned("dev", python)
    differing = {
        name: version for name, version in pinned(lock, python).items() if everything.get(name, version) != version
    }
    assert not differing


@pytest.mark.parametrize("lock", CONTENTS)
def test_everything_has_hashes_and_nothing_names_a_host(lock: str) -> None:
    assert all(hashes > 0 for _, hashes in entries(lock))
    assert "://" not in LOCKS[lock]
