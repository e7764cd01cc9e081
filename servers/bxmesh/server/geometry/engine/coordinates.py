"""Checks coordinates before they reach cctbx."""

import numpy as np
import numpy.typing as npt

from bxmesh.server.geometry.engine.errors import EngineError
from bxmesh.server.geometry.engine.types import Floats, SampleCheck, SampleStatus

MAX_ABSOLUTE = 1.0e4
"""Å from the origin, on any axis."""
_COINCIDENT = 1.0e-6
# A crystal has some 15 atoms, with hydrogens and alternative locations some 40, in 5 Å cubed. Up to
# the number below even all pairs are few enough.
_CELL = 5.0
_MOST_PER_CELL = 500
_NEVER_CROWDED = 3000

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
    check = check_places(sites)
    if check.status is SampleStatus.OK and is_crowded(sites):
        return SampleCheck(
            SampleStatus.FAILED,
            f"More than {_MOST_PER_CELL} atoms share {_CELL:g} Å: too many pairs of neighbours.",
        )
    return check


def check_places(sites: Floats) -> SampleCheck:
    """Return the verdict on one sample [N, 3] but for crowds, which take longer to find."""
    # One comparison finds whatever is wrong with any number; only then it is asked what.
    farthest = max(-sites.min(), sites.max())
    if not farthest <= MAX_ABSOLUTE:
        count = int((~np.isfinite(sites).all(axis=1)).sum())
        if count:
            return SampleCheck(
                SampleStatus.NON_FINITE, f"{count} atoms have coordinates that are NaN or infinite."
            )
        return SampleCheck(
            SampleStatus.OUT_OF_RANGE,
            f"A coordinate is {farthest:.6g} Å from the origin; the limit is {MAX_ABSOLUTE:g} Å.",
        )
    # Two atoms are looked at first, as going through all of them costs more than the rest.
    if len(sites) > 1 and _coincide(sites[0], sites[-1]) and _extent(sites) < _COINCIDENT:
        return SampleCheck(
            SampleStatus.DEGENERATE, "All atoms are in the same place: gradients are undefined."
        )
    return _OK


def is_crowded(sites: Floats) -> bool:
    """Return whether so many atoms share a place that pairs of neighbours would fill the memory."""
    if len(sites) <= _NEVER_CROWDED:
        return False
    cells = ((sites - sites.min(axis=0)) / _CELL).astype(np.int64)
    spans = cells.max(axis=0) + 1
    if np.prod(spans, dtype=float) > 2**62:
        return False
    keys = (cells[:, 0] * spans[1] + cells[:, 1]) * spans[2] + cells[:, 2]
    return bool(np.unique(keys, return_counts=True)[1].max() > _MOST_PER_CELL)


def _coincide(a: Floats, b: Floats) -> bool:
    return all(abs(x - y) < _COINCIDENT for x, y in zip(a.tolist(), b.tolist(), strict=True))


def _extent(sites: Floats) -> float:
    return float(np.ptp(sites, axis=0).max())
