"""All terms of one sample."""

from __future__ import annotations

from typing import Any, NamedTuple

from bxmesh.restraints.kernels.bonded import (
    Angles,
    Bonds,
    Chiralities,
    Dihedrals,
    SymmetryBonds,
    angle_energy,
    bond_energy,
    chirality_energy,
    dihedral_energy,
    symmetry_bond_energy,
)
from bxmesh.restraints.kernels.neighbours import Contacts, ImagePairs, Lattice, Pairs
from bxmesh.restraints.kernels.nonbonded import (
    Repulsion,
    image_repulsion_energy,
    repulsion_energy,
)
from bxmesh.restraints.kernels.planes import (
    Parallelities,
    Planarities,
    parallelity_energy,
    planarity_energy,
)

__all__ = ["System", "sample_energies"]


class System(NamedTuple):
    """The restraints as the kernels take them."""

    bonds: Bonds
    symmetry_bonds: SymmetryBonds
    angles: Angles
    dihedrals: Dihedrals
    chiralities: Chiralities
    planarities: Planarities
    parallelities: Parallelities
    contacts: Contacts
    lattice: Lattice
    repulsion: Repulsion


def sample_energies(
    sites: Any,
    system: System,
    pairs: Pairs,
    image_pairs: ImagePairs,
    energies: Any,
    gradients: Any,
) -> None:
    """Puts the energies [7] in place and adds the gradients to `gradients` [7 or 1, N, 3].

    Compiled in one piece it would be half as slow again.
    """
    step = 1 if len(gradients) > 1 else 0
    images, atoms = system.lattice.images, system.contacts.atoms
    energies[0] = bond_energy(sites, system.bonds, gradients[0])
    energies[0] += symmetry_bond_energy(sites, system.symmetry_bonds, images, gradients[0])
    energies[1] = angle_energy(sites, system.angles, gradients[step])
    energies[2] = dihedral_energy(sites, system.dihedrals, gradients[2 * step])
    energies[3] = chirality_energy(sites, system.chiralities, gradients[3 * step])
    energies[4] = planarity_energy(sites, system.planarities, gradients[4 * step])
    energies[5] = parallelity_energy(sites, system.parallelities, gradients[5 * step])
    energies[6] = repulsion_energy(sites, atoms, pairs, system.repulsion, gradients[6 * step])
    energies[6] += image_repulsion_energy(
        sites, atoms, image_pairs, images, system.repulsion, gradients[6 * step]
    )
