"""ValidateModel: a report, and a page of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from bxmesh.geometry.v1 import bundle_pb2, gradients_pb2
from bxmesh.geometry.v1 import calculations_pb2 as pb
from bxmesh.server.errors import invalid_argument
from bxmesh.server.geometry.agent.run import Answer, Run
from bxmesh.server.geometry.agent.warm_models import engine_call
from bxmesh.server.geometry.conversions import status_of, xray_value
from bxmesh.server.geometry.engine import SampleError
from bxmesh.server.geometry.engine.validation import Outlier, Validation
from bxmesh.server.geometry.engine.validation.ramachandran import regions
from bxmesh.server.geometry.report import Subject, page
from bxmesh.server.streams.queue import cancelled

__all__ = ["validation"]

MOST_RESIDUES = 20_000
"""A report lists so many; it checks all."""


def validation(run: Run[pb.ValidateModelRequest]) -> Answer:
    """Validates the model at the given coordinates or its own; raises MeshError."""
    report = _report(_validated(run))
    response = pb.ValidateModelResponse(report=report)
    if run.request.as_html:
        with run.steps.step("html"):
            content = page(_subject(run), report, engine_call(regions), run.request.before)
            response.html_bundle_id = run.keep(
                content.encode(), bundle_pb2.BUNDLE_KIND_VALIDATION_REPORT, "text/html"
            )
    return response, {}


def _validated(run: Run[pb.ValidateModelRequest]) -> Validation:
    @contextlib.contextmanager
    def step(name: str) -> Iterator[None]:
        with run.steps.step(name):
            yield
        run.give_way()
        if run.is_over():
            raise cancelled()

    sites = None if run.coordinates is None else np.asarray(run.coordinates, dtype=np.float64)
    try:
        return engine_call(lambda: run.model.validate(sites, step))
    except SampleError as error:
        status = gradients_pb2.SampleStatus.Name(status_of(error.status))
        raise invalid_argument(
            "coordinates", error.message, reason=status.removeprefix("SAMPLE_STATUS_")
        ) from error


def _subject(run: Run[pb.ValidateModelRequest]) -> Subject:
    summary = run.model.summary
    return Subject(
        model_id=run.request.model_id,
        own_coordinates=run.coordinates is None,
        atoms=summary.atoms,
        residues=summary.residues,
        space_group=summary.space_group or "",
        d_min=summary.data.d_min if summary.data else None,
        notices=summary.notices,
    )


def _report(found: Validation) -> pb.ValidationReport:
    report = pb.ValidationReport(
        deviations=[
            pb.Deviation(
                term=each.term, count=each.count, rms=each.rms, rms_z=each.rms_z, max=each.max
            )
            for each in found.deviations
        ],
        shares=[
            pb.Share(check=each.check, name=each.name, count=each.count, fraction=each.fraction)
            for each in found.shares
        ],
        outliers=map(_outlier, found.outliers),
        unavailable=found.unavailable,
        outlier_counts=[
            pb.OutlierCount(check=check, count=count) for check, count in found.counts.items()
        ],
        ramachandran=[
            pb.RamachandranPoint(
                residue=each.residue,
                phi=each.phi,
                psi=each.psi,
                residue_class=each.residue_class,
                region=each.region,
                score=each.score,
            )
            for each in found.ramachandran[:MOST_RESIDUES]
        ],
        residues=[
            pb.ResidueDeviation(residue=each.residue, worst_z=each.worst_z, term=each.term)
            for each in found.residues[:MOST_RESIDUES]
        ],
    )
    if len(found.residues) > MOST_RESIDUES or len(found.ramachandran) > MOST_RESIDUES:
        report.unavailable.append(
            f"values per residue: those of the first {MOST_RESIDUES} are listed; all are checked"
        )
    if found.xray is not None:
        report.xray.CopyFrom(xray_value(found.xray, 0.0))
    return report


def _outlier(found: Outlier) -> pb.Outlier:
    return pb.Outlier(
        check=found.check,
        residues=found.residues,
        value=found.value,
        ideal=found.ideal,
        score=found.score,
        description=found.description,
    )
