"""Tables and progress bars for terminals of any width."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.table import Column, Table
from rich.text import Text

BORDER = 3
"""Columns of the terminal that a table's column takes beside its text."""


def show(table: Table, console: Console) -> None:
    """Print a table. If it would break words, print its rows as blocks instead, one value a line."""
    if sum(BORDER + _least_width(column) for column in table.columns) + 1 <= console.width:
        console.print(table)
        return
    headers = [_plain(column.header) for column in table.columns]
    console.print(table.title, style="italic", highlight=False)
    for first, *rest in zip(*(column.cells for column in table.columns), strict=True):
        console.print(first, style="bold", highlight=False)
        for header, cell in zip(headers[1:], rest, strict=True):
            if _plain(cell):
                console.print(f"  {header}: {_plain(cell)}" if header else f"  {_plain(cell)}", highlight=False)
    if table.caption is not None:
        console.print(table.caption, style="dim italic", highlight=False)


def progress(console: Console, *columns: ProgressColumn, description: str = "{task.description}") -> Progress:
    """A progress bar that disappears at the end; ``columns`` follow the bar, which takes the width that is left.

    Nothing is shown where the output is no terminal.
    """
    return Progress(
        TextColumn(description),
        BarColumn(bar_width=None),
        *columns,
        console=console,
        transient=True,
        expand=True,
        disable=not console.is_terminal,
    )


def _least_width(column: Column) -> int:
    texts = [_plain(column.header), *map(_plain, column.cells)]
    if column.no_wrap:
        return max(map(len, texts), default=0)
    return max((len(word) for text in texts for word in text.split()), default=0)


def _plain(cell: object) -> str:
    return Text.from_markup(str(cell)).plain
