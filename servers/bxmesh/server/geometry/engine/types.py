"""What goes into the engine and what comes out: options, inputs and results, free of cctbx."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Names: TypeAlias = npt.NDArray[np.str_]
StepFactory: TypeAlias = Callable[[str], AbstractContextManager[object]]
Algorithm: TypeAlias = Literal["fft", "direct"]
Hydrogens: TypeAlias = Literal["auto", "keep", "strip"]
Parameter: TypeAlias = Literal["sites", "adp_iso", "adp_aniso", "occupancy"]
ScatteringTable: TypeAlias = Literal[
    "auto", "n_gaussian", "it1992", "wk1995", "electron", "neutron"
]
TargetName: TypeAlias = Literal["ml", "ls", "mlhl", "twin_ls"]
UnitCell: TypeAlias = tuple[float, float, float, float, float, float]

TERMS = ("bond", "angle", "dihedral", "chirality", "planarity", "parallelity", "nonbonded")
"""The restraint terms that have a gradient of their own."""


@dataclass(frozen=True)
class ModelOptions:
    """How the input files of a model are read."""

    hydrogens: Hydrogens = "auto"
    """`keep` restrains them, `strip` leaves them out of the geometry, `auto` strips them only when
    the restraint library does not know their names. The X-ray target always has them."""
    generate_r_free_flags: bool = False
    """Mark 10 % of the reflections, at most 2000, as free when the data bring no flags."""
    data_labels: str | None = None
    """Labels of the amplitudes or intensities to use, such as `FOBS,SIGFOBS`; None finds them."""
    r_free_labels: str | None = None
    """Label of the R-free flags to use; None finds them."""
    d_min: float | None = None
    """High-resolution limit in Å; None is the limit of the data."""
    d_max: float | None = None
    """Low-resolution limit in Å; None is the limit of the data."""
    scattering_table: ScatteringTable = "auto"
    """`auto` is `electron` or `neutron` when the model's header says so, else `n_gaussian`."""


@dataclass(frozen=True)
class ModelInputs:
    """The files of a model as bytes, gzipped or not."""

    macromolecule: bytes
    """PDB or mmCIF."""
    reflections: bytes | None = None
    """MTZ or structure-factor CIF."""
    restraints: tuple[bytes, ...] = ()
    """Restraint dictionaries (CIF); a later one overrides an earlier one and the library."""
    options: ModelOptions = ModelOptions()


@dataclass(frozen=True)
class XrayOptions:
    """Which X-ray target is computed and its gradients with respect to what."""

    target: TargetName = "ml"
    algorithm: Algorithm = "fft"
    """`fft` is fast; `direct` is exact and slow."""
    with_respect_to: frozenset[Parameter] = frozenset({"sites"})
    bulk_solvent: bool = True
    """Model the bulk solvent with a mask when the data are scaled."""
    twin_law: str = ""
    """The law of `twin_ls`, such as `h,-k,-l`; the other targets have none."""


@dataclass(frozen=True, slots=True)
class Term:
    """One restraint term."""

    energy: float
    """Its residual sum, without a unit."""
    count: int
    """The number of its restraints."""


@dataclass(frozen=True)
class GeometryResult:
    """The geometry target at one set of coordinates."""

    energy: float
    """Sum of all terms: the residual sum, not normalised by the number of restraints."""
    terms: Mapping[str, Term]
    """Per term: bond, angle, dihedral, chirality, planarity, parallelity, nonbonded, …"""
    gradients: Floats
    """[N, 3], energy per Å, in the input file's atom order; zero where `atom_mask` is False."""
    gradient_norm: float
    """The Euclidean norm of the gradients."""
    atom_mask: Mask
    """[N], True for the atoms that are restrained."""
    term_gradients: Mapping[str, Floats] = field(default_factory=dict)
    """[N, 3] for each of TERMS when they were asked for; they add up to `gradients`."""


@dataclass(frozen=True)
class XrayResult:
    """The X-ray target at one set of coordinates, with scales frozen at the deposited ones."""

    target: str
    """The name of the target in cctbx: `ml`, `mlhl`, `ls_wunit_k1` or `twin_lsq_f`."""
    value: float
    """The target over the work set, per reflection."""
    value_free: float | None
    """The target over the free set; None without R-free flags."""
    r_work: float
    r_free: float | None
    reflections: int
    gradients: Mapping[str, Floats]
    """`sites` [N, 3] per Å; `adp_iso` [N] per Å² of U, of its isotropic part for anisotropic
    atoms; `adp_aniso` [N, 6] per Å² of U in the Cartesian frame (11, 22, 33, 12, 13, 23), zero for
    isotropic atoms; `occupancy` [N]; all in the input file's order."""
    atom_mask: Mask
    """[N], True for the atoms that scatter."""
    twin_fraction: float | None = None
    """The share of the second domain, as scaled; None without a twin law."""


@dataclass(frozen=True, eq=False)
class AtomTable:
    """Every atom of the input file, in its order; all arrays have length N."""

    name: Names
    resname: Names
    chain: Names
    resseq: Names
    icode: Names
    altloc: Names
    element: Names
    sites: Floats
    """[N, 3] in Å, as in the file."""

    def __len__(self) -> int:
        return len(self.sites)


@dataclass(frozen=True)
class DataSummary:
    """The observed reflections of a model."""

    labels: str
    kind: Literal["amplitudes", "intensities"]
    anomalous_merged: bool
    reflections: int
    work: int
    free: int
    d_min: float
    d_max: float
    r_free_labels: str | None
    r_free_test_value: int | None
    r_free_generated: bool
    scattering_table: str


@dataclass(frozen=True)
class ModelSummary:
    """What was found in the input files."""

    format: Literal["pdb", "mmcif"]
    atoms: int
    residues: int
    chains: int
    unit_cell: UnitCell | None
    """Lengths in Å and angles in degrees."""
    space_group: str | None
    """Hermann–Mauguin symbol such as `P 1 21 1`."""
    hydrogens: int
    hydrogens_stripped: int
    altlocs: tuple[str, ...]
    unknown_residues: tuple[str, ...]
    """Residues that neither the library nor the given dictionaries define."""
    data: DataSummary | None
    notices: tuple[str, ...] = ()


class SampleStatus(Enum):
    """What became of one sample of a batch of coordinates."""

    OK = "ok"
    """Computed."""
    NON_FINITE = "non_finite"
    """The coordinates, the energy or the gradients hold NaN or infinity."""
    OUT_OF_RANGE = "out_of_range"
    """A coordinate is farther from the origin than any model can be."""
    EXPLODED = "exploded"
    """Bonded atoms are too far apart for the restraints to be evaluated."""
    DEGENERATE = "degenerate"
    """Atoms coincide, so that there is no direction to move them in."""
    FAILED = "failed"
    """cctbx refused the coordinates for another reason."""


@dataclass(frozen=True)
class SampleCheck:
    """The verdict on one sample, with a message for people when it is not OK."""

    status: SampleStatus
    message: str = ""


@dataclass(frozen=True)
class LibraryDescription:
    """Which restraint library is in use and how complete it is."""

    source: str
    """MMTBX_CCP4_MONOMER_LIB, chem_data, CLIBD_MON or embedded; empty when there is none."""
    path: str
    residues: int
    has_nucleic_acid_links: bool
    knows_hydrogens: bool
    complete: bool
    remedy: str = ""
