"""Real-space targets and the maps they are read from: equal to cctbx and to differences."""

import gzip
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from cctbx import maptbx
from cctbx.array_family import flex

from bxmesh.server.geometry.engine import EngineError, RestraintLibrary, SampleError, ccp4
from bxmesh.server.geometry.engine.ccp4 import CellMap
from bxmesh.server.geometry.engine.maps import DensityMap, density_map
from bxmesh.server.geometry.engine.model import BuiltModel, build
from bxmesh.server.geometry.engine.real_space import real_space
from tests.engine.wheel import PDB_1YJP, inputs, wheel_bytes

CUBE = b"CRYST1   20.000   24.000   28.000  90.00  90.00  90.00 P 1           1\n"


@pytest.fixture(scope="module")
def density(crystal: BuiltModel) -> DensityMap:
    """2mFo-DFc of 7n2l, whose cell has no right angle."""
    return density_map(crystal, "2mfo_dfc")


@pytest.fixture(scope="module")
def read(density: DensityMap) -> CellMap:
    return ccp4.read(density.ccp4())


def test_reads_what_is_written(density: DensityMap, read: CellMap) -> None:
    np.testing.assert_array_equal(read.values, density.values)
    assert read.unit_cell == pytest.approx(density.symmetry.unit_cell().parameters())
    again = ccp4.read(gzip.compress(density.ccp4()))
    np.testing.assert_array_equal(again.values, read.values)


@pytest.mark.parametrize("axes", [(1, 2, 3), (3, 2, 1), (2, 1, 3), (2, 3, 1), (3, 1, 2)])
@pytest.mark.parametrize("start", [(0, 0, 0), (3, -2, 40)])
def test_reads_any_order_and_origin(
    tmp_path: Path, axes: tuple[int, ...], start: tuple[int, ...]
) -> None:
    """`start` is that of columns, rows and sections, whichever axes these are."""
    expected = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)
    shift = [start[axes.index(axis)] for axis in (1, 2, 3)]
    rolled = np.roll(expected, [-each for each in shift], axis=(0, 1, 2))
    with mrcfile.new(tmp_path / "map.mrc") as file:
        columns, rows, sections = (axis - 1 for axis in axes)
        file.set_data(np.ascontiguousarray(rolled.transpose(sections, rows, columns)))
        file.header.mapc, file.header.mapr, file.header.maps = axes
        file.header.mx, file.header.my, file.header.mz = expected.shape
        file.header.nxstart, file.header.nystart, file.header.nzstart = start
        file.header.cella = (10, 11, 12)
        file.header.cellb = (90, 100, 90)
    result = ccp4.read((tmp_path / "map.mrc").read_bytes())
    np.testing.assert_array_equal(result.values, expected)
    assert result.unit_cell == (10, 11, 12, 90, 100, 90)


@pytest.mark.parametrize("interpolation", ["tricubic", "linear"])
def test_values_equal_cctbx(crystal: BuiltModel, read: CellMap, interpolation: Any) -> None:
    """But for atoms at the first planes of the grid, where cctbx reads beside the map."""
    result = real_space(crystal, read, interpolation=interpolation)
    values = flex.double(np.ascontiguousarray(read.values))
    at = {
        "tricubic": values.tricubic_interpolation,
        "linear": values.eight_point_interpolation,
    }[interpolation]
    cell = crystal.symmetry.unit_cell()
    places = [cell.fractionalize(tuple(site)) for site in crystal.atoms.sites]
    inside = (np.array(places) % 1 * values.all() >= 1).all(axis=1)
    assert inside.sum() > 100
    np.testing.assert_allclose(
        result.density[inside], np.array([at(place) for place in places])[inside], atol=1e-9
    )


def test_target_and_gradients_equal_cctbx(library: RestraintLibrary) -> None:
    """Where cctbx's gradients hold: in a cell with right angles."""
    atoms = b"".join(
        line + b"\n" for line in wheel_bytes(PDB_1YJP).splitlines() if line.startswith(b"ATOM")
    )
    model = build(inputs(CUBE + atoms), library)
    values = np.random.default_rng(0).normal(size=(18, 20, 24))
    sites = np.random.default_rng(1).uniform(-30, 50, model.atoms.sites.shape)
    result = real_space(
        model, CellMap(values, (20, 24, 28, 90, 90, 90)), sites, interpolation="linear"
    )
    plain = maptbx.target_and_gradients_simple(
        unit_cell=model.symmetry.unit_cell(),
        map_target=flex.double(values),
        sites_cart=flex.vec3_double(sites),
        selection=flex.bool(len(sites), True),
        interpolation="linear",
    )
    assert result.value == pytest.approx(plain.target(), rel=1e-9)
    np.testing.assert_allclose(result.gradients, np.array(plain.gradients()), atol=1e-9)


@pytest.mark.parametrize("interpolation", ["tricubic", "linear"])
def test_gradients_equal_finite_differences(
    crystal: BuiltModel, read: CellMap, interpolation: Any
) -> None:
    """Also outside of the cell that the map covers, which repeats itself."""
    sites = crystal.atoms.sites + np.random.default_rng(3).normal(0, 6, crystal.atoms.sites.shape)
    gradients = real_space(crystal, read, sites, interpolation=interpolation).gradients
    step = 1e-6
    for axis in range(3):
        ahead, behind = (
            real_space(
                crystal, read, sites + sign * step * np.eye(3)[axis], interpolation=interpolation
            ).density
            for sign in (1, -1)
        )
        np.testing.assert_allclose((ahead - behind) / (2 * step), gradients[:, axis], atol=1e-6)


def test_the_cell_repeats_itself(crystal: BuiltModel, read: CellMap) -> None:
    cell = crystal.symmetry.unit_cell()
    shift = np.array(cell.orthogonalize((1, -2, 3)))
    here = real_space(crystal, read)
    there = real_space(crystal, read, crystal.atoms.sites + shift)
    np.testing.assert_allclose(there.density, here.density, atol=1e-9)
    np.testing.assert_allclose(there.gradients, here.gradients, atol=1e-8)


def refusal(call: Any) -> str:
    with pytest.raises((EngineError, SampleError)) as caught:
        call()
    error = caught.value
    return error.reason if isinstance(error, EngineError) else error.status.name


def patched(content: bytes, word: int, value: int) -> bytes:
    return content[: 4 * word] + value.to_bytes(4, "little", signed=True) + content[4 * word + 4 :]


def test_bad_files(density: DensityMap) -> None:
    good = density.ccp4()
    for bad in (b"x", b"MAP " * 512, good[:1000], good[:-4], good + b"....", good[:1024]):
        assert refusal(lambda bad=bad: ccp4.read(bad)) == "MAP_UNREADABLE"
    assert refusal(lambda: ccp4.read(b"")) == "EMPTY_FILE"
    for word, value, reason in (
        (0, -1, "MAP_TOO_LARGE"),
        (0, 2**31 - 1, "MAP_TOO_LARGE"),
        (2, 0, "MAP_TOO_LARGE"),
        (1, 44, "MAP_UNREADABLE"),
        (3, 99, "MAP_UNREADABLE"),
        (7, 48, "MAP_INCOMPLETE"),
        (16, 2, "MAP_UNREADABLE"),
        (23, -1024, "MAP_UNREADABLE"),
        (23, 2**31 - 1, "MAP_UNREADABLE"),
        (300, 0x7FC00000, "MAP_NOT_FINITE"),
    ):
        content = patched(good, word, value)
        assert refusal(lambda content=content: ccp4.read(content)) == reason, (word, value)


def test_bad_requests(crystal: BuiltModel, read: CellMap, library: RestraintLibrary) -> None:
    for cell in ((5.0, *read.unit_cell[1:]), (0.0,) * 6, (np.nan,) * 6, (1, 1, 1, 10, 10, 170)):
        other = CellMap(read.values, cell)  # type: ignore[arg-type]
        assert refusal(lambda other=other: real_space(crystal, other)) == "MAP_CELL_MISMATCH"
    sites = crystal.atoms.sites.copy()
    assert refusal(lambda: real_space(crystal, read, sites[1:])) == "COORDINATES_SHAPE"
    sites[0] = np.nan
    assert refusal(lambda: real_space(crystal, read, sites)) == "NON_FINITE"
    text = wheel_bytes(PDB_1YJP).replace(b"CRYST1", b"REMARK")
    free = build(inputs(text), library)
    assert refusal(lambda: real_space(free, read)) == "NO_CRYSTAL_SYMMETRY"
