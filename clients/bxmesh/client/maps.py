"""Electron-density maps as they come back from the mesh."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bxmesh.client.names import EnumNames
from bxmesh.geometry.v1 import calculations_pb2 as pb

__all__ = ["MAP_KINDS", "DensityMap", "MapKind"]

MapKind = Literal["2mfo_dfc", "mfo_dfc", "anomalous"]

MAP_KINDS = EnumNames(pb.MapKind, "MAP_KIND_")


@dataclass(frozen=True, eq=False)
class DensityMap:
    """A map over the whole unit cell, in electrons per cubic angstrom and without F(000)."""

    values: NDArray[np.float32] = field(repr=False)
    """[A, B, C], points along a, b and c from the origin of the cell."""
    mean: float
    """Their mean."""
    sigma: float
    """Their standard deviation; divide by it for a map in sigmas."""
    ccp4_bundle_id: str
    """The map as a CCP4 file, for `bundles.download`."""

    @classmethod
    def from_message(cls, message: pb.MapSummary, values: NDArray[Any]) -> DensityMap:
        """Returns the map that the message closes."""
        return cls(values, message.mean, message.sigma, message.ccp4_bundle_id)
