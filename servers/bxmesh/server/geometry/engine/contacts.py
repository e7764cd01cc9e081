"""The pairs of atoms that may be in contact, out of the many that are merely near."""

from typing import Any

import numpy as np
from cctbx import geometry_restraints

from bxmesh.server.geometry.engine.types import Floats

# In Å. A pair that is farther apart than its contact distance and the margin does not come into
# contact while no atom moves by more than half of the margin.
_MARGIN = 0.4
_MOST_MOVED = _MARGIN / 2
# Choosing costs as much as a few evaluations, so it must be likely to pay.
_STILL_EVALUATIONS = 4


class Contacts:
    """The nonbonded pairs that count at coordinates that hardly change.

    cctbx lists all pairs up to 1 Å beyond the longest contact distance and keeps the list while no
    atom moves by more than 1 Å. A pair repels within its own contact distance only: three quarters
    of the list add exactly nothing, but take their time and the processor's cache. They are left
    out while every atom stays within 0.2 Å of where it was when they were looked through.
    """

    def __init__(self, function: Any) -> None:
        self._function = function
        self._listed: Any = None
        self._reaches: Floats | None = None
        self._reference: Any = None
        self._still = 0
        self._chosen: Any = None

    def among(self, listed: Any, sites: Any) -> Any:
        """Return `listed` or fewer, both nonbonded_sorted_asu_proxies, for a flex of sites."""
        if listed is not self._listed:
            self._listed, self._reaches, self._reference = listed, None, None
        if self._reference is None or self._reference.max_distance(sites) > _MOST_MOVED:
            self._reference, self._still, self._chosen = sites.deep_copy(), 0, None
        elif self._chosen is None:
            self._still += 1
            if self._still >= _STILL_EVALUATIONS:
                self._chosen = self._choose()
        return listed if self._chosen is None else self._chosen

    def _choose(self) -> Any:
        listed = self._listed
        if self._reaches is None:
            self._reaches = self._contact_distances()
        distances = listed.deltas(sites_cart=self._reference).as_numpy_array()
        (indices,) = np.nonzero(distances < self._reaches + _MARGIN)
        simple = listed.simple.size()
        chosen = geometry_restraints.nonbonded_sorted_asu_proxies(
            asu_mappings=listed.asu_mappings()
        )
        for index in indices.tolist():
            chosen.process(listed.simple[index] if index < simple else listed.asu[index - simple])
        return chosen

    def _contact_distances(self) -> Floats:
        """Return from what distance on each listed pair adds nothing; infinite where it does."""
        pairs = self._listed
        reaches = np.array([pair.vdw_distance for of in (pairs.simple, pairs.asu) for pair in of])
        for reach in np.unique(reaches):
            beyond = reach * (1 + 1e-6)
            if self._function.residual(vdw_distance=reach, delta=beyond) != 0:
                reaches[reaches == reach] = np.inf
        return reaches
