"""Calculations as tasks of Prefect. Each connects by itself and returns plain values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from numpy.typing import ArrayLike

from bxmesh.client.gradients import Gradients
from bxmesh.client.mesh import Source
from bxmesh.client.minimization import Minimization, MinimizationStep
from bxmesh.client.models import Model
from bxmesh.client.options import GradientOptions
from bxmesh.client.prefect.artifacts import Artifacts
from bxmesh.client.prefect.connection import MeshConnection, connected
from bxmesh.client.prefect.reports import report_minimization, report_validation
from bxmesh.client.prefect.retries import mesh_task
from bxmesh.client.validation import Validation
from bxmesh.client.values import Progress

__all__ = ["compute_gradients", "create_model", "minimize", "validate"]

_MOST_EVALUATIONS = 500


@mesh_task
def create_model(
    macromolecule: Source,
    reflections: Source | None = None,
    restraints: Sequence[Source] = (),
    *,
    mesh: MeshConnection | None = None,
    **options: Any,
) -> Model:
    """Makes a model of files, bytes or bundles; options are those of Mesh.create_model.

    Files are read where the task runs. InvalidInput names the input that could not be read.
    """
    with connected(mesh) as connection:
        return connection.create_model(macromolecule, reflections, restraints, **options)


@mesh_task
def compute_gradients(
    model: Model | str,
    coordinates: ArrayLike | None = None,
    *,
    mesh: MeshConnection | None = None,
    timeout: float | None = None,
    **options: Unpack[GradientOptions],
) -> Gradients:
    """Computes energies and gradients of a model, or of the model of that id.

    Coordinates are [N, 3] or [B, N, 3] in angstrom, those of the file without any; the timeout is in
    seconds. A progress artifact tells how many samples are done.
    """
    with Artifacts(f"gradients of {_model_id(model)}") as artifacts, connected(mesh) as connection:

        def tell(so_far: Progress) -> None:
            artifacts.tell(so_far.samples_done / max(1, so_far.samples_total), so_far.step)

        return connection.gradients(
            model, coordinates, on_progress=tell, timeout=timeout, **options
        )


@mesh_task
def minimize(
    model: Model | str,
    coordinates: ArrayLike | None = None,
    *,
    max_evaluations: int = 0,
    macro_cycles: int = 0,
    gradient_tolerance: float = 0.0,
    mesh: MeshConnection | None = None,
    timeout: float | None = None,
    **options: Unpack[GradientOptions],
) -> Minimization:
    """Minimizes a target from the model's coordinates, or from others, [N, 3] in angstrom.

    A progress artifact tells the evaluations out of the most there may be, a table artifact where it
    began and ended. See AsyncMesh.minimize.
    """
    most = (max_evaluations or _MOST_EVALUATIONS) * max(1, macro_cycles)
    model_id = _model_id(model)
    with Artifacts(f"minimization of {model_id}") as artifacts, connected(mesh) as connection:

        def tell(step: MinimizationStep) -> None:
            artifacts.tell(
                step.evaluation / most, f"evaluation {step.evaluation} of {most} at most"
            )

        found = connection.minimize(
            model,
            coordinates,
            max_evaluations=max_evaluations,
            macro_cycles=macro_cycles,
            gradient_tolerance=gradient_tolerance,
            on_step=tell,
            timeout=timeout,
            **options,
        )
        report_minimization(artifacts, model_id, found)
    return found


@mesh_task
def validate(
    model: Model | str,
    coordinates: ArrayLike | None = None,
    *,
    html: str | Path | None = None,
    before: Validation | None = None,
    mesh: MeshConnection | None = None,
    timeout: float | None = None,
) -> Validation:
    """Says how good a model is at its coordinates, or at others, [N, 3] in angstrom.

    A markdown artifact has the figures and the worst outliers. See AsyncMesh.validate.
    """
    model_id = _model_id(model)
    with Artifacts(f"validation of {model_id}") as artifacts, connected(mesh) as connection:
        found = connection.validate(model, coordinates, html=html, before=before, timeout=timeout)
        report_validation(artifacts, model_id, found)
    return found


def _model_id(model: Model | str) -> str:
    return model.model_id if isinstance(model, Model) else model
