"""Tasks that geometry workers do, like any other agent of the mesh."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from bxmesh.client import AsyncMesh, Model, Supervisor, TaskFailed
from bxmesh.geometry.v1 import geometry_work_pb2, gradients_pb2
from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.tensors import to_message
from tests.engine.wheel import PDB_1YJP, wheel_file
from tests.mesh.test_failures import client
from tests.processes import worker_pids

GRADIENTS = "geometry.gradients"
LARGE = "mmtbx/regression/pdbs/AF_json_v3.pdb"
Result = geometry_work_pb2.GradientsWorkResult


def parameters(model: Model, sites: Any = None) -> gradients_pb2.ComputeGradientsRequest:
    request = gradients_pb2.ComputeGradientsRequest(model_id=model.model_id)
    if sites is not None:
        request.coordinates.tensor.CopyFrom(to_message(sites, "sites", "angstrom"))
    return request


async def test_many_tasks_have_the_results_of_plain_calls(mesh: AsyncMesh) -> None:
    model = await mesh.create_model(wheel_file(PDB_1YJP), include_atoms=True)
    assert model.atoms is not None
    shape = model.atoms.sites.shape
    conformers = model.atoms.sites + np.random.default_rng(3).normal(0, 0.05, (20, *shape))
    told = []
    results = await Supervisor(mesh).map(
        GRADIENTS,
        [parameters(model, each) for each in conformers],
        result=Result,
        on_progress=told.append,
    )
    expected = await mesh.gradients(model, conformers)
    energies = [sample.geometry.energy for sample in expected.samples if sample.geometry]
    assert [each.samples[0].geometry.energy for each in results] == pytest.approx(energies)
    content = await mesh.bundles.download(results[7].bundle_id)
    np.testing.assert_allclose(
        np.frombuffer(content, "<f8").reshape(shape), expected.geometry_sites[7], rtol=1e-12
    )
    assert told


async def test_parameters_may_be_json(mesh: AsyncMesh) -> None:
    model = await mesh.create_model(wheel_file(PDB_1YJP))
    work = await Supervisor(mesh).assign(GRADIENTS, {"modelId": model.model_id}, result=Result)
    assert (await work).samples[0].geometry.energy > 0


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"modelId": "sha256:" + "0" * 64}, "MODEL_NOT_FOUND"),
        ({"modelId": "nonsense"}, "INVALID_ARGUMENT"),
        ({"model": 1}, "SCHEMA_MISMATCH"),
        (Result(), "SCHEMA_MISMATCH"),
        (None, "SCHEMA_MISMATCH"),
    ],
)
async def test_wrong_parameters(mesh: AsyncMesh, wrong: Any, reason: str) -> None:
    work = await Supervisor(mesh).assign(GRADIENTS, wrong)
    with pytest.raises(TaskFailed) as raised:
        await work
    assert raised.value.reason == reason


async def test_an_unknown_task(mesh: AsyncMesh) -> None:
    work = await Supervisor(mesh).assign("geometry.miracle", capabilities=[GRADIENTS])
    with pytest.raises(TaskFailed) as raised:
        await work
    assert raised.value.reason == "UNKNOWN_TASK"


async def test_a_cancelled_task_stops_and_the_worker_goes_on(lone: AsyncMesh) -> None:
    model = await lone.create_model(wheel_file(LARGE), include_atoms=True)
    assert model.atoms is not None
    uploaded = await _uploaded(lone, model, 400)
    task = await lone.assign_task(GRADIENTS, uploaded, capabilities=[GRADIENTS])
    async with aclosing(lone.watch_task(task.task_id)) as changes:
        async for change in changes:
            if change.state == "running":
                break
    assert (await lone.cancel_task(task.task_id)).state == "cancelled"
    small = await Supervisor(lone).assign(GRADIENTS, {"modelId": model.model_id}, result=Result)
    assert (await small).samples[0].geometry.energy > 0


async def test_a_worker_killed_at_a_task_is_replaced(frail: EmbeddedMesh) -> None:
    async with client(frail) as mesh:
        model = await mesh.create_model(wheel_file(LARGE), include_atoms=True)
        uploaded = await _uploaded(mesh, model, 60)
        (victim,) = worker_pids(frail.pid)
        task = await mesh.assign_task(GRADIENTS, uploaded, capabilities=[GRADIENTS])
        killed = False
        async with asyncio.timeout(100), aclosing(mesh.watch_task(task.task_id)) as changes:
            async for change in changes:
                if change.state == "running" and not killed:
                    os.kill(victim, signal.SIGKILL)
                    killed = True
        done = await mesh.task(task.task_id)
        assert (done.state, done.attempts) == ("completed", 2)


async def _uploaded(mesh: AsyncMesh, model: Model, samples: int) -> Any:
    """Parameters with a batch that is slow, as every sample has a new list of neighbours."""
    assert model.atoms is not None
    shape = (samples, *model.atoms.sites.shape)
    noise = np.random.default_rng(5).normal(0, 0.5, shape)
    file = io.BytesIO()
    np.save(file, model.atoms.sites + noise)
    bundle = await mesh.bundles.upload(file.getvalue(), kind="coordinates")
    return {"modelId": model.model_id, "coordinates": {"bundleId": bundle.bundle_id}}
