"""Tables on terminals of different widths."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console
from rich.table import Table

from warmroute_lab import terminal


def shown(width: int) -> str:
    table = Table(title="three figures", caption="in seconds")
    table.add_column("what")
    for name in ("median", "maximum", ""):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("time to the first token", "0.123 s", "10.456 s", "[bold]over[/]")
    table.add_row("time to the last token", "1.123 s", "20.456 s", "")
    console = Console(file=StringIO(), width=width)
    terminal.show(table, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [20, 30, 40, 60, 100])
def test_no_word_or_figure_is_broken(width: int) -> None:
    text = shown(width)
    assert max(map(len, text.splitlines())) <= width
    for word in ("three", "figures", "maximum", "token", "0.123 s", "20.456 s", "over", "in seconds"):
        assert word in text


def test_a_table_that_does_not_fit_becomes_blocks() -> None:
    assert "│" in shown(40)
    assert shown(30).splitlines() == [
        "three figures",
        "time to the first token",
        "  median: 0.123 s",
        "  maximum: 10.456 s",
        "  over",
        "time to the last token",
        "  median: 1.123 s",
        "  maximum: 20.456 s",
        "in seconds",
    ]
