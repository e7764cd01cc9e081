"""Watching who comes, changes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from redis.asyncio import Redis

from bxmesh.registry.v1 import agent_pb2 as pb
from bxmesh.registry.v1 import discovery_pb2 as discovery
from bxmesh.server.live_agent_scripts import EVENTS
from bxmesh.server.live_agents import AgentChange, LiveAgents
from bxmesh.server.registry.watch import Watch
from bxmesh.server.streams import connect
from tests.conftest import start_valkey
from tests.processes import until
from tests.registry.mesh import ALICE, Mesh, refused, registration, registry

JOINED = discovery.AGENT_EVENT_KIND_JOINED
CHANGED = discovery.AGENT_EVENT_KIND_CHANGED
LEFT = discovery.AGENT_EVENT_KIND_LEFT


class Watching:
    def __init__(self, call: Any) -> None:
        self._call = call
        self._events: list[discovery.AgentEvent] = []
        self.revision = 0
        self.complete = 0

    async def message(self) -> None:
        async with asyncio.timeout(10):
            response = await self._call.read()
        assert response is not grpc.aio.EOF
        self._events.extend(response.events)
        self.complete += response.snapshot_complete
        assert response.revision >= self.revision
        self.revision = response.revision

    async def event(self) -> discovery.AgentEvent:
        while not self._events:
            await self.message()
        return self._events.pop(0)


@asynccontextmanager
async def watching(mesh: Mesh, after: int = 0, **fields: Any) -> AsyncIterator[Watching]:
    call = mesh.stub.WatchAgents(
        discovery.WatchAgentsRequest(after_revision=after, **fields), metadata=ALICE
    )
    try:
        yield Watching(call)
    finally:
        call.cancel()


def agent(agent_id: str, **fields: Any) -> pb.Agent:
    fields.setdefault("status", pb.AGENT_STATUS_ACTIVE)
    return pb.Agent(agent_id=agent_id, max_concurrent_tasks=10, lease_ttl_seconds=60, **fields)


async def test_watch_tells_of_joins_changes_and_leaves(redis: Redis) -> None:
    async with registry(redis) as mesh:
        await mesh.stub.RegisterAgent(registration("one"), metadata=ALICE)
        async with watching(mesh) as watch:
            event = await watch.event()
            assert (event.kind, event.agent.agent_id, event.revision) == (JOINED, "one", 1)
            assert (watch.complete, watch.revision) == (1, 1)

            request = registration("two", lease_ttl_seconds=1, metadata={"k": "v"})
            two = await mesh.stub.RegisterAgent(request, metadata=ALICE)
            event = await watch.event()
            assert (event.kind, event.agent, event.revision) == (JOINED, two.agent, 2)
            assert event.event_time.seconds

            call = mesh.stub.KeepAlive(metadata=ALICE)
            await call.write(
                pb.KeepAliveRequest(lease_id=two.lease_id, status=pb.AGENT_STATUS_DRAINING)
            )
            event = await watch.event()
            assert (event.kind, event.revision, event.agent.revision) == (CHANGED, 3, 3)
            assert event.agent.status == pb.AGENT_STATUS_DRAINING
            call.cancel()

            event = await watch.event()
            assert (event.kind, event.leave_reason, event.agent.agent_id) == (
                LEFT,
                discovery.LEAVE_REASON_LEASE_EXPIRED,
                "two",
            )
            assert (event.revision, event.agent.revision) == (4, 3)

            again = await mesh.stub.RegisterAgent(registration("one"), metadata=ALICE)
            left, joined = await watch.event(), await watch.event()
            assert (left.kind, left.leave_reason) == (LEFT, discovery.LEAVE_REASON_REPLACED)
            assert (joined.kind, joined.agent) == (JOINED, again.agent)

            await mesh.stub.DeregisterAgent(
                pb.DeregisterAgentRequest(
                    agent_id="one", lease_id=again.lease_id, reason="going home"
                ),
                metadata=ALICE,
            )
            event = await watch.event()
            assert (event.kind, event.leave_reason, event.message) == (
                LEFT,
                discovery.LEAVE_REASON_DEREGISTERED,
                "going home",
            )
            assert (watch.complete, watch.revision) == (1, 7)


async def test_watch_resumes_after_any_revision(redis: Redis) -> None:
    agents = LiveAgents(redis)
    for number in range(600):
        await agents.register(agent(f"a{number}"), 60)
    async with registry(redis) as mesh:
        for after in (1, 299, 600):
            async with watching(mesh, after) as watch:
                await watch.message()
                assert watch.complete == 1
                for revision in range(after + 1, 601):
                    assert (await watch.event()).revision == revision
        async with watching(mesh) as watch:
            names = {(await watch.event()).agent.agent_id for _ in range(600)}
            assert (len(names), watch.complete, watch.revision) == (600, 1, 600)


async def test_watch_from_what_is_not_kept_is_refused(redis: Redis) -> None:
    agents = LiveAgents(redis)
    for number in range(5):
        await agents.register(agent(f"a{number}"), 60)
    await redis.xtrim(EVENTS, maxlen=2, approximate=False)
    async with registry(redis) as mesh:
        for after in (1, 2, 99):
            with refused("OUT_OF_RANGE", "REVISION_COMPACTED"):
                async with watching(mesh, after) as watch:
                    await watch.message()
        async with watching(mesh, 3) as watch:
            assert [(await watch.event()).revision for _ in range(2)] == [4, 5]
        with refused("OUT_OF_RANGE", "REVISION_COMPACTED"):
            async with watching(mesh) as watch:
                await watch.message()
                await redis.flushall()
                await watch.message()


async def test_filtered_watch_tells_once_that_an_agent_ceases_to_fit(redis: Redis) -> None:
    agents = LiveAgents(redis)
    leases = {name: (await agents.register(agent(name), 60))[0] for name in ("one", "two")}
    async with registry(redis) as mesh:
        wanted = pb.AgentFilter(statuses=[pb.AGENT_STATUS_ACTIVE])
        async with watching(mesh, 2, filter=wanted) as watch:
            for status in (pb.AGENT_STATUS_BUSY, pb.AGENT_STATUS_DRAINING):
                one = agent("one", status=status)
                await agents.beat(one, leases["one"], 60, changed=True)
            await agents.leave("one")
            await agents.leave("two")
            event = await watch.event()
            assert (event.revision, event.kind, event.agent.status) == (
                3,
                CHANGED,
                pb.AGENT_STATUS_BUSY,
            )
            event = await watch.event()
            assert (event.revision, event.kind, event.agent.agent_id) == (6, LEFT, "two")


async def test_load_is_told_no_more_often_than_asked(redis: Redis) -> None:
    agents = LiveAgents(redis)
    lease, _ = await agents.register(agent("one"), 60)
    async with registry(redis) as mesh:
        async with watching(mesh, 1, min_interval=Duration(seconds=60)) as watch:
            for step in range(1, 6):
                busy = agent("one", current_load=step / 10)
                await agents.beat(busy, lease, 60, changed=True)
                if step == 1:
                    assert (await watch.event()).agent.current_load == 0.1
            await agents.beat(agent("one", version="2"), lease, 60, changed=True)
            assert (await watch.event()).revision == 7
        async with watching(mesh, 1, min_interval=Duration()) as watch:
            assert [(await watch.event()).revision for _ in range(6)] == [2, 3, 4, 5, 6, 7]


def test_held_back_load_is_told_in_time_and_may_be_resumed() -> None:
    def change(revision: int, load: float) -> AgentChange:
        before, after = agent("one"), agent("one", current_load=load, revision=revision)
        return AgentChange(revision, "change", after, before, "", 0)

    watch = Watch(pb.AgentFilter(), 1.0)
    assert [e.revision for e in watch.events([change(5, 0.1)], now=10.0)] == [5]
    assert watch.seconds_until_due(10.0) is None
    assert watch.events([change(6, 0.2), change(7, 0.3)], now=10.5) == []
    assert (watch.resumable(9), watch.seconds_until_due(10.5)) == (5, 0.5)
    (event,) = watch.events([], now=11.0)
    assert (event.revision, event.agent.current_load) == (7, 0.3)
    assert watch.resumable(9) == 9


async def test_streams_end_when_the_server_stops(redis: Redis) -> None:
    async with registry(redis) as mesh:
        beats = mesh.stub.KeepAlive(metadata=ALICE)
        await beats.write(pb.KeepAliveRequest(lease_id="none"))
        assert (await beats.read()).lease_ttl_seconds == 0
        async with watching(mesh) as watch:
            await watch.message()
            mesh.service.drain()
            with refused("UNAVAILABLE", "SERVER_STOPPING") as errors:
                await watch.message()
            assert errors[0].retry_after is not None
            with refused("UNAVAILABLE", "SERVER_STOPPING"):
                await beats.read()
        with refused("UNAVAILABLE", "SERVER_STOPPING"):
            async with watching(mesh) as watch:
                await watch.message()


async def test_watch_of_nobody_who_reads_ends(redis: Redis) -> None:
    agents = LiveAgents(redis)
    for number in range(300):
        await agents.register(agent(f"a{number}", metadata={"k": "v" * 1000}), 60)
    async with registry(redis, slow_consumer_seconds=0.2) as mesh:
        call = mesh.stub.WatchAgents(
            discovery.WatchAgentsRequest(after_revision=1, min_interval=Duration()), metadata=ALICE
        )
        await call.wait_for_connection()
        await until(lambda: len(mesh.service._streams) == 1)
        # How much there is on the way before anybody has to wait is gRPC's to decide.
        async with asyncio.timeout(60):
            while mesh.service._streams:
                for number in range(300):
                    await agents.register(agent(f"a{number}", metadata={"k": "v" * 1000}), 60)
        with refused("RESOURCE_EXHAUSTED", "SLOW_CONSUMER"):
            async with asyncio.timeout(20):
                async for response in call:
                    assert response.events


async def test_calls_fail_cleanly_while_redis_is_away(short_dir: Path) -> None:
    valkey = start_valkey(short_dir)
    redis = connect(f"unix://{short_dir}/valkey.sock")
    try:
        async with registry(redis) as mesh:
            request = registration("one", lease_ttl_seconds=60)
            lease = (await mesh.stub.RegisterAgent(request, metadata=ALICE)).lease_id
            beats = mesh.stub.KeepAlive(metadata=ALICE)
            async with watching(mesh) as watch:
                await watch.event()
                valkey.stop()
                with refused("UNAVAILABLE", "REDIS_UNAVAILABLE") as errors:
                    await mesh.stub.GetAgent(pb.GetAgentRequest(agent_id="one"), metadata=ALICE)
                assert errors[0].retry_after
                with refused("UNAVAILABLE", "REDIS_UNAVAILABLE"):
                    await watch.message()
                with refused("UNAVAILABLE", "REDIS_UNAVAILABLE"):
                    await beats.write(pb.KeepAliveRequest(lease_id=lease))
                    await beats.read()
            valkey = start_valkey(short_dir)
            async with watching(mesh, 1) as watch:
                await watch.message()
                await mesh.stub.RegisterAgent(registration("two"), metadata=ALICE)
                assert (await watch.event()).agent.agent_id == "two"
            beats = mesh.stub.KeepAlive(metadata=ALICE)
            await beats.write(pb.KeepAliveRequest(lease_id=lease))
            assert (await beats.read()).lease_ttl_seconds == 60
            beats.cancel()
    finally:
        await redis.aclose()
        valkey.stop()
