"""Objects of the Kubernetes API as plain JSON, and the paths of their collections. WITHOUT IO."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

Object = dict[str, Any]
"""A Kubernetes object or list, as JSON has it."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object in one namespace. ``group`` is empty for the core API."""

    group: str
    version: str
    plural: str
    namespace: str

    @property
    def root(self) -> str:
        """Path of the API group's version."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    @property
    def path(self) -> str:
        """Path of the collection."""
        return f"{self.root}/namespaces/{self.namespace}/{self.plural}"

    def __str__(self) -> str:
        """The name that ``kubectl`` gives it: ``plural.group``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


def text(value: object) -> str:
    """The value of a text field. Raises TypeError if it is something else."""
    if not isinstance(value, str):
        raise TypeError(f"not text but {type(value).__name__}")
    return value


def texts(value: Object | None) -> dict[str, str]:
    """The value of a map of texts, such as labels; none is an empty one. Raises TypeError or AttributeError."""
    return {text(key): text(item) for key, item in value.items()} if value is not None else {}


def port_number(value: object) -> int:
    """The value of a field with a port. Raises TypeError or ValueError if it is none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"not a port number but {type(value).__name__}")
    if not 1 <= value <= 65535:
        raise ValueError(f"a port is 1 to 65535, not {value}")
    return value


def timestamp(at: datetime) -> str:
    """A time in UTC as the API's ``Time`` has it: RFC 3339 with whole seconds."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
