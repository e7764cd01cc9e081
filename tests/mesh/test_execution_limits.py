"""Work that takes more than the policy allows is stopped, tried again, and told for what it is."""

from __future__ import annotations

import io
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from bxmesh.client import AsyncMesh, InvalidInput, ResourceExhausted
from bxmesh.client.models import ScatteringTable
from bxmesh.geometry.v1 import gradients_pb2
from bxmesh.security.v1 import policy_pb2 as pb
from bxmesh.security.v1 import violation_pb2
from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.server.execution_limits import limit_of
from bxmesh.server.occupation import Occupation, Work
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, wheel_file
from tests.mesh.conftest import start_mesh, wait_until_it_serves
from tests.processes import until


async def apply(mesh: AsyncMesh, *limits: pb.ExecutionLimit) -> None:
    policy = pb.Policy(execution_limits=limits)
    await mesh.security.call(pb.ApplyPolicyRequest(policy=policy))


@pytest.fixture(scope="module")
def server() -> Any:
    """A mesh of its own, for its policy is changed."""
    with start_mesh(1, BXMESH_MAX_ATTEMPTS="2") as mesh:
        wait_until_it_serves(mesh)
        yield mesh


@pytest.fixture
async def limited(server: EmbeddedMesh) -> AsyncIterator[AsyncMesh]:
    async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
        yield mesh
        await apply(mesh)


def seconds(value: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(value * 1e9))
    return duration


async def long_work(mesh: AsyncMesh) -> tuple[str, Any]:
    """A model, and coordinates of it that take some seconds."""
    model = await mesh.create_model(wheel_file(PDB_1YJP), include_atoms=True)
    assert model.atoms is not None
    generator = np.random.default_rng(1)
    sites = model.atoms.sites + generator.normal(scale=2.0, size=(250, *model.atoms.sites.shape))
    return model.model_id, np.repeat(sites, 8, axis=0)


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"max_duration": 0.4}, "0.4 s that"),
        ({"max_cpu": 0.3, "capability": "geometry.gradients"}, "0.3 s of CPU time"),
    ],
)
async def test_a_job_over_its_limit_is_stopped_and_told(
    limited: AsyncMesh, limit: dict[str, Any], words: str
) -> None:
    model_id, sites = await long_work(limited)
    bundle = await limited.bundles.upload(_npy(np.repeat(sites, 8, axis=0)), kind="coordinates")
    bounds = {name: seconds(v) if name != "capability" else v for name, v in limit.items()}
    await apply(limited, pb.ExecutionLimit(**bounds))
    job = await limited.jobs.create(
        gradients_pb2.ComputeGradientsRequest(
            model_id=model_id,
            coordinates=gradients_pb2.Coordinates(bundle_id=bundle.bundle_id),
            options=gradients_pb2.GradientOptions(target=gradients_pb2.TARGET_GEOMETRY),
        )
    )
    ended = await limited.jobs.wait(job.job_id)
    assert ended.state == "failed"
    assert isinstance(ended.error, ResourceExhausted)
    assert ended.error.reason == "EXECUTION_LIMIT"
    assert words in ended.error.message
    assert ended.attempts == 3
    await _recorded(limited)
    # With the limit gone the worker that took its place does the same work.
    await apply(limited)
    small = await limited.gradients(model_id, sites[:2], target="geometry")
    assert small.ok


@pytest.mark.parametrize(
    ("bound", "table"),
    [({"max_duration": 0.05}, "wk1995"), ({"max_memory_bytes": 128 << 20}, "it1992")],
)
async def test_a_call_over_its_limit_is_answered(
    limited: AsyncMesh, bound: dict[str, Any], table: ScatteringTable
) -> None:
    # The data are scaled when that is first needed, anew in each worker and for each limit.
    model = await limited.create_model(
        wheel_file(PDB_7N2L), wheel_file(MTZ_7N2L), scattering_table=table
    )
    limit = {name: seconds(v) if name == "max_duration" else v for name, v in bound.items()}
    await apply(limited, pb.ExecutionLimit(capability="geometry.gradients", **limit))
    with pytest.raises(ResourceExhausted) as raised:
        await limited.gradients(model, target="xray", timeout=100)
    assert raised.value.reason == "EXECUTION_LIMIT"
    await apply(limited)
    assert (await limited.gradients(model, target="xray")).ok


async def test_sessions_keep_to_limits(limited: AsyncMesh) -> None:
    model = await limited.create_model(
        wheel_file(PDB_7N2L), wheel_file(MTZ_7N2L), scattering_table="electron", include_atoms=True
    )
    assert model.atoms is not None
    await apply(limited, pb.ExecutionLimit(capability="geometry.session", max_cpu=seconds(0.05)))
    with pytest.raises(ResourceExhausted) as raised:
        async with limited.session(model, target="xray", timeout=100):
            pass
    assert raised.value.reason == "EXECUTION_LIMIT"
    await apply(limited)
    far = np.repeat(model.atoms.sites[np.newaxis], 100, axis=0)
    far += np.random.default_rng(1).normal(scale=2.0, size=far.shape)
    async with limited.session(model, target="xray", timeout=100) as session:
        assert (await session.step(model.atoms.sites)).ok
        # Each of a hundred conformers has its turn, so the step is bounded conformer by conformer.
        await apply(limited, pb.ExecutionLimit(max_duration=seconds(1e-3)))
        with pytest.raises(ResourceExhausted) as raised:
            while True:
                await session.step(far)
    assert raised.value.reason == "EXECUTION_LIMIT"


async def test_policies_that_make_no_sense_are_refused(limited: AsyncMesh) -> None:
    for limits in (
        [pb.ExecutionLimit()],
        [pb.ExecutionLimit(max_memory_bytes=1000)],
        [pb.ExecutionLimit(max_cpu=seconds(1)), pb.ExecutionLimit(max_cpu=seconds(2))],
    ):
        with pytest.raises(InvalidInput, match="execution_limits"):
            await apply(limited, *limits)


def test_the_most_special_limit_counts() -> None:
    limits = [
        pb.ExecutionLimit(max_memory_bytes=1),
        pb.ExecutionLimit(capability="geometry.gradients", max_memory_bytes=3),
        pb.ExecutionLimit(capability="geometry", max_memory_bytes=2),
    ]
    for capability, most in (
        ("geometry.gradients", 3),
        ("geometry.gradients_of", 2),
        ("geometry.model", 2),
        ("other", 1),
    ):
        limit = limit_of(limits, capability)
        assert limit is not None
        assert limit.max_memory_bytes == most
    assert limit_of(limits[1:], "other") is None


def test_what_a_process_is_at(tmp_path: Path) -> None:
    path = tmp_path / "w.work"
    assert Occupation.read(path) is None
    occupation = Occupation(path)
    assert Occupation.read(path) is None
    with occupation.at("geometry.gradients", "item", "alice"):
        outer = Occupation.read(path)
        assert outer is not None
        assert outer[:3] == ("geometry.gradients", "item", "alice")
        assert 0 <= time.monotonic() - outer.began < 10
        with occupation.at("geometry.model", "x" * 100, ""):
            assert Occupation.read(path) != outer
        assert Occupation.read(path) == outer
        with occupation.away():
            assert Occupation.read(path) is None
            end = time.process_time() + 0.02
            while time.process_time() < end:
                pass
        resumed = Occupation.read(path)
        assert resumed is not None
        assert resumed.began == outer.began
        assert resumed.cpu_before >= outer.cpu_before + 0.02
    assert Occupation.read(path) is None
    for junk in (b"", b"[1]", b"[1,2,3,4]", b'{"a": 1}', b"\xff"):
        path.write_bytes(junk)
        assert Occupation.read(path) is None
    assert path.stat().st_mode & 0o777 == 0o600
    assert isinstance(outer, Work)


async def _recorded(mesh: AsyncMesh) -> None:
    async def seen() -> bool:
        answer = await mesh.security.call(
            violation_pb2.ListViolationsRequest(
                filter=violation_pb2.ViolationFilter(
                    kinds=[violation_pb2.VIOLATION_KIND_EXECUTION_LIMIT]
                )
            )
        )
        return any(
            each.identity_id == "admin" and each.action == "geometry.gradients"
            for each in answer.violations
        )

    await until(seen)


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
