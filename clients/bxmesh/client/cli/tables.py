"""Tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["facts", "show"]

_WIDTH_OF_A_FILE = 240


def show(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes a table to stdout, cut to the terminal's width, whole into anything else."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH_OF_A_FILE)
    table = Table(*header, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def facts(rows: Iterable[tuple[str, str]]) -> None:
    """Writes names and values to stdout, one a line; without a value nothing."""
    for name, value in rows:
        if value:
            click.echo(f"{name:13} {value}")
