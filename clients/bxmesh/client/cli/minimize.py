"""`bxmesh minimize`: a model with better coordinates."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import click
from google.protobuf import json_format
from numpy.typing import NDArray

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.inputs import (
    Coordinates,
    in_a_directory,
    made,
    model_inputs,
    target_options,
)
from bxmesh.client.cli.progress import Phases
from bxmesh.client.cli.tables import facts
from bxmesh.client.gradients import as_coordinates
from bxmesh.client.minimization import Minimization
from bxmesh.client.options import GradientOptions, to_message
from bxmesh.client.sync import Mesh
from bxmesh.client.values import Progress, SampleValue
from bxmesh.geometry.v1 import calculations_pb2 as pb
from bxmesh.geometry.v1 import gradients_pb2
from bxmesh.tensors import to_message as to_tensor

__all__ = ["minimize"]


@click.command()
@model_inputs
@target_options
@click.option("--coordinates", type=Coordinates(), help="Where to start: [N, 3] in angstrom.")
@click.option(
    "--max-evaluations",
    type=click.IntRange(min=1, max=100_000),
    default=500,
    show_default=True,
    help="In each round.",
)
@click.option(
    "--macro-cycles",
    type=click.IntRange(min=1, max=100),
    default=1,
    show_default=True,
    help="Rounds, each with X-ray scales of its own.",
)
@click.option(
    "--gradient-tolerance",
    type=click.FloatRange(min=0),
    default=0.0,
    help="When it has converged: the root mean square gradient; a thousandth of the first.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=in_a_directory,
    help="Write the model here, in the format of the input.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@connecting
def minimize(
    where: Where,
    coordinates: NDArray[Any] | None,
    max_evaluations: int,
    macro_cycles: int,
    gradient_tolerance: float,
    output: Path | None,
    as_json: bool,
    **choices: Any,
) -> None:
    """Minimize a target over the coordinates of MODEL, a PDB or mmCIF file.

    An interrupt stops it and keeps the best so far. Without --address and without a running mesh,
    one is started for the call. The exit code is 1 when it diverges.
    """
    phases = Phases(quiet=as_json)
    with tracing("minimize"), phases, where.connect_or_embed(phases.begin) as mesh:
        created = made(mesh, phases, choices, None)
        request = pb.MinimizeRequest(
            model_id=created.model_id,
            options=to_message(cast(GradientOptions, choices)),
            max_evaluations=max_evaluations,
            macro_cycles=macro_cycles,
            gradient_tolerance=gradient_tolerance,
        )
        if coordinates is not None:
            tensor = to_tensor(as_coordinates(coordinates), "coordinates")
            request.coordinates.CopyFrom(gradients_pb2.Coordinates(tensor=tensor))
        phases.begin("minimize")
        result, summary = _follow(mesh, request, phases)
        if output is not None:
            if result.macromolecule_problem:
                raise click.ClickException(result.macromolecule_problem)
            mesh.bundles.download(result.macromolecule_bundle_id, output)
    if as_json:
        plain = json_format.MessageToDict(summary, preserving_proto_field_name=True)
        click.echo(json.dumps(plain, allow_nan=False))
    else:
        _show(result, phases.seconds["minimize"], output)
    if result.reason == "diverged":
        sys.exit(1)


def _follow(
    mesh: Mesh, request: pb.MinimizeRequest, phases: Phases
) -> tuple[Minimization, pb.MinimizationSummary]:
    # As a job, so that an interrupt keeps what it has reached.
    job = mesh.jobs.create(request)
    try:
        for change in mesh.jobs.watch(job.job_id):
            phases.show(Progress(change.step or change.state, 0, 0, ""))
    except KeyboardInterrupt:
        click.echo("\nstopping; what it has reached is kept", err=True)
        mesh.jobs.cancel(job.job_id)
    done = mesh.jobs.result(job.job_id)
    summary = cast(pb.MinimizationSummary, done.summary)
    return Minimization.from_message(summary, done.tensors["sites"]), summary


def _show(result: Minimization, seconds: float, output: Path | None) -> None:
    start, best = result.start, result.best
    facts(
        [
            ("ended", result.reason.replace("_", " ")),
            ("evaluations", f"{best.evaluation}"),
            *_compared(start.value, best.value),
            ("moved", f"{best.rms_displacement:.3f} Å rms"),
            ("took", f"{seconds:.1f} s"),
            ("written to", str(output or "")),
            ("bundle", result.macromolecule_bundle_id),
        ]
    )


def _compared(before: SampleValue, after: SampleValue) -> list[tuple[str, str]]:
    rows = []
    if before.geometry is not None and after.geometry is not None:
        rows.append(("geometry", f"{before.geometry.energy:.6g} → {after.geometry.energy:.6g}"))
    if before.xray is not None and after.xray is not None:
        rows.append(("X-ray target", f"{before.xray.value:.6g} → {after.xray.value:.6g}"))
        rows.append(("R-work", f"{before.xray.r_work:.4f} → {after.xray.r_work:.4f}"))
        if before.xray.r_free is not None and after.xray.r_free is not None:
            rows.append(("R-free", f"{before.xray.r_free:.4f} → {after.xray.r_free:.4f}"))
    return rows
