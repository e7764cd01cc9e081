"""Tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["facts", "show", "table"]

_WIDTH_OF_A_FILE = 240
_LEAST_WIDTH_OF_THE_LAST = 24
_GAP = 2


def show(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes a table to stdout, whole into anything but a terminal.

    Only the last column is folded. On a terminal that is too narrow for the others each row becomes
    a paragraph; so names are whole, and can be copied.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH_OF_A_FILE)
    cells = [tuple(map(_harmless, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    last = min(widths[-1], _LEAST_WIDTH_OF_THE_LAST)
    if cells and sum(widths[:-1]) + last + _GAP * len(widths) > console.width:
        for row in cells:
            _paragraph(console, header, row)
        return
    console.print(table(header, cells))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Returns a table of which only the last column is folded."""
    table = Table(box=None, padding=(0, _GAP, 0, 0), header_style="bold")
    for name in header[:-1]:
        table.add_column(name, no_wrap=True)
    table.add_column(header[-1], overflow="fold")
    for row in rows:
        table.add_row(*(escape(_harmless(cell)) for cell in row))
    return table


def _paragraph(console: Console, header: Sequence[str], row: Sequence[str]) -> None:
    console.print(row[0], style="bold", markup=False, soft_wrap=True)
    line = ""
    for name, value in zip(header[1:], row[1:], strict=True):
        if not value:
            continue
        fact = f"  {name} {value}"
        if line and len(line) + len(fact) > console.width:
            console.print(line, markup=False, soft_wrap=True)
            line = ""
        line += fact
    console.print(line, markup=False, soft_wrap=True)


def facts(rows: Iterable[tuple[str, str]]) -> None:
    """Writes names and values to stdout, one a line; without a value nothing."""
    for name, value in rows:
        if value:
            click.echo(f"{name:13} {_harmless(value)}")


def _harmless(text: str) -> str:
    """Shows control characters, with which others' words could steer a terminal, as escapes."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
