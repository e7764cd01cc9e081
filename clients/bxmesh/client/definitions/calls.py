"""Storing definitions, starting and stopping them, and following what changes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Unpack
from uuid import uuid4

from google.protobuf.field_mask_pb2 import FieldMask

from bxmesh.client.agents.calls.watching import watch
from bxmesh.client.connection import Connection
from bxmesh.client.definitions.options import Content, DefinitionOptions, to_message
from bxmesh.client.definitions.stored import (
    STATES,
    Definition,
    DefinitionEvent,
    DefinitionState,
)
from bxmesh.client.names import invalid
from bxmesh.registry.v1 import agent_definition_pb2 as pb

__all__ = ["AsyncDefinitions"]


class AsyncDefinitions:
    """Agents as data."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(
        self, definition: Content, *, request_id: str = "", **options: Unpack[DefinitionOptions]
    ) -> Definition:
        """Stores a definition as a draft: its name with options, or the JSON form of its message.

        Raises InvalidInput, whose `field_violations` name the places; FailedPrecondition when the
        name is taken.
        """
        message, _ = to_message(definition, options)
        request = pb.CreateAgentDefinitionRequest(
            request_id=request_id or uuid4().hex, definition=message
        )
        stub = self._connection.registry
        response = await self._connection.unary(stub.CreateAgentDefinition, request)
        return Definition.from_message(response.definition)

    async def update(
        self,
        definition: Content,
        *,
        expected_revision: int = 0,
        request_id: str = "",
        **options: Unpack[DefinitionOptions],
    ) -> Definition:
        """Makes a new version, in which what is given differs from the newest; it does not run yet.

        A field that is given as None is emptied. Raises FailedPrecondition (code ABORTED) when the
        definition is at another revision than the expected one.
        """
        message, given = to_message(definition, options)
        if not given:
            raise invalid("definition", "say what is to be changed")
        request = pb.UpdateAgentDefinitionRequest(
            request_id=request_id or uuid4().hex,
            definition=message,
            update_mask=FieldMask(paths=given),
            expected_revision=expected_revision,
        )
        stub = self._connection.registry
        response = await self._connection.unary(stub.UpdateAgentDefinition, request)
        return Definition.from_message(response.definition)

    async def activate(self, definition_id: str, version: int = 0) -> Definition:
        """Has hosts run a version, the newest unless one is named, in the place of any other."""
        return await self._set_state(definition_id, pb.DEFINITION_STATE_ACTIVE, version)

    async def drain(self, definition_id: str) -> Definition:
        """Lets its agents finish what they have and leave; it is inactive then."""
        return await self._set_state(definition_id, pb.DEFINITION_STATE_DRAINING)

    async def stop(self, definition_id: str) -> Definition:
        """Stops its agents at once; what they were at goes back."""
        return await self._set_state(definition_id, pb.DEFINITION_STATE_INACTIVE)

    async def _set_state(
        self, definition_id: str, state: pb.DefinitionState.ValueType, version: int = 0
    ) -> Definition:
        request = pb.SetAgentDefinitionStateRequest(
            request_id=uuid4().hex, definition_id=definition_id, state=state, version=version
        )
        stub = self._connection.registry
        response = await self._connection.unary(stub.SetAgentDefinitionState, request)
        return Definition.from_message(response.definition)

    async def get(self, definition_id: str, version: int = 0) -> Definition:
        """Returns a definition in a version, by default the newest. Raises NotFound."""
        request = pb.GetAgentDefinitionRequest(definition_id=definition_id, version=version)
        stub = self._connection.registry
        response = await self._connection.unary(stub.GetAgentDefinition, request)
        return Definition.from_message(response.definition)

    async def list(
        self,
        *,
        state: DefinitionState | None = None,
        capability: str = "",
        labels: Mapping[str, str] | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[Definition]:
        """Yields the definitions that fit by name, each in its newest version."""
        request = pb.ListAgentDefinitionsRequest(
            state=STATES.number(state), capability=capability, labels=labels, page_size=page_size
        )
        stub = self._connection.registry
        async for response in self._connection.pages(stub.ListAgentDefinitions, request):
            for message in response.definitions:
                yield Definition.from_message(message)

    async def versions(
        self, definition_id: str, *, page_size: int = 0
    ) -> AsyncIterator[Definition]:
        """Yields the versions of a definition, the newest first."""
        request = pb.ListAgentDefinitionVersionsRequest(
            definition_id=definition_id, page_size=page_size
        )
        stub = self._connection.registry
        async for response in self._connection.pages(stub.ListAgentDefinitionVersions, request):
            for message in response.definitions:
                yield Definition.from_message(message)

    async def delete(self, definition_id: str, *, expected_revision: int = 0) -> None:
        """Deletes a definition with its versions. Raises FailedPrecondition while it is active."""
        request = pb.DeleteAgentDefinitionRequest(
            request_id=uuid4().hex,
            definition_id=definition_id,
            expected_revision=expected_revision,
        )
        stub = self._connection.registry
        await self._connection.unary(stub.DeleteAgentDefinition, request)

    async def watch(self, *, after_revision: int = 0) -> AsyncGenerator[DefinitionEvent, None]:
        """Yields changes until the caller stops, over lost connections too.

        Revision 0 begins with all definitions that are active or draining. Of several quick changes
        of one definition only the last may come.
        """
        request = pb.WatchAgentDefinitionsRequest(after_revision=after_revision)
        responses = watch(
            self._connection,
            self._connection.registry.WatchAgentDefinitions,
            request,
            lambda response: response.revision,
        )
        async with aclosing(responses):
            async for response in responses:
                yield DefinitionEvent.from_message(response)
