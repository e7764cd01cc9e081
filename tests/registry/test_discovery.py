"""Finding agents: pages, filters, order, choice and figures."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from redis.asyncio import Redis

from bxmesh.registry.v1 import agent_pb2 as pb
from bxmesh.registry.v1 import discovery_pb2 as discovery
from bxmesh.server.live_agents import LiveAgents
from tests.registry.mesh import ALICE, refused, registry


async def enter(redis: Redis, agent_id: str, *capabilities: str, **fields: Any) -> None:
    agent = pb.Agent(
        agent_id=agent_id,
        agent_type=fields.pop("agent_type", "test.agent"),
        capabilities=[pb.Capability(name=name) for name in capabilities],
        max_concurrent_tasks=fields.pop("slots", 10),
        status=fields.pop("status", pb.AGENT_STATUS_ACTIVE),
        **fields,
    )
    await LiveAgents(redis).register(agent, 60)


def needs(*capabilities: str, **fields: Any) -> pb.AgentFilter:
    return pb.AgentFilter(capabilities=capabilities, **fields)


async def test_pages_hold_every_agent_once(redis: Redis) -> None:
    for number in range(7):
        await enter(redis, f"a{number}", agent_type="odd" if number % 2 else "even")
    async with registry(redis) as mesh:
        request = pb.ListAgentsRequest(page_size=2, filter=pb.AgentFilter(agent_type="even"))
        names = []
        pages = 0
        while True:
            response = await mesh.stub.ListAgents(request, metadata=ALICE)
            names += [agent.agent_id for agent in response.agents]
            pages += 1
            if not response.next_page_token:
                break
            request.page_token = response.next_page_token
        assert (names, pages, response.revision) == (["a0", "a2", "a4", "a6"], 2, 7)
        assert request.page_token
        request.filter.agent_type = "odd"
        for token in (request.page_token, "x", ":", "é:a"):
            request.page_token = token
            with refused("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID"):
                await mesh.stub.ListAgents(request, metadata=ALICE)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (needs("a"), ["idle", "half"]),
        (needs("a", "b"), ["half"]),
        (needs("a", agent_type="special"), ["half"]),
        (needs("a", version="2"), ["half"]),
        (needs("a", metadata={"host": "h", "x": "y"}), ["half"]),
        (needs("a", metadata={"host": "h", "x": "z"}), []),
        (
            needs("a", statuses=[pb.AGENT_STATUS_BUSY, pb.AGENT_STATUS_ACTIVE]),
            ["idle", "half", "full"],
        ),
        (needs("a", statuses=[pb.AGENT_STATUS_DRAINING]), ["leaving"]),
        (needs(), ["idle", "half", "other"]),
    ],
)
async def test_discovery_finds_what_fits_best_first(
    redis: Redis, wanted: pb.AgentFilter, found: list[str]
) -> None:
    await enter(redis, "full", "a", status=pb.AGENT_STATUS_BUSY, active_tasks=10)
    await enter(
        redis,
        "half",
        "a",
        "b",
        agent_type="special",
        version="2",
        metadata={"host": "h", "x": "y"},
        current_load=0.5,
    )
    await enter(redis, "idle", "a")
    await enter(redis, "leaving", "a", status=pb.AGENT_STATUS_DRAINING)
    await enter(redis, "other", slots=2)
    async with registry(redis) as mesh:
        request = discovery.DiscoverAgentsRequest(filter=wanted)
        response = await mesh.stub.DiscoverAgents(request, metadata=ALICE)
        assert [agent.agent_id for agent in response.agents] == found
        assert response.total_size == len(found)
        request.max_agents = 1
        response = await mesh.stub.DiscoverAgents(request, metadata=ALICE)
        assert [agent.agent_id for agent in response.agents] == found[:1]
        assert (response.total_size, response.revision) == (len(found), 5)


async def test_discovery_names_what_nobody_offers(redis: Redis) -> None:
    await enter(redis, "leaving", "a", status=pb.AGENT_STATUS_DRAINING)
    async with registry(redis) as mesh:
        request = discovery.DiscoverAgentsRequest(filter=needs("a", "b", "c"))
        response = await mesh.stub.DiscoverAgents(request, metadata=ALICE)
        assert (list(response.agents), response.missing_capabilities) == ([], ["b", "c"])
        select = discovery.SelectAgentRequest(filter=needs("a", "b", "c"))
        with refused("NOT_FOUND", "NO_AGENT_FITS") as errors:
            await mesh.stub.SelectAgent(select, metadata=ALICE)
        assert errors[0].metadata["missing_capabilities"] == "b,c"
        with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
            await mesh.stub.SelectAgent(discovery.SelectAgentRequest(), metadata=ALICE)


async def test_work_goes_to_the_less_loaded_of_two(redis: Redis) -> None:
    for name, load in (("a", 0.1), ("b", 0.5), ("c", 0.9)):
        await enter(redis, name, "x", current_load=load)
    await enter(redis, "full", "x", active_tasks=10)
    async with registry(redis) as mesh:
        request = discovery.SelectAgentRequest(filter=needs("x"))
        chosen = Counter()
        for _ in range(200):
            response = await mesh.stub.SelectAgent(request, metadata=ALICE)
            assert not response.sticky
            chosen[response.agent.agent_id] += 1
        # The most loaded of three never wins against either of the others.
        assert set(chosen) == {"a", "b"}
        assert chosen["a"] > chosen["b"]
        request.exclude_agent_ids.extend(["a", "b"])
        assert (await mesh.stub.SelectAgent(request, metadata=ALICE)).agent.agent_id == "c"
        request.exclude_agent_ids.append("c")
        with refused("UNAVAILABLE", "AGENTS_BUSY") as errors:
            await mesh.stub.SelectAgent(request, metadata=ALICE)
        assert errors[0].retry_after


async def test_sticky_key_stays_with_its_owner(redis: Redis) -> None:
    names = [f"a{number}" for number in range(8)]
    for name in names:
        await enter(redis, name, "x")
    async with registry(redis) as mesh:

        async def owner(key: str) -> tuple[str, bool]:
            request = discovery.SelectAgentRequest(filter=needs("x"), sticky_key=key)
            response = await mesh.stub.SelectAgent(request, metadata=ALICE)
            return response.agent.agent_id, response.sticky

        owners = {key: await owner(key) for key in map(str, range(64))}
        assert all(sticky for _, sticky in owners.values())
        assert {name for name, _ in owners.values()} == set(names)
        taken = owners["0"][0]
        await enter(redis, taken, "x", active_tasks=10)
        spilled, sticky = await owner("0")
        assert spilled != taken
        assert not sticky
        await LiveAgents(redis).leave(taken)
        for key, (name, _) in owners.items():
            assert (await owner(key))[1]
            assert name == taken or (await owner(key))[0] == name
        assert (await owner("0"))[0] == spilled


async def test_figures(redis: Redis) -> None:
    await enter(redis, "one", "x", "y", slots=10, current_load=0.9, active_tasks=9)
    await enter(redis, "two", "x", slots=4, agent_type="other", status=pb.AGENT_STATUS_BUSY)
    await enter(redis, "three", slots=4, status=pb.AGENT_STATUS_DRAINING)
    async with registry(redis) as mesh:
        request = discovery.GetRegistryStatsRequest()
        stats = await mesh.stub.GetRegistryStats(request, metadata=ALICE)
        assert (
            stats.total_agents,
            stats.active_agents,
            stats.busy_agents,
            stats.draining_agents,
        ) == (3, 1, 1, 1)
        assert stats.average_load == pytest.approx(0.3)
        assert (stats.active_tasks, dict(stats.agents_by_type)) == (
            9,
            {"test.agent": 2, "other": 1},
        )
        x, y = stats.capabilities
        assert (x.capability, x.agents, x.active_agents, x.total_slots, x.free_slots) == (
            ("x", 2, 1, 14, 1)
        )
        assert x.average_load == pytest.approx(0.45)
        assert (y.capability, y.agents) == ("y", 1)
        request.filter.agent_type = "other"
        assert (await mesh.stub.GetRegistryStats(request, metadata=ALICE)).total_agents == 1
