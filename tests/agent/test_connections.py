"""Connections of agents: lost, taken up again, shared, drained, replaced, watched."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from bxmesh.agent.v1 import delivery_pb2
from bxmesh.registry.v1 import agent_pb2
from tests.agent.mesh import ALICE, Mesh, agents, refused
from tests.processes import until


async def test_hello_comes_first_and_once(mesh: Mesh) -> None:
    call = mesh.stub.Connect(metadata=ALICE)
    await call.write(delivery_pb2.ConnectRequest(credit=delivery_pb2.Credit(deliveries=1)))
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
        await call.read()
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
        async with mesh.connected("bob") as bob:
            hello = delivery_pb2.Hello(agent_id="bob", lease_id=bob.lease_id)
            await bob.say(hello=hello)
            await bob.ended()


async def test_only_under_a_lease(mesh: Mesh) -> None:
    with refused("FAILED_PRECONDITION", "AGENT_NOT_REGISTERED"):
        async with mesh.connected("bob", lease_id="none"):
            pass
    other = await mesh.register("other")
    with refused("FAILED_PRECONDITION", "AGENT_NOT_REGISTERED"):
        async with mesh.connected("bob", lease_id=other):
            pass


async def test_a_lost_connection_gets_again_what_it_had_not_answered(mesh: Mesh) -> None:
    lease = await mesh.register("bob")
    for number in range(3):
        await mesh.send(recipient="bob", json=str(number))
    async with mesh.connected("bob", lease_id=lease, connection_id="c", initial_credit=3) as bob:
        first = [await bob.delivery() for _ in range(3)]
        await bob.answer(first[0])
    async with mesh.connected(
        "bob",
        lease_id=lease,
        connection_id="c",
        initial_credit=3,
        held_delivery_ids=[first[1].delivery_id, "2:1-1"],
    ) as bob:
        assert list(bob.welcome.lost_delivery_ids) == ["2:1-1"]
        again = await bob.delivery()
        assert again.delivery_id == first[2].delivery_id
        assert again.attempt == 2
        # What it said it still works on is not delivered, and can be answered.
        assert (await bob.answer(first[1])).status.code == 0
        assert (await bob.answer(again)).status.code == 0


async def test_what_nobody_extends_is_delivered_again(redis: Any, shared_valkey: str) -> None:
    async with agents(shared_valkey, delivery_lease=1) as mesh:
        async with mesh.connected("bob", initial_credit=2) as bob:
            await mesh.send(recipient="bob")
            first = await bob.delivery()
            again = await bob.delivery()
            assert again.envelope.message_id == first.envelope.message_id
            assert again.attempt == 2
            late = await bob.answer(first)
            assert late.status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
            assert (await bob.answer(again)).status.code == 0
        assert await mesh.redis.hget("bxmesh:{work:agents}:figures:bob", "redelivered") == b"1"


async def test_what_is_extended_is_not(redis: Any, shared_valkey: str) -> None:
    async with agents(shared_valkey, delivery_lease=1) as mesh:
        async with mesh.connected("bob", initial_credit=2) as bob:
            await mesh.send(recipient="bob")
            delivery = await bob.delivery()
            for _ in range(6):
                await asyncio.sleep(0.3)
                await bob.say(extend=delivery_pb2.Extend())
                settled = await bob.settled()
                assert settled.delivery_id == delivery.delivery_id
                assert settled.status.code == 0
            assert (await bob.answer(delivery)).status.code == 0


async def test_two_connections_share_a_mailbox(mesh: Mesh) -> None:
    lease = await mesh.register("bob")
    async with (
        mesh.connected("bob", lease_id=lease, initial_credit=2) as one,
        mesh.connected("bob", lease_id=lease, initial_credit=2) as two,
    ):
        for number in range(4):
            await mesh.send(recipient="bob", json=str(number))
        got = [await link.delivery() for link in (one, one, two, two)]
        assert sorted(d.envelope.payload.json.json for d in got) == ["0", "1", "2", "3"]


async def test_types_go_to_the_connection_that_handles_them(mesh: Mesh) -> None:
    lease = await mesh.register("bob")
    async with (
        mesh.connected("bob", lease_id=lease, message_types=["a"], initial_credit=9) as one,
        mesh.connected("bob", lease_id=lease, message_types=["b.*"], initial_credit=9) as two,
    ):
        for kind in ("a", "b.x", "a", "b.y"):
            await mesh.send(recipient="bob", message_type=kind)
        assert [(await one.delivery()).envelope.message_type for _ in range(2)] == ["a", "a"]
        both = {(await two.delivery()).envelope.message_type for _ in range(2)}
        assert both == {"b.x", "b.y"}


async def test_draining_finishes_what_was_begun_and_takes_nothing_new(mesh: Mesh) -> None:
    lease = await mesh.register("bob")
    async with mesh.connected("bob", lease_id=lease, initial_credit=5) as bob:
        for number in "12":
            await mesh.send(recipient="bob", json=number)
        first, second = await bob.delivery(), await bob.delivery()
        await bob.say(drain=delivery_pb2.Drain())
        # Once this is settled, what was said before it has been heard.
        assert (await bob.answer(first)).status.code == 0
        await mesh.send(recipient="bob", json="3")
        assert (await bob.answer(second)).status.code == 0
        await bob.ended()
    async with mesh.connected("bob", lease_id=lease) as bob:
        assert (await bob.delivery()).envelope.payload.json.json == "3"


async def test_a_restarted_process_gets_at_once_what_the_old_one_held(mesh: Mesh) -> None:
    async with mesh.connected("bob", initial_credit=5) as old:
        await mesh.send(recipient="bob")
        first = await old.delivery()
        lease = await mesh.register("bob")
        with refused("FAILED_PRECONDITION", "LEASE_LOST"):
            await old.ended()
        async with mesh.connected("bob", lease_id=lease) as new:
            again = await new.delivery()
            assert again.envelope.message_id == first.envelope.message_id
            assert again.attempt == 2


async def test_the_connection_ends_with_the_lease(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob:
        await mesh.registry.DeregisterAgent(
            agent_pb2.DeregisterAgentRequest(agent_id="bob", lease_id=bob.lease_id),
            metadata=ALICE,
        )
        with refused("FAILED_PRECONDITION", "LEASE_LOST"):
            await bob.ended()


async def test_a_stopping_server_says_so_and_another_takes_over(
    redis: Any, shared_valkey: str
) -> None:
    async with agents(shared_valkey) as other:
        async with agents(shared_valkey) as mesh:
            lease = await mesh.register("bob")
            await mesh.send(recipient="bob")
            async with mesh.connected("bob", lease_id=lease, connection_id="c") as bob:
                delivery = await bob.delivery()
                mesh.service.drain()
                with refused("UNAVAILABLE", "SERVER_STOPPING"):
                    await bob.ended()
        async with other.connected(
            "bob", lease_id=lease, connection_id="c", held_delivery_ids=[delivery.delivery_id]
        ) as bob:
            assert not bob.welcome.lost_delivery_ids
            assert (await bob.answer(delivery)).status.code == 0


async def test_messages_cross_servers(redis: Any, shared_valkey: str) -> None:
    async with agents(shared_valkey) as here, agents(shared_valkey) as there:
        async with there.connected("bob", initial_credit=5) as bob:
            await here.send(recipient="bob", json="1")
            assert (await bob.delivery()).envelope.payload.json.json == "1"
            sent = await here.send(recipient="bob", delivery_mode=1, json="2")
            assert sent.receivers == 1
            assert (await bob.delivery()).envelope.payload.json.json == "2"


async def test_nothing_is_left_of_a_connection(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob:
        await mesh.send(recipient="bob")
        await bob.answer(await bob.delivery())
    connections = mesh.service.mesh.connections

    async def is_forgotten() -> bool:
        names = "bxmesh:{work:agents}:attached:bob", "bxmesh:{work:agents}:connections:bob"
        return not connections.of("bob") and not await mesh.redis.exists(*names)

    await until(is_forgotten)
    consumers = await mesh.redis.xinfo_consumers("bxmesh:{work:agents}:inbox:bob:2", "workers")
    assert consumers == []


async def test_a_connection_that_is_attached_anew_ends_its_earlier_stream(mesh: Mesh) -> None:
    lease = await mesh.register("bob")
    async with mesh.connected("bob", lease_id=lease, connection_id="c") as old:
        await mesh.send(recipient="bob")
        first = await old.delivery()
        async with mesh.connected("bob", lease_id=lease, connection_id="c") as new:
            with refused("ABORTED", "CONNECTION_REPLACED"):
                await old.ended()
            assert (await new.delivery()).delivery_id == first.delivery_id


async def test_a_drain_while_the_mailbox_is_empty_ends_the_stream(mesh: Mesh) -> None:
    for _ in range(20):
        async with mesh.connected("bob", initial_credit=5) as bob:
            await mesh.send(recipient="bob")
            delivery = await bob.delivery()
            await bob.say(drain=delivery_pb2.Drain())
            await bob.answer(delivery)
            await bob.ended()
