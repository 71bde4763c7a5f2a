"""The laboratory's commands: ``warmroute bench``, ``warmroute simulate`` and ``warmroute demo``.

They hook into the product's command line by the entry-point group ``warmroute.commands``. A command imports
its parts when it runs.
"""

from __future__ import annotations

from typing import Any

import typer


def command_line(**options: Any) -> typer.Typer:
    """A Typer application with the product's conventions: ``-h`` works, exceptions are not prettified."""
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,
    )
