"""cctbx as one would use it without the engine, for comparison."""

from typing import Any

import iotbx.pdb
import mmtbx.model
import numpy as np
from cctbx.array_family import flex
from libtbx.utils import null_out

from bxmesh.server.geometry.engine.model import BuiltModel
from tests.engine.wheel import wheel_file


def labels(model: BuiltModel) -> dict[str, int]:
    """Return the place of every atom in the file by its label."""
    atoms = model.atoms
    rows = zip(
        atoms.name,
        atoms.altloc,
        atoms.resname,
        atoms.chain,
        atoms.resseq,
        atoms.icode,
        strict=True,
    )
    return {"|".join(row): place for place, row in enumerate(rows)}


def label(atom: Any) -> str:
    group = atom.parent()
    residue = group.parent()
    parts = (
        atom.name,
        group.altloc,
        group.resname,
        residue.parent().id,
        residue.resseq,
        residue.icode,
    )
    return "|".join(part.strip() for part in parts)


class PlainGeometry:
    """`mmtbx.model.manager` over the non-hydrogen atoms of a file of the wheel."""

    def __init__(self, path: str, model: BuiltModel) -> None:
        source = iotbx.pdb.input(str(wheel_file(path)))
        hierarchy = source.construct_hierarchy()
        hierarchy.atoms().set_chemical_element_simple_if_necessary()
        cache = hierarchy.atom_selection_cache()
        heavy = ~(cache.selection("element H") | cache.selection("element D"))
        hierarchy = hierarchy.select(heavy, copy_atoms=True)
        manager = mmtbx.model.manager(
            pdb_hierarchy=hierarchy, crystal_symmetry=source.crystal_symmetry(), log=null_out()
        )
        manager.process(make_restraints=True)
        places = labels(model)
        self._places = np.array([places[label(atom)] for atom in manager.get_hierarchy().atoms()])
        self._geometry = manager.get_restraints_manager().geometry
        self._n_atoms = len(model.atoms)

    def evaluate(
        self, sites: np.ndarray[Any, np.dtype[np.float64]], *, flags: Any = None
    ) -> tuple[Any, Any]:
        """Return cctbx's energies and the gradients in the file's order; `flags` chooses terms."""
        energies = self._geometry.energies_sites(
            sites_cart=flex.vec3_double(sites[self._places]), flags=flags, compute_gradients=True
        )
        gradients = np.zeros((self._n_atoms, 3))
        gradients[self._places] = energies.gradients.as_double().as_numpy_array().reshape(-1, 3)
        return energies, gradients
