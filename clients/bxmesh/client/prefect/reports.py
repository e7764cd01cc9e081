"""What came out, as artifacts of Prefect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prefect.artifacts import acreate_markdown_artifact, acreate_table_artifact

from bxmesh.client.minimization import Minimization, MinimizationStep
from bxmesh.client.prefect.artifacts import Artifacts
from bxmesh.client.validation import Validation

__all__ = ["report_minimization", "report_validation"]

_MOST_OUTLIERS = 20


def report_minimization(artifacts: Artifacts, model_id: str, found: Minimization) -> None:
    """Writes where a minimization began and ended as the table `bxmesh-minimization`."""
    table = acreate_table_artifact(
        [_row("start", found.start), _row("best", found.best)],
        key="bxmesh-minimization",
        description=f"{model_id}: {found.reason}, geometry by {found.engine}",
    )
    artifacts.write(table)


def report_validation(artifacts: Artifacts, model_id: str, found: Validation) -> None:
    """Writes figures, the worst outliers and what was not checked as `bxmesh-validation`."""
    page = acreate_markdown_artifact(
        "\n".join(_page(found)), key="bxmesh-validation", description=model_id
    )
    artifacts.write(page)


def _row(name: str, step: MinimizationStep) -> dict[str, str | float | None]:
    value = step.value
    return {
        "": name,
        "evaluation": step.evaluation,
        "target": value.combined.value if value.combined else None,
        "geometry": value.geometry.energy if value.geometry else None,
        "R-work": value.xray.r_work if value.xray else None,
        "R-free": value.xray.r_free if value.xray else None,
        "moved by (Å, rms)": step.rms_displacement,
    }


def _page(found: Validation) -> Iterator[str]:
    figures = ((name, f"{value:.4g}") for name, value in found.figures.items())
    yield from _table(("figure", "value"), figures)
    if found.outliers:
        yield from ("", "## The worst outliers", "")
        yield from _table(
            ("check", "residues", "score", "what it is"),
            (
                (each.check, ", ".join(each.residues), f"{each.score:.3g}", each.description)
                for each in found.outliers[:_MOST_OUTLIERS]
            ),
        )
    if found.unavailable:
        yield from ("", "## Not checked", "")
        yield from (f"- {reason}" for reason in found.unavailable)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for cells in (head, ("---",) * len(head), *rows):
        # What came out of a file is text, not markup.
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
