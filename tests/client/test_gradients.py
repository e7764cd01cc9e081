"""Models and gradients: requests made, answers put together."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from bxmesh.client import DeadlineExceeded, InvalidInput, Unavailable
from bxmesh.geometry.v1 import gradients_pb2, model_pb2

pytestmark = pytest.mark.asyncio
PDB = b"ATOM      1  CA  ALA A   1\n"
MODEL = "sha256:" + "0" * 64
SITES = np.random.default_rng(0).normal(size=(4, 3))


async def test_model_uploads_its_inputs(server, mesh, tmp_path):
    path = tmp_path / "model.pdb"
    path.write_bytes(PDB)
    model = await mesh.create_model(
        path,
        b"MTZ ",
        [b"data_comp_list\n"],
        hydrogens="strip",
        data_labels="FOBS,SIGFOBS",
        include_atoms=True,
    )
    spec = server.requests[-1].spec
    assert server.contents[spec.macromolecule] == PDB
    assert server.contents[spec.reflections] == b"MTZ "
    assert [server.contents[name] for name in spec.restraints] == [b"data_comp_list\n"]
    assert spec.options.hydrogens == model_pb2.HYDROGEN_POLICY_STRIP
    assert spec.options.data_labels == "FOBS,SIGFOBS"
    assert model.summary.atoms == 4
    assert model.summary.reflections.d_min == 0.9
    assert model.atoms.names == ("N", "CA", "C", "O")
    assert model.atoms.mask.all()
    assert model.atoms.sites.shape == (4, 3)


async def test_names_of_bundles_are_taken_as_they_are(server, mesh):
    model = await mesh.create_model(MODEL)
    assert model.macromolecule == MODEL
    assert model.summary.reflections is None
    assert server.calls["UploadBundle"] == 0


async def test_one_sample(server, mesh):
    steps = []
    result = await mesh.gradients(MODEL, SITES, target="combined", on_progress=steps.append)
    np.testing.assert_array_equal(result.geometry_sites, 2 * SITES)
    np.testing.assert_array_equal(result.xray_sites, 2 * SITES)
    assert result.energy == pytest.approx((SITES**2).sum())
    assert (result.r_work, result.r_free) == (0.184, 0.213)
    assert result.sample.geometry.terms["bond"].count == 3
    assert result.step_times == {"build_restraints": 0.5, "gradients": 0.001}
    assert [progress.step for progress in steps] == ["gradients"]
    assert len(result.trace_id) == 32
    assert result.trace_id in server.metadata["ComputeGradients"]["traceparent"]
    assert await server.ended("ComputeGradients")


async def test_batch_keeps_the_order_and_the_status_of_its_samples(mesh):
    batch = np.stack([SITES, SITES * np.nan, SITES])
    result = await mesh.gradients(MODEL, batch, target="geometry")
    assert result.geometry_sites.shape == (3, 4, 3)
    assert [sample.status for sample in result.samples] == ["ok", "non_finite", "ok"]
    assert not result.ok


async def test_what_the_target_lacks_is_said(mesh):
    result = await mesh.gradients(MODEL, SITES, target="geometry")
    with pytest.raises(InvalidInput, match="xray_sites"):
        _ = result.xray_sites


async def test_large_coordinates_travel_as_a_bundle(server, mesh):
    batch = np.random.default_rng(1).normal(size=(60, 5000, 3)).astype(np.float32)
    result = await mesh.gradients(MODEL, batch, target="geometry")
    assert server.calls["UploadBundle"] == 1
    assert server.requests[-1].coordinates.WhichOneof("source") == "bundle_id"
    np.testing.assert_array_equal(result.geometry_sites, 2 * batch)


async def test_non_contiguous_coordinates(mesh):
    result = await mesh.gradients(MODEL, np.asfortranarray(SITES), target="geometry")
    np.testing.assert_array_equal(result.geometry_sites, 2 * SITES)


async def test_options_reach_the_server(server, mesh):
    await mesh.gradients(
        MODEL,
        SITES,
        target="xray",
        xray_target="ls",
        algorithm="direct",
        with_respect_to=("sites", "adp_iso"),
        precision="float32",
        geometry_weight=2.0,
        selection="chain A",
    )
    options = server.requests[-1].options
    assert options.xray_target == gradients_pb2.XRAY_TARGET_LS
    assert options.algorithm == gradients_pb2.STRUCTURE_FACTOR_ALGORITHM_DIRECT
    assert list(options.with_respect_to) == [
        gradients_pb2.PARAMETER_SITES,
        gradients_pb2.PARAMETER_ADP_ISO,
    ]
    assert options.precision == gradients_pb2.PRECISION_FLOAT32
    assert (options.geometry_weight, options.selection) == (2.0, "chain A")


@pytest.mark.parametrize(
    "coordinates",
    [
        np.zeros((4, 2)),
        np.zeros(3),
        np.zeros((1, 1, 4, 3)),
        np.zeros((4, 3), complex),
        np.zeros((4, 3), np.float16),
        [["a", "b", "c"]],
    ],
)
async def test_impossible_coordinates_are_refused_before_sending(server, mesh, coordinates):
    with pytest.raises(InvalidInput, match="coordinates are"):
        await mesh.gradients(MODEL, coordinates)
    assert server.calls["ComputeGradients"] == 0


async def test_unknown_names_are_refused_with_the_choices(mesh):
    with pytest.raises(InvalidInput, match="geometry, xray, combined") as raised:
        await mesh.gradients(MODEL, SITES, target="both")
    assert raised.value.field_violations[0][0] == "target"


async def test_repeated_calls_keep_their_request_id(server, mesh):
    server.unavailable["ComputeGradients"] = 2
    await mesh.gradients(MODEL, SITES)
    assert len(server.requests) == 3
    assert len({request.request_id for request in server.requests}) == 1


async def test_retries_end(server, mesh):
    server.unavailable["ComputeGradients"] = 100
    with pytest.raises(Unavailable):
        await mesh.gradients(MODEL, SITES)
    assert server.calls["ComputeGradients"] == 5


async def test_timeout(server, mesh):
    server.silent = True
    with pytest.raises(DeadlineExceeded) as raised:
        await mesh.gradients(MODEL, SITES, timeout=0.1)
    assert len(raised.value.trace_id) == 32
    assert await server.ended("ComputeGradients")


async def test_cancelled_call_ends_its_stream(server, mesh):
    entered = asyncio.Event()
    task = asyncio.create_task(
        mesh.gradients(MODEL, np.zeros((200, 20000, 3)), on_progress=lambda progress: entered.set())
    )
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await server.ended("ComputeGradients")
