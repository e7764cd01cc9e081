"""Following a conversation, live or from the archive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.server.conversations.mesh import ConversationMesh
from bxmesh.server.conversations.states import ENDED
from bxmesh.server.errors import MeshError

__all__ = ["follow"]

_LOOK_SECONDS = 2.0


async def follow(
    mesh: ConversationMesh, name: str, after: int
) -> AsyncIterator[pb.ConversationEvent]:
    """Yields what happened after a revision, and what happens, to the end.

    Of a conversation whose events are not kept any more, because it ended a while ago, only the end
    is told, which holds all. Raises MeshError OUT_OF_RANGE for a revision that has not come.
    """
    with mesh.bell.heard(name) as rung:
        while True:
            rung.clear()
            events = await mesh.log.after(name, after)
            if events is None:
                conversation = await mesh.archive.get(name, None)
                _require_past(after, conversation.revision)
                if conversation.state in ENDED:
                    yield _end_of(conversation)
                    return
            for event in events or ():
                after = event.revision
                yield event
                if event.HasField("ended"):
                    # Unless somebody has continued it since.
                    last = await mesh.log.last(name)
                    if last is None or last.revision <= after:
                        return
            if events:
                continue
            if events is not None and (last := await mesh.log.last(name)) is not None:
                _require_past(after, last.revision)
                if last.HasField("ended") and last.revision == after:
                    yield last
                    return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await rung.wait()


def _end_of(conversation: pb.Conversation) -> pb.ConversationEvent:
    return pb.ConversationEvent(
        conversation_id=conversation.conversation_id,
        revision=conversation.revision,
        event_time=conversation.update_time,
        ended=conversation,
    )


def _require_past(after: int, revision: int) -> None:
    if after > revision:
        raise MeshError(
            grpc.StatusCode.OUT_OF_RANGE,
            "REVISION_COMPACTED",
            f"There is no revision {after}; the last is {revision}. Begin again at 0.",
            metadata={"after_revision": str(after)},
        )
