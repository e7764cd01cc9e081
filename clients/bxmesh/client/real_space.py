"""Real-space gradients as they come back from the mesh."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bxmesh.client.names import EnumNames
from bxmesh.geometry.v1 import calculations_pb2 as pb

__all__ = ["INTERPOLATIONS", "Interpolation", "RealSpaceGradients"]

Interpolation = Literal["tricubic", "linear"]

INTERPOLATIONS = EnumNames(pb.Interpolation, "INTERPOLATION_")


@dataclass(frozen=True, eq=False)
class RealSpaceGradients:
    """The density of a map at the atoms; better coordinates have more of it."""

    value: float
    """The sum over the atoms, in the unit of the map."""
    gradients: NDArray[np.float64] = field(repr=False)
    """[N, 3], of the sum, per angstrom."""
    density: NDArray[np.float64] = field(repr=False)
    """[N], at each atom."""
