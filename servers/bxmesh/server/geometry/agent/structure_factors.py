"""ComputeStructureFactors: F_calc, F_mask and F_model as tensors, and as an MTZ file."""

from __future__ import annotations

from collections.abc import Mapping

from bxmesh.geometry.v1 import bundle_pb2, gradients_pb2
from bxmesh.geometry.v1 import calculations_pb2 as pb
from bxmesh.server.geometry.agent.run import Answer, Run
from bxmesh.server.geometry.agent.warm_models import one_sample_call
from bxmesh.server.geometry.conversions import xray_value
from bxmesh.server.geometry.engine import structure_factors as engine

__all__ = ["structure_factors"]

_KINDS: Mapping[pb.StructureFactorKind.ValueType, engine.Kind] = {
    pb.STRUCTURE_FACTOR_KIND_F_CALC: "f_calc",
    pb.STRUCTURE_FACTOR_KIND_F_MASK: "f_mask",
    pb.STRUCTURE_FACTOR_KIND_F_MODEL: "f_model",
}


def structure_factors(run: Run[pb.ComputeStructureFactorsRequest]) -> Answer:
    """Computes structure factors with scales of the coordinates that they are at."""
    request = run.request
    direct = request.algorithm == gradients_pb2.STRUCTURE_FACTOR_ALGORITHM_DIRECT
    found = one_sample_call(
        lambda: engine.structure_factors(
            run.model,
            run.coordinates,
            kinds=[_KINDS[kind] for kind in request.kinds],
            algorithm="direct" if direct else "fft",
            d_min=request.d_min or None,
            on_step=run.steps.step,
        )
    )
    summary = pb.StructureFactorsSummary(
        reflections=len(found.miller_indices), k_overall=found.k_overall, k_mask=found.k_mask
    )
    if found.xray is not None:
        summary.xray.CopyFrom(xray_value(found.xray, 0.0))
    if request.as_mtz:
        with run.steps.step("write"):
            summary.mtz_bundle_id = run.keep(
                found.mtz(), bundle_pb2.BUNDLE_KIND_STRUCTURE_FACTORS, "application/x-mtz"
            )
    return summary, {"miller_indices": found.miller_indices, **found.values}
