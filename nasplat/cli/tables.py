"""Tables on a terminal, in a file, or through a pipe: nothing is cut off."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table


def plain_table(*columns: str, title: str = "", right: tuple[str, ...] = ()) -> Table:
    """An empty table without lines; the columns in `right` are for numbers."""
    table = Table(title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.header_style = "dim"
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    return table


def print_table(console: Console, table: Table) -> None:
    """Prints a table at its own width; a narrow terminal wraps the lines, and a file holds all of them."""
    needed = Console(width=10_000).measure(table).maximum
    wide = Console(file=console.file, width=max(needed, 1), force_terminal=console.is_terminal, highlight=False)
    with wide.capture() as captured:
        wide.print(table)
    for line in captured.get().splitlines():
        console.file.write(line.rstrip() + "\n")


def print_next(console: Console, lines: Mapping[str, str]) -> None:
    """Prints files to look at and commands to go on with, each by its name."""
    for name, line in lines.items():
        console.print(f"{name:<8} {line}", soft_wrap=True, markup=False)
