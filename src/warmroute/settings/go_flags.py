"""Flags as Go programs take them, so that manifests of other endpoint pickers start this one unchanged."""

from __future__ import annotations

import re
from collections.abc import Sequence

from warmroute.errors import ConfigurationError
from warmroute.settings.settings import RETIRED, Settings, extra_of

IGNORED_FLAGS = frozenset(
    (
        "config-file",
        "config-text",
        "enable-cert-reload",
        "enable-pprof",
        "health-checking",
        "metrics-endpoint-auth",
        "refresh-prometheus-metrics-interval",
        "zap-devel",
        "zap-log-level",
        "zap-stacktrace-level",
        "zap-time-encoding",
    )
)
"""Flags of other pickers without a counterpart here: accepted with a warning."""
RETIRED_FLAGS = frozenset(name.replace("_", "-") for name in RETIRED)
"""Flags of earlier versions: accepted with a warning."""
FIXED_FLAGS = {
    "destination-endpoint-hint-key": "x-gateway-destination-endpoint",
    "destination-endpoint-hint-metadata-namespace": "envoy.lb",
}
"""Flags of other pickers that are constants here: accepted with this value only."""

_FLAG = re.compile(r"--?(?P<name>[A-Za-z][\w-]*)(?:=(?P<value>.*))?", re.DOTALL)
_DEBUG_VERBOSITY = 4
"""``-v`` from which Go pickers log at debug level."""


def translated(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """``arguments`` in the form ``--name value``, and warnings about flags that are ignored.

    Understands ``--name=value``, ``-name value``, ``-camelCase``, a bare ``--bool`` and ``-v 4``. Raises
    ConfigurationError for a fixed flag with another value.
    """
    booleans = {name.replace("_", "-") for name, field in Settings.model_fields.items() if field.annotation is bool}
    names = _names_by_spelling()
    result: list[str] = []
    warnings: list[str] = []
    rest = list(reversed(arguments))
    while rest:
        argument = rest.pop()
        match = _FLAG.fullmatch(argument)
        if match is None or argument in {"-h", "--help"}:
            result.append(argument)
            continue
        name = names.get(_normal(match["name"]), match["name"].replace("_", "-"))
        value = match["value"]
        if value is None and name in booleans:
            value = rest.pop() if rest and rest[-1].lower() in {"true", "false"} else "true"
        elif value is None and rest and not rest[-1].startswith("-"):
            value = rest.pop()
        if name in IGNORED_FLAGS:
            warnings.append(f"--{name} has no meaning here and is ignored")
        elif name in RETIRED_FLAGS:
            warnings.append(f"--{name} has no meaning any more and is ignored")
        else:
            result += _counterpart(name, value)
    return result, warnings


def _names_by_spelling() -> dict[str, str]:
    """Flags by every spelling that is accepted for them."""
    names = {_normal(name): name for name in (*IGNORED_FLAGS, *RETIRED_FLAGS, *FIXED_FLAGS, "zap-encoder")}
    for name in Settings.model_fields:
        for spelling in (name, *extra_of(name)["upstream"]):
            names[_normal(spelling)] = name.replace("_", "-")
    return names


def _counterpart(name: str, value: str | None) -> list[str]:
    """The arguments that stand for one flag that is not ignored."""
    if name == "v" and value is not None and value.isdecimal():
        return ["--log-level", "debug" if len(value) > 2 or int(value) >= _DEBUG_VERBOSITY else "info"]
    if name == "zap-encoder" and value in {"json", "console"}:
        return ["--log-format", value]
    if name in FIXED_FLAGS:
        if value != FIXED_FLAGS[name]:
            raise ConfigurationError(f"--{name} can only be {FIXED_FLAGS[name]}")
        return []
    return [f"--{name}"] if value is None else [f"--{name}", value]


def _normal(name: str) -> str:
    """One form for camelCase, kebab-case and snake_case."""
    return name.replace("-", "").replace("_", "").lower()
