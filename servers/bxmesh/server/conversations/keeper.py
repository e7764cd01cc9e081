"""Looking after conversations: those that nobody can end any more end."""

from __future__ import annotations

import contextlib
import time

import grpc

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.server.conversations.beginning import first_turn
from bxmesh.server.conversations.events import OvertakenError, fold
from bxmesh.server.conversations.mesh import ConversationMesh
from bxmesh.server.conversations.states import ENDED
from bxmesh.server.conversations.work import round_name
from bxmesh.server.errors import MeshError
from bxmesh.server.keeper import Keeper
from bxmesh.server.time_ids import id_at

__all__ = ["ConversationKeeper"]

_YOUNG_SECONDS = 60.0
# No round may take longer than a day.
_OLD_SECONDS = 2 * 86400.0
_AT_ONCE = 1000


class ConversationKeeper(Keeper):
    """An async context manager, within which conversations are looked after."""

    what = "conversations"

    def __init__(self, mesh: ConversationMesh) -> None:
        self._mesh = mesh

    async def look(self) -> None:
        """Looks once. Raises MeshError UNAVAILABLE without Redis or the database."""
        mesh = self._mesh
        before = time.time() - _YOUNG_SECONDS
        for name in await mesh.archive.open_names(id_at(before), _AT_ONCE):
            last = await mesh.log.last(name)
            if last is not None and last.event_time.ToNanoseconds() / 1e9 > before:
                # Somebody is at it.
                continue
            story = fold(await mesh.log.all(name))
            if story is None:
                await self._end(await mesh.archive.get(name, None), _lost())
            elif story.conversation.state in ENDED:
                # The server that ended it did not come to archive it.
                await mesh.archive.save(story.conversation)
            elif error := await self._given_up(story.conversation):
                await self._end(story.conversation, error)

    async def _given_up(self, conversation: pb.Conversation) -> MeshError | None:
        queue = self._mesh.queue
        item = round_name(conversation.conversation_id, first_turn(conversation))
        outcome = await queue.outcome(item)
        if outcome is not None:
            return MeshError.from_status(outcome.status) if outcome.status.code else _lost()
        age = time.time() - conversation.update_time.ToNanoseconds() / 1e9
        return _lost() if age > _OLD_SECONDS or await queue.lost(item, age) else None

    async def _end(self, conversation: pb.Conversation, error: MeshError) -> None:
        # Otherwise it goes on after all.
        with contextlib.suppress(OvertakenError):
            await self._mesh.end(conversation, pb.CONVERSATION_STATE_FAILED, error)


def _lost() -> MeshError:
    # Redis was emptied, or the server that took it was lost before it was queued.
    return MeshError(
        grpc.StatusCode.DATA_LOSS,
        "CONVERSATION_LOST",
        "Nobody holds the conversation any more. Begin it again, or continue it.",
    )
