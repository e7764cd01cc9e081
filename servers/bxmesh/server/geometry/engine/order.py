"""The way between the order of the atoms in the input file and that of cctbx."""

from typing import Any

import numpy as np
import numpy.typing as npt
from cctbx.array_family import flex

from bxmesh.server.geometry.engine.types import Floats, Mask


class AtomOrder:
    """Maps arrays over all N atoms of the file to those over the atoms cctbx has, and back.

    `places[i]` is the place in the file of cctbx's atom i.
    """

    def __init__(self, places: npt.NDArray[np.intp], n_atoms: int) -> None:
        self._places = places
        self._n_atoms = n_atoms
        self._identity = np.array_equal(places, np.arange(n_atoms))
        self._inverse = np.argsort(places) if len(places) == n_atoms else None
        self.mask: Mask = np.zeros(n_atoms, dtype=np.bool_)
        self.mask[places] = True
        self.mask.flags.writeable = False

    @property
    def places(self) -> npt.NDArray[np.intp]:
        """The place in the file of each atom that cctbx has."""
        return self._places

    def to_flex(self, sites: Floats) -> Any:
        """Return sites [N, 3] of the file as cctbx's flex.vec3_double."""
        if not self._identity:
            sites = sites.take(self._places, axis=0)
        return flex.vec3_double(flex.double(sites.ravel()))

    def to_file(self, values: Floats) -> Floats:
        """Return cctbx's values in the file's order, zero for the atoms it does not have."""
        if self._identity:
            return values
        if self._inverse is not None:
            return values.take(self._inverse, axis=0)
        placed = np.zeros((self._n_atoms, *values.shape[1:]))
        placed[self._places] = values
        return placed
