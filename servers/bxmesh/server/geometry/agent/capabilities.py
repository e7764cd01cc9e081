"""What a geometry worker offers, under which others find it, and the kinds of work it takes."""

from collections.abc import Mapping

from google.protobuf.message import Message

from bxmesh.geometry.v1 import calculations_pb2 as pb

QUEUE = "geometry"
AGENT_TYPE = "geometry.worker"
MODEL, SESSION = "geometry.model", "geometry.session"
CAPABILITIES = (MODEL, "geometry.gradients", SESSION)

CREATE_MODEL = "geometry.create_model"
GRADIENTS = "geometry.gradients"
OPEN_SESSION = "geometry.open_session"

CALCULATIONS: Mapping[type[Message], str] = {
    pb.ComputeStructureFactorsRequest: "geometry.structure_factors",
    pb.ComputeMapRequest: "geometry.map",
    pb.ValidateModelRequest: "geometry.validation",
    pb.MinimizeRequest: "geometry.minimization",
    pb.ExportRestraintsRequest: "geometry.restraints",
    pb.AnalyzeDataRequest: "geometry.data",
    pb.ComputeRealSpaceGradientsRequest: "geometry.real_space",
}
"""The kinds of calculations that have one answer, by what asks for them."""
