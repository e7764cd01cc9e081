"""A graph that minimizes a structure until its bonds are good enough, and says what came of it.

Needs a running mesh and LangGraph: `bxmesh serve`, then `python examples/langgraph_refine.py model.pdb`.
"""

import argparse
import asyncio
from pathlib import Path

from langgraph.graph import END, START, StateGraph

from bxmesh.client import AsyncMesh
from bxmesh.client.langgraph import (
    MeshState,
    gradients_node,
    minimize_node,
    model_node,
    validate_node,
)


class Refinement(MeshState, total=False):
    """The state of this graph."""

    wanted: float
    """The root mean square deviation of bonds that is good enough, in angstrom."""


def next_step(state: Refinement) -> str:
    """Says whether to minimize further."""
    good = state["figures"]["bond rms"] <= state["wanted"]
    return "gradients" if good or state.get("minimized") == "converged" else "minimize"


async def main(model_file: Path, wanted: float, evaluations: int) -> None:
    """Runs the graph and shows each of its steps."""
    async with AsyncMesh() as mesh:
        graph = StateGraph(Refinement)
        graph.add_node("model", model_node(mesh))
        graph.add_node("validate", validate_node(mesh))
        graph.add_node("minimize", minimize_node(mesh, max_evaluations=evaluations))
        graph.add_node("gradients", gradients_node(mesh))
        graph.add_edge(START, "model")
        graph.add_edge("model", "validate")
        graph.add_conditional_edges("validate", next_step, ["minimize", "gradients"])
        graph.add_edge("minimize", "validate")
        graph.add_edge("gradients", END)
        start: Refinement = {"macromolecule": str(model_file), "wanted": wanted}
        async for update in graph.compile().astream(start, stream_mode="updates"):
            for node, changes in update.items():
                if figures := changes.get("figures"):
                    print(f"{node}: bonds {figures['bond rms']:.4f} Å")
                elif energies := changes.get("energies"):
                    print(f"{node}: energy {energies[0]:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="the macromolecule, PDB or mmCIF")
    parser.add_argument("--wanted", type=float, default=0.01, help="bonds, rms in angstrom")
    parser.add_argument("--evaluations", type=int, default=20, help="in each round")
    options = parser.parse_args()
    asyncio.run(main(options.model, options.wanted, options.evaluations))
