"""The RPCs on what agents keep across restarts."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import grpc

from bxmesh.agent.v1 import state_pb2 as pb
from bxmesh.server.agent.mesh import AgentMesh, caller
from bxmesh.server.agent.state_changes import change_of
from bxmesh.server.agent.states import States, state_topic
from bxmesh.server.errors import MeshError, permission_denied
from bxmesh.server.interceptors import current_identity
from bxmesh.server.open_streams import OpenStreams
from bxmesh.server.security.ownership import may_change
from bxmesh.server.streams.connection import redis_errors

Context = grpc.aio.ServicerContext[Any, Any]

# Bells ring again when the connection to Redis is made anew; this is for what nobody thought of.
_LOOK_SECONDS = 60.0


class StateRpcs:
    """GetState, UpdateState and WatchState."""

    _mesh: AgentMesh
    _streams: OpenStreams

    @cached_property
    def _states(self) -> States:
        return States(self._mesh.redis, self._mesh.mailboxes.keys)

    async def GetState(self, request: pb.GetStateRequest, context: Context) -> pb.GetStateResponse:
        """Returns a state."""
        return pb.GetStateResponse(state=await self._states.read(request.agent_id))

    async def UpdateState(
        self, request: pb.UpdateStateRequest, context: Context
    ) -> pb.UpdateStateResponse:
        """Changes a state in one step."""
        change = change_of(request)
        agent_identity = await self._identity_of(request.agent_id)
        expected = request.expected_revision if request.HasField("expected_revision") else None
        state = await self._states.update(
            request.agent_id,
            change,
            caller(),
            lambda owner: _owner(request.agent_id, agent_identity or owner),
            expected_revision=expected,
            request_id=request.request_id,
        )
        return pb.UpdateStateResponse(state=state)

    async def WatchState(self, request: pb.WatchStateRequest, context: Context) -> None:
        """Follows a state until the caller cancels."""
        agent_id, told = request.agent_id, request.after_revision
        keys = self._mesh.mailboxes.keys
        async with self._streams.stream(), self._mesh.bells.watch(state_topic(agent_id)) as bell:
            first = not told
            while True:
                with redis_errors():
                    await bell.want(keys)
                revision = await self._states.revision(agent_id)
                if revision < told:
                    raise _lost(agent_id, told)
                if first or revision > told:
                    state = await self._states.read(agent_id)
                    await context.write(pb.WatchStateResponse(state=state))
                    told, first = state.revision, False
                await bell.wait(_LOOK_SECONDS)

    async def _identity_of(self, agent_id: str) -> str:
        """The identity of a live agent; empty when there is none of that name."""
        try:
            with redis_errors():
                return (await self._mesh.agents.get(agent_id)).identity
        except MeshError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            return ""


def _owner(agent_id: str, owner: str) -> str:
    """Who owns a state when the caller has changed it.

    Only the agent itself may; while it is away, whoever it belonged to; what nobody has, anybody.
    """
    identity = current_identity()
    if owner and not may_change(identity, owner):
        raise permission_denied(
            f"The state of {agent_id} belongs to another identity.", agent_id=agent_id
        )
    return owner or identity.id


def _lost(agent_id: str, revision: int) -> MeshError:
    return MeshError(
        grpc.StatusCode.OUT_OF_RANGE,
        "REVISION_COMPACTED",
        f"The state of {agent_id} has not been at revision {revision}. Begin again at 0.",
        metadata={"agent_id": agent_id, "after_revision": str(revision)},
    )
