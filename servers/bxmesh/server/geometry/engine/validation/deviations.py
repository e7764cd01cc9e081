"""Restraints and how far a model is from them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from cctbx import geometry_restraints as cctbx
from cctbx.geometry_restraints.auto_linking_types import iterate_covalent

from bxmesh.server.geometry.engine.types import Floats
from bxmesh.server.geometry.engine.validation.naming import Naming
from bxmesh.server.geometry.engine.validation.types import Deviation, Outlier, ResidueDeviation

OUTLIER_Z = 4.0
"""From so many sigmas on a restraint is an outlier."""

_FORMATS = {
    "bond": "{:.3f} Å",
    "angle": "{:.1f}°",
    "dihedral": "{:.1f}°",
    "chirality": "{:.2f} Å³",
    "planarity": "{:.3f} Å",
}


# More atoms have only planes of large rings, or of absurd dictionaries.
_MOST_NAMED = 12
# The others, such as those of C-beta atoms, repeat these; the figures of cctbx leave them out, too.
_COVALENT = frozenset(iterate_covalent())


@dataclass(frozen=True)
class Restraints:
    """The restraints of one term at one set of coordinates; arrays have one value for each."""

    term: str
    atoms: Sequence[tuple[int, ...]]
    """The atoms of each, by their places in cctbx."""
    deltas: Floats
    """Deviations, in the unit of the term."""
    z: Floats
    """Deviations over sigma."""
    peaks: Floats
    """The largest deviation over sigma within each: of a plane that of one atom, else `z`."""
    values: Callable[[int], tuple[float, float]]
    """The value of one, and the ideal value."""
    undefined: int = 0
    """Further ones that have no value: their atoms lie on each other, or in one line."""

    def deviation(self) -> Deviation:
        """Return what they sum up to."""
        return Deviation(
            self.term,
            len(self.atoms),
            float(np.sqrt(np.mean(self.deltas**2))),
            float(np.sqrt(np.mean(self.z**2))),
            float(np.abs(self.deltas).max()),
        )

    def outliers(
        self, places: Sequence[int], naming: Naming, most: int
    ) -> tuple[int, list[Outlier]]:
        """Return how many are outliers, and the worst of them."""
        (indices,) = np.nonzero(self.peaks > OUTLIER_Z)
        worst = indices[np.argsort(-self.peaks[indices], kind="stable")][:most]
        return len(indices), [self._outlier(index, places, naming) for index in worst.tolist()]

    def _outlier(self, index: int, places: Sequence[int], naming: Naming) -> Outlier:
        where = [places[atom] for atom in self.atoms[index]]
        value, ideal = self.values(index)
        score = float(self.peaks[index])
        shown = _FORMATS[self.term].format
        plane = self.term == "planarity"
        means = (
            f"{shown(value)} from the plane"
            if plane
            else f"{shown(value)}, expected {shown(ideal)}"
        )
        names = "–".join(map(naming.atom, where[:_MOST_NAMED]))
        names += "–…" if len(where) > _MOST_NAMED else ""
        turned = ", the other hand" if self.term == "chirality" and value * ideal < 0 else ""
        return Outlier(
            self.term,
            naming.residues_of(where)[:_MOST_NAMED],
            value,
            ideal,
            score,
            f"{self.term} {names}: {means}, {score:.1f} sigma{turned}",
        )


def restraints(manager: Any, sites: Any) -> Iterator[Restraints]:
    """Yield the terms of cctbx's restraints manager that there are, at a flex of sites.

    Raises what cctbx raises for impossible sites.
    """
    bonds = manager.pair_proxies(sites_cart=sites).bond_proxies
    if bonds.n_total():
        yield _bonds(bonds, sites)
    for term, values in (
        ("angle", _angle),
        ("dihedral", _dihedral),
        ("chirality", _chirality),
    ):
        found = _measured(term, getattr(manager, f"{term}_proxies") or (), sites, values)
        if found.atoms or found.undefined:
            yield found
    planes = manager.planarity_proxies
    if planes is not None and planes.size():
        yield _planes(planes, sites)


def worst_of_residues(
    terms: Sequence[Restraints], places: Sequence[int], naming: Naming
) -> tuple[ResidueDeviation, ...]:
    """Return for each residue that has restraints its worst, in the order of the file."""
    worst = np.full(len(naming.residues), -1.0)
    names = np.full(len(naming.residues), "", dtype="<U16")
    residue_of = naming.residue_of[np.asarray(places)]
    for term in terms:
        sizes = [len(atoms) for atoms in term.atoms]
        reached = np.full_like(worst, -1.0)
        peaks = np.repeat(term.peaks, sizes)
        np.maximum.at(reached, residue_of[np.fromiter(chain(*term.atoms), np.intp)], peaks)
        names[reached > worst] = term.term
        worst = np.maximum(worst, reached)
    return tuple(
        ResidueDeviation(residue, float(z), str(name))
        for residue, z, name in zip(naming.residues, worst, names, strict=True)
        if name
    )


def _bonds(bonds: Any, sites: Any) -> Restraints:
    simple, asu = list(bonds.simple), list(bonds.asu)
    mappings = bonds.asu_mappings()
    deltas = _array(bonds.deltas(sites_cart=sites))
    z = _z(deltas, [*simple, *asu])

    def values(index: int) -> tuple[float, float]:
        if index < len(simple):
            bond = cctbx.bond(sites_cart=sites, proxy=simple[index])
        else:
            proxy = asu[index - len(simple)]
            bond = cctbx.bond(sites_cart=sites, asu_mappings=mappings, proxy=proxy)
        return bond.distance_model, bond.distance_ideal

    atoms = [*(proxy.i_seqs for proxy in simple), *((each.i_seq, each.j_seq) for each in asu)]
    return Restraints("bond", atoms, deltas, z, np.abs(z), values)


def _measured(
    term: str, proxies: Any, sites: Any, values: Callable[[Any], tuple[float, float]]
) -> Restraints:
    kind = getattr(cctbx, term)
    covalent = [proxy for proxy in proxies if proxy.origin_id in _COVALENT]
    measured = [(proxy, kind(sites_cart=sites, proxy=proxy)) for proxy in covalent]
    # The deviation of an undefined angle is whatever was in memory.
    defined = [pair for pair in measured if getattr(pair[1], "have_angle_model", True)]
    deltas = np.array([restraint.delta for _, restraint in defined], dtype=np.float64)
    z = _z(deltas, [proxy for proxy, _ in defined])
    return Restraints(
        term,
        [proxy.i_seqs for proxy, _ in defined],
        deltas,
        z,
        np.abs(z),
        lambda index: values(defined[index][1]),
        undefined=len(measured) - len(defined),
    )


def _angle(angle: Any) -> tuple[float, float]:
    return angle.angle_model, angle.angle_ideal


def _dihedral(dihedral: Any) -> tuple[float, float]:
    # Of the ideal values that a period allows, the one that it deviates from.
    return dihedral.angle_model, _turn(dihedral.angle_model + dihedral.delta)


def _chirality(chirality: Any) -> tuple[float, float]:
    return chirality.volume_model, chirality.volume_ideal * (chirality.delta_sign or 1)


def _planes(planes: Any, sites: Any) -> Restraints:
    each = list(planes)
    z, peaks, largest = np.empty(len(each)), np.empty(len(each)), np.empty(len(each))
    for index, proxy in enumerate(each):
        distances = _array(cctbx.planarity(sites_cart=sites, proxy=proxy).deltas())
        weighted = distances * np.sqrt(_array(proxy.weights))
        z[index] = np.sqrt(np.mean(weighted**2))
        peaks[index] = np.abs(weighted).max()
        largest[index] = np.abs(distances).max()
    return Restraints(
        "planarity",
        [tuple(proxy.i_seqs) for proxy in each],
        _array(cctbx.planarity_deltas_rms(sites_cart=sites, proxies=planes)),
        z,
        peaks,
        lambda index: (float(largest[index]), 0.0),
    )


def _z(deltas: Floats, proxies: Sequence[Any]) -> Floats:
    # weight = 1 / sigma²
    weights = np.array([proxy.weight for proxy in proxies], dtype=np.float64)
    z: Floats = deltas * np.sqrt(weights)
    return z


def _array(values: Any) -> Floats:
    array: Floats = values.as_numpy_array()
    return array


def _turn(degrees: float) -> float:
    return (degrees + 180.0) % 360.0 - 180.0
