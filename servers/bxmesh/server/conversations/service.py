"""ConversationService: holding conversations, for callers."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
from redis.asyncio import Redis

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.agent.v1.conversation_work_pb2 import ConversationWork
from bxmesh.server.conversations.archive import Archive
from bxmesh.server.conversations.archive_rpcs import ArchiveRpcs
from bxmesh.server.conversations.beginning import begun, continued, first_turn
from bxmesh.server.conversations.checks import require_holdable
from bxmesh.server.conversations.events import EventLog, OvertakenError, fold
from bxmesh.server.conversations.following import follow
from bxmesh.server.conversations.keeper import ConversationKeeper
from bxmesh.server.conversations.mesh import ConversationMesh
from bxmesh.server.conversations.participants import completed
from bxmesh.server.conversations.runner import ConversationRunner
from bxmesh.server.conversations.states import ENDED
from bxmesh.server.conversations.work import KIND, round_name
from bxmesh.server.errors import (
    MeshError,
    failed_precondition,
    permission_denied,
    resource_exhausted,
)
from bxmesh.server.interceptors import current_identity
from bxmesh.server.mutations import Mutation
from bxmesh.server.open_streams import OpenStreams
from bxmesh.server.security.circuit_breakers import CircuitBreakers
from bxmesh.server.security.data_loss import DataGuard
from bxmesh.server.security.on_behalf import Deputy, caller_of
from bxmesh.server.security.ownership import may_change, shared_team
from bxmesh.server.settings import Settings
from bxmesh.server.streams import Ticket, Worker, WorkerOptions, WorkQueue
from bxmesh.server.streams.change_bell import ChangeBell
from bxmesh.server.time_ids import time_id

__all__ = ["ConversationService", "conversation_service"]

Context = grpc.aio.ServicerContext[Any, Any]

# A conversation that waits for its participants costs little.
_ROUNDS_AT_A_TIME = 1000
_MOST_TRIES = 100


@asynccontextmanager
async def conversation_service(
    settings: Settings,
    redis: Redis,
    archive: Archive,
    log: EventLog,
    queue: WorkQueue,
    deputy: Deputy,
    data: DataGuard,
    circuits: CircuitBreakers,
) -> AsyncIterator[ConversationService]:
    """A service with all that it needs, within a block."""
    async with AsyncExitStack() as stack:
        bell = await stack.enter_async_context(ChangeBell(redis, "conversations"))
        mesh = ConversationMesh(
            redis,
            queue,
            log,
            archive,
            bell,
            data,
            circuits,
            settings.max_open_conversations,
        )
        await stack.enter_async_context(ConversationKeeper(mesh))
        runner = ConversationRunner(mesh, deputy)
        worker = Worker(
            redis,
            queue.options,
            WorkerOptions(
                f"conversations-{uuid.uuid4().hex[:12]}",
                concurrency=_ROUNDS_AT_A_TIME,
                drain_grace=settings.drain_grace,
                handlers={KIND: runner.execute},
            ),
        )
        await stack.enter_async_context(worker.running())
        yield ConversationService(mesh)


class ConversationService(ArchiveRpcs):
    """Stream, start, continue, cancel; what is kept is in the other part."""

    def __init__(self, mesh: ConversationMesh) -> None:
        super().__init__(mesh)
        self._streams = OpenStreams()

    def drain(self) -> None:
        """Ends open streams with UNAVAILABLE (SERVER_STOPPING) and takes no more."""
        self._streams.end()

    async def StreamConversation(
        self, request: pb.StreamConversationRequest, context: Context
    ) -> AsyncIterator[pb.StreamConversationResponse]:
        """Begins a conversation, or attaches to one, and follows it."""
        name = request.conversation_id
        if request.HasField("spec"):
            name = (await self._begin("StreamConversation", request.spec, request.request_id))[0]
        else:
            await self._mesh.seen(name)
        async with self._streams.stream():
            async for event in follow(self._mesh, name, request.after_revision):
                if not (request.omit_deltas and event.HasField("delta")):
                    yield pb.StreamConversationResponse(event=event)

    async def StartConversation(
        self, request: pb.StartConversationRequest, context: Context
    ) -> pb.StartConversationResponse:
        """Begins a conversation and waits for its end, unless detached."""
        name, conversation = await self._begin(
            "StartConversation", request.spec, request.request_id
        )
        if not request.detach:
            async with self._streams.stream():
                async for event in follow(self._mesh, name, 0):
                    if event.HasField("ended"):
                        return pb.StartConversationResponse(conversation=event.ended)
        return pb.StartConversationResponse(conversation=conversation)

    async def SendConversationMessage(
        self, request: pb.SendConversationMessageRequest, context: Context
    ) -> pb.SendConversationMessageResponse:
        """Continues a conversation that has ended."""
        mesh = self._mesh
        mutation = mesh.mutation("SendConversationMessage", request.request_id)
        conversation = await self._own(request.conversation_id)
        name, revision = conversation.conversation_id, conversation.revision
        answer = await mutation.answered(pb.SendConversationMessageResponse())
        if answer is not None and answer.conversation.revision <= revision:
            if conversation.state == pb.CONVERSATION_STATE_PENDING:
                await self._enqueue(
                    conversation, first_turn(conversation), request.turns, request.message, mutation
                )
            return pb.SendConversationMessageResponse(conversation=conversation)
        last = await mesh.log.last(name)
        if last is not None and last.HasField("ended") and last.revision > revision:
            # The database was away then.
            conversation = last.ended
        if conversation.state not in ENDED:
            raise _under_way(name)
        await self._require_room()
        await mesh.require_sendable(request.message)
        first = continued(conversation, request)
        short = pb.Conversation(conversation_id=name, revision=conversation.revision)
        await mutation.settle(pb.SendConversationMessageResponse(conversation=short))
        await self._enqueue(conversation, first, request.turns, request.message, mutation)
        return pb.SendConversationMessageResponse(conversation=conversation)

    async def CancelConversation(
        self, request: pb.CancelConversationRequest, context: Context
    ) -> pb.CancelConversationResponse:
        """Cancels a conversation; one that has ended stays as it is."""
        mesh = self._mesh
        conversation = await self._own(request.conversation_id)
        name = conversation.conversation_id
        for _ in range(_MOST_TRIES):
            if conversation.state in ENDED:
                break
            story = fold(await mesh.log.all(name))
            if story is not None:
                conversation = story.conversation
            if conversation.state in ENDED:
                break
            try:
                await mesh.end(
                    conversation,
                    pb.CONVERSATION_STATE_CANCELLED,
                    MeshError(
                        grpc.StatusCode.CANCELLED,
                        "CONVERSATION_CANCELLED",
                        "The conversation was cancelled.",
                    ),
                )
            except OvertakenError:
                # Something was said meanwhile.
                continue
            item = round_name(name, first_turn(conversation))
            await mesh.queue.cancel(Ticket(item, item, "", "", repeated=False))
        return pb.CancelConversationResponse(conversation=await self._own(name))

    async def _begin(
        self, method: str, spec: pb.ConversationSpec, request_id: str
    ) -> tuple[str, pb.Conversation]:
        """Begins a conversation, unless the same request did; it is durable when this returns."""
        mesh, identity = self._mesh, current_identity()
        mutation = mesh.mutation(method, request_id)
        if answer := await mutation.answered(pb.StartConversationResponse()):
            name = answer.conversation.conversation_id
            try:
                conversation = await mesh.seen(name)
            except MeshError as error:
                if error.code is not grpc.StatusCode.NOT_FOUND:
                    raise
            else:
                if conversation.state == pb.CONVERSATION_STATE_PENDING:
                    await self._enqueue(conversation, 1, 0, spec.message, mutation)
                return name, conversation
        await self._require_room()
        participants = completed(spec)
        await asyncio.to_thread(require_holdable, spec, participants)
        await mesh.require_sendable(spec.message)
        # A repetition goes on where another broke off, under the name that counts.
        mine = pb.StartConversationResponse(conversation=pb.Conversation(conversation_id=time_id()))
        name = (await mutation.settle(mine)).conversation.conversation_id
        conversation = begun(name, spec, participants, identity.id)
        await self._enqueue(conversation, 1, 0, spec.message, mutation)
        return name, conversation

    async def _enqueue(
        self,
        conversation: pb.Conversation,
        first: int,
        turns: int,
        message: str,
        mutation: Mutation,
    ) -> None:
        """Lets a round wait for a server that holds it, of as many turns as the conversation says
        unless others are given; a request that is repeated goes on where it broke off."""
        mesh, identity = self._mesh, current_identity()
        name = conversation.conversation_id
        started = pb.ConversationEvent(
            conversation_id=name, revision=conversation.revision, started=conversation
        )
        started.event_time.GetCurrentTime()
        is_new = True
        try:
            await mesh.log.append([started])
        except OvertakenError:
            if not (mutation.name and await self._is_begun(conversation)):
                raise _under_way(name) from None
            is_new = False
        item = round_name(name, first)
        try:
            team = shared_team(identity, conversation.spec.visibility)
            await mesh.archive.save(conversation, team)
            await mesh.queue.enqueue(
                KIND,
                ConversationWork(
                    conversation_id=name,
                    caller=caller_of(identity),
                    first_turn=first,
                    last_turn=first - 1 + (turns or conversation.spec.turns or 1),
                    message=message,
                ),
                item_id=item,
                # So that its end is remembered.
                request_id=item,
                identity=identity.id,
            )
        except MeshError as error:
            # What was begun before may be under way.
            if is_new:
                await self._give_up(conversation, mutation, error)
            raise
        await mesh.bell.ring(name)

    async def _give_up(
        self, conversation: pb.Conversation, mutation: Mutation, error: MeshError
    ) -> None:
        """Ends what could not be queued, as far as that can be done now; the same request may come
        again."""
        with contextlib.suppress(MeshError, OvertakenError):
            await mutation.forget()
            await self._mesh.end(conversation, pb.CONVERSATION_STATE_FAILED, error)

    async def _is_begun(self, conversation: pb.Conversation) -> bool:
        """Whether the same request has begun the round already."""
        name, revision = conversation.conversation_id, conversation.revision
        events = await self._mesh.log.after(name, revision - 1, 1)
        if not events or events[0].revision != revision or not events[0].HasField("started"):
            return False
        theirs, mine = events[0].started.turns, conversation.turns
        return len(theirs) == len(mine) and (not mine or theirs[-1].text == mine[-1].text)

    async def _own(self, name: str) -> pb.Conversation:
        conversation = await self._mesh.seen(name)
        if not may_change(current_identity(), conversation.owner):
            raise permission_denied(
                f"The conversation {name} is another's.",
                reason="NOT_THE_OWNER",
                conversation_id=name,
            )
        return conversation

    async def _require_room(self) -> None:
        identity = current_identity()
        count = await self._mesh.archive.count_open(identity.id)
        if count >= self._mesh.most_open:
            raise resource_exhausted(
                f"{count} conversations of yours have not ended. Wait for some, or cancel them.",
                retry_after=5.0,
                reason="TOO_MANY_CONVERSATIONS",
                subject=identity.id,
            )


def _under_way(name: str) -> MeshError:
    return failed_precondition(
        f"{name} is under way. Wait for its end, or cancel it.",
        reason="CONVERSATION_RUNNING",
        subject=name,
    )
