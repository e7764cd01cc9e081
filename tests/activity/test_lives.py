"""What the activity log says of a message's, a task's and an agent's life, and what it never says."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from redis.asyncio import Redis

from bxmesh.agent.v1 import delivery_pb2, message_pb2, task_pb2
from bxmesh.registry.v1 import agent_pb2, retry_policy_pb2
from bxmesh.server.activity import recording
from bxmesh.server.activity.events import MessageEvent
from bxmesh.server.activity.minute import Minute
from bxmesh.server.errors import MeshError
from bxmesh.server.live_agents import LiveAgents
from bxmesh.server.settings import Settings
from bxmesh.server.streams import WorkQueue
from bxmesh.server.streams.handling import WorkContext
from bxmesh.server.streams.keys import QueueKeys
from tests.activity.mesh import events, lines, logged, logs
from tests.agent.mesh import Mesh, agents
from tests.processes import until
from tests.registry.mesh import ALICE
from tests.streams import harness

CANARY = "canary-7f3a"
RETRY, DROP = delivery_pb2.VERDICT_RETRY, delivery_pb2.VERDICT_DROP
DIRECT = message_pb2.DELIVERY_MODE_DIRECT


def failure(reason: str = "NOT_TODAY") -> Any:
    return MeshError(grpc.StatusCode.UNAVAILABLE, reason, f"It was {CANARY}.").to_status()


def nothing() -> Duration:
    return Duration()


async def assign(mesh: Mesh, *, wait_for_agent: bool = False, **spec: Any) -> Any:
    request = task_pb2.AssignTaskRequest(
        spec=task_pb2.TaskSpec(
            task_type="test.task", required_capabilities=["work"], description=CANARY, **spec
        ),
        wait_for_agent=wait_for_agent,
    )
    return (await mesh.stub.AssignTask(request, metadata=ALICE)).task


async def report(mesh: Mesh, delivery: Any, **what: Any) -> None:
    request = task_pb2.ReportTaskRequest(
        task_id=delivery.task.task_id, delivery_id=delivery.delivery_id, **what
    )
    await mesh.stub.ReportTask(request, metadata=ALICE)


async def test_a_message_from_acceptance_to_its_end(
    redis: Redis, shared_valkey: str, tmp_path: Path
) -> None:
    async with logged(shared_valkey, tmp_path) as mesh, mesh.connected("bob") as bob:
        sent = await mesh.send(
            recipient="bob", message_type="greeting.request", json=f'"{CANARY}"', priority=3
        )
        await bob.answer(await bob.delivery(), RETRY, error=failure(), retry_after=nothing())
        await bob.credit()
        again = await bob.delivery()
        await bob.answer(again)
    found = lines(tmp_path, "messages", message_id=sent.message_id)
    assert [line["event"] for line in found] == [
        "accepted",
        "delivered",
        "retried",
        "delivered",
        "acknowledged",
    ]
    assert [line.get("attempt") for line in found] == [None, 1, 1, 2, 2]
    first, last = found[0], found[-1]
    assert (
        first.items()
        >= {
            "message_type": "greeting.request",
            "sender": "alice",
            "recipient": "bob",
            "priority": 3,
            "mode": "durable",
        }.items()
    )
    assert first["size"] == last["size"] > 0
    assert last["seconds"] >= found[1]["seconds"] >= 0
    assert found[1]["connection_id"] == bob.welcome.connection_id
    assert (found[2]["code"], found[2]["reason"]) == ("UNAVAILABLE", "NOT_TODAY")


async def test_messages_that_are_dropped_or_expire(
    redis: Redis, shared_valkey: str, tmp_path: Path
) -> None:
    async with logged(shared_valkey, tmp_path) as mesh:
        lease = await mesh.register("bob")
        soon = Timestamp()
        soon.FromNanoseconds(int((time.time() + 0.2) * 1e9))
        late = await mesh.send(recipient="bob", expire_time=soon)
        await asyncio.sleep(max(0.0, soon.ToNanoseconds() / 1e9 - time.time()) + 0.01)
        async with mesh.connected("bob", lease_id=lease) as bob:
            sent = await mesh.send(recipient="bob", json=f'"{CANARY}"')
            await bob.answer(await bob.delivery(), DROP, error=failure("TOO_UGLY"))
    assert events(tmp_path, "messages", message_id=late.message_id) == ["accepted", "expired"]
    (dropped,) = lines(tmp_path, "messages", event="dropped")
    (letter,) = lines(tmp_path, "errors", event="dead_letter")
    assert dropped["message_id"] == sent.message_id
    assert (
        letter.items()
        >= {
            "queue": "agents",
            "agent_id": "bob",
            "item_kind": "message",
            "attempts": 1,
            "code": "UNAVAILABLE",
            "reason": "TOO_UGLY",
        }.items()
    )


async def test_a_direct_message_has_no_end(
    redis: Redis, shared_valkey: str, tmp_path: Path
) -> None:
    async with logged(shared_valkey, tmp_path) as mesh, mesh.connected("bob") as bob:
        sent = await mesh.send(recipient="bob", delivery_mode=DIRECT)
        await bob.delivery()
    found = lines(tmp_path, "messages", message_id=sent.message_id)
    assert [(line["event"], line["mode"]) for line in found] == [
        ("accepted", "direct"),
        ("delivered", "direct"),
    ]
    assert found[0]["receivers"] == 1


async def test_a_repeated_message_is_accepted_once(
    redis: Redis, shared_valkey: str, tmp_path: Path
) -> None:
    async with logged(shared_valkey, tmp_path) as mesh:
        await mesh.register("bob")
        for _ in range(3):
            await mesh.send(recipient="bob", request_id="once")
        await mesh.send(recipient="bob")
    assert events(tmp_path, "messages") == ["accepted", "accepted"]


async def test_a_task_through_all_its_states(
    redis: Redis, shared_valkey: str, tmp_path: Path
) -> None:
    policy = retry_policy_pb2.RetryPolicy(initial_backoff=nothing())
    async with logged(shared_valkey, tmp_path) as mesh:
        lease = await mesh.register("worker", "work")
        async with mesh.connected("worker", lease_id=lease) as worker:
            task = await assign(mesh, retry_policy=policy)
            first = await worker.delivery()
            for percent in (10, 50, 90):
                progress = task_pb2.TaskProgress(percent=percent, message=CANARY)
                await report(mesh, first, progress=progress)
            await report(mesh, first, error=failure("OUT_OF_LUCK"))
            await worker.answer(first)
            await worker.credit()
            second = await worker.delivery()
            await report(mesh, second, progress=task_pb2.TaskProgress())
            result = message_pb2.Payload(json=message_pb2.JsonPayload(json=f'"{CANARY}"'))
            await report(mesh, second, result=result)
    found = lines(tmp_path, "tasks", task_id=task.task_id)
    assert [(line["event"], line["attempt"]) for line in found] == [
        ("assigned", 1),
        ("running", 1),
        ("pending", 1),
        ("assigned", 2),
        ("running", 2),
        ("completed", 2),
    ]
    assert found[2]["reason"] == "OUT_OF_LUCK"
    assert "agent_id" not in found[2]
    assert (
        found[-1].items()
        >= {
            "task_type": "test.task",
            "owner": "alice",
            "agent_id": "worker",
        }.items()
    )
    assert found[-1]["seconds"] >= found[-2]["seconds"] >= 0
    revisions = [line["revision"] for line in found]
    assert revisions == sorted(set(revisions))


async def test_a_task_that_is_cancelled(redis: Redis, shared_valkey: str, tmp_path: Path) -> None:
    async with logged(shared_valkey, tmp_path) as mesh:
        await mesh.register("worker", "work")
        task = await assign(mesh)
        await mesh.stub.CancelTask(
            task_pb2.CancelTaskRequest(task_id=task.task_id, reason=CANARY), metadata=ALICE
        )
    assert events(tmp_path, "tasks", task_id=task.task_id) == ["assigned", "cancelled"]


async def test_an_agent_from_registration_to_its_end(
    redis: Redis, shared_valkey: str, tmp_path: Path
) -> None:
    async with logged(shared_valkey, tmp_path) as mesh:
        lease = await mesh.register("bob", "work", metadata={"secret": CANARY})
        async with mesh.connected("bob", lease_id=lease) as bob:
            pass
        await logs(tmp_path, "agents", event="disconnected")
        await mesh.registry.DeregisterAgent(
            agent_pb2.DeregisterAgentRequest(agent_id="bob", lease_id=lease, reason=CANARY),
            metadata=ALICE,
        )
        await logs(tmp_path, "agents", event="left")
        # Whoever enters it, as a worker does without a server.
        agent = agent_pb2.Agent(agent_id="silent", identity="alice", agent_type="test.agent")
        await LiveAgents(redis).register(agent, 0.05)
        await logs(tmp_path, "agents", event="left", agent_id="silent")
    found = lines(tmp_path, "agents", agent_id="bob")
    assert [line["event"] for line in found] == ["registered", "connected", "disconnected", "left"]
    assert (
        found[0].items()
        >= {
            "agent_type": "test.agent",
            "identity": "alice",
            "capabilities": ["work"],
        }.items()
    )
    assert found[1]["connection_id"] == found[2]["connection_id"] == bob.welcome.connection_id
    assert found[3]["cause"] == "deregistered"
    assert [
        (line["event"], line.get("cause")) for line in lines(tmp_path, "agents", agent_id="silent")
    ] == [("registered", None), ("left", "expired")]


async def test_a_call_that_the_server_fails_is_an_error(
    redis: Redis, shared_valkey: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with logged(shared_valkey, tmp_path) as mesh:

        async def fail(*_: Any) -> Any:
            raise RuntimeError(CANARY)

        mesh.service.mesh.directory.find = fail  # type: ignore[method-assign]
        with caplog.at_level(logging.CRITICAL), pytest.raises(grpc.aio.AioRpcError):
            await mesh.send(recipient="bob")
        with pytest.raises(grpc.aio.AioRpcError):
            # The caller's fault, and so none of the server's.
            await mesh.send(recipient="")
    (found,) = lines(tmp_path, "errors")
    assert (
        found.items()
        >= {
            "event": "fault",
            "method": "/bxmesh.agent.v1.AgentService/SendMessage",
            "code": "INTERNAL",
        }.items()
    )
    assert len(found["trace_id"]) == 32


async def test_dead_letters_of_workers_in_other_processes(redis: Redis, tmp_path: Path) -> None:
    options = harness.options("geometry", max_attempts=2)
    queue = WorkQueue(redis, options)

    async def fail(_: WorkContext) -> None:
        raise MeshError(grpc.StatusCode.UNAVAILABLE, "NO_LUCK", CANARY)

    async with recording(Settings(activity_log=tmp_path), redis, (queue,)):
        # It knows nothing of the log.
        async with harness.running(redis, options, {"steps": fail}):
            ticket = await queue.enqueue("steps", harness.text(CANARY))
            await harness.until(lambda: redis.xlen(queue.keys.dead))
    (letter,) = lines(tmp_path, "errors")
    assert (
        letter.items()
        >= {
            "event": "dead_letter",
            "queue": "geometry",
            "item_id": ticket.item_id,
            "item_kind": "steps",
            "attempts": 2,
            "code": "UNAVAILABLE",
            "reason": "NO_LUCK",
        }.items()
    )
    assert "agent_id" not in letter


async def test_nothing_of_payloads_errors_and_secrets_is_written(
    redis: Redis, shared_valkey: str, tmp_path: Path
) -> None:
    hidden = f"{CANARY}_{'x' * 3000}"
    async with logged(shared_valkey, tmp_path) as mesh:
        lease = await mesh.register("bob", "work", metadata={"secret": CANARY})
        async with mesh.connected("bob", lease_id=lease, initial_credit=10) as bob:
            await mesh.send(recipient="bob", json=f'"{CANARY}"', headers={"token": CANARY})
            first = await bob.delivery()
            await mesh.send(recipient="bob", json=f'"{CANARY}"', delivery_mode=DIRECT)
            assert not (await bob.delivery()).delivery_id
            await bob.answer(first, DROP, error=failure(hidden))
            parameters = message_pb2.Payload(json=message_pb2.JsonPayload(json=f'"{CANARY}"'))
            policy = retry_policy_pb2.RetryPolicy(max_attempts=1)
            await assign(mesh, parameters=parameters, labels={"label": CANARY}, retry_policy=policy)
            await report(mesh, await bob.delivery(), error=failure(hidden))
    assert len(lines(tmp_path, "errors", event="dead_letter")) == 1
    (failed,) = lines(tmp_path, "tasks", event="failed")
    assert failed["reason"] == "OTHER"
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    assert {path.name.partition("-")[0] for path in files} >= {
        "agents",
        "messages",
        "tasks",
        "errors",
    }
    for path in files:
        content = path.read_bytes()
        assert CANARY.encode() not in content, path
        assert lease.encode() not in content, path
        assert b"alice" in content or path.name.startswith((".process", "errors"))


async def test_each_fact_is_in_the_log_of_one_server(
    redis: Redis, shared_valkey: str, tmp_path: Path
) -> None:
    async with (
        logged(shared_valkey, tmp_path) as first,
        logged(shared_valkey, tmp_path) as second,
    ):
        for number in range(20):
            await (first, second)[number % 2].register(f"agent-{number}", "work")
        tasks = [await assign((first, second)[number % 2]) for number in range(20)]
    registered = [line["agent_id"] for line in lines(tmp_path, "agents", event="registered")]
    assigned = [line["task_id"] for line in lines(tmp_path, "tasks", event="assigned")]
    assert len(registered) == len(set(registered)) == 20
    assert sorted(assigned) == sorted(task.task_id for task in tasks)


async def test_without_a_log_nothing_is_kept_for_one(
    redis: Redis, shared_valkey: str, tmp_path: Path
) -> None:
    async with agents(shared_valkey) as mesh:
        await mesh.register("worker", "work")
        await assign(mesh)
        assert not await redis.exists(QueueKeys("agents").journal)


async def test_what_nobody_reads_any_more_goes(
    redis: Redis, shared_valkey: str, tmp_path: Path
) -> None:
    async with logged(shared_valkey, tmp_path):
        assert 0 < await redis.pttl(QueueKeys("agents").journal) <= 3_600_000


async def test_the_log_goes_on_after_redis_has_lost_everything(
    redis: Redis, shared_valkey: str, tmp_path: Path
) -> None:
    async with logged(shared_valkey, tmp_path) as mesh:
        await mesh.register("before")
        await logs(tmp_path, "agents", agent_id="before")
        await redis.flushall()

        async def journal() -> bool:
            return bool(await redis.exists(QueueKeys("agents").journal))

        await mesh.register("after")
        await until(journal)
        task = await assign(mesh, wait_for_agent=True)
    assert events(tmp_path, "agents", agent_id="after") == ["registered"]
    assert events(tmp_path, "tasks", task_id=task.task_id) == ["pending"]


async def test_entries_that_cannot_be_read_are_passed_over(
    redis: Redis, shared_valkey: str, tmp_path: Path
) -> None:
    async with logged(shared_valkey, tmp_path) as mesh:
        journal = QueueKeys("agents").journal
        for fields in ({"task": b"\xff"}, {"facts": "{"}, {"facts": "[]"}, {"x": "y"}):
            await redis.xadd(journal, fields)  # type: ignore[arg-type]
        await mesh.register("worker", "work")
        task = await assign(mesh)
    assert events(tmp_path, "tasks") == ["assigned"]
    assert lines(tmp_path, "tasks")[0]["task_id"] == task.task_id


def test_a_minute_in_figures() -> None:
    minute = Minute()
    for number in range(1, 101):
        minute.add(
            MessageEvent(
                event="delivered",
                message_id="m",
                message_type="t",
                sender="a",
                recipient="b",
                priority=2,
                mode="durable",
                size=1,
                seconds=number / 100,
            )
        )
    found = minute.end({"mailboxes.items": 3})
    assert found.counts == {"messages.delivered": 100}
    assert found.rates["messages.delivered"] > 0
    assert found.latencies == {"messages.delivered": {"p50": 0.5, "p95": 0.95, "max": 1.0}}
    assert found.depths == {"mailboxes.items": 3}
    assert minute.end({}).counts == {}
