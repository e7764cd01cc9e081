"""An agent with tasks of all kinds of parameters, and graphs in which a model calls them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from pydantic import BaseModel

from bxmesh.client import Agent, InvalidInput, TaskContext, task


class Place(BaseModel):
    chain: str
    number: int


class Residue(BaseModel):
    place: Place
    config: str = ""


class Count(BaseModel):
    """How far to count."""

    upto: int


@dataclass
class Seen:
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)


class Counter(Agent):
    """Does tasks of all kinds of parameters."""

    seen: Seen

    @task("count.up", model=Count)
    async def count(self, context: TaskContext, count: Count) -> list[int]:
        await context.progress(50, "half way")
        return list(range(count.upto))

    @task("count.residue", model=Residue)
    async def residue(self, context: TaskContext, residue: Residue) -> dict[str, Any]:
        return residue.model_dump()

    @task("count.names", model=list[str])
    async def names(self, context: TaskContext, names: list[str]) -> int:
        return len(names)

    @task("count.anything")
    async def anything(self, context: TaskContext) -> Any:
        return context.parameters

    @task("count.never", model=Count)
    async def never(self, context: TaskContext, count: Count) -> None:
        self.seen.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.seen.cancelled.set()

    @task("count.badly", model=Count)
    async def badly(self, context: TaskContext, count: Count) -> None:
        raise InvalidInput("there is no such residue", reason="NO_RESIDUE")


def called(name: str, **arguments: Any) -> AIMessage:
    """What a model says that calls a tool."""
    return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": f"call-{name}"}])


def answers(node: ToolNode, *calls: AIMessage) -> Any:
    """A graph in which a model makes calls, whatever comes of them, and says that it is done."""
    model = FakeMessagesListChatModel(responses=[*calls, AIMessage("done")])

    async def think(state: MessagesState) -> Any:
        return {"messages": [await model.ainvoke(state["messages"])]}

    def further(state: MessagesState) -> str:
        last = state["messages"][-1]
        return "tools" if isinstance(last, AIMessage) and last.tool_calls else END

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("tools", node)
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", further, ["tools", END])
    graph.add_edge("tools", "think")
    return graph.compile()


async def asked(node: ToolNode, *calls: AIMessage) -> list[ToolMessage]:
    ended = await answers(node, *calls).ainvoke({"messages": [HumanMessage("go")]})
    assert ended["messages"][-1].content == "done"
    return [message for message in ended["messages"] if isinstance(message, ToolMessage)]
