"""Tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["show"]

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
