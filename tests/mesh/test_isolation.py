"""Everybody gets the answers to their own coordinates, whoever else works with the same model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from bxmesh.client import AsyncMesh, AsyncSession, Model
from bxmesh.server.embedded import EmbeddedMesh
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, wheel_file
from tests.mesh.raw import noisy

CLIENTS = 4
SESSIONS = 12
STEPS = 15


@pytest.fixture
async def clients(lone_mesh: EmbeddedMesh) -> AsyncIterator[list[AsyncMesh]]:
    meshes = [AsyncMesh(lone_mesh.address, state_dir=lone_mesh.state_dir) for _ in range(CLIENTS)]
    yield meshes
    for mesh in meshes:
        await mesh.close()


async def crystal(mesh: AsyncMesh) -> tuple[Model, np.ndarray]:
    model = await mesh.create_model(wheel_file(PDB_7N2L), wheel_file(MTZ_7N2L), include_atoms=True)
    assert model.atoms is not None
    return model, model.atoms.sites


async def peptide(mesh: AsyncMesh) -> tuple[Model, np.ndarray]:
    model = await mesh.create_model(wheel_file(PDB_1YJP), include_atoms=True)
    assert model.atoms is not None
    return model, model.atoms.sites


async def run_steps(session: AsyncSession, sites: np.ndarray) -> list[np.ndarray]:
    return [(await session.step(sample)).geometry_sites for sample in sites]


async def test_sessions_and_calls_on_one_model(clients: list[AsyncMesh]) -> None:
    model, sites = await peptide(clients[0])
    batch = noisy(sites, SESSIONS * STEPS, sigma=0.1)
    expected = (await clients[0].gradients(model, batch)).geometry_sites
    # Different coordinates have different gradients, or the test could not tell.
    assert len(np.unique(expected.reshape(len(expected), -1), axis=0)) == len(expected)

    async def session(number: int) -> None:
        mine = slice(number * STEPS, (number + 1) * STEPS)
        async with clients[number % CLIENTS].session(model) as steps:
            answers = await run_steps(steps, batch[mine])
        for answer, own in zip(answers, expected[mine], strict=True):
            np.testing.assert_allclose(answer, own, rtol=1e-9, atol=1e-9)

    async def call(number: int) -> None:
        result = await clients[number % CLIENTS].gradients(model, batch[number])
        np.testing.assert_allclose(result.geometry_sites, expected[number], rtol=1e-9, atol=1e-9)

    async with asyncio.TaskGroup() as group:
        for number in range(SESSIONS):
            group.create_task(session(number))
        for number in range(0, SESSIONS * STEPS, 4):
            group.create_task(call(number))


async def test_models_do_not_mix(clients: list[AsyncMesh]) -> None:
    models = [await peptide(clients[0]), await crystal(clients[0])]
    expected = [await clients[0].gradients(model, sites) for model, sites in models]

    async def ask(number: int) -> None:
        model, sites = models[number % 2]
        result = await clients[number % CLIENTS].gradients(model, sites)
        for name, array in expected[number % 2].arrays.items():
            np.testing.assert_array_equal(result.arrays[name], array)

    await asyncio.gather(*map(ask, range(30)))


async def test_options_do_not_mix(clients: list[AsyncMesh]) -> None:
    model, sites = await crystal(clients[0])
    sites = noisy(sites)
    every: list[dict[str, Any]] = [
        {"target": "geometry"},
        {"target": "xray"},
        {"target": "xray", "xray_target": "ls"},
        {"target": "xray", "with_respect_to": ("adp_iso",)},
        {"target": "xray", "with_respect_to": ("occupancy", "sites")},
        {"target": "combined", "xray_weight": 2.0},
        {"target": "xray", "precision": "float32"},
    ]
    expected = [await clients[0].gradients(model, sites, **options) for options in every]

    async def ask(number: int) -> None:
        place = number % len(every)
        result = await clients[number % CLIENTS].gradients(model, sites, **every[place])
        assert result.arrays.keys() == expected[place].arrays.keys()
        assert result.samples == expected[place].samples
        for name, array in expected[place].arrays.items():
            np.testing.assert_array_equal(result.arrays[name], array)

    await asyncio.gather(*map(ask, range(5 * len(every))))


async def test_refreshed_scales_are_a_sessions_own(clients: list[AsyncMesh]) -> None:
    one, other, *_ = clients
    model, sites = await crystal(one)
    near, far = noisy(sites), noisy(sites, sigma=0.3, seed=1)
    async with (
        one.session(model, target="xray") as moving,
        other.session(model, target="xray") as frozen,
    ):
        before = await frozen.step(near)
        call = await other.gradients(model, near, target="xray")
        first = await moving.step(near)
        np.testing.assert_array_equal(first.xray_sites, before.xray_sites)
        np.testing.assert_array_equal(call.xray_sites, before.xray_sites)
        await moving.step(far, refresh_scales=True)
        moved = await moving.step(near)
        assert moved.xray.value != before.xray.value
        after = await frozen.step(near)
        again = await other.gradients(model, near, target="xray")
        async with other.session(model, target="xray") as fresh:
            new = await fresh.step(near)
        for answer in (after, again, new):
            assert answer.xray == before.xray
            np.testing.assert_array_equal(answer.xray_sites, before.xray_sites)
        # And back: what is refreshed at the file's coordinates is what all began with.
        await moving.step(sites, refresh_scales=True)
        back = await moving.step(near)
        assert back.xray.value == pytest.approx(before.xray.value, rel=1e-12)


async def test_bad_coordinates_of_one_do_not_hurt_another(clients: list[AsyncMesh]) -> None:
    model, sites = await peptide(clients[0])
    good = noisy(sites)
    bad = [np.full_like(sites, np.nan), noisy(sites, sigma=500.0), np.zeros_like(sites)]
    expected = (await clients[0].gradients(model, good)).geometry_sites

    async def spoil(mesh: AsyncMesh) -> None:
        async with mesh.session(model) as session:
            for number in range(15):
                assert not (await session.step(bad[number % 3])).ok

    async def use(mesh: AsyncMesh) -> None:
        async with mesh.session(model) as session:
            for answer in await run_steps(session, np.repeat(good[np.newaxis], 15, axis=0)):
                np.testing.assert_allclose(answer, expected, rtol=1e-9, atol=1e-9)

    await asyncio.gather(spoil(clients[0]), use(clients[1]), spoil(clients[2]), use(clients[3]))
