"""A macromolecule's file with other coordinates; all else in it stays byte for byte."""

import re
from collections.abc import Iterator

from bxmesh.server.geometry.engine import files
from bxmesh.server.geometry.engine.errors import EngineError
from bxmesh.server.geometry.engine.types import Floats

_FIELD = "macromolecule"
_PDB_START, _PDB_END = 30, 54
_MOST_CHARACTERS = 8
_DECIMALS = 3
_AXES = ("_atom_site.cartn_x", "_atom_site.cartn_y", "_atom_site.cartn_z")

# Text fields begin a line with a semicolon and end with one that begins a line.
_TOKEN = re.compile(
    r"(?m)(?P<text>^;(?:.*\n)*?;(?=\s|$))"
    r"|(?P<comment>(?<!\S)#.*)"
    r"|(?P<quoted>(?<!\S)(?:'.*?'(?=\s|$)|\".*?\"(?=\s|$)))"
    r"|(?P<plain>\S+)"
)


def with_sites(data: bytes, sites: Floats, *, mmcif: bool) -> bytes:
    """Return the file `data`, unpacked if it is gzipped, with its atoms at `sites` [N, 3].

    The atoms are those of the file, in its order. Raises EngineError COORDINATES_DO_NOT_FIT for a
    coordinate that the columns of a PDB file have no room for.
    """
    content = files.decompress(data, field=_FIELD)
    text = files.decode(content, field=_FIELD, reason="MACROMOLECULE_UNREADABLE")
    written = _mmcif(text, sites) if mmcif else _pdb(text, sites)
    return written.encode()


def _pdb(text: str, sites: Floats) -> str:
    lines = text.split("\n")
    rows = iter(sites.tolist())
    for number, line in enumerate(lines):
        if line.startswith(("ATOM  ", "HETATM")):
            columns = "".join(f"{value:8.{_DECIMALS}f}" for value in next(rows))
            if len(columns) != _PDB_END - _PDB_START:
                raise EngineError(
                    "COORDINATES_DO_NOT_FIT",
                    f"An atom went to where a PDB file has no columns for it ({columns.strip()}). "
                    "Give the model as mmCIF.",
                    field="coordinates",
                )
            lines[number] = line[:_PDB_START] + columns + line[_PDB_END:]
    return "\n".join(lines)


def _mmcif(text: str, sites: Floats) -> str:
    pieces = []
    at = 0
    for (start, end), value in zip(_coordinates(text), sites.ravel().tolist(), strict=True):
        pieces += [text[at:start], f"{value:.{_DECIMALS}f}"]
        at = end
    pieces.append(text[at:])
    return "".join(pieces)


def _coordinates(text: str) -> Iterator[tuple[int, int]]:
    """Where the coordinates of the first loop of atoms are, atom by atom."""
    headers: list[str] = []
    column = 0
    columns: list[int] = []
    in_header = in_atoms = False
    for match in _TOKEN.finditer(text):
        if match["comment"]:
            continue
        word = match[0].lower() if match["plain"] else ""
        if word == "loop_":
            if in_atoms:
                return
            headers, in_header = [], True
        elif in_header and word.startswith("_"):
            headers.append(word)
        elif in_header:
            in_header = False
            in_atoms = headers[:1] != [] and headers[0].startswith("_atom_site.")
            if in_atoms:
                columns = [headers.index(axis) for axis in _AXES]
                column = 0
        if in_atoms and not in_header:
            if word.startswith(("_", "data_", "save_", "stop_")):
                return
            if column in columns:
                yield match.span()
            column = (column + 1) % len(headers)
