"""Structure factors as they come back from the mesh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bxmesh.client.names import EnumNames
from bxmesh.client.values import XrayValue
from bxmesh.geometry.v1 import calculations_pb2 as pb

__all__ = ["STRUCTURE_FACTOR_KINDS", "StructureFactorKind", "StructureFactors"]

StructureFactorKind = Literal["f_calc", "f_mask", "f_model"]

STRUCTURE_FACTOR_KINDS = EnumNames(pb.StructureFactorKind, "STRUCTURE_FACTOR_KIND_")


@dataclass(frozen=True, eq=False)
class StructureFactors:
    """Structure factors in electrons; those that were not asked for are None."""

    miller_indices: NDArray[np.int32] = field(repr=False)
    """[R, 3], unique under the symmetry."""
    f_calc: NDArray[np.complex128] | None = field(repr=False)
    """[R], of the atoms alone."""
    f_mask: NDArray[np.complex128] | None = field(repr=False)
    """[R], of the bulk-solvent mask."""
    f_model: NDArray[np.complex128] | None = field(repr=False)
    """[R], k (F_calc + k_mask F_mask), where both scales depend on the reflection."""
    xray: XrayValue | None
    """The agreement with the data; None without reflections."""
    k_overall: float
    """What F_model is multiplied with to fit the data; 1 without reflections."""
    k_mask: float
    """The bulk-solvent scale at the lowest resolution; 0 without reflections."""
    mtz_bundle_id: str
    """They as an MTZ file, with the data, for `bundles.download`; empty unless asked for."""

    @classmethod
    def from_message(
        cls, message: pb.StructureFactorsSummary, tensors: Mapping[str, NDArray[Any]]
    ) -> StructureFactors:
        """Returns the structure factors that the message closes."""
        return cls(
            miller_indices=tensors["miller_indices"],
            f_calc=tensors.get("f_calc"),
            f_mask=tensors.get("f_mask"),
            f_model=tensors.get("f_model"),
            xray=XrayValue.from_message(message.xray) if message.HasField("xray") else None,
            k_overall=message.k_overall,
            k_mask=message.k_mask,
            mtz_bundle_id=message.mtz_bundle_id,
        )
