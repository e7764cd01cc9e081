"""Input made to take a mesh down: it is refused, or costs one worker for a while, and the rest serves."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from bxmesh.client import AsyncMesh
from bxmesh.client.errors import BxmeshError, InvalidInput
from bxmesh.geometry.v1 import bundle_pb2, gradients_pb2
from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.tensor.v1 import tensor_pb2
from tests.engine.wheel import PDB_1YJP, wheel_file
from tests.mesh.conftest import start_mesh
from tests.mesh.raw import raw

CELL = "data_x\n_cell.length_a 50\n"


def waters(count: int, spread: float) -> bytes:
    """A PDB of waters within a cube of so many angstrom."""
    rng = np.random.default_rng(0)
    rows = [
        f"HETATM{n % 100000:5d}  O   HOH A{n % 10000:4d}    "
        f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00           O"
        for n, (x, y, z) in enumerate(rng.uniform(0, spread, (count, 3)), start=1)
    ]
    return ("\n".join(rows) + "\nEND\n").encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (CELL.encode() + b"_x\n;" + b"a" * 5_000_000, "MACROMOLECULE_UNREADABLE"),
        (CELL.encode() + b"_x\n;" + b"a" * 200_000 + b"\n;\n", "MACROMOLECULE_UNREADABLE"),
        (CELL.encode() + b"_x " + b"a" * 5_000_000, "MACROMOLECULE_UNREADABLE"),
        (gzip.compress(b"") * 200_000, "BROKEN_GZIP"),
        (waters(9_000, 5.0), "MODEL_TOO_DENSE"),
    ],
    ids=["open-text", "long-text", "long-line", "gzip-members", "dense"],
)
async def test_macromolecule(mesh: AsyncMesh, content: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await mesh.create_model(content, timeout=60)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "shape", [(2**31 - 1, 40001, 0), (10**17, 0, 3), (0, 3), (66, 2), (1, 2, 3, 3), (3,), ()]
)
async def test_shapes(mesh: AsyncMesh, shared_mesh: EmbeddedMesh, shape: tuple[int, ...]) -> None:
    model = await mesh.create_model(wheel_file(PDB_1YJP))
    request = gradients_pb2.ComputeGradientsRequest(model_id=model.model_id)
    spec = request.coordinates.tensor.spec
    spec.data_type = tensor_pb2.DATA_TYPE_FLOAT64
    spec.shape.extend(shape)
    request.coordinates.tensor.data = b"\0" * (
        8 * int(np.prod(shape)) if np.prod(shape) < 999 else 0
    )
    async with raw(shared_mesh) as stubs:
        with pytest.raises(InvalidInput):
            await stubs.gradients(request)


async def test_crowded_sample_is_refused_and_the_others_answered(mesh: AsyncMesh) -> None:
    model = await mesh.create_model(wheel_file("mmtbx/regression/pdbs/pae.pdb"), include_atoms=True)
    assert model.atoms is not None
    sites = model.atoms.sites
    crowded = np.random.default_rng(1).normal(0, 1.0, sites.shape)
    result = await mesh.gradients(model, np.stack([crowded, sites]))
    assert [sample.status for sample in result.samples] == ["failed", "ok"]


async def test_request_id_used_again_for_something_else(
    mesh: AsyncMesh, shared_mesh: EmbeddedMesh
) -> None:
    model = await mesh.create_model(wheel_file(PDB_1YJP), include_atoms=True)
    assert model.atoms is not None
    sites = model.atoms.sites
    async with raw(shared_mesh) as stubs:
        answers = []
        for coordinates in (sites, np.stack([sites, sites + 0.1])):
            request = gradients_pb2.ComputeGradientsRequest(
                request_id="again", model_id=model.model_id
            )
            tensor = request.coordinates.tensor
            tensor.spec.data_type = tensor_pb2.DATA_TYPE_FLOAT64
            tensor.spec.shape.extend(coordinates.shape)
            tensor.data = coordinates.tobytes()
            answers.append(await stubs.gradients(request))
    assert [len(answer.samples) for answer in answers] == [1, 2]


async def test_forged_model_is_not_stored(mesh: AsyncMesh, shared_mesh: EmbeddedMesh) -> None:
    async with raw(shared_mesh) as stubs:
        header = bundle_pb2.UploadBundleHeader(kind=bundle_pb2.BUNDLE_KIND_MODEL)

        async def upload():  # type: ignore[no-untyped-def]
            yield bundle_pb2.UploadBundleRequest(header=header)

        with pytest.raises(Exception, match="made by the mesh"):
            await stubs.stub.UploadBundle(upload(), metadata=stubs.metadata)


async def test_calculation_that_never_ends_costs_its_worker_only() -> None:
    """A share over its time ends the worker, is tried again, and is given up; others are served."""
    with start_mesh(2, BXMESH_MAX_SHARE_SECONDS="1.5", BXMESH_MAX_ATTEMPTS="2") as server:
        async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
            small = await mesh.create_model(wheel_file(PDB_1YJP))
            # Its restraints take several seconds to build.
            large = await mesh.create_model(wheel_file("mmtbx/regression/pdbs/pae.pdb"))
            with pytest.raises(BxmeshError) as caught:
                await mesh.gradients(large, timeout=90)
            assert caught.value.reason == "WORKER_LOST"
            assert (await mesh.gradients(small, timeout=60)).ok
