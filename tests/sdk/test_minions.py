"""Minions: agents made of tools."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import pytest

from bxmesh.client import (
    AsyncMesh,
    InvalidInput,
    Minion,
    Supervisor,
    TaskContext,
    tool,
)
from bxmesh.client.agents import BlockingTaskContext, TaskCancelled
from bxmesh.client.agents.offers import offers
from bxmesh.server.embedded import EmbeddedMesh
from tests.processes import until
from tests.sdk.agents import name, soon
from tests.sdk.minions import Gate, Total, told, weigh


@pytest.fixture
def kind() -> str:
    return name("kind").replace("-", "_")


def thread_name() -> str:
    return threading.current_thread().name


async def test_tools_run_and_say_what_they_take(mesh: AsyncMesh, kind: str) -> None:
    supervisor = Supervisor(mesh)
    tools = {f"{kind}.weigh": weigh, f"{kind}.thread": thread_name}
    async with Minion(name("minion"), tools, version="2.1").running(mesh) as minion:
        work = await supervisor.assign(
            f"{kind}.weigh",
            {"atoms": [{"element": "C"}, {"element": "N", "occupancy": 0.5}]},
            result=Total,
        )
        assert await soon(work) == Total(total=1.5)
        assert await soon(await supervisor.assign(f"{kind}.thread")) == f"{minion.agent_id}_0"
        (offer,) = await offers(mesh, [f"{kind}.weigh"], {})
        assert offer.description == "Adds occupancies up."
        assert set(offer.arguments["properties"]) == {"atoms", "scale"}
        assert offer.arguments["required"] == ["atoms"]
        with pytest.raises(InvalidInput) as refused:
            await supervisor.assign(f"{kind}.weigh", {"atoms": [], "colour": "blue"})
        assert refused.value.reason == "SCHEMA_MISMATCH"
        state = await told(mesh, minion, done=2, status="idle")
        assert (state.version, state.failed, state.load) == ("2.1", 0, 0)
        assert set(state.seconds) == set(tools)
        assert state.seconds[f"{kind}.weigh"].count == 1


async def test_tools_as_methods_and_marked_functions(mesh: AsyncMesh, kind: str) -> None:
    class Weigher(Minion):
        factor = 2.0

        @tool(f"{kind}.twice", description="Doubles.", timeout=60)
        async def twice(self, number: float) -> float:
            return self.factor * number

    @tool(f"{kind}.half")
    def half(number: float) -> float:
        return number / 2

    async with Weigher(name("weigher"), [half]).running(mesh):
        for word, result in (("twice", 6.0), ("half", 1.5)):
            work = await Supervisor(mesh).assign(f"{kind}.{word}", {"number": 3})
            assert await soon(work) == result
        assert (await offers(mesh, [f"{kind}.twice"], {}))[0].description == "Doubles."


def test_what_makes_no_tool() -> None:
    async def positional(one: int, /) -> None: ...

    async def waits(context: BlockingTaskContext) -> None: ...

    def threaded(context: TaskContext) -> None: ...

    def shapeless(what: threading.Thread) -> None: ...

    for function, says in (
        (positional, "by keywords"),
        (waits, "as TaskContext"),
        (threaded, "as BlockingTaskContext"),
        (shapeless, "make no schema"),
        (print, "by keywords"),
        (Gate(), "no function"),
    ):
        with pytest.raises(TypeError, match=says):
            Minion("minion", {"some.tool": function})
    with pytest.raises(TypeError, match="by capability"):
        Minion("minion", [thread_name])


async def test_cancellation_reaches_coroutines_and_threads(mesh: AsyncMesh, kind: str) -> None:
    gate, begun, ended = Gate(), threading.Event(), threading.Event()

    def work_on(context: BlockingTaskContext, steps: int) -> None:
        try:
            for step in range(steps):
                context.progress(step / steps * 100)
                begun.set()
                time.sleep(0.02)
        finally:
            ended.set()

    tools = {f"{kind}.wait": gate.wait, f"{kind}.work": work_on}
    async with Minion(name("minion"), tools).running(mesh) as minion:
        for word, parameters in (("wait", None), ("work", {"steps": 3000})):
            work = await Supervisor(mesh).assign(f"{kind}.{word}", parameters)
            await until(lambda: begun.is_set() or not gate.begun.empty())
            await work.cancel("changed my mind")
            with pytest.raises(TaskCancelled):
                await soon(work)
            begun.clear()
            while not gate.begun.empty():
                gate.begun.get_nowait()
        assert await soon(gate.ended.get()) == "cancelled"
        assert await asyncio.to_thread(ended.wait, 30)
        await told(mesh, minion, cancelled=2, done=0, failed=0, status="idle")


async def test_threads_do_not_hold_up_heartbeats(mesh: AsyncMesh, kind: str) -> None:
    def sleep(seconds: float) -> None:
        time.sleep(seconds)

    minion = Minion(name("minion"), {f"{kind}.sleep": sleep}, lease_seconds=1)
    async with minion.running(mesh):
        works = [await Supervisor(mesh).assign(f"{kind}.sleep", {"seconds": 3}) for _ in range(3)]
        began = time.monotonic()
        await soon(Supervisor(mesh).gather(works))
        assert time.monotonic() - began < 6
        assert [work.task.attempts for work in works] == [1, 1, 1]
        assert minion.get_stats().registrations == 1


async def test_another_takes_over_from_one_that_was_killed(
    mesh: AsyncMesh, shared_server: EmbeddedMesh, kind: str
) -> None:
    agent_id, gate = name("victim"), Gate()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import asyncio\n"
        "from bxmesh.client import Minion\n"
        "async def wait() -> None: await asyncio.Event().wait()\n"
        f"asyncio.run(Minion({agent_id!r}, {{{f'{kind}.wait'!r}: wait}}, lease_seconds=1).run())",
        env={"BXMESH_STATE_DIR": str(shared_server.state_dir)},
    )
    try:
        work = await Supervisor(mesh).assign(f"{kind}.wait")

        async def working() -> bool:
            found = await Supervisor(mesh).minions(f"{kind}.wait")
            return [one.status for one in found] == ["working"]

        await until(working)
        async with Minion(name("heir"), {f"{kind}.wait": gate.wait}).running(mesh) as heir:
            gate.go.set()
            process.kill()
            assert await soon(work) == "went"
            assert (work.task.agent_id, work.task.attempts) == (heir.agent_id, 2)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
