"""`bxmesh gradients`: energies and gradients of a model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
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
from bxmesh.client.cli.report import Report
from bxmesh.client.options import PARAMETERS, GradientOptions

__all__ = ["gradients"]


@click.command()
@model_inputs
@target_options
@click.option(
    "--with-respect-to",
    type=click.Choice(PARAMETERS.choices),
    multiple=True,
    help="What to differentiate with respect to, by default sites; repeatable.",
)
@click.option(
    "--per-term", "gradients_per_term", is_flag=True, help="Also a gradient per restraint term."
)
@click.option("--coordinates", type=Coordinates(), help="[N, 3] or [B, N, 3] in angstrom.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=in_a_directory,
    help="Write the gradients to this .npz file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="In seconds.")
@connecting
def gradients(
    where: Where,
    coordinates: NDArray[Any] | None,
    output: Path | None,
    as_json: bool,
    timeout: float | None,
    **choices: Any,
) -> None:
    """Compute energies and gradients of MODEL, a PDB or mmCIF file.

    Without --address and without a running mesh, one is started for the call.
    """
    phases = Phases(quiet=as_json)
    with tracing("gradients") as trace_id, phases, where.connect_or_embed(phases.begin) as mesh:
        created = made(mesh, phases, choices, timeout)
        options = cast(GradientOptions, choices | {"precision": "float64"})
        phases.begin("gradients")
        result = mesh.gradients(
            created, coordinates, on_progress=phases.show, timeout=timeout, **options
        )
    report = Report(created.summary, result, phases.seconds, trace_id)
    if output is not None:
        with output.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **result.arrays)
    if as_json:
        click.echo(json.dumps(report.as_dict(), allow_nan=False))
    else:
        report.show(output)
    if not any(sample.ok for sample in result.samples):
        sys.exit(1)
