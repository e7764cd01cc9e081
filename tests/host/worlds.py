"""What the tests of hosts start, wait for and call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from bxmesh.client import AgentInfo, AsyncMesh, NotFound, RetryPolicy, Task
from bxmesh.client.agents.assignment import Assignment
from bxmesh.client.host import AgentFigures, Host
from tests.sdk.agents import name, soon

__all__ = ["called", "done", "failed", "gone", "host", "live", "until"]


@asynccontextmanager
async def host(mesh: AsyncMesh, *only: str, **options: Any) -> AsyncIterator[Host]:
    """A host of some definitions that notices soon when another one is lost."""
    options.setdefault("lease_seconds", 2)
    async with Host(mesh, name=name("host"), only=only, **options).running() as running:
        yield running


async def until(condition: Callable[[], Awaitable[Any]], seconds: float = 15.0) -> Any:
    """Returns what a condition says as soon as it says something."""
    async with asyncio.timeout(seconds):
        while not (found := await condition()):  # noqa: ASYNC110 - others change it
            await asyncio.sleep(0.05)
        return found


async def live(mesh: AsyncMesh, agent_id: str, **facts: str) -> AgentInfo:
    """Returns an agent when it is connected, and tells some facts."""

    async def look() -> AgentInfo | None:
        try:
            agent = await mesh.agent(agent_id)
        except NotFound:
            return None
        async for mailbox in mesh.queue_stats(agent_id=agent_id):
            if not mailbox.connections:
                return None
        return agent if facts.items() <= agent.metadata.items() else None

    found: AgentInfo = await until(look)
    return found


async def gone(mesh: AsyncMesh, agent_id: str) -> None:
    """Waits until an agent is not there any more."""

    async def look() -> bool:
        try:
            await mesh.agent(agent_id)
        except NotFound:
            return True
        return False

    await until(look)


async def done(mesh: AsyncMesh, task_type: str, parameters: Any = None, **options: Any) -> Any:
    """Returns the result of a task."""
    options.setdefault("wait_for_agent", True)
    task = await mesh.assign_task(task_type, parameters, **options)
    return await soon(Assignment(mesh, task).result())


async def failed(mesh: AsyncMesh, task_type: str, parameters: Any = None, **options: Any) -> Task:
    """Returns a task that has failed, once."""
    options.setdefault("retry", RetryPolicy(max_attempts=1))
    options.setdefault("wait_for_agent", True)
    task = await mesh.assign_task(task_type, parameters, **options)
    ended = await soon(mesh.wait_for_task(task.task_id))
    assert ended.state == "failed", ended
    assert ended.error is not None
    return ended


def called(host: Host, agent_id: str) -> AgentFigures:
    """The figures of an agent of a host."""
    (found,) = (one for one in host.figures() if one.agent_id == agent_id)
    return found
