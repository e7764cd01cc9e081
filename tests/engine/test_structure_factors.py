"""Structure factors: equal to cctbx called plainly, as numbers and as an MTZ file."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import iotbx.mtz
import iotbx.pdb
import mmtbx.f_model
import numpy as np
import pytest
from cctbx.array_family import flex

from bxmesh.server.geometry.engine import EngineError, RestraintLibrary, SampleError
from bxmesh.server.geometry.engine.model import BuiltModel, build
from bxmesh.server.geometry.engine.structure_factors import StructureFactors, structure_factors
from tests.engine.crystals import anomalous_1yjp, written
from tests.engine.plain import label, labels
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, inputs, wheel_bytes, wheel_file


@pytest.fixture(scope="module")
def alone(library: RestraintLibrary) -> BuiltModel:
    """1yjp (P 21) without data."""
    return build(inputs(PDB_1YJP), library)


@pytest.fixture(scope="module")
def unflagged(library: RestraintLibrary) -> BuiltModel:
    """1yjp with data that have no R-free flags."""
    return build(inputs(PDB_1YJP, anomalous_1yjp(flags=False)), library)


def moved(model: BuiltModel) -> np.ndarray:
    return model.atoms.sites + np.random.default_rng(2).normal(0, 0.1, model.atoms.sites.shape)


@cache
def plain_7n2l(model: BuiltModel, *, elsewhere: bool) -> Any:
    """cctbx's manager of 7n2l at the file's coordinates, or at `moved` ones."""
    return plain_manager(model, moved(model) if elsewhere else model.atoms.sites, *data_7n2l())


def plain_manager(
    model: BuiltModel, sites: np.ndarray, f_obs: Any, flags: Any, path: str = PDB_7N2L
) -> Any:
    """`mmtbx.f_model.manager` with its scales determined at `sites`."""
    source = iotbx.pdb.input(str(wheel_file(path)))
    hierarchy = source.construct_hierarchy()
    places = labels(model)
    order = np.array([places[label(atom)] for atom in hierarchy.atoms()])
    structure = hierarchy.extract_xray_structure(crystal_symmetry=source.crystal_symmetry())
    structure.scattering_type_registry(table="n_gaussian", d_min=f_obs.d_min())
    structure.set_sites_cart(flex.vec3_double(sites[order]))
    manager = mmtbx.f_model.manager(f_obs=f_obs, r_free_flags=flags, xray_structure=structure)
    manager.update_all_scales()
    return manager


def data_7n2l() -> tuple[Any, Any]:
    arrays = {
        array.info().label_string(): array
        for array in iotbx.mtz.object(str(wheel_file(MTZ_7N2L))).as_miller_arrays()
    }
    flags = arrays["R-free-flags"]
    return arrays["FOBS,SIGFOBS"], flags.array(data=flags.data() == 0)


def close(result: np.ndarray, expected: Any, tolerance: float = 1e-9) -> bool:
    expected = np.array(expected)
    return bool(np.linalg.norm(result - expected) <= tolerance * np.linalg.norm(expected))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_equals_plain_cctbx(crystal: BuiltModel, elsewhere: bool) -> None:
    sites = moved(crystal) if elsewhere else None
    plain = plain_7n2l(crystal, elsewhere=elsewhere)
    result = structure_factors(crystal, sites)
    assert result.miller_indices.dtype == np.int32
    assert (result.miller_indices == np.array(list(plain.f_obs().indices()))).all()
    assert list(result.values) == ["f_calc", "f_mask", "f_model"]
    assert all(array.dtype == np.complex128 for array in result.values.values())
    assert close(result.values["f_calc"], plain.f_calc().data())
    assert close(result.values["f_mask"], plain.f_masks()[0].data())
    assert close(result.values["f_model"], plain.f_model().data())
    assert result.xray is not None
    assert result.xray.r_work == pytest.approx(plain.r_work(), rel=1e-9)
    assert result.xray.r_free == pytest.approx(plain.r_free(), rel=1e-9)
    data = data_7n2l()[0].common_set(plain.f_obs())
    best = plain.scale_k1() * flex.mean(data.data()) / flex.mean(plain.f_obs().data())
    assert result.k_overall == pytest.approx(best, rel=1e-9)
    lowest = np.argmax(np.array(plain.f_obs().d_spacings().data()))
    assert result.k_mask == pytest.approx(plain.k_masks()[0][int(lowest)], rel=1e-9)


def test_does_not_disturb_gradients(crystal: BuiltModel) -> None:
    before = crystal.xray()
    structure_factors(crystal, moved(crystal))
    assert crystal.xray().value == before.value


@pytest.mark.parametrize("algorithm", ["fft", "direct"])
def test_of_atoms_alone(alone: BuiltModel, algorithm: Any) -> None:
    structure = iotbx.pdb.input(str(wheel_file(PDB_1YJP))).xray_structure_simple()
    structure.scattering_type_registry(table="n_gaussian", d_min=1.5)
    expected = structure.structure_factors(d_min=1.5, algorithm=algorithm).f_calc()
    result = structure_factors(alone, d_min=1.5, algorithm=algorithm)
    assert (result.miller_indices == np.array(list(expected.indices()))).all()
    assert set(result.values) == {"f_calc"}
    assert close(result.values["f_calc"], expected.data())
    assert (result.xray, result.k_overall, result.k_mask) == (None, 1, 0)


def test_other_coordinates_change_them(alone: BuiltModel) -> None:
    """A shift by t multiplies F(h) with exp(2πi h·t); along b alone it keeps P 21."""
    shift = 0.7
    sites = alone.atoms.sites + np.array([0, shift, 0])
    b = alone.symmetry.unit_cell().parameters()[1]
    home = structure_factors(alone, d_min=2, algorithm="direct")
    away = structure_factors(alone, sites, d_min=2, algorithm="direct")
    turns = np.exp(2j * np.pi * home.miller_indices[:, 1] * shift / b)
    assert close(away.values["f_calc"], home.values["f_calc"] * turns, 1e-6)


def test_without_free_flags(unflagged: BuiltModel) -> None:
    result = structure_factors(unflagged)
    assert result.xray is not None
    assert result.xray.r_free is None
    assert "r_free_flags" not in result.arrays
    assert b"R-free" not in result.mtz()


def read(result: StructureFactors, folder: Path) -> dict[str, Any]:
    path = folder / "result.mtz"
    path.write_bytes(result.mtz())
    return {
        array.info().label_string(): array
        for array in iotbx.mtz.object(str(path)).as_miller_arrays()
    }


def test_the_scale_of_the_data_does_not_matter(
    crystal: BuiltModel, library: RestraintLibrary
) -> None:
    f_obs, flags = data_7n2l()
    dataset = f_obs.apply_scaling(factor=1000).as_mtz_dataset(column_root_label="FOBS")
    dataset.add_miller_array(flags, column_root_label="R-free-flags")
    result = structure_factors(build(inputs(PDB_7N2L, written(dataset)), library))
    expected = structure_factors(crystal)
    np.testing.assert_array_equal(result.values["f_calc"], expected.values["f_calc"])
    assert close(
        result.k_overall * result.values["f_model"],
        1000 * expected.k_overall * expected.values["f_model"],
        1e-6,
    )
    assert close(abs(result.values["f_model"]), abs(expected.values["f_model"]), 0.1)


def test_mtz(crystal: BuiltModel, tmp_path: Path) -> None:
    result = structure_factors(crystal)
    arrays = read(result, tmp_path)
    assert set(arrays) == {
        "FOBS,SIGFOBS",
        "R-free-flags",
        "FC,PHIC",
        "FMASK,PHIMASK",
        "FMODEL,PHIFMODEL",
    }
    for name, kind in (("FC,PHIC", "f_calc"), ("FMODEL,PHIFMODEL", "f_model")):
        array = arrays[name]
        assert array.is_similar_symmetry(crystal.symmetry)
        assert (np.array(list(array.indices())) == result.miller_indices).all()
        assert close(np.array(array.data()), result.values[kind], 1e-6)
    f_obs, flags = data_7n2l()
    observed = arrays["FOBS,SIGFOBS"]
    for ours, theirs in (
        (observed.data(), f_obs.common_set(observed).data()),
        (observed.sigmas(), f_obs.common_set(observed).sigmas()),
    ):
        assert close(result.k_overall * np.array(ours), theirs, 1e-6)
    assert (
        np.array(arrays["R-free-flags"].data()) == np.array(flags.common_set(observed).data())
    ).all()
    assert result.mtz() == structure_factors(crystal).mtz()


def test_mtz_is_good_as_input(crystal: BuiltModel, library: RestraintLibrary) -> None:
    again = build(inputs(PDB_7N2L, structure_factors(crystal).mtz()), library)
    assert again.summary.data is not None
    assert crystal.summary.data is not None
    assert again.summary.data.labels == "FOBS,SIGFOBS"
    assert abs(again.summary.data.free - crystal.summary.data.free) < 3
    assert again.xray().r_work == pytest.approx(crystal.xray().r_work, abs=5e-3)


def test_only_what_is_asked_for(crystal: BuiltModel) -> None:
    result = structure_factors(crystal, kinds=["f_mask"])
    assert list(result.values) == ["f_mask"]
    assert b"FMASK" in result.mtz()
    assert b"FMODEL" not in result.mtz()


def refusal(model: BuiltModel, sites: Any = None, **options: Any) -> str:
    with pytest.raises((EngineError, SampleError)) as caught:
        structure_factors(model, sites, **options)
    error = caught.value
    return error.reason if isinstance(error, EngineError) else error.status.name


@pytest.mark.parametrize(
    ("d_min", "reason"),
    [
        (None, "NO_D_MIN"),
        (0.0, "D_MIN_INVALID"),
        (-1.0, "D_MIN_INVALID"),
        (math.nan, "D_MIN_INVALID"),
        (math.inf, "D_MIN_INVALID"),
        (0.01, "TOO_MANY_REFLECTIONS"),
        (5e-324, "TOO_MANY_REFLECTIONS"),
        (1e9, "D_MIN_TOO_LARGE"),
    ],
)
def test_bad_limits(alone: BuiltModel, d_min: float | None, reason: str) -> None:
    assert refusal(alone, d_min=d_min) == reason


def test_a_small_limit_is_not_refused(alone: BuiltModel) -> None:
    assert len(structure_factors(alone, d_min=0.4).miller_indices) > 40_000


def test_bad_requests(alone: BuiltModel, crystal: BuiltModel, library: RestraintLibrary) -> None:
    assert refusal(alone, kinds=["f_model"], d_min=2.0) == "NO_REFLECTIONS"
    assert refusal(alone, kinds=["f_calc", "f_mask"], d_min=2.0) == "NO_REFLECTIONS"
    assert refusal(crystal, d_min=2.0) == "D_MIN_NOT_TAKEN"
    text = wheel_bytes(PDB_1YJP).replace(b"CRYST1", b"REMARK")
    assert refusal(build(inputs(text), library), d_min=2.0) == "NO_CRYSTAL_SYMMETRY"


@pytest.mark.parametrize("with_data", [False, True])
def test_bad_coordinates(alone: BuiltModel, crystal: BuiltModel, with_data: bool) -> None:
    model = crystal if with_data else alone
    options = {} if with_data else {"d_min": 2.0}
    sites = model.atoms.sites.copy()
    assert refusal(model, sites[:-1], **options) == "COORDINATES_SHAPE"
    assert refusal(model, sites.astype(np.float32), **options) == "COORDINATES_SHAPE"
    sites[3, 1] = np.nan
    assert refusal(model, sites, **options) == "NON_FINITE"
    assert refusal(model, np.zeros_like(sites), **options) == "DEGENERATE"
    assert structure_factors(model, **options).miller_indices.size  # type: ignore[arg-type]
