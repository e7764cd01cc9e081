"""What a definition does with its work: by rules, a chain, or a model."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from bxmesh.client.agents.failures import Unhandled
from bxmesh.client.chains import Chain, ChainRun, ChainSource
from bxmesh.client.errors import BxmeshError, FailedPrecondition
from bxmesh.client.host.calls import Calls
from bxmesh.client.host.work import Reply, Work
from bxmesh.client.mesh import AsyncMesh
from bxmesh.registry.v1 import agent_definition_pb2 as pb
from bxmesh.registry.v1.schema_pb2 import Schema

__all__ = ["Behaviour", "ChainBehaviour", "RuleBehaviour", "reply_type"]


class Behaviour(ABC):
    """What one version of a definition does."""

    def __init__(self, mesh: AsyncMesh, definition: pb.AgentDefinition) -> None:
        self.definition = definition
        """The definition in that version."""
        self.mesh = mesh
        """The mesh."""
        self.calls = Calls(mesh, definition)
        """What it may call."""

    def input_schema(self, work_type: str) -> Schema:
        """What work of a type must be."""
        return self.definition.input_schema

    @abstractmethod
    async def answer(self, work: Work) -> Reply:
        """Does a piece of work. Raises BxmeshError."""


class RuleBehaviour(Behaviour):
    """The first rule that matches the type decides what is called."""

    async def answer(self, work: Work) -> Reply:
        """Calls what the rule says and maps what comes out."""
        for rule in self.definition.rules:
            if _matches(rule.message_type, work.type):
                is_function = rule.call.HasField("function")
                given = work.arguments if is_function else work.payload
                result = await self.calls.call(rule.call, given, work)
                return Reply(_mapped(result, rule.result_mapping), rule.reply_type)
        kind = "tasks" if work.task else "messages"
        raise Unhandled(f"{kind} of the type {work.type}", work.figures.agent_id)


class ChainBehaviour(Behaviour):
    """A run of the definition's chain for each piece of work."""

    async def answer(self, work: Work) -> Reply:
        """Runs the chain to its end; work that comes again finds the run that it had begun."""
        run = await self._start(work, work.work_id)
        if work.attempt > 1 and run.done and run.state != "completed":
            run = await self._start(work, f"{work.work_id}:{work.attempt}")
        try:
            run = await self.mesh.chains.wait(run.run_id)
        except asyncio.CancelledError:
            if not work.comes_again():
                with suppress(BxmeshError):
                    await self.mesh.chains.cancel(run.run_id)
            raise
        return Reply(run.value, reply_type(work.type))

    async def _start(self, work: Work, request_id: str) -> ChainRun:
        async def start(source: ChainSource) -> ChainRun:
            return await self.mesh.chains.start(
                source,
                work.payload,
                request_id=request_id,
                on_behalf_of=work.caller,
                parent_task_id=work.parent_task_id,
            )

        try:
            return await start(self.definition.definition_id)
        except FailedPrecondition as error:
            if error.reason != "DEFINITION_NOT_ACTIVE":
                raise
            # It drains, and what has arrived is done still.
            return await start(Chain.from_message(self.definition.chain))


def reply_type(message_type: str) -> str:
    """Returns the type of the reply where the definition does not say it."""
    return f"{message_type[:122]}.reply"


def _matches(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _mapped(result: Any, mapping: Mapping[str, str]) -> Any:
    """Fields of a result under other names; what the result lacks is left out."""
    if not mapping:
        return result
    reply: dict[str, Any] = {}
    for path, field in sorted(mapping.items()):
        found, value = _at(result, path.split("."))
        if found:
            _put(reply, field.split("."), value)
    return reply


def _put(place: dict[str, Any], path: list[str], value: Any) -> None:
    *outer, last = path
    for name in outer:
        inner = place.get(name)
        place[name] = inner = inner if isinstance(inner, dict) else {}
        place = inner
    place[last] = value


def _at(value: Any, path: list[str]) -> tuple[bool, Any]:
    for name in path:
        match value:
            case dict() if name in value:
                value = value[name]
            case list() if name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            case _:
                return False, None
    return True, value
