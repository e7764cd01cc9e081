"""How good a model is: its restraints, its backbone, its contacts and its agreement with the data."""

from bxmesh.server.geometry.engine.validation.types import (
    Deviation,
    Outlier,
    RamachandranPoint,
    ResidueDeviation,
    Share,
    Validation,
)

__all__ = [
    "Deviation",
    "Outlier",
    "RamachandranPoint",
    "ResidueDeviation",
    "Share",
    "Validation",
]
