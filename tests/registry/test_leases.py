"""Agents come, stay as long as they beat, and go."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from bxmesh.registry.v1 import agent_pb2 as pb
from bxmesh.registry.v1 import discovery_pb2
from bxmesh.server.live_agent_scripts import EVENTS
from bxmesh.server.live_agents import LiveAgents
from tests.registry.mesh import ADMIN, ALICE, BOB, Mesh, refused, registration, registry


async def get(mesh: Mesh, agent_id: str) -> pb.Agent:
    response = await mesh.stub.GetAgent(pb.GetAgentRequest(agent_id=agent_id), metadata=ALICE)
    return response.agent


async def beat(mesh: Mesh, *beats: pb.KeepAliveRequest) -> list[pb.KeepAliveResponse]:
    call = mesh.stub.KeepAlive(metadata=ALICE)
    answers = []
    for request in beats:
        await call.write(request)
        answers.append(await call.read())
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    return answers


async def test_registered_agent_is_as_it_said(redis: Redis) -> None:
    async with registry(redis) as mesh:
        request = registration(
            "one", "geometry.gradients", "x", version="2", metadata={"host": "h"}
        )
        response = await mesh.stub.RegisterAgent(request, metadata=ALICE)
        assert response.lease_ttl_seconds == 30
        agent = await get(mesh, "one")
        assert response.agent == agent
        assert [c.name for c in agent.capabilities] == ["geometry.gradients", "x"]
        assert (agent.identity, agent.version, dict(agent.metadata)) == (
            "alice",
            "2",
            {"host": "h"},
        )
        assert (agent.status, agent.max_concurrent_tasks) == (pb.AGENT_STATUS_ACTIVE, 1)
        assert agent.revision == 1
        assert abs(agent.heartbeat_time.ToNanoseconds() - agent.register_time.ToNanoseconds()) < 5e9


async def test_name_belongs_to_its_identity(redis: Redis) -> None:
    async with registry(redis) as mesh:
        first = await mesh.stub.RegisterAgent(registration("one", "x"), metadata=ALICE)
        with refused("ALREADY_EXISTS", "AGENT_EXISTS"):
            await mesh.stub.RegisterAgent(registration("one"), metadata=BOB)
        second = await mesh.stub.RegisterAgent(registration("one", "y"), metadata=ALICE)
        assert second.lease_id != first.lease_id
        assert [c.name for c in (await get(mesh, "one")).capabilities] == ["y"]
        old, new = await beat(
            mesh,
            pb.KeepAliveRequest(lease_id=first.lease_id),
            pb.KeepAliveRequest(lease_id=second.lease_id),
        )
        assert (old.lease_ttl_seconds, new.lease_ttl_seconds) == (0, 30)


async def test_repeated_requests_get_the_first_answer(redis: Redis) -> None:
    async with registry(redis) as mesh:
        request = registration("one", request_id="r")
        first = await mesh.stub.RegisterAgent(request, metadata=ALICE)
        assert await mesh.stub.RegisterAgent(request, metadata=ALICE) == first
        with refused("ALREADY_EXISTS", "AGENT_EXISTS"):
            await mesh.stub.RegisterAgent(request, metadata=BOB)
        leave = pb.DeregisterAgentRequest(
            agent_id="one", lease_id=first.lease_id, request_id="r", reason="done"
        )
        gone = await mesh.stub.DeregisterAgent(leave, metadata=ALICE)
        assert await mesh.stub.DeregisterAgent(leave, metadata=ALICE) == gone
        assert gone.agent == first.agent
        leave.request_id = "other"
        with refused("NOT_FOUND", "AGENT_NOT_FOUND"):
            await mesh.stub.DeregisterAgent(leave, metadata=ALICE)


async def test_heartbeats_change_only_what_they_set(redis: Redis) -> None:
    async with registry(redis) as mesh:
        request = registration("one", metadata={"a": "1", "b": "2"}, max_concurrent_tasks=4)
        lease = (await mesh.stub.RegisterAgent(request, metadata=ALICE)).lease_id
        changing = pb.KeepAliveRequest(
            lease_id=lease,
            status=pb.AGENT_STATUS_BUSY,
            current_load=0.5,
            active_tasks=2,
            metadata={"a": "", "b": "3", "c": "4"},
        )
        changing.send_time.FromSeconds(7)
        plain = pb.KeepAliveRequest(lease_id=lease)
        first, second, third = await beat(mesh, changing, plain, changing)
        assert first.send_time == changing.send_time
        assert not second.HasField("send_time")
        assert (first.revision, second.revision, third.revision) == (2, 2, 2)
        agent = await get(mesh, "one")
        assert (agent.status, agent.current_load, agent.active_tasks, agent.revision) == (
            pb.AGENT_STATUS_BUSY,
            0.5,
            2,
            2,
        )
        assert dict(agent.metadata) == {"b": "3", "c": "4"}
        await beat(mesh, pb.KeepAliveRequest(lease_id=lease, current_load=0.0))
        agent = await get(mesh, "one")
        assert (agent.current_load, agent.active_tasks, agent.revision) == (0.0, 2, 3)


async def test_two_streams_on_one_lease_lose_nothing(redis: Redis) -> None:
    async with registry(redis) as mesh:
        request = registration("one")
        lease = (await mesh.stub.RegisterAgent(request, metadata=ALICE)).lease_id

        async def say(key: str) -> None:
            await beat(
                mesh,
                *(
                    pb.KeepAliveRequest(lease_id=lease, metadata={f"{key}{n}": "1"})
                    for n in range(20)
                ),
            )

        await asyncio.gather(say("a"), say("b"), say("c"))
        assert len((await get(mesh, "one")).metadata) == 60


async def test_metadata_is_bounded(redis: Redis) -> None:
    async with registry(redis) as mesh:
        request = registration("one", metadata={str(n): "1" for n in range(64)})
        lease = (await mesh.stub.RegisterAgent(request, metadata=ALICE)).lease_id
        with refused("INVALID_ARGUMENT", "TOO_MUCH_METADATA"):
            await beat(mesh, pb.KeepAliveRequest(lease_id=lease, metadata={"more": "1"}))
        assert len((await get(mesh, "one")).metadata) == 64


async def test_number_of_agents_is_bounded(redis: Redis) -> None:
    async with registry(redis, most_agents=2) as mesh:
        for name in ("one", "two"):
            await mesh.stub.RegisterAgent(registration(name), metadata=ALICE)
        with refused("RESOURCE_EXHAUSTED", "TOO_MANY_AGENTS") as errors:
            await mesh.stub.RegisterAgent(registration("three"), metadata=ALICE)
        assert errors[0].retry_after
        await mesh.stub.RegisterAgent(registration("two"), metadata=ALICE)


@pytest.mark.parametrize(
    ("caller", "lease", "code", "reason"),
    [
        (BOB, "", "PERMISSION_DENIED", "PERMISSION_DENIED"),
        (ALICE, "", "PERMISSION_DENIED", "PERMISSION_DENIED"),
        (ALICE, "another", "FAILED_PRECONDITION", "LEASE_MISMATCH"),
        (ADMIN, "another", "FAILED_PRECONDITION", "LEASE_MISMATCH"),
    ],
)
async def test_agent_is_taken_out_by_its_lease_only(
    redis: Redis, caller: Any, lease: str, code: str, reason: str
) -> None:
    async with registry(redis) as mesh:
        await mesh.stub.RegisterAgent(registration("one"), metadata=ALICE)
        leave = pb.DeregisterAgentRequest(agent_id="one", lease_id=lease)
        with refused(code, reason):
            await mesh.stub.DeregisterAgent(leave, metadata=caller)
        assert (await get(mesh, "one")).agent_id == "one"
        leave.lease_id = ""
        response = await mesh.stub.DeregisterAgent(leave, metadata=ADMIN)
        assert response.revision == 2
        with refused("NOT_FOUND", "AGENT_NOT_FOUND"):
            await get(mesh, "one")


async def test_wrong_registrations_are_refused(redis: Redis) -> None:
    async with registry(redis) as mesh:
        for request in (
            registration("one", "x", "x"),
            registration(""),
            registration("one", lease_ttl_seconds=4000),
            registration("a b"),
            registration("one", "Not A Capability"),
        ):
            with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
                await mesh.stub.RegisterAgent(request, metadata=ALICE)
        assert await redis.dbsize() == 0


async def test_silent_agent_is_gone_though_nobody_asks(redis: Redis) -> None:
    async with registry(redis) as mesh:
        await mesh.stub.RegisterAgent(registration("one", lease_ttl_seconds=1), metadata=ALICE)
        kept = await mesh.stub.RegisterAgent(registration("two"), metadata=ALICE)
        for _ in range(100):
            last = await redis.xrevrange(EVENTS, count=1)
            if last[0][1][b"kind"] == b"expired":
                break
            await asyncio.sleep(0.05)
        else:
            pytest.fail("the lease did not end")
        with refused("NOT_FOUND", "AGENT_NOT_FOUND"):
            await get(mesh, "one")
        assert (await get(mesh, "two")) == kept.agent
        stats = await mesh.stub.GetRegistryStats(
            discovery_pb2.GetRegistryStatsRequest(), metadata=ALICE
        )
        assert (stats.total_agents, stats.expired_leases, stats.revision) == (1, 1, 3)


async def test_lapsed_lease_counts_for_nothing(redis: Redis) -> None:
    agents = LiveAgents(redis)
    one = pb.Agent(agent_id="one", lease_ttl_seconds=1)
    lease, _ = await agents.register(one, 0.05)
    assert await agents.beat(one, lease, 0.05) == 1
    await asyncio.sleep(0.1)
    assert await agents.beat(one, lease, 0.05) is None
    assert await agents.renew(lease, lambda agent: False) is None
    assert await agents.list() == ([], 2)
    assert (await agents.register(pb.Agent(agent_id="one"), 5))[1] == 3


async def test_workers_share_the_registry(redis: Redis) -> None:
    agents = LiveAgents(redis)
    one = pb.Agent(agent_id="one", capabilities=[pb.Capability(name="x")])
    lease, revision = await agents.register(one, 5)
    one.current_load = 0.25
    assert await agents.beat(one, lease, 5) == revision
    assert await agents.beat(one, lease, 5, changed=True) == revision + 1
    assert await agents.beat(one, "another", 5) is None
    (listed,), _ = await agents.list(["x"])
    assert (listed.current_load, listed.revision) == (0.25, revision + 1)
    assert (await agents.list(["y"]))[0] == []
    assert await agents.leave("one", "another") is None
    assert await agents.leave("one", lease) == revision + 2
    assert await agents.leave("one") is None
