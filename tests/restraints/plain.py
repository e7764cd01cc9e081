"""Exported restraints beside cctbx's own, called directly."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from cctbx import geometry_restraints
from cctbx.array_family import flex

from bxmesh.restraints import TERMS, Restraints
from bxmesh.server.geometry.engine import ModelInputs, RestraintLibrary
from bxmesh.server.geometry.engine.export import export
from bxmesh.server.geometry.engine.model import build

Floats = np.ndarray[Any, np.dtype[np.float64]]


class Exported:
    """A model in cctbx, and what was exported of it."""

    def __init__(self, inputs: ModelInputs, library: RestraintLibrary) -> None:
        self.model = build(inputs, library)
        self.sites = self.model.atoms.sites
        self.manager, _, self._places = self.model.lend_restraints()
        self.restraints = Restraints(export(self.model))

    def export_again(self) -> Restraints:
        """After `manager` was changed."""
        self.manager.reset_internals()
        return Restraints(export(self.model))

    def evaluate(self, sites: Floats) -> tuple[dict[str, float], Floats]:
        """Returns cctbx's terms and gradients with pairs that are found at these sites.

        A dihedral that is not defined has whatever energy the one before it left behind in cctbx;
        it counts nothing here.
        """
        # As the manager keeps its pairs until an atom moves by 1 Å, it misses some that touch.
        self.manager._sites_cart_used_for_pair_proxies = None
        at = flex.vec3_double(sites[self._places])
        energies = self.manager.energies_sites(sites_cart=at, compute_gradients=True)
        terms = {name: getattr(energies, f"{name}_residual_sum") or 0.0 for name in TERMS}
        dihedrals = [
            geometry_restraints.dihedral(sites_cart=at, proxy=proxy)
            for proxy in self.manager.dihedral_proxies or ()
        ]
        if not all(each.have_angle_model for each in dihedrals):
            terms["dihedral"] = sum(each.residual() for each in dihedrals if each.have_angle_model)
        gradients = np.zeros_like(sites)
        gradients[self._places] = energies.gradients.as_double().as_numpy_array().reshape(-1, 3)
        return terms, gradients


def moved(sites: Floats, jitters: tuple[float, ...] = (0.1, 0.5, 1.0, 3.0)) -> Iterator[Floats]:
    """Yields sites as they are, with jitter, far away, blown up and pressed together."""
    random = np.random.default_rng(0)
    centre = sites.mean(axis=0)
    yield sites
    for jitter in jitters:
        yield sites + random.normal(0, jitter, sites.shape)
    yield sites + np.array([7.3, -20.1, 55.5])
    yield centre + 2.5 * (sites - centre)
    yield centre + 0.3 * (sites - centre)


def crystal_with_symmetry_bond(*, special: bool = False) -> bytes:
    """A cystine across a twofold axis, and waters in two places; two more are on the axis.

    The sulfur is 1.02 Å from the axis.
    """
    cysteine = {
        "N": (2.83, 6.413, -0.325),
        "CA": (2.83, 5.05, 0.2),
        "C": (2.83, 5.05, 1.726),
        "O": (2.83, 3.988, 2.353),
        "CB": (1.625, 4.276, -0.329),
        "SG": (1.02, 5.0, 0.0),
    }
    rows = [("CYS", "A", 1, name, " ", site, 1.0) for name, site in cysteine.items()]
    rows += [
        ("HOH", "W", 1, "O", "A", (3.2, 9.5, 1.0), 0.5),
        ("HOH", "W", 1, "O", "B", (2.8, 9.9, 1.3), 0.5),
        ("HOH", "W", 2, "O", "A", (0.7, 9.6, 0.8), 0.5),
        ("HOH", "W", 3, "O", " ", (18.9, 9.3, 0.4), 1.0),
    ]
    if special:
        rows += [("HOH", "W", number, "O", " ", (0, y, 0), 1.0) for number, y in ((4, 8), (5, 11))]
    lines = ["CRYST1   20.000   18.000   22.000  90.00 100.00  90.00 P 1 2 1"]
    for number, (residue, chain, sequence, name, altloc, site, occupancy) in enumerate(rows, 1):
        x, y, z = site
        lines.append(
            f"ATOM  {number:5d}  {name:<3s}{altloc}{residue:>3s} {chain}{sequence:4d}    "
            f"{x:8.3f}{y:8.3f}{z:8.3f}{occupancy:6.2f}{20:6.2f}          {name[0]:>2s}"
        )
    return "\n".join([*lines, "END", ""]).encode()
