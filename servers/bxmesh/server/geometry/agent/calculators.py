"""What answers which request of calculations.proto, and the kind of work that it is."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import Message

from bxmesh.geometry.v1 import calculations_pb2 as pb
from bxmesh.server.geometry.agent.data_quality import data_quality
from bxmesh.server.geometry.agent.maps import electron_density
from bxmesh.server.geometry.agent.minimization import minimization
from bxmesh.server.geometry.agent.real_space import real_space
from bxmesh.server.geometry.agent.restraints import restraints
from bxmesh.server.geometry.agent.run import Calculator
from bxmesh.server.geometry.agent.structure_factors import structure_factors
from bxmesh.server.geometry.agent.validation import validation

__all__ = ["CALCULATORS"]

CALCULATORS: Mapping[type[Message], Calculator] = {
    pb.ComputeStructureFactorsRequest: structure_factors,
    pb.ComputeMapRequest: electron_density,
    pb.ValidateModelRequest: validation,
    pb.MinimizeRequest: minimization,
    pb.ExportRestraintsRequest: restraints,
    pb.AnalyzeDataRequest: data_quality,
    pb.ComputeRealSpaceGradientsRequest: real_space,
}
