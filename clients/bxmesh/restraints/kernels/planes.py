"""Planes and parallel planes: cctbx/geometry_restraints/{planarity,parallelity}.h.

Every function adds its gradient to `gradients` [N, 3] and returns its energy.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from bxmesh.restraints.kernels.compiling import compiled

__all__ = ["Parallelities", "Planarities", "parallelity_energy", "planarity_energy"]

_TINY = 1e-100
_DEGREE = math.pi / 180
_SWEEPS = 20
_NEWTON_STEPS = 20
# Against the square of the trace; below it too many digits would be lost.
_IN_LINE = 3e-4


class Planarities(NamedTuple):
    """As in the layout, by the same names."""

    offsets: Any
    atoms: Any
    weight: Any


class Parallelities(NamedTuple):
    """As in the layout, by the same names; degrees."""

    first_offsets: Any
    first_atoms: Any
    second_offsets: Any
    second_atoms: Any
    ideal: Any
    weight: Any
    slack: Any
    limit: Any
    top_out: Any


@compiled
def _rotate(matrix: Any, vectors: Any, p: int, q: int, r: int) -> None:
    """Makes the element p, q of a symmetric matrix zero; r is the third number."""
    value = matrix[p, q]
    if value == 0.0:
        return
    theta = (matrix[q, q] - matrix[p, p]) / (2.0 * value)
    t = math.copysign(1.0, theta) / (abs(theta) + math.sqrt(theta * theta + 1.0))
    c = 1.0 / math.sqrt(t * t + 1.0)
    s = t * c
    matrix[p, p] -= t * value
    matrix[q, q] += t * value
    matrix[p, q] = matrix[q, p] = 0.0
    rp, rq = matrix[r, p], matrix[r, q]
    matrix[r, p] = matrix[p, r] = c * rp - s * rq
    matrix[r, q] = matrix[q, r] = s * rp + c * rq
    for k in range(3):
        vp, vq = vectors[k, p], vectors[k, q]
        vectors[k, p] = c * vp - s * vq
        vectors[k, q] = s * vp + c * vq


@compiled
def _diagonalise(matrix: Any, vectors: Any) -> int:
    """Makes a symmetric matrix [3, 3] diagonal by Jacobi rotations, its eigenvectors in columns.

    Returns the number of the smallest eigenvalue.
    """
    vectors[:, :] = 0.0
    vectors[0, 0] = vectors[1, 1] = vectors[2, 2] = 1.0
    size = abs(matrix[0, 0]) + abs(matrix[1, 1]) + abs(matrix[2, 2])
    for _ in range(_SWEEPS):
        if abs(matrix[0, 1]) + abs(matrix[0, 2]) + abs(matrix[1, 2]) <= 1e-18 * size:
            break
        _rotate(matrix, vectors, 0, 1, 2)
        _rotate(matrix, vectors, 0, 2, 1)
        _rotate(matrix, vectors, 1, 2, 0)
    smallest = 0
    if matrix[1, 1] < matrix[0, 0]:
        smallest = 1
    if matrix[2, 2] < matrix[smallest, smallest]:
        smallest = 2
    return smallest


@compiled
def _normal(tensor: Any, vectors: Any) -> tuple[float, float, float]:
    """Returns the eigenvector of the smallest eigenvalue; the matrices are overwritten.

    The eigenvalue is the characteristic polynomial's first root, to which Newton's steps from zero rise; the
    vector is across two rows of what is left. Where rows are nearly in line Jacobi rotations are better.
    """
    xx, yy, zz = tensor[0, 0], tensor[1, 1], tensor[2, 2]
    xy, xz, yz = tensor[0, 1], tensor[0, 2], tensor[1, 2]
    trace = xx + yy + zz
    minors = xx * yy - xy * xy + xx * zz - xz * xz + yy * zz - yz * yz
    determinant = xx * (yy * zz - yz * yz) - xy * (xy * zz - yz * xz) + xz * (xy * yz - yy * xz)
    value = 0.0
    for _ in range(_NEWTON_STEPS):
        slope = (3.0 * value - 2.0 * trace) * value + minors
        if slope <= 0.0:
            break
        step = (determinant - ((value - trace) * value + minors) * value) / slope
        value += step
        if abs(step) <= 1e-16 * trace:
            break
    xx, yy, zz = xx - value, yy - value, zz - value
    ax, ay, az = xy * yz - xz * yy, xz * xy - xx * yz, xx * yy - xy * xy
    bx, by, bz = xy * zz - xz * yz, xz * xz - xx * zz, xx * yz - xy * xz
    cx, cy, cz = yy * zz - yz * yz, yz * xz - xy * zz, xy * yz - yy * xz
    a, b, c = ax * ax + ay * ay + az * az, bx * bx + by * by + bz * bz, cx * cx + cy * cy + cz * cz
    if b > a:
        ax, ay, az, a = bx, by, bz, b
    if c > a:
        ax, ay, az, a = cx, cy, cz, c
    square = trace * trace
    if not (minors > _IN_LINE * square and a > (_IN_LINE * square) ** 2):
        least = _diagonalise(tensor, vectors)
        return vectors[0, least], vectors[1, least], vectors[2, least]
    scale = 1.0 / math.sqrt(a)
    return ax * scale, ay * scale, az * scale


@compiled
def _spread(sites: Any, atoms: Any, weights: Any, centre: Any, tensor: Any) -> None:
    """Puts the weighted centre of atoms and the tensor of their spread around it in place."""
    total = x = y = z = 0.0
    for index in range(len(atoms)):
        atom, w = atoms[index], weights[index]
        total += w
        x += w * sites[atom, 0]
        y += w * sites[atom, 1]
        z += w * sites[atom, 2]
    x, y, z = x / total, y / total, z / total
    xx = yy = zz = xy = xz = yz = 0.0
    for index in range(len(atoms)):
        atom, w = atoms[index], weights[index]
        dx, dy, dz = sites[atom, 0] - x, sites[atom, 1] - y, sites[atom, 2] - z
        xx += w * dx * dx
        yy += w * dy * dy
        zz += w * dz * dz
        xy += w * dx * dy
        xz += w * dx * dz
        yz += w * dy * dz
    centre[0], centre[1], centre[2] = x, y, z
    tensor[0, 0], tensor[1, 1], tensor[2, 2] = xx, yy, zz
    tensor[0, 1] = tensor[1, 0] = xy
    tensor[0, 2] = tensor[2, 0] = xz
    tensor[1, 2] = tensor[2, 1] = yz


@compiled
def planarity_energy(sites: Any, planes: Planarities, gradients: Any) -> float:
    """Sums of w d² to the least-squares plane.

    Where two directions fit atoms equally well, as in a straight line, one of them is taken.
    """
    offsets, all_atoms, all_weights = planes
    total = 0.0
    centre, tensor, vectors = np.empty(3), np.empty((3, 3)), np.empty((3, 3))
    for index in range(len(offsets) - 1):
        first, last = offsets[index], offsets[index + 1]
        atoms, weights = all_atoms[first:last], all_weights[first:last]
        _spread(sites, atoms, weights, centre, tensor)
        nx, ny, nz = _normal(tensor, vectors)
        for number in range(len(atoms)):
            atom = atoms[number]
            delta = (
                nx * (sites[atom, 0] - centre[0])
                + ny * (sites[atom, 1] - centre[1])
                + nz * (sites[atom, 2] - centre[2])
            )
            total += weights[number] * delta * delta
            force = 2.0 * weights[number] * delta
            gradients[atom, 0] += force * nx
            gradients[atom, 1] += force * ny
            gradients[atom, 2] += force * nz
    return total


@compiled
def _pull_normal(
    sites: Any,
    atoms: Any,
    centre: Any,
    tensor: Any,
    vectors: Any,
    least: int,
    pull: Any,
    gradients: Any,
) -> None:
    """Adds the gradient by the atoms of a plane, given that by its normal."""
    normal = vectors[:, least]
    for other in range(3):
        gap = tensor[least, least] - tensor[other, other]
        if other == least or abs(gap) < _TINY:
            continue
        axis = vectors[:, other]
        factor = (pull[0] * axis[0] + pull[1] * axis[1] + pull[2] * axis[2]) / gap
        for atom in atoms:
            along = across = 0.0
            for k in range(3):
                offset = sites[atom, k] - centre[k]
                along += offset * normal[k]
                across += offset * axis[k]
            for k in range(3):
                gradients[atom, k] += factor * (axis[k] * along + normal[k] * across)


@compiled
def parallelity_energy(sites: Any, pairs: Parallelities, gradients: Any) -> float:
    """Pairs of planes at an angle.

    The gradient is the derivative of the energy by the atoms of both planes.
    """
    total = 0.0
    c1, t1, v1 = np.empty(3), np.empty((3, 3)), np.empty((3, 3))
    c2, t2, v2 = np.empty(3), np.empty((3, 3)), np.empty((3, 3))
    pull1, pull2 = np.empty(3), np.empty(3)
    for index in range(len(pairs.ideal)):
        a1 = pairs.first_atoms[pairs.first_offsets[index] : pairs.first_offsets[index + 1]]
        a2 = pairs.second_atoms[pairs.second_offsets[index] : pairs.second_offsets[index + 1]]
        _spread(sites, a1, np.ones(len(a1)), c1, t1)
        _spread(sites, a2, np.ones(len(a2)), c2, t2)
        l1, l2 = _diagonalise(t1, v1), _diagonalise(t2, v2)
        cosine = v1[0, l1] * v2[0, l2] + v1[1, l1] * v2[1, l2] + v1[2, l1] * v2[2, l2]
        if cosine < 0.0:
            cosine = -cosine
            v2[:, l2] = -v2[:, l2]
        n1, n2 = v1[:, l1], v2[:, l2]
        nx, ny, nz = (
            n1[1] * n2[2] - n1[2] * n2[1],
            n1[2] * n2[0] - n1[0] * n2[2],
            n1[0] * n2[1] - n1[1] * n2[0],
        )
        sine = math.sqrt(nx * nx + ny * ny + nz * nz)
        angle = math.acos(min(1.0, cosine)) / _DEGREE
        ideal, slack = pairs.ideal[index], pairs.slack[index]
        delta = angle - ideal
        if abs(delta) <= slack or abs(delta) < _TINY:
            continue
        ideal += math.copysign(slack, delta)
        weight = pairs.weight[index]
        depth = math.cos((angle - ideal) * _DEGREE) - 1.0
        force = -weight
        if pairs.top_out[index]:
            square = pairs.limit[index] * pairs.limit[index]
            force *= math.exp(depth / square)
            total += weight * square * (1.0 - math.exp(depth / square))
        else:
            total -= weight * depth
        if sine < _TINY:
            continue
        by_cosine = force * math.cos(ideal * _DEGREE)
        by_sine = force * math.sin(ideal * _DEGREE) / sine
        pull1[0] = n2[0] * by_cosine + (n2[1] * nz - n2[2] * ny) * by_sine
        pull1[1] = n2[1] * by_cosine + (n2[2] * nx - n2[0] * nz) * by_sine
        pull1[2] = n2[2] * by_cosine + (n2[0] * ny - n2[1] * nx) * by_sine
        pull2[0] = n1[0] * by_cosine - (n1[1] * nz - n1[2] * ny) * by_sine
        pull2[1] = n1[1] * by_cosine - (n1[2] * nx - n1[0] * nz) * by_sine
        pull2[2] = n1[2] * by_cosine - (n1[0] * ny - n1[1] * nx) * by_sine
        _pull_normal(sites, a1, c1, t1, v1, l1, pull1, gradients)
        _pull_normal(sites, a2, c2, t2, v2, l2, pull2, gradients)
    return total
