"""Maps: equal to those of cctbx, as numbers and as CCP4 files."""

import math
from pathlib import Path
from typing import Any

import iotbx.mtz
import mrcfile
import numpy as np
import pytest
from cctbx import maptbx
from cctbx.array_family import flex
from iotbx.map_manager import map_manager

from bxmesh.server.geometry.engine import EngineError, RestraintLibrary, SampleError, maps
from bxmesh.server.geometry.engine.maps import density_map
from bxmesh.server.geometry.engine.model import BuiltModel, build
from bxmesh.server.geometry.engine.structure_factors import structure_factors
from tests.engine.crystals import (
    anomalous_1yjp,
    in_another_crystal,
    merged_and_pairs,
    simulated,
    without_deviations,
)
from tests.engine.test_structure_factors import moved, plain_7n2l, plain_manager
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, inputs, wheel_bytes

TYPES = {"2mfo_dfc": "2mFo-DFc", "mfo_dfc": "mFo-DFc", "anomalous": "anom"}


@pytest.fixture(scope="module")
def anomalous(library: RestraintLibrary) -> BuiltModel:
    """1yjp (P 21) with anomalous data."""
    return build(inputs(PDB_1YJP, anomalous_1yjp()), library)


def plain_map(manager: Any, kind: str, factor: float = 4) -> Any:
    coefficients = manager.map_coefficients(map_type=TYPES[kind])
    fft = coefficients.fft_map(
        resolution_factor=1 / factor, symmetry_flags=maptbx.use_space_group_symmetry
    )
    return fft.apply_volume_scaling().real_map_unpadded()


def same(result: maps.DensityMap, expected: Any) -> bool:
    numbers = expected.as_numpy_array()
    assert result.values.dtype == np.float32
    assert result.values.shape == numbers.shape
    assert result.mean == pytest.approx(numbers.mean(), abs=1e-9)
    assert result.sigma == pytest.approx(numbers.std(), rel=1e-9)
    return bool(np.abs(result.values - numbers).max() < 1e-6 * np.abs(numbers).max())


@pytest.mark.parametrize("kind", ["2mfo_dfc", "mfo_dfc"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_equals_plain_cctbx(crystal: BuiltModel, kind: Any, elsewhere: bool) -> None:
    sites = moved(crystal) if elsewhere else crystal.atoms.sites
    manager = plain_7n2l(crystal, elsewhere=elsewhere)
    assert same(density_map(crystal, kind, sites), plain_map(manager, kind))
    if not elsewhere:
        assert same(density_map(crystal, kind), plain_map(manager, kind))


@pytest.mark.parametrize("factor", [2.0, 3.0, 7.5, 10.0])
def test_finer_grids(crystal: BuiltModel, factor: float) -> None:
    manager = plain_7n2l(crystal, elsewhere=False)
    result = density_map(crystal, "mfo_dfc", resolution_factor=factor)
    assert same(result, plain_map(manager, "mfo_dfc", factor))
    cell = crystal.symmetry.unit_cell().parameters()
    assert crystal.summary.data is not None
    spacing = crystal.summary.data.d_min / factor
    assert (np.array(result.values.shape) >= np.array(cell[:3]) / spacing * 0.99).all()


def anomalous_arrays(data: bytes, tmp_path: Path) -> tuple[Any, Any]:
    path = tmp_path / "data.mtz"
    path.write_bytes(data)
    arrays = iotbx.mtz.object(str(path)).as_miller_arrays()
    f_obs = arrays[0].map_to_asu().set_observation_type_xray_amplitude()
    flags = arrays[1].array(data=arrays[1].data() == 1).map_to_asu().generate_bijvoet_mates()
    return f_obs.common_sets(flags)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_anomalous_equals_plain_cctbx(
    anomalous: BuiltModel, tmp_path: Path, elsewhere: bool
) -> None:
    sites = moved(anomalous) if elsewhere else anomalous.atoms.sites
    f_obs, flags = anomalous_arrays(anomalous_1yjp(), tmp_path)
    manager = plain_manager(anomalous, sites, f_obs, flags, PDB_1YJP)
    result = density_map(anomalous, "anomalous", sites if elsewhere else None)
    assert same(result, plain_map(manager, "anomalous"))


def test_anomalous_peaks_are_where_anomalous_scatterers_are(anomalous: BuiltModel) -> None:
    result = density_map(anomalous, "anomalous")
    heights = at_atoms(anomalous, result)
    oxygens = anomalous.atoms.element == "O"
    assert heights[oxygens].mean() > 2 * result.sigma
    assert heights[oxygens].mean() > heights[~oxygens].mean() + 2 * result.sigma


def test_density_is_at_the_atoms(crystal: BuiltModel) -> None:
    result = density_map(crystal, "2mfo_dfc")
    heavy = ~np.isin(crystal.atoms.element, ["H", "D"])
    assert at_atoms(crystal, result)[heavy].mean() > 3 * result.sigma


def at_atoms(model: BuiltModel, result: maps.DensityMap) -> np.ndarray:
    values = flex.double(np.ascontiguousarray(result.values, dtype=np.float64))
    cell = model.symmetry.unit_cell()
    return np.array(
        [values.eight_point_interpolation(cell.fractionalize(site)) for site in model.atoms.sites]
    )


def test_anomalous_intensities(library: RestraintLibrary, anomalous: BuiltModel) -> None:
    model = build(inputs(PDB_1YJP, anomalous_1yjp(intensities=True)), library)
    result = density_map(model, "anomalous")
    expected = density_map(anomalous, "anomalous")
    assert np.corrcoef(result.values.ravel(), expected.values.ravel())[0, 1] > 0.8


@pytest.mark.parametrize("kind", ["2mfo_dfc", "anomalous"])
def test_ccp4(anomalous: BuiltModel, kind: Any, tmp_path: Path) -> None:
    result = density_map(anomalous, kind)
    path = tmp_path / "map.ccp4"
    path.write_bytes(result.ccp4())
    assert mrcfile.validate(str(path))
    with mrcfile.open(path) as file:
        header = file.header
        assert (file.data == result.values.transpose(2, 1, 0)).all()
        assert (int(header.mapc), int(header.mapr), int(header.maps)) == (1, 2, 3)
        assert (int(header.mx), int(header.my), int(header.mz)) == result.values.shape
        assert int(header.ispg) == 4
        cell = [*header.cella.tolist(), *header.cellb.tolist()]
        np.testing.assert_allclose(cell, anomalous.symmetry.unit_cell().parameters(), rtol=1e-6)
    read = map_manager(file_name=str(path))
    assert read.unit_cell_crystal_symmetry().is_similar_symmetry(anomalous.symmetry)
    assert (read.map_data().as_numpy_array() == result.values).all()
    assert tuple(read.origin_shift_grid_units) == (0, 0, 0)
    assert result.ccp4() == density_map(anomalous, kind).ccp4()


def test_map_has_the_symmetry_of_the_crystal(anomalous: BuiltModel) -> None:
    """P 21: the density at x, y, z is that at -x, y + 1/2, -z."""
    values = density_map(anomalous, "2mfo_dfc").values
    half = values.shape[1] // 2
    mate = np.roll(np.roll(values[::-1, :, ::-1], 1, axis=(0, 2)), -half, axis=1)
    np.testing.assert_allclose(mate, values, atol=1e-5)


@pytest.mark.parametrize(
    ("cell", "group", "number"),
    [
        ((41, 41, 53, 90, 90, 120), "P 31 2 1", 152),
        ((37, 43, 59, 90, 90, 90), "C 2 2 21", 20),
        ((61, 61, 47, 90, 90, 90), "I 41", 80),
    ],
)
def test_other_space_groups(library: RestraintLibrary, cell: Any, group: str, number: int) -> None:
    model = build(inputs(in_another_crystal(cell, group), simulated(cell, group)), library)
    result = density_map(model, "2mfo_dfc")
    shape = np.array(result.values.shape)
    points = np.random.default_rng(0).integers(0, 1000, (50, 3)) % shape
    for operation in model.symmetry.space_group():
        rotation = np.array(operation.r().as_double()).reshape(3, 3)
        mates = (points / shape) @ rotation.T + np.array(operation.t().as_double())
        places = mates * shape
        np.testing.assert_allclose(places, places.round(), atol=1e-6)
        i, j, k = (places.round().astype(int) % shape).T
        np.testing.assert_allclose(
            result.values[i, j, k], result.values[tuple(points.T)], atol=1e-4
        )
    assert int.from_bytes(result.ccp4()[88:92], "little") == number


def refusal(model: BuiltModel, kind: Any, sites: Any = None, **options: Any) -> str:
    with pytest.raises((EngineError, SampleError)) as caught:
        density_map(model, kind, sites, **options)
    error = caught.value
    return error.reason if isinstance(error, EngineError) else error.status.name


@pytest.mark.parametrize("factor", [0.0, -4.0, 1.9, 10.1, 1e300, math.inf, math.nan])
def test_bad_factors(crystal: BuiltModel, factor: float) -> None:
    assert refusal(crystal, "2mfo_dfc", resolution_factor=factor) == "RESOLUTION_FACTOR_INVALID"


def test_bad_requests(crystal: BuiltModel, library: RestraintLibrary) -> None:
    assert refusal(crystal, "anomalous") == "NO_ANOMALOUS_PAIRS"
    alone = build(inputs(PDB_1YJP), library)
    for kind in TYPES:
        assert refusal(alone, kind) == "NO_REFLECTIONS"
    sites = crystal.atoms.sites.copy()
    assert refusal(crystal, "mfo_dfc", sites[1:]) == "COORDINATES_SHAPE"
    sites[0, 0] = np.inf
    assert refusal(crystal, "mfo_dfc", sites) == "NON_FINITE"


def test_a_map_has_bounds(crystal: BuiltModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "_MOST_POINTS", 1_000_000)
    assert refusal(crystal, "mfo_dfc", resolution_factor=10.0) == "MAP_TOO_LARGE"


def test_pairs_beside_merged_data(library: RestraintLibrary, anomalous: BuiltModel) -> None:
    """The merged data are those that are used; the pairs are found for the anomalous map."""
    model = build(inputs(PDB_1YJP, merged_and_pairs()), library)
    assert model.summary.data is not None
    assert model.summary.data.labels == "FMEAN,SIGFMEAN"
    result = density_map(model, "anomalous")
    np.testing.assert_allclose(result.values, density_map(anomalous, "anomalous").values, atol=1e-6)
    chosen = build(inputs(PDB_1YJP, merged_and_pairs(), data_labels="FMEAN"), library)
    assert refusal(chosen, "anomalous") == "NO_ANOMALOUS_PAIRS"


def test_pairs_within_the_limits_of_the_model(library: RestraintLibrary) -> None:
    model = build(inputs(PDB_1YJP, anomalous_1yjp(), d_min=3.0), library)
    assert density_map(model, "anomalous").values.shape < (30, 10, 40)


def test_amplitudes_without_deviations(library: RestraintLibrary) -> None:
    data = without_deviations(anomalous_1yjp())
    model = build(inputs(PDB_1YJP, data), library)
    assert density_map(model, "anomalous").sigma > 0
    assert b"FOBS" in structure_factors(model).mtz()


def test_chosen_labels_decide_about_pairs(library: RestraintLibrary) -> None:
    model = build(inputs(PDB_7N2L, wheel_bytes(MTZ_7N2L), data_labels="FOBS,SIGFOBS"), library)
    assert refusal(model, "anomalous") == "NO_ANOMALOUS_PAIRS"
