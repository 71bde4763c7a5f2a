"""The tree of errors: its picture in the docstring of `errors.py` is the code's."""

from __future__ import annotations

import ast
from pathlib import Path

import warmroute
from warmroute import errors

ROOT = "WarmrouteError"


def bases_in_the_code() -> dict[str, tuple[str, str]]:
    """Class to base and module, of all errors of the product."""
    folder = Path(warmroute.__file__).parent
    found: dict[str, tuple[str, str]] = {}
    for file in folder.rglob("*.py"):
        module = ".".join(file.relative_to(folder).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and node.bases and isinstance(base := node.bases[0], ast.Name):
                found[node.name] = (base.id, module)
    children = {ROOT}
    while added := {name for name, (base, _) in found.items() if base in children} - children:
        children |= added
    return {name: found[name] for name in children - {ROOT}}


def bases_in_the_docstring() -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    above: list[str] = []
    _, _, tree = (errors.__doc__ or "").partition("::\n\n")
    for line in tree.partition("\n\n")[0].splitlines():
        name, module, *_ = [*line.split(), "errors"]
        del above[(len(line) - len(line.lstrip())) // 4 - 1 :]
        if above:
            found[name] = (above[-1], module)
        above.append(name)
    return found


def test_the_tree_in_the_docstring_is_that_of_the_code() -> None:
    assert bases_in_the_docstring() == bases_in_the_code()
    assert len(bases_in_the_code()) > 10
