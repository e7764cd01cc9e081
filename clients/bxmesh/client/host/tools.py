"""What a definition may call, as tools for its model."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from bxmesh.client.agents.offers import Offer, offers
from bxmesh.client.errors import BxmeshError, NotFound
from bxmesh.client.host.calls import Calls, split_reference
from bxmesh.client.host.failures import refused
from bxmesh.client.host.work import Work
from bxmesh.registry.v1 import agent_definition_pb2 as pb
from bxmesh.registry.v1 import agent_pb2

if TYPE_CHECKING:
    from pydantic_ai import RunContext, Tool

__all__ = ["Tools"]

_FRESH_SECONDS = 30.0
_LONGEST_NAME = 64


class Tools:
    """The tools of one version of a definition."""

    def __init__(self, calls: Calls, references: list[pb.ToolReference]) -> None:
        self._calls = calls
        self._references = references
        self._tools: list[Tool[Work]] = []
        self._stale = 0.0

    async def current(self) -> list[Tool[Work]]:
        """Returns the tools with what functions and live agents take by now.

        Raises FailedPrecondition (TOOL_UNKNOWN) for a function that there is not.
        """
        if time.monotonic() >= self._stale:
            taken: set[str] = set()
            self._tools = [await self._tool(one, taken) for one in self._references]
            self._stale = time.monotonic() + _FRESH_SECONDS
        return self._tools

    async def _tool(self, reference: pb.ToolReference, taken: set[str]) -> Tool[Work]:
        from pydantic_ai import Tool

        offer = await self._offer(reference)

        async def call(context: RunContext[Work], **arguments: Any) -> Any:
            return await _told(
                lambda: self._calls.call(reference, offer.parameters(arguments), context.deps)
            )

        return Tool.from_schema(
            call,
            _unique(offer.tool_name, taken),
            offer.description,
            offer.arguments,
            takes_ctx=True,
        )

    async def _offer(self, reference: pb.ToolReference) -> Offer:
        mesh = self._calls.mesh
        if reference.HasField("function"):
            name, version = split_reference(reference.function)
            try:
                function = await mesh.functions.get(name, version)
            except NotFound as error:
                raise refused(
                    "TOOL_UNKNOWN", f"there is no function {reference.function}"
                ) from error
            schema = function.input_schema or {"type": "object"}
            return Offer(name, function.description or f"Calls {name}.", schema, wrapped=False)
        name = reference.capability
        try:
            (offer,) = await offers(mesh, [name], {"capabilities": [name]})
        except NotFound:
            # An agent may come that does it.
            return Offer.from_message(agent_pb2.Capability(name=name))
        return offer


async def _told(call: Callable[[], Awaitable[Any]]) -> Any:
    """What a call answers; a failure is told to the model, which may know what to do."""
    try:
        return await call()
    except BxmeshError as error:
        return {"error": error.message, "reason": error.reason}


def _unique(name: str, taken: set[str]) -> str:
    name = name[:_LONGEST_NAME]
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name[: _LONGEST_NAME - 4]}-{count}"
    taken.add(unique)
    return unique
