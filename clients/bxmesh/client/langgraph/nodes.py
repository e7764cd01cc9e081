"""Calculations as nodes of a graph: functions from its state to what changes in it.

Each is made with the connection that it uses, which so is not part of the state. They raise the
mesh's errors, and tell how far they are on the stream `custom`.
"""

from __future__ import annotations

from typing import Any, Protocol, Unpack

from bxmesh.client.gradients import Gradients
from bxmesh.client.langgraph.state import MeshState
from bxmesh.client.langgraph.streaming import stream_writer
from bxmesh.client.mesh import AsyncMesh
from bxmesh.client.minimization import MinimizationStep
from bxmesh.client.names import invalid
from bxmesh.client.options import GradientOptions, Target
from bxmesh.client.values import Progress

__all__ = ["Node", "gradients_node", "minimize_node", "model_node", "validate_node"]

_MOST_OUTLIERS = 20


class Node(Protocol):
    """A function from a state to what changes in it."""

    async def __call__(self, state: MeshState) -> MeshState:
        """Returns what changes."""


def model_node(mesh: AsyncMesh, **options: Any) -> Node:
    """Returns a node that makes a model of the files in the state.

    Options are those of AsyncMesh.create_model. Writes `model_id` and `notices`.
    """

    async def model(state: MeshState) -> MeshState:
        made = await mesh.create_model(
            _needed(state, "macromolecule"), state.get("reflections"), **options
        )
        return {"model_id": made.model_id, "notices": list(made.summary.notices)}

    return model


def gradients_node(mesh: AsyncMesh, **options: Unpack[GradientOptions]) -> Node:
    """Returns a node that computes energies and gradients; writes `energies` and `gradients`."""

    async def gradients(state: MeshState) -> MeshState:
        write = stream_writer()

        def tell(progress: Progress) -> None:
            done = progress.samples_done / max(1, progress.samples_total)
            write({"node": "gradients", "step": progress.step, "fraction_done": done})

        found = await mesh.gradients(
            _needed(state, "model_id"), state.get("coordinates"), on_progress=tell, **options
        )
        return {"energies": found.energies(_target(found)), "gradients": found.arrays}

    return gradients


def minimize_node(
    mesh: AsyncMesh,
    *,
    max_evaluations: int = 0,
    macro_cycles: int = 0,
    gradient_tolerance: float = 0.0,
    **options: Unpack[GradientOptions],
) -> Node:
    """Returns a node that minimizes a target; see AsyncMesh.minimize.

    Writes `coordinates`, `minimized` and `refined_bundle_id`.
    """

    async def minimize(state: MeshState) -> MeshState:
        write = stream_writer()

        def tell(step: MinimizationStep) -> None:
            write({"node": "minimize", "evaluation": step.evaluation})

        found = await mesh.minimize(
            _needed(state, "model_id"),
            state.get("coordinates"),
            max_evaluations=max_evaluations,
            macro_cycles=macro_cycles,
            gradient_tolerance=gradient_tolerance,
            on_step=tell,
            **options,
        )
        return {
            "coordinates": found.sites,
            "minimized": found.reason,
            "refined_bundle_id": found.macromolecule_bundle_id,
        }

    return minimize


def validate_node(mesh: AsyncMesh) -> Node:
    """Returns a node that says how good the model is; writes `figures` and `outliers`."""

    async def validate(state: MeshState) -> MeshState:
        found = await mesh.validate(_needed(state, "model_id"), state.get("coordinates"))
        return {
            "figures": found.figures,
            "outliers": [
                f"{', '.join(each.residues)}: {each.description}"
                for each in found.outliers[:_MOST_OUTLIERS]
            ],
        }

    return validate


def _needed(state: MeshState, name: str) -> Any:
    if name not in state:
        raise invalid(name, f"the state has no {name}", "MISSING_STATE")
    return state.get(name)


def _target(found: Gradients) -> Target:
    targets: tuple[Target, ...] = ("combined", "xray")
    for target in targets:
        if any(name.startswith(f"{target}_") for name in found.arrays):
            return target
    return "geometry"
