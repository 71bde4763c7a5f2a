"""Durations as Go programs write them."""

from __future__ import annotations

import re

UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
"""Seconds per unit: those of Go's ``time.ParseDuration`` (https://pkg.go.dev/time#ParseDuration)."""

_STEP = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_DURATION = re.compile(f"(?:{_STEP.pattern})+")


def seconds(value: object) -> object:
    """A duration with units ("500ms", "1m30s") as seconds. Any other value is returned unchanged."""
    if not isinstance(value, str) or _DURATION.fullmatch(value.strip()) is None:
        return value
    return sum(float(number) * UNITS[unit] for number, unit in _STEP.findall(value))
