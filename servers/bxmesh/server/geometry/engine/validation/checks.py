"""All checks of a model at one set of coordinates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
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
    Finding,
    Outlier,
    RamachandranPoint,
    ResidueDeviation,
    Share,
    Validation,
)
from bxmesh.server.geometry.engine.words import words

MOST_OUTLIERS = 1000
"""So many are listed in all; every one is counted."""

_NEVER_MADE = (
    "clashscore: needs the program probe, which this server does not have; "
    "close contacts are counted instead",
    "CaBLAM, Rama-Z: not among the checks of this server",
)
_NO_PROTEIN = "there is no protein residue that has the atoms"

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
    _residues(found, _hierarchy(molecule, sites), on_step)
    agreement = None if xray is None else found.allowed("R factors", xray)
    found.unavailable += _NEVER_MADE
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
    outliers: list[Sequence[Outlier]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    unavailable: list[str] = field(default_factory=list)
    ramachandran: tuple[RamachandranPoint, ...] = ()
    residues: tuple[ResidueDeviation, ...] = ()

    def add(self, check: str, count: int, worst: Sequence[Outlier]) -> None:
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
            return self.allowed(what, call)
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
        every = list(deviations.restraints(manager, at))
        found.unavailable += [
            f"{term.undefined} restraints of the term {term.term}: "
            "their atoms lie on each other, or in one line"
            for term in every
            if term.undefined
        ]
        terms = [term for term in every if term.atoms]
        for term in terms:
            found.deviations.append(term.deviation())
            found.add(term.term, *term.outliers(places, naming, MOST_OUTLIERS))
        found.residues = deviations.worst_of_residues(terms, places, naming)
    with on_step("close_contacts"):
        found.add(
            close_contacts.CHECK,
            *close_contacts.close_contacts(manager, at, places, naming, MOST_OUTLIERS),
        )


def _residues(found: _Findings, hierarchy: Any, on_step: StepFactory) -> None:
    absent = []
    for title, name, check in _OF_RESIDUES:
        with on_step(name):
            finding = found.attempted(title, partial(check, hierarchy))
        if finding is None:
            continue
        if not finding.looked_at:
            absent.append(title)
            continue
        found.shares += finding.shares
        found.ramachandran += finding.points
        found.add(name, len(finding.outliers), finding.outliers)
    if absent:
        found.unavailable.append(f"{', '.join(absent)}: {_NO_PROTEIN}")


_OF_RESIDUES: tuple[tuple[str, str, Callable[[Any], Finding]], ...] = (
    ("Ramachandran", ramachandran.CHECK, ramachandran.ramachandran),
    ("omega", omega.CHECK, omega.omega),
    ("C-beta deviations", cbeta.CHECK, cbeta.cbeta),
    ("rotamers", rotamers.CHECK, rotamers.rotamers),
)


def _hierarchy(molecule: Macromolecule, sites: Floats) -> Any:
    hierarchy = molecule.hierarchy.deep_copy()
    atoms = hierarchy.atoms()
    atoms.set_xyz(AtomOrder(molecule.order, len(sites)).to_flex(sites))
    for atom in atoms:
        # mmtbx would take it for the name of a chain that has none.
        atom.segid = ""
    return hierarchy
