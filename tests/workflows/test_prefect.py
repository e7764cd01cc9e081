"""The tasks of Prefect, run by Prefect against its own API, on a real mesh."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from prefect import flow
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import INPUTS
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import Artifact, TaskRun
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from bxmesh.client import Gradients, InvalidInput, Mesh, Model, NotFound, Unavailable
from bxmesh.client.prefect import (
    JobFailed,
    MeshConnection,
    compute_gradients,
    create_model,
    minimize,
    retryable,
    submit_job,
    validate,
    wait_for_job,
)
from bxmesh.client.prefect.artifacts import Artifacts
from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.tensors import to_message
from tests.engine.wheel import MTZ_7N2L, PDB_7N2L, wheel_file

EXAMPLES = Path(__file__).parents[2] / "examples"
UNKNOWN = "sha256:" + "0" * 64


@pytest.fixture(scope="module", autouse=True)
def prefect() -> Iterator[None]:
    """Prefect's API on this machine, with a database of its own."""
    # Its server takes its time on a busy machine.
    with prefect_test_harness(server_startup_timeout=100):
        yield


@pytest.fixture
def before() -> set[Any]:
    """The artifacts that other tests have made."""
    return {each.id for each in artifacts()}


def artifacts(besides: Set[Any] = frozenset()) -> list[Artifact]:
    with get_client(sync_client=True) as client:
        return [each for each in client.read_artifacts() if each.id not in besides]


def runs() -> list[TaskRun]:
    """All runs of tasks, the oldest first."""
    with get_client(sync_client=True) as client:
        return sorted(client.read_task_runs(), key=lambda run: (run.expected_start_time, run.name))


def sites_of(model: Model) -> Any:
    assert model.atoms is not None
    return model.atoms.sites


def test_refinement(mesh: Mesh, before: set[Any]) -> None:
    @flow
    def refine() -> tuple[Any, ...]:
        model = create_model(wheel_file(PDB_7N2L), wheel_file(MTZ_7N2L), include_atoms=True)
        gradients = compute_gradients(model, target="combined")
        refined = minimize(model.model_id, target="geometry", max_evaluations=30)
        return model, gradients, refined, validate(model.model_id, refined.sites)

    model, gradients, refined, found = refine()
    expected = mesh.gradients(model, target="combined")
    np.testing.assert_allclose(gradients.combined_sites, expected.combined_sites, rtol=1e-9)
    assert refined.best.value.geometry.energy < refined.start.value.geometry.energy
    assert found.figures == mesh.validate(model, refined.sites).figures

    made = {each.key or each.type: each for each in artifacts(before)}
    progress = [each for each in artifacts(before) if each.type == "progress"]
    assert [each.data for each in progress] == [100.0, 100.0, 100.0]
    assert all(each.description.endswith(": done") for each in progress if each.description)
    assert "R-free" in str(made["bxmesh-minimization"].data)
    page = str(made["bxmesh-validation"].data)
    assert f"| R-work | {found.figures['R-work']:.4g} |" in page
    assert "## The worst outliers" in page


def test_a_job(crystal: Model, before: set[Any]) -> None:
    @flow
    def work() -> Any:
        return wait_for_job(submit_job(crystal, "minimization", {"maxEvaluations": 20}))

    result = work()
    assert result.tensors["sites"].shape == (crystal.summary.atoms, 3)
    (progress,) = artifacts(before)
    assert (progress.type, progress.data) == ("progress", 100.0)


def test_what_time_does_not_cure_fails_at_once(
    crystal: Model, before: set[Any], tmp_path: Path
) -> None:
    nonsense = tmp_path / "model.pdb"
    nonsense.write_text("nonsense")
    tensor = to_message(np.zeros((3, 3)), "coordinates")
    too_few = {"coordinates": {"tensor": MessageToDict(tensor)}}

    @flow
    def work() -> list[Any]:
        return [
            create_model(nonsense, return_state=True),
            create_model(tmp_path / "missing.pdb", return_state=True),
            compute_gradients(UNKNOWN, return_state=True),
            wait_for_job("unknown", return_state=True),
            submit_job(crystal, "nothing", return_state=True),
            wait_for_job(submit_job(crystal, "gradients", too_few), return_state=True),
        ]

    already = len(runs())
    errors = [state.result(raise_on_failure=False) for state in work()]
    assert [type(error) for error in errors] == [
        InvalidInput,
        InvalidInput,
        NotFound,
        NotFound,
        InvalidInput,
        JobFailed,
    ]
    assert all(run.run_count == 1 for run in runs()[already:])
    assert pickle.loads(pickle.dumps(errors[-1])).reason == errors[-1].reason
    said = [each.description for each in artifacts(before)]
    assert any(one and one.endswith("failed: JOB_NOT_FOUND") for one in said)


def test_an_absence_is_waited_for(server: EmbeddedMesh, crystal: Model, short_dir: Path) -> None:
    """The mesh comes to an address after the first attempt."""
    address = short_dir / "late.sock"

    def then_it_comes(task: Any, task_run: Any, state: Any) -> bool:
        assert isinstance(state.data, Unavailable)
        if not address.is_symlink():
            address.symlink_to(server.address.removeprefix("unix:"))
        return retryable(task, task_run, state)

    late = compute_gradients.with_options(
        retries=3, retry_delay_seconds=0.1, retry_condition_fn=then_it_comes
    )

    @flow
    def work() -> Gradients:
        return late(crystal, target="geometry", mesh=MeshConnection(address=f"unix:{address}"))

    already = len(runs())
    assert work().ok
    (run,) = runs()[already:]
    assert run.run_count == 2


def test_an_absence_that_lasts_is_an_error(short_dir: Path) -> None:
    nowhere = MeshConnection(address=f"unix:{short_dir}/nobody.sock")
    hurried = create_model.with_options(retries=2, retry_delay_seconds=0.1)

    @flow
    def work() -> Model:
        return hurried(wheel_file(PDB_7N2L), mesh=nowhere)

    already = len(runs())
    with pytest.raises(Unavailable, match="bxmesh serve"):
        work()
    (run,) = runs()[already:]
    assert run.run_count == 3


# Prefect leaves a socket of its own open after every asynchronous flow.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"
)
def test_a_saved_connection_from_an_asynchronous_flow(
    server: EmbeddedMesh, crystal: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = (server.state_dir / "admin.key").read_text().strip()
    monkeypatch.delenv("BXMESH_STATE_DIR")
    monkeypatch.setenv("BXMESH_API_KEY", "another")
    MeshConnection(address=server.address, api_key=key).save("crystals")
    conformers = np.stack([sites_of(crystal), sites_of(crystal) + 0.01])

    @flow
    async def work() -> list[Gradients]:
        mesh = await MeshConnection.aload("crystals")
        assert key not in repr(mesh)
        works = [
            compute_gradients.submit(crystal.model_id, each, target="geometry", mesh=mesh)
            for each in conformers
        ]
        return [each.result() for each in works]

    first, second = asyncio.run(work())
    gc.collect()
    assert first.energy == pytest.approx(second.energy, rel=1e-3)


def test_values_can_be_kept(mesh: Mesh, crystal: Model) -> None:
    kept = compute_gradients.with_options(persist_result=True, cache_policy=INPUTS)

    @flow
    def work() -> tuple[Gradients, Gradients]:
        return kept(crystal.model_id, target="geometry"), kept(crystal.model_id, target="geometry")

    already = len(runs())
    computed, read = work()
    assert [run.state_name for run in runs()[already:]] == ["Completed", "Cached"]
    np.testing.assert_array_equal(read.geometry_sites, computed.geometry_sites)
    assert read.energy == computed.energy


def test_a_silent_prefect_costs_no_result(caplog: pytest.LogCaptureFixture) -> None:
    silent = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(silent), Artifacts("nothing") as artifacts:
        artifacts.tell(0.5, "half of it")
        assert artifacts.write(acreate_markdown_artifact("a report")) is None
    assert caplog.text.count("an artifact could not be written") == 2


def test_example(server: EmbeddedMesh) -> None:
    done = subprocess.run(
        [
            sys.executable,
            EXAMPLES / "prefect_refine.py",
            wheel_file(PDB_7N2L),
            wheel_file(MTZ_7N2L),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = dict(re.findall(r"(\S+) ([\d.]+ -> [\d.]+)", done.stdout + done.stderr))
    before, after = map(float, figures["R-free"].split(" -> "))
    assert after < before + 0.05


def test_the_client_does_without_prefect() -> None:
    code = """
import sys
import bxmesh.client
assert "prefect" not in sys.modules
sys.modules["prefect"] = None
try:
    import bxmesh.client.prefect
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'bxmesh[prefect]'" in done.stdout
