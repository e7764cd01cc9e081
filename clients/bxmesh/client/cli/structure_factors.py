"""`bxmesh structure-factors`: structure factors of a model as an MTZ file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from numpy.typing import NDArray

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.inputs import Coordinates, in_a_directory, made, model_inputs
from bxmesh.client.cli.progress import Phases
from bxmesh.client.cli.tables import facts
from bxmesh.client.cli.values import as_json as json_option
from bxmesh.client.options import ALGORITHMS
from bxmesh.client.structure_factors import STRUCTURE_FACTOR_KINDS

__all__ = ["structure_factors"]


@click.command("structure-factors")
@model_inputs
@click.option("--coordinates", type=Coordinates(), help="Elsewhere: [N, 3] in angstrom.")
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(STRUCTURE_FACTOR_KINDS.choices),
    multiple=True,
    help="Only these; repeatable.",
)
@click.option("--algorithm", type=click.Choice(ALGORITHMS.choices))
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=in_a_directory,
    required=True,
    help="Write this MTZ file.",
)
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="In seconds.")
@json_option
@connecting
def structure_factors(
    where: Where,
    coordinates: NDArray[Any] | None,
    kinds: Any,
    algorithm: Any,
    output: Path,
    timeout: float | None,
    as_json: bool,
    **choices: Any,
) -> None:
    """Compute structure factors of MODEL, a PDB or mmCIF file with a unit cell.

    With reflections: F_calc, the bulk solvent's F_mask and the scaled F_model, beside the data.
    Without, F_calc up to --d-min. Without a running mesh, one is started for the call.
    """
    phases = Phases(quiet=as_json)
    limit = 0.0
    if not choices["reflections"]:
        limit, choices["d_min"] = choices["d_min"], 0.0
    with (
        tracing("structure-factors") as trace_id,
        phases,
        where.connect_or_embed(phases.begin) as mesh,
    ):
        model = made(mesh, phases, choices, timeout)
        phases.begin("structure factors")
        result = mesh.structure_factors(
            model,
            coordinates,
            kinds=kinds,
            algorithm=algorithm,
            d_min=limit,
            as_mtz=True,
            on_progress=phases.show,
            timeout=timeout,
        )
        mesh.bundles.download(result.mtz_bundle_id, output)
    xray = result.xray
    report = {
        "reflections": len(result.miller_indices),
        "r_work": xray.r_work if xray else None,
        "r_free": xray.r_free if xray else None,
        "k_overall": result.k_overall,
        "k_mask": result.k_mask,
        "bundle_id": result.mtz_bundle_id,
        "trace_id": trace_id,
    }
    if as_json:
        click.echo(json.dumps(report, allow_nan=False))
        return
    rows = [("reflections", f"{len(result.miller_indices)}")]
    if xray is not None:
        rows += [
            ("R-work", f"{xray.r_work:.4f}"),
            ("R-free", "no free flags" if xray.r_free is None else f"{xray.r_free:.4f}"),
            ("overall scale", f"{result.k_overall:.4g}"),
            ("solvent scale", f"{result.k_mask:.4g}"),
        ]
    facts([*rows, ("bundle", result.mtz_bundle_id), ("written to", str(output))])
