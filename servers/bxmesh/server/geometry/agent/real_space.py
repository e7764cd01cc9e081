"""ComputeRealSpaceGradients: how much density of a map the atoms are in, and where there is more."""

from __future__ import annotations

from collections.abc import Mapping

from bxmesh.geometry.v1 import calculations_pb2 as pb
from bxmesh.server.geometry.agent.run import Answer, Run
from bxmesh.server.geometry.agent.warm_models import engine_call, one_sample_call
from bxmesh.server.geometry.engine import ccp4
from bxmesh.server.geometry.engine import real_space as engine

__all__ = ["real_space"]

_INTERPOLATIONS: Mapping[pb.Interpolation.ValueType, engine.Interpolation] = {
    pb.INTERPOLATION_UNSPECIFIED: "tricubic",
    pb.INTERPOLATION_TRICUBIC: "tricubic",
    pb.INTERPOLATION_LINEAR: "linear",
}


def real_space(run: Run[pb.ComputeRealSpaceGradientsRequest]) -> Answer:
    """Computes the density at the atoms and its gradients."""
    request = run.request
    with run.steps.step("read_map"):
        content = run.read(request.map_bundle_id)
        density = engine_call(lambda: ccp4.read(content))
    with run.steps.step("gradients"):
        found = one_sample_call(
            lambda: engine.real_space(
                run.model,
                density,
                run.coordinates,
                interpolation=_INTERPOLATIONS[request.interpolation],
            )
        )
    return pb.RealSpaceSummary(value=found.value), {
        "gradients": found.gradients,
        "density": found.density,
    }
