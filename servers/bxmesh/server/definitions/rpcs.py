"""The registry's RPCs on definitions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import field_mask_pb2
from redis.asyncio import Redis

from bxmesh.registry.v1 import agent_definition_pb2 as pb
from bxmesh.server.definitions.checks import check_definition, require_runnable
from bxmesh.server.definitions.functions import Functions
from bxmesh.server.definitions.store import DefinitionStore, clear_output_only
from bxmesh.server.errors import invalid_argument
from bxmesh.server.interceptors import current_identity
from bxmesh.server.mutations import Mutation
from bxmesh.server.open_streams import OpenStreams
from bxmesh.server.pages import Batch, collect, token_invalid
from bxmesh.server.streams.change_bell import ChangeBell
from bxmesh.server.streams.keys import QueueKeys

__all__ = ["DefinitionMesh", "DefinitionRpcs"]

Context = grpc.aio.ServicerContext[Any, Any]

_LOOK_SECONDS = 5.0
_MOST_VERSION = 2**31 - 1
_KEYS = QueueKeys("definitions")
_OUTPUT_ONLY = frozenset(
    {
        "definition_id",
        "state",
        "version",
        "owner",
        "create_time",
        "update_time",
        "revision",
        "active_version",
    }
)


@dataclass(frozen=True)
class DefinitionMesh:
    """What these RPCs work with."""

    redis: Redis
    store: DefinitionStore
    functions: Functions
    bell: ChangeBell
    has_agents: Callable[[str], Awaitable[bool]]
    """Whether a live agent is one of a definition's."""


class DefinitionRpcs:
    """Create, update, start and stop, read, follow, delete."""

    _definitions: DefinitionMesh
    _streams: OpenStreams

    async def CreateAgentDefinition(
        self, request: pb.CreateAgentDefinitionRequest, context: Context
    ) -> pb.CreateAgentDefinitionResponse:
        """Stores a new definition."""
        mesh, identity = self._definitions, current_identity()
        mutation = self._mutation("CreateAgentDefinition", request.request_id)
        if answer := await mutation.answered(pb.CreateAgentDefinitionResponse()):
            return answer
        await check_definition(request.definition, mesh.functions, identity)
        definition = await mesh.store.create(request.definition, identity)
        await mesh.bell.ring()
        return await mutation.settle(pb.CreateAgentDefinitionResponse(definition=definition))

    async def UpdateAgentDefinition(
        self, request: pb.UpdateAgentDefinitionRequest, context: Context
    ) -> pb.UpdateAgentDefinitionResponse:
        """Makes a new version."""
        mesh, identity = self._definitions, current_identity()
        mutation = self._mutation("UpdateAgentDefinition", request.request_id)
        if answer := await mutation.answered(pb.UpdateAgentDefinitionResponse()):
            return answer
        known = await mesh.store.get(request.definition.definition_id)
        changed = _changed(known, request)
        expected = request.expected_revision
        if list(request.update_mask.paths):
            # What the mask leaves alone must be what was just read.
            expected = expected or known.revision
        await check_definition(changed, mesh.functions, identity)
        definition = await mesh.store.update(changed, identity, expected)
        await mesh.bell.ring()
        return await mutation.settle(pb.UpdateAgentDefinitionResponse(definition=definition))

    async def SetAgentDefinitionState(
        self, request: pb.SetAgentDefinitionStateRequest, context: Context
    ) -> pb.SetAgentDefinitionStateResponse:
        """Starts, drains or stops a definition."""
        mesh, identity = self._definitions, current_identity()
        mutation = self._mutation("SetAgentDefinitionState", request.request_id)
        if answer := await mutation.answered(pb.SetAgentDefinitionStateResponse()):
            return answer
        version = request.version
        if request.state == pb.DEFINITION_STATE_ACTIVE:
            wanted = await mesh.store.get(request.definition_id, request.version)
            require_runnable(wanted)
            await check_definition(wanted, mesh.functions, identity)
            # What was looked at runs, whatever is stored meanwhile.
            version = wanted.version
        definition = await mesh.store.set_state(
            request.definition_id, request.state, version, identity
        )
        await mesh.bell.ring()
        return await mutation.settle(pb.SetAgentDefinitionStateResponse(definition=definition))

    async def GetAgentDefinition(
        self, request: pb.GetAgentDefinitionRequest, context: Context
    ) -> pb.GetAgentDefinitionResponse:
        """Describes a definition in a version."""
        definition = await self._settled(
            await self._definitions.store.get(request.definition_id, request.version)
        )
        return pb.GetAgentDefinitionResponse(definition=definition)

    async def ListAgentDefinitions(
        self, request: pb.ListAgentDefinitionsRequest, context: Context
    ) -> pb.ListAgentDefinitionsResponse:
        """Lists definitions, each in its newest version."""
        states = {request.state} if request.state else set()
        if request.state == pb.DEFINITION_STATE_INACTIVE:
            # Of which some have ended to.
            states.add(pb.DEFINITION_STATE_DRAINING)

        async def shown(each: pb.AgentDefinition) -> pb.AgentDefinition | None:
            definition = await self._settled(each)
            return definition if _wanted(definition, request) else None

        definitions, token = await collect(
            request,
            lambda place: self._definitions.store.page(place, states),
            lambda each: each.definition_id,
            shown,
        )
        return pb.ListAgentDefinitionsResponse(definitions=definitions, next_page_token=token)

    async def ListAgentDefinitionVersions(
        self, request: pb.ListAgentDefinitionVersionsRequest, context: Context
    ) -> pb.ListAgentDefinitionVersionsResponse:
        """Lists the versions of a definition, the newest first."""

        async def read(place: str) -> Batch[pb.AgentDefinition]:
            if not _is_version(place):
                raise token_invalid()
            return await self._definitions.store.versions(request.definition_id, int(place))

        async def shown(each: pb.AgentDefinition) -> pb.AgentDefinition:
            return each

        definitions, token = await collect(
            request, read, lambda each: str(each.version), shown, begin=str(_MOST_VERSION)
        )
        return pb.ListAgentDefinitionVersionsResponse(
            definitions=definitions, next_page_token=token
        )

    async def DeleteAgentDefinition(
        self, request: pb.DeleteAgentDefinitionRequest, context: Context
    ) -> pb.DeleteAgentDefinitionResponse:
        """Deletes a definition with its versions."""
        mesh = self._definitions
        mutation = self._mutation("DeleteAgentDefinition", request.request_id)
        if answer := await mutation.answered(pb.DeleteAgentDefinitionResponse()):
            return answer
        await self._settled(await mesh.store.get(request.definition_id))
        await mesh.store.delete(
            request.definition_id, current_identity(), request.expected_revision
        )
        await mesh.bell.ring()
        return await mutation.settle(pb.DeleteAgentDefinitionResponse())

    async def WatchAgentDefinitions(
        self, request: pb.WatchAgentDefinitionsRequest, context: Context
    ) -> AsyncIterator[pb.WatchAgentDefinitionsResponse]:
        """Tells what runs, and then every change."""
        mesh = self._definitions
        with mesh.bell.heard() as rung:
            async with self._streams.stream():
                after = request.after_revision
                if not after:
                    # What changes meanwhile is told again.
                    after = await mesh.store.revision()
                    async for response in self._running(after):
                        yield response
                while True:
                    rung.clear()
                    changes = await mesh.store.changes(after)
                    for change in changes:
                        after = change.definition.revision
                        yield pb.WatchAgentDefinitionsResponse(
                            revision=after, definition=change.definition, deleted=change.deleted
                        )
                    if not changes:
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(_LOOK_SECONDS):
                                await rung.wait()

    async def _running(self, until: int) -> AsyncIterator[pb.WatchAgentDefinitionsResponse]:
        """All that run at a revision; what changes meanwhile is not among them any more."""
        last = pb.WatchAgentDefinitionsResponse(revision=until)
        seen = 0
        while found := await self._definitions.store.running(seen, until):
            for definition in found:
                if last.HasField("definition"):
                    yield last
                seen = definition.revision
                last = pb.WatchAgentDefinitionsResponse(revision=seen, definition=definition)
        last.complete = True
        yield last

    async def _settled(self, definition: pb.AgentDefinition) -> pb.AgentDefinition:
        """A definition as it stands: draining ends when there are no agents left."""
        mesh = self._definitions
        name = definition.definition_id
        if definition.state != pb.DEFINITION_STATE_DRAINING or await mesh.has_agents(name):
            return definition
        await mesh.store.set_state(name, pb.DEFINITION_STATE_INACTIVE, 0, None)
        await mesh.bell.ring()
        return await mesh.store.get(name, definition.version)

    def _mutation(self, method: str, request_id: str) -> Mutation:
        redis = self._definitions.redis
        return Mutation(redis, _KEYS, method, current_identity().id, request_id)


def _wanted(definition: pb.AgentDefinition, request: pb.ListAgentDefinitionsRequest) -> bool:
    return (
        request.state in (0, definition.state)
        and (
            not request.capability
            or any(each.name == request.capability for each in definition.capabilities)
        )
        and all(definition.labels.get(key) == value for key, value in request.labels.items())
    )


def _is_version(text: str) -> bool:
    return (
        text.isascii()
        and text.isdigit()
        and len(text) <= len(str(_MOST_VERSION))
        and int(text) <= _MOST_VERSION
    )


def _changed(
    known: pb.AgentDefinition, request: pb.UpdateAgentDefinitionRequest
) -> pb.AgentDefinition:
    """What a definition becomes by an update; raises MeshError INVALID_ARGUMENT for a mask of what
    there is not, or what callers do not set."""
    mask = request.update_mask
    if not mask.paths:
        changed = pb.AgentDefinition()
        changed.CopyFrom(request.definition)
        clear_output_only(changed)
        return changed
    for index, path in enumerate(mask.paths):
        one = field_mask_pb2.FieldMask(paths=[path])
        if not one.IsValidForDescriptor(pb.AgentDefinition.DESCRIPTOR):
            raise invalid_argument(
                f"update_mask.paths[{index}]", f"there is no field {path}", reason="MASK_INVALID"
            )
        if path.partition(".")[0] in _OUTPUT_ONLY:
            raise invalid_argument(
                f"update_mask.paths[{index}]", f"{path} cannot be set", reason="MASK_INVALID"
            )
    changed = pb.AgentDefinition()
    changed.CopyFrom(known)
    # A list, or a message, that is named becomes what is given, not both together.
    for path in mask.paths:
        if "." not in path:
            changed.ClearField(path)  # type: ignore[arg-type]  # It was just looked up.
    mask.MergeMessage(request.definition, changed, True, True)
    clear_output_only(changed)
    changed.definition_id = known.definition_id
    return changed
