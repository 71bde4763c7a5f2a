"""The annotations of an InferencePool that change settings while the server runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from difflib import get_close_matches

from warmroute.errors import ConfigurationError
from warmroute.settings import ENV_PREFIX, HOT_SETTINGS, Settings, changed, extra_of

logger = logging.getLogger(__name__)

NAMED = {
    "inference.networking.x-k8s.io/routing-strategy": "routing_strategy",
    "inference.networking.x-k8s.io/model-server-runtime": "model_server_runtime",
}
"""The two settings that have their own annotation, by annotation."""
ENVIRONMENT = "inference-epp-env.networking.x-k8s.io/"
"""Prefix of annotations for any hot setting. The name may be spelled COST_WAITING or cost-waiting."""
CLOSE = 0.9
"""Similarity (0 to 1, see :func:`difflib.get_close_matches`) from which an annotation is taken for a mistyped one."""


def _normal(name: str) -> str:
    return name.lower().replace("-", "_").removeprefix(ENV_PREFIX.lower())


def _spellings() -> dict[str, str]:
    spellings = {}
    for name in HOT_SETTINGS:
        for spelling in (name, *extra_of(name)["upstream"]):
            spellings[_normal(spelling)] = name
    return spellings


def _meant(key: str) -> str | None:
    """The annotation that ``key`` is a misspelling of, for example one with the other API group or with capitals."""
    prefix, _, name = key.partition("/")
    if get_close_matches(f"{prefix.lower()}/", [ENVIRONMENT], cutoff=CLOSE):
        return ENVIRONMENT + name
    return next(iter(get_close_matches(key.lower(), NAMED, n=1, cutoff=CLOSE)), None)


SPELLINGS = _spellings()
"""Hot setting by each accepted spelling."""


class AnnotatedSettings:
    """The settings of the command line, overridden by a pool's annotations.

    ``apply`` puts settings into force; if they are invalid it changes nothing and raises ConfigurationError. ``refuse`` is
    called with the annotation and the reason once for each invalid value.
    """

    def __init__(
        self, settings: Settings, apply: Callable[[Settings], None], refuse: Callable[[str, str], None]
    ) -> None:
        self._flags = settings
        self._settings = settings
        self._apply = apply
        self._refuse = refuse
        self._given: dict[str, tuple[str, str]] = {}
        self._unknown: dict[str, str] = {}
        """Why an annotation means nothing, by annotation."""

    def update(self, annotations: Mapping[str, str]) -> int:
        """Apply the annotations; returns how many settings changed.

        Annotations are independent: an invalid one leaves its setting at the last valid value, a removed one restores the
        value of the flag.
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
        """Annotation and value by setting."""
        given: dict[str, tuple[str, str]] = {}
        unknown = {}
        for key in sorted(annotations):
            if key.startswith(ENVIRONMENT):
                name = SPELLINGS.get(_normal(key.removeprefix(ENVIRONMENT)))
                if name is None:
                    unknown[key] = "unknown setting, or one that cannot change while the server runs"
                else:
                    given[name] = (key, annotations[key])
            elif key not in NAMED and (meant := _meant(key)):
                unknown[key] = f"unknown annotation: did you mean {meant}?"
        given |= {name: (key, annotations[key]) for key, name in NAMED.items() if key in annotations}
        for key, reason in unknown.items():
            if key not in self._unknown:
                self._refuse(key, reason)
        self._unknown = unknown
        return given
