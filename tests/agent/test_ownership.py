"""What belongs to one identity, another does not see: tasks, mailboxes, dead letters, names."""

from __future__ import annotations

from typing import Any

import grpc

from bxmesh.agent.v1 import delivery_pb2, queue_pb2, task_pb2
from bxmesh.registry.v1 import agent_pb2
from bxmesh.security.v1.visibility_pb2 import VISIBILITY_ALL, VISIBILITY_OWNER, VISIBILITY_TEAM
from bxmesh.server.live_agents import LiveAgents
from tests.agent.mesh import Mesh
from tests.registry.mesh import ADMIN, ALICE, BOB
from tests.security.mesh import refused

ANNA, BEN, CARL = ((("x-api-key", name),) for name in ("anna@blue", "ben@blue", "carl@red"))


async def assign(mesh: Mesh, visibility: Any, metadata: Any = ANNA) -> str:
    spec = task_pb2.TaskSpec(task_type="t", required_capabilities=["a.b"], visibility=visibility)
    answer = await mesh.stub.AssignTask(
        task_pb2.AssignTaskRequest(spec=spec, wait_for_agent=True), metadata=metadata
    )
    task_id: str = answer.task.task_id
    return task_id


async def listed(mesh: Mesh, metadata: Any) -> set[str]:
    answer = await mesh.stub.ListTasks(task_pb2.ListTasksRequest(), metadata=metadata)
    return {task.task_id for task in answer.tasks}


async def test_tasks_are_seen_by_whom_they_are_shared_with(mesh: Mesh) -> None:
    mine, ours, everybodys = [
        await assign(mesh, visibility)
        for visibility in (VISIBILITY_OWNER, VISIBILITY_TEAM, VISIBILITY_ALL)
    ]
    for metadata, sees in (
        (ANNA, {mine, ours, everybodys}),
        (BEN, {ours, everybodys}),
        (CARL, {everybodys}),
        (ALICE, {everybodys}),
        (ADMIN, {mine, ours, everybodys}),
    ):
        assert await listed(mesh, metadata) == sees
        for task_id in (mine, ours, everybodys):
            get = mesh.stub.GetTask(task_pb2.GetTaskRequest(task_id=task_id), metadata=metadata)
            if task_id in sees:
                assert (await get).task.task_id == task_id
            else:
                assert (await refused(get)).code is grpc.StatusCode.NOT_FOUND
    # To see is not to change.
    for metadata in (BEN, CARL):
        error = await refused(
            mesh.stub.CancelTask(task_pb2.CancelTaskRequest(task_id=everybodys), metadata=metadata)
        )
        assert error.code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_task_of_nobodys_team_is_not_seen_by_others_without_one(mesh: Mesh) -> None:
    task_id = await assign(mesh, VISIBILITY_TEAM, ALICE)
    assert task_id not in await listed(mesh, BOB)


async def test_mailboxes_and_dead_letters_of_others_are_not_there(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob:
        await mesh.send(recipient="bob", message_type="secret")
        delivery = await bob.delivery()
        await bob.answer(delivery, delivery_pb2.VERDICT_DROP)
    wanted = queue_pb2.DeadLetterFilter(agent_id="bob")
    for metadata, count in ((CARL, 0), (ALICE, 1), (ADMIN, 1)):
        letters = await mesh.stub.ListDeadLetters(
            queue_pb2.ListDeadLettersRequest(filter=wanted), metadata=metadata
        )
        assert len(letters.dead_letters) == count
        queues = await mesh.stub.GetQueueStats(queue_pb2.GetQueueStatsRequest(), metadata=metadata)
        assert [queue.queue for queue in queues.queues] == ["agent/bob"] * count
    purged = await mesh.stub.PurgeDeadLetters(
        queue_pb2.PurgeDeadLettersRequest(filter=wanted), metadata=CARL
    )
    assert purged.purged == 0
    replayed = await mesh.stub.ReplayDeadLetters(
        queue_pb2.ReplayDeadLettersRequest(filter=wanted), metadata=CARL
    )
    assert (replayed.replayed, replayed.remaining) == (0, 0)
    for call in (
        mesh.stub.ReplayMessages(
            queue_pb2.ReplayMessagesRequest(agent_id="bob", start_entry_id="1-0"), metadata=CARL
        ),
        mesh.stub.GetQueueStats(queue_pb2.GetQueueStatsRequest(agent_id="bob"), metadata=CARL),
    ):
        assert (await refused(call)).code in (
            grpc.StatusCode.PERMISSION_DENIED,
            grpc.StatusCode.NOT_FOUND,
        )
    assert (
        len(
            (
                await mesh.stub.ListDeadLetters(
                    queue_pb2.ListDeadLettersRequest(filter=wanted), metadata=ALICE
                )
            ).dead_letters
        )
        == 1
    )


async def test_the_name_of_an_agent_that_is_away_is_kept_for_it(mesh: Mesh) -> None:
    agents = LiveAgents(mesh.redis)
    request = agent_pb2.RegisterAgentRequest(agent_id="worker", agent_type="t")
    lease = await mesh.registry.RegisterAgent(request, metadata=ALICE)
    await mesh.registry.DeregisterAgent(
        agent_pb2.DeregisterAgentRequest(agent_id="worker", lease_id=lease.lease_id),
        metadata=ALICE,
    )
    error = await refused(mesh.registry.RegisterAgent(request, metadata=BOB))
    assert error.reason == "AGENT_EXISTS"
    await mesh.registry.RegisterAgent(request, metadata=ALICE)
    assert await agents.owner("worker") == "alice"
    # Whoever administers the registry frees it.
    await mesh.registry.DeregisterAgent(
        agent_pb2.DeregisterAgentRequest(agent_id="worker"), metadata=ADMIN
    )
    await mesh.registry.RegisterAgent(request, metadata=BOB)


async def test_an_agent_offers_only_what_it_may_execute(mesh: Mesh) -> None:
    narrow = (("x-api-key", "nobody"),)
    for capability in ("geometry.gradients", "a.b"):
        error = await refused(
            mesh.registry.RegisterAgent(
                agent_pb2.RegisterAgentRequest(
                    agent_id="n",
                    agent_type="t",
                    capabilities=[agent_pb2.Capability(name=capability)],
                ),
                metadata=narrow,
            )
        )
        assert error.reason == "PERMISSION_MISSING"
        assert "task_execute" in error.message
