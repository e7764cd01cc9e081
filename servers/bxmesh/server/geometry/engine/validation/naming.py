"""The names that people give residues and atoms."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from bxmesh.server.geometry.engine.types import AtomTable

_LONGEST = 64


def residue_name(chain: str, resseq: str, icode: str, resname: str, altloc: str = "") -> str:
    """Return a name such as `A 52 ALA`, `A 52A ALA` or `A 52 ALA (B)`; an absurdly long one is cut."""
    number = f"{resseq.strip()}{icode.strip()}"
    name = " ".join(part for part in (chain.strip(), number, resname.strip()) if part)
    name = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…"
    return f"{name} ({altloc.strip()})" if altloc.strip() else name


class Naming:
    """Names the atoms of a file, N, by their places in it."""

    def __init__(self, atoms: AtomTable) -> None:
        self._atoms = atoms
        self.residue_of: npt.NDArray[np.intp]
        """[N], which of `residues` an atom belongs to."""
        self.residue_of, self.residues = self._group()

    def residues_of(self, places: Iterable[int]) -> tuple[str, ...]:
        """Return the residues of these atoms, each once, with their alternative location."""
        names: dict[str, str] = {}
        for place in places:
            atoms = self._atoms
            key, altloc = self.residues[self.residue_of[place]], str(atoms.altloc[place])
            names[key] = names.get(key) or altloc
        return tuple(f"{key} ({altloc})" if altloc else key for key, altloc in names.items())

    def atom(self, place: int) -> str:
        """Return the name of an atom within its residue."""
        return str(self._atoms.name[place])

    def element(self, place: int) -> str:
        """Return the element of an atom, in capitals."""
        return str(self._atoms.element[place])

    def _group(self) -> tuple[npt.NDArray[np.intp], tuple[str, ...]]:
        atoms = self._atoms
        known: dict[tuple[str, ...], int] = {}
        names: list[str] = []
        indices = np.empty(len(atoms), dtype=np.intp)
        rows = zip(
            atoms.chain.tolist(),
            atoms.resseq.tolist(),
            atoms.icode.tolist(),
            atoms.resname.tolist(),
            strict=True,
        )
        for place, row in enumerate(rows):
            index = known.setdefault(row, len(names))
            if index == len(names):
                names.append(residue_name(*row))
            indices[place] = index
        return indices, tuple(names)
