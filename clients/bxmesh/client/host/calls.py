"""What a definition calls of the mesh, for whom it works, and no deeper than it may."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from bxmesh.client.agents.assignment import Assignment
from bxmesh.client.errors import BxmeshError
from bxmesh.client.host.failures import refused
from bxmesh.client.host.work import Work, plain
from bxmesh.registry.v1 import agent_definition_pb2 as pb

if TYPE_CHECKING:
    from bxmesh.client.mesh import AsyncMesh

__all__ = ["Calls", "split_reference"]


class Calls:
    """The stored functions and capabilities that one definition may call."""

    def __init__(self, mesh: AsyncMesh, definition: pb.AgentDefinition) -> None:
        self.mesh = mesh
        """The mesh."""
        self._definition = definition

    async def call(self, tool: pb.ToolReference, arguments: Any, work: Work) -> Any:
        """Returns what a tool answers. Raises BxmeshError."""
        work.figures.tool_calls += 1
        if tool.HasField("function"):
            return await self._function(tool.function, arguments, work)
        return await self._capability(tool.capability, arguments, work)

    async def _function(self, reference: str, arguments: Any, work: Work) -> Any:
        name, version = split_reference(reference)
        execution = await self.mesh.functions.execute(
            name,
            arguments,
            version=version,
            on_behalf_of=work.caller,
            parent_task_id=work.parent_task_id,
        )
        return execution.value

    async def _capability(self, name: str, parameters: Any, work: Work) -> Any:
        most = self._definition.max_chain_depth
        if work.depth >= most:
            raise refused(
                "DEPTH_LIMIT",
                f"{self._definition.definition_id} may not delegate {name}: its max_chain_depth is "
                f"{most}, and the work is at depth {work.depth}",
            )
        task = await self.mesh.assign_task(
            name,
            parameters,
            parent_task_id=work.parent_task_id,
            on_behalf_of=work.caller,
        )
        try:
            return plain(await Assignment(self.mesh, task).result())
        except asyncio.CancelledError:
            # Nobody waits for it any more.
            with suppress(BxmeshError):
                await self.mesh.cancel_task(
                    task.task_id, "the caller has stopped", cancel_children=True
                )
            raise


def split_reference(reference: str) -> tuple[str, str]:
    """Returns the name and the version of a reference such as name@version."""
    name, _, version = reference.partition("@")
    return name, version
