"""Tables on terminals and in files."""

from __future__ import annotations

import pytest
from rich.console import Console

from bxmesh.client.cli import tables

ID = "6fb881caf54e41eeb7c66c4177bcb85a"
HEADER = ("task", "state", "agent", "made", "says")
ROW = (ID, "failed", "", "2026-11-26T00:15:09+00:00", "validator-1 has no handler for it [yet]")


def _terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    def console(**options: object) -> Console:
        return Console(force_terminal=True, color_system=None, width=width, highlight=False)

    monkeypatch.setattr(tables, "Console", console)


def test_names_are_whole_where_there_is_no_room(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _terminal(monkeypatch, 60)
    tables.show(HEADER, [ROW])
    assert capsys.readouterr().out.splitlines() == [
        ID,
        "  state failed  made 2026-11-26T00:15:09+00:00",
        "  says validator-1 has no handler for it [yet]",
    ]


def test_the_last_column_is_folded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _terminal(monkeypatch, 110)
    tables.show(HEADER, [ROW])
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == list(HEADER)
    assert ID in first
    assert second.split()


@pytest.mark.parametrize("rows", [[], [ROW]])
def test_a_file_gets_lines(rows: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(HEADER, rows)
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)
