"""The nodes and tools of LangGraph, run in its graphs, on a real mesh with real agents."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph

from bxmesh.client import (
    AsyncMesh,
    InvalidInput,
    Mesh,
    Model,
    NotFound,
    Timeouts,
)
from bxmesh.client.langgraph import (
    MeshState,
    gradients_node,
    mesh_tools,
    minimize_node,
    model_node,
    tool_node,
    validate_node,
)
from bxmesh.server.embedded import EmbeddedMesh
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, wheel_file
from tests.workflows.graphs import Counter, Seen, answers, asked, called

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
async def mesh_client(server: EmbeddedMesh) -> AsyncIterator[AsyncMesh]:
    async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
        yield mesh


@pytest.fixture
async def counter(mesh_client: AsyncMesh) -> AsyncIterator[Counter]:
    agent = Counter("counter-1")
    agent.seen = Seen()
    async with agent.running(mesh_client):
        yield agent


async def test_nodes(mesh_client: AsyncMesh, mesh: Mesh, crystal: Model) -> None:
    graph = StateGraph(MeshState)
    graph.add_node("model", model_node(mesh_client))
    graph.add_node("gradients", gradients_node(mesh_client, target="combined"))
    graph.add_node("minimize", minimize_node(mesh_client, max_evaluations=20, target="geometry"))
    graph.add_node("validate", validate_node(mesh_client))
    graph.add_edge(START, "model")
    graph.add_edge("model", "gradients")
    graph.add_edge("gradients", "minimize")
    graph.add_edge("minimize", "validate")
    compiled = graph.compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    start: Any = {
        "macromolecule": str(wheel_file(PDB_7N2L)),
        "reflections": str(wheel_file(MTZ_7N2L)),
    }
    told = [event async for event in compiled.astream(start, config, stream_mode="custom")]
    # From the checkpoint, so it can be kept.
    state = (await compiled.aget_state(config)).values

    assert state["model_id"] == crystal.model_id
    expected = mesh.gradients(crystal, target="combined")
    np.testing.assert_allclose(state["gradients"]["combined_sites"], expected.combined_sites)
    assert state["energies"] == pytest.approx(expected.energies("combined"))
    assert state["minimized"] == "max_evaluations"
    assert state["figures"] == mesh.validate(crystal, state["coordinates"]).figures
    assert state["outliers"]
    assert b"ATOM" in await mesh_client.bundles.download(state["refined_bundle_id"])
    assert {event["node"] for event in told} == {"gradients", "minimize"}


async def test_a_node_says_what_it_lacks(mesh_client: AsyncMesh) -> None:
    with pytest.raises(InvalidInput, match="the state has no model_id"):
        await validate_node(mesh_client)({})


async def test_tools_are_what_agents_offer(mesh_client: AsyncMesh, counter: Counter) -> None:
    tools = {tool.name: tool for tool in await mesh_tools(mesh_client)}
    assert sorted(tools) == [
        "count-badly",
        "count-names",
        "count-never",
        "count-residue",
        "count-up",
    ]
    schema = convert_to_openai_tool(tools["count-up"])["function"]
    assert schema["name"] == "count-up"
    assert schema["parameters"]["required"] == ["upto"]
    nested = convert_to_openai_tool(tools["count-residue"])["function"]["parameters"]
    assert "chain" in json.dumps(nested)

    with pytest.raises(NotFound, match=r"no live agent offers count\.down"):
        await mesh_tools(mesh_client, "count.up", "count.down")
    assert not await mesh_tools(mesh_client, which={"agent_type": "nobody"})
    # Outside of a graph they work too.
    assert await tools["count-up"].ainvoke({"upto": 3}) == "[0, 1, 2]"


async def test_a_model_calls_tools(mesh_client: AsyncMesh, counter: Counter) -> None:
    node = await tool_node(
        mesh_client, "count.up", "count.residue", "count.names", "count.anything"
    )
    residue = {"place": {"chain": "A", "number": 52}, "config": "B"}
    results = await asked(
        node,
        called("count-up", upto=2),
        called("count-residue", parameters=residue),
        called("count-names", parameters=["N", "CA"]),
        called("count-anything", parameters={"whatever": [1]}),
    )
    assert [each.artifact for each in results] == [[0, 1], residue, 2, {"whatever": [1]}]
    assert results[0].content == "[0, 1]"
    assert {each.status for each in results} == {"success"}


async def test_a_geometry_worker_is_a_tool_too(mesh_client: AsyncMesh, crystal: Model) -> None:
    node = await tool_node(mesh_client, "geometry.gradients")
    (result,) = await asked(
        node, called("geometry-gradients", parameters={"modelId": crystal.model_id})
    )
    assert result.artifact["samples"][0]["geometry"]["energy"] > 0


async def test_errors_are_told_to_the_model(mesh_client: AsyncMesh, counter: Counter) -> None:
    node = await tool_node(mesh_client, "count.up", "count.badly")
    wrong, failed = await asked(
        node, called("count-up", upto="many"), called("count-badly", upto=1)
    )
    assert (wrong.status, failed.status) == ("error", "error")
    assert "upto" in str(wrong.content)
    assert "there is no such residue" in str(failed.content)
    assert "NO_RESIDUE" in str(failed.content)


def hasty(server: EmbeddedMesh, seconds: float) -> AsyncMesh:
    """A client whose calculations take no longer."""
    timeouts = Timeouts(calculation=seconds)
    return AsyncMesh(server.address, state_dir=server.state_dir, timeouts=timeouts)


async def test_an_agent_that_has_left_is_told_of(server: EmbeddedMesh) -> None:
    """At once, or when the call's time is up: the mesh may learn of the leave after the call."""
    async with hasty(server, 2) as mesh:
        async with Counter("counter-2").running(mesh):
            node = await tool_node(mesh, "count.up")
        (gone,) = await asked(node, called("count-up", upto=1))
    assert gone.status == "error"
    assert "count.up" in str(gone.content)


async def test_a_call_takes_no_longer_than_its_time(server: EmbeddedMesh, counter: Counter) -> None:
    async with hasty(server, 0.5) as mesh, asyncio.timeout(20):
        (late,) = await asked(await tool_node(mesh, "count.never"), called("count-never", upto=1))
        await counter.seen.cancelled.wait()
    assert late.status == "error"
    assert late.content == "count.never took longer than 0.5 s (DEADLINE_EXCEEDED)"


async def test_progress_and_cancellation(mesh_client: AsyncMesh, counter: Counter) -> None:
    node = await tool_node(mesh_client, "count.never")
    begun = asyncio.Event()

    async def run() -> None:
        graph = answers(node, called("count-never", upto=1))
        async for event in graph.astream({"messages": []}, stream_mode="custom"):
            assert event["tool"] == "count-never"
            begun.set()

    work = asyncio.create_task(run())
    async with asyncio.timeout(20):
        await begun.wait()
        await counter.seen.begun.wait()
        work.cancel()
        await counter.seen.cancelled.wait()
    with pytest.raises(asyncio.CancelledError):
        await work


def output(server: EmbeddedMesh, name: str, *arguments: str | Path) -> list[str]:
    """The lines that an example prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "BXMESH_STATE_DIR": str(server.state_dir)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_example_of_nodes(server: EmbeddedMesh) -> None:
    lines = output(server, "langgraph_refine.py", wheel_file(PDB_1YJP))
    bonds = [float(line.split()[2]) for line in lines if line.startswith("validate")]
    assert bonds[-1] < bonds[0]
    assert lines[-1].startswith("gradients: energy")


def test_example_of_tools(server: EmbeddedMesh) -> None:
    _, wrong, right, answer = output(server, "langgraph_tools.py")
    assert "kilodaltons" in wrong
    assert right == 'tool: {"matthews": 2.5, "solvent": 0.51}'
    assert answer == "ai: About half of your crystal is water."


def test_the_client_does_without_langgraph() -> None:
    code = """
import sys
import bxmesh.client
assert not {"langgraph", "langchain_core"} & set(sys.modules)
sys.modules["langgraph"] = None
try:
    import bxmesh.client.langgraph
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'bxmesh[langgraph]'" in done.stdout
