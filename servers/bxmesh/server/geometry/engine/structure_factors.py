"""Structure factors of a model: of its atoms, of the solvent's mask, and of both, scaled."""

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import iotbx.mtz
import numpy as np
import numpy.typing as npt
from cctbx.array_family import flex

from bxmesh.server.geometry.engine.errors import EngineError, SampleError
from bxmesh.server.geometry.engine.model import BuiltModel, untraced
from bxmesh.server.geometry.engine.types import (
    Algorithm,
    Floats,
    SampleStatus,
    StepFactory,
    XrayOptions,
    XrayResult,
)
from bxmesh.server.geometry.engine.words import words

Kind: TypeAlias = Literal["f_calc", "f_mask", "f_model"]

_KINDS: tuple[Kind, ...] = ("f_calc", "f_mask", "f_model")
_MOST_REFLECTIONS = 5_000_000
# As CCP4 and Phenix name them.
_AMPLITUDES = {"f_calc": "FC", "f_mask": "FMASK", "f_model": "FMODEL"}
_PHASES = {"FC": "PHIC", "FMASK": "PHIMASK", "FMODEL": "PHIFMODEL"}
_CREATED = re.compile(rb"CREATED_\d\d/\d\d/\d{4}_\d\d:\d\d:\d\d")
_CREATED_LENGTH = 27


@dataclass(frozen=True, eq=False)
class StructureFactors:
    """Structure factors in electrons; F_model, on whose scale cctbx has the data, within 10 %."""

    miller_indices: npt.NDArray[np.int32]
    """[R, 3], unique under the symmetry."""
    values: Mapping[str, npt.NDArray[np.complex128]]
    """[R] each: F_calc, F_mask, and F_model = k (F_calc + k_mask F_mask), where k and k_mask depend
    on the reflection."""
    xray: XrayResult | None
    """The agreement with the data; None without reflections."""
    k_overall: float
    """What F_model is multiplied with to fit the observed amplitudes best; 1 without any."""
    k_mask: float
    """The bulk-solvent scale at the lowest resolution; 0 without reflections."""
    arrays: Mapping[str, Any]
    """cctbx's arrays of these, and where there are data `f_obs`, on the scale of F_model, and
    `r_free_flags`."""

    def mtz(self) -> bytes:
        """Return them as an MTZ file.

        Columns FC, PHIC, FMASK, PHIMASK, FMODEL and PHIFMODEL, phases in degrees; with data FOBS,
        SIGFOBS, divided by `k_overall`, and R-free-flags, 1 for the free set.
        """
        dataset: Any = None
        for name, array in self.arrays.items():
            root = _AMPLITUDES.get(name, "FOBS" if name == "f_obs" else "R-free-flags")
            if dataset is None:
                dataset = array.as_mtz_dataset(
                    column_root_label=root, label_decorator=_Labels(), wavelength=0
                )
            else:
                dataset.add_miller_array(array, column_root_label=root, label_decorator=_Labels())
        with tempfile.TemporaryDirectory(prefix="bxmesh-") as folder:
            path = Path(folder) / "structure_factors.mtz"
            dataset.mtz_object().set_title("structure factors by bxmesh").write(str(path))
            return _timeless(path.read_bytes())


def _timeless(content: bytes) -> bytes:
    # Each column says when it was made; without that, equal structure factors are one bundle.
    header = content.rindex(b"VERS MTZ")
    unknown = b"CREATED".ljust(_CREATED_LENGTH)
    return content[:header] + _CREATED.sub(unknown, content[header:])


class _Labels(iotbx.mtz.label_decorator):  # type: ignore[misc]
    def phases(self, root_label: str, anomalous_sign: str | None = None) -> str:
        return _PHASES[root_label]


def structure_factors(
    model: BuiltModel,
    sites: Floats | None = None,
    *,
    kinds: Sequence[Kind] = (),
    algorithm: Algorithm = "fft",
    d_min: float | None = None,
    on_step: StepFactory = untraced,
) -> StructureFactors:
    """Return structure factors of `kinds`, all there are when empty, at `sites` float64 [N, 3].

    With reflections they are at the indices of these but for outliers, and the scales are
    determined at `sites`. Without, F_calc alone is computed, up to the resolution `d_min` in Å.
    Without `sites` the coordinates are the file's. Raises EngineError, and SampleError when only
    these coordinates are at fault.
    """
    if model.summary.data is None:
        return _of_atoms(model, sites, kinds, algorithm, d_min, on_step)
    if d_min is not None:
        raise EngineError(
            "D_MIN_NOT_TAKEN",
            "The reflections say which structure factors there are; leave d_min out, or limit "
            "the resolution when the model is created.",
            field="d_min",
        )
    target = model.scaled_at(sites)
    options = agreement_options(model, algorithm)
    places = model.atoms.sites if sites is None else sites
    agreement = target.evaluate(places, options, on_step)
    manager = target.f_model(places, options, on_step)
    f_model = manager.f_model()
    observed = target.reflections.f_obs.common_set(f_model)
    sizes = flex.abs(f_model.data())
    k_overall = flex.sum(observed.data() * sizes) / flex.sum(sizes * sizes)
    found = {"f_calc": manager.f_calc(), "f_mask": manager.f_masks()[0], "f_model": f_model}
    wanted: dict[str, Any] = {kind: found[kind] for kind in kinds or _KINDS}
    data = {"f_obs": observed.apply_scaling(factor=1 / k_overall)}
    if target.reflections.r_free_flags is not None:
        data["r_free_flags"] = manager.r_free_flags()
    return _assembled(wanted, data, agreement, k_overall, _lowest(manager))


def agreement_options(model: BuiltModel, algorithm: Algorithm = "fft") -> XrayOptions:
    """Return how data are scaled when no gradients are wanted; also without R-free flags."""
    free = model.summary.data is not None and model.summary.data.free
    return XrayOptions(
        target="ml" if free else "ls", algorithm=algorithm, with_respect_to=frozenset()
    )


def _of_atoms(
    model: BuiltModel,
    sites: Floats | None,
    kinds: Sequence[Kind],
    algorithm: Algorithm,
    d_min: float | None,
    on_step: StepFactory,
) -> StructureFactors:
    if set(kinds) - {"f_calc"}:
        raise EngineError(
            "NO_REFLECTIONS",
            "F_mask and F_model need scales, and so reflections, and the model was created without "
            "any; ask for F_calc alone.",
            field="reflections",
        )
    limit = _checked_limit(model.symmetry.unit_cell().volume(), d_min)
    if not model.symmetry.build_miller_set(anomalous_flag=False, d_min=limit).size():
        raise EngineError(
            "D_MIN_TOO_LARGE",
            f"The crystal has no reflection up to {limit:g} Å; give a smaller d_min.",
            field="d_min",
        )
    structure = model.xray_structure(sites, limit)
    with on_step("structure_factors"):
        try:
            f_calc = structure.structure_factors(
                anomalous_flag=False, d_min=limit, algorithm=algorithm
            ).f_calc()
        except Exception as error:
            raise SampleError(
                SampleStatus.FAILED, f"Structure factors cannot be computed: {words(error)}"
            ) from error
    return _assembled({"f_calc": f_calc}, {}, None, 1.0, 0.0)


def _checked_limit(volume: float, d_min: float | None) -> float:
    if d_min is None:
        raise EngineError(
            "NO_D_MIN",
            "The model has no reflections that would say how far structure factors reach; give "
            "d_min in Å.",
            field="d_min",
        )
    if not (math.isfinite(d_min) and d_min > 0):
        raise EngineError(
            "D_MIN_INVALID", f"d_min must be a positive number of Å, not {d_min}.", field="d_min"
        )
    # Half a sphere of reciprocal space, with as many reflections in a unit as the cell has Å³.
    count = 2 * math.pi / 3 * volume / max(d_min, 1e-3) ** 3
    if count > _MOST_REFLECTIONS:
        least = (2 * math.pi / 3 * volume / _MOST_REFLECTIONS) ** (1 / 3)
        raise EngineError(
            "TOO_MANY_REFLECTIONS",
            f"Up to {d_min:g} Å this crystal has more than {_MOST_REFLECTIONS} reflections, the "
            f"most here; give a d_min of {least:.2f} Å or more.",
            field="d_min",
        )
    return d_min


def _lowest(manager: Any) -> float:
    place = flex.max_index(manager.f_obs().d_spacings().data())
    return float(manager.k_masks()[0][place])


def _assembled(
    wanted: Mapping[str, Any],
    data: Mapping[str, Any],
    agreement: XrayResult | None,
    k_overall: float,
    k_mask: float,
) -> StructureFactors:
    indices = next(iter(wanted.values())).indices().as_vec3_double().as_double()
    return StructureFactors(
        miller_indices=indices.as_numpy_array().reshape(-1, 3).astype(np.int32),
        values={kind: array.data().as_numpy_array() for kind, array in wanted.items()},
        xray=agreement,
        k_overall=k_overall,
        k_mask=k_mask,
        arrays={**data, **wanted},
    )
