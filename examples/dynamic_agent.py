"""An agent is written as data, run by a host, asked, changed while it runs, and drained.

Needs a running mesh: `bxmesh serve`, then `python examples/dynamic_agent.py`. The host could be any
other process, such as `bxmesh host`.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable

from bxmesh.client import AsyncMesh, Rule, Tool
from bxmesh.client.host import Host

CODE = """
def main(distances, limit=3.5):
    close = [d for d in distances if d < limit]
    return {'count': len(close), 'closest': min(distances)}
"""
NAME = "examples.contacts"


async def main() -> None:
    """Goes through the life of a definition."""
    async with AsyncMesh() as mesh:
        await mesh.functions.create(NAME, CODE)
        definition = await mesh.definitions.create(
            NAME,
            description="Counts close contacts.",
            capabilities=["examples.contacts"],
            rules=[Rule("examples.contacts", Tool(function=NAME), "contacts")],
            input_schema={"type": "object", "required": ["distances"]},
        )
        print(f"{definition.definition_id} {definition.version} is {definition.state}")

        async with Host(mesh, only=[NAME]).running() as host:
            definition = await mesh.definitions.activate(NAME)
            print(f"{definition.definition_id} {definition.active_version} is {definition.state}")
            print(await counted(mesh, [2.9, 3.1, 5.0]))

            # What is under way ends by the old version, what comes then is done by the new one.
            rule = Rule(
                "examples.contacts", Tool(function=NAME), "contacts", {"closest": "nearest"}
            )
            await mesh.definitions.update(NAME, rules=[rule])
            await mesh.definitions.activate(NAME)
            await until(lambda: at_version(host, 2))
            print(await counted(mesh, [2.9, 3.1, 5.0]))

            await mesh.definitions.drain(NAME)
            await until(lambda: inactive(mesh))
            (figures,) = host.figures()
            print(f"{figures.tasks} tasks, {figures.tool_calls} calls, {figures.failed} failures")
        await mesh.definitions.delete(NAME)


async def at_version(host: Host, version: int) -> bool:
    """Whether new work is done by a version."""
    return all(agent.version == version for agent in host.figures())


async def inactive(mesh: AsyncMesh) -> bool:
    """Whether all agents have left."""
    return (await mesh.definitions.get(NAME)).state == "inactive"


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for what others bring about."""
    while not await condition():  # noqa: ASYNC110
        await asyncio.sleep(0.1)


async def counted(mesh: AsyncMesh, distances: list[float]) -> str:
    """Gives the agent a task, which waits until it is there."""
    task = await mesh.assign_task(
        "examples.contacts", {"distances": distances}, wait_for_agent=True
    )
    return json.dumps((await mesh.wait_for_task(task.task_id)).result, sort_keys=True)


if __name__ == "__main__":
    asyncio.run(main())
