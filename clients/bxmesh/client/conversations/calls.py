"""Holding conversations, following them, and what is kept of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Unpack
from uuid import uuid4

from bxmesh.agent.v1 import conversation_archive_pb2 as archive_pb
from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.agent.v1.conversation_service_pb2_grpc import ConversationServiceStub
from bxmesh.client.agents.backoff import Backoff
from bxmesh.client.agents.calls.watching import watch
from bxmesh.client.agents.times import to_duration
from bxmesh.client.connection import Connection, translated
from bxmesh.client.conversations.archived import (
    MODES,
    ConversationStats,
    Exported,
    Purged,
    SearchMode,
    SearchResult,
)
from bxmesh.client.conversations.conversation import Conversation
from bxmesh.client.conversations.events import ConversationEvent
from bxmesh.client.conversations.options import (
    ConversationFilter,
    ConversationOptions,
    to_filter,
    to_spec,
)
from bxmesh.client.errors import Unavailable
from bxmesh.client.trace import traced

__all__ = ["AsyncConversations"]


class AsyncConversations:
    """Conversations: several agents, one answer. They go on without their callers and survive a
    restart of the mesh."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # The generated stubs have no types for asyncio.
        self._stub: Any = ConversationServiceStub(connection.channel)

    async def hold(
        self, message: str, *, request_id: str = "", **options: Unpack[ConversationOptions]
    ) -> Conversation:
        """Asks a question and returns the conversation when it has ended, however it did.

        One that fails raises nothing here: its `value` and `outcome` do. Who stops waiting leaves it
        to go on. The same request id gives the same conversation.
        """
        with traced("hold conversation"):
            request = _beginning(message, options, request_id)
            request.omit_deltas = True
            return await self._ended(request)

    async def start(
        self, message: str, *, request_id: str = "", **options: Unpack[ConversationOptions]
    ) -> Conversation:
        """Begins a conversation as `hold` does and returns at once; it is durable then."""
        request = pb.StartConversationRequest(
            request_id=request_id or uuid4().hex, spec=to_spec(message, options), detach=True
        )
        response = await self._connection.unary(self._stub.StartConversation, request)
        return Conversation.from_message(response.conversation)

    async def stream(
        self, message: str, *, request_id: str = "", **options: Unpack[ConversationOptions]
    ) -> AsyncGenerator[ConversationEvent, None]:
        """Begins a conversation as `hold` does and yields what happens in it to its end, over lost
        connections too."""
        async with aclosing(self._events(_beginning(message, options, request_id))) as events:
            async for event in events:
                yield event

    async def follow(
        self, conversation_id: str, *, after_revision: int = 0, deltas: bool = True
    ) -> AsyncGenerator[ConversationEvent, None]:
        """Yields what happened in a conversation after a revision, and what happens, to its end.

        Without `deltas` answers come as a whole only. Of a conversation that ended long ago only
        the end is told, which holds all. Raises NotFound for an unknown one.
        """
        request = pb.StreamConversationRequest(
            conversation_id=conversation_id, after_revision=after_revision, omit_deltas=not deltas
        )
        async with aclosing(self._events(request)) as events:
            async for event in events:
                yield event

    async def wait(self, conversation_id: str) -> Conversation:
        """Returns a conversation when it has ended, however it did."""
        found = await self.get(conversation_id)
        if found.done:
            return found
        return await self._ended(
            pb.StreamConversationRequest(
                conversation_id=conversation_id, after_revision=found.revision, omit_deltas=True
            )
        )

    async def send(
        self, conversation_id: str, message: str, *, turns: int = 0, request_id: str = ""
    ) -> Conversation:
        """Continues a conversation with another question, for as many turns as before unless it
        says how many. Returns it as it goes on: see `wait`, or `follow` after its revision.

        Raises FailedPrecondition while it is under way.
        """
        request = pb.SendConversationMessageRequest(
            request_id=request_id or uuid4().hex,
            conversation_id=conversation_id,
            message=message,
            turns=turns,
        )
        response = await self._connection.unary(self._stub.SendConversationMessage, request)
        return Conversation.from_message(response.conversation)

    async def cancel(self, conversation_id: str) -> Conversation:
        """Cancels a conversation and what is asked in it; one that has ended is left as it is."""
        request = pb.CancelConversationRequest(
            request_id=uuid4().hex, conversation_id=conversation_id
        )
        response = await self._connection.unary(self._stub.CancelConversation, request)
        return Conversation.from_message(response.conversation)

    async def get(self, conversation_id: str) -> Conversation:
        """Returns a conversation with all that was said. Raises NotFound."""
        request = archive_pb.GetConversationRequest(conversation_id=conversation_id)
        response = await self._connection.unary(self._stub.GetConversation, request)
        return Conversation.from_message(response.conversation)

    async def list(
        self, *, page_size: int = 0, **which: Unpack[ConversationFilter]
    ) -> AsyncIterator[Conversation]:
        """Yields conversations, newest first, without what was said."""
        request = archive_pb.ListConversationsRequest(filter=to_filter(which), page_size=page_size)
        async for response in self._connection.pages(self._stub.ListConversations, request):
            for message in response.conversations:
                yield Conversation.from_message(message)

    async def search(
        self,
        query: str,
        *,
        mode: SearchMode | None = None,
        page_size: int = 0,
        **which: Unpack[ConversationFilter],
    ) -> AsyncIterator[SearchResult]:
        """Yields places where something was said, the best first: by words, by meaning, or by both
        as far as the mesh can; `degraded` says when only words were looked for.

        Raises FailedPrecondition for the mode meaning without an embedding model.
        """
        request = archive_pb.SearchConversationsRequest(
            query=query, mode=MODES.number(mode), filter=to_filter(which), page_size=page_size
        )
        async for response in self._connection.pages(self._stub.SearchConversations, request):
            for message in response.results:
                yield SearchResult.from_message(message, degraded=response.degraded)

    async def export(
        self, *, resume_token: str = "", **which: Unpack[ConversationFilter]
    ) -> AsyncGenerator[Exported, None]:
        """Yields whole conversations, oldest first, over lost connections too.

        The `resume_token` of the last one goes on after it, in another process too.
        """
        request = archive_pb.ExportConversationsRequest(
            filter=to_filter(which), resume_token=resume_token
        )
        backoff = Backoff(self._connection.timeouts.reconnect, "an export")
        while True:
            call = self._stub.ExportConversations(request, metadata=self._connection.metadata)
            responses = aiter(call)
            try:
                while True:
                    with translated():
                        response = await anext(responses, None)
                    if response is None:
                        return
                    backoff.reset()
                    request.resume_token = response.resume_token
                    yield Exported.from_message(response)
            except Unavailable as error:
                await backoff.wait(error)
            finally:
                call.cancel()

    async def delete(self, conversation_id: str) -> None:
        """Deletes a conversation with all that was said and remembered.

        Raises FailedPrecondition while it is under way.
        """
        request = archive_pb.DeleteConversationRequest(
            request_id=uuid4().hex, conversation_id=conversation_id
        )
        await self._connection.unary(self._stub.DeleteConversation, request)

    async def purge(self, *, dry_run: bool = False, **which: Unpack[ConversationFilter]) -> Purged:
        """Deletes conversations that have ended; `before` is needed. Takes an operator.

        With `dry_run` they are only counted.
        """
        request = archive_pb.PurgeConversationsRequest(
            request_id=uuid4().hex, filter=to_filter(which), validate_only=dry_run
        )
        response = await self._connection.unary(
            self._stub.PurgeConversations, request, self._connection.timeouts.calculation
        )
        return Purged.from_message(response)

    async def stats(self, *, period: float | None = None) -> ConversationStats:
        """Returns figures over a period of seconds until now, a minute to 90 days; a day."""
        request = archive_pb.GetConversationStatsRequest(period=to_duration(period))
        response = await self._connection.unary(self._stub.GetConversationStats, request)
        return ConversationStats.from_message(response)

    async def _ended(self, request: pb.StreamConversationRequest) -> Conversation:
        name = request.conversation_id
        async with aclosing(self._events(request)) as events:
            async for event in events:
                name = event.conversation_id
                if event.ended is not None:
                    return event.ended
        return await self.get(name)

    async def _events(
        self, request: pb.StreamConversationRequest
    ) -> AsyncGenerator[ConversationEvent, None]:
        responses = watch(
            self._connection,
            self._stub.StreamConversation,
            request,
            lambda response: response.event.revision,
        )
        async with aclosing(responses):
            async for response in responses:
                # From here on it is the same one, however long its request id is remembered.
                request.conversation_id = response.event.conversation_id
                yield ConversationEvent.from_message(response.event)


def _beginning(
    message: str, options: ConversationOptions, request_id: str
) -> pb.StreamConversationRequest:
    return pb.StreamConversationRequest(
        request_id=request_id or uuid4().hex, spec=to_spec(message, options)
    )
