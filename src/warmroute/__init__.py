"""Warmroute: an endpoint picker for LLM inference behind Envoy.

The names below are the public API: authors of strategies and those who embed the picker import them from here. Everything
else may change in any release. A name is imported when it is first used, so that ``import warmroute`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warmroute.errors import ConfigurationError, WarmrouteError
    from warmroute.picker import EndpointPicker
    from warmroute.request.inference import InferenceRequest
    from warmroute.routing.strategies import Candidate
    from warmroute.settings import Settings

__version__ = "0.1.0"
"""The version of both distributions and of the image; written here only."""

__all__ = [
    "Candidate",
    "ConfigurationError",
    "EndpointPicker",
    "InferenceRequest",
    "Settings",
    "WarmrouteError",
    "__version__",
]

_MODULES = {
    "Candidate": "warmroute.routing.strategies",
    "ConfigurationError": "warmroute.errors",
    "EndpointPicker": "warmroute.picker",
    "InferenceRequest": "warmroute.request.inference",
    "Settings": "warmroute.settings",
    "WarmrouteError": "warmroute.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
