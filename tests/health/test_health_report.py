"""Health in detail: what is found, who is told how much, and what a component that hangs does."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bxmesh.client.errors import from_rpc_error
from bxmesh.health.v1 import health_pb2 as pb
from bxmesh.health.v1.health_service_pb2_grpc import HealthServiceStub
from bxmesh.server.database import open_database
from bxmesh.server.doctor.findings import ok, warn
from bxmesh.server.doctor.memory import memory
from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.server.errors import unavailable
from bxmesh.server.geometry.queue import queue_options
from bxmesh.server.health_report import Examined, HealthReport
from bxmesh.server.health_report.checks import checks_of
from bxmesh.server.settings import Settings
from bxmesh.server.streams import WorkQueue, connect
from tests.conftest import start_valkey
from tests.http.keys import admin_key, make_key
from tests.mesh.conftest import start_mesh, wait_until_it_serves
from tests.processes import children, valkey_pid
from tests.security.mesh import bearer

HEALTHY, DEGRADED, UNHEALTHY, UNKNOWN = (
    pb.HEALTH_STATE_HEALTHY,
    pb.HEALTH_STATE_DEGRADED,
    pb.HEALTH_STATE_UNHEALTHY,
    pb.HEALTH_STATE_UNKNOWN,
)


@pytest.fixture(scope="module")
def one_worker() -> Iterator[EmbeddedMesh]:
    with start_mesh(1) as mesh:
        wait_until_it_serves(mesh)
        asyncio.run(wait_until_all_is_open(mesh))
        yield mesh


async def wait_until_all_is_open(mesh: EmbeddedMesh) -> None:
    """Waits until it is known how all components are: vectors are opened when they are first looked at."""
    async with asyncio.timeout(60):
        while (await health(mesh, admin_key(mesh))).summary.unknown:
            pass


async def health(mesh: EmbeddedMesh, key: str) -> pb.GetHealthResponse:
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        answer: pb.GetHealthResponse = await HealthServiceStub(channel).GetHealth(  # type: ignore[misc]
            pb.GetHealthRequest(), metadata=bearer(key)
        )
        return answer


def states_of(answer: pb.GetHealthResponse) -> dict[str, pb.HealthState.ValueType]:
    return {component.name: component.state for component in answer.components}


async def test_an_operator_is_told_all(one_worker: EmbeddedMesh) -> None:
    answer = await health(one_worker, admin_key(one_worker))
    by_name = {component.name: component for component in answer.components}
    assert list(by_name) == sorted(by_name)
    assert by_name.keys() == {
        "database",
        "disk",
        "embedding_model",
        "geometry_workers",
        "hosts",
        "memory",
        "model_providers",
        "redis",
        "vector_store",
    }
    for component in answer.components:
        assert component.state == HEALTHY, component
        assert component.response_time.ToMicroseconds() > 0
        assert component.message
        assert component.details
    assert by_name["geometry_workers"].details["workers"] == "1"
    assert by_name["database"].details["dialect"] == "sqlite"
    assert int(by_name["redis"].details["used_memory"]) > 0
    assert int(by_name["disk"].details["free_bytes"]) > 0
    assert int(by_name["memory"].details["process_bytes"]) > 0
    assert answer.state == HEALTHY
    assert answer.summary.total == answer.summary.healthy == len(answer.components)
    assert answer.version


async def test_others_are_told_states_alone(one_worker: EmbeddedMesh) -> None:
    answer = await health(one_worker, await make_key(one_worker, "looker", roles=["reader"]))
    assert answer.summary.healthy == len(answer.components) > 0
    for component in answer.components:
        assert component.response_time.ToMicroseconds() > 0
        assert not (component.message or component.remedy or component.details)
    assert str(one_worker.state_dir) not in str(answer)


async def test_strangers_are_told_nothing(one_worker: EmbeddedMesh) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await health(one_worker, "bx_nobody_" + "a" * 43)
    assert from_rpc_error(raised.value).code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_redis_that_hangs_is_told_in_time(one_worker: EmbeddedMesh) -> None:
    pid = valkey_pid(one_worker.pid)
    os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(30):
            answer = await health(one_worker, admin_key(one_worker))
            # An answer may be a second old.
            while states_of(answer)["redis"] != UNHEALTHY:
                answer = await health(one_worker, admin_key(one_worker))
    finally:
        os.kill(pid, signal.SIGCONT)
    states = states_of(answer)
    assert states["disk"] == states["memory"] == states["database"] == HEALTHY
    assert answer.state == UNHEALTHY
    assert children(one_worker.pid)


async def test_without_redis_and_workers(short_dir: Path) -> None:
    valkey = start_valkey(short_dir)
    redis = connect(f"unix://{short_dir}/valkey.sock")
    settings = Settings(state_dir=short_dir, workers=2)
    async with open_database(settings.database) as database:
        queue = WorkQueue(redis, queue_options(settings))
        report = HealthReport(checks_of(settings, redis, database, queue))
        before = await report.look()
        states = states_of(before)
        assert states["redis"] == HEALTHY, before
        assert states["geometry_workers"] == UNHEALTHY
        assert before.state == UNHEALTHY
        valkey.stop()
        report = HealthReport(checks_of(settings, redis, database, queue))
        after = await report.look()
        found = {component.name: component for component in after.components}
        assert found["redis"].state == UNHEALTHY
        # Who needs Redis to be found cannot be said to be away.
        for name in ("geometry_workers", "hosts", "model_providers"):
            assert found[name].state == UNKNOWN
        assert after.summary.unknown == 3
        assert str(short_dir) not in str(after.components[-1])
        await report.close()
    await redis.aclose()


async def test_what_hangs_is_begun_once_and_keeps_nobody() -> None:
    go = threading.Event()
    begun = []

    def hang() -> Examined:
        begun.append(1)
        go.wait(60)
        return Examined([ok("slow", "it came")])

    async def slow() -> Examined:
        return await asyncio.to_thread(hang)

    async def broken() -> Examined:
        raise RuntimeError("a secret")

    async def away() -> Examined:
        raise unavailable("It is away.")

    async def tired() -> Examined:
        return Examined([ok("tired", "fine"), warn("tired", "slow", "Sleep.")], {"naps": "0"})

    checks = {"slow": slow, "broken": broken, "away": away, "tired": tired}
    report = HealthReport(checks, seconds=0.05)
    try:
        answers = []
        for _ in range(3):
            answers.append(await report.look())
            report._looked_at = 0.0
        for answer in answers:
            found = {component.name: component for component in answer.components}
            assert found["slow"].state == UNHEALTHY
            assert "0.05 s" in found["slow"].message
            assert found["broken"].state == found["away"].state == UNKNOWN
            assert "secret" not in str(answer)
            assert (found["tired"].state, found["tired"].message) == (DEGRADED, "slow")
            assert found["tired"].remedy == "Sleep."
            assert (answer.summary.degraded, answer.summary.unknown) == (1, 2)
        assert begun == [1]
    finally:
        go.set()
        await report.close()


async def test_many_who_ask_at_once_share_an_answer() -> None:
    asked = []

    async def check() -> Examined:
        asked.append(1)
        await asyncio.sleep(0)
        return Examined([ok("one", "fine")])

    report = HealthReport({"one": check})
    answers = await asyncio.gather(*(report.look() for _ in range(50)))
    assert len(asked) == 1
    assert all(answer is answers[0] for answer in answers)


def test_memory_is_that_of_the_container(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/box"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8000 kB\nMemAvailable: 4000 kB\n")
    (tmp_path / "proc/self/statm").write_text("100 10 5\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/box\n")
    whole = memory(tmp_path)
    assert (whole.total, whole.available) == (8000 * 1024, 4000 * 1024)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("3000000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 1000000\n")
    assert memory(tmp_path) == whole
    (group / "memory.max").write_text("5000000\n")
    inside = memory(tmp_path)
    assert (inside.total, inside.available) == (5000000, 3000000)
