"""What the tests of refused input share."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from bxmesh.client import AsyncMesh, Model
from bxmesh.client.errors import (
    BxmeshError,
)
from bxmesh.geometry.v1 import gradients_pb2
from bxmesh.tensors import to_message
from tests.engine.wheel import PDB_1YJP, wheel_file

NO_BUNDLE = "sha256:" + "0" * 64


async def bundles(mesh: AsyncMesh, *kinds: str) -> set[str]:
    return {b.bundle_id async for b in mesh.bundles.list() if b.kind in kinds}


def checked(error: BxmeshError, reason: str) -> BxmeshError:
    """What every error has."""
    assert error.reason == reason
    assert len(error.trace_id) == 32
    assert "Traceback" not in error.message
    return error


async def peptide(mesh: AsyncMesh) -> tuple[Model, np.ndarray]:
    model = await mesh.create_model(wheel_file(PDB_1YJP), include_atoms=True)
    assert model.atoms is not None
    return model, model.atoms.sites


def asked(model_id: str, array: np.ndarray | None = None, **more: Any) -> Any:
    request = gradients_pb2.ComputeGradientsRequest(model_id=model_id, **more)
    if array is not None:
        request.coordinates.tensor.CopyFrom(to_message(array, "coordinates"))
    return request


async def npy(mesh: AsyncMesh, array: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return (await mesh.bundles.upload(buffer.getvalue(), kind="coordinates")).bundle_id
