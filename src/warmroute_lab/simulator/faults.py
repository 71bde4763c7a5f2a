"""Faults that a simulated engine shows on purpose."""

from __future__ import annotations

from dataclasses import dataclass

from warmroute.errors import ConfigurationError


@dataclass(slots=True)
class Faults:
    """Shares of the generation requests that go wrong, each 0 to 1. They may change while the engine serves."""

    fail_rate: float = 0.0
    """Answered with HTTP 500."""
    stall_rate: float = 0.0
    """Never answered; the connection stays open."""
    reset_rate: float = 0.0
    """The connection is reset."""

    def __post_init__(self) -> None:
        """Raise ConfigurationError if a share is not a number from 0 to 1."""
        for name in ("fail_rate", "stall_rate", "reset_rate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ConfigurationError(f"{name} must be a number from 0 to 1 (given: {value!r})")
