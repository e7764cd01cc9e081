"""A model as the worker holds it: read once, its targets built when they are first needed."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np

from bxmesh.server.geometry.engine import (  # isort: skip  (the first guards the others)
    cctbx_first,  # noqa: F401
    data_quality,
    macromolecule,
    reflections,
    restraints,
    selections,
    writing,
)
from bxmesh.restraints import Restraints, RestraintsError
from bxmesh.server.geometry.engine.coordinates import check_sample, is_crowded
from bxmesh.server.geometry.engine.data_quality import DataQuality
from bxmesh.server.geometry.engine.errors import EngineError, SampleError
from bxmesh.server.geometry.engine.export import export
from bxmesh.server.geometry.engine.fast import FastGeometry
from bxmesh.server.geometry.engine.library import RestraintLibrary
from bxmesh.server.geometry.engine.order import AtomOrder
from bxmesh.server.geometry.engine.types import (
    AtomTable,
    DataSummary,
    Floats,
    GeometryResult,
    Mask,
    ModelInputs,
    ModelSummary,
    SampleStatus,
    StepFactory,
    UnitCell,
    XrayOptions,
    XrayResult,
)
from bxmesh.server.geometry.engine.validation import Validation, checks
from bxmesh.server.geometry.engine.xray import XrayTarget, scattering_table, xray_structure

_DEFAULT_XRAY = XrayOptions()
_BYTES_PER_MODEL = 500_000
_BYTES_PER_ATOM = 4_500
_BYTES_PER_REFLECTION = 1_000


def untraced(name: str) -> AbstractContextManager[None]:
    """Observe no step."""
    return nullcontext()


def build(
    inputs: ModelInputs,
    library: RestraintLibrary,
    on_step: StepFactory = untraced,
    *,
    most_atoms: int | None = None,
) -> "BuiltModel":
    """Read the files of a model; raises EngineError, also for more than `most_atoms`.

    `on_step(name)` is entered around each step: parse and read_reflections here,
    build_restraints, scale, energies and xray_target later.
    """
    with on_step("parse"):
        molecule = macromolecule.read(inputs.macromolecule)
        _refuse_unbounded(molecule, most_atoms)
        dictionaries = restraints.read_dictionaries(inputs.restraints)
    data = None
    if inputs.reflections is not None:
        with on_step("read_reflections"):
            data = reflections.read(inputs.reflections, molecule.symmetry, inputs.options)
    return BuiltModel(inputs, library, molecule, dictionaries, data, on_step)


def _refuse_unbounded(molecule: macromolecule.Macromolecule, most_atoms: int | None) -> None:
    atoms = molecule.atoms
    if most_atoms is not None and len(atoms) > most_atoms:
        raise EngineError(
            "MODEL_TOO_LARGE",
            f"The macromolecule has {len(atoms)} atoms; {most_atoms} is the most here.",
            field="macromolecule",
        )
    if is_crowded(atoms.sites):
        raise EngineError(
            "MODEL_TOO_DENSE",
            "Hundreds of atoms of the macromolecule are in one place; give it real coordinates.",
            field="macromolecule",
        )


class BuiltModel:
    """A model with its geometry restraints and X-ray targets, for one thread.

    Coordinates and gradients are float64 [N, 3] in Å, N all atoms of the input file in its order.
    """

    summary: ModelSummary
    atoms: AtomTable
    atom_mask: Mask
    """[N], True for the atoms with geometry restraints."""

    def __init__(
        self,
        inputs: ModelInputs,
        library: RestraintLibrary,
        molecule: macromolecule.Macromolecule,
        dictionaries: tuple[Any, ...],
        data: reflections.Reflections | None,
        on_step: StepFactory,
    ) -> None:
        self._file = inputs.macromolecule
        self._options = inputs.options
        self._library = library
        self._molecule = molecule
        self._dictionaries = dictionaries
        self._reflections = data
        self._on_step = on_step
        self._geometry: restraints.GeometryTarget | None = None
        self._fast: FastGeometry | EngineError | SampleError | None = None
        self._xray: XrayTarget | None = None
        self.atoms = molecule.atoms
        notices = [*molecule.notices, *(data.notices if data else ())]
        unknown = self._find_unknown(notices)
        self.atom_mask = self._choose_restrained(notices)
        self.summary = self._summarise(unknown, tuple(notices))

    @property
    def nbytes_estimate(self) -> int:
        """Rough memory of the model with its targets built, in bytes."""
        size = _BYTES_PER_MODEL + _BYTES_PER_ATOM * len(self.atoms)
        if self._reflections is not None:
            size += _BYTES_PER_REFLECTION * self._reflections.f_obs.size()
        if isinstance(self._fast, FastGeometry):
            size += self._fast.nbytes
        return size

    def prepare(
        self,
        target: Literal["geometry", "xray"],
        options: XrayOptions = _DEFAULT_XRAY,
        on_step: StepFactory | None = None,
    ) -> None:
        """Build what `target` needs before its first evaluation; raises EngineError."""
        step = on_step or self._on_step
        if target == "geometry":
            self._geometry_target(step)
        else:
            self._xray_target().prepare(options, step)

    def geometry(
        self,
        sites: Floats | None = None,
        on_step: StepFactory | None = None,
        *,
        per_term: bool = False,
    ) -> GeometryResult:
        """Return the geometry target at `sites`, the file's coordinates when None.

        Raises EngineError, and SampleError when only these coordinates are at fault.
        """
        step = on_step or self._on_step
        target = self._geometry_target(step)
        sites = self._checked(sites)
        with step("energies"):
            return target.evaluate(sites, per_term=per_term)

    def fast_geometry(self, on_step: StepFactory | None = None) -> FastGeometry:
        """Return the geometry target in batches, made of the restraints that cctbx has built.

        Raises EngineError, also RESTRAINTS_NOT_EXPORTABLE, and SampleError when the file's own
        coordinates are at fault.
        """
        step = on_step or self._on_step
        self._geometry_target(step)
        if self._fast is None:
            with step("export_restraints"):
                self._fast = self._export()
        if isinstance(self._fast, Exception):
            raise self._fast
        return self._fast

    def _export(self) -> FastGeometry | EngineError | SampleError:
        try:
            return FastGeometry(Restraints(export(self)))
        except (EngineError, SampleError) as error:
            return error
        except RestraintsError as error:
            return EngineError("RESTRAINTS_NOT_EXPORTABLE", error.message, field="macromolecule")

    def xray(
        self,
        sites: Floats | None = None,
        options: XrayOptions = _DEFAULT_XRAY,
        on_step: StepFactory | None = None,
        *,
        scales: XrayTarget | None = None,
    ) -> XrayResult:
        """Return the X-ray target at `sites`, the file's coordinates when None.

        `scales` are those of `scaled_at`; without them the model's own hold.
        Raises EngineError, and SampleError when only these coordinates are at fault.
        """
        target = scales or self._xray_target()
        return target.evaluate(self._checked(sites), options, on_step or self._on_step)

    def scaled_at(self, sites: Floats | None, *, pairs: bool = False) -> XrayTarget:
        """Return X-ray targets with scales determined at `sites`, for `xray`.

        Without sites these are the model's own. With `pairs` Bijvoet mates are kept apart.
        """
        if sites is None and not pairs:
            return self._xray_target()
        target = self._new_xray_target(pairs=pairs)
        target.refresh_scales(self._checked(sites))
        return target

    def xray_structure(self, sites: Floats | None, d_min: float) -> Any:
        """Return cctbx's xray structure with its atoms at `sites`, good up to `d_min` in Å.

        Raises EngineError, and SampleError when only these coordinates are at fault.
        """
        structure = xray_structure(self._molecule, d_min, self._options.scattering_table)
        order = AtomOrder(self._molecule.order, len(self.atoms))
        structure.set_sites_cart(order.to_flex(self._checked(sites)))
        return structure

    def lend_restraints(self, on_step: StepFactory | None = None) -> tuple[Any, Any, list[int]]:
        """Return cctbx's restraints at the file's coordinates, as `GeometryTarget.lend` does.

        Raises EngineError, and SampleError when these coordinates are at fault.
        """
        return self._geometry_target(on_step or self._on_step).lend(self.atoms.sites)

    @property
    def has_symmetry(self) -> bool:
        """Whether the macromolecule brought a unit cell and a space group."""
        return self._molecule.symmetry is not None

    @property
    def symmetry(self) -> Any:
        """cctbx's crystal symmetry; raises EngineError NO_CRYSTAL_SYMMETRY where there is none."""
        if self._molecule.symmetry is None:
            raise EngineError(
                "NO_CRYSTAL_SYMMETRY",
                "The macromolecule has no unit cell and space group, which structure factors need; "
                "add its CRYST1 record or _cell and _symmetry items.",
                field="macromolecule",
            )
        return self._molecule.symmetry

    def refresh_scales(self, sites: Floats | None = None) -> None:
        """Determine scales, bulk solvent and likelihood parameters anew at `sites`."""
        self._xray_target().refresh_scales(self._checked(sites))

    def data_quality(self) -> DataQuality:
        """Return how good the reflections are; raises EngineError NO_REFLECTIONS without any."""
        return data_quality.analyse(self._molecule, self._data())

    def select(self, selection: str) -> Mask:
        """Return which atoms a selection in mmtbx syntax has, [N]; raises EngineError."""
        return selections.select(self._molecule, selection)

    def validate(
        self, sites: Floats | None = None, on_step: StepFactory | None = None
    ) -> Validation:
        """Return how good the model is at `sites`, the file's coordinates when None.

        R factors are with scales determined there. What cannot be checked is named in the answer; raises
        SampleError when only these coordinates are at fault.
        """
        step = on_step or self._on_step
        return checks.validate(
            self._molecule,
            self._checked(sites),
            lambda: self._geometry_target(step),
            None if self._reflections is None else lambda: self._agreement(sites, step),
            step,
        )

    def _agreement(self, sites: Floats | None, on_step: StepFactory) -> XrayResult:
        free = self._reflections is not None and self._reflections.r_free_flags is not None
        options = XrayOptions(target="ml" if free else "ls", with_respect_to=frozenset())
        return self.xray(sites, options, on_step, scales=self.scaled_at(sites))

    def file_with(self, sites: Floats) -> bytes:
        """Return the input's file with its atoms at `sites`; all else in it stays.

        Raises EngineError COORDINATES_DO_NOT_FIT.
        """
        return writing.with_sites(self._file, sites, mmcif=self._molecule.format == "mmcif")

    def _checked(self, sites: Floats | None) -> Floats:
        if sites is None:
            return self.atoms.sites
        if sites.shape != self.atoms.sites.shape or sites.dtype != np.float64:
            raise EngineError(
                "COORDINATES_SHAPE",
                f"Coordinates must be float64 [{len(self.atoms)}, 3], not {sites.dtype} "
                f"{list(sites.shape)}.",
                field="coordinates",
            )
        check = check_sample(sites)
        if check.status is not SampleStatus.OK:
            raise SampleError(check.status, check.message)
        return sites

    def _geometry_target(self, on_step: StepFactory) -> restraints.GeometryTarget:
        if self._geometry is None:
            self._refuse_unknown()
            with on_step("build_restraints"):
                self._geometry = restraints.build(
                    self._molecule, self._library, self._dictionaries, self.atom_mask
                )
        return self._geometry

    def _xray_target(self) -> XrayTarget:
        if self._xray is None:
            self._xray = self._new_xray_target()
        return self._xray

    def _new_xray_target(self, *, pairs: bool = False) -> XrayTarget:
        data = self._data()
        if pairs:
            data = data.with_pairs()
        return XrayTarget(self._molecule, data, self._options.scattering_table)

    def _data(self) -> reflections.Reflections:
        if self._reflections is None:
            raise EngineError(
                "NO_REFLECTIONS",
                "The X-ray target needs reflections and the model was created without any.",
                field="reflections",
            )
        return self._reflections

    def _find_unknown(self, notices: list[str]) -> tuple[str, ...]:
        try:
            return restraints.unknown_residues(self._molecule, self._library, self._dictionaries)
        except EngineError as error:
            if error.field != "options":
                raise
            notices.append(f"Geometry is not available. {error.message}")
            return ()

    def _refuse_unknown(self) -> None:
        self._library.load()
        unknown = self.summary.unknown_residues
        if unknown:
            raise EngineError(
                "UNKNOWN_RESIDUES",
                f"The restraint library does not know {', '.join(unknown)}. Give a restraint CIF "
                "for each with the model.",
                field="macromolecule",
                subjects=unknown,
            )

    def _choose_restrained(self, notices: list[str]) -> Mask:
        hydrogens = self._molecule.hydrogens
        mode = self._options.hydrogens
        strip = mode == "strip"
        if mode == "auto" and hydrogens.any():
            try:
                strip = not self._library.knows_hydrogens
            except EngineError:
                strip = False
            if strip:
                notices.append(
                    f"{int(hydrogens.sum())} hydrogens are not restrained: the restraint library "
                    "does not know their names."
                )
        mask = ~hydrogens if strip else np.ones(len(hydrogens), dtype=np.bool_)
        if not mask.any():
            raise EngineError(
                "NO_ATOMS", "The macromolecule has only hydrogens.", field="macromolecule"
            )
        mask.flags.writeable = False
        return mask

    def _summarise(self, unknown: tuple[str, ...], notices: tuple[str, ...]) -> ModelSummary:
        symmetry = self._molecule.symmetry
        cell: UnitCell | None = symmetry.unit_cell().parameters() if symmetry else None
        group = str(symmetry.space_group_info()) if symmetry else None
        return ModelSummary(
            format=self._molecule.format,
            atoms=len(self.atoms),
            residues=sum(1 for _ in self._molecule.hierarchy.residue_groups()),
            chains=len(set(self.atoms.chain)),
            unit_cell=cell,
            space_group=group,
            hydrogens=int(self._molecule.hydrogens.sum()),
            hydrogens_stripped=int((~self.atom_mask).sum()),
            altlocs=tuple(sorted({str(letter) for letter in self.atoms.altloc if letter})),
            unknown_residues=unknown,
            data=self._summarise_data(),
            notices=notices,
        )

    def _summarise_data(self) -> DataSummary | None:
        data = self._reflections
        if data is None:
            return None
        d_max, d_min = data.f_obs.d_max_min()
        free = data.r_free_flags.data().count(True) if data.r_free_flags else 0
        return DataSummary(
            labels=data.labels,
            kind="intensities" if data.is_intensity else "amplitudes",
            anomalous_merged=data.anomalous_merged,
            reflections=data.f_obs.size(),
            work=data.f_obs.size() - free,
            free=free,
            d_min=d_min,
            d_max=d_max,
            r_free_labels=data.r_free_labels,
            r_free_test_value=data.r_free_test_value,
            r_free_generated=data.r_free_generated,
            scattering_table=scattering_table(self._molecule, self._options.scattering_table),
        )
