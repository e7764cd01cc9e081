"""Restraints through the mesh: those of the engine, evaluated here, kept as a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bxmesh.client import AsyncMesh, Mesh
from bxmesh.client.errors import BxmeshError
from bxmesh.restraints import TERMS, Evaluator, Restraints
from bxmesh.server.embedded import EmbeddedMesh
from tests.engine.wheel import PDB_1YJP, wheel_file
from tests.mesh.models import crystal, same, sites_of
from tests.mesh.raw import noisy


async def test_restraints_have_the_energies_of_the_mesh(mesh: AsyncMesh, tmp_path: Path) -> None:
    model = await crystal(mesh)
    restraints = await mesh.restraints(model)
    sites = noisy(sites_of(model))
    here = Evaluator(restraints)(sites)
    there = await mesh.gradients(model, sites)
    assert there.samples[0].geometry is not None
    terms = there.samples[0].geometry.terms
    for name in TERMS:
        expected = terms[name].energy if name in terms else 0.0
        np.testing.assert_allclose(here.terms[name][0], expected, rtol=1e-9)
    assert same(here.gradients[0], there.geometry_sites)

    [bundle_id] = [
        each.bundle_id
        async for each in mesh.bundles.list(kind="restraint_tensors")
        if model.model_id in each.derived_from
    ]
    path = await mesh.bundles.download(bundle_id, tmp_path / "restraints.npz")
    kept = Restraints.load(path)
    for name, tensor in restraints.tensors.items():
        np.testing.assert_array_equal(kept[name], tensor)


def test_without_asyncio(shared_mesh: EmbeddedMesh) -> None:
    with Mesh(shared_mesh.address, state_dir=shared_mesh.state_dir) as mesh:
        model = mesh.create_model(wheel_file(PDB_1YJP))
        assert mesh.restraints(model).n_atoms == 66


async def test_an_unknown_model_is_refused(mesh: AsyncMesh) -> None:
    with pytest.raises(BxmeshError):
        await mesh.restraints("sha256:" + "0" * 64)
