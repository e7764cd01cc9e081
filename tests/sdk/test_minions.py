"""Minions: agents made of tools, and how supervisors see them."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from bxmesh.client import (
    AsyncMesh,
    InvalidInput,
    Minion,
    MinionInfo,
    RetryPolicy,
    Supervisor,
    TaskContext,
    TaskFailed,
    tool,
)
from bxmesh.client.agents import BlockingTaskContext, MinionState, TaskCancelled
from bxmesh.client.agents.offers import offers
from bxmesh.server.embedded import EmbeddedMesh
from tests.processes import until
from tests.sdk.agents import name, soon

ONCE = RetryPolicy(max_attempts=1)


class Atom(BaseModel):
    element: str
    occupancy: Annotated[float, Field(ge=0, le=1)] = 1.0


class Total(BaseModel):
    total: float


async def weigh(atoms: list[Atom], scale: float = 1.0) -> Total:
    """Adds occupancies up.

    And says no more.
    """
    return Total(total=scale * sum(atom.occupancy for atom in atoms))


def thread_name() -> str:
    return threading.current_thread().name


async def fail(context: TaskContext, reason: str) -> None:
    if reason == "nothing":
        await mesh_of(context).task("no-such-task")
    raise ArithmeticError(reason)


def mesh_of(context: TaskContext) -> AsyncMesh:
    mesh = context._mesh
    assert isinstance(mesh, AsyncMesh)
    return mesh


class Gate:
    """Tools that wait until the test lets them."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        self.go = asyncio.Event()

    async def wait(self, context: TaskContext) -> str:
        await context.progress(25, "waits")
        self.begun.put_nowait(context.id)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.ended.put_nowait("cancelled")
            raise
        return "went"


@pytest.fixture
def kind() -> str:
    return name("kind").replace("-", "_")


async def info(mesh: AsyncMesh, minion: Minion) -> MinionInfo:
    """What a supervisor sees of one minion."""
    (found,) = [one for one in await Supervisor(mesh).minions() if one.agent_id == minion.agent_id]
    return found


async def told(mesh: AsyncMesh, minion: Minion, **fields: Any) -> MinionState:
    """The minion's state when it has these values."""
    state = MinionState()

    async def fits() -> bool:
        nonlocal state
        state = (await info(mesh, minion)).state
        return all(getattr(state, field) == value for field, value in fields.items())

    await until(fits)
    return state


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


async def test_supervisors_see_what_it_is_at(mesh: AsyncMesh, kind: str) -> None:
    gate, before = Gate(), datetime.now(UTC)
    minion = Minion(name("minion"), {f"{kind}.wait": gate.wait}, concurrency=4)
    async with minion.running(mesh):
        assert (await info(mesh, minion)).status == "idle"
        work = await Supervisor(mesh).assign(f"{kind}.wait")
        assert await soon(gate.begun.get()) == work.id
        state = await told(mesh, minion, status="working", load=0.25)
        (at,) = state.tasks
        assert (at.task_id, at.task_type) == (work.id, f"{kind}.wait")
        assert before < at.since < datetime.now(UTC)
        await until(lambda: percent(mesh, minion, 25))
        found = await Supervisor(mesh).minions(f"{kind}.wait")
        assert [one.agent_id for one in found] == [minion.agent_id]
        assert await Supervisor(mesh).minions(f"{kind}.other") == []
        minion.stop()
        await until(lambda: has_status(mesh, minion, "draining"))
        gate.go.set()
        assert await soon(work) == "went"
    state = MinionState.model_validate((await mesh.state(minion.agent_id)).value)
    assert (state.done, state.tasks) == (1, [])


async def percent(mesh: AsyncMesh, minion: Minion, wanted: float) -> bool:
    return [one.percent for one in (await info(mesh, minion)).state.tasks] == [wanted]


async def has_status(mesh: AsyncMesh, minion: Minion, wanted: str) -> bool:
    return (await info(mesh, minion)).state.status == wanted


async def test_failures_are_listed_and_outlive_a_restart(mesh: AsyncMesh, kind: str) -> None:
    supervisor, tools = Supervisor(mesh), {f"{kind}.fail": fail, f"{kind}.weigh": weigh}
    agent_id = name("minion")
    async with Minion(agent_id, tools).running(mesh) as minion:
        tasks = []
        for reason in [*map(str, range(11)), "nothing"]:
            work = await supervisor.assign(f"{kind}.fail", {"reason": reason}, retry=ONCE)
            with pytest.raises(TaskFailed):
                await soon(work)
            tasks.append(work.id)
        state = await told(mesh, minion, failed=12, status="idle")
        assert [error.task_id for error in state.errors] == tasks[-10:]
        assert {error.reason for error in state.errors[:-1]} == {"ARITHMETIC_ERROR"}
        assert state.errors[-1].reason == "TASK_NOT_FOUND"
    async with Minion(agent_id, tools).running(mesh) as minion:
        await soon(await supervisor.assign(f"{kind}.weigh", {"atoms": []}))
        state = await told(mesh, minion, failed=12, done=1)
        assert len(state.errors) == 10


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


async def test_many_tasks_are_spread_and_told_sparingly(mesh: AsyncMesh, kind: str) -> None:
    did: list[int] = []

    async def note(number: int) -> int:
        did.append(number)
        return number

    minions = [Minion(name("minion"), {f"{kind}.note": note}) for _ in range(3)]
    async with minions[0].running(mesh), minions[1].running(mesh), minions[2].running(mesh):
        began = time.monotonic()
        numbers = [{"number": number} for number in range(200)]
        results = await soon(Supervisor(mesh).map(f"{kind}.note", numbers), 60)
        took = time.monotonic() - began
        assert results == sorted(did) == list(range(200))
        for minion in minions:
            handled = minion.get_stats().handled
            assert handled > 20
            await told(mesh, minion, done=handled, status="idle")
            # One at the start, and at most two a second.
            assert (await mesh.state(minion.agent_id)).revision <= 2 * took + 4


async def test_minions_are_watched(mesh: AsyncMesh, kind: str) -> None:
    gate, seen = Gate(), list[tuple[str, str]]()
    events = Supervisor(mesh).watch_minions(f"{kind}.wait")
    async with aclosing(events), asyncio.timeout(60):
        async with Minion(name("minion"), {f"{kind}.wait": gate.wait}).running(mesh):
            work = await Supervisor(mesh).assign(f"{kind}.wait")
            async for event in events:
                seen.append((event.kind, event.minion.status))
                if event.minion.state.tasks:
                    gate.go.set()
                if event.minion.state.done:
                    break
            await work
        async for event in events:
            if event.kind == "left":
                break
    assert seen[0][0] == "joined"
    assert ("changed", "working") in seen or ("joined", "working") in seen
    assert {kind for kind, _ in seen[1:]} == {"changed"}


async def test_a_watch_outlives_a_restart(
    lone: AsyncMesh, lone_server: EmbeddedMesh, kind: str
) -> None:
    async with aclosing(Supervisor(lone).watch_minions()) as events, asyncio.timeout(90):
        async with Minion(name("minion"), {f"{kind}.weigh": weigh}).running(lone):
            assert (await anext(events)).kind == "joined"
            await asyncio.to_thread(lone_server.kill)
            await asyncio.to_thread(lone_server.start)
            await (await Supervisor(lone).assign(f"{kind}.weigh", {"atoms": []}))
            async for event in events:
                if event.minion.state.done == 1:
                    break
