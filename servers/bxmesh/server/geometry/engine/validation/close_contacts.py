"""Atoms that are closer to each other than atoms come."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bxmesh.server.geometry.engine.validation.naming import Naming
from bxmesh.server.geometry.engine.validation.types import Outlier

CHECK = "close_contact"
MARGIN = 0.4
"""In Å. Two atoms are too close when they overlap by more, the limit of a serious clash in MolProbity."""
POLAR_MARGIN = 0.6
"""The same where a hydrogen bond may be: strong ones begin at about 2.5 Å (Jeffrey, 1997)."""

_POLAR = ("N", "O")
# Those of other elements are mostly metals, whose ligands are nearer than any contact.
_ORGANIC = ("H", "D", "B", "C", *_POLAR, "F", "SI", "P", "S", "CL", "SE", "BR", "I")


def close_contacts(
    manager: Any, sites: Any, places: Sequence[int], naming: Naming, most: int
) -> tuple[int, list[Outlier]]:
    """Return how many pairs are too close at a flex of sites, and the worst of them.

    This is no clashscore: it counts the atoms that have restraints, mostly without hydrogens, with the
    contact distances of the restraint library. A pair that symmetry repeats counts once. The score is
    the overlap in Å.
    """
    pairs = manager.pair_proxies(sites_cart=sites).nonbonded_proxies
    distances = pairs.deltas(sites_cart=sites).as_numpy_array()
    simple = pairs.simple.size()
    reaches = np.array([pair.vdw_distance for of in (pairs.simple, pairs.asu) for pair in of])
    (near,) = np.nonzero(reaches - distances > MARGIN)
    found: dict[tuple[int, int, float], Outlier] = {}
    for index in near[np.argsort(distances[near] - reaches[near], kind="stable")].tolist():
        distance, reach = float(distances[index]), float(reaches[index])
        # Pairs within the model are simple ones; the others have a symmetry copy.
        symmetry = index >= simple
        if symmetry:
            pair = pairs.asu[index - simple]
            first, second = pair.i_seq, pair.j_seq
        else:
            first, second = pairs.simple[index].i_seqs
        atoms = places[first], places[second]
        key = (*sorted(atoms), round(distance, 4))
        if key not in found and reach - distance > _margin(atoms, naming):
            found[key] = _outlier(atoms, naming, distance, reach, symmetry=symmetry)
    return len(found), list(found.values())[:most]


def _margin(atoms: tuple[int, int], naming: Naming) -> float:
    elements = [naming.element(atom) for atom in atoms]
    if not all(element in _ORGANIC for element in elements):
        return np.inf
    return POLAR_MARGIN if all(element in _POLAR for element in elements) else MARGIN


def _outlier(
    atoms: tuple[int, int], naming: Naming, distance: float, reach: float, *, symmetry: bool
) -> Outlier:
    first, second = atoms
    of = " of a symmetry copy" if symmetry else ""
    return Outlier(
        CHECK,
        naming.residues_of(atoms),
        distance,
        reach,
        reach - distance,
        f"{naming.atom(first)} and {naming.atom(second)}{of}: {distance:.2f} Å apart, "
        f"{reach:.2f} Å expected",
    )
