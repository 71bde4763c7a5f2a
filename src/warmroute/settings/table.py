"""The settings as Markdown: the tables of the README, printed by ``warmroute settings``."""

from __future__ import annotations

from warmroute.settings.settings import Settings, extra_of, flag_of


def markdown() -> str:
    """Every setting with its default and its meaning, one table per group."""
    groups: dict[str, list[str]] = {}
    for name, info in Settings.model_fields.items():
        extra = extra_of(name)
        default = as_text(info.default)
        cells = [
            f"`{flag_of(name)}`",
            f"`{default}`" if default else "",
            "yes" if extra["hot"] else "",
            str(info.description),
        ]
        groups.setdefault(extra["group"], []).append("| " + " | ".join(cells) + " |")
    head = "| flag | default | hot | meaning |\n|---|---|---|---|"
    return "\n\n".join("\n".join([f"**{group}**", "", head, *rows]) for group, rows in groups.items())


def as_text(default: object) -> str:
    """A default as written on the command line; empty for unset."""
    if default is None:
        return ""
    return str(default).lower() if isinstance(default, bool) else str(default)
