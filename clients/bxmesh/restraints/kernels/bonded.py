"""Bonds, angles, dihedrals and chiral volumes: cctbx/geometry_restraints/{bond,angle,dihedral,chirality}.h.

Every function adds its gradient to `gradients` [N, 3] and returns its energy.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from bxmesh.restraints.kernels.compiling import compiled

__all__ = [
    "Angles",
    "Bonds",
    "Chiralities",
    "Dihedrals",
    "Images",
    "SymmetryBonds",
    "angle_energy",
    "bond_energy",
    "chirality_energy",
    "dihedral_energy",
    "symmetry_bond_energy",
]

_TINY = 1e-100
_DEGREES = 180.0 / math.pi
_DEGREE = math.pi / 180


class Bonds(NamedTuple):
    """As in the layout, by the same names."""

    atoms: Any
    ideal: Any
    weight: Any
    slack: Any
    limit: Any
    top_out: Any


class SymmetryBonds(NamedTuple):
    """Bonds as their first atom sees them; each is half of a bond."""

    bonds: Bonds
    operator: Any
    shift: Any


class Images(NamedTuple):
    """Symmetry operators in the Cartesian frame: x' = rotation x + translation + cell shift."""

    rotation: Any
    """[S, 3, 3]"""
    translation: Any
    """[S, 3] in Å."""
    cell: Any
    """[3, 3], the orthogonalization matrix."""


class Angles(NamedTuple):
    """As in the layout, by the same names; degrees."""

    atoms: Any
    ideal: Any
    weight: Any
    slack: Any


class Dihedrals(NamedTuple):
    """As in the layout, by the same names; degrees."""

    atoms: Any
    ideal: Any
    weight: Any
    slack: Any
    limit: Any
    periodicity: Any
    top_out: Any
    offsets: Any
    alternatives: Any


class Chiralities(NamedTuple):
    """As in the layout, by the same names; Å³."""

    atoms: Any
    ideal: Any
    weight: Any
    both_signs: Any


@compiled
def _beyond_slack(delta: float, slack: float) -> float:
    if delta > slack:
        return delta - slack
    if delta < -slack:
        return delta + slack
    return 0.0


@compiled
def _bond(
    distance: float, ideal: float, weight: float, slack: float, limit: float, top_out: bool
) -> tuple[float, float]:
    """Returns the energy of a bond and what the vector to its second atom is multiplied with."""
    delta = _beyond_slack(ideal - distance, slack)
    force = 2.0 * weight * delta
    if top_out and delta < 0.0:
        top = weight * limit * limit
        damping = math.exp(-weight * delta * delta / top) if top > 0.0 else 0.0
        energy, force = top * (1.0 - damping), force * damping
    else:
        energy = weight * delta * delta
    if distance < _TINY:
        return energy, 0.0
    return energy, force / distance


@compiled
def bond_energy(sites: Any, bonds: Bonds, gradients: Any) -> float:
    """Bonds within the model."""
    # Taking fields out of their tuple in a loop would cost most of it, here and below.
    atoms, ideal, weight, slack, limit, top_out = bonds
    total = 0.0
    for index in range(len(ideal)):
        i, j = atoms[index, 0], atoms[index, 1]
        x = sites[j, 0] - sites[i, 0]
        y = sites[j, 1] - sites[i, 1]
        z = sites[j, 2] - sites[i, 2]
        distance = math.sqrt(x * x + y * y + z * z)
        energy, factor = _bond(
            distance, ideal[index], weight[index], slack[index], limit[index], top_out[index]
        )
        total += energy
        gradients[i, 0] += factor * x
        gradients[i, 1] += factor * y
        gradients[i, 2] += factor * z
        gradients[j, 0] -= factor * x
        gradients[j, 1] -= factor * y
        gradients[j, 2] -= factor * z
    return total


@compiled
def image_of(
    site: Any, rotation: Any, translation: Any, cell: Any, shift: Any
) -> tuple[float, float, float]:
    """Returns the place of an atom's image: its operator, then a shift by whole cells."""
    x, y, z = site[0], site[1], site[2]
    a, b, c = shift[0], shift[1], shift[2]
    r, t, o = rotation, translation, cell
    return (
        r[0, 0] * x + r[0, 1] * y + r[0, 2] * z + t[0] + o[0, 0] * a + o[0, 1] * b + o[0, 2] * c,
        r[1, 0] * x + r[1, 1] * y + r[1, 2] * z + t[1] + o[1, 0] * a + o[1, 1] * b + o[1, 2] * c,
        r[2, 0] * x + r[2, 1] * y + r[2, 2] * z + t[2] + o[2, 0] * a + o[2, 1] * b + o[2, 2] * c,
    )


@compiled
def symmetry_bond_energy(
    sites: Any, symmetry: SymmetryBonds, images: Images, gradients: Any
) -> float:
    """Bonds to images of the model: half the energy and the whole gradient of the first atom."""
    bonds, operator, shift = symmetry
    atoms, ideal, weight, slack, limit, top_out = bonds
    rotation, translation, cell = images
    total = 0.0
    for index in range(len(ideal)):
        i, j, number = atoms[index, 0], atoms[index, 1], operator[index]
        x, y, z = image_of(sites[j], rotation[number], translation[number], cell, shift[index])
        x, y, z = x - sites[i, 0], y - sites[i, 1], z - sites[i, 2]
        distance = math.sqrt(x * x + y * y + z * z)
        energy, factor = _bond(
            distance, ideal[index], weight[index], slack[index], limit[index], top_out[index]
        )
        total += 0.5 * energy
        gradients[i, 0] += factor * x
        gradients[i, 1] += factor * y
        gradients[i, 2] += factor * z
    return total


@compiled
def angle_energy(sites: Any, angles: Angles, gradients: Any) -> float:
    """Bond angles. One without a direction, or straight, has no gradient."""
    atoms, ideal, weight, slack = angles
    total = 0.0
    for index in range(len(ideal)):
        i, j, k = atoms[index, 0], atoms[index, 1], atoms[index, 2]
        ax, ay, az = sites[i, 0] - sites[j, 0], sites[i, 1] - sites[j, 1], sites[i, 2] - sites[j, 2]
        bx, by, bz = sites[k, 0] - sites[j, 0], sites[k, 1] - sites[j, 1], sites[k, 2] - sites[j, 2]
        a, b = math.sqrt(ax * ax + ay * ay + az * az), math.sqrt(bx * bx + by * by + bz * bz)
        if not (a > 0.0 and b > 0.0):
            continue
        # Not by multiplication, after which straight angles would be a little less.
        ax, ay, az, bx, by, bz = ax / a, ay / a, az / a, bx / b, by / b, bz / b
        cosine = max(-1.0, min(1.0, ax * bx + ay * by + az * bz))
        delta = _turn(math.acos(cosine) * _DEGREES, ideal[index], 1)
        delta = _beyond_slack(delta, slack[index])
        total += weight[index] * delta * delta
        sine = math.sqrt(1.0 - cosine * cosine)
        if sine < _TINY:
            continue
        force = -2.0 * _DEGREES * weight[index] * delta / sine
        fa, fb = force / a, force / b
        gix, giy, giz = (
            fa * (ax * cosine - bx),
            fa * (ay * cosine - by),
            fa * (az * cosine - bz),
        )
        gkx, gky, gkz = (
            fb * (bx * cosine - ax),
            fb * (by * cosine - ay),
            fb * (bz * cosine - az),
        )
        gradients[i, 0] += gix
        gradients[i, 1] += giy
        gradients[i, 2] += giz
        gradients[k, 0] += gkx
        gradients[k, 1] += gky
        gradients[k, 2] += gkz
        gradients[j, 0] -= gix + gkx
        gradients[j, 1] -= giy + gky
        gradients[j, 2] -= giz + gkz
    return total


@compiled
def _turn(start: float, end: float, periodicity: int) -> float:
    """Returns the shortest turn between two angles in degrees."""
    half = 180.0 / max(1, abs(periodicity))
    delta = end - start
    if abs(delta) <= half:
        return delta
    delta -= math.trunc(delta / (2.0 * half)) * (2.0 * half)
    if delta < -half:
        return delta + 2.0 * half
    if delta > half:
        return delta - 2.0 * half
    return delta


@compiled
def _dihedral(
    delta: float, weight: float, periodicity: int, limit: float, top_out: bool
) -> tuple[float, float]:
    """Returns the energy of a deviation in degrees, and its derivative by that."""
    if periodicity > 0:
        # 1 − cos x = 2 sin² x/2, and x/2 is within a right angle.
        sine = math.sin(periodicity * delta * (0.5 * _DEGREE))
        scale = 2.0 * 9600.0 * weight / periodicity
        energy = scale / periodicity * sine * sine
        return energy, scale * _DEGREE * sine * math.sqrt(1.0 - sine * sine)
    force = 2.0 * weight * delta
    if top_out and limit >= 0.0:
        top = weight * limit * limit
        damping = math.exp(-weight * delta * delta / top) if top > 0.0 else 0.0
        return top * (1.0 - damping), force * damping
    return weight * delta * delta, force


@compiled
def dihedral_energy(sites: Any, dihedrals: Dihedrals, gradients: Any) -> float:
    """Dihedral angles. One of whose three bonds two are in line has neither energy nor gradient."""
    atoms, ideal, weight, slack, limit, periodicity, top_out, offsets, alternatives = dihedrals
    total = 0.0
    for index in range(len(ideal)):
        i, j, k, m = atoms[index, 0], atoms[index, 1], atoms[index, 2], atoms[index, 3]
        ax, ay, az = sites[i, 0] - sites[j, 0], sites[i, 1] - sites[j, 1], sites[i, 2] - sites[j, 2]
        bx, by, bz = sites[k, 0] - sites[j, 0], sites[k, 1] - sites[j, 1], sites[k, 2] - sites[j, 2]
        cx, cy, cz = sites[k, 0] - sites[m, 0], sites[k, 1] - sites[m, 1], sites[k, 2] - sites[m, 2]
        px, py, pz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
        qx, qy, qz = by * cz - bz * cy, bz * cx - bx * cz, bx * cy - by * cx
        p, q = px * px + py * py + pz * pz, qx * qx + qy * qy + qz * qz
        scale = math.sqrt(p * q)
        if not (p > 0.0 and q > 0.0 and scale > 0.0):
            continue
        cosine = max(-1.0, min(1.0, (px * qx + py * qy + pz * qz) / scale))
        angle = math.acos(cosine) * _DEGREES
        if bx * (py * qz - pz * qy) + by * (pz * qx - px * qz) + bz * (px * qy - py * qx) < 0.0:
            angle = -angle
        delta = _turn(angle, ideal[index], periodicity[index])
        for other in range(offsets[index], offsets[index + 1]):
            value = alternatives[other]
            turn = _turn(angle, value + 360.0 if value < 0.0 else value, 1)
            if abs(delta) > abs(turn):
                delta = turn
        delta = _beyond_slack(delta, max(0.0, slack[index]))
        energy, force = _dihedral(
            delta, weight[index], periodicity[index], limit[index], top_out[index]
        )
        total += energy
        b = bx * bx + by * by + bz * bz
        if b < _TINY or p < _TINY or q < _TINY:
            continue
        factor = force * math.sqrt(b) / _DEGREE
        fp, fq = -factor / p, factor / q
        gix, giy, giz = fp * px, fp * py, fp * pz
        gmx, gmy, gmz = fq * qx, fq * qy, fq * qz
        ab, bc = (ax * bx + ay * by + az * bz) / b, (bx * cx + by * cy + bz * cz) / b
        gradients[i, 0] += gix
        gradients[i, 1] += giy
        gradients[i, 2] += giz
        gradients[m, 0] += gmx
        gradients[m, 1] += gmy
        gradients[m, 2] += gmz
        gradients[j, 0] += (ab - 1.0) * gix - bc * gmx
        gradients[j, 1] += (ab - 1.0) * giy - bc * gmy
        gradients[j, 2] += (ab - 1.0) * giz - bc * gmz
        gradients[k, 0] += (bc - 1.0) * gmx - ab * gix
        gradients[k, 1] += (bc - 1.0) * gmy - ab * giy
        gradients[k, 2] += (bc - 1.0) * gmz - ab * giz
    return total


@compiled
def chirality_energy(sites: Any, chiralities: Chiralities, gradients: Any) -> float:
    """Chiral volumes. With both signs, a volume of exactly zero is taken for positive."""
    atoms, ideal, weight, both_signs = chiralities
    total = 0.0
    for index in range(len(ideal)):
        i, j, k, m = atoms[index, 0], atoms[index, 1], atoms[index, 2], atoms[index, 3]
        ax, ay, az = sites[j, 0] - sites[i, 0], sites[j, 1] - sites[i, 1], sites[j, 2] - sites[i, 2]
        bx, by, bz = sites[k, 0] - sites[i, 0], sites[k, 1] - sites[i, 1], sites[k, 2] - sites[i, 2]
        cx, cy, cz = sites[m, 0] - sites[i, 0], sites[m, 1] - sites[i, 1], sites[m, 2] - sites[i, 2]
        px, py, pz = by * cz - bz * cy, bz * cx - bx * cz, bx * cy - by * cx
        volume = ax * px + ay * py + az * pz
        sign = 1.0 if both_signs[index] and volume < 0.0 else -1.0
        delta = ideal[index] + sign * volume
        total += weight[index] * delta * delta
        f = sign * 2.0 * delta * weight[index]
        gjx, gjy, gjz = f * px, f * py, f * pz
        gkx, gky, gkz = f * (cy * az - cz * ay), f * (cz * ax - cx * az), f * (cx * ay - cy * ax)
        gmx, gmy, gmz = f * (ay * bz - az * by), f * (az * bx - ax * bz), f * (ax * by - ay * bx)
        gradients[j, 0] += gjx
        gradients[j, 1] += gjy
        gradients[j, 2] += gjz
        gradients[k, 0] += gkx
        gradients[k, 1] += gky
        gradients[k, 2] += gkz
        gradients[m, 0] += gmx
        gradients[m, 1] += gmy
        gradients[m, 2] += gmz
        gradients[i, 0] -= gjx + gkx + gmx
        gradients[i, 1] -= gjy + gky + gmy
        gradients[i, 2] -= gjz + gkz + gmz
    return total
