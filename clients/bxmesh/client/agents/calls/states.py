"""The calls on the state of agents."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from google.protobuf.field_mask_pb2 import FieldMask

from bxmesh.agent.v1 import state_pb2 as pb
from bxmesh.client.agents.calls.watching import watch
from bxmesh.client.agents.states import AgentState, to_struct
from bxmesh.client.connection import Connection

__all__ = ["StateCalls"]


class StateCalls:
    """What agents keep across restarts."""

    _connection: Connection

    async def state(self, agent_id: str) -> AgentState:
        """Returns an agent's state, an empty one at revision 0 when it never stored anything."""
        request = pb.GetStateRequest(agent_id=agent_id)
        response = await self._connection.unary(self._connection.agent.GetState, request)
        return AgentState.from_message(response.state)

    async def update_state(
        self,
        agent_id: str,
        changes: Mapping[str, Any],
        *,
        mask: Iterable[str] | None = None,
        expected_revision: int | None = None,
    ) -> AgentState:
        """Changes an agent's state in one step and returns it.

        Changes are a JSON merge patch (RFC 7396): None removes a field. With a mask, exactly the
        fields it names (paths with dots) are set, and removed where they are missing in changes;
        an empty mask replaces the whole state. Raises FailedPrecondition (code ABORTED) when the
        state is at another revision than the expected one; 0 expects that there is none yet.
        """
        request = pb.UpdateStateRequest(
            request_id=uuid4().hex, agent_id=agent_id, expected_revision=expected_revision
        )
        if mask is None:
            request.merge_patch.CopyFrom(to_struct(changes))
        else:
            update = pb.MaskedUpdate(value=to_struct(changes), update_mask=FieldMask(paths=mask))
            request.update.CopyFrom(update)
        response = await self._connection.unary(self._connection.agent.UpdateState, request)
        return AgentState.from_message(response.state)

    async def watch_state(
        self, agent_id: str, *, after_revision: int = 0
    ) -> AsyncGenerator[AgentState, None]:
        """Yields an agent's state at its changes until the caller stops, the current one first.

        Of several quick changes only the last may come.
        """
        request = pb.WatchStateRequest(agent_id=agent_id, after_revision=after_revision)
        responses = watch(
            self._connection,
            self._connection.agent.WatchState,
            request,
            lambda response: response.state.revision,
        )
        async with aclosing(responses):
            async for response in responses:
                yield AgentState.from_message(response.state)
