"""How good the measured reflections are, whatever the model: statistics of their intensities."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from cctbx.array_family import flex
from mmtbx.scaling import absolute_scaling, twin_analyses

from bxmesh.server.geometry.engine.macromolecule import Macromolecule
from bxmesh.server.geometry.engine.reflections import Reflections
from bxmesh.server.geometry.engine.words import words

_SHELLS = 10
_LEAST_PER_SHELL = 20
_LEAST_ACENTRIC = 200
_MOST_FAILURE_CHARACTERS = 200

T = TypeVar("T")


@dataclass(frozen=True)
class Shell:
    """A shell of resolution."""

    d_max: float
    d_min: float
    """In Å."""
    reflections: int
    completeness: float
    """0 to 1."""
    i_over_sigma: float | None
    """The mean; None without sigmas."""


@dataclass(frozen=True)
class DataQuality:
    """What the reflections say of themselves. None where it cannot be said; `unavailable` says why."""

    shells: tuple[Shell, ...]
    """From low resolution to high."""
    completeness: float
    i_over_sigma: float | None
    free_fraction: float | None
    wilson_b: float | None
    """In Å²."""
    anisotropic_b: tuple[float, ...] | None
    """Å², in the Cartesian frame: 11, 22, 33, 12, 13, 23."""
    anisotropy: float | None
    """The largest of its eigenvalues less the smallest, in Å²."""
    second_moment: float | None
    """<I²>/<I>² of acentric reflections: 2 untwinned, 1.5 perfectly twinned."""
    mean_l: float | None
    """<|L|> of Padilla and Yeates: 0.5 untwinned, 0.375 perfectly twinned."""
    mean_l2: float | None
    """<L²>: 0.333 untwinned, 0.2 perfectly twinned."""
    twin_laws: tuple[str, ...]
    """The laws by which the lattice allows twinning."""
    unavailable: tuple[str, ...]


def analyse(model: Macromolecule, data: Reflections) -> DataQuality:
    """Return the quality of the data that were read for a model."""
    f_obs = data.f_obs
    unavailable: list[str] = []

    def attempt(what: str, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except Exception as error:
            unavailable.append(f"{what}: {words(error)[:_MOST_FAILURE_CHARACTERS]}")
            return None

    residues, bases = _contents(model)
    isotropic = attempt(
        "Wilson B",
        lambda: absolute_scaling.ml_iso_absolute_scaling(
            miller_array=f_obs, n_residues=residues, n_bases=bases
        ),
    )
    anisotropic = attempt(
        "anisotropy",
        lambda: absolute_scaling.ml_aniso_absolute_scaling(
            miller_array=f_obs, n_residues=residues, n_bases=bases
        ),
    )
    intensities = f_obs.f_as_f_sq()
    acentric = intensities.select(intensities.data() > 0).select_acentric()
    l_test = None
    moment = None
    if acentric.size() < _LEAST_ACENTRIC:
        unavailable.append(
            f"twinning: there are {acentric.size()} acentric reflections, too few to judge by"
        )
    else:
        l_test = attempt("L test", lambda: twin_analyses.l_test(miller_array=acentric))
        moment = attempt("second moment", lambda: _second_moment(acentric))
    if f_obs.sigmas() is None:
        unavailable.append("I/sigma: the data have no sigmas")
    laws = attempt("twin laws", lambda: _twin_laws(intensities))
    flags = data.r_free_flags
    eigen = None if anisotropic is None else list(anisotropic.eigen_values)
    return DataQuality(
        shells=_shells(f_obs),
        completeness=f_obs.completeness(),
        i_over_sigma=_i_over_sigma(f_obs),
        free_fraction=None if flags is None else flags.data().count(True) / flags.size(),
        wilson_b=_finite(isotropic and isotropic.b_wilson),
        anisotropic_b=None if anisotropic is None else tuple(map(float, anisotropic.b_cart)),
        anisotropy=_finite(max(eigen) - min(eigen)) if eigen else None,
        second_moment=_finite(moment),
        mean_l=_finite(l_test and l_test.mean_l),
        mean_l2=_finite(l_test and l_test.mean_l2),
        twin_laws=laws or (),
        unavailable=tuple(unavailable),
    )


def _contents(model: Macromolecule) -> tuple[int, int]:
    """How many residues of protein and of nucleic acid there are in the asymmetric unit."""
    counts = model.hierarchy.overall_counts().get_n_residues_of_classes
    residues = int(counts(["common_amino_acid", "modified_amino_acid"]))
    bases = int(counts(["common_rna_dna", "modified_rna_dna"]))
    # The scaling wants to know of something.
    return (residues, bases) if residues + bases else (1, 0)


def _i_over_sigma(f_obs: Any) -> float | None:
    if f_obs.sigmas() is None or not f_obs.size():
        return None
    intensities = f_obs.f_as_f_sq()
    good = intensities.select(intensities.sigmas() > 0)
    return _finite(flex.mean(good.data() / good.sigmas())) if good.size() else None


def _shells(f_obs: Any) -> tuple[Shell, ...]:
    shells = max(1, min(_SHELLS, f_obs.size() // _LEAST_PER_SHELL))
    f_obs.setup_binner(n_bins=shells)
    binner = f_obs.binner()
    found = []
    for index in binner.range_used():
        chosen = f_obs.select(binner.selection(index))
        d_max, d_min = binner.bin_d_range(index)
        found.append(
            Shell(
                d_max=d_max,
                d_min=d_min,
                reflections=chosen.size(),
                completeness=chosen.size() / max(1, binner.counts_complete()[index]),
                i_over_sigma=_i_over_sigma(chosen),
            )
        )
    return tuple(found)


def _second_moment(acentric: Any) -> float:
    # Within thin shells, for intensities fall with resolution.
    acentric.setup_binner(n_bins=max(1, min(_SHELLS, acentric.size() // _LEAST_PER_SHELL)))
    moments: list[float] = [each for each in acentric.second_moment(use_binning=True).data if each]
    return sum(moments) / len(moments)


def _twin_laws(intensities: Any) -> tuple[str, ...]:
    operators = twin_analyses.twin_laws(miller_array=intensities).operators
    return tuple(law.operator.r().as_hkl() for law in operators)


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
