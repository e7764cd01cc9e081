"""Checks coordinates before they reach cctbx."""

import numpy as np
import numpy.typing as npt

from bxmesh.server.geometry.engine.errors import EngineError
from bxmesh.server.geometry.engine.types import Floats, SampleCheck, SampleStatus

MAX_ABSOLUTE = 1.0e4
"""Å from the origin, on any axis."""
_COINCIDENT = 1.0e-6

_OK = SampleCheck(SampleStatus.OK)


def as_samples(coordinates: npt.ArrayLike, n_atoms: int) -> Floats:
    """Return coordinates [N, 3] or [B, N, 3], float32 or float64, as float64 [B, N, 3].

    Raises EngineError with COORDINATES_DTYPE or COORDINATES_SHAPE.
    """
    array = np.asarray(coordinates)
    if array.dtype not in (np.float32, np.float64):
        raise EngineError(
            "COORDINATES_DTYPE",
            f"Coordinates must be float32 or float64, not {array.dtype}.",
            field="coordinates",
        )
    samples = array[np.newaxis] if array.ndim == 2 else array
    if samples.ndim != 3 or samples.shape[1:] != (n_atoms, 3) or not len(samples):
        raise EngineError(
            "COORDINATES_SHAPE",
            f"Coordinates have the shape {list(array.shape)}; this model needs [{n_atoms}, 3] or, "
            f"for a batch, [B, {n_atoms}, 3], with every atom of the file in its order.",
            field="coordinates",
        )
    return np.ascontiguousarray(samples, dtype=np.float64)


def check_sample(sites: Floats) -> SampleCheck:
    """Return the verdict on one sample [N, 3] as far as it can be told without cctbx."""
    low, high = sites.min(), sites.max()
    if not np.isfinite(low + high):
        count = int((~np.isfinite(sites).all(axis=1)).sum())
        return SampleCheck(
            SampleStatus.NON_FINITE, f"{count} atoms have coordinates that are NaN or infinite."
        )
    farthest = max(-low, high)
    if farthest > MAX_ABSOLUTE:
        return SampleCheck(
            SampleStatus.OUT_OF_RANGE,
            f"A coordinate is {farthest:.6g} Å from the origin; the limit is {MAX_ABSOLUTE:g} Å.",
        )
    # Two atoms are looked at first, as going through all of them costs more than the rest.
    ends = sites[:: max(len(sites) - 1, 1)]
    if len(sites) > 1 and _extent(ends) < _COINCIDENT and _extent(sites) < _COINCIDENT:
        return SampleCheck(
            SampleStatus.DEGENERATE, "All atoms are in the same place: gradients are undefined."
        )
    return _OK


def _extent(sites: Floats) -> float:
    return float(np.ptp(sites, axis=0).max())
