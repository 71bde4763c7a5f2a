"""The command line. Nothing else parses arguments; each command imports what it needs when it runs."""

from __future__ import annotations

import sys

import typer

from warmroute.errors import WarmrouteError

app = typer.Typer(
    name="warmroute",
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


def main() -> None:
    """Entry point of the ``warmroute`` script: errors of ours become one line on stderr and exit code 2."""
    try:
        app()
    except WarmrouteError as error:
        typer.echo(f"warmroute: {error}", err=True)
        sys.exit(2)
