"""The settings as options of a Typer command: one flag each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from warmroute.settings.settings import Settings, extra_of, flag_of
from warmroute.settings.table import as_text


def with_settings_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the option ``--settings-file`` and one option per setting.

    Typer reads options from a function's signature, so this one is written for it. Values stay text: the settings check
    them, whatever their source.
    """
    parameters = [_option("settings_file", Path | None, "YAML file with settings. Environment and flags win.")]
    for name, field in Settings.model_fields.items():
        parameters.append(
            _option(
                name,
                str | None,
                f"{field.description} (default: {as_text(field.default) or 'unset'})",
                metavar="BOOL" if field.annotation is bool else "VALUE",
                panel=extra_of(name)["group"],
            )
        )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def flags_of_settings() -> dict[str, str]:
    """The settings' names by their flags."""
    return {flag_of(name): name for name in Settings.model_fields}


def _option(
    name: str, of_type: Any, text: str, *, metavar: str | None = None, panel: str | None = None
) -> inspect.Parameter:
    option = typer.Option(flag_of(name), help=text, metavar=metavar, show_default=False, rich_help_panel=panel)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[of_type, option])
