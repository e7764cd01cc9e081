"""What was computed for a sample: energies, agreement with the data, status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from bxmesh.client.names import EnumNames
from bxmesh.geometry.v1 import gradients_pb2 as pb

__all__ = [
    "CombinedValue",
    "EnergyTerm",
    "GeometryValue",
    "Progress",
    "SampleStatus",
    "SampleValue",
    "XrayTarget",
    "XrayValue",
]

SampleStatus = Literal[
    "unspecified", "ok", "non_finite", "out_of_range", "exploded", "degenerate", "failed"
]
XrayTarget = Literal["ml", "ls", "mlhl", "twin_ls"]

XRAY_TARGETS = EnumNames(pb.XrayTarget, "XRAY_TARGET_")
_STATUSES = EnumNames(pb.SampleStatus, "SAMPLE_STATUS_")


@dataclass(frozen=True, slots=True)
class EnergyTerm:
    """One term of the restraints' energy."""

    energy: float
    """The weighted sum of squared deviations."""
    count: int
    """How many restraints the term has."""


@dataclass(frozen=True, slots=True)
class GeometryValue:
    """The restraints' energy of a sample."""

    energy: float
    """The sum of the terms."""
    terms: dict[str, EnergyTerm]
    """The terms by name: bond, angle, dihedral, chirality, planarity, nonbonded, …."""
    gradient_norm: float
    """The Euclidean norm of the gradient."""

    @classmethod
    def from_message(cls, message: pb.GeometryValue) -> GeometryValue:
        """Returns the value that the message holds."""
        terms = {term.name: EnergyTerm(term.energy, term.count) for term in message.terms}
        return cls(message.energy, terms, message.gradient_norm)


@dataclass(frozen=True, slots=True)
class XrayValue:
    """The X-ray target of a sample."""

    target: str
    """The form of the target: ml, ls, mlhl or twin_ls."""
    value: float
    """Its value over the work set, per reflection."""
    r_work: float
    """R-work with the current scales."""
    r_free: float | None
    """R-free with the current scales; None without free flags."""
    reflections: int
    """The reflections in the target."""
    gradient_norm: float
    """The Euclidean norm of the gradient with respect to sites."""
    twin_fraction: float | None
    """The share of the second twin domain, as scaled; None without a twin law."""

    @classmethod
    def from_message(cls, message: pb.XrayValue) -> XrayValue:
        """Returns the value that the message holds."""
        return cls(
            target=XRAY_TARGETS.name(message.target),
            value=message.value,
            r_work=message.r_work,
            r_free=message.r_free if message.HasField("r_free") else None,
            reflections=message.reflections,
            gradient_norm=message.gradient_norm,
            twin_fraction=message.twin_fraction if message.HasField("twin_fraction") else None,
        )


@dataclass(frozen=True, slots=True)
class CombinedValue:
    """The weighted sum of geometry and X-ray of a sample."""

    value: float
    """geometry_weight × geometry energy + xray_weight × X-ray value."""
    geometry_weight: float
    """The weight used for geometry."""
    xray_weight: float
    """The weight used for the X-ray target."""
    gradient_norm: float
    """The Euclidean norm of the combined gradient with respect to sites."""

    @classmethod
    def from_message(cls, message: pb.CombinedValue) -> CombinedValue:
        """Returns the value that the message holds."""
        return cls(
            message.value, message.geometry_weight, message.xray_weight, message.gradient_norm
        )


@dataclass(frozen=True, slots=True)
class SampleValue:
    """What was computed for one sample. One that is not ok has zero gradients."""

    sample: int
    """The index in the batch."""
    status: SampleStatus
    """What became of it."""
    message: str
    """Why, when it is not ok."""
    geometry: GeometryValue | None
    """Geometry, when the target has it."""
    xray: XrayValue | None
    """X-ray, when the target has it."""
    combined: CombinedValue | None
    """The sum, for the combined target."""

    @property
    def ok(self) -> bool:
        """Whether the sample was computed."""
        return self.status == "ok"

    @classmethod
    def from_message(cls, message: pb.SampleValue) -> SampleValue:
        """Returns the value that the message holds."""
        geometry = GeometryValue.from_message(message.geometry)
        xray = XrayValue.from_message(message.xray)
        combined = CombinedValue.from_message(message.combined)
        return cls(
            sample=message.sample,
            status=cast(SampleStatus, _STATUSES.name(message.status)),
            message=message.message,
            geometry=geometry if message.HasField("geometry") else None,
            xray=xray if message.HasField("xray") else None,
            combined=combined if message.HasField("combined") else None,
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a calculation is."""

    step: str
    """queued, parse, build_restraints, read_reflections, scale or gradients."""
    samples_done: int
    """Samples finished."""
    samples_total: int
    """Samples in all."""
    worker_id: str
    """The worker at work; empty while queued."""

    @classmethod
    def from_message(cls, message: pb.Progress) -> Progress:
        """Returns the progress that the message holds."""
        return cls(message.step, message.samples_done, message.samples_total, message.worker_id)
