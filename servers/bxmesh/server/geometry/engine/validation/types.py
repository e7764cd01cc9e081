"""What a validation finds, free of cctbx. Residues are named such as `A 52 ALA`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bxmesh.server.geometry.engine.types import XrayResult


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far the restraints of one term are from their ideal values."""

    term: str
    """bond, angle, dihedral, chirality or planarity."""
    count: int
    """How many restraints."""
    rms: float
    """Root mean square deviation: Å for bonds and planes, degrees for angles and dihedrals, Å³ for
    chiral volumes. A plane deviates by the root mean square distance of its atoms."""
    rms_z: float
    """Root mean square of deviation over sigma."""
    max: float
    """The largest deviation."""


@dataclass(frozen=True, slots=True)
class Outlier:
    """Something that a check flags."""

    check: str
    """A term, or ramachandran, omega, cbeta, rotamer, close_contact."""
    residues: tuple[str, ...]
    value: float
    ideal: float
    """What is expected, where there is one value."""
    score: float
    """How bad it is, by which outliers of one check are ordered, see the check."""
    description: str
    """A sentence for people."""


@dataclass(frozen=True, slots=True)
class Share:
    """One class of a classified check."""

    check: str
    name: str
    count: int
    fraction: float
    """0 to 1."""


@dataclass(frozen=True, slots=True)
class RamachandranPoint:
    """The backbone of one residue, in one conformation."""

    residue: str
    phi: float
    """In degrees, -180 to 180."""
    psi: float
    """In degrees, -180 to 180."""
    residue_class: str
    """general, glycine, cis-proline, trans-proline, pre-proline, or isoleucine or valine."""
    region: str
    """favored, allowed or outlier."""
    score: float
    """The percentage of well-determined residues of its class that are less usual."""


@dataclass(frozen=True, slots=True)
class ResidueDeviation:
    """The restraint of a residue that is farthest from its ideal value."""

    residue: str
    worst_z: float
    """Its deviation over sigma, 0 or more."""
    term: str
    """Its term."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check of protein residues finds."""

    looked_at: int
    """How many it could judge."""
    outliers: Sequence[Outlier]
    """Worst first."""
    shares: tuple[Share, ...] = ()
    points: tuple[RamachandranPoint, ...] = ()


@dataclass(frozen=True)
class Validation:
    """How good a model is at one set of coordinates."""

    deviations: tuple[Deviation, ...] = ()
    shares: tuple[Share, ...] = ()
    outliers: tuple[Outlier, ...] = ()
    """The worst of each check, then the second worst of each, and so on."""
    ramachandran: tuple[RamachandranPoint, ...] = ()
    residues: tuple[ResidueDeviation, ...] = ()
    """Those that have restraints, in the order of the file."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """How many outliers each check that was made has, listed or not."""
    unavailable: tuple[str, ...] = ()
    """The checks that could not be made, each with the reason."""
    xray: XrayResult | None = None
