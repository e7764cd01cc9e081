"""Crystals with simulated data, for what the data of the wheel do not show."""

import tempfile
from pathlib import Path
from typing import Any

import iotbx.mtz
import iotbx.pdb
import numpy as np
from cctbx import crystal, sgtbx
from cctbx.array_family import flex

from tests.engine.wheel import PDB_1YJP, wheel_bytes, wheel_file

D_MIN = 1.8
_ANOMALOUS = 0.6


def written(dataset: Any) -> bytes:
    """Return an MTZ dataset as the bytes of its file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.mtz"
        dataset.mtz_object().write(str(path))
        return path.read_bytes()


def anomalous_1yjp(*, intensities: bool = False, flags: bool = True) -> bytes:
    """1yjp (P 21) with data whose Bijvoet mates differ, since its oxygens scatter anomalously."""
    structure = iotbx.pdb.input(str(wheel_file(PDB_1YJP))).xray_structure_simple()
    for scatterer in structure.scatterers():
        if scatterer.element_symbol() == "O":
            scatterer.fdp = _ANOMALOUS
    data = _measured(structure, anomalous=True)
    if intensities:
        data = data.f_as_f_sq()
    return _with_flags(data, "I" if intensities else "F", flags=flags)


def merged_and_pairs() -> bytes:
    """The data of `anomalous_1yjp` beside their averages, as FMEAN."""
    pairs, flags = _arrays(anomalous_1yjp())
    dataset = pairs.as_mtz_dataset(column_root_label="F")
    dataset.add_miller_array(pairs.average_bijvoet_mates(), column_root_label="FMEAN")
    dataset.add_miller_array(flags, column_root_label="R-free-flags")
    return written(dataset)


def without_deviations(data: bytes) -> bytes:
    """The same data and flags, but for the standard deviations."""
    observed, flags = _arrays(data)
    plain = observed.array(data=observed.data()).set_observation_type_xray_amplitude()
    dataset = plain.as_mtz_dataset(column_root_label="F")
    dataset.add_miller_array(flags, column_root_label="R-free-flags")
    return written(dataset)


def _arrays(data: bytes) -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.mtz"
        path.write_bytes(data)
        observed, flags = iotbx.mtz.object(str(path)).as_miller_arrays()
    return observed, flags


def in_another_crystal(cell: tuple[float, ...], group: str) -> bytes:
    """The atoms of 1yjp in a cell of their own, as PDB."""
    record = iotbx.pdb.format_cryst1_record(crystal.symmetry(cell, group))
    lines = wheel_bytes(PDB_1YJP).decode().splitlines()
    atoms = [line for line in lines if line.startswith(("ATOM", "HETATM"))]
    return "\n".join([record, *atoms, "END", ""]).encode()


def simulated(cell: tuple[float, ...], group: str) -> bytes:
    """Data of what `in_another_crystal` gives."""
    text = in_another_crystal(cell, group).decode()
    source = iotbx.pdb.input(source_info=None, lines=text.splitlines())
    return _with_flags(_measured(source.xray_structure_simple(), anomalous=False), "F")


def twinned(cell: tuple[float, ...], group: str, law: str, fraction: float) -> bytes:
    """Data of what `in_another_crystal` gives, twinned."""
    text = in_another_crystal(cell, group).decode()
    source = iotbx.pdb.input(source_info=None, lines=text.splitlines())
    structure = source.xray_structure_simple()
    first = abs(structure.structure_factors(d_min=D_MIN, algorithm="direct").f_calc())
    rotation = np.array(sgtbx.rt_mx(symbol=law).as_double_array()[:9]).reshape(3, 3)
    mates = np.rint(np.array(first.indices()) @ rotation).astype(int)
    other = first.customized_copy(
        indices=flex.miller_index([tuple(map(int, hkl)) for hkl in mates])
    )
    second = abs(other.structure_factors_from_scatterers(structure, algorithm="direct").f_calc())
    squares = (1 - fraction) * flex.pow2(first.data()) + fraction * flex.pow2(second.data())
    amplitudes = flex.sqrt(squares)
    noise = np.random.default_rng(0).normal(1, 0.01, first.size())
    data = first.customized_copy(
        data=amplitudes * flex.double(noise), sigmas=0.02 * amplitudes + 0.1
    ).set_observation_type_xray_amplitude()
    return _with_flags(data, "F")


def _measured(structure: Any, *, anomalous: bool) -> Any:
    data = abs(structure.structure_factors(d_min=D_MIN, anomalous_flag=anomalous).f_calc())
    noise = np.random.default_rng(0).normal(1, 0.02, data.size())
    return data.array(
        data=data.data() * flex.double(noise), sigmas=0.03 * data.data() + 0.1
    ).set_observation_type_xray_amplitude()


def _with_flags(data: Any, root: str, *, flags: bool = True) -> bytes:
    dataset = data.as_mtz_dataset(column_root_label=root)
    if flags:
        merged = data.average_bijvoet_mates() if data.anomalous_flag() else data
        chosen = np.random.default_rng(1).random(merged.size()) < 0.1
        free = merged.array(data=flex.int(chosen.astype(np.int32)))
        dataset.add_miller_array(free, column_root_label="R-free-flags")
    return written(dataset)
