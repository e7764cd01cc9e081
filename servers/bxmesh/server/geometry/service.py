"""The geometry service: it takes calls, hands the work to workers, and streams the answers."""

from __future__ import annotations

from bxmesh.server.geometry.bundle_rpcs import BundleRpcs
from bxmesh.server.geometry.calculation_rpcs import CalculationRpcs
from bxmesh.server.geometry.gradient_rpcs import GradientRpcs
from bxmesh.server.geometry.job_rpcs import JobRpcs
from bxmesh.server.geometry.mesh import GeometryMesh
from bxmesh.server.geometry.model_rpcs import ModelRpcs
from bxmesh.server.geometry.session_rpcs import SessionRpcs
from bxmesh.server.open_streams import OpenStreams


class GeometryService(BundleRpcs, ModelRpcs, GradientRpcs, SessionRpcs, CalculationRpcs, JobRpcs):
    """Bundles, models, gradients, sessions, other calculations, and jobs."""

    def __init__(self, mesh: GeometryMesh) -> None:
        BundleRpcs.__init__(self, mesh.store, events=mesh.security, quotas=mesh.quotas)
        self._mesh = mesh
        self._streams = OpenStreams()

    def drain(self) -> None:
        """Ends watches with UNAVAILABLE (SERVER_STOPPING) and takes no more."""
        self._streams.end()
