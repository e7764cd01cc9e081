"""What reflections say of themselves: where it is known what they should."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cctbx import miller, sgtbx
from cctbx.array_family import flex

from bxmesh.server.geometry.engine import EngineError, ModelInputs, RestraintLibrary
from bxmesh.server.geometry.engine import macromolecule as reading
from bxmesh.server.geometry.engine.data_quality import DataQuality
from bxmesh.server.geometry.engine.model import BuiltModel, build
from tests.engine.wheel import PDB_1YJP, wheel_bytes

CELL = "CRYST1   40.000   40.000   50.000  90.00  90.00  90.00 {group:<11} 4\n"


def quality(
    library: RestraintLibrary, group: str = "P 4", twinned: bool = False, b: Any = None
) -> DataQuality:
    """Of data that random atoms in a cell make, with 10 % of them missing."""
    pdb = CELL.format(group=group).encode() + b"".join(
        line
        for line in wheel_bytes(PDB_1YJP).splitlines(keepends=True)
        if line.startswith((b"ATOM", b"HETATM"))
    )
    symmetry = reading.read(pdb).symmetry
    amplitudes = miller.build_set(symmetry, anomalous_flag=False, d_min=2.0)
    generator = np.random.default_rng(7)
    # Wilson's statistics: acentric intensities are exponential.
    intensities = flex.double(generator.exponential(size=amplitudes.size()))
    data = miller.array(amplitudes, intensities).select(~amplitudes.centric_flags().data())
    if twinned:
        law = sgtbx.change_of_basis_op("k,h,-l")
        mates = data.change_basis(law).map_to_asu()
        pairs = miller.match_indices(data.indices(), mates.indices()).pairs()
        first, second = pairs.column(0), pairs.column(1)
        kept = data.select(first)
        data = kept.customized_copy(data=(kept.data() + mates.data().select(second)) / 2)
    scale = data.debye_waller_factors(b_iso=20.0).data()
    if b is not None:
        scale = scale * data.debye_waller_factors(b_cart=b).data()
    f_obs = data.customized_copy(data=flex.sqrt(data.data()) * scale * 100)
    f_obs = f_obs.customized_copy(sigmas=f_obs.data() * 0.05 + 0.01)
    f_obs = f_obs.select(flex.bool(generator.uniform(size=f_obs.size()) > 0.1))
    f_obs.set_observation_type_xray_amplitude()
    dataset = f_obs.as_mtz_dataset(column_root_label="FOBS")
    dataset.add_miller_array(
        f_obs.generate_r_free_flags(fraction=0.05, use_lattice_symmetry=False),
        column_root_label="R-free-flags",
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.mtz"
        dataset.mtz_object().write(str(path))
        mtz = path.read_bytes()
    return build(ModelInputs(pdb, mtz), library).data_quality()


def test_untwinned_data(library: RestraintLibrary) -> None:
    found = quality(library)
    assert found.mean_l == pytest.approx(0.5, abs=0.02)
    assert found.mean_l2 == pytest.approx(1 / 3, abs=0.02)
    assert found.second_moment == pytest.approx(2.0, abs=0.15)
    assert found.free_fraction == pytest.approx(0.05, abs=0.02)
    # B=20 of the amplitudes' own, over those of the atoms, which are points here.
    assert found.wilson_b is not None
    assert found.i_over_sigma == pytest.approx(10, rel=0.2)
    assert found.anisotropy is not None
    assert found.anisotropy < 6
    assert "h,-k,-l" in found.twin_laws or "k,h,-l" in found.twin_laws
    assert not found.unavailable


def test_twinned_data(library: RestraintLibrary) -> None:
    found = quality(library, twinned=True)
    # Those with h = k are their own mates.
    assert found.mean_l == pytest.approx(0.39, abs=0.03)
    assert found.mean_l2 == pytest.approx(0.22, abs=0.03)
    assert found.second_moment == pytest.approx(1.5, abs=0.1)


def test_anisotropic_data(library: RestraintLibrary) -> None:
    plain = quality(library)
    found = quality(library, b=(0.0, 0.0, 30.0, 0.0, 0.0, 0.0))
    assert found.anisotropy == pytest.approx(30, abs=6)
    assert found.anisotropic_b is not None
    assert plain.wilson_b is not None
    assert found.wilson_b is not None
    assert found.wilson_b > plain.wilson_b


def test_shells_add_up(crystal: BuiltModel) -> None:
    found = crystal.data_quality()
    summary = crystal.summary.data
    assert summary is not None
    assert sum(shell.reflections for shell in found.shells) == summary.reflections
    assert found.shells[0].d_max == pytest.approx(summary.d_max, rel=1e-3)
    assert found.shells[-1].d_min == pytest.approx(summary.d_min, rel=1e-3)
    complete = sum(shell.reflections / shell.completeness for shell in found.shells)
    assert summary.reflections / complete == pytest.approx(found.completeness, rel=5e-3)
    assert found.free_fraction == pytest.approx(summary.free / summary.reflections)
    assert found.twin_laws == ()


def test_without_reflections_there_is_nothing_to_say(library: RestraintLibrary) -> None:
    with pytest.raises(EngineError) as raised:
        build(ModelInputs(wheel_bytes(PDB_1YJP)), library).data_quality()
    assert raised.value.reason == "NO_REFLECTIONS"
