"""Stored functions next to the geometry workers of a whole mesh."""

from __future__ import annotations

import numpy as np
import pytest

from bxmesh.client import AsyncMesh
from tests.engine.wheel import PDB_1YJP
from tests.mesh.models import created, sites_of

CODE = """
import geometry

async def main(model_id, coordinates=None):
    found = await geometry.gradients(model_id, coordinates, arrays=True)
    sample = found["samples"][0]
    return {
        "energy": sample["geometry"]["energy"],
        "status": sample["status"],
        "gradient": found["geometry_sites"],
    }
"""


async def test_a_function_computes_gradients(mesh: AsyncMesh) -> None:
    model = await created(mesh, PDB_1YJP)
    moved = sites_of(model) + 0.1 * np.sin(np.arange(sites_of(model).size)).reshape(-1, 3)
    expected = await mesh.gradients(model, moved)
    await mesh.functions.create(
        "test.gradients", CODE, is_async=True, host_functions=["geometry.gradients"]
    )
    found = await mesh.functions.call(
        "test.gradients", model_id=model.model_id, coordinates=moved.tolist()
    )
    assert found["status"] == "ok"
    assert found["energy"] == pytest.approx(expected.energy)
    np.testing.assert_allclose(found["gradient"], expected.geometry_sites, rtol=1e-9)
