"""Jobs: durable calculations, followed, cancelled and read."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from bxmesh.agent.v1 import message_pb2
from bxmesh.client import AsyncMesh, InvalidInput, NotFound, PermissionDenied
from bxmesh.geometry.v1 import gradients_pb2 as pb
from bxmesh.geometry.v1 import job_pb2
from bxmesh.security.v1 import credential_pb2, identity_pb2
from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.tensors import to_message
from tests.engine.wheel import PDB_1YJP, wheel_file
from tests.processes import children


@pytest.fixture
async def model_id(mesh: AsyncMesh) -> str:
    return (await mesh.create_model(wheel_file(PDB_1YJP))).model_id


def request(model_id: str, **fields: Any) -> pb.ComputeGradientsRequest:
    return pb.ComputeGradientsRequest(
        model_id=model_id, options=pb.GradientOptions(target=pb.TARGET_GEOMETRY), **fields
    )


async def test_a_job_is_done_and_its_result_kept(mesh: AsyncMesh, model_id: str) -> None:
    job = await mesh.jobs.create(
        request(model_id), priority="high", timeout=60, labels={"run": "1"}
    )
    assert (job.kind, job.owner, dict(job.labels)) == ("gradients", "admin", {"run": "1"})
    seen = [change async for change in mesh.jobs.watch(job.job_id)]
    assert seen[-1].state == "succeeded"
    assert [each.revision for each in seen] == sorted({each.revision for each in seen})
    ended = await mesh.jobs.get(job.job_id)
    assert (ended.fraction_done, ended.attempts, ended.error) == (1.0, 1, None)
    assert ended.start_time is not None
    assert ended.end_time is not None
    assert ended.message.spec.gradients == job.message.spec.gradients
    assert ended.message.spec.timeout.seconds == 60
    result = await mesh.jobs.result(job.job_id)
    direct = await mesh.gradients(model_id, target="geometry")
    assert np.array_equal(result.tensors["geometry_sites"][0], direct.geometry_sites)
    assert ended.result_bundle_ids == (result.summary.bundle_id,)  # type: ignore[attr-defined]


async def test_a_result_that_has_expired_is_told(mesh: AsyncMesh, model_id: str) -> None:
    # At other coordinates than elsewhere: equal results would be one bundle.
    sites = (await mesh.create_model(wheel_file(PDB_1YJP), include_atoms=True)).atoms.sites + 0.25
    coordinates = pb.Coordinates(tensor=to_message(sites, "sites"))
    job = await mesh.jobs.create(request(model_id, coordinates=coordinates))
    result: Any = await mesh.jobs.result(job.job_id)
    await mesh.bundles.delete(result.summary.bundle_id)
    with pytest.raises(NotFound, match="create the job again") as refused:
        await mesh.jobs.result(job.job_id)
    assert refused.value.reason == "JOB_RESULT_EXPIRED"
    # What is known of the job besides outlives its tensors.
    assert (await mesh.jobs.get(job.job_id)).state == "succeeded"


async def test_large_coordinates_go_through_the_store(mesh: AsyncMesh, model_id: str) -> None:
    own = await mesh.gradients(model_id, target="geometry")
    sites = np.zeros((200, *own.geometry_sites.shape))
    sites += (await mesh.create_model(wheel_file(PDB_1YJP), include_atoms=True)).atoms.sites
    assert sites.nbytes > 64 * 1024
    asked = request(model_id, coordinates=pb.Coordinates(tensor=to_message(sites, "sites")))
    job = await mesh.jobs.create(asked)
    result = await mesh.jobs.result(job.job_id)
    assert result.tensors["geometry_sites"].shape == sites.shape
    assert np.allclose(result.tensors["geometry_sites"][-1], own.geometry_sites, atol=1e-9)


async def test_the_same_request_is_one_job(mesh: AsyncMesh, model_id: str) -> None:
    name = uuid4().hex
    first, second = [await mesh.jobs.create(request(model_id), request_id=name) for _ in range(2)]
    assert first.job_id == second.job_id
    listed = [job.job_id async for job in mesh.jobs.list()]
    assert listed.count(first.job_id) == 1


async def test_a_job_is_cancelled(mesh: AsyncMesh, model_id: str) -> None:
    sites = (
        np.zeros((20_000, 1, 3))
        + (await mesh.create_model(wheel_file(PDB_1YJP), include_atoms=True)).atoms.sites
    )
    bundle = await mesh.bundles.upload(_npy(sites), kind="coordinates")
    asked = request(model_id, coordinates=pb.Coordinates(bundle_id=bundle.bundle_id))
    job = await mesh.jobs.create(asked)
    async for change in mesh.jobs.watch(job.job_id):
        if change.state == "running":
            break
    cancelled = await mesh.jobs.cancel(job.job_id)
    assert cancelled.state == "cancelled"
    assert (await mesh.jobs.wait(job.job_id)).state == "cancelled"
    assert (await mesh.jobs.cancel(job.job_id)).state == "cancelled"
    # Its worker is free again.
    assert (await mesh.gradients(model_id, target="geometry")).ok


async def test_a_job_outlives_its_worker(lone: AsyncMesh, lone_mesh: EmbeddedMesh) -> None:
    model = await lone.create_model(wheel_file(PDB_1YJP), include_atoms=True)
    sites = np.zeros((3_000, 1, 3)) + model.atoms.sites
    bundle = await lone.bundles.upload(_npy(sites), kind="coordinates")
    job = await lone.jobs.create(
        request(model.model_id, coordinates=pb.Coordinates(bundle_id=bundle.bundle_id))
    )
    async for change in lone.jobs.watch(job.job_id):
        if change.state == "running":
            break
    for pid in children(lone_mesh.pid):
        command = _command(pid)
        if "geometry.agent" in command:
            os.kill(pid, signal.SIGKILL)
    ended = await asyncio.wait_for(lone.jobs.wait(job.job_id), 100)
    assert ended.state == "succeeded"
    assert ended.attempts == 2


async def test_jobs_belong_to_whoever_made_them(
    mesh: AsyncMesh, shared_mesh: EmbeddedMesh, model_id: str
) -> None:
    job = await mesh.jobs.create(request(model_id))
    name = f"other-{uuid4().hex[:8]}"
    await mesh.security.call(
        identity_pb2.CreateIdentityRequest(
            identity=identity_pb2.Identity(
                identity_id=name, kind=identity_pb2.IDENTITY_KIND_USER, roles=["worker"]
            )
        )
    )
    key = await mesh.security.call(credential_pb2.CreateApiKeyRequest(identity_id=name))
    async with AsyncMesh(shared_mesh.address, api_key=key.secret) as other:
        for call in (other.jobs.get, other.jobs.cancel, other.jobs.wait):
            with pytest.raises(NotFound) as raised:
                await call(job.job_id)
            assert raised.value.reason == "JOB_NOT_FOUND"
        assert job.job_id not in [each.job_id async for each in other.jobs.list()]
        # Nor does the model.
        with pytest.raises(NotFound):
            await other.jobs.create(request(model_id))
        # What one may not compute, one may not let a job compute.
        await mesh.security.call(
            identity_pb2.RevokePermissionsRequest(identity_id=name, roles=["worker"])
        )
        await mesh.security.call(
            identity_pb2.GrantPermissionsRequest(
                identity_id=name, permissions=["geometry_calculation"]
            )
        )
        with pytest.raises(PermissionDenied) as denied:
            await other.jobs.create(request(model_id))
        assert "gradient_calculation" in denied.value.message


async def test_tasks_that_are_no_jobs_are_none(mesh: AsyncMesh, model_id: str) -> None:
    plain = await mesh.assign_task(
        "geometry.gradients", request(model_id), capabilities=["geometry.gradients"]
    )
    odd = await mesh.assign_task(
        "geometry.gradients",
        {"modelId": model_id},
        capabilities=["geometry.gradients"],
        labels={"bxmesh.job": "nonsense"},
    )
    listed = [job.job_id async for job in mesh.jobs.list()]
    for task in (plain, odd):
        assert task.task_id not in listed
        with pytest.raises(NotFound):
            await mesh.jobs.get(task.task_id)
        await mesh.wait_for_task(task.task_id)


async def test_bad_jobs_are_refused(mesh: AsyncMesh, model_id: str) -> None:
    with pytest.raises(InvalidInput, match="no calculation"):
        await mesh.jobs.create(message_pb2.Envelope())
    with pytest.raises(NotFound):
        await mesh.jobs.create(request("sha256:" + "0" * 64))
    with pytest.raises(InvalidInput):
        await mesh.jobs.create(request("nonsense"))
    with pytest.raises(InvalidInput):
        await mesh.jobs.create(request(model_id), timeout=-1)
    shape = to_message(np.zeros((3, 4)), "sites")
    with pytest.raises(InvalidInput, match="shape"):
        await mesh.jobs.create(request(model_id, coordinates=pb.Coordinates(tensor=shape)))
    for job_id in ("", "x" * 200):
        with pytest.raises(InvalidInput):
            await mesh.jobs.get(job_id)
    # What only the worker finds is the job's error.
    atoms = to_message(np.zeros((3, 3)), "sites")
    job = await mesh.jobs.create(request(model_id, coordinates=pb.Coordinates(tensor=atoms)))
    ended = await mesh.jobs.wait(job.job_id)
    assert (ended.state, ended.attempts) == ("failed", 1)
    assert ended.error is not None
    with pytest.raises(InvalidInput):
        await mesh.jobs.result(job.job_id)
    assert ended.message.state == job_pb2.JOB_STATE_FAILED


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
