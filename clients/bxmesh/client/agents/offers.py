"""What live agents offer, with the JSON Schemas that the registry has of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from bxmesh.client.agents.live_agents import AgentFilter, AgentTraits, to_filter
from bxmesh.client.agents.states import from_struct
from bxmesh.client.errors import NotFound
from bxmesh.client.mesh import AsyncMesh
from bxmesh.registry.v1 import agent_pb2

__all__ = ["Offer", "offers"]

_WRAPPED = "parameters"
# Arguments that LangChain passes to a tool's function itself.
_RESERVED = {"config", "run_manager", "callbacks", "self"}


@dataclass(frozen=True)
class Offer:
    """A capability as a tool's name, description and arguments."""

    capability: str
    """The type of the tasks."""
    description: str
    """What the agent says of it."""
    arguments: dict[str, Any]
    """The JSON Schema of an object, as tools take nothing else."""
    wrapped: bool
    """Whether what tasks take is the one argument `parameters` of it."""

    @property
    def tool_name(self) -> str:
        """The name, without the dots that providers of models refuse."""
        return self.capability.replace(".", "-")

    def parameters(self, arguments: Mapping[str, Any]) -> Any:
        """Returns what a task takes when the tool is called with these arguments."""
        return arguments.get(_WRAPPED) if self.wrapped else dict(arguments)

    @classmethod
    def from_message(cls, message: agent_pb2.Capability) -> Offer:
        """Returns the offer of a capability of the registry."""
        schema = _input(message)
        properties = schema.get("properties")
        wrapped = not isinstance(properties, dict) or not _RESERVED.isdisjoint(properties)
        description = message.description or f"Does a task {message.name} on the mesh."
        if wrapped:
            # References are from the root of the document.
            definitions = schema.pop("$defs", {})
            schema = {
                "type": "object",
                "properties": {_WRAPPED: schema},
                "required": [_WRAPPED],
                "$defs": definitions,
            }
        return cls(message.name, description, schema, wrapped)


async def offers(
    mesh: AsyncMesh, capabilities: Collection[str], which: AgentFilter | AgentTraits
) -> list[Offer]:
    """Returns what is named, or all that has a JSON Schema, in the order of the names.

    Of agents that offer the same, one with a JSON Schema speaks for all. Raises NotFound.
    """
    connection = mesh._connection
    request = agent_pb2.ListAgentsRequest(filter=to_filter(which))
    found: dict[str, agent_pb2.Capability] = {}
    async for response in connection.pages(connection.registry.ListAgents, request):
        for agent in response.agents:
            for one in agent.capabilities:
                if one.input_schema.HasField("json_schema"):
                    found[one.name] = one
                elif one.name in capabilities:
                    found.setdefault(one.name, one)
    if missing := sorted(set(capabilities) - set(found)):
        raise NotFound(
            f"no live agent offers {', '.join(missing)}",
            code=grpc.StatusCode.NOT_FOUND,
            reason="CAPABILITY_NOT_OFFERED",
        )
    names = sorted(capabilities or found)
    return [Offer.from_message(found[name]) for name in dict.fromkeys(names)]


def _input(message: agent_pb2.Capability) -> dict[str, Any]:
    match message.input_schema.WhichOneof("kind"):
        case "json_schema":
            return from_struct(message.input_schema.json_schema)
        case "protobuf_type":
            name = message.input_schema.protobuf_type
            return {"type": "object", "description": f"A {name} in its JSON form."}
    return {"description": "Anything that JSON can say; the agent does not tell what it takes."}
