"""`bxmesh data`: how good reflections are."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.inputs import made, model_inputs
from bxmesh.client.cli.progress import Phases
from bxmesh.client.cli.tables import facts, show
from bxmesh.client.data_quality import DataReport

__all__ = ["data"]


@click.command()
@model_inputs
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@connecting
def data(where: Where, as_json: bool, **choices: Any) -> None:
    """Report how good the --reflections of MODEL are: completeness, Wilson B, twinning, ….

    Without --address and without a running mesh, one is started for the call.
    """
    if not choices["reflections"]:
        raise click.UsageError("give the data: --reflections FILE")
    phases = Phases(quiet=as_json)
    with tracing("data"), phases, where.connect_or_embed(phases.begin) as mesh:
        model = made(mesh, phases, choices, None)
        phases.begin("analyze")
        report = mesh.analyze_data(model)
    if as_json:
        click.echo(json.dumps(asdict(report), allow_nan=False))
    else:
        _show(report)


def _show(report: DataReport) -> None:
    tensor = " ".join(f"{value:.1f}" for value in report.anisotropic_b)
    facts(
        [
            ("data", report.labels + (" (French-Wilson)" if report.french_wilson else "")),
            ("resolution", f"{report.d_max:.2f} - {report.d_min:.2f} Å"),
            ("reflections", f"{report.reflections}"),
            ("completeness", f"{report.completeness:.1%}"),
            ("I/sigma", _number(report.i_over_sigma, ".1f")),
            ("set aside for R-free", _number(report.free_fraction, ".1%")),
            ("Wilson B", _number(report.wilson_b, ".1f", " Å²")),
            ("anisotropy", _number(report.anisotropy, ".1f", f" Å² ({tensor})")),
            ("<I²>/<I>²", _number(report.second_moment, ".2f", "; 2 untwinned, 1.5 twinned")),
            ("<|L|>", _number(report.mean_l, ".3f", "; 0.5 untwinned, 0.375 twinned")),
            ("twin laws", ", ".join(report.twin_laws) or "the lattice allows none"),
            ("not said", "\n".join(report.unavailable)),
        ]
    )
    click.echo()
    show(
        ("resolution", "reflections", "complete", "I/sigma"),
        [
            (
                f"{shell.d_max:.2f} - {shell.d_min:.2f}",
                f"{shell.reflections}",
                f"{shell.completeness:.1%}",
                _number(shell.i_over_sigma, ".1f"),
            )
            for shell in report.shells
        ],
    )


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"
