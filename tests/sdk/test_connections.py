"""Agents whose servers, leases and processes come and go."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from bxmesh.client import AsyncMesh, FailedPrecondition, NotFound, Timeouts, Unauthenticated
from bxmesh.server.embedded import EmbeddedMesh
from tests.processes import until
from tests.sdk.agents import Greeting, Recorder, Worker, name, soon
from tests.sdk.conftest import client


async def restart(server: EmbeddedMesh, *, kill: bool) -> None:
    """Ends the server and starts it again, on the same state."""
    await asyncio.to_thread(server.kill if kill else server.stop)
    await asyncio.to_thread(server.start)


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_an_agent_outlives_a_restart_of_the_server(
    lone: AsyncMesh, lone_server: EmbeddedMesh, kill: bool
) -> None:
    async with Worker().running(lone) as bob, Recorder().running(lone) as alice:
        await alice.send(bob.agent_id, "wait.over_the_restart")
        await soon(bob.begun.get())
        await restart(lone_server, kill=kill)
        await until(lambda: bob.get_stats().attachments == 2)
        # What it held was not delivered again, and its answer counts.
        bob.go.set()
        assert (await alice.next()).type == "waited"
        assert (bob.begun.empty(), bob.get_stats().received) == (True, 1)
        reply = await alice.request(bob.agent_id, "greeting.request", Greeting(text="hi"))
        assert reply.payload == {"text": "hi to you"}
        assert {one.agent_id for one in await lone.agents()} == {alice.agent_id, bob.agent_id}


async def test_an_answer_given_while_the_server_is_away_counts(
    lone: AsyncMesh, lone_server: EmbeddedMesh
) -> None:
    async with Worker().running(lone) as bob, Recorder().running(lone) as alice:
        await alice.send(bob.agent_id, "wait.over_the_restart")
        await soon(bob.begun.get())
        await asyncio.to_thread(lone_server.kill)
        bob.go.set()
        assert await soon(bob.ended.get()) == "done"
        await asyncio.to_thread(lone_server.start)
        assert (await alice.next()).type == "waited"
        await until(lambda: bob.get_stats().in_flight == 0)
        assert bob.get_stats().received == 1


async def test_an_agent_that_lost_its_lease_registers_again(mesh: AsyncMesh) -> None:
    async with Worker(lease_seconds=3).running(mesh) as bob:
        await deregister(mesh, bob.agent_id)
        await until(lambda: bob.get_stats().registrations == 2)
        await until(lambda: bob.get_stats().attachments == 2)
        reply = await mesh.request(bob.agent_id, "greeting.request", Greeting(text="hi"))
        assert reply.payload == {"text": "hi to you"}


async def deregister(mesh: AsyncMesh, agent_id: str) -> None:
    from bxmesh.registry.v1.agent_pb2 import DeregisterAgentRequest

    connection = mesh._connection
    request = DeregisterAgentRequest(agent_id=agent_id, reason="a test")
    await connection.unary(connection.registry.DeregisterAgent, request)


async def test_a_successor_takes_over(mesh: AsyncMesh) -> None:
    agent_id = name("twice")
    first = Worker(agent_id)
    running = asyncio.create_task(first.run(mesh))
    await until(lambda: first.get_stats().attachments == 1)
    await mesh.send(agent_id, "wait.for_the_second")
    await soon(first.begun.get())
    async with Worker(agent_id).running(mesh) as second:
        with pytest.raises(FailedPrecondition) as raised:
            await soon(running)
        assert raised.value.reason == "AGENT_REPLACED"
        assert await soon(first.ended.get()) == "cancelled"
        # What the first had not answered is the second's now.
        assert (await soon(second.begun.get())).type == "wait.for_the_second"
        second.go.set()
        assert await soon(second.ended.get()) == "done"


async def test_stopping_finishes_what_was_begun(mesh: AsyncMesh) -> None:
    bob = Worker(concurrency=1)
    async with Recorder().running(mesh) as alice:
        async with bob.running(mesh):
            await alice.send(bob.agent_id, "wait.first")
            await alice.send(bob.agent_id, "wait.second")
            await soon(bob.begun.get())
            bob.stop()

            async def draining() -> bool:
                return (await mesh.agent(bob.agent_id)).status == "draining"

            await until(draining)
            bob.go.set()
        # The first was answered, the second not begun, and the agent has left.
        assert (await alice.next()).type == "waited"
        assert bob.begun.empty()
        assert bob.get_stats().received == 1
        with pytest.raises(NotFound):
            await mesh.agent(bob.agent_id)
        async with Worker(bob.agent_id).running(mesh) as again:
            assert (await soon(again.begun.get())).type == "wait.second"
            again.go.set()


async def test_what_does_not_end_in_time_comes_again(mesh: AsyncMesh) -> None:
    bob = Worker(drain_seconds=0.1)
    async with bob.running(mesh):
        await mesh.send(bob.agent_id, "wait.too_long")
        await mesh.send(bob.agent_id, "wait.direct", mode="direct")
        for _ in range(2):
            await soon(bob.begun.get())
    assert [await soon(bob.ended.get()) for _ in range(2)] == ["cancelled", "cancelled"]
    assert bob.get_stats().in_flight == 0
    async with Worker(bob.agent_id).running(mesh) as again:
        message = await soon(again.begun.get())
        assert (message.type, message.attempt) == ("wait.too_long", 2)
        again.go.set()


async def test_hooks(mesh: AsyncMesh) -> None:
    class Hooked(Recorder):
        def __init__(self) -> None:
            super().__init__(metadata={"colour": "blue"})
            self.told: list[str] = []

        async def on_start(self) -> None:
            self.told.append((await self.mesh.agent(self.agent_id)).status)

        async def on_stop(self) -> None:
            self.told.append((await self.mesh.agent(self.agent_id)).status)

        def get_metadata(self) -> dict[str, str]:
            return {"got": str(self.get_stats().received)}

    hooked = Hooked()
    async with hooked.running(mesh):
        await mesh.send(hooked.agent_id, "x")
        await hooked.next()

        async def told() -> bool:
            return (await mesh.agent(hooked.agent_id)).metadata == {"colour": "blue", "got": "1"}

        await until(told)
        assert hooked.told == ["active"]
        with pytest.raises(Exception, match="running already"):
            await hooked.run(mesh)
    assert len(hooked.told) == 2
    with pytest.raises(Exception, match="not running"):
        await hooked.send("x", "y")


async def test_a_start_that_fails_leaves_nothing(mesh: AsyncMesh) -> None:
    class Broken(Recorder):
        async def on_start(self) -> None:
            raise RuntimeError("no database")

    broken = Broken()
    with pytest.raises(RuntimeError, match="no database"):
        await broken.run(mesh)
    with pytest.raises(NotFound):
        await mesh.agent(broken.agent_id)


async def test_who_may_not_is_told_at_once(shared_server: EmbeddedMesh) -> None:
    async with AsyncMesh(shared_server.address, api_key="bxm_wrong") as stranger:
        with pytest.raises(Unauthenticated):
            await soon(Recorder().run(stranger))


async def test_nobody_at_the_address(tmp_path: Path) -> None:
    timeouts = Timeouts(reconnect=0.2)
    async with AsyncMesh(f"unix:{tmp_path}/nobody", timeouts=timeouts, retries=0) as nowhere:
        with pytest.raises(Exception, match="UNAVAILABLE"):
            await soon(Recorder().run(nowhere))


PROGRAM = """
import asyncio, sys
from bxmesh.client import Agent, Message, on

class Waiter(Agent):
    @on("wait")
    async def wait(self, message: Message) -> None:
        await self.send(message.sender, "begun")
        await self.request(message.sender, "may.i", timeout=60)
        await message.reply("done")

    async def on_stop(self) -> None:
        print("stopped", self.get_stats().handled)

asyncio.run(Waiter(sys.argv[1]).run())
"""


class Gate(Worker):
    async def on_message(self, message: object) -> None:
        self.begun.put_nowait(message)  # type: ignore[arg-type]


async def test_sigterm_drains_a_process(mesh: AsyncMesh, shared_server: EmbeddedMesh) -> None:
    agent_id = name("process")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        agent_id,
        stdout=asyncio.subprocess.PIPE,
        env={"BXMESH_STATE_DIR": str(shared_server.state_dir)},
    )
    try:
        gate = Gate()

        async def there() -> bool:
            return agent_id in {one.agent_id for one in await mesh.agents()}

        async with gate.running(mesh):
            await until(there)
            await gate.send(agent_id, "wait")
            assert (await soon(gate.begun.get())).type == "begun"
            question = await soon(gate.begun.get())
            process.send_signal(signal.SIGTERM)

            async def draining() -> bool:
                return (await mesh.agent(agent_id)).status == "draining"

            await until(draining)
            # The process waits in its handler for this answer, and finishes.
            await mesh.send(
                agent_id,
                "you.may",
                sender=gate.agent_id,
                correlation_id=question.id,
            )
            assert (await soon(gate.begun.get())).type == "done"
            output, _ = await soon(process.communicate())
        assert (process.returncode, output.decode().split()) == (0, ["stopped", "1"])
        with pytest.raises(NotFound):
            await mesh.agent(agent_id)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_two_meshes_in_one_process(
    lone_server: EmbeddedMesh, shared_server: EmbeddedMesh
) -> None:
    agent_id = name("bob")
    async with client(lone_server) as one, client(shared_server) as other:
        async with Recorder(agent_id).running(one) as here, Recorder(agent_id).running(other):
            await one.send(agent_id, "x")
            assert (await here.next()).type == "x"


async def test_an_agent_without_a_mesh_says_so_and_can_be_stopped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bob = Worker()
    async with AsyncMesh(f"unix:{tmp_path / 'nobody'}", retries=0) as nowhere:
        running = asyncio.create_task(bob.run(nowhere))
        await until(lambda: f"{bob.agent_id} waits for the mesh" in caplog.text)
        assert "is `bxmesh serve` running?" in caplog.text
        bob.stop()
        await soon(running)
