"""Objects that tests of several rooms need, with the defaults of the settings."""

from __future__ import annotations

from typing import Any

from warmroute import picker
from warmroute.routing.router import RoutingConstants
from warmroute.settings import Settings


def routing_constants(**settings: Any) -> RoutingConstants:
    """The router's constants as ``settings`` give them, by their names; strategy PREFIX_CACHE unless they name another."""
    return picker.routing_constants(Settings(**{"routing_strategy": "PREFIX_CACHE", **settings}))
