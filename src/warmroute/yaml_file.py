"""YAML from a file: bounded before it is read and while it is parsed; every fault names its line."""

from __future__ import annotations

import reprlib
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from warmroute.errors import ConfigurationError

LARGEST_FILE = 8 << 20
"""Bytes of a file. Ten thousand endpoints take about 1 MB."""
DEEPEST_NODE = 32
"""Levels of nesting; the endpoints file needs six."""
MOST_NODES = 500_000
"""Values, keys and collections of a document, counting an alias as a copy of what it stands for."""
LONGEST_SCALAR = 4096
"""Characters of one key or value."""
MOST_PROBLEMS = 10
"""Problems that one message names."""


def read(path: Path, what: str) -> bytes:
    """The content of a regular file of at most :data:`LARGEST_FILE` bytes; errors call it ``what``.

    Raises ConfigurationError. A pipe or a device could block the reader or never end.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigurationError(f"cannot read the {what} {path}: not a regular file")
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read the {what} {path}: {error.strerror}") from error
    if len(content) > LARGEST_FILE:
        raise ConfigurationError(f"cannot read the {what} {path}: larger than {LARGEST_FILE >> 20} MiB")
    return content


class Document:
    """One YAML document: ``content`` as plain data and ``tree``, its nodes with their lines."""

    def __init__(self, text: str) -> None:
        """Parse ``text``. Raises ConfigurationError that names the line."""
        loader = None
        try:
            if text.lstrip().startswith("{"):
                text = text.replace("\t", " ")  # JSON allows tabs between tokens, YAML does not; no string has one
            loader = _BoundedLoader(text)
            self.tree: yaml.Node | None = loader.get_single_node()
            self.content: Any = loader.construct_document(self.tree) if self.tree is not None else None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
            raise ConfigurationError(f"{where}{error.problem}") from error
        except yaml.YAMLError as error:  # a character that YAML does not allow
            raise ConfigurationError(f"not YAML: {' '.join(str(error).split())}") from error
        finally:
            if loader is not None:
                loader.dispose()


def decoded(content: bytes) -> str:
    """The text of a file in UTF-8, with or without a byte order mark. Raises ConfigurationError."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"not UTF-8: byte {error.start}: {error.reason}") from error


def summary(problems: Sequence[str]) -> str:
    """The first problems in one line, and the number of the others."""
    more = len(problems) - MOST_PROBLEMS
    return "; ".join(problems[:MOST_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")


def shown(value: object) -> str:
    """``value`` as an error message quotes it: short, whatever its size."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python converts
        return f"a number of more than {LONGEST_SCALAR} digits"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SHORT.maxlevel = 2


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader with limits.

    Without them ``[[[[...`` ends in a RecursionError, a few aliases of aliases stand for gigabytes, and the conversions
    of odd scalars raise whatever Python raises.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._nodes = 0
        self._sizes: dict[str, int] = {}
        """Nodes below each anchor, aliases expanded."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self.anchors and event.anchor not in self._sizes:
                raise yaml.MarkedYAMLError(problem=f"{shown(event.anchor)} contains itself", problem_mark=mark)
            before, size = self._nodes, self._sizes.get(event.anchor or "", 0)
            node = super().compose_node(parent, index)
            self._count(before + size, mark)
            return node
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_SCALAR:
            raise yaml.MarkedYAMLError(problem=f"more than {LONGEST_SCALAR} characters in one value", problem_mark=mark)
        if self._depth == DEEPEST_NODE:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {DEEPEST_NODE} levels", problem_mark=mark)
        before = self._nodes
        self._count(before + 1, mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor is not None:
            self._sizes[event.anchor] = self._nodes - before
        return node

    def _count(self, nodes: int, mark: yaml.Mark) -> None:
        if nodes > MOST_NODES:
            raise yaml.MarkedYAMLError(problem=f"more than {MOST_NODES} values", problem_mark=mark)
        self._nodes = nodes

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"repeated key {shown(key.value)}", problem_mark=key.start_mark)
                seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # `!!int x`, a date of month 99, an integer of 5,000 digits
            raise yaml.MarkedYAMLError(problem=f"unusable value: {error}", problem_mark=node.start_mark) from error
