"""What agents of the mesh offer, as tools of LangChain."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from langchain_core.tools import BaseTool, StructuredTool, ToolException
from langgraph.prebuilt import ToolNode

from bxmesh.client.agents.live_agents import AgentTraits
from bxmesh.client.agents.offers import Offer, offers
from bxmesh.client.agents.supervisor import Supervisor
from bxmesh.client.agents.tasks import TaskOptions
from bxmesh.client.agents.work_progress import WorkProgress
from bxmesh.client.errors import BxmeshError
from bxmesh.client.langgraph.streaming import stream_writer
from bxmesh.client.mesh import AsyncMesh

__all__ = ["mesh_tools", "tool_node"]


async def mesh_tools(
    mesh: AsyncMesh,
    *capabilities: str,
    which: AgentTraits | None = None,
    options: TaskOptions | None = None,
) -> list[BaseTool]:
    """Returns a tool for each capability, or for all that live agents offer with a JSON Schema.

    Calling one assigns a task with the options, and waits for its result: JSON for the model, and
    the value as the message's artifact. A failure is an error message with its reason, never an
    exception; so is a call that takes longer than the connection's `Timeouts.calculation`.
    `geometry.minimize` is named `geometry-minimize`. They are asynchronous only. Raises NotFound for
    a capability that nobody offers.
    """
    found = await offers(mesh, capabilities, which or {})
    return [_tool(mesh, offer, options or {}) for offer in found]


async def tool_node(
    mesh: AsyncMesh,
    *capabilities: str,
    which: AgentTraits | None = None,
    options: TaskOptions | None = None,
) -> ToolNode:
    """Returns a node that answers the tool calls of the last message; see mesh_tools."""
    return ToolNode(await mesh_tools(mesh, *capabilities, which=which, options=options))


def _tool(mesh: AsyncMesh, offer: Offer, options: TaskOptions) -> BaseTool:
    async def call(**arguments: Any) -> tuple[str, Any]:
        write = stream_writer()

        def tell(progress: WorkProgress) -> None:
            write({"tool": offer.tool_name, "fraction_done": progress.fraction})

        seconds = mesh._connection.timeouts.calculation
        try:
            # However a call ends early, its task is cancelled.
            async with asyncio.timeout(seconds):
                (result,) = await Supervisor(mesh).map(
                    offer.capability,
                    [offer.parameters(arguments)],
                    on_progress=tell,
                    wait_for_agent=False,
                    **options,
                )
        except TimeoutError as error:
            said = f"{offer.capability} took longer than {seconds:.3g} s (DEADLINE_EXCEEDED)"
            raise ToolException(said) from error
        except BxmeshError as error:
            raise ToolException(str(error)) from error
        plain = json_format.MessageToDict(result) if isinstance(result, Message) else result
        return json.dumps(plain, ensure_ascii=False), plain

    return StructuredTool(
        name=offer.tool_name,
        description=offer.description,
        args_schema=offer.arguments,
        coroutine=call,
        response_format="content_and_artifact",
        handle_tool_error=True,
        metadata={"capability": offer.capability},
    )
