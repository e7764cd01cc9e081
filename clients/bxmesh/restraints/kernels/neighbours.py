"""Which atoms may touch: cells for those of the model, and periodic cells for its images."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from bxmesh.restraints.kernels.bonded import Images, image_of
from bxmesh.restraints.kernels.compiling import compiled

__all__ = [
    "CROWDED",
    "Contacts",
    "ImagePairs",
    "Lattice",
    "Pairs",
    "farthest_close",
    "farthest_coordinate",
    "has_moved",
    "image_pairs",
    "near_pairs",
]

CROWDED = -1
"""Instead of a count of pairs: there are more than MOST_PAIRS."""
_MOST_PAIRS = 5_000_000
_MOST_CELLS = 64
# A cell itself, then the half of its neighbours that do not look into it.
_HALF = np.array(
    [(x, y, z) for x in range(2) for y in range(-x, 2) for z in range(-1 if x or y else 0, 2)]
)


class Contacts(NamedTuple):
    """Who may touch whom, and at what distance."""

    atoms: Any
    """[R], the restrained atoms in rising order."""
    kind: Any
    """[N], the number of each atom's type."""
    distance: Any
    """[T, T] in Å."""
    distance_1_4: Any
    """[T, T] in Å, three bonds apart."""
    listed_sq: Any
    """[T, T] in Å², the square of the distance up to which pairs are listed."""
    reach: float
    """The longest distance up to which pairs are listed, in Å."""
    model: Any
    conformer: Any
    exclusion: Any
    special: Any
    """[N], the number of an atom on a special position, -1 for all others."""
    close_start: Any
    """[N + 1], where the partners of each atom that are close within the model begin."""
    close_atom: Any
    """Partners with a higher number than the atom."""
    close_bonds: Any


class Lattice(NamedTuple):
    """The images of the model."""

    rotation: Any
    """[S, 3, 3], of fractional coordinates."""
    translation: Any
    """[S, 3], fractional."""
    fractionalization: Any
    distinct: Any
    """[K, S], which operators lead to an image of their own of the atoms on special positions."""
    images: Images
    close_start: Any
    """[N + 1], where the images close to each atom begin."""
    close_atom: Any
    close_bonds: Any
    close_operator: Any
    close_shift: Any


class Pairs(NamedTuple):
    """Pairs of atoms, sorted; each once."""

    start: Any
    """[R + 1]"""
    atom: Any
    """The second atom of each pair."""
    distance: Any
    """The contact distance of each pair in Å."""


class ImagePairs(NamedTuple):
    """Pairs of an atom and an image, sorted; each as its first atom sees it."""

    start: Any
    atom: Any
    distance: Any
    operator: Any
    shift: Any
    """[.., 3] in cells."""


@compiled
def has_moved(sites: Any, reference: Any, atoms: Any, farthest: float) -> bool:
    """Returns whether one of the atoms has moved farther than that."""
    limit = farthest * farthest
    for i in atoms:
        x = sites[i, 0] - reference[i, 0]
        y = sites[i, 1] - reference[i, 1]
        z = sites[i, 2] - reference[i, 2]
        if not x * x + y * y + z * z <= limit:
            return True
    return False


@compiled
def _sorted_by_cell(cells: Any, n_cells: int) -> tuple[Any, Any]:
    """Returns where each cell begins [n_cells + 1] and the points cell by cell."""
    start = np.zeros(n_cells + 1, np.int32)
    for cell in cells:
        start[cell + 1] += 1
    for cell in range(n_cells):
        start[cell + 1] += start[cell]
    free = start.copy()
    points = np.empty(len(cells), np.int32)
    for point in range(len(cells)):
        cell = cells[point]
        points[free[cell]] = point
        free[cell] += 1
    return start, points


@compiled
def near_pairs(sites: Any, contacts: Contacts, pairs: Pairs) -> int:
    """Fills in the pairs within the model as far as they have room; returns how much they need.

    The grid is a torus: cells far apart may share a place, so that its size does not depend on how
    far atoms are spread. Of two neighbouring cells only one looks into the other.
    """
    # Fields are taken out of their tuples here and below, as doing so in a loop would cost most of it.
    atoms, reach_sq = contacts.atoms, contacts.reach * contacts.reach
    kind, listed_sq, half = contacts.kind, contacts.listed_sq, _HALF
    n = len(atoms)
    cells, size = _torus(sites, atoms, contacts.reach)
    nx, ny, nz = size[0], size[1], size[2]
    start, points = _sorted_by_cell(cells, nx * ny * nz)
    ordered, kinds = np.empty((n, 3)), np.empty(n, np.int32)
    for place in range(n):
        i = atoms[points[place]]
        kinds[place] = kind[i]
        for k in range(3):
            ordered[place, k] = sites[i, k]
    room = len(pairs.atom)
    found = np.empty((room, 2), np.int32)
    count = 0
    for place in range(n):
        cell = cells[points[place]]
        cx, rest = cell // (ny * nz), cell % (ny * nz)
        cy, cz = rest // nz, rest % nz
        x, y, z = ordered[place, 0], ordered[place, 1], ordered[place, 2]
        for step in range(len(half)):
            ax = _wrapped(cx + half[step, 0], nx)
            ay = _wrapped(cy + half[step, 1], ny)
            az = _wrapped(cz + half[step, 2], nz)
            cell = (ax * ny + ay) * nz + az
            for other in range(start[cell] if step else place + 1, start[cell + 1]):
                a, b, c = ordered[other, 0] - x, ordered[other, 1] - y, ordered[other, 2] - z
                square = a * a + b * b + c * c
                if square > reach_sq or square > listed_sq[kinds[place], kinds[other]]:
                    continue
                if count < room:
                    found[count, 0] = min(points[place], points[other])
                    found[count, 1] = max(points[place], points[other])
                count += 1
        if count > _MOST_PAIRS:
            return CROWDED
    if count <= room:
        _sort_pairs(found[:count], contacts, pairs)
    return count


@compiled
def _sort_pairs(found: Any, contacts: Contacts, pairs: Pairs) -> None:
    """Puts the pairs of rows that may touch in order, so that it is always the same."""
    atoms, kind, model, conformer = (
        contacts.atoms,
        contacts.kind,
        contacts.model,
        contacts.conformer,
    )
    exclusion, special = contacts.exclusion, contacts.special
    apart, apart_1_4 = contacts.distance, contacts.distance_1_4
    close_start, close_atom, close_bonds = (
        contacts.close_start,
        contacts.close_atom,
        contacts.close_bonds,
    )
    start, atom, distance = pairs.start, pairs.atom, pairs.distance
    kept = 0
    start[:] = 0
    for pair in range(len(found)):
        i, j = atoms[found[pair, 0]], atoms[found[pair, 1]]
        is_special = special[i] >= 0 or special[j] >= 0
        if model[i] != model[j] or _are_apart(conformer[i], conformer[j]):
            continue
        if is_special and exclusion[i] != 0 and exclusion[i] == exclusion[j]:
            continue
        bonds = 4
        for close in range(close_start[i], close_start[i + 1]):
            if close_atom[close] == j:
                bonds = close_bonds[close]
                break
        if bonds < 3:
            continue
        found[kept, 0], found[kept, 1] = found[pair, 0], j if bonds > 3 else -1 - j
        start[found[pair, 0] + 1] += 1
        kept += 1
    for row in range(len(atoms)):
        start[row + 1] += start[row]
    filled = np.zeros(len(atoms), np.int64)
    for pair in range(kept):
        row, j = found[pair, 0], found[pair, 1]
        table = apart if j >= 0 else apart_1_4
        j = j if j >= 0 else -1 - j
        at = start[row] + filled[row]
        while at > start[row] and atom[at - 1] > j:
            atom[at], distance[at] = atom[at - 1], distance[at - 1]
            at -= 1
        atom[at], distance[at] = j, table[kind[atoms[row]], kind[j]]
        filled[row] += 1


@compiled
def _are_apart(a: int, b: int) -> bool:
    """Returns whether two conformers never meet; 0 meets all."""
    return a != b and a != 0 and b != 0


@compiled
def _wrapped(step: int, size: int) -> int:
    if step < 0:
        return step + size
    return step - size if step >= size else step


@compiled
def _torus(sites: Any, atoms: Any, edge: float) -> tuple[Any, Any]:
    """Returns the cell of each atom, and how many there are along each axis, at least three."""
    size = np.empty(3, np.int64)
    most_cells = math.ceil((4.0 * len(atoms)) ** (1.0 / 3.0))
    for k in range(3):
        least = most = sites[atoms[0], k]
        for i in atoms:
            least, most = min(least, sites[i, k]), max(most, sites[i, k])
        size[k] = int(max(3.0, min(most_cells, math.ceil((most - least) / edge) + 1.0)))
    cells = np.empty(len(atoms), np.int32)
    for row in range(len(atoms)):
        cell = 0
        for k in range(3):
            cell = cell * size[k] + math.floor(sites[atoms[row], k] / edge) % size[k]
        cells[row] = cell
    return cells, size


@compiled
def image_pairs(sites: Any, contacts: Contacts, lattice: Lattice, pairs: ImagePairs) -> int:
    """Fills in the pairs with images as far as they have room; returns how many there are."""
    atoms, reach = contacts.atoms, contacts.reach
    n, n_operators = len(atoms), len(lattice.translation)
    f, rotation, translation = lattice.fractionalization, lattice.rotation, lattice.translation
    distinct, o = lattice.distinct, lattice.images.cell
    kind, listed_sq, model, conformer = (
        contacts.kind,
        contacts.listed_sq,
        contacts.model,
        contacts.conformer,
    )
    exclusion, special = contacts.exclusion, contacts.special
    apart, apart_1_4 = contacts.distance, contacts.distance_1_4
    pairs.start[:] = 0
    margin = np.empty(3)
    for k in range(3):
        margin[k] = reach * math.sqrt(f[k, 0] ** 2 + f[k, 1] ** 2 + f[k, 2] ** 2)
    places = np.empty((n, 3))
    for row in range(n):
        i = atoms[row]
        for k in range(3):
            places[row, k] = f[k, 0] * sites[i, 0] + f[k, 1] * sites[i, 1] + f[k, 2] * sites[i, 2]
    if n_operators == 1 and _is_alone(places, margin):
        return 0
    size, span = np.empty(3, np.int64), np.empty(3, np.int64)
    for k in range(3):
        size[k] = int(max(1.0, min(float(_MOST_CELLS), math.floor(1.0 / margin[k]))))
        span[k] = math.ceil(margin[k] * size[k])
    nx, ny, nz = size[0], size[1], size[2]
    # Points are the images of all atoms in one cell, in the order of atoms, then of operators.
    limit = n * n_operators
    wrapped, source = np.empty((limit, 3)), np.empty(limit, np.int32)
    moved, by = np.empty((limit, 3), np.int32), np.empty(limit, np.int32)
    cells = np.empty(limit, np.int32)
    n_points = 0
    for row in range(n):
        number = special[atoms[row]]
        for operator in range(n_operators):
            if number >= 0 and not distinct[number, operator]:
                continue
            r, t = rotation[operator], translation[operator]
            cell = 0
            for k in range(3):
                at = (
                    r[k, 0] * places[row, 0]
                    + r[k, 1] * places[row, 1]
                    + r[k, 2] * places[row, 2]
                    + t[k]
                )
                floor = math.floor(at)
                wrapped[n_points, k] = at - floor
                moved[n_points, k] = -floor
                inside = min(size[k] - 1, int((at - floor) * size[k]))
                cell = cell * size[k] + inside
            source[n_points], by[n_points], cells[n_points] = row, operator, cell
            n_points += 1
    start, points = _sorted_by_cell(cells[:n_points], nx * ny * nz)
    ordered = np.empty((n_points, 3))
    for place in range(n_points):
        at = wrapped[points[place]]
        for k in range(3):
            ordered[place, k] = o[k, 0] * at[0] + o[k, 1] * at[1] + o[k, 2] * at[2]
    reach_sq = reach * reach
    count, room = 0, len(pairs.atom)
    for row in range(n):
        i = atoms[row]
        home, own = np.empty(3, np.int64), np.empty(3)
        middle = np.empty(3, np.int64)
        for k in range(3):
            home[k] = math.floor(places[row, k])
            own[k] = places[row, k] - home[k]
            middle[k] = min(size[k] - 1, int(own[k] * size[k]))
        first = count
        for dx in range(-span[0], span[0] + 1):
            sx = (middle[0] + dx) // nx
            for dy in range(-span[1], span[1] + 1):
                sy = (middle[1] + dy) // ny
                for dz in range(-span[2], span[2] + 1):
                    sz = (middle[2] + dz) // nz
                    cell = ((middle[0] + dx - sx * nx) * ny + middle[1] + dy - sy * ny) * nz + (
                        middle[2] + dz - sz * nz
                    )
                    a, b, c = sx - own[0], sy - own[1], sz - own[2]
                    ax = o[0, 0] * a + o[0, 1] * b + o[0, 2] * c
                    ay = o[1, 0] * a + o[1, 1] * b + o[1, 2] * c
                    az = o[2, 0] * a + o[2, 1] * b + o[2, 2] * c
                    for place in range(start[cell], start[cell + 1]):
                        x, y, z = (
                            ordered[place, 0] + ax,
                            ordered[place, 1] + ay,
                            ordered[place, 2] + az,
                        )
                        square = x * x + y * y + z * z
                        if square > reach_sq:
                            continue
                        point = points[place]
                        j = atoms[source[point]]
                        if square > listed_sq[kind[i], kind[j]]:
                            continue
                        operator = by[point]
                        tx = moved[point, 0] + sx + home[0]
                        ty = moved[point, 1] + sy + home[1]
                        tz = moved[point, 2] + sz + home[2]
                        if operator == 0 and tx == 0 and ty == 0 and tz == 0:
                            continue
                        if model[i] != model[j] or _are_apart(conformer[i], conformer[j]):
                            continue
                        if exclusion[i] != 0 and exclusion[i] == exclusion[j]:
                            continue
                        bonds = _bonds_to_image(lattice, i, j, operator, tx, ty, tz)
                        if bonds < 3:
                            continue
                        if count < room:
                            table = apart if bonds > 3 else apart_1_4
                            contact = table[kind[i], kind[j]]
                            _insert(pairs, first, count, j, contact, operator, tx, ty, tz)
                        count += 1
        if count > _MOST_PAIRS:
            return CROWDED
        pairs.start[row + 1] = count
    return count


@compiled
def _is_alone(places: Any, margin: Any) -> bool:
    """Returns whether no image by whole cells can be near, from the extent of fractional places."""
    widest = 0.0
    for k in range(3):
        widest = max(widest, places[:, k].max() - places[:, k].min() + margin[k])
    return widest < 1.0


@compiled
def _bonds_to_image(lattice: Lattice, i: int, j: int, operator: int, x: int, y: int, z: int) -> int:
    for close in range(lattice.close_start[i], lattice.close_start[i + 1]):
        if (
            lattice.close_atom[close] == j
            and lattice.close_operator[close] == operator
            and lattice.close_shift[close, 0] == x
            and lattice.close_shift[close, 1] == y
            and lattice.close_shift[close, 2] == z
        ):
            return int(lattice.close_bonds[close])
    return 4


@compiled
def _insert(
    pairs: ImagePairs,
    first: int,
    at: int,
    j: int,
    apart: float,
    operator: int,
    x: int,
    y: int,
    z: int,
) -> None:
    """Puts a pair in its place among those of its atom, so that their order is always the same."""
    while at > first and _follows(pairs, at - 1, j, operator, x, y, z):
        pairs.atom[at] = pairs.atom[at - 1]
        pairs.distance[at] = pairs.distance[at - 1]
        pairs.operator[at] = pairs.operator[at - 1]
        pairs.shift[at] = pairs.shift[at - 1]
        at -= 1
    pairs.atom[at], pairs.distance[at], pairs.operator[at] = j, apart, operator
    pairs.shift[at, 0], pairs.shift[at, 1], pairs.shift[at, 2] = x, y, z


@compiled
def _follows(pairs: ImagePairs, at: int, j: int, operator: int, x: int, y: int, z: int) -> bool:
    if pairs.atom[at] != j:
        return bool(pairs.atom[at] > j)
    if pairs.operator[at] != operator:
        return bool(pairs.operator[at] > operator)
    if pairs.shift[at, 0] != x:
        return bool(pairs.shift[at, 0] > x)
    if pairs.shift[at, 1] != y:
        return bool(pairs.shift[at, 1] > y)
    return bool(pairs.shift[at, 2] > z)


@compiled
def farthest_coordinate(sites: Any, atoms: Any) -> float:
    """Returns the largest absolute coordinate of the atoms in Å; NaN where one is not a number."""
    most = 0.0
    for i in atoms:
        for k in range(3):
            value = float(abs(sites[i, k]))
            if math.isnan(value):
                return value
            most = max(most, value)
    return most


@compiled
def farthest_close(sites: Any, contacts: Contacts, lattice: Lattice, isolated: bool) -> float:
    """Returns the longest distance between atoms up to three bonds apart, in Å."""
    start, atom = contacts.close_start, contacts.close_atom
    image_start, image_atom = lattice.close_start, lattice.close_atom
    operator, shift = lattice.close_operator, lattice.close_shift
    rotation, translation, cell = lattice.images
    most = 0.0
    for i in contacts.atoms:
        for close in range(start[i], start[i + 1]):
            j = atom[close]
            x, y, z = (
                sites[j, 0] - sites[i, 0],
                sites[j, 1] - sites[i, 1],
                sites[j, 2] - sites[i, 2],
            )
            most = max(most, x * x + y * y + z * z)
        if isolated:
            continue
        for close in range(image_start[i], image_start[i + 1]):
            j, number = image_atom[close], operator[close]
            x, y, z = image_of(sites[j], rotation[number], translation[number], cell, shift[close])
            x, y, z = x - sites[i, 0], y - sites[i, 1], z - sites[i, 2]
            most = max(most, x * x + y * y + z * z)
    return math.sqrt(most)
