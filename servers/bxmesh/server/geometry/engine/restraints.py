"""Geometry restraints: building them once, evaluating them often."""

import math
from typing import Any

import mmtbx.model
from cctbx import geometry_restraints as cctbx
from cctbx.array_family import flex
from libtbx.utils import null_out
from mmtbx.monomer_library import pdb_interpretation

from bxmesh.server.geometry.engine import cif, files
from bxmesh.server.geometry.engine.contacts import Contacts
from bxmesh.server.geometry.engine.errors import EngineError, SampleError
from bxmesh.server.geometry.engine.library import RestraintLibrary
from bxmesh.server.geometry.engine.macromolecule import Macromolecule
from bxmesh.server.geometry.engine.order import AtomOrder
from bxmesh.server.geometry.engine.types import (
    TERMS,
    Floats,
    GeometryResult,
    Mask,
    SampleStatus,
    Term,
)
from bxmesh.server.geometry.engine.words import words

_PLAIN_PAIRS_RADIUS = 5.0
# The terms that none of our restraints have; energies_sites would evaluate them too.
_NEVER_BUILT = (
    "reference_coordinate_proxies",
    "reference_dihedral_manager",
    "ncs_dihedral_manager",
    "den_manager",
    "ramachandran_manager",
    "external_energy_function",
)


_RESIDUAL_SUMS = tuple((name, getattr(cctbx, f"{name}_residual_sum")) for name in TERMS[1:-1])


class GeometryTarget:
    """The geometry restraints of one model.

    Adds up the same functions of cctbx as its `energies_sites`, so that the pairs out of contact
    can be left out.
    """

    def __init__(self, manager: Any, order: AtomOrder) -> None:
        for name in _NEVER_BUILT:
            if getattr(manager, name) is not None:
                raise NotImplementedError(f"restraints with {name}")
        self._manager = manager
        self._order = order
        self._contacts = Contacts(manager.nonbonded_function)

    def evaluate(self, sites: Floats, *, per_term: bool = False) -> GeometryResult:
        """Return energy, terms and gradients at `sites` [N, 3]; raises SampleError.

        With `per_term` each term has a gradient of its own, too.
        """
        at = self._order.to_flex(sites)
        gradients = flex.vec3_double(at.size())
        apart = {name: flex.vec3_double(at.size()) for name in TERMS} if per_term else {}
        try:
            terms = self._add_terms(at, [apart.get(name, gradients) for name in TERMS])
            for own in apart.values():
                gradients += own
        except (RuntimeError, AssertionError, ValueError) as error:
            self._forget_pairs()
            raise _sample_error(error) from error
        energy = sum(term.energy for term in terms.values())
        norm = gradients.norm()
        if not math.isfinite(energy + norm):
            raise SampleError(
                SampleStatus.NON_FINITE, "The geometry energy or its gradients are not finite."
            )
        return GeometryResult(
            energy,
            terms,
            self._in_file(gradients),
            norm,
            self._order.mask,
            {name: self._in_file(own) for name, own in apart.items()},
        )

    def _in_file(self, gradients: Any) -> Floats:
        return self._order.to_file(gradients.as_double().as_numpy_array().reshape(-1, 3))

    def _add_terms(self, sites: Any, gradients: list[Any]) -> dict[str, Term]:
        """Add each term's gradient to its place in `gradients`, which may all be one."""
        of_bonds, *of_others, of_contacts = gradients
        manager = self._manager
        pairs = manager.pair_proxies(sites_cart=sites)
        bonds, contacts = pairs.bond_proxies, pairs.nonbonded_proxies
        near, repulsion = self._contacts.among(contacts, sites), manager.nonbonded_function
        terms = {"bond": Term(cctbx.bond_residual_sum(sites, bonds, of_bonds), bonds.n_total())}
        for (name, residual_sum), own in zip(_RESIDUAL_SUMS, of_others, strict=True):
            proxies = getattr(manager, f"{name}_proxies")
            if proxies is not None:
                terms[name] = Term(residual_sum(sites, proxies, own), proxies.size())
        terms["nonbonded"] = Term(
            cctbx.nonbonded_residual_sum(sites, near, of_contacts, repulsion), contacts.n_total()
        )
        return terms

    def lend(self, sites: Floats) -> tuple[Any, Any, list[int]]:
        """Return cctbx's manager, a flex of `sites` [N, 3], and the places in the file of its atoms.

        Its pairs are those at these sites. It is lent until the next call; raises SampleError.
        """
        at = self._order.to_flex(sites)
        try:
            self._manager.pair_proxies(sites_cart=at)
        except (RuntimeError, AssertionError, ValueError) as error:
            self._forget_pairs()
            raise _sample_error(error) from error
        return self._manager, at, self._order.places.tolist()

    def _forget_pairs(self) -> None:
        self._manager._sites_cart_used_for_pair_proxies = None


def unknown_residues(
    model: Macromolecule, library: RestraintLibrary, dictionaries: tuple[Any, ...]
) -> tuple[str, ...]:
    """Return the names of the residues that neither library nor dictionaries define."""
    monomers, energies = library.with_restraints(dictionaries)
    unknown: dict[str, None] = {}
    seen: set[str] = set()
    for group in model.hierarchy.atom_groups():
        name = group.resname.strip()
        if name in seen:
            continue
        seen.add(name)
        names = [atom.name.replace(" ", "") for atom in group.atoms()]
        monomer, _ = monomers.get_comp_comp_id_and_atom_name_interpretation(
            residue_name=group.resname, atom_names=names
        )
        if monomer is None and not _is_single_atom(group, energies):
            unknown[name] = None
    return tuple(unknown)


def read_dictionaries(data: tuple[bytes, ...]) -> tuple[Any, ...]:
    """Return the parsed restraint CIFs; raises EngineError with RESTRAINTS_UNREADABLE."""
    return tuple(_read_dictionary(item, number) for number, item in enumerate(data, start=1))


def build(
    model: Macromolecule,
    library: RestraintLibrary,
    dictionaries: tuple[Any, ...],
    keep: Mask,
) -> GeometryTarget:
    """Return the restraints of the atoms in `keep` [N]; raises EngineError."""
    monomers, energies = library.with_restraints(dictionaries)
    kept = keep[model.order]
    places = model.order[kept]
    hierarchy = model.hierarchy.select(flex.bool(kept), copy_atoms=True)
    hierarchy.atoms().reset_i_seq()
    parameters = mmtbx.model.manager.get_default_pdb_interpretation_params()
    # The atoms stay where the file has them, whatever the naming convention.
    parameters.pdb_interpretation.flip_symmetric_amino_acids = False
    log = null_out()
    try:
        processed = pdb_interpretation.process(
            mon_lib_srv=monomers,
            ener_lib=energies,
            params=parameters.pdb_interpretation,
            pdb_inp=model.source,
            pdb_hierarchy=hierarchy,
            strict_conflict_handling=False,
            crystal_symmetry=model.symmetry,
            force_symmetry=True,
            log=log,
            substitute_non_crystallographic_unit_cell_if_necessary=True,
        )
        _refuse_unknown(processed)
        manager = processed.geometry_restraints_manager(
            show_energies=False,
            plain_pairs_radius=_PLAIN_PAIRS_RADIUS,
            params_edits=parameters.geometry_restraints.edits,
            params_remove=parameters.geometry_restraints.remove,
            assume_hydrogens_all_missing=not model.hydrogens[places].any(),
        )
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(
            "RESTRAINTS_NOT_BUILT",
            f"Geometry restraints cannot be built for this model: {words(error)}",
            field="macromolecule",
        ) from error
    return GeometryTarget(manager, AtomOrder(places, len(model.atoms)))


def _read_dictionary(data: bytes, number: int) -> Any:
    field, reason = "restraints", "RESTRAINTS_UNREADABLE"
    text = files.decode(files.decompress(data, field=field), field=field, reason=reason)
    document = cif.reader(text, field=field, reason=reason, strict=False).model()
    if not any(key.startswith(("comp_", "link_", "mod_")) for key in document):
        raise EngineError(
            reason,
            f"Restraint dictionary {number} has no data_comp_, data_link_ or data_mod_ block; make "
            "one with a program such as eLBOW, AceDRG or Grade.",
            field=field,
        )
    return document


def _is_single_atom(group: Any, energies: Any) -> bool:
    if group.atoms_size() != 1:
        return False
    atom = group.atoms()[0]
    ion = pdb_interpretation.ad_hoc_single_atom_residue(group.resname, atom.name, atom.element)
    return ion.scattering_type is not None and ion.energy_type in energies.lib_atom


def _refuse_unknown(processed: Any) -> None:
    proxies = processed.all_chain_proxies
    atoms = proxies.pdb_hierarchy.atoms()
    unknown = proxies.nonbonded_energy_type_registry.get_unknown_atoms(atoms, return_iseqs=True)
    if not unknown:
        return
    labels = tuple(atoms[i_seq].id_str().strip() for i_seq in unknown)
    raise EngineError(
        "UNKNOWN_ATOMS",
        f"{len(labels)} atoms are not in the dictionary of their residue: "
        f"{'; '.join(labels[:5])}{' …' if len(labels) > 5 else ''}. Rename them or give a "
        "restraint CIF for the residue with the model.",
        field="macromolecule",
        subjects=labels,
    )


def _sample_error(error: Exception) -> SampleError:
    message = words(error)
    if "max_reasonable_bond_distance" in message:
        return SampleError(SampleStatus.EXPLODED, f"Bonded atoms are too far apart: {message}")
    return SampleError(SampleStatus.FAILED, f"The restraints cannot be evaluated: {message}")
