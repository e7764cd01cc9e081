"""Electron-density maps over the unit cell, from the data and a model's phases."""

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from cctbx import maptbx

from bxmesh.server.geometry.engine import ccp4
from bxmesh.server.geometry.engine.errors import EngineError
from bxmesh.server.geometry.engine.model import BuiltModel, untraced
from bxmesh.server.geometry.engine.structure_factors import agreement_options
from bxmesh.server.geometry.engine.types import Floats, StepFactory
from bxmesh.server.geometry.engine.words import words

MapKind: TypeAlias = Literal["2mfo_dfc", "mfo_dfc", "anomalous"]

_TYPES = {"2mfo_dfc": "2mFo-DFc", "mfo_dfc": "mFo-DFc", "anomalous": "anom"}
_LEAST_FACTOR, _MOST_FACTOR = 2.0, 10.0
_MOST_POINTS = 2**27


@dataclass(frozen=True, eq=False)
class DensityMap:
    """A map over the whole unit cell, in electrons per Å³ and without F(000).

    Or, with scattering tables for electrons and neutrons, in the unit of the table per Å³.
    """

    kind: MapKind
    values: npt.NDArray[np.float32]
    """[A, B, C], points along a, b and c from the origin of the cell."""
    mean: float
    sigma: float
    """The standard deviation of the values."""
    symmetry: Any
    """cctbx's crystal symmetry."""

    def ccp4(self) -> bytes:
        """Return it as a CCP4 file, columns along a, rows along b and sections along c."""
        title = f"{_TYPES[self.kind]}, electrons per cubic angstrom, by bxmesh"
        return ccp4.write(self.values, self.symmetry, title, self.mean, self.sigma)


def density_map(
    model: BuiltModel,
    kind: MapKind,
    sites: Floats | None = None,
    *,
    resolution_factor: float = 4.0,
    on_step: StepFactory = untraced,
) -> DensityMap:
    """Return a map with phases and scales from `sites` float64 [N, 3], the file's when None.

    All reflections take part, the free ones too; missing ones are not made up for.
    `resolution_factor`, 2 to 10, is how many grid points there are per high resolution limit, at
    least. Raises EngineError, and SampleError when only these coordinates are at fault.
    """
    if not _LEAST_FACTOR <= resolution_factor <= _MOST_FACTOR:
        raise EngineError(
            "RESOLUTION_FACTOR_INVALID",
            f"resolution_factor must be between {_LEAST_FACTOR:g} and {_MOST_FACTOR:g} grid points "
            f"per high resolution limit, not {resolution_factor}.",
            field="resolution_factor",
        )
    target = model.scaled_at(sites, pairs=kind == "anomalous")
    places = model.atoms.sites if sites is None else sites
    manager = target.f_model(places, agreement_options(model), on_step)
    with on_step("map"):
        try:
            coefficients = manager.map_coefficients(map_type=_TYPES[kind])
            gridding = coefficients.crystal_gridding(
                resolution_factor=1 / resolution_factor,
                symmetry_flags=maptbx.use_space_group_symmetry,
            )
            _refuse_unbounded(gridding.n_real(), resolution_factor)
            fft = coefficients.fft_map(crystal_gridding=gridding).apply_volume_scaling()
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(
                "MAP_FAILED", f"The map cannot be computed: {words(error)}", field="reflections"
            ) from error
        density = fft.real_map_unpadded()
        statistics = maptbx.statistics(density)
        return DensityMap(
            kind=kind,
            values=density.as_float().as_numpy_array(),
            mean=statistics.mean(),
            sigma=statistics.sigma(),
            symmetry=coefficients.crystal_symmetry(),
        )


def _refuse_unbounded(points: tuple[int, int, int], resolution_factor: float) -> None:
    if math.prod(points) > _MOST_POINTS:
        raise EngineError(
            "MAP_TOO_LARGE",
            f"The map would have {' × '.join(map(str, points))} points and {_MOST_POINTS} is the "
            "most here; give a smaller resolution_factor than "
            f"{resolution_factor:g}, or limit the resolution when the model is created.",
            field="resolution_factor",
        )
