"""AnalyzeData: what the reflections say of themselves."""

from __future__ import annotations

from bxmesh.geometry.v1 import calculations_pb2 as pb
from bxmesh.server.geometry.agent.run import Answer, Run
from bxmesh.server.geometry.agent.warm_models import engine_call

__all__ = ["data_quality"]


def data_quality(run: Run[pb.AnalyzeDataRequest]) -> Answer:
    """Reports on the data of the model; raises MeshError when it has none."""
    with run.steps.step("analyze"):
        found = engine_call(run.model.data_quality)
    summary = run.model.summary.data
    assert summary is not None
    report = pb.DataReport(
        labels=summary.labels,
        french_wilson=summary.kind == "intensities",
        reflections=summary.reflections,
        d_max=summary.d_max,
        d_min=summary.d_min,
        completeness=found.completeness,
        i_over_sigma=found.i_over_sigma,
        free_fraction=found.free_fraction,
        wilson_b=found.wilson_b,
        anisotropic_b=found.anisotropic_b or (),
        anisotropy=found.anisotropy,
        second_moment=found.second_moment,
        mean_l=found.mean_l,
        mean_l2=found.mean_l2,
        twin_laws=found.twin_laws,
        unavailable=found.unavailable,
        shells=[
            pb.ResolutionShell(
                d_max=shell.d_max,
                d_min=shell.d_min,
                reflections=shell.reflections,
                completeness=shell.completeness,
                i_over_sigma=shell.i_over_sigma,
            )
            for shell in found.shells
        ],
    )
    return pb.AnalyzeDataResponse(report=report), {}
