"""The compiled form: which modules it compiles. `make test-compiled` builds it and runs the unit tests against it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HOOK = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["mypyc"]


@pytest.mark.parametrize("pattern", [*HOOK["include"], *HOOK["exclude"]])
def test_each_pattern_names_something(pattern: str) -> None:
    assert list(ROOT.glob(pattern.removeprefix("/")))


def test_a_checkout_installs_the_source_form() -> None:
    assert HOOK["enable-by-default"] is False


def test_release_wheels_are_for_the_pythons_of_the_project() -> None:
    classifiers = PROJECT["project"]["classifiers"]
    pythons = [name.removeprefix("Programming Language :: Python :: ") for name in classifiers]
    versions = [python.replace(".", "") for python in pythons if python.startswith("3.")]
    assert PROJECT["tool"]["cibuildwheel"]["build"] == [f"cp{version}-*" for version in versions]
