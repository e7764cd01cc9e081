"""Reflections: what is used of them, and what is refused."""

import gzip
import io

import numpy as np
import pytest
from cctbx import crystal as symmetry
from cctbx.array_family import flex
from iotbx import cif, mtz

from bxmesh.server.geometry.engine import EngineError, RestraintLibrary, XrayOptions
from bxmesh.server.geometry.engine.model import build
from tests.engine.wheel import MTZ_7N2L, PDB_7N2L, inputs, wheel_bytes, wheel_file

MTZ = wheel_bytes(MTZ_7N2L)
ARRAYS = {
    a.info().label_string(): a for a in mtz.object(str(wheel_file(MTZ_7N2L))).as_miller_arrays()
}
AMPLITUDES, INTENSITIES = ARRAYS["FOBS,SIGFOBS"], ARRAYS["IOBS,SIGIOBS"]
FLAGS = ARRAYS["R-free-flags"]


@pytest.fixture
def as_mtz(tmp_path):
    def write(**arrays):
        columns = list(arrays.items())
        dataset = columns[0][1].as_mtz_dataset(column_root_label=columns[0][0])
        for name, array in columns[1:]:
            dataset.add_miller_array(array, column_root_label=name)
        path = tmp_path / "data.mtz"
        dataset.mtz_object().write(str(path))
        return path.read_bytes()

    return write


def as_cif(*arrays):
    block = cif.miller_arrays_as_cif_block(
        arrays[0], column_names=["_refln.F_meas_au", "_refln.F_meas_sigma_au"], format="mmcif"
    )
    for array, name in arrays[1:]:
        block.add_miller_array(array, column_name=name)
    document = cif.model.cif()
    document["data"] = block.cif_block
    out = io.StringIO()
    document.show(out=out)
    return out.getvalue().encode()


def refused(library: RestraintLibrary, data: bytes, **options: object) -> EngineError:
    with pytest.raises(EngineError) as caught:
        build(inputs(PDB_7N2L, data, **options), library)
    return caught.value


def test_amplitudes_are_preferred(library: RestraintLibrary) -> None:
    data = build(inputs(PDB_7N2L, MTZ), library).summary.data
    assert data is not None
    assert (data.labels, data.kind, data.reflections) == ("FOBS,SIGFOBS", "amplitudes", 3437)
    assert (data.r_free_test_value, data.free, data.work) == (0, 310, 3127)
    assert data.d_min == pytest.approx(0.9002, abs=1e-3)


def test_intensities_become_amplitudes(library: RestraintLibrary, as_mtz) -> None:
    model = build(inputs(PDB_7N2L, as_mtz(I=INTENSITIES, FREE=FLAGS)), library)
    assert model.summary.data is not None
    assert model.summary.data.kind == "intensities"
    assert any("French" in notice for notice in model.summary.notices)
    assert model.xray().r_work < 0.21


def test_data_are_chosen_by_label(library: RestraintLibrary) -> None:
    data = build(inputs(PDB_7N2L, MTZ, data_labels="IOBS"), library).summary.data
    assert data is not None
    assert data.labels == "IOBS,SIGIOBS"
    error = refused(library, MTZ, data_labels="NOPE")
    assert error.reason == "NO_DATA_IN_REFLECTIONS"
    assert "FOBS" in error.message


def test_anomalous_pairs_are_merged(library: RestraintLibrary, as_mtz) -> None:
    pairs = AMPLITUDES.generate_bijvoet_mates()
    model = build(inputs(PDB_7N2L, as_mtz(F=pairs, FREE=FLAGS)), library)
    assert model.summary.data is not None
    assert model.summary.data.anomalous_merged
    assert model.summary.data.reflections == 3437
    assert model.xray().r_work < 0.21


def test_structure_factor_cif_is_read(library: RestraintLibrary) -> None:
    data = as_cif(AMPLITUDES, (FLAGS, "_refln.pdbx_r_free_flag"))
    for content in (data, gzip.compress(data)):
        model = build(inputs(PDB_7N2L, content), library)
        assert model.summary.data is not None
        assert (model.summary.data.reflections, model.summary.data.free) == (3437, 310)
        assert model.xray().r_work == pytest.approx(0.202, abs=2e-3)


def test_without_flags_only_least_squares(library: RestraintLibrary, as_mtz) -> None:
    model = build(inputs(PDB_7N2L, as_mtz(F=AMPLITUDES)), library)
    with pytest.raises(EngineError) as caught:
        model.xray()
    assert caught.value.reason == "NO_R_FREE_FLAGS"
    result = model.xray(options=XrayOptions(target="ls"))
    assert result.r_free is None
    assert result.value_free is None
    assert np.isfinite(result.gradients["sites"]).all()


def test_flags_are_generated_only_when_asked(library: RestraintLibrary, as_mtz) -> None:
    content = as_mtz(F=AMPLITUDES)
    models = [
        build(inputs(PDB_7N2L, content, generate_r_free_flags=True), library) for _ in range(2)
    ]
    data = models[0].summary.data
    assert data is not None
    assert data.r_free_generated
    assert 250 < data.free < 450
    assert models[0].xray().value == models[1].xray().value


def test_resolution_limits(library: RestraintLibrary) -> None:
    data = build(inputs(PDB_7N2L, MTZ, d_min=1.5, d_max=6.0), library).summary.data
    assert data is not None
    assert data.reflections < 1000
    assert data.d_min >= 1.5
    assert data.d_max <= 6.0
    for limits in (
        {"d_min": 0.5},
        {"d_min": 20.0},
        {"d_max": 0.5},
        {"d_min": 3.0, "d_max": 2.0},
        {"d_min": float("nan")},
    ):
        assert refused(library, MTZ, **limits).reason == "RESOLUTION_OUTSIDE_DATA"


@pytest.mark.parametrize(
    ("cell", "group"),
    [
        ((4.87, 10.06, 32.0, 94.85, 90.26, 99.99), "P 1"),
        ((30, 40, 50, 90, 90, 90), "P 1"),
        ((4.87, 10.06, 30.66, 94.85, 90.26, 99.99), "P -1"),
    ],
)
def test_other_crystal_is_refused(library: RestraintLibrary, as_mtz, cell, group) -> None:
    other = symmetry.symmetry(unit_cell=cell, space_group_symbol=group)
    moved = AMPLITUDES.customized_copy(crystal_symmetry=other)
    error = refused(library, as_mtz(F=moved))
    assert error.reason == "CRYSTAL_SYMMETRY_MISMATCH"


def test_without_observations_is_refused(library: RestraintLibrary, as_mtz) -> None:
    assert refused(library, as_mtz(FREE=FLAGS)).reason == "NO_DATA_IN_REFLECTIONS"
    phases = AMPLITUDES.array(data=flex.complex_double(AMPLITUDES.size(), 1 + 1j))
    error = refused(library, as_mtz(FC=phases, FREE=FLAGS))
    assert error.reason == "NO_DATA_IN_REFLECTIONS"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"MTZ ",
        MTZ[: len(MTZ) // 2],
        MTZ[:-2000],
        MTZ[:40000] + MTZ[40016:],
        MTZ.replace(b"NCOL ", b"NCOX "),
        b"hello",
        b"data_x\nloop_\n_refln.index_h",
        b"data_x\n_refln.nothing 1\n",
        b"(dp0\nS'x'\np1\n.",
    ],
)
def test_damaged_file_is_refused(library: RestraintLibrary, content: bytes) -> None:
    error = refused(library, content)
    assert error.reason in ("REFLECTIONS_UNREADABLE", "EMPTY_FILE", "NO_DATA_IN_REFLECTIONS")
    assert error.field == "reflections"
