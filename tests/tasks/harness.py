"""Parts of the task tests: agents in the registry, their mailboxes, and a mechanism that runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from redis.asyncio import Redis

from bxmesh.agent.v1 import message_pb2
from bxmesh.agent.v1 import task_pb2 as pb
from bxmesh.registry.v1 import agent_pb2
from bxmesh.server.errors import MeshError
from bxmesh.server.live_agents import LiveAgents
from bxmesh.server.streams.bells import Bells
from bxmesh.server.streams.keys import ENTRY
from bxmesh.server.tasks import TaskOptions, Tasks
from bxmesh.server.tasks.keys import QUEUE_KEYS
from bxmesh.work.v1 import work_pb2

PATIENCE = 30.0

PENDING = pb.TASK_STATE_PENDING
ASSIGNED = pb.TASK_STATE_ASSIGNED
RUNNING = pb.TASK_STATE_RUNNING
COMPLETED = pb.TASK_STATE_COMPLETED
FAILED = pb.TASK_STATE_FAILED
CANCELLED = pb.TASK_STATE_CANCELLED
TIMED_OUT = pb.TASK_STATE_TIMED_OUT


async def until(condition: Callable[..., Any]) -> Any:
    """Waits until a condition, awaited if need be, holds; returns what it returned."""
    async with asyncio.timeout(PATIENCE):
        while True:
            value = condition()
            if isinstance(value, Awaitable):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.005)


def json_payload(text: str = "{}") -> message_pb2.Payload:
    return message_pb2.Payload(json=message_pb2.JsonPayload(json=text))


def failure(reason: str = "OUT_OF_LUCK", code: grpc.StatusCode = grpc.StatusCode.INTERNAL) -> Any:
    return MeshError(code, reason, "It went wrong.").to_status()


def reason_of(status: status_pb2.Status) -> str:
    return MeshError.from_status(status).reason


def refused(code: str, reason: str) -> Any:
    """Expects a MeshError."""

    class Refused:
        error: MeshError

        def __enter__(self) -> Refused:
            self._raises = pytest.raises(MeshError)
            self._info = self._raises.__enter__()
            return self

        def __exit__(self, *args: Any) -> bool:
            handled = self._raises.__exit__(*args)
            self.error = self._info.value
            assert (self.error.code.name, self.error.reason) == (code, reason), self.error
            return bool(handled)

    return Refused()


def spec(*capabilities: str, **fields: Any) -> pb.TaskSpec:
    """A task of the type test.task that needs `work` unless something else is said."""
    if not capabilities and "agent_id" not in fields:
        capabilities = ("work",)
    fields.setdefault("task_type", "test.task")
    return pb.TaskSpec(required_capabilities=capabilities, **fields)


@dataclass
class World:
    """A registry and the mechanism, at most one of it running in this world."""

    redis: Redis
    agents: LiveAgents
    tasks: Tasks
    leases: dict[str, str] = field(default_factory=dict)
    _read: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Any:
        return self.tasks.store

    async def join(
        self, agent_id: str, *capabilities: str, slots: int = 1, seconds: float = 60, **fields: Any
    ) -> agent_pb2.Agent:
        """An agent that offers `work` unless something else is said."""
        more = fields.pop("capability", {})
        agent = agent_pb2.Agent(
            agent_id=agent_id,
            capabilities=[
                agent_pb2.Capability(name=name, **more) for name in capabilities or ("work",)
            ],
            max_concurrent_tasks=slots,
            status=fields.pop("status", agent_pb2.AGENT_STATUS_ACTIVE),
            identity=fields.pop("identity", "alice"),
            lease_ttl_seconds=max(1, int(seconds)),
            **fields,
        )
        agent.register_time.GetCurrentTime()
        self.leases[agent_id], _ = await self.agents.register(agent, seconds)
        # Servers hear of it a moment later.
        await self.tasks.roster.refresh()
        return agent

    async def assign(self, task: pb.TaskSpec | None = None, **options: Any) -> pb.Task:
        record = await self.tasks.assign(task or spec(), options.pop("owner", "alice"), **options)
        return record.task()

    async def get(self, task_id: str) -> pb.Task:
        record = await self.store.read(task_id)
        assert record is not None
        task: pb.Task = record.task()
        return task

    async def state(self, task_id: str) -> int:
        return (await self.get(task_id)).state

    async def reaches(self, task_id: str, *states: int) -> pb.Task:
        """Waits for a state, awaiting each change."""
        async with self.tasks.bells.watch(f"task:{task_id}") as bell, asyncio.timeout(PATIENCE):
            while True:
                bell.clear()
                found = await self.store.follow(task_id, 0, self.tasks.bells.channel)
                assert found is not None
                task: pb.Task = found[0].task()
                if task.state in states:
                    return task
                await bell.wait(5)

    async def inbox(self, agent_id: str) -> list[tuple[str, int]]:
        """The deliveries of tasks in a mailbox, the most urgent first."""
        found = []
        for stream in QUEUE_KEYS.inboxes(agent_id):
            for _, fields in await self.redis.xrange(stream):
                entry = work_pb2.WorkEntry.FromString(fields[ENTRY])
                delivery = work_pb2.TaskDelivery()
                assert entry.item.payload.Unpack(delivery)
                assert entry.item.item_id == f"{delivery.task_id}:{delivery.attempt}"
                found.append((delivery.task_id, delivery.attempt))
        return found

    async def taken(self, agent_id: str) -> tuple[str, int]:
        """The next delivery that has not been taken yet, once there is one."""

        async def take() -> tuple[str, int] | None:
            for stream in QUEUE_KEYS.inboxes(agent_id):
                if not await self.redis.exists(stream):
                    continue
                answer: Any = await self.redis.xreadgroup(
                    "workers", "tester", {stream: ">"}, count=1
                )
                if answer:
                    rows = answer[stream.encode()][0] if isinstance(answer, dict) else answer[0][1]
                    entry_id, fields = rows[0]
                    await self.redis.xack(stream, "workers", entry_id)
                    await self.redis.xdel(stream, entry_id)
                    entry = work_pb2.WorkEntry.FromString(fields[ENTRY])
                    task_id, _, attempt = entry.item.item_id.rpartition(":")
                    return task_id, int(attempt)
            return None

        found: tuple[str, int] = await until(take)
        return found


@asynccontextmanager
async def world(redis: Redis, *, running: bool = True, **options: Any) -> AsyncIterator[World]:
    agents = LiveAgents(redis)
    async with Bells(redis) as bells:
        tasks = Tasks(redis, agents, bells, TaskOptions(**options))
        if running:
            async with tasks:
                yield World(redis, agents, tasks)
        else:
            yield World(redis, agents, tasks)


async def nothing_left(redis: Redis) -> None:
    """Checks that no index remembers a task that has ended."""
    root = QUEUE_KEYS.root
    for name in ("counts", "load", "since", "demands", "due"):
        assert not await redis.exists(f"{root}:task-{name}"), name
    assert await redis.keys(f"{root}:task-held:*") == []
    assert await redis.keys(f"{root}:task-queue:*") == []
    assert await redis.keys(f"{root}:task-open:*") == []
