"""Sessions in the layout atom37: gradients in the caller's layout, and what either side lacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bxmesh.client import AsyncMesh, Atom37, InvalidInput, Mesh, Model
from bxmesh.client.errors import from_status
from bxmesh.geometry.v1 import gradients_pb2
from bxmesh.layouts import ATOM37, AtomName
from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.tensors import to_message
from tests.engine.wheel import PDB_1YJP, wheel_file
from tests.mesh.models import created, crystal, sites_of
from tests.mesh.raw import noisy, raw


def in_atom37(model: Model, values: np.ndarray) -> np.ndarray:
    """Values [N, …] of the first residues of 1yjp, which are numbered from 1, as [7, 37, …]."""
    assert model.atoms is not None
    places = np.zeros((7, 37, *values.shape[1:]))
    for value, name, number in zip(
        values, model.atoms.names, model.atoms.residue_numbers, strict=True
    ):
        if int(number) <= 7:
            places[int(number) - 1, ATOM37.index(name)] = value
    return places


async def test_steps(lone: AsyncMesh) -> None:
    model = await created(lone, PDB_1YJP)
    batch = noisy(sites_of(model), 3)
    assert model.atoms is not None
    protein = np.array([int(number) <= 7 for number in model.atoms.residue_numbers])
    # The waters are not in the layout, and stay where the file has them.
    batch[:, ~protein] = sites_of(model)[~protein]
    expected = await lone.gradients(model, batch, gradients_per_term=True)
    places = np.stack([in_atom37(model, sites) for sites in batch])
    async with lone.session(model, layout=Atom37(), gradients_per_term=True) as session:
        found = session.atom37
        assert found is not None
        places[:, ~found.mask] = np.nan
        step = await session.step(places)
        alone = await session.step(places[0])
        single = await session.step(places.astype(np.float32))
    assert found.residues == tuple(("A", str(number)) for number in range(1, 8))
    assert found.mask.sum() == protein.sum()
    assert found.only_in_model_count == len(found.only_in_model) == (~protein).sum()
    assert {name.name for name in found.only_in_model} == {"O"}
    assert (found.only_in_caller, found.only_in_caller_count) == ((), 0)
    assert set(step.arrays) == set(expected.arrays)
    for name, array in step.arrays.items():
        own = np.stack([in_atom37(model, each) for each in expected.arrays[name]])
        assert array.shape == (3, 7, 37, 3)
        assert not array[:, ~found.mask].any()
        np.testing.assert_allclose(array, own, rtol=0, atol=1e-9)
        np.testing.assert_array_equal(alone.arrays[name], array[0])
    assert single.geometry_sites.dtype == np.float32
    np.testing.assert_allclose(single.geometry_sites, step.geometry_sites, rtol=1e-3, atol=0.1)
    assert step.energies("geometry") == pytest.approx(expected.energies("geometry"), rel=1e-12)


async def test_what_either_side_lacks(lone: AsyncMesh) -> None:
    """Rows in another order, a residue that the model has not, an atom off the mask."""
    model = await created(lone, PDB_1YJP)
    mask = np.zeros((3, 37), dtype=bool)
    mask[:, :3] = True
    mask[1, 0] = False
    residues = [("A", "3"), ("A", "1"), ("B", "1")]
    async with lone.session(model, layout=Atom37(residues, mask)) as session:
        found = session.atom37
        assert found is not None
        step = await session.step(in_atom37(model, sites_of(model))[[2, 0, 0]])
    assert found.residues == tuple(residues)
    assert found.only_in_caller == tuple(AtomName("B", "1", name) for name in ("N", "CA", "C"))
    assert AtomName("A", "1", "N") in found.only_in_model
    assert found.only_in_model_count == 66 - 5
    expected = mask.copy()
    expected[2] = False
    assert np.array_equal(found.mask, expected)
    assert np.array_equal(step.geometry_sites.any(axis=-1), expected)
    whole = (await lone.gradients(model)).geometry_sites
    rows = in_atom37(model, whole)[[2, 0, 0]]
    np.testing.assert_allclose(
        step.geometry_sites, np.where(expected[..., None], rows, 0.0), rtol=0, atol=1e-9
    )


async def test_every_parameter(lone: AsyncMesh) -> None:
    model = await crystal(lone)
    wanted: Any = ("sites", "adp_iso", "adp_aniso", "occupancy")
    expected = await lone.gradients(model, target="xray", with_respect_to=wanted)
    async with lone.session(
        model, layout=Atom37(), target="xray", with_respect_to=wanted
    ) as session:
        found = session.atom37
        assert found is not None
        assert model.atoms is not None
        order = list(
            zip(model.atoms.chain_ids, model.atoms.residue_numbers, model.atoms.names, strict=True)
        )
        places = np.full((*found.mask.shape, 3), np.nan)
        atoms = np.full(found.mask.shape, -1)
        for row, column in np.argwhere(found.mask):
            atoms[row, column] = order.index((*found.residues[row], ATOM37[column]))
        places[found.mask] = sites_of(model)[atoms[found.mask]]
        step = await session.step(places, refresh_scales=True)
    rows = len(found.residues)
    assert step.arrays["xray_adp_iso"].shape == step.arrays["xray_occupancy"].shape == (rows, 37)
    assert step.arrays["xray_adp_aniso"].shape == (rows, 37, 6)
    for name, array in step.arrays.items():
        own = expected.arrays[name][atoms[found.mask]]
        np.testing.assert_allclose(array[found.mask], own, rtol=1e-6, atol=1e-9)


def test_without_asyncio(lone_mesh: EmbeddedMesh) -> None:
    with Mesh(lone_mesh.address, state_dir=lone_mesh.state_dir) as mesh:
        model = mesh.create_model(wheel_file(PDB_1YJP), include_atoms=True)
        with mesh.session(model, layout=Atom37()) as session:
            assert session.atom37 is not None
            shape = (*session.atom37.mask.shape, 3)
            step = session.step(in_atom37(model, sites_of(model)))
        assert step.geometry_sites.shape == shape
        with mesh.session(model) as session:
            assert session.atom37 is None


async def test_re_attaching_keeps_the_layout(lone: AsyncMesh, lone_mesh: EmbeddedMesh) -> None:
    model = await created(lone, PDB_1YJP)
    async with raw(lone_mesh) as stubs:
        async with stubs.session() as session:
            layout = Atom37([("A", "2")]).to_message()
            opened = await session.open(model.model_id, layout=layout)
        async with stubs.session() as session:
            again = await session.open(session_id=opened.session_id)
            assert again.atom37 == opened.atom37
            assert len(again.atom37.residues) == 1


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (Atom37([("A", "1"), ("A", "1")]), "ATOM_TWICE"),
        (Atom37(mask=np.ones((3, 37))), "MASK_SHAPE"),
    ],
)
async def test_layouts_that_make_no_sense_are_refused(
    lone: AsyncMesh, layout: Atom37, reason: str
) -> None:
    model = await created(lone, PDB_1YJP)
    with pytest.raises(InvalidInput) as raised:
        async with lone.session(model, layout=layout):
            pass
    assert raised.value.reason == reason


async def test_masks_of_another_kind_are_refused(lone: AsyncMesh, lone_mesh: EmbeddedMesh) -> None:
    model = await created(lone, PDB_1YJP)
    with pytest.raises(InvalidInput, match=r"\[R, 37\]"):
        lone.session(model, layout=Atom37(mask=np.ones(37)))
    for mask, reason in (
        (np.ones((7, 37), dtype=np.uint8), "MASK_SHAPE"),
        (np.ones((7, 36), dtype=bool), "MASK_SHAPE"),
        (np.ones((7, 37, 2), dtype=bool), "TENSOR_TOO_LARGE"),
    ):
        layout = gradients_pb2.Atom37Layout(mask=to_message(mask, "mask"))
        async with raw(lone_mesh) as stubs, stubs.session() as session:
            with pytest.raises(InvalidInput) as raised:
                await session.open(model.model_id, layout=layout)
            assert raised.value.reason == reason


async def test_coordinates_that_do_not_fit_end_no_session(
    lone: AsyncMesh, lone_mesh: EmbeddedMesh
) -> None:
    model = await created(lone, PDB_1YJP)
    good = in_atom37(model, sites_of(model))
    async with lone.session(model, layout=Atom37()) as session:
        with pytest.raises(InvalidInput, match=r"\[R, 37, 3\] or \[B, R, 37, 3\]"):
            await session.step(sites_of(model))
        for bad in (good[:6], good[:, :36], np.zeros((0, 7, 37, 3))):
            with pytest.raises(InvalidInput) as raised:
                await session.step(bad)
            assert raised.value.reason == "COORDINATES_SHAPE"
        broken = good.copy()
        broken[0, 0] = np.nan
        assert (await session.step(broken)).sample.status == "non_finite"
        assert (await session.step(good)).ok
    async with raw(lone_mesh) as stubs, stubs.session() as session:
        await session.open(model.model_id, layout=Atom37().to_message())
        for step_id, array in enumerate((good.astype(np.int32), good.astype(np.complex128))):
            await session.step(step_id, array)
            assert from_status((await session.result()).error).reason == "COORDINATES_DTYPE"
