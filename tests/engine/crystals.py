"""Crystals with simulated data, for what the data of the wheel do not show."""

import tempfile
from pathlib import Path
from typing import Any

import iotbx.pdb
import numpy as np
from cctbx.array_family import flex

from tests.engine.wheel import PDB_1YJP, wheel_file

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
    data = abs(structure.structure_factors(d_min=D_MIN, anomalous_flag=True).f_calc())
    noise = np.random.default_rng(0).normal(1, 0.02, data.size())
    data = data.array(
        data=data.data() * flex.double(noise), sigmas=0.03 * data.data() + 0.1
    ).set_observation_type_xray_amplitude()
    root = "F"
    if intensities:
        data, root = data.f_as_f_sq(), "I"
    dataset = data.as_mtz_dataset(column_root_label=root)
    if flags:
        chosen = np.random.default_rng(1).random(data.average_bijvoet_mates().size()) < 0.1
        free = data.average_bijvoet_mates().array(data=flex.int(chosen.astype(np.int32)))
        dataset.add_miller_array(free, column_root_label="R-free-flags")
    return written(dataset)
