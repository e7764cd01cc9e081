"""A whole server, and those who talk on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any
from uuid import uuid4

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.agent.v1.conversation_service_pb2_grpc import ConversationServiceStub
from bxmesh.client import AsyncMesh
from bxmesh.client.agents import Agent, TaskContext, task
from bxmesh.client.agents.calls.watching import watch
from bxmesh.client.conversations import ASKED, Question

__all__ = ["Script", "Talk", "spec", "taking_part"]

Script = Callable[[Question], Any]


class Voice(Agent):
    """Answers as its script says: a result, an exception to raise, or an awaitable of either."""

    def __init__(self, agent_id: str, script: Script) -> None:
        super().__init__(agent_id, concurrency=64)
        self.script = script
        self.asked: list[Question] = []

    @task(ASKED, model=Question)
    async def answer(self, context: TaskContext, question: Question) -> object:
        self.asked.append(question)
        result = self.script(question)
        if asyncio.iscoroutine(result):
            result = await result
        if callable(result):
            result = await result(context)
        if isinstance(result, BaseException):
            raise result
        return result


@asynccontextmanager
async def taking_part(mesh: AsyncMesh, **scripts: Script) -> AsyncIterator[dict[str, Voice]]:
    """Agents of these names, within a block."""
    async with AsyncExitStack() as stack:
        voices = {}
        for name, script in scripts.items():
            agent_id = name.replace("_", "-")
            voices[name] = Voice(agent_id, script)
            await stack.enter_async_context(voices[name].running(mesh))
        yield voices


def spec(*agents: str, message: str = "Which?", **fields: Any) -> pb.ConversationSpec:
    """A conversation of agents by name."""
    return pb.ConversationSpec(
        message=message,
        participants=[
            pb.Participant(participant_id=name, agent_id=name.replace("_", "-")) for name in agents
        ],
        **fields,
    )


class Talk:
    """The conversation service as one identity sees it."""

    def __init__(self, mesh: AsyncMesh) -> None:
        self.mesh = mesh
        self.stub: Any = ConversationServiceStub(mesh._connection.channel)

    async def call(self, method: str, request: Any) -> Any:
        """Calls an RPC; raises what clients raise."""
        return await self.mesh._connection.unary(getattr(self.stub, method), request)

    async def hold(self, wanted: pb.ConversationSpec, **fields: Any) -> pb.Conversation:
        """Holds a conversation to its end."""
        # Otherwise a call that is repeated begins another.
        fields.setdefault("request_id", uuid4().hex)
        request = pb.StartConversationRequest(spec=wanted, **fields)
        answer = await self.call("StartConversation", request)
        conversation: pb.Conversation = answer.conversation
        return conversation

    async def events(self, **fields: Any) -> AsyncGenerator[pb.ConversationEvent, None]:
        """Follows a conversation."""
        request = pb.StreamConversationRequest(**fields)
        responses = watch(
            self.mesh._connection,
            self.stub.StreamConversation,
            request,
            lambda response: response.event.revision,
        )
        async with aclosing(responses):
            async for response in responses:
                yield response.event
