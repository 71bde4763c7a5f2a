"""The laboratory's commands: ``warmroute bench``, ``warmroute simulate`` and ``warmroute demo``.

They are found by the entry-point group ``warmroute.commands`` and follow the conventions of the product's command line. A
command imports its parts when it runs.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand


def command_line(**options: Any) -> typer.Typer:
    """A Typer application with the product's conventions: ``-h`` works, help and errors are plain text."""
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,
    )


class ListsProfiles(TyperCommand):
    """A command whose help ends with the profiles of simulated engines."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example and the list."""
        from warmroute_lab.simulator.profile import PROFILES

        super().format_epilog(ctx, formatter)
        with formatter.section("Profiles"):
            formatter.write_dl([(profile.name, profile.description) for profile in PROFILES.values()])


class ListsScenarios(ListsProfiles):
    """A command whose help ends with the profiles and the scenarios."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example and the lists."""
        from warmroute_lab.replay.scenarios import SCENARIOS

        super().format_epilog(ctx, formatter)
        with formatter.section("Scenarios"):
            formatter.write_dl([(name, scenario.description) for name, scenario in SCENARIOS.items()])


class ListsPolicies(ListsScenarios):
    """A command whose help ends with the profiles, the scenarios and the baselines."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example and the lists."""
        from warmroute_lab.replay.baselines import BASELINES

        super().format_epilog(ctx, formatter)
        with formatter.section("Baselines"):
            formatter.write_dl(
                [
                    (name, " ".join((baseline.__doc__ or "").partition("\n\n")[0].split()))
                    for name, baseline in BASELINES.items()
                ]
            )
