"""The annotations of an InferencePool that change settings while the server runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from warmroute.errors import ConfigurationError
from warmroute.settings import HOT_SETTINGS, Settings, extra_of
from warmroute.settings_sources import ENV_PREFIX, changed

logger = logging.getLogger(__name__)

NAMED = {
    "inference.networking.x-k8s.io/routing-strategy": "routing_strategy",
    "inference.networking.x-k8s.io/model-server-runtime": "model_server_runtime",
}
"""Annotations with a key of their own, and the setting that each changes."""
ENVIRONMENT = "inference-epp-env.networking.x-k8s.io/"
"""Before the name of any setting that can change at run time, in any spelling: COST_WAITING, cost-waiting."""


def _normal(name: str) -> str:
    return name.lower().replace("-", "_").removeprefix(ENV_PREFIX.lower())


def _spellings() -> dict[str, str]:
    spellings = {}
    for name in HOT_SETTINGS:
        for spelling in (name, *extra_of(name)["upstream"]):
            spellings[_normal(spelling)] = name
    return spellings


SPELLINGS = _spellings()
"""Hot settings by every name that they may have in an annotation."""


class AnnotatedSettings:
    """Settings of the command line, changed by what a pool's annotations say.

    ``apply`` puts settings into force and raises ConfigurationError, with nothing changed, if they cannot be used.
    ``refuse`` hears of each annotation that cannot be used, with the reason, once until it changes.
    """

    def __init__(
        self, settings: Settings, apply: Callable[[Settings], None], refuse: Callable[[str, str], None]
    ) -> None:
        self._flags = settings
        self._settings = settings
        self._apply = apply
        self._refuse = refuse
        self._given: dict[str, tuple[str, str]] = {}
        self._unknown: set[str] = set()

    def update(self, annotations: Mapping[str, str]) -> int:
        """Follow the annotations as they are now; how many settings changed.

        Each stands alone: one that cannot be used leaves its setting at the last value that could, and one that is gone
        gives it back the value of its flag.
        """
        given = self._read(annotations)
        changes = 0
        for name in sorted({*given, *self._given}):
            if given.get(name) == self._given.get(name):
                continue
            key, value = given.get(name, ("", getattr(self._flags, name)))
            try:
                settings = changed(self._settings, {name: value})
                self._apply(settings)
            except ConfigurationError as error:
                self._refuse(key, str(error))
            else:
                self._settings = settings
                changes += 1
                logger.info(
                    "setting changed by an annotation" if key else "setting restored: its annotation is gone",
                    extra={"fields": {"setting": name, "value": getattr(settings, name)}},
                )
        self._given = given
        return changes

    def _read(self, annotations: Mapping[str, str]) -> dict[str, tuple[str, str]]:
        """Annotation and value by the setting that they are for."""
        given: dict[str, tuple[str, str]] = {}
        unknown = set()
        for key in sorted(annotations):
            if key.startswith(ENVIRONMENT):
                name = SPELLINGS.get(_normal(key.removeprefix(ENVIRONMENT)))
                if name is None:
                    unknown.add(key)
                else:
                    given[name] = (key, annotations[key])
        given |= {name: (key, annotations[key]) for key, name in NAMED.items() if key in annotations}
        for key in sorted(unknown - self._unknown):
            self._refuse(key, "there is no such setting that can change while the server runs")
        self._unknown = unknown
        return given
