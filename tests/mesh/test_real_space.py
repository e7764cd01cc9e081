"""Real-space gradients through the mesh: those of the engine, and whose maps they may be of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from bxmesh.client import AsyncMesh, Mesh, Model
from bxmesh.client.errors import BxmeshError
from bxmesh.geometry.v1 import calculations_pb2 as pb
from bxmesh.security.v1 import credential_pb2, identity_pb2
from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.server.geometry.engine import ModelInputs, ccp4
from bxmesh.server.geometry.engine.model import BuiltModel, build
from bxmesh.server.geometry.engine.real_space import real_space
from tests.engine.prepared import prepared_library
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, wheel_bytes, wheel_file
from tests.mesh.models import crystal as created
from tests.mesh.models import sites_of
from tests.mesh.raw import noisy
from tests.mesh.refusals import NO_BUNDLE, npy


@pytest.fixture(scope="module")
def here() -> BuiltModel:
    """7n2l in this process."""
    return build(ModelInputs(wheel_bytes(PDB_7N2L)), prepared_library())


@pytest.fixture
async def model(mesh: AsyncMesh) -> Model:
    return await created(mesh)


@pytest.fixture
async def map_id(mesh: AsyncMesh, model: Model) -> str:
    return (await mesh.map(model, "2mfo_dfc")).ccp4_bundle_id


@pytest.fixture
async def other(mesh: AsyncMesh, shared_mesh: EmbeddedMesh) -> AsyncIterator[AsyncMesh]:
    """Somebody else, who may compute."""
    name = f"other-{uuid4().hex[:8]}"
    await mesh.security.call(
        identity_pb2.CreateIdentityRequest(
            identity=identity_pb2.Identity(
                identity_id=name, kind=identity_pb2.IDENTITY_KIND_USER, roles=["supervisor"]
            )
        ),
    )
    key = await mesh.security.call(credential_pb2.CreateApiKeyRequest(identity_id=name))
    async with AsyncMesh(shared_mesh.address, api_key=key.secret) as client:
        yield client


@pytest.mark.parametrize("interpolation", ["tricubic", "linear", None])
async def test_equal_the_engine(
    mesh: AsyncMesh, model: Model, map_id: str, here: BuiltModel, interpolation: Any
) -> None:
    density = ccp4.read(await mesh.bundles.download(map_id))
    for sites in (None, noisy(sites_of(model))):
        result = await mesh.real_space_gradients(model, map_id, sites, interpolation=interpolation)
        expected = real_space(here, density, sites, interpolation=interpolation or "tricubic")
        assert result.value == expected.value
        np.testing.assert_array_equal(result.gradients, expected.gradients)
        np.testing.assert_array_equal(result.density, expected.density)


async def test_uphill_is_more_density(mesh: AsyncMesh, model: Model, map_id: str) -> None:
    sites = noisy(sites_of(model))
    before = await mesh.real_space_gradients(model, map_id, sites)
    step = 1e-3 * before.gradients / np.abs(before.gradients).max()
    after = await mesh.real_space_gradients(model, map_id, sites + step)
    gained = (before.gradients * step).sum()
    assert after.value - before.value == pytest.approx(gained, rel=0.02)


async def test_a_job_and_a_file(
    mesh: AsyncMesh, shared_mesh: EmbeddedMesh, model: Model, map_id: str, tmp_path: Path
) -> None:
    request = pb.ComputeRealSpaceGradientsRequest(model_id=model.model_id, map_bundle_id=map_id)
    job = await mesh.jobs.create(request)
    await mesh.jobs.wait(job.job_id)
    result = await mesh.jobs.result(job.job_id)
    path = await mesh.bundles.download(map_id, tmp_path / "map.ccp4")
    direct = await mesh.real_space_gradients(model, path)
    np.testing.assert_array_equal(result.tensors["gradients"], direct.gradients)


async def refused(call: Any) -> str:
    with pytest.raises(BxmeshError) as caught:
        await call
    return caught.value.reason


async def test_what_is_refused(mesh: AsyncMesh, model: Model, map_id: str) -> None:
    gradients = mesh.real_space_gradients
    peptide = await mesh.create_model(wheel_file(PDB_1YJP))
    assert await refused(gradients(peptide, map_id)) == "MAP_CELL_MISMATCH"
    free = await mesh.create_model(wheel_bytes(PDB_1YJP).replace(b"CRYST1", b"REMARK"))
    assert await refused(gradients(free, map_id)) == "NO_CRYSTAL_SYMMETRY"
    assert await refused(gradients(model, b"no map")) == "MAP_UNREADABLE"
    assert await refused(gradients(model, wheel_file(MTZ_7N2L))) == "MAP_UNREADABLE"
    content = await mesh.bundles.download(map_id)
    assert await refused(gradients(model, content[:-4])) == "MAP_UNREADABLE"
    assert await refused(gradients(model, NO_BUNDLE)) == "BUNDLE_NOT_FOUND"
    sites = sites_of(model).copy()
    assert await refused(gradients(model, map_id, sites[1:])) == "COORDINATES_SHAPE"
    sites[0] = np.nan
    assert await refused(gradients(model, map_id, sites)) == "SAMPLE_NON_FINITE"


async def test_maps_of_others_are_not_there(mesh: AsyncMesh, other: AsyncMesh, map_id: str) -> None:
    model = await other.create_model(wheel_file(PDB_7N2L), include_atoms=True)
    assert await refused(other.real_space_gradients(model, map_id)) == "BUNDLE_NOT_FOUND"
    request = pb.ComputeRealSpaceGradientsRequest(model_id=model.model_id, map_bundle_id=map_id)
    assert await refused(other.jobs.create(request)) == "BUNDLE_NOT_FOUND"
    task = await other.assign_task(
        "geometry.real_space",
        {"modelId": model.model_id, "mapBundleId": map_id},
        capabilities=["geometry.model"],
    )
    async for change in other.watch_task(task.task_id):
        if change.state in ("failed", "completed"):
            break
    done = await other.task(task.task_id)
    assert done.state == "failed"
    assert done.error is not None
    assert done.error.reason == "BUNDLE_NOT_FOUND"
    await mesh.bundles.share(map_id, "all")
    assert (await other.real_space_gradients(model, map_id)).value
    coordinates = await npy(mesh, sites_of(model))
    hidden = pb.ComputeMapRequest(model_id=model.model_id, kind=pb.MAP_KIND_MFO_DFC)
    hidden.coordinates.bundle_id = coordinates
    assert await refused(other.jobs.create(hidden)) == "BUNDLE_NOT_FOUND"


def test_without_asyncio(shared_mesh: EmbeddedMesh) -> None:
    with Mesh(shared_mesh.address, state_dir=shared_mesh.state_dir) as mesh:
        model = mesh.create_model(wheel_file(PDB_7N2L), wheel_file(MTZ_7N2L))
        map_id = mesh.map(model, "2mfo_dfc").ccp4_bundle_id
        assert mesh.real_space_gradients(model, map_id).density.shape == (150,)
