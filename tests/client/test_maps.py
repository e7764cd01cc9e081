"""Structure factors and maps: requests made, answers put together."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from bxmesh.client import InvalidInput, Mesh
from bxmesh.client.errors import InternalError
from bxmesh.geometry.v1 import calculations_pb2 as pb
from bxmesh.geometry.v1 import gradients_pb2
from bxmesh.tensors import from_message

pytestmark = pytest.mark.asyncio
MODEL = "sha256:" + "0" * 64
SITES = np.random.default_rng(0).normal(size=(4, 3))


async def test_structure_factors(server, mesh):
    result = await mesh.structure_factors(
        MODEL, SITES, kinds=["f_calc"], algorithm="direct", d_min=2, as_mtz=True
    )
    assert result.miller_indices.tolist() == [[0, 0, 1], [-1, 2, 3]]
    assert result.f_calc.tolist() == [1 + 2j, -3j]
    assert result.f_mask is result.f_model is result.xray is None
    assert result.k_overall == 1.5
    assert result.mtz_bundle_id == "sha256:" + "1" * 64
    request = server.requests[-1]
    assert request.kinds == [pb.STRUCTURE_FACTOR_KIND_F_CALC]
    assert request.algorithm == gradients_pb2.STRUCTURE_FACTOR_ALGORITHM_DIRECT
    assert (request.model_id, request.d_min) == (MODEL, 2)
    sites = from_message(request.coordinates.tensor, max_bytes=1 << 20)
    np.testing.assert_array_equal(sites, SITES)
    await mesh.structure_factors(MODEL)
    assert not server.requests[-1].HasField("coordinates")
    assert not server.requests[-1].kinds


async def test_map(server, mesh):
    steps = []
    result = await mesh.map(MODEL, "2mfo_dfc", resolution_factor=3, on_progress=steps.append)
    assert result.values.shape == (2, 3, 4)
    assert result.values.dtype == np.float32
    assert (result.mean, result.sigma) == (0.5, 2.0)
    assert [progress.step for progress in steps] == ["map"]
    assert server.requests[-1].kind == pb.MAP_KIND_2MFO_DFC
    assert server.requests[-1].resolution_factor == 3


async def test_a_repeated_request_has_its_id(server, mesh):
    server.unavailable["ComputeMap"] = 2
    await mesh.map(MODEL, "anomalous")
    assert server.calls["ComputeMap"] == 3
    assert len({request.request_id for request in server.requests}) == 1


async def test_an_answer_without_its_end_is_refused(server, mesh):
    server.silent = True
    with pytest.raises(InternalError) as caught:
        await mesh.map(MODEL, "mfo_dfc")
    assert caught.value.reason == "ANSWER_TRUNCATED"


async def test_bad_arguments_are_not_sent(server, mesh):
    for call in (
        mesh.map(MODEL, "2fofc"),
        mesh.map(MODEL, "mfo_dfc", SITES[:, :2]),
        mesh.structure_factors(MODEL, kinds=["fcalc"]),
        mesh.structure_factors(MODEL, algorithm="fast"),
        mesh.structure_factors(MODEL, np.full((4, 3), "x")),
    ):
        with pytest.raises(InvalidInput):
            await call
    assert server.requests == []


async def test_without_asyncio(server):
    def compute():
        with Mesh(server.address, api_key="bxm_secret") as mesh:
            return mesh.map(MODEL, "mfo_dfc"), mesh.structure_factors(MODEL)

    density, factors = await asyncio.to_thread(compute)
    assert density.sigma == 2.0
    assert len(factors.f_calc) == 2
