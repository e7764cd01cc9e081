"""Agents that fail get nothing for a while, then one task at a time until it goes well."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from bxmesh.agent.v1 import task_pb2 as pb
from bxmesh.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from bxmesh.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from bxmesh.registry.v1.retry_policy_pb2 import RetryPolicy
from bxmesh.security.v1 import policy_pb2, violation_pb2
from bxmesh.security.v1.security_service_pb2_grpc import SecurityServiceStub
from bxmesh.server.app import serve
from bxmesh.server.live_agents import LiveAgents
from bxmesh.server.security.circuit_breakers import CircuitBreakers
from bxmesh.server.security.events import IGNORED
from bxmesh.server.settings import Settings
from bxmesh.server.streams.bells import Bells
from bxmesh.server.tasks import Tasks, errors
from tests.registry.mesh import registration
from tests.security.mesh import bearer
from tests.security.test_circuit_breakers import Source, breaker, time_passes
from tests.tasks.harness import (
    ASSIGNED,
    PENDING,
    World,
    failure,
    json_payload,
    nothing_left,
    spec,
    until,
    world,
)

ONCE = RetryPolicy(max_attempts=1)


@asynccontextmanager
async def guarded(redis: Redis, *breakers: Any) -> AsyncIterator[tuple[World, CircuitBreakers]]:
    """A mechanism that keeps to circuit breakers."""
    agents = LiveAgents(redis)
    circuits = CircuitBreakers(redis, Source(*breakers), IGNORED)
    async with Bells(redis) as bells, Tasks(redis, agents, bells, None, circuits) as tasks:
        yield World(redis, agents, tasks), circuits


async def fails(w: World, agent_id: str) -> None:
    """An agent is given a task and reports that it failed."""
    task = await w.assign(spec(agent_id=agent_id, retry_policy=ONCE))
    await w.taken(agent_id)
    await w.store.fail(task.task_id, 1, agent_id, failure())


async def test_an_agent_that_fails_gets_nothing_until_a_trial(redis: Redis) -> None:
    async with guarded(redis, breaker(failures=2, success_threshold=2)) as (w, circuits):
        await w.join("a", slots=9)
        await fails(w, "a")
        assert await circuits.open_targets() == []
        await fails(w, "a")
        assert await circuits.open_targets() == ["agent/a"]
        kept = [await w.assign() for _ in range(3)]
        assert [task.state for task in kept] == [PENDING] * 3
        # Whoever is well gets what comes, and what waits.
        await w.join("b", slots=2)
        for task in kept[:2]:
            assert (await w.reaches(task.task_id, ASSIGNED)).agent_id == "b"
        await w.agents.leave("b")
        await until(lambda: "b" not in w.tasks.roster.agents)
        await time_passes(redis, "agent/a", circuits)

        # One trial after the other, by whatever waits; then all that waits.
        async def held() -> list[Any]:
            return [
                task for task in [await w.get(t.task_id) for t in kept] if task.state == ASSIGNED
            ]

        for _ in range(2):
            await until(lambda: w.inbox("a"))
            (trial,) = await held()
            assert trial.agent_id == "a"
            assert await w.tasks.scheduler.round() is False
            assert len(await held()) == 1
            await w.taken("a")
            await w.store.finish(trial.task_id, trial.attempts, "a", json_payload())
        await until(circuits_closed(circuits))
        for task in (await w.assign(spec(agent_id="a")), await w.assign()):
            assert (await w.reaches(task.task_id, ASSIGNED)).agent_id == "a"
        assert len(await held()) == 1


async def test_a_failed_trial_opens_it_again_and_another_server_keeps_to_it(redis: Redis) -> None:
    async with guarded(redis, breaker(failures=1)) as (w, circuits):
        await w.join("a", slots=9)
        await fails(w, "a")
        await time_passes(redis, "agent/a", circuits)
        trial = await w.assign(spec(retry_policy=ONCE))
        assert await w.taken("a") == (trial.task_id, 1)
        await w.store.fail(trial.task_id, 1, "a", failure())
        assert await circuits.open_targets() == ["agent/a"]
        async with guarded(redis, breaker(failures=1)) as (other, _):
            await other.tasks.roster.refresh()
            assert (await other.assign()).state == PENDING
            await other.tasks.scheduler.round()
            assert await w.inbox("a") == []


async def lost(w: World) -> None:
    task = await w.assign(spec(retry_policy=ONCE))
    await w.taken("a")
    await w.agents.leave("a", w.leases["a"])
    await until(lambda: ended(w, task.task_id))


async def late(w: World) -> None:
    task = spec(retry_policy=ONCE)
    task.timeout.FromMilliseconds(20)
    assigned = await w.assign(task)
    await until(lambda: ended(w, assigned.task_id))


async def reported(w: World) -> None:
    await fails(w, "a")


async def blamed(w: World) -> None:
    task = await w.assign(spec(agent_id="a", retry_policy=ONCE))
    error = failure("BAD_PARAMETERS", grpc.StatusCode.INVALID_ARGUMENT)
    await w.store.fail(task.task_id, 1, "a", error)


async def cancelled(w: World) -> None:
    task = await w.assign()
    await w.store.cancel(task.task_id, errors.cancelled("", "alice"))


async def never_seen(w: World) -> None:
    await w.assign()
    await w.agents.leave("a", w.leases["a"])
    await until(lambda: not w.tasks.roster.agents)
    await w.tasks.sweeper.compare()


async def ended(w: World, task_id: str) -> bool:
    return await w.state(task_id) > 3


def circuits_closed(circuits: CircuitBreakers) -> Callable[[], Any]:
    async def closed() -> bool:
        return await circuits.open_targets() == []

    return closed


@pytest.mark.parametrize("what", [lost, late, reported])
async def test_what_counts_as_a_failure(redis: Redis, what: Callable[[World], Any]) -> None:
    async with guarded(redis, breaker(failures=1)) as (w, circuits):
        await w.join("a")
        await what(w)
        await until(circuits.open_targets)
        assert await circuits.open_targets() == ["agent/a"]


@pytest.mark.parametrize("what", [blamed, cancelled, never_seen])
async def test_what_counts_for_nothing(redis: Redis, what: Callable[[World], Any]) -> None:
    async with guarded(redis, breaker(failures=1)) as (w, circuits):
        await w.join("a")
        await what(w)
        assert await circuits.open_targets() == []


async def test_a_trial_that_is_cancelled_makes_way_for_another(redis: Redis) -> None:
    async with guarded(redis, breaker(failures=1)) as (w, circuits):
        await w.join("a")
        await fails(w, "a")
        await time_passes(redis, "agent/a", circuits)
        for _ in range(2):
            task = await w.assign()
            await w.reaches(task.task_id, ASSIGNED)
            await w.store.cancel(task.task_id, errors.cancelled("", "alice"))
        await nothing_left(redis)


async def test_a_capability_that_fails_everywhere_is_left_alone(redis: Redis) -> None:
    async with guarded(redis, breaker("capability/work", failures=2)) as (w, circuits):
        await w.join("a", "work", "rest")
        await w.join("b", "work", "rest")
        for _ in range(2):
            task = await w.assign(spec(retry_policy=ONCE))
            await w.store.fail(task.task_id, 1, task.agent_id, failure())
        assert await circuits.open_targets() == ["capability/work"]
        assert (await w.assign()).state == PENDING
        # What needs something else does not wait behind it.
        assert (await w.reaches((await w.assign(spec("rest"))).task_id, ASSIGNED)).agent_id


async def test_without_breakers_nothing_is_kept(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a")
        for _ in range(5):
            await fails(w, "a")
        assert (await w.assign()).state == ASSIGNED
        assert await redis.keys("bxmesh:{circuits}*") == []


async def test_a_whole_server_keeps_to_its_policy(
    redis: Redis, shared_valkey: str, short_dir: Path
) -> None:
    settings = Settings(
        state_dir=short_dir / "s",
        redis_url=SecretStr(shared_valkey),
        listen=f"unix:{short_dir}/socket",
        services=("registry", "agent", "security"),
    )
    async with serve(settings) as server, grpc.aio.insecure_channel(server.address) as channel:
        admin = bearer((settings.state_dir / "admin.key").read_text().strip())
        agents: Any = AgentServiceStub(channel)
        registry: Any = RegistryServiceStub(channel)
        security: Any = SecurityServiceStub(channel)
        policy = policy_pb2.Policy(circuit_breakers=[breaker(failures=1)])
        await security.ApplyPolicy(policy_pb2.ApplyPolicyRequest(policy=policy), metadata=admin)
        await registry.RegisterAgent(registration("a", "work"), metadata=admin)
        short = spec()
        short.timeout.FromMilliseconds(20)
        assign = pb.AssignTaskRequest(spec=short)
        assert (await agents.AssignTask(assign, metadata=admin)).task.state == ASSIGNED

        async def open_circuits() -> list[str]:
            request = violation_pb2.GetSecurityReportRequest()
            report = await security.GetSecurityReport(request, metadata=admin)
            return list(report.open_circuits)

        assert await until(open_circuits) == ["agent/a"]
        assign = pb.AssignTaskRequest(spec=spec())
        assert (await agents.AssignTask(assign, metadata=admin)).task.state == PENDING
