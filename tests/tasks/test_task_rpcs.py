"""Tasks over gRPC: assigned, delivered on real connections, reported, watched, cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from redis.asyncio import Redis

from bxmesh.agent.v1 import delivery_pb2, message_pb2
from bxmesh.agent.v1 import task_pb2 as pb
from bxmesh.registry.v1 import agent_pb2
from bxmesh.registry.v1.retry_policy_pb2 import RetryPolicy
from bxmesh.security.v1 import visibility_pb2
from bxmesh.server.errors import MeshError
from tests.agent.mesh import Link, Mesh, agents
from tests.registry.mesh import ADMIN, ALICE, BOB, refused
from tests.tasks.harness import (
    ASSIGNED,
    CANCELLED,
    COMPLETED,
    FAILED,
    PENDING,
    RUNNING,
    TIMED_OUT,
    failure,
    json_payload,
    spec,
)

EVENTS = "bxmesh:{work:agents}:task-events:"


@pytest.fixture
async def mesh(redis: Redis, shared_valkey: str) -> AsyncIterator[Mesh]:
    async with agents(shared_valkey) as mesh:
        yield mesh


async def assign(mesh: Mesh, task: pb.TaskSpec | None = None, **fields: Any) -> pb.Task:
    metadata = fields.pop("metadata", ALICE)
    request = pb.AssignTaskRequest(spec=task or spec(), **fields)
    response = await mesh.stub.AssignTask(request, metadata=metadata)
    return response.task


async def get(mesh: Mesh, task_id: str, metadata: Any = ALICE) -> pb.Task:
    response = await mesh.stub.GetTask(pb.GetTaskRequest(task_id=task_id), metadata=metadata)
    return response.task


async def report(mesh: Mesh, delivery: Any, metadata: Any = ALICE, **what: Any) -> Any:
    return await mesh.stub.ReportTask(
        pb.ReportTaskRequest(
            task_id=delivery.task.task_id, delivery_id=delivery.delivery_id, **what
        ),
        metadata=metadata,
    )


async def cancel(mesh: Mesh, task_id: str, metadata: Any = ALICE, **fields: Any) -> pb.Task:
    response = await mesh.stub.CancelTask(
        pb.CancelTaskRequest(task_id=task_id, **fields), metadata=metadata
    )
    return response.task


class Watching:
    def __init__(self, call: Any) -> None:
        self._call = call

    async def next(self) -> pb.Task:
        async with asyncio.timeout(20):
            response = await self._call.read()
        assert response is not grpc.aio.EOF
        return response.task

    async def rest(self) -> list[pb.Task]:
        """What is told until the end; raises what ended it."""
        tasks = []
        async with asyncio.timeout(20):
            while (response := await self._call.read()) is not grpc.aio.EOF:
                tasks.append(response.task)
        return tasks


@asynccontextmanager
async def watching(
    mesh: Mesh, task_id: str, after: int = 0, metadata: Any = ALICE
) -> AsyncIterator[Watching]:
    call = mesh.stub.WatchTask(
        pb.WatchTaskRequest(task_id=task_id, after_revision=after), metadata=metadata
    )
    try:
        yield Watching(call)
    finally:
        call.cancel()


@asynccontextmanager
async def worker(mesh: Mesh, agent_id: str = "a", slots: int = 1, **hello: Any) -> Any:
    """An agent that offers `work`, on a connection."""
    lease_id = await mesh.register(agent_id, "work", max_concurrent_tasks=slots)
    async with mesh.connected(agent_id, lease_id=lease_id, initial_credit=slots, **hello) as link:
        yield link


async def finish(mesh: Mesh, link: Link, delivery: Any, text: str = "{}") -> None:
    answer = await report(mesh, delivery, result=json_payload(text))
    assert answer.state == COMPLETED
    assert (await link.answer(delivery)).status.code == 0
    await link.credit()


async def test_a_task_from_its_assignment_to_its_end(mesh: Mesh) -> None:
    async with worker(mesh) as link:
        task = await assign(mesh, spec(parameters=json_payload('{"x": 1}'), labels={"k": "v"}))
        assert (task.state, task.agent_id, task.owner) == (ASSIGNED, "a", "alice")
        async with watching(mesh, task.task_id) as watch:
            assert await watch.next() == task
            delivery = await link.delivery()
            assert (delivery.task, delivery.attempt) == (task, 1)
            answer = await report(mesh, delivery, progress=pb.TaskProgress())
            assert (answer.state, answer.cancel_requested, answer.revision) == (RUNNING, False, 2)
            begun = await watch.next()
            assert (begun.state, begun.revision) == (RUNNING, 2)
            await report(mesh, delivery, progress=pb.TaskProgress(percent=40, message="on"))
            assert (await watch.next()).progress.percent == 40
            await finish(mesh, link, delivery, '{"y": 2}')
            (done,) = await watch.rest()
            assert (done.state, done.result.json.json) == (COMPLETED, '{"y": 2}')
            assert done == await get(mesh, task.task_id)
        # The next one comes to a free slot.
        assert (await assign(mesh)).agent_id == "a"
        await link.delivery()


async def test_a_watch_resumes_after_any_revision(mesh: Mesh, shared_valkey: str) -> None:
    async with worker(mesh) as link:
        task = await assign(mesh)
        delivery = await link.delivery()
        for percent in range(1, 9):
            await report(mesh, delivery, progress=pb.TaskProgress(percent=percent))
        async with watching(mesh, task.task_id, after=3) as watch:
            seen = [(await watch.next()).revision for _ in range(6)]
            assert seen == [4, 5, 6, 7, 8, 9]
        # At another server, after the end.
        await finish(mesh, link, delivery)
        async with agents(shared_valkey) as other:
            async with watching(other, task.task_id, after=seen[-1]) as watch:
                (done,) = await watch.rest()
                assert (done.state, done.revision) == (COMPLETED, 10)
            async with watching(other, task.task_id, after=10) as watch:
                assert await watch.rest() == []
            async with watching(other, task.task_id) as watch:
                assert await watch.rest() == [done]
            with refused("OUT_OF_RANGE", "REVISION_COMPACTED"):
                async with watching(other, task.task_id, after=11) as watch:
                    await watch.rest()
        with refused("NOT_FOUND", "TASK_NOT_FOUND"):
            async with watching(mesh, "none") as watch:
                await watch.rest()


async def test_changes_are_kept_for_a_while_only(mesh: Mesh) -> None:
    async with worker(mesh) as link:
        task = await assign(mesh)
        delivery = await link.delivery()
        for number in range(100):
            await report(mesh, delivery, progress=pb.TaskProgress(percent=number))
        assert await mesh.redis.xlen(EVENTS + task.task_id) == 64
        with refused("OUT_OF_RANGE", "REVISION_COMPACTED"):
            async with watching(mesh, task.task_id, after=5) as watch:
                await watch.rest()
        async with watching(mesh, task.task_id, after=99) as watch:
            assert (await watch.next()).revision == 100


async def test_a_watch_hears_of_other_servers_and_ends_with_its_own(
    mesh: Mesh, shared_valkey: str
) -> None:
    async with worker(mesh) as link, agents(shared_valkey) as other:
        task = await assign(mesh)
        delivery = await link.delivery()
        async with watching(other, task.task_id) as watch:
            assert (await watch.next()).revision == 1
            await report(mesh, delivery, progress=pb.TaskProgress(percent=1))
            assert (await watch.next()).revision == 2
            with refused("UNAVAILABLE", "SERVER_STOPPING"):
                other.service.drain()
                await watch.rest()


async def test_an_error_is_tried_again_and_then_final(mesh: Mesh) -> None:
    async with worker(mesh) as link:
        policy = RetryPolicy(initial_backoff=Duration(), max_attempts=2)
        task = await assign(mesh, spec(retry_policy=policy))
        for attempt, state in ((1, PENDING), (2, FAILED)):
            delivery = await link.delivery()
            assert (delivery.task.attempts, delivery.attempt) == (attempt, 1)
            answer = await report(mesh, delivery, error=failure())
            assert answer.state in (state, ASSIGNED)
            await link.answer(delivery)
            await link.credit()
        failed = await get(mesh, task.task_id)
        assert (failed.state, MeshError.from_status(failed.error).reason) == (
            FAILED,
            "OUT_OF_LUCK",
        )
        with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
            await mesh.stub.ReportTask(
                pb.ReportTaskRequest(
                    task_id=task.task_id, delivery_id="x", error=failure(code=grpc.StatusCode.OK)
                ),
                metadata=ALICE,
            )


async def test_only_the_agent_itself_reports(mesh: Mesh) -> None:
    async with worker(mesh) as link:
        task = await assign(mesh)
        delivery = await link.delivery()
        with refused("FAILED_PRECONDITION", "LEASE_LOST"):
            await report(mesh, delivery, metadata=BOB, result=json_payload())
        for wrong in ("nonsense", "2:0-1", delivery.delivery_id + "x"):
            with refused("FAILED_PRECONDITION", "LEASE_LOST"):
                await mesh.stub.ReportTask(
                    pb.ReportTaskRequest(
                        task_id=task.task_id, delivery_id=wrong, result=json_payload()
                    ),
                    metadata=ALICE,
                )
        first = await report(mesh, delivery, result=json_payload())
        assert await report(mesh, delivery, result=json_payload()) == first


async def test_a_cancelled_task_reaches_its_agent(mesh: Mesh) -> None:
    async with worker(mesh) as link:
        task = await assign(mesh)
        delivery = await link.delivery()
        await report(mesh, delivery, progress=pb.TaskProgress())
        cancelled = await cancel(mesh, task.task_id, reason="no need")
        assert cancelled.state == CANCELLED
        heard = await link.hear()
        assert heard.cancel.delivery_id == delivery.delivery_id
        assert MeshError.from_status(heard.cancel.reason).reason == "TASK_CANCELLED"
        answer = await report(mesh, delivery, result=json_payload())
        assert (answer.state, answer.cancel_requested) == (CANCELLED, True)
        assert await cancel(mesh, task.task_id) == cancelled
        with refused("NOT_FOUND", "TASK_NOT_FOUND"):
            await cancel(mesh, "none")


async def test_a_task_that_takes_too_long_is_taken_from_its_agent(mesh: Mesh) -> None:
    async with worker(mesh) as link:
        task = await assign(mesh, spec(timeout=Duration(nanos=200_000_000)))
        delivery = await link.delivery()
        heard = await link.hear()
        assert heard.cancel.delivery_id == delivery.delivery_id
        assert MeshError.from_status(heard.cancel.reason).reason == "TASK_TIMED_OUT"
        assert (await get(mesh, task.task_id)).state == TIMED_OUT


async def test_children_are_cancelled_with_their_parent(mesh: Mesh) -> None:
    async with worker(mesh, "a", 9) as first, worker(mesh, "b", 999) as second:
        top = await assign(mesh, spec(agent_id="a"))
        await first.delivery()
        children = await asyncio.gather(
            *(assign(mesh, spec(agent_id="b", parent_task_id=top.task_id)) for _ in range(120))
        )
        assert {child.depth for child in children} == {1}
        grandchild = await assign(
            mesh,
            spec("other", parent_task_id=children[0].task_id),
            wait_for_agent=True,
        )
        deliveries = {(await second.delivery()).delivery_id for _ in children}
        await cancel(mesh, top.task_id, cancel_children=False)
        assert (await get(mesh, children[0].task_id)).state == ASSIGNED
        task = await cancel(mesh, top.task_id, cancel_children=True)
        assert set(task.child_task_ids) == {child.task_id for child in children}
        for task_id in (grandchild.task_id, *task.child_task_ids):
            assert (await get(mesh, task_id)).state == CANCELLED
        heard = {(await second.hear()).cancel.delivery_id for _ in children}
        assert heard == deliveries
        with refused("FAILED_PRECONDITION", "PARENT_ENDED"):
            await assign(mesh, spec(agent_id="b", parent_task_id=top.task_id))


async def test_a_lost_agent_gives_its_task_to_another(mesh: Mesh) -> None:
    async with worker(mesh, "a") as first:
        task = await assign(mesh)
        stale = await first.delivery()
        await report(mesh, stale, progress=pb.TaskProgress(percent=90))
        async with worker(mesh, "b") as second:
            await mesh.registry.DeregisterAgent(
                agent_pb2.DeregisterAgentRequest(agent_id="a", lease_id=first.lease_id),
                metadata=ALICE,
            )
            delivery = await second.delivery()
            assert (delivery.task.task_id, delivery.task.attempts) == (task.task_id, 2)
            with refused("FAILED_PRECONDITION", "LEASE_LOST"):
                await report(mesh, stale, result=json_payload())
            await finish(mesh, second, delivery)
        assert (await get(mesh, task.task_id)).agent_id == "b"


async def test_a_lost_connection_loses_no_attempt(mesh: Mesh) -> None:
    lease_id = await mesh.register("a", "work")
    async with mesh.connected("a", lease_id=lease_id, connection_id="c") as link:
        task = await assign(mesh)
        first = await link.delivery()
    async with mesh.connected("a", lease_id=lease_id, connection_id="c") as link:
        again = await link.delivery()
        assert (again.task.task_id, again.attempt, again.task.attempts) == (task.task_id, 2, 1)
        # The first delivery was of the same attempt.
        await report(mesh, first, progress=pb.TaskProgress(percent=10))
        await finish(mesh, link, again)


async def test_who_sees_a_task(mesh: Mesh) -> None:
    private = await assign(mesh, wait_for_agent=True)
    public = await assign(mesh, spec(visibility=visibility_pb2.VISIBILITY_ALL), wait_for_agent=True)
    assert await get(mesh, private.task_id, ADMIN) == private
    assert await get(mesh, public.task_id, BOB) == public
    listed = await mesh.stub.ListTasks(pb.ListTasksRequest(), metadata=BOB)
    assert list(listed.tasks) == [public]
    listed = await mesh.stub.ListTasks(pb.ListTasksRequest(), metadata=ADMIN)
    assert list(listed.tasks) == [public, private]
    for call in (
        get(mesh, private.task_id, BOB),
        cancel(mesh, private.task_id, BOB),
        assign(mesh, spec(agent_id="x", parent_task_id=private.task_id), metadata=BOB),
    ):
        with refused("NOT_FOUND", "TASK_NOT_FOUND"):
            await call
    with refused("NOT_FOUND", "TASK_NOT_FOUND"):
        async with watching(mesh, private.task_id, metadata=BOB) as watch:
            await watch.rest()
    for call in (
        cancel(mesh, public.task_id, BOB),
        assign(mesh, spec(agent_id="x", parent_task_id=public.task_id), metadata=BOB),
    ):
        with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
            await call
    # Whoever does it sees it.
    await mesh.register("b", "work", metadata_=BOB, max_concurrent_tasks=9)
    async with watching(mesh, private.task_id, after=1) as watch:
        assert (await watch.next()).agent_id == "b"
    assert (await get(mesh, private.task_id, BOB)).task_id == private.task_id


async def test_bad_requests(mesh: Mesh) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
        await assign(mesh, pb.TaskSpec(task_type="t"))
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
        await mesh.stub.AssignTask(pb.AssignTaskRequest(), metadata=ALICE)
    with refused("FAILED_PRECONDITION", "CAPABILITY_MISSING") as raised:
        await assign(mesh, spec("nope", "work"))
    assert raised[0].metadata["missing_capabilities"] == "nope,work"
    with refused("NOT_FOUND", "AGENT_NOT_FOUND"):
        await assign(mesh, spec(agent_id="nobody"))
    large = message_pb2.Payload()
    large.protobuf.value = b"x" * (1 << 20)
    with refused("INVALID_ARGUMENT", "PAYLOAD_TOO_LARGE"):
        await assign(mesh, spec(parameters=large))
    with refused("NOT_FOUND", "TASK_NOT_FOUND"):
        await get(mesh, "none")


async def test_a_repeated_request_is_one_task(mesh: Mesh, shared_valkey: str) -> None:
    await mesh.register("a", "work", max_concurrent_tasks=9)
    async with agents(shared_valkey) as other:
        tasks = await asyncio.gather(*(assign(each, request_id="r") for each in (mesh, other)))
    assert len({task.task_id for task in tasks}) == 1


async def test_dropped_deliveries_fail_their_task(mesh: Mesh) -> None:
    async with worker(mesh) as link:
        policy = RetryPolicy(max_attempts=1)
        task = await assign(mesh, spec(retry_policy=policy))
        delivery = await link.delivery()
        await link.answer(delivery, delivery_pb2.VERDICT_DROP, error=failure("BROKEN"))
        async with watching(mesh, task.task_id) as watch:
            failed = (await watch.rest())[-1]
        assert (failed.state, MeshError.from_status(failed.error).reason) == (FAILED, "BROKEN")
