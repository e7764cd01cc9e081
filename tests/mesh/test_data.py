"""AnalyzeData through the mesh, and by its command."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from bxmesh.client import AsyncMesh, FailedPrecondition
from bxmesh.client.cli import main
from bxmesh.geometry.v1 import calculations_pb2
from bxmesh.server.embedded import EmbeddedMesh
from tests.engine.wheel import MTZ_7N2L, PDB_7N2L, wheel_file


async def test_reflections_are_reported_on(mesh: AsyncMesh) -> None:
    model = await mesh.create_model(wheel_file(PDB_7N2L), wheel_file(MTZ_7N2L))
    report = await mesh.analyze_data(model)
    assert report.labels == "FOBS,SIGFOBS"
    assert report.reflections == 3437
    assert report.completeness == pytest.approx(0.81, abs=0.01)
    assert report.wilson_b == pytest.approx(4.3, abs=0.5)
    assert sum(shell.reflections for shell in report.shells) == report.reflections
    assert report.i_over_sigma is not None
    job = await mesh.jobs.create(calculations_pb2.AnalyzeDataRequest(model_id=model.model_id))
    summary: Any = (await mesh.jobs.result(job.job_id)).summary
    assert summary.report.wilson_b == report.wilson_b
    bare = await mesh.create_model(wheel_file(PDB_7N2L))
    with pytest.raises(FailedPrecondition) as raised:
        await mesh.analyze_data(bare)
    assert raised.value.reason == "NO_REFLECTIONS"


def test_the_command(shared_mesh: EmbeddedMesh) -> None:
    where = ["--address", shared_mesh.address, "--state-dir", str(shared_mesh.state_dir)]
    arguments = ["data", str(wheel_file(PDB_7N2L)), "--reflections", str(wheel_file(MTZ_7N2L))]
    told = CliRunner().invoke(main, [*arguments, *where])
    assert told.exit_code == 0, told.output
    assert "Wilson B" in told.stdout
    plain = CliRunner().invoke(main, [*arguments, "--json", *where])
    assert json.loads(plain.stdout)["twin_laws"] == []
    assert CliRunner().invoke(main, arguments[:2]).exit_code == 2
