"""What supervisors see of minions, and how tasks are spread over them."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from datetime import UTC, datetime

import pytest

from bxmesh.client import (
    AsyncMesh,
    Minion,
    RetryPolicy,
    Supervisor,
    TaskContext,
    TaskFailed,
)
from bxmesh.client.agents import MinionState
from bxmesh.server.embedded import EmbeddedMesh
from tests.processes import until
from tests.sdk.agents import name, soon
from tests.sdk.minions import Gate, info, told, weigh

ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture
def kind() -> str:
    return name("kind").replace("-", "_")


async def fail(context: TaskContext, reason: str) -> None:
    if reason == "nothing":
        await mesh_of(context).task("no-such-task")
    raise ArithmeticError(reason)


def mesh_of(context: TaskContext) -> AsyncMesh:
    mesh = context._mesh
    assert isinstance(mesh, AsyncMesh)
    return mesh


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
