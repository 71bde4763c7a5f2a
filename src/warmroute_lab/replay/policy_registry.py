"""Routing policies by name: the product's strategies and the baselines."""

from __future__ import annotations

import random
from collections.abc import Callable

from warmroute.errors import ConfigurationError
from warmroute.picker_options import routing_constants
from warmroute.routing import strategies
from warmroute.settings import Settings
from warmroute_lab.replay.baselines import BASELINES
from warmroute_lab.replay.policy import Policy, RouterPolicy

DEFAULT_STRATEGIES = ("PREFIX_CACHE", "LEAST_REQUEST", "ROUND_ROBIN")
ALL = "all"
"""PREFIX_CACHE and every baseline."""


def names(given: list[str]) -> list[str]:
    """The given names without duplicates and with ``all`` expanded; without names, :data:`DEFAULT_STRATEGIES`."""
    expanded = [name for each in given for name in (("PREFIX_CACHE", *BASELINES) if each == ALL else (each,))]
    return list(dict.fromkeys(expanded)) or list(DEFAULT_STRATEGIES)


def policy_factory(name: str, settings: Settings, *, shared: bool = False) -> Callable[[random.Random], Policy]:
    """A factory of policies of that name; the product's strategies use ``settings``, and share state if ``shared``.

    Raises ConfigurationError with the known names for an unknown one.
    """
    if name in BASELINES:
        return BASELINES[name]
    try:
        strategies.find(name, rng=random.Random(0))
    except ConfigurationError as error:
        if strategies.is_file(name):  # its own fault: no name was mistyped
            raise
        raise ConfigurationError(f"{error}; baselines: {', '.join(BASELINES)}") from error
    constants = routing_constants(settings.model_copy(update={"routing_strategy": name}))

    def make(rng: random.Random) -> Policy:
        return RouterPolicy(constants, settings, rng=rng, shared=shared)

    return make
