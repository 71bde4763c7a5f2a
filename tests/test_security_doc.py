"""docs/security.md: the tests that it names exist, its headers are those of the code, its example is a valid patch."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from warmroute.extproc.headers import CONTROL, OBJECTIVES

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = [line for line in TEXT.partition("## Inputs")[2].partition("## Who")[0].splitlines() if line.startswith("| ")][
    1:
]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))


def test_every_input_names_a_test() -> None:
    assert len(ROWS) > 20
    for row in ROWS:
        assert re.search(r"`tests/[\w/]+\.py::test_\w+` *\|$|`tests/[\w/]+\.py::test_\w+`", row), row


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[f"{file}::{name}" for file, name in NAMED])
def test_the_tests_that_hold_it_exist(file: str, name: str) -> None:
    assert name in functions_of(file)


def test_the_headers_are_those_that_are_removed() -> None:
    (table,) = re.findall(r"## Who may send which header\n.*?\n\|---.*?\n(.*?)\n\n", TEXT, re.DOTALL)
    first_cells = [row.split("|")[1] for row in table.splitlines()]
    assert {name for cell in first_cells for name in re.findall(r"`([\w-]+)`", cell)} == set(CONTROL)


def test_the_example_removes_all_but_the_objective() -> None:
    (example,) = re.findall(r"```yaml\n(patches:.*?)```", TEXT, re.DOTALL)
    (patch,) = yaml.safe_load(yaml.safe_load(example)["patches"][0]["patch"])
    assert patch["value"] == [name for name in CONTROL if name not in OBJECTIVES]
