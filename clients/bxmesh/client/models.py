"""Models: what calculations refer to, with what was found in their inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bxmesh.client.names import EnumNames
from bxmesh.geometry.v1 import model_pb2 as pb
from bxmesh.tensors import from_message

__all__ = [
    "Atoms",
    "HydrogenPolicy",
    "Model",
    "ModelSummary",
    "ReflectionsSummary",
    "ScatteringTable",
]

HydrogenPolicy = Literal["keep", "strip"]
ScatteringTable = Literal["n_gaussian", "wk1995", "it1992", "electron", "neutron"]

HYDROGENS = EnumNames(pb.HydrogenPolicy, "HYDROGEN_POLICY_")
SCATTERING_TABLES = EnumNames(pb.ScatteringTable, "SCATTERING_TABLE_")

_MAX_ATOMS_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class ReflectionsSummary:
    """What was found in the reflections."""

    data_labels: str
    """The columns used, for example "FOBS,SIGFOBS"."""
    from_intensities: bool
    """Whether amplitudes were derived from intensities (French and Wilson 1978)."""
    anomalous_merged: bool
    """Whether Bijvoet mates were merged."""
    reflections: int
    """The reflections used."""
    free_reflections: int
    """The free set's share of them; 0 without free flags."""
    r_free_flags_label: str
    """The free-flag column; empty when there is none."""
    r_free_test_value: int
    """The value of the flag that marks the free set."""
    d_min: float
    """The high resolution limit in angstrom."""
    d_max: float
    """The low resolution limit in angstrom."""
    scattering_table: str
    """The form factors used."""

    @classmethod
    def from_message(cls, message: pb.ReflectionsSummary) -> ReflectionsSummary:
        """Returns the summary that the message holds."""
        return cls(
            data_labels=message.data_labels,
            from_intensities=message.from_intensities,
            anomalous_merged=message.anomalous_merged,
            reflections=message.reflections,
            free_reflections=message.free_reflections,
            r_free_flags_label=message.r_free_flags_label,
            r_free_test_value=message.r_free_test_value,
            d_min=message.d_min,
            d_max=message.d_max,
            scattering_table=SCATTERING_TABLES.name(message.scattering_table),
        )


@dataclass(frozen=True)
class ModelSummary:
    """What was found in a model's inputs."""

    atoms: int
    """Atoms in the file, and so N in every [N, 3] array."""
    residues: int
    """Residues."""
    chains: int
    """Chains."""
    hydrogens: int
    """Hydrogen atoms in the file."""
    atoms_set_aside: int
    """Atoms that take no part; they have zero gradients."""
    alternative_locations: bool
    """Whether some atom has alternative locations."""
    unit_cell: tuple[float, float, float, float, float, float] | None
    """Lengths in angstrom and angles in degrees; None without crystal symmetry."""
    space_group: str
    """The Hermann-Mauguin symbol; empty without crystal symmetry."""
    reflections: ReflectionsSummary | None
    """What was found in the reflections; None without them."""
    unknown_residues: tuple[str, ...]
    """Residues that no dictionary knows. A model with any refuses geometry."""
    notices: tuple[str, ...]
    """What the caller should know, one sentence each."""
    restraint_library: str
    """Where restraints come from."""

    @classmethod
    def from_message(cls, message: pb.ModelSummary) -> ModelSummary:
        """Returns the summary that the message holds."""
        cell = message.unit_cell
        lengths_and_angles = (cell.a, cell.b, cell.c, cell.alpha, cell.beta, cell.gamma)
        reflections = ReflectionsSummary.from_message(message.reflections)
        return cls(
            atoms=message.atoms,
            residues=message.residues,
            chains=message.chains,
            hydrogens=message.hydrogens,
            atoms_set_aside=message.atoms_set_aside,
            alternative_locations=message.alternative_locations,
            unit_cell=lengths_and_angles if message.HasField("unit_cell") else None,
            space_group=message.space_group,
            reflections=reflections if message.HasField("reflections") else None,
            unknown_residues=tuple(message.unknown_residues),
            notices=tuple(message.notices),
            restraint_library=message.restraint_library,
        )


@dataclass(frozen=True, eq=False)
class Atoms:
    """The atoms in the order of the file, which is the order of every array's N axis."""

    names: tuple[str, ...]
    """Atom names, such as "CA"."""
    residue_names: tuple[str, ...]
    """Residue names, such as "ALA"."""
    chain_ids: tuple[str, ...]
    """Chain identifiers."""
    residue_numbers: tuple[str, ...]
    """Residue numbers with insertion codes, such as "52A"."""
    alternative_locations: tuple[str, ...]
    """Alternative location identifiers; empty where there is none."""
    elements: tuple[str, ...]
    """Elements, such as "C"."""
    mask: NDArray[np.bool_]
    """Which atoms take part in calculations, [N]."""
    sites: NDArray[np.float64]
    """The coordinates of the file, [N, 3] in angstrom."""

    @classmethod
    def from_message(cls, message: pb.AtomTable) -> Atoms:
        """Returns the atoms that the message lists."""

        def array(tensor: Any) -> NDArray[Any]:
            return from_message(tensor, max_bytes=_MAX_ATOMS_BYTES)

        return cls(
            names=tuple(message.names),
            residue_names=tuple(message.residue_names),
            chain_ids=tuple(message.chain_ids),
            residue_numbers=tuple(message.residue_numbers),
            alternative_locations=tuple(message.alternative_locations),
            elements=tuple(message.elements),
            mask=array(message.atom_mask),
            sites=array(message.sites),
        )


@dataclass(frozen=True)
class Model:
    """A model on the mesh."""

    model_id: str
    """The digest of what it is made of."""
    macromolecule: str
    """The macromolecule's bundle."""
    reflections: str
    """The reflections' bundle; empty for geometry only."""
    restraints: tuple[str, ...]
    """The bundles of its restraint dictionaries."""
    summary: ModelSummary
    """What was found."""
    atoms: Atoms | None = field(default=None, repr=False, compare=False)
    """The atoms, where they were asked for and are at most 50,000."""

    @classmethod
    def from_message(cls, message: pb.CreateModelResponse) -> Model:
        """Returns the model that the message holds."""
        model = message.model
        return cls(
            model_id=model.model_id,
            macromolecule=model.spec.macromolecule,
            reflections=model.spec.reflections,
            restraints=tuple(model.spec.restraints),
            summary=ModelSummary.from_message(model.summary),
            atoms=Atoms.from_message(message.atoms) if message.HasField("atoms") else None,
        )
