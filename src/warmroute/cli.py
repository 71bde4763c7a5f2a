"""The command line. Nothing else parses arguments; each command imports what it needs when it runs."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from warmroute.errors import ConfigurationError, WarmrouteError
from warmroute.settings import Settings, as_text, documentation, extra_of, load

COMMANDS_GROUP = "warmroute.commands"
"""Entry-point group of commands from other distributions: each is a :class:`typer.Typer`."""
LAB_COMMANDS = ("bench", "demo", "simulate")
"""Commands of the distribution warmroute-lab."""


class _Commands(TyperGroup):
    """The product's commands, and those that other distributions install under :data:`COMMANDS_GROUP`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the product's commands in their order, then the installed ones."""
        own = super().list_commands(ctx)
        return own + sorted(entry.name for entry in entry_points(group=COMMANDS_GROUP) if entry.name not in own)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name; an installed one is imported now. Raises ConfigurationError where it is missing."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            return command
        for entry in entry_points(group=COMMANDS_GROUP, name=cmd_name):
            command = typer.main.get_command(entry.load())
            command.name = cmd_name
            return command
        if cmd_name in LAB_COMMANDS:
            raise ConfigurationError(f"`warmroute {cmd_name}` is in another package: pip install warmroute-lab")
        return None


app = typer.Typer(
    name="warmroute",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root() -> None:
    """An endpoint picker for LLM inference behind Envoy."""


@app.command()
def version() -> None:
    """Print the version."""
    from warmroute import __version__

    typer.echo(__version__)


# ---------------------------------------------------------------- serve: its flags are the settings


UNNEEDED_FLAGS = frozenset(
    (
        "config-file",
        "config-text",
        "enable-cert-reload",
        "enable-pprof",
        "health-checking",
        "metrics-endpoint-auth",
        "refresh-prometheus-metrics-interval",
        "tracing",
        "zap-devel",
        "zap-log-level",
        "zap-stacktrace-level",
        "zap-time-encoding",
    )
)
"""Flags of upstream's pickers that mean nothing here: accepted, with a warning, so that old manifests start."""
FIXED_FLAGS = {
    "destination-endpoint-hint-key": "x-gateway-destination-endpoint",
    "destination-endpoint-hint-metadata-namespace": "envoy.lb",
}
"""Flags of upstream's pickers for what is one value here."""

_FLAG = re.compile(r"--?(?P<name>[A-Za-z][\w-]*)(?:=(?P<value>.*))?", re.DOTALL)
_DEBUG_VERBOSITY = 4


def go_style(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags as Go programs take them, in the form that the parser takes: ``--name value``.

    ``--name=value``, ``-name value``, ``-camelCase``, a bare ``--bool``, ``-v 4``. Returns them and the warnings about
    flags that are accepted and ignored.
    """
    booleans = {name.replace("_", "-") for name, field in Settings.model_fields.items() if field.annotation is bool}
    spellings = {_spelt(name): name for name in (*UNNEEDED_FLAGS, *FIXED_FLAGS, "zap-encoder")}
    for name in Settings.model_fields:
        for spelling in (name, *extra_of(name)["upstream"]):
            spellings[_spelt(spelling)] = name.replace("_", "-")
    result: list[str] = []
    warnings: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        match = _FLAG.fullmatch(argument)
        if match is None or argument in {"-h", "--help"}:
            result.append(argument)
            continue
        name = spellings.get(_spelt(match["name"]), match["name"].replace("_", "-"))
        value = match["value"]
        if value is None and name in booleans:
            value = rest.pop(0) if rest and rest[0].lower() in {"true", "false"} else "true"
        elif value is None and rest and not rest[0].startswith("-"):
            value = rest.pop(0)
        if name == "v" and value is not None and value.isdigit():
            result += ["--log-level", "debug" if int(value) >= _DEBUG_VERBOSITY else "info"]
        elif name == "zap-encoder" and value in {"json", "console"}:
            result += ["--log-format", value]
        elif name in FIXED_FLAGS:
            if value != FIXED_FLAGS[name]:
                raise ConfigurationError(f"--{name} can only be {FIXED_FLAGS[name]}")
        elif name in UNNEEDED_FLAGS:
            warnings.append(f"--{name} means nothing here and is ignored")
        else:
            result += [f"--{name}"] if value is None else [f"--{name}", value]
    return result, warnings


def _spelt(name: str) -> str:
    """The same for camelCase, kebab-case and snake_case."""
    return name.replace("-", "").replace("_", "").lower()


def _settings_flags() -> inspect.Signature:
    """One option for each setting. Values stay text here: the settings check them, wherever they come from."""
    parameters = [
        inspect.Parameter(
            "settings_file",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                Path | None, typer.Option("--settings-file", help="YAML file with settings; environment and flags win.")
            ],
        )
    ]
    for name, field in Settings.model_fields.items():
        option = typer.Option(
            "--" + name.replace("_", "-"),
            help=f"{field.description} (default: {as_text(field.default) or 'unset'})",
            metavar="BOOL" if field.annotation is bool else "VALUE",
            show_default=False,
            rich_help_panel=extra_of(name)["group"],
        )
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
            )
        )
    return inspect.Signature(parameters)


def _with_settings_flags(command: Callable[..., None]) -> Callable[..., None]:
    signature = _settings_flags()
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    return command


@app.command()
@_with_settings_flags
def serve(settings_file: Path | None = None, **flags: Any) -> None:
    """Run the endpoint picker.

    Every flag can also be given as environment variable WARMROUTE_<NAME> or in the settings file. Durations are seconds, or
    like 500ms and 1m30s.
    """
    from warmroute import runtime

    runtime.prepare(os.environ)
    from warmroute import picker

    given = {name: value for name, value in flags.items() if value is not None}
    picker.serve(load(given, environ=os.environ, settings_file=settings_file))


@app.command()
def settings() -> None:
    """Print every setting of the picker, with its default and its meaning, as Markdown."""
    typer.echo(documentation())


def main() -> None:
    """Entry point of the ``warmroute`` script: errors of ours become one line on stderr and exit code 2."""
    arguments = sys.argv[1:]
    try:
        if arguments[:1] == ["serve"]:
            flags, warnings = go_style(arguments[1:])
            for warning in warnings:
                typer.echo(f"warmroute: {warning}", err=True)
            arguments = ["serve", *flags]
        app(arguments)
    except WarmrouteError as error:
        typer.echo(f"warmroute: {error}", err=True)
        sys.exit(2)
