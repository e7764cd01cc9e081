"""Validations: how good a model is, and whether another is better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bxmesh.client.values import XrayValue
from bxmesh.geometry.v1 import calculations_pb2 as pb

__all__ = [
    "Comparison",
    "Deviation",
    "Outlier",
    "RamachandranPoint",
    "ResidueDeviation",
    "Share",
    "Validation",
    "compare",
]


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far the restraints of one term are from their ideal values."""

    term: str
    """bond, angle, dihedral, chirality or planarity."""
    count: int
    """How many restraints."""
    rms: float
    """Root mean square deviation: angstrom for bonds and planes, degrees for angles and dihedrals."""
    rms_z: float
    """Root mean square of deviation over sigma."""
    max: float
    """The largest deviation."""


@dataclass(frozen=True, slots=True)
class Share:
    """One class of a classified check."""

    check: str
    """ramachandran, omega or rotamer."""
    name: str
    """favored, allowed, outlier, trans, cis proline, cis non-proline or twisted."""
    count: int
    """How many residues."""
    fraction: float
    """Their fraction, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Outlier:
    """Something that a check flags."""

    check: str
    """bond, angle, dihedral, chirality, planarity, ramachandran, omega, cbeta or close_contact."""
    residues: tuple[str, ...]
    """Such as "A 52 ALA", or "A 52 ALA (B)" for an alternative location."""
    value: float
    """The value."""
    ideal: float
    """What is expected, where there is one value."""
    score: float
    """Deviation over sigma; a percentage of the less usual for ramachandran and rotamer; degrees for
    omega; angstrom for cbeta and the overlap of close_contact."""
    description: str
    """A sentence for people."""


@dataclass(frozen=True, slots=True)
class RamachandranPoint:
    """The backbone of one residue, in one of its conformations."""

    residue: str
    """The residue."""
    phi: float
    """In degrees, -180 to 180."""
    psi: float
    """In degrees, -180 to 180."""
    residue_class: str
    """The plot that it belongs to, such as general or glycine."""
    region: str
    """favored, allowed or outlier."""
    score: float
    """The percentage of well-determined residues of its class that are less usual."""


@dataclass(frozen=True, slots=True)
class ResidueDeviation:
    """The restraint of a residue that is farthest from its ideal value."""

    residue: str
    """The residue."""
    worst_z: float
    """Its deviation over sigma."""
    term: str
    """Its term."""


@dataclass(frozen=True)
class Validation:
    """How good a model is at one set of coordinates."""

    deviations: dict[str, Deviation]
    """By term."""
    shares: tuple[Share, ...]
    """Classified checks."""
    outlier_counts: dict[str, int]
    """How many outliers each check has that was made, listed or not."""
    outliers: tuple[Outlier, ...] = field(repr=False)
    """The worst of each check, then the second worst of each, and so on; at most 1000."""
    ramachandran: tuple[RamachandranPoint, ...] = field(repr=False)
    """The Ramachandran plot, at most 20,000 points."""
    residues: tuple[ResidueDeviation, ...] = field(repr=False)
    """Those that have restraints, in the order of the file, at most 20,000."""
    xray: XrayValue | None
    """The agreement with the data, where there are any."""
    unavailable: tuple[str, ...]
    """Checks that could not be made, each with the reason."""
    html_bundle_id: str
    """The report as a page; empty unless it was asked for."""

    @property
    def figures(self) -> dict[str, float]:
        """What two validations are compared by: deviations, shares, outliers, R factors, by name."""
        return {name: value for name, value in _figures(self) if value is not None}

    def share(self, check: str, name: str) -> float | None:
        """Returns the fraction of one class; None when the check was not made."""
        for share in self.shares:
            if (share.check, share.name) == (check, name):
                return share.fraction
        return None

    @classmethod
    def from_message(cls, message: pb.ValidateModelResponse) -> Validation:
        """Returns the validation that the message holds."""
        report = message.report
        return cls(
            deviations={
                each.term: Deviation(each.term, each.count, each.rms, each.rms_z, each.max)
                for each in report.deviations
            },
            shares=tuple(
                Share(each.check, each.name, each.count, each.fraction) for each in report.shares
            ),
            outlier_counts={each.check: each.count for each in report.outlier_counts},
            outliers=tuple(
                Outlier(
                    each.check,
                    tuple(each.residues),
                    each.value,
                    each.ideal,
                    each.score,
                    each.description,
                )
                for each in report.outliers
            ),
            ramachandran=tuple(
                RamachandranPoint(
                    each.residue, each.phi, each.psi, each.residue_class, each.region, each.score
                )
                for each in report.ramachandran
            ),
            residues=tuple(
                ResidueDeviation(each.residue, each.worst_z, each.term) for each in report.residues
            ),
            xray=XrayValue.from_message(report.xray) if report.HasField("xray") else None,
            unavailable=tuple(report.unavailable),
            html_bundle_id=message.html_bundle_id,
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of two validations."""

    name: str
    """What it is, such as "bond rms"."""
    before: float | None
    """None where there is none."""
    after: float | None
    """None where there is none."""

    @property
    def change(self) -> float | None:
        """How much it grew; None when either has none."""
        if self.before is None or self.after is None:
            return None
        return self.after - self.before


def compare(before: Validation, after: Validation) -> tuple[Comparison, ...]:
    """Returns the figures of two validations side by side: deviations, shares, outliers, R factors."""
    return compare_figures(before.figures, after.figures)


def compare_figures(
    before: Mapping[str, float], after: Mapping[str, float]
) -> tuple[Comparison, ...]:
    """Returns figures side by side by their names."""
    names = dict.fromkeys([*before, *after])
    return tuple(Comparison(name, before.get(name), after.get(name)) for name in names)


def _figures(validation: Validation) -> Iterator[tuple[str, float | None]]:
    for deviation in validation.deviations.values():
        yield f"{deviation.term} rms", deviation.rms
        yield f"{deviation.term} rms Z", deviation.rms_z
    for share in validation.shares:
        yield f"{share.check} {share.name}", share.fraction
    for check, count in validation.outlier_counts.items():
        yield f"{check} outliers", count
    if validation.xray is not None:
        yield "R-work", validation.xray.r_work
        yield "R-free", validation.xray.r_free
