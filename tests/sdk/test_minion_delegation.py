"""Minions that have others do it: other minions, and functions that the mesh keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from bxmesh.client import (
    AsyncMesh,
    Minion,
    PermissionDenied,
    RetryPolicy,
    Supervisor,
    Task,
    TaskContext,
    TaskFailed,
)
from bxmesh.client.agents import BlockingTaskContext, TaskCancelled
from bxmesh.security.v1 import credential_pb2, identity_pb2
from tests.sdk.agents import name, soon

ONCE = RetryPolicy(max_attempts=1)
FUNCTION = "def main(number):\n    return number + 1\n"


@pytest.fixture
def kind() -> str:
    return name("kind").replace("-", "_")


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """What runs until the end of a test."""
    async with AsyncExitStack() as stack:
        yield stack


async def identity(mesh: AsyncMesh, stack: AsyncExitStack, *permissions: str) -> AsyncMesh:
    """The mesh as somebody may use it who has these permissions or roles."""
    who = name("somebody")
    roles = [one for one in permissions if one in ("agent", "supervisor")]
    await mesh.security.call(
        identity_pb2.CreateIdentityRequest(
            identity=identity_pb2.Identity(
                identity_id=who,
                kind=identity_pb2.IDENTITY_KIND_AGENT,
                roles=roles,
                permissions=[one for one in permissions if one not in roles],
            )
        )
    )
    key = await mesh.security.call(credential_pb2.CreateApiKeyRequest(identity_id=who))
    return await stack.enter_async_context(AsyncMesh(mesh.address, api_key=key.secret))


async def refusal(mesh: AsyncMesh, capability: str, parameters: object = None) -> TaskFailed:
    """Why a task fails, which nobody tries again."""
    work = await Supervisor(mesh).assign(capability, parameters, retry=ONCE)
    with pytest.raises(TaskFailed) as raised:
        await soon(work)
    return raised.value


async def double(number: float) -> float:
    return 2 * number


async def test_a_line_of_minions(mesh: AsyncMesh, stack: AsyncExitStack, kind: str) -> None:
    first = Minion(name("first"), {f"{kind}.a": f"{kind}.b"})
    second = Minion(name("second"), {f"{kind}.b": f"{kind}.c"})
    third = Minion(name("third"), {f"{kind}.c": double})
    for minion in (first, second, third):
        await stack.enter_async_context(minion.running(mesh))
    work = await Supervisor(mesh).assign(f"{kind}.a", {"number": 4})
    assert await soon(work) == 8
    parent, line = work.id, []
    while children := [one async for one in mesh.tasks(parent_task_id=parent)]:
        (child,) = children
        line.append((child.agent_id, child.depth))
        parent = child.task_id
    assert line == [(second.agent_id, 1), (third.agent_id, 2)]


async def test_progress_is_told_through_the_line(
    mesh: AsyncMesh, stack: AsyncExitStack, kind: str
) -> None:
    go = asyncio.Event()

    async def halfway(context: TaskContext) -> None:
        await context.progress(50, "half of it")
        await go.wait()

    for tools in ({f"{kind}.a": f"{kind}.b"}, {f"{kind}.b": f"{kind}.c"}, {f"{kind}.c": halfway}):
        await stack.enter_async_context(Minion(name("minion"), tools).running(mesh))
    work = await Supervisor(mesh).assign(f"{kind}.a")

    def look(task: Task) -> None:
        if task.progress.percent == 50:
            assert task.progress.message == "half of it"
            go.set()

    await soon(work.result(look))
    assert go.is_set()


async def test_what_does_not_fit_says_so_through_the_line(
    mesh: AsyncMesh, stack: AsyncExitStack, kind: str
) -> None:
    for tools in ({f"{kind}.a": f"{kind}.b"}, {f"{kind}.b": double}):
        await stack.enter_async_context(Minion(name("minion"), tools).running(mesh))
    error = await refusal(mesh, f"{kind}.a", {"number": "many"})
    assert error.reason == "SCHEMA_MISMATCH"
    assert "number" in error.field_violations[0][0]


async def test_a_loop_is_refused(mesh: AsyncMesh, stack: AsyncExitStack, kind: str) -> None:
    first = Minion(name("first"), {f"{kind}.a": f"{kind}.b"})
    second = Minion(name("second"), {f"{kind}.b": f"{kind}.a"})
    for minion in (first, second):
        await stack.enter_async_context(minion.running(mesh))
    error = await refusal(mesh, f"{kind}.a")
    assert error.reason == "TASK_CYCLE"
    assert first.agent_id in error.message
    (child,) = [one async for one in mesh.tasks(task_type=f"{kind}.b")]
    assert (child.state, child.attempts) == ("failed", 1)


async def test_a_line_that_is_too_long_is_refused(
    mesh: AsyncMesh, stack: AsyncExitStack, kind: str
) -> None:
    for step in range(18):
        tools = {f"{kind}.s{step}": f"{kind}.s{step + 1}"}
        await stack.enter_async_context(Minion(name(f"minion{step}"), tools).running(mesh))
    await stack.enter_async_context(Minion(name("last"), {f"{kind}.s18": double}).running(mesh))
    assert (await refusal(mesh, f"{kind}.s0", {"number": 1})).reason == "TASK_TOO_DEEP"
    work = await Supervisor(mesh).assign(f"{kind}.s2", {"number": 1})
    assert await soon(work) == 2


async def test_cancelling_reaches_the_end_of_the_line(
    mesh: AsyncMesh, stack: AsyncExitStack, kind: str
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    for tools in ({f"{kind}.a": f"{kind}.b"}, {f"{kind}.b": wait}):
        await stack.enter_async_context(Minion(name("minion"), tools).running(mesh))
    work = await Supervisor(mesh).assign(f"{kind}.a")
    await soon(begun.wait())
    await work.cancel("changed my mind", cancel_children=False)
    await soon(ended.wait())
    with pytest.raises(TaskCancelled):
        await soon(work)


async def test_tools_assign_tasks_too(mesh: AsyncMesh, stack: AsyncExitStack, kind: str) -> None:
    async def from_a_coroutine(context: TaskContext) -> str:
        return (await context.assign(f"{kind}.double", {"number": 1})).parent_task_id

    def from_a_thread(context: BlockingTaskContext) -> str:
        return context.assign(f"{kind}.double", {"number": 1}).parent_task_id

    tools = {f"{kind}.coroutine": from_a_coroutine, f"{kind}.thread": from_a_thread}
    for each in (tools, {f"{kind}.double": double}):
        await stack.enter_async_context(Minion(name("minion"), each).running(mesh))
    for capability in tools:
        work = await Supervisor(mesh).assign(capability)
        assert await soon(work) == work.id


async def test_a_stored_function_is_a_tool(
    mesh: AsyncMesh, stack: AsyncExitStack, kind: str
) -> None:
    function = f"{kind}.next"
    stored = await mesh.functions.create(function, FUNCTION)
    await mesh.functions.create(function, FUNCTION.replace("+ 1", "/ 0"))
    tools = {
        f"{kind}.next": f"{function}@{stored.version}",
        f"{kind}.broken": f"{function}@latest",
        f"{kind}.nowhere": f"{kind}.nothing@latest",
    }
    await stack.enter_async_context(Minion(name("minion"), tools).running(mesh))
    assert await soon(await Supervisor(mesh).assign(f"{kind}.next", {"number": 1})) == 2
    execution = await anext(mesh.functions.executions(function))
    assert execution.function_version == stored.version
    assert (await refusal(mesh, f"{kind}.broken", {"number": 1})).reason == "FUNCTION_FAILED"
    assert (await refusal(mesh, f"{kind}.nowhere")).reason == "FUNCTION_NOT_FOUND"


async def test_minions_do_no_more_for_others_than_these_may(
    mesh: AsyncMesh, stack: AsyncExitStack, kind: str
) -> None:
    minions = await identity(mesh, stack, "supervisor")
    weak = await identity(mesh, stack, "task_assign", "task_read")
    strong = await identity(mesh, stack, "task_assign", "task_read", "function_execute")
    await mesh.functions.create(f"{kind}.next", FUNCTION, visibility="all")
    await mesh.functions.create(f"{kind}.secret", FUNCTION)
    for tools in (
        {f"{kind}.next": f"{kind}.next@latest", f"{kind}.secret": f"{kind}.secret@latest"},
        # What two minions do for each other they do for whoever began it.
        {f"{kind}.far": f"{kind}.next"},
        {f"{kind}.farther": f"{kind}.far"},
        {f"{kind}.gradients": "geometry.gradients"},
    ):
        await stack.enter_async_context(Minion(name("minion"), tools).running(minions))
    for word in ("next", "far", "farther"):
        work = await Supervisor(strong).assign(f"{kind}.{word}", {"number": 1})
        assert await soon(work) == 2
        error = await refusal(weak, f"{kind}.{word}", {"number": 1})
        assert error.reason == "PERMISSION_MISSING"
        assert "lacks function_execute" in error.message
    error = await refusal(strong, f"{kind}.secret", {"number": 1})
    assert error.reason == "FUNCTION_NOT_FOUND"
    error = await refusal(strong, f"{kind}.gradients")
    assert error.reason == "PERMISSION_MISSING"
    assert "lacks task_assign or gradient_calculation" in error.message


async def test_supervisors_assign_on_behalf_of_others(
    mesh: AsyncMesh, stack: AsyncExitStack, kind: str
) -> None:
    await stack.enter_async_context(Minion(name("minion"), {f"{kind}.a": double}).running(mesh))
    supervisor = Supervisor(mesh)
    for permissions in (("task_read",), ("task_read", "task_assign")):
        who = await identity(mesh, stack, *permissions)
        owner = (await who.security.call(identity_pb2.GetIdentityRequest())).identity.identity_id
        if "task_assign" in permissions:
            work = await supervisor.assign(f"{kind}.a", {"number": 1}, on_behalf_of=owner)
            assert await soon(work) == 2
        else:
            with pytest.raises(PermissionDenied):
                await supervisor.assign(f"{kind}.a", {"number": 1}, on_behalf_of=owner)
    # Whether it is there is not said.
    with pytest.raises(PermissionDenied) as refused:
        await supervisor.assign(f"{kind}.a", {"number": 1}, on_behalf_of="nobody")
    assert refused.value.reason == "PERMISSION_MISSING"


async def test_a_minion_without_its_own_rights_says_so(
    mesh: AsyncMesh, stack: AsyncExitStack, kind: str
) -> None:
    agent = await identity(mesh, stack, "agent")
    await stack.enter_async_context(Minion(name("minion"), {f"{kind}.a": "b.c"}).running(agent))
    error = await refusal(mesh, f"{kind}.a")
    assert error.reason == "PERMISSION_MISSING"
    assert "task_assign" in error.message
