"""What gradients are computed of, and how."""

from __future__ import annotations

from typing import Literal, TypedDict

from bxmesh.client.names import EnumNames
from bxmesh.client.values import XRAY_TARGETS, XrayTarget
from bxmesh.geometry.v1 import gradients_pb2 as pb

__all__ = [
    "Algorithm",
    "Engine",
    "GradientOptions",
    "Parameter",
    "Precision",
    "Target",
    "XrayTarget",
    "to_message",
]

Target = Literal["geometry", "xray", "combined"]
Algorithm = Literal["fft", "direct"]
Parameter = Literal["sites", "adp_iso", "occupancy", "adp_aniso"]
Engine = Literal["cctbx", "fast"]
Precision = Literal["float32", "float64"]

TARGETS = EnumNames(pb.Target, "TARGET_")
ALGORITHMS = EnumNames(pb.StructureFactorAlgorithm, "STRUCTURE_FACTOR_ALGORITHM_")
PARAMETERS = EnumNames(pb.Parameter, "PARAMETER_")
PRECISIONS = EnumNames(pb.Precision, "PRECISION_")
ENGINES = EnumNames(pb.Engine, "ENGINE_")


class GradientOptions(TypedDict, total=False):
    """What is computed; everything left out is the server's choice."""

    target: Target | None
    """The target; geometry for a model without reflections, otherwise combined."""
    xray_target: XrayTarget | None
    """The form of the X-ray target; maximum likelihood, or twin_ls with a twin law."""
    algorithm: Algorithm | None
    """How structure factors are computed; fft."""
    with_respect_to: tuple[Parameter, ...]
    """What to differentiate with respect to; sites. All others are X-ray only."""
    geometry_weight: float
    """The weight of geometry in the combined target; 1."""
    xray_weight: float
    """The weight of X-ray in the combined target; the ratio of the gradient norms."""
    precision: Precision | None
    """The element type of the gradients; that of the coordinates, float64 without any."""
    engine: Engine | None
    """Which evaluator computes geometry; the fastest that is equal."""
    selection: str
    """The atoms that move, in mmtbx syntax; all. The others' gradients are zero."""
    gradients_per_term: bool
    """Also a gradient per restraint term."""
    twin_law: str
    """The twin law for twin_ls, for example "h,-k,-l"; a symmetry of the lattice, not of the crystal."""


def to_message(options: GradientOptions) -> pb.GradientOptions:
    """Returns the options as a message. InvalidInput for a name that the contract does not have."""
    return pb.GradientOptions(
        target=TARGETS.number(options.get("target")),
        xray_target=XRAY_TARGETS.number(options.get("xray_target")),
        algorithm=ALGORITHMS.number(options.get("algorithm")),
        with_respect_to=[PARAMETERS.number(name) for name in options.get("with_respect_to", ())],
        geometry_weight=options.get("geometry_weight", 0.0),
        xray_weight=options.get("xray_weight", 0.0),
        precision=PRECISIONS.number(options.get("precision")),
        engine=ENGINES.number(options.get("engine")),
        selection=options.get("selection", ""),
        gradients_per_term=options.get("gradients_per_term", False),
        twin_law=options.get("twin_law", ""),
    )
