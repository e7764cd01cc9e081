"""All checks of a model at one set of coordinates."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from typing import Any, TypeVar

from bxmesh.server.geometry.engine.errors import EngineError
from bxmesh.server.geometry.engine.macromolecule import Macromolecule
from bxmesh.server.geometry.engine.order import AtomOrder
from bxmesh.server.geometry.engine.restraints import GeometryTarget
from bxmesh.server.geometry.engine.types import Floats, StepFactory, XrayResult
from bxmesh.server.geometry.engine.validation import (
    cbeta,
    close_contacts,
    deviations,
    omega,
    ramachandran,
    rotamers,
)
from bxmesh.server.geometry.engine.validation.naming import Naming
from bxmesh.server.geometry.engine.validation.types import (
    Deviation,
    Outlier,
    RamachandranPoint,
    ResidueDeviation,
    Share,
    Validation,
)
from bxmesh.server.geometry.engine.words import words

MOST_OUTLIERS = 1000
"""So many are listed in all; every one is counted."""

_NO_PROBE = (
    "clashscore: needs the program probe, which this server does not have; "
    "close contacts are counted instead"
)
_NO_CONTOURS = (
    "rotamers: their contours (rotarama_data of Phenix's chem_data) are not installed here"
)
_NO_PROTEIN = "no residue has the protein backbone that they look at"

_T = TypeVar("_T")


def validate(
    molecule: Macromolecule,
    sites: Floats,
    geometry: Callable[[], GeometryTarget],
    xray: Callable[[], XrayResult] | None,
    on_step: StepFactory,
) -> Validation:
    """Return what all checks find at `sites` [N, 3].

    A check that the model or this installation does not allow is named with the reason; coordinates at which
    nothing can be said raise SampleError.
    """
    found = _Findings()
    _restraints(found, molecule, sites, geometry, on_step)
    with on_step("backbone"):
        _backbone(found, _hierarchy(molecule, sites))
    agreement = None if xray is None else found.allowed("R factors", xray)
    found.unavailable.append(_NO_PROBE)
    return Validation(
        deviations=tuple(found.deviations),
        shares=tuple(found.shares),
        outliers=found.worst(),
        ramachandran=found.ramachandran,
        residues=found.residues,
        counts=found.counts,
        unavailable=tuple(found.unavailable),
        xray=agreement,
    )


@dataclass
class _Findings:
    deviations: list[Deviation] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)
    outliers: list[list[Outlier]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    unavailable: list[str] = field(default_factory=list)
    ramachandran: tuple[RamachandranPoint, ...] = ()
    residues: tuple[ResidueDeviation, ...] = ()

    def add(self, check: str, count: int, worst: list[Outlier]) -> None:
        self.counts[check] = count
        self.outliers.append(worst)

    def worst(self) -> tuple[Outlier, ...]:
        """Return the worst of each check, then the second worst of each, and so on."""
        ranks = chain.from_iterable(zip_longest(*self.outliers))
        return tuple(islice(filter(None, ranks), MOST_OUTLIERS))

    def allowed(self, what: str, call: Callable[[], _T]) -> _T | None:
        """Return what a call returns, or None and note why the model does not allow it."""
        try:
            return call()
        except EngineError as error:
            self.unavailable.append(f"{what}: {error.message}")
            return None

    def attempted(self, what: str, call: Callable[[], _T]) -> _T | None:
        """Return what a check of mmtbx returns, or None and note what it stumbled over."""
        try:
            return call()
        except Exception as error:
            # It meets whatever may stand in a file, and is only one of many checks.
            self.unavailable.append(f"{what}: could not be made, {words(error)}")
            return None


def _restraints(
    found: _Findings,
    molecule: Macromolecule,
    sites: Floats,
    geometry: Callable[[], GeometryTarget],
    on_step: StepFactory,
) -> None:
    target = found.allowed("restraints and close contacts", geometry)
    if target is None:
        return
    naming = Naming(molecule.atoms)
    with on_step("deviations"):
        manager, at, places = target.lend(sites)
        terms = list(deviations.restraints(manager, at))
        for term in terms:
            found.deviations.append(term.deviation())
            found.add(term.term, *term.outliers(places, naming, MOST_OUTLIERS))
        found.residues = deviations.worst_of_residues(terms, places, naming)
    with on_step("close_contacts"):
        found.add(
            close_contacts.CHECK,
            *close_contacts.close_contacts(manager, at, places, naming, MOST_OUTLIERS),
        )


def _backbone(found: _Findings, hierarchy: Any) -> None:
    missing = []
    if plot := found.attempted("Ramachandran", lambda: ramachandran.ramachandran(hierarchy)):
        found.ramachandran, shares, outliers = plot
        if shares:
            found.shares += shares
            found.add(ramachandran.CHECK, len(outliers), outliers)
        else:
            missing.append("Ramachandran")
    if bonds := found.attempted("omega", lambda: omega.omega(hierarchy)):
        shares, outliers = bonds
        if shares:
            found.shares += shares
            found.add(omega.CHECK, len(outliers), outliers)
        else:
            missing.append("omega")
    if atoms := found.attempted("C-beta deviations", lambda: cbeta.cbeta(hierarchy)):
        count, outliers = atoms
        if count:
            found.add(cbeta.CHECK, len(outliers), outliers)
        else:
            missing.append("C-beta deviations")
    if missing:
        found.unavailable.append(f"{', '.join(missing)}: {_NO_PROTEIN}")
    if not rotamers.has_contours():
        found.unavailable.append(_NO_CONTOURS)
    elif sidechains := found.attempted("rotamers", lambda: rotamers.rotamers(hierarchy)):
        shares, outliers = sidechains
        found.shares += shares
        found.add(rotamers.CHECK, len(outliers), outliers)


def _hierarchy(molecule: Macromolecule, sites: Floats) -> Any:
    hierarchy = molecule.hierarchy.deep_copy()
    atoms = hierarchy.atoms()
    atoms.set_xyz(AtomOrder(molecule.order, len(sites)).to_flex(sites))
    for atom in atoms:
        # mmtbx would take it for the name of a chain that has none.
        atom.segid = ""
    return hierarchy
