"""`bxmesh validate`: how good a model is, and whether it is better than another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from numpy.typing import NDArray

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.inputs import Coordinates, Source, in_a_directory, made, model_inputs
from bxmesh.client.cli.progress import Phases
from bxmesh.client.cli.tables import facts, show
from bxmesh.client.cli.values import plain
from bxmesh.client.validation import Comparison, Validation, compare

__all__ = ["validate"]

_MOST_SHOWN = 20


@click.command()
@model_inputs
@click.option("--coordinates", type=Coordinates(), help="[N, 3] in angstrom, for the file's.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=in_a_directory,
    help="Write the report as a page with plots, which needs nothing else.",
)
@click.option("--against", type=Source(), help="Compare with this model, as it was before.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="In seconds.")
@connecting
def validate(
    where: Where,
    coordinates: NDArray[Any] | None,
    html: Path | None,
    against: str | None,
    as_json: bool,
    timeout: float | None,
    **choices: Any,
) -> None:
    """Validate MODEL, a PDB or mmCIF file.

    Deviations from ideal geometry, the backbone, close contacts, and R factors with --reflections,
    which hold for the model of --against as well. What cannot be checked is named with the reason.
    Without --address and without a running mesh, one is started for the call.
    """
    phases = Phases(quiet=as_json)
    before: Validation | None = None
    with tracing("validate"), phases, where.connect_or_embed(phases.begin) as mesh:
        if against is not None:
            other = made(mesh, phases, choices | {"model": against}, timeout)
            phases.begin("validate the other")
            before = mesh.validate(other, timeout=timeout)
        created = made(mesh, phases, choices, timeout)
        phases.begin("validate")
        found = mesh.validate(created, coordinates, html=html, before=before, timeout=timeout)
    compared = () if before is None else compare(before, found)
    if as_json:
        click.echo(json.dumps(_plain(found, before, compared), allow_nan=False))
        return
    _show(found)
    if compared:
        click.echo()
        show(("compared", "before", "after", "change"), map(_row, compared))
    if html is not None:
        click.echo(f"\nreport written to {html}")


def _plain(
    found: Validation, before: Validation | None, compared: tuple[Comparison, ...]
) -> dict[str, Any]:
    report: dict[str, Any] = plain(found)
    if before is not None:
        report["before"] = plain(before)
        report["comparison"] = [plain(each) | {"change": each.change} for each in compared]
    return report


def _show(found: Validation) -> None:
    if found.deviations:
        show(
            ("restraints", "number", "rms", "rms Z", "largest", "outliers"),
            (
                (
                    each.term,
                    f"{each.count}",
                    f"{each.rms:.4f}",
                    f"{each.rms_z:.2f}",
                    f"{each.max:.3f}",
                    f"{found.outlier_counts[each.term]}",
                )
                for each in found.deviations.values()
            ),
        )
        click.echo()
    facts(_facts(found))
    if found.outliers:
        click.echo()
        show(
            ("outlier", "residues", "score", "what it is"),
            (
                (each.check, ", ".join(each.residues), f"{each.score:.3g}", each.description)
                for each in found.outliers[:_MOST_SHOWN]
            ),
        )
        rest = sum(found.outlier_counts.values()) - _MOST_SHOWN
        if rest > 0:
            click.echo(f"and {rest} more: --json or --html lists the worst 1000")
    click.echo()
    facts(("not checked", reason) for reason in found.unavailable)


def _facts(found: Validation) -> Iterator[tuple[str, str]]:
    for check in dict.fromkeys(share.check for share in found.shares):
        yield (
            check,
            ", ".join(
                f"{share.name} {share.count} ({share.fraction:.1%})"
                for share in found.shares
                if share.check == check and share.count
            ),
        )
    for check in ("cbeta", "close_contact"):
        if check in found.outlier_counts:
            yield check.replace("_", " "), f"{found.outlier_counts[check]} outliers"
    if found.xray is not None:
        yield "R-work", f"{found.xray.r_work:.4f}"
        yield "R-free", "" if found.xray.r_free is None else f"{found.xray.r_free:.4f}"


def _row(compared: Comparison) -> tuple[str, str, str, str]:
    change = "" if compared.change is None else f"{compared.change:+.4g}"
    return compared.name, _figure(compared.before), _figure(compared.after), change


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
