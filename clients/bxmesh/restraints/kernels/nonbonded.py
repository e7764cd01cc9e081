"""Repulsion of atoms in contact: prolsq_repulsion_function in cctbx/geometry_restraints/nonbonded.h."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from bxmesh.restraints.kernels.bonded import Images, image_of
from bxmesh.restraints.kernels.compiling import compiled
from bxmesh.restraints.kernels.neighbours import ImagePairs, Pairs

__all__ = ["Repulsion", "image_repulsion_energy", "repulsion_energy"]


class Repulsion(NamedTuple):
    """c_rep (max(0, (k_rep distance)^irexp - d^irexp))^rexp."""

    c_rep: float
    k_rep: float
    irexp: float
    rexp: float


@compiled
def _repulsion(function: Repulsion, apart: float, d: float) -> tuple[float, float]:
    """Returns the energy of a pair at distance `d`, and its derivative by that divided by `d`.

    Atoms in one place have an energy and no gradient, as there is no direction.
    """
    if function.irexp == 1.0:
        depth, slope = function.k_rep * apart - d, -1.0
    else:
        depth = (function.k_rep * apart) ** function.irexp - d**function.irexp
        slope = -function.irexp * d ** (function.irexp - 1.0) if d > 0.0 else 0.0
    if depth <= 0.0:
        return 0.0, 0.0
    if function.rexp == 4.0:
        cube = depth * depth * depth
    else:
        cube = depth ** (function.rexp - 1.0)
    energy = function.c_rep * cube * depth
    if d == 0.0:
        return energy, 0.0
    return energy, function.c_rep * function.rexp * cube * slope / d


@compiled
def repulsion_energy(
    sites: Any, atoms: Any, pairs: Pairs, function: Repulsion, gradients: Any
) -> float:
    """Contacts within the model."""
    start, atom, distance = pairs
    total = 0.0
    for row in range(len(atoms)):
        i = atoms[row]
        xi, yi, zi = sites[i, 0], sites[i, 1], sites[i, 2]
        for pair in range(start[row], start[row + 1]):
            j = atom[pair]
            x, y, z = sites[j, 0] - xi, sites[j, 1] - yi, sites[j, 2] - zi
            square = x * x + y * y + z * z
            contact = function.k_rep * distance[pair]
            if square >= contact * contact:
                continue
            energy, factor = _repulsion(function, distance[pair], math.sqrt(square))
            total += energy
            gradients[i, 0] -= factor * x
            gradients[i, 1] -= factor * y
            gradients[i, 2] -= factor * z
            gradients[j, 0] += factor * x
            gradients[j, 1] += factor * y
            gradients[j, 2] += factor * z
    return total


@compiled
def image_repulsion_energy(
    sites: Any,
    atoms: Any,
    pairs: ImagePairs,
    images: Images,
    function: Repulsion,
    gradients: Any,
) -> float:
    """Contacts with images: half the energy and the whole gradient of the first atom."""
    start, atom, distance, operator, shift = pairs
    rotation, translation, cell = images
    total = 0.0
    for row in range(len(atoms)):
        i = atoms[row]
        for pair in range(start[row], start[row + 1]):
            number = operator[pair]
            x, y, z = image_of(
                sites[atom[pair]], rotation[number], translation[number], cell, shift[pair]
            )
            x, y, z = x - sites[i, 0], y - sites[i, 1], z - sites[i, 2]
            square = x * x + y * y + z * z
            contact = function.k_rep * distance[pair]
            if square >= contact * contact:
                continue
            energy, factor = _repulsion(function, distance[pair], math.sqrt(square))
            total += 0.5 * energy
            gradients[i, 0] -= factor * x
            gradients[i, 1] -= factor * y
            gradients[i, 2] -= factor * z
    return total
