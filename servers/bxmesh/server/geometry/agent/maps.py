"""ComputeMap: a map over the unit cell as a tensor and as a CCP4 file."""

from __future__ import annotations

from collections.abc import Mapping

from bxmesh.geometry.v1 import bundle_pb2
from bxmesh.geometry.v1 import calculations_pb2 as pb
from bxmesh.server.geometry.agent.run import Answer, Run
from bxmesh.server.geometry.agent.warm_models import one_sample_call
from bxmesh.server.geometry.engine.maps import MapKind, density_map

__all__ = ["electron_density"]

_KINDS: Mapping[pb.MapKind.ValueType, MapKind] = {
    pb.MAP_KIND_2MFO_DFC: "2mfo_dfc",
    pb.MAP_KIND_MFO_DFC: "mfo_dfc",
    pb.MAP_KIND_ANOMALOUS: "anomalous",
}
_RESOLUTION_FACTOR = 4.0


def electron_density(run: Run[pb.ComputeMapRequest]) -> Answer:
    """Computes a map with phases and scales of the coordinates that it is for."""
    request = run.request
    found = one_sample_call(
        lambda: density_map(
            run.model,
            _KINDS[request.kind],
            run.coordinates,
            resolution_factor=request.resolution_factor or _RESOLUTION_FACTOR,
            on_step=run.steps.step,
        )
    )
    with run.steps.step("write"):
        bundle_id = run.keep(found.ccp4(), bundle_pb2.BUNDLE_KIND_MAP, "application/x-ccp4-map")
    summary = pb.MapSummary(ccp4_bundle_id=bundle_id, mean=found.mean, sigma=found.sigma)
    return summary, {"map": found.values}
