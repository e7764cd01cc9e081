"""A language model uses what an agent of the mesh offers, by LangGraph's ToolNode.

Needs a running mesh and LangGraph: `bxmesh serve`, then `python examples/langgraph_tools.py`. The
model here is one that says what is written down below; put `your_model.bind_tools(tools)` in its place.
"""

import asyncio

from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import BaseModel, Field

from bxmesh.client import Agent, AsyncMesh, TaskContext, task
from bxmesh.client.langgraph import mesh_tools


class Crystal(BaseModel):
    """What is asked about a crystal."""

    cell: tuple[float, float, float] = Field(description="Lengths in angstrom, angles of 90°")
    kilodaltons: float = Field(gt=0, description="The mass of protein in the cell")


class Matthews(Agent):
    """Knows how much of a crystal is solvent."""

    @task("crystal.solvent", model=Crystal)
    async def solvent(self, context: TaskContext, crystal: Crystal) -> dict[str, float]:
        """Returns the Matthews coefficient in Å³/Da, and the solvent's fraction (Matthews 1968)."""
        a, b, c = crystal.cell
        coefficient = a * b * c / (1000 * crystal.kilodaltons)
        return {"matthews": round(coefficient, 2), "solvent": round(1 - 1.23 / coefficient, 2)}


def says(cell: list[float], kilodaltons: float) -> AIMessage:
    """Returns a message in which a model calls the tool."""
    arguments = {"cell": cell, "kilodaltons": kilodaltons}
    call = {"name": "crystal-solvent", "args": arguments, "id": f"call {kilodaltons}"}
    return AIMessage("", tool_calls=[call])


async def main() -> None:
    """Lets the model call the tool wrongly, then rightly, and answer."""
    answer = AIMessage("About half of your crystal is water.")
    model = GenericFakeChatModel(
        messages=iter([says([50, 60, 70], -1), says([50, 60, 70], 84), answer])
    )
    async with AsyncMesh() as mesh, Matthews("matthews-1").running(mesh):
        tools = await mesh_tools(mesh)

        async def think(state: MessagesState) -> MessagesState:
            return {"messages": [await model.ainvoke(state["messages"])]}

        graph = StateGraph(MessagesState)
        graph.add_node("think", think)
        graph.add_node("tools", ToolNode(tools))
        graph.add_edge(START, "think")
        graph.add_conditional_edges("think", tools_condition)
        graph.add_edge("tools", "think")
        question = HumanMessage("84 kDa in 50 × 60 × 70 Å: how much of it is solvent?")
        ended = await graph.compile().ainvoke({"messages": [question]})
    for message in ended["messages"]:
        if message.content:
            print(f"{message.type}: {message.content}")


asyncio.run(main())
