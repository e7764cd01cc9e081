"""The real-space target: the density of a map at the atoms, and its gradients."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from cctbx import uctbx

from bxmesh.server.geometry.engine.ccp4 import CellMap
from bxmesh.server.geometry.engine.coordinates import as_samples, check_sample
from bxmesh.server.geometry.engine.errors import EngineError, SampleError
from bxmesh.server.geometry.engine.model import BuiltModel
from bxmesh.server.geometry.engine.reflections import ANGLE_TOLERANCE, LENGTH_TOLERANCE
from bxmesh.server.geometry.engine.types import Floats, SampleStatus

Interpolation: TypeAlias = Literal["tricubic", "linear"]


@dataclass(frozen=True, eq=False)
class RealSpaceResult:
    """The real-space target at one set of coordinates; better coordinates have a higher one."""

    value: float
    """The sum of the density at the atoms, in the unit of the map."""
    density: Floats
    """[N], the density at each atom, in the file's order."""
    gradients: Floats
    """[N, 3], the gradient of the sum, per Å."""


def real_space(
    model: BuiltModel,
    density: CellMap,
    sites: Floats | None = None,
    *,
    interpolation: Interpolation = "tricubic",
) -> RealSpaceResult:
    """Return the density of a map at `sites` float64 [N, 3], the file's coordinates when None.

    It is interpolated between 64 points of the grid (`tricubic`, Catmull–Rom as in cctbx's
    tricubic_interpolation) or 8 (`linear`, whose gradients jump at the planes of the grid). The
    gradients are not cctbx's, which hold in cells with right angles only. Raises EngineError,
    among them MAP_CELL_MISMATCH, and SampleError when only these coordinates are at fault.
    """
    cell = model.symmetry.unit_cell()
    _refuse_other_cell(cell, density)
    (places,) = as_samples(model.atoms.sites if sites is None else sites, len(model.atoms))
    check = check_sample(places)
    if check.status is not SampleStatus.OK:
        raise SampleError(check.status, check.message)
    # Rows of the matrix are the reciprocal axes, so that it turns gradients back as it is.
    matrix = np.array(cell.fractionalization_matrix()).reshape(3, 3)
    values, gradients = _interpolated(density.values, places @ matrix.T, _KERNELS[interpolation])
    return RealSpaceResult(float(values.sum()), values, gradients @ matrix)


def _refuse_other_cell(cell: uctbx.unit_cell, density: CellMap) -> None:
    try:
        # To cctbx, cells of NaN are similar to all.
        similar = np.isfinite(density.unit_cell).all() and cell.is_similar_to(
            uctbx.unit_cell(density.unit_cell), LENGTH_TOLERANCE, ANGLE_TOLERANCE
        )
    except (RuntimeError, ValueError):
        similar = False
    if not similar:
        theirs, ours = (
            " ".join(f"{value:.2f}" for value in each)
            for each in (density.unit_cell, cell.parameters())
        )
        raise EngineError(
            "MAP_CELL_MISMATCH",
            f"The map belongs to another unit cell ({theirs}) than the model ({ours}); they may "
            f"differ by {LENGTH_TOLERANCE:.0%} in length and {ANGLE_TOLERANCE:g}° in angle.",
            field="map",
        )


_Kernel: TypeAlias = Callable[[Floats], tuple[Floats, Floats]]


def _linear(t: Floats) -> tuple[Floats, Floats]:
    ones = np.ones_like(t)
    return np.stack([1 - t, t], axis=-1), np.stack([-ones, ones], axis=-1)


def _cubic(t: Floats) -> tuple[Floats, Floats]:
    t2, t3 = t**2, t**3
    weights = [-t + 2 * t2 - t3, 2 - 5 * t2 + 3 * t3, t + 4 * t2 - 3 * t3, t3 - t2]
    slopes = [-1 + 4 * t - 3 * t2, -10 * t + 9 * t2, 1 + 8 * t - 9 * t2, 3 * t2 - 2 * t]
    return np.stack(weights, axis=-1) / 2, np.stack(slopes, axis=-1) / 2


# Weights of the points around [N, 3], and their derivatives: [N, 3, 2 or 4].
_KERNELS: dict[Interpolation, _Kernel] = {"tricubic": _cubic, "linear": _linear}


def _interpolated(
    grid: npt.NDArray[np.float32], fractional: Floats, kernel: _Kernel
) -> tuple[Floats, Floats]:
    """Values [N] and gradients by fractional coordinates [N, 3]; the grid repeats itself."""
    points = np.array(grid.shape)
    at = fractional * points
    corner = np.floor(at)
    weights, slopes = kernel(at - corner)
    width = weights.shape[-1]
    around = np.arange(width) - (width - 2) // 2
    i, j, k = (
        (corner[:, axis, np.newaxis].astype(np.int64) + around) % points[axis] for axis in range(3)
    )
    near = grid[i[:, :, None, None], j[:, None, :, None], k[:, None, None, :]].astype(np.float64)

    def summed(a: Floats, b: Floats, c: Floats) -> Floats:
        total: Floats = np.einsum("nijk,ni,nj,nk->n", near, a, b, c, optimize=True)
        return total

    a, b, c = weights.transpose(1, 0, 2)
    da, db, dc = slopes.transpose(1, 0, 2)
    gradients = np.stack([summed(da, b, c), summed(a, db, c), summed(a, b, dc)], axis=-1)
    return summed(a, b, c), gradients * points
