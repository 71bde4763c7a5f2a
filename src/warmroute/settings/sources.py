"""Where settings come from: flags, environment variables and a settings file, in this order of precedence."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from warmroute import yaml_file
from warmroute.errors import ConfigurationError
from warmroute.settings.settings import HOT_SETTINGS, RETIRED, Settings, extra_of, flag_of, without_passwords
from warmroute.yaml_file import shown, summary

logger = logging.getLogger(__name__)

ENV_PREFIX = "WARMROUTE_"
CLOSE = 0.8
"""Similarity (0 to 1, see :func:`difflib.get_close_matches`) from which an unknown name is taken for a mistyped one."""


def load(flags: Mapping[str, Any], *, environ: Mapping[str, str], settings_file: Path | None = None) -> Settings:
    """Merge the file, the environment and the flags; flags win over the environment, the environment over the file.

    Raises :class:`~warmroute.errors.ConfigurationError` that names the setting, where it came from and what is wrong.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    if settings_file is not None:
        for name, value in _read_file(settings_file).items():
            key = name if name in Settings.model_fields else shown(name)
            values[name], origin[name] = value, f"{settings_file}: {key}"
    for name in Settings.model_fields:
        upstream = [spelling for spelling in extra_of(name)["upstream"] if spelling.isupper()]
        for variable in (*upstream, variable_of(name)):
            if variable in environ:
                values[name], origin[name] = environ[variable], variable
    for name, value in flags.items():
        values[name], origin[name] = value, flag_of(name)
    return _validated(values, origin)


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """``settings`` with hot settings replaced. Raises ConfigurationError for other settings and for bad values."""
    for name in changes:
        if name not in HOT_SETTINGS:
            raise ConfigurationError(f"{name} cannot change while the server runs")
    return _validated({**settings.model_dump(), **changes}, {})


def variable_of(name: str) -> str:
    """The environment variable of the setting of that name."""
    return ENV_PREFIX + name.upper()


def mistyped_variables(environ: Mapping[str, str]) -> Iterator[str]:
    """A warning for each variable that looks like a mistyped name of a setting, or names a retired one.

    Other unknown variables with the prefix are left alone: Kubernetes sets WARMROUTE_SERVICE_HOST and its like for a
    Service of that name.
    """
    known = list(map(variable_of, Settings.model_fields))
    for variable in sorted(environ.keys() - known):
        if variable.removeprefix(ENV_PREFIX).lower() in RETIRED:
            yield f"the environment variable {variable} has no meaning any more and is ignored"
        elif variable.startswith(ENV_PREFIX):
            for name in get_close_matches(variable, known, n=1, cutoff=CLOSE):
                yield f"the environment variable {shown(variable)} is unknown and ignored: did you mean {name}?"


def _read_file(path: Path) -> dict[str, Any]:
    data = yaml_file.read(path, "settings file")
    try:
        content = yaml_file.Document(yaml_file.decoded(data)).content
    except ConfigurationError as error:
        raise ConfigurationError(f"the settings file {path}: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(f"the settings file {path} must be a mapping of names to values")
    values = {str(key).replace("-", "_"): value for key, value in content.items()}
    for name in RETIRED & values.keys():
        logger.warning("%s: %s has no meaning any more and is ignored", path, name)
        del values[name]
    return values


def _validated(values: Mapping[str, Any], origin: Mapping[str, str]) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            name = str(item["loc"][0]) if item["loc"] else ""
            if item["type"] == "extra_forbidden":
                problems.append(f"{origin.get(name, name)}: unknown setting{_suggestion(name)}")
            else:
                # As the user wrote it: pydantic's input may be converted already ("500%" is 5.0 there).
                given = values.get(name, item["input"])
                if name == "shared_state" and isinstance(given, str):
                    given = without_passwords(given)
                problems.append(
                    f"{origin.get(name, name)}: {item['msg'].removeprefix('Value error, ')} (given: {shown(given)})"
                )
        raise ConfigurationError(summary(problems)) from error


def _suggestion(name: str) -> str:
    close = get_close_matches(name, Settings.model_fields, n=1, cutoff=CLOSE)
    return f" (did you mean {close[0]}?)" if close else ""
