"""Reading reflections: amplitudes or intensities, and R-free flags."""

import io
import random
from dataclasses import dataclass, replace
from typing import Any

import iotbx.mtz
from cctbx import crystal, french_wilson
from iotbx.reflection_file_utils import get_r_free_flags_scores

from bxmesh.server.geometry.engine import cif, files, mtz_header
from bxmesh.server.geometry.engine.errors import EngineError
from bxmesh.server.geometry.engine.types import ModelOptions
from bxmesh.server.geometry.engine.words import words

LENGTH_TOLERANCE = 0.01
"""Relative difference between the cell lengths of model and data that is accepted, as in mmtbx."""
ANGLE_TOLERANCE = 1.0
"""Difference in degrees between the cell angles of model and data that is accepted."""

_FIELD = "reflections"
_UNREADABLE = "REFLECTIONS_UNREADABLE"
_MTZ_MAGIC = b"MTZ "
_RESOLUTION_TOLERANCE = 1.0e-3
_FREE_FRACTION = 0.1
_FREE_MAXIMUM = 2000
_CALCULATED = ("FC", "FMODEL", "F-MODEL", "FWT", "DELFWT", "FDM", "2FOFC", "FOFC")


@dataclass(frozen=True, eq=False)
class Reflections:
    """Observed amplitudes on an absolute set, with flags that are True for the free ones."""

    f_obs: Any
    r_free_flags: Any
    """None when there are none."""
    labels: str
    is_intensity: bool
    anomalous_merged: bool
    r_free_labels: str | None
    r_free_test_value: int | None
    r_free_generated: bool
    notices: tuple[str, ...]
    phases: Any = None
    """Hendrickson-Lattman coefficients of the same reflections; None when there are none."""
    bijvoet: Any = None
    """Observed data with Bijvoet mates apart, intensities or amplitudes; None when there are none."""

    def with_pairs(self) -> "Reflections":
        """Return the same with amplitudes of F(+) and F(-) apart; raises EngineError."""
        if self.bijvoet is None or not self.bijvoet.n_bijvoet_pairs():
            raise EngineError(
                "NO_ANOMALOUS_PAIRS",
                "The reflections have no anomalous pairs, which an anomalous difference needs. "
                "Give data with F(+) and F(-), or I(+) and I(-), not averaged.",
                field=_FIELD,
            )
        d_max, d_min = self.f_obs.d_max_min()
        try:
            f_obs = _as_amplitudes(self.bijvoet, []).resolution_filter(
                d_max=d_max * (1 + _RESOLUTION_TOLERANCE), d_min=d_min * (1 - _RESOLUTION_TOLERANCE)
            )
            flags = self.r_free_flags
            if flags is not None:
                f_obs, flags = f_obs.common_sets(flags.generate_bijvoet_mates())
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(
                _UNREADABLE,
                f"The anomalous pairs of the reflections cannot be used: {words(error)}",
                field=_FIELD,
            ) from error
        return replace(self, f_obs=f_obs, r_free_flags=flags)


def read(data: bytes, symmetry: crystal.symmetry | None, options: ModelOptions) -> Reflections:
    """Return the reflections in `data` for a model of `symmetry`; raises EngineError."""
    content = files.decompress(data, field=_FIELD)
    try:
        arrays = _arrays(content, symmetry)
        notices: list[str] = []
        observed = _select_observed(arrays, options, notices)
        _refuse_other_crystal(observed, symmetry)
        merged = observed.anomalous_flag()
        f_obs = _amplitudes(observed, notices)
        f_obs = _limit(f_obs, options)
        flags, flag_labels, value, generated = _flags(arrays, f_obs, options, notices)
        if flags is not None:
            f_obs, flags = f_obs.common_sets(flags)
        return Reflections(
            f_obs=f_obs,
            r_free_flags=flags,
            labels=observed.info().label_string(),
            is_intensity=bool(observed.is_xray_intensity_array()),
            anomalous_merged=bool(merged),
            r_free_labels=flag_labels,
            r_free_test_value=value,
            r_free_generated=generated,
            notices=tuple(notices),
            phases=_phases(arrays, f_obs),
            bijvoet=_bijvoet(arrays, observed, options),
        )
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(
            _UNREADABLE,
            f"The reflections cannot be used: {words(error)}",
            field=_FIELD,
        ) from error


def _arrays(content: bytes, symmetry: crystal.symmetry | None) -> list[Any]:
    # Not iotbx's any_reflection_file: among the formats it tries are pickles.
    if content.startswith(_MTZ_MAGIC):
        mtz_header.check(content)
        with files.as_path(content, "reflections.mtz") as path:
            return list(iotbx.mtz.object(str(path)).as_miller_arrays())
    text = files.decode(content, field=_FIELD, reason=_UNREADABLE)
    if "_refln" not in text:
        raise EngineError(
            _UNREADABLE,
            "The reflections are neither MTZ nor structure-factor CIF.",
            field=_FIELD,
        )
    reader = cif.reader(text, field=_FIELD, reason=_UNREADABLE)
    arrays = reader.as_miller_arrays()
    if arrays and arrays[0].unit_cell() is None:
        arrays = reader.as_miller_arrays(crystal_symmetry=symmetry)
    return list(arrays)


def _select_observed(arrays: list[Any], options: ModelOptions, notices: list[str]) -> Any:
    candidates = [
        array
        for array in arrays
        if array.is_xray_amplitude_array() or array.is_xray_intensity_array()
    ]
    if options.data_labels is not None:
        wanted = _normal(options.data_labels)
        for array in candidates:
            if wanted in (_normal(array.info().label_string()), _normal(array.info().labels[0])):
                return array
        available = ", ".join(array.info().label_string() for array in candidates) or "none"
        raise EngineError(
            "NO_DATA_IN_REFLECTIONS",
            f"The reflections have no data labelled {options.data_labels}; there is: {available}.",
            field=_FIELD,
        )
    observed = [array for array in candidates if not _is_calculated(array)]
    if not observed:
        columns = ", ".join(array.info().label_string() for array in arrays) or "none"
        raise EngineError(
            "NO_DATA_IN_REFLECTIONS",
            "The reflections have neither observed amplitudes nor intensities (columns: "
            f"{columns}). Give the file with the measured data.",
            field=_FIELD,
        )
    # min() keeps the first of equals, the order of the file.
    chosen = min(
        observed,
        key=lambda array: (
            array.sigmas() is None,
            not array.is_xray_amplitude_array(),
            array.anomalous_flag(),
        ),
    )
    if len(observed) > 1:
        others = ", ".join(a.info().label_string() for a in observed if a is not chosen)
        notices.append(f"Data used: {chosen.info().label_string()}; also in the file: {others}.")
    return chosen


def _phases(arrays: list[Any], f_obs: Any) -> Any:
    for array in arrays:
        if array.is_hendrickson_lattman_array():
            array = (
                array.map_to_asu().merge_equivalents().array() if array.anomalous_flag() else array
            )
            return array.customized_copy(crystal_symmetry=f_obs).map_to_asu().common_set(f_obs)
    return None


def _is_calculated(array: Any) -> bool:
    return array.sigmas() is None and array.info().labels[0].upper().startswith(_CALCULATED)


def _refuse_other_crystal(observed: Any, symmetry: crystal.symmetry | None) -> None:
    if symmetry is None:
        raise EngineError(
            "NO_CRYSTAL_SYMMETRY",
            "The macromolecule has no unit cell and space group, which reflections need; add its "
            "CRYST1 record or _cell and _symmetry items, or leave the reflections out.",
            field="macromolecule",
        )
    theirs = observed.crystal_symmetry()
    similar = theirs is not None and symmetry.is_similar_symmetry(
        theirs,
        relative_length_tolerance=LENGTH_TOLERANCE,
        absolute_angle_tolerance=ANGLE_TOLERANCE,
    )
    if not similar:
        raise EngineError(
            "CRYSTAL_SYMMETRY_MISMATCH",
            f"The reflections belong to another crystal ({_describe(theirs)}) than the model "
            f"({_describe(symmetry)}); cells may differ by {LENGTH_TOLERANCE:.0%} in length and "
            f"{ANGLE_TOLERANCE:g}° in angle.",
            field=_FIELD,
        )


def _bijvoet(arrays: list[Any], observed: Any, options: ModelOptions) -> Any:
    """The observed data if they have pairs, or others in the file unless data were chosen."""
    candidates = [observed]
    if options.data_labels is None:
        candidates += [
            array
            for array in arrays
            if (array.is_xray_amplitude_array() or array.is_xray_intensity_array())
            and not _is_calculated(array)
        ]
    found = next((array for array in candidates if array.anomalous_flag()), None)
    return None if found is None else _unique(found)


def _unique(observed: Any) -> Any:
    array = observed.eliminate_sys_absent(log=io.StringIO()).map_to_asu()
    if not array.is_unique_set_under_symmetry():
        array = array.merge_equivalents().array().set_observation_type(observed)
    return array


def _amplitudes(observed: Any, notices: list[str]) -> Any:
    array = _unique(observed)
    if array.anomalous_flag():
        array = array.average_bijvoet_mates().set_observation_type(observed)
        notices.append("Anomalous pairs were averaged.")
    return _as_amplitudes(array, notices)


def _as_amplitudes(array: Any, notices: list[str]) -> Any:
    if array.is_xray_intensity_array():
        array = _from_intensities(array, notices)
    else:
        good = array.data() >= 0
        if array.sigmas() is not None:
            good &= array.sigmas() >= 0
        array = array.select(good)
    if not array.size():
        raise EngineError(
            "NO_DATA_IN_REFLECTIONS", "No reflection has a usable value.", field=_FIELD
        )
    return array.set_observation_type_xray_amplitude()


def _from_intensities(array: Any, notices: list[str]) -> Any:
    if array.sigmas() is None:
        notices.append(
            "Intensities have no standard deviations: square roots of the positive ones are used."
        )
        return array.select(array.data() > 0).f_sq_as_f()
    array = array.select(array.sigmas() > 0)
    amplitudes = french_wilson.french_wilson_scale(array, log=io.StringIO())
    if amplitudes is None:
        raise EngineError(
            "NO_DATA_IN_REFLECTIONS",
            "The intensities cannot be turned into amplitudes (French and Wilson): there are too "
            "few. Give amplitudes.",
            field=_FIELD,
        )
    notices.append("Amplitudes were estimated from intensities (French and Wilson).")
    return amplitudes


def _limit(f_obs: Any, options: ModelOptions) -> Any:
    d_max, d_min = f_obs.d_max_min()
    low = d_max if options.d_max is None else options.d_max
    high = d_min if options.d_min is None else options.d_min
    inside = (
        high >= d_min * (1 - _RESOLUTION_TOLERANCE)
        and low <= d_max * (1 + _RESOLUTION_TOLERANCE)
        and high < low
    )
    if not inside:
        raise EngineError(
            "RESOLUTION_OUTSIDE_DATA",
            f"The resolution limits {low:.3f}–{high:.3f} Å are outside the data, which reach from "
            f"{d_max:.3f} to {d_min:.3f} Å.",
            field="options",
        )
    if options.d_min is None and options.d_max is None:
        return f_obs
    limited = f_obs.resolution_filter(d_max=options.d_max or 0, d_min=options.d_min or 0)
    if not limited.size():
        raise EngineError(
            "RESOLUTION_OUTSIDE_DATA",
            f"No reflection lies between {low:.3f} and {high:.3f} Å.",
            field="options",
        )
    return limited


def _flags(
    arrays: list[Any], f_obs: Any, options: ModelOptions, notices: list[str]
) -> tuple[Any, str | None, int | None, bool]:
    candidates = [a for a in arrays if a.is_integer_array() or a.is_bool_array()]
    if options.r_free_labels is not None:
        wanted = _normal(options.r_free_labels)
        candidates = [a for a in candidates if _normal(a.info().label_string()) == wanted]
    scores = get_r_free_flags_scores(miller_arrays=candidates, test_flag_value=None)
    best = max(range(len(candidates)), key=lambda i: scores.scores[i], default=None)
    if best is not None and scores.scores[best] > 0:
        array, value = candidates[best], scores.test_flag_values[best]
        flags = array.array(data=array.data() == value).map_to_asu()
        if flags.anomalous_flag():
            flags = flags.average_bijvoet_mates()
        return _matching(flags, f_obs, notices), array.info().label_string(), int(value), False
    if options.r_free_labels is not None:
        raise EngineError(
            "NO_R_FREE_FLAGS",
            f"The reflections have no R-free flags labelled {options.r_free_labels}.",
            field=_FIELD,
        )
    if options.generate_r_free_flags:
        flags = _generated(f_obs)
        notices.append(
            "R-free flags were generated: R-free is not independent of a model refined elsewhere."
        )
        return flags, None, 1, True
    return None, None, None, False


def _generated(f_obs: Any) -> Any:
    # The same data must always get the same flags, and cctbx draws from Python's generator.
    state = random.getstate()
    random.seed(0)
    try:
        return f_obs.generate_r_free_flags(fraction=_FREE_FRACTION, max_free=_FREE_MAXIMUM)
    finally:
        random.setstate(state)


def _matching(flags: Any, f_obs: Any, notices: list[str]) -> Any:
    common = flags.common_set(f_obs)
    lacking = f_obs.size() - common.size()
    if not common.data().count(True):
        raise EngineError(
            "NO_R_FREE_FLAGS", "No reflection with data is flagged as free.", field=_FIELD
        )
    if lacking:
        notices.append(f"{lacking} reflections without an R-free flag are left out.")
    return common


def _normal(labels: str) -> str:
    return labels.replace(" ", "").upper()


def _describe(symmetry: crystal.symmetry | None) -> str:
    if symmetry is None or symmetry.unit_cell() is None:
        return "no unit cell"
    cell = " ".join(f"{value:.2f}" for value in symmetry.unit_cell().parameters())
    return f"{cell}, {symmetry.space_group_info()}"
