"""Built restraints as tensors, for evaluation without cctbx; docs/restraints.md describes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from cctbx import sgtbx
from cctbx.geometry_restraints import prolsq_repulsion_function

from bxmesh.restraints.layout import FIELDS, LAYOUT_VERSION
from bxmesh.server.geometry.engine.errors import EngineError
from bxmesh.server.geometry.engine.types import Floats, StepFactory

if TYPE_CHECKING:
    from bxmesh.server.geometry.engine.model import BuiltModel

Array = npt.NDArray[Any]
_HYDROGEN_BONDED = {(1, 2), (1, 3), (2, 3), (3, 3), (2, 4), (3, 4)}


def export(model: BuiltModel, on_step: StepFactory | None = None) -> dict[str, Array]:
    """Return the restraints of a model as the tensors of bxmesh.restraints.layout, by name.

    Atoms are numbered as in the file. Raises EngineError; RESTRAINTS_NOT_EXPORTABLE names what has
    no place in the layout.
    """
    manager, sites, places = model.lend_restraints(on_step)
    atoms = np.asarray(places, dtype=np.int32)
    n_atoms = len(model.atoms)
    operators = _Operators(manager.crystal_symmetry)
    tensors = {
        "layout_version": np.array([LAYOUT_VERSION]),
        "atom_mask": np.isin(np.arange(n_atoms), atoms),
        "unit_cell_is_substitute": np.array([not model.has_symmetry]),
        **operators.tensors(),
        **_special(manager, atoms, operators),
        **_bonds(manager.pair_proxies(sites_cart=sites).bond_proxies, atoms, operators),
        **_angles(manager, atoms),
        **_dihedrals(manager, atoms),
        **_chiralities(manager, atoms),
        **_planarities(manager, atoms),
        **_parallelities(manager, atoms),
        **_nonbonded(manager, atoms, n_atoms),
        **_close(manager, atoms, operators),
    }
    return {name: _typed(name, tensors[name]) for name in FIELDS}


def _typed(name: str, values: Any) -> Array:
    """Return the values in the type of the layout, and in its shape where there are none."""
    field = FIELDS[name]
    array = np.ascontiguousarray(values, dtype=field.dtype)
    if not array.size:
        array = array.reshape([0, *(each for each in field.shape[1:] if isinstance(each, int))])
    return array


class _Operators:
    """The operators of the space group, without and with shifts by whole cells."""

    def __init__(self, symmetry: Any) -> None:
        self._cell = symmetry.unit_cell()
        self.all = list(symmetry.space_group().all_ops())
        self._numbers = {each.r().num(): [] for each in self.all}  # type: dict[Any, list[int]]
        for number, each in enumerate(self.all):
            self._numbers[each.r().num()].append(number)
        self._translations = [np.array(each.t().as_double()) for each in self.all]

    def find(self, operator: Any) -> tuple[int, int, int, int]:
        """Return the number of an operator and its shift."""
        if operator.is_unit_mx():
            return 0, 0, 0, 0
        translation = np.array(operator.t().as_double())
        for number in self._numbers[operator.r().num()]:
            shift = translation - self._translations[number]
            whole = np.rint(shift)
            if np.abs(shift - whole).max() < 1e-6:
                x, y, z = whole.astype(int).tolist()
                return number, x, y, z
        raise AssertionError(f"{operator} is not of the space group")

    def tensors(self) -> dict[str, Any]:
        cell = self._cell
        return {
            "unit_cell": cell.parameters(),
            "orthogonalization": np.array(cell.orthogonalization_matrix()).reshape(3, 3),
            "fractionalization": np.array(cell.fractionalization_matrix()).reshape(3, 3),
            "symmetry_rotations": [np.reshape(each.r().num(), (3, 3)) for each in self.all],
            "symmetry_translations": self._translations,
        }


def _special(manager: Any, atoms: Array, operators: _Operators) -> dict[str, Any]:
    """Return for each atom on a special position the operators that lead to different images."""
    table = manager.site_symmetry_table
    special = list(table.special_position_indices())
    images = []
    for index in special:
        seen: dict[Any, int] = {}
        for number, operator in enumerate(operators.all):
            image = operator.multiply(table.get(index).special_op()).mod_positive()
            seen.setdefault(str(image), number)
        images.append(list(seen.values()))
    return {
        "special_atoms": atoms[special],
        "special_offsets": _offsets(images),
        "special_operators": _flat(images),
    }


def _bonds(bonds: Any, atoms: Array, operators: _Operators) -> dict[str, Any]:
    attributes = "distance_ideal weight slack limit top_out"
    directed = list(_directed(bonds.asu, bonds.asu_mappings() if bonds.asu.size() else None))
    found = [operators.find(each.operator) for each in directed]
    pairs = np.array([(each.i, each.j) for each in directed], dtype=np.intp)
    return {
        "bond_atoms": _places(bonds.simple, atoms),
        **_parameters("bond", bonds.simple, attributes),
        "symmetry_bond_atoms": atoms[pairs],
        **_parameters("symmetry_bond", [each.proxy for each in directed], attributes),
        "symmetry_bond_operator": [number for number, *_ in found],
        "symmetry_bond_shift": [shift for _, *shift in found],
    }


class _Directed(NamedTuple):
    proxy: Any
    i: int
    j: int
    operator: Any


def _directed(proxies: Iterable[Any], mappings: Any) -> Iterator[_Directed]:
    """Yield each pair as its first atom sees it, and as its second sees it where cctbx has it once."""
    for proxy in proxies:
        there = mappings.get_rt_mx_i(proxy).inverse().multiply(mappings.get_rt_mx_j(proxy))
        yield _Directed(proxy, proxy.i_seq, proxy.j_seq, there)
        if proxy.j_sym == 0:
            yield _Directed(proxy, proxy.j_seq, proxy.i_seq, there.inverse())


def _angles(manager: Any, atoms: Array) -> dict[str, Any]:
    proxies = _proxies(manager, "angle")
    return {
        "angle_atoms": _places(proxies, atoms),
        **_parameters("angle", proxies, "angle_ideal weight slack"),
    }


def _dihedrals(manager: Any, atoms: Array) -> dict[str, Any]:
    proxies = _proxies(manager, "dihedral")
    alternatives = [list(each.alt_angle_ideals or ()) for each in proxies]
    return {
        "dihedral_atoms": _places(proxies, atoms),
        **_parameters("dihedral", proxies, "angle_ideal weight slack limit periodicity top_out"),
        "dihedral_alternative_offsets": _offsets(alternatives),
        "dihedral_alternatives": _flat(alternatives, float),
    }


def _chiralities(manager: Any, atoms: Array) -> dict[str, Any]:
    proxies = _proxies(manager, "chirality")
    return {
        "chirality_atoms": _places(proxies, atoms),
        **_parameters("chirality", proxies, "volume_ideal weight both_signs"),
    }


def _planarities(manager: Any, atoms: Array) -> dict[str, Any]:
    proxies = _proxies(manager, "planarity")
    members = [list(each.i_seqs) for each in proxies]
    return {
        "planarity_offsets": _offsets(members),
        "planarity_atoms": atoms[_flat(members)],
        "planarity_weight": _flat([list(each.weights) for each in proxies], float),
        "planarity_origin": [each.origin_id for each in proxies],
    }


def _parallelities(manager: Any, atoms: Array) -> dict[str, Any]:
    proxies = _proxies(manager, "parallelity")
    first, second = (
        [list(getattr(each, side)) for each in proxies] for side in ("i_seqs", "j_seqs")
    )
    return {
        "parallelity_first_offsets": _offsets(first),
        "parallelity_first_atoms": atoms[_flat(first)],
        "parallelity_second_offsets": _offsets(second),
        "parallelity_second_atoms": atoms[_flat(second)],
        **_parameters("parallelity", proxies, "target_angle_deg weight slack limit top_out"),
    }


def _nonbonded(manager: Any, atoms: Array, n_atoms: int) -> dict[str, Any]:
    function = manager.nonbonded_function
    if not isinstance(function, prolsq_repulsion_function):
        raise _not_exportable(f"the nonbonded function {type(function).__name__}")
    charges = manager.nonbonded_charges or [0] * len(atoms)
    kinds = [
        (name, charge != 0) for name, charge in zip(manager.nonbonded_types, charges, strict=True)
    ]
    numbers = {kind: number for number, kind in enumerate(sorted(set(kinds)))}
    distances = _Distances(manager.nonbonded_params)

    def table(of: Callable[[tuple[str, bool], tuple[str, bool]], float]) -> Floats:
        return np.array([[of(a, b) for b in numbers] for a in numbers])

    def of_all(values: Any, elsewhere: int = 0) -> Array:
        placed = np.full(n_atoms, elsewhere)
        if values is not None:
            placed[atoms] = values
        return placed

    return {
        "max_bond_distance": [manager.max_reasonable_bond_distance or np.inf],
        "nonbonded_function": [function.c_rep, function.k_rep, function.irexp, function.rexp],
        "nonbonded_type": of_all([numbers[kind] for kind in kinds], -1),
        "nonbonded_distance": table(distances.apart),
        "nonbonded_distance_1_4": table(distances.one_four),
        "nonbonded_model": of_all(_indices(manager.model_indices)),
        "nonbonded_conformer": of_all(_indices(manager.conformer_indices)),
        "nonbonded_symmetry_exclusion": of_all(_indices(manager.sym_excl_indices)),
    }


class _Distances:
    """The contact distances, as nonbonded_params.get_nonbonded_distance finds them in C++."""

    def __init__(self, parameters: Any) -> None:
        self._parameters = parameters

    def apart(self, a: tuple[str, bool], b: tuple[str, bool]) -> float:
        distance = self._between(a, b, hydrogen_bonds=True)
        return float(max(self._parameters.minimum_distance, distance))

    def one_four(self, a: tuple[str, bool], b: tuple[str, bool]) -> float:
        distance = self._between(a, b, hydrogen_bonds=False)
        distance *= self._parameters.factor_1_4_interactions
        distance -= self._parameters.const_shrink_1_4_interactions
        return float(max(self._parameters.minimum_distance, distance))

    def _between(self, a: tuple[str, bool], b: tuple[str, bool], *, hydrogen_bonds: bool) -> float:
        parameters, table = self._parameters, self._parameters.distance_table
        for first, second in ((a[0], b[0]), (b[0], a[0])):
            if first in table and second in table[first]:
                return float(table[first][second])
        radii = [self._radius(*kind) for kind in (a, b)]
        if None in radii:
            if parameters.default_distance > 0:
                return float(parameters.default_distance)
            raise _not_exportable(f"a pair of the energy types {a[0]} and {b[0]}")
        distance = sum(radii)
        if hydrogen_bonds and self._bond_hydrogens(a[0], b[0]):
            distance -= parameters.const_shrink_donor_acceptor
        return float(max(parameters.minimum_distance, distance))

    def _radius(self, name: str, charged: bool) -> Any:
        if charged and name in self._parameters.ionic_radius_table:
            return self._parameters.ionic_radius_table[name]
        return self._parameters.radius_table.get(name)

    def _bond_hydrogens(self, a: str, b: str) -> bool:
        states = self._parameters.donor_acceptor_table
        if a not in states or b not in states:
            return False
        return tuple(sorted((states[a], states[b]))) in _HYDROGEN_BONDED


def _close(manager: Any, atoms: Array, operators: _Operators) -> dict[str, Any]:
    """Return the pairs up to three bonds apart, both ways and with all that symmetry adds."""
    nearest: dict[tuple[int, ...], int] = {}
    special = set(manager.site_symmetry_table.special_position_indices())
    unit = [sgtbx.rt_mx()]

    def stabiliser(index: int) -> Iterable[Any]:
        return manager.site_symmetry_table.get(index).matrices() if index in special else unit

    for bonds, table in enumerate(manager.shell_sym_tables[:3], start=1):
        for i, partners in enumerate(table):
            for j, sym_ops in partners.items():
                for sym_op in sym_ops:
                    for before in stabiliser(i):
                        for after in stabiliser(j):
                            there = before.multiply(sym_op).multiply(after)
                            nearest.setdefault((i, j, *operators.find(there)), bonds)
                            nearest.setdefault((j, i, *operators.find(there.inverse())), bonds)
    pairs = np.array(sorted(nearest), dtype=np.int64).reshape(-1, 6)
    return {
        "close_atoms": atoms[pairs[:, :2]],
        "close_bonds": [nearest[key] for key in sorted(nearest)],
        "close_operator": pairs[:, 2],
        "close_shift": pairs[:, 3:],
    }


def _proxies(manager: Any, name: str) -> list[Any]:
    proxies = list(getattr(manager, f"{name}_proxies") or ())
    if any(each.sym_ops is not None for each in proxies):
        raise _not_exportable(f"{name} restraints between symmetry-related atoms")
    return proxies


def _parameters(name: str, proxies: Any, attributes: str) -> dict[str, Any]:
    """Return the named attributes, whatever their ideal value is called, and the origin."""
    tensors = {}
    for attribute in [*attributes.split(), "origin_id"]:
        short = {"origin_id": "origin", "target_angle_deg": "ideal"}.get(attribute, attribute)
        short = "ideal" if short.endswith("_ideal") else short
        tensors[f"{name}_{short}"] = [getattr(each, attribute) for each in proxies]
    return tensors


def _places(proxies: Any, atoms: Array) -> Array:
    return atoms[np.array([each.i_seqs for each in proxies], dtype=np.intp)]


def _indices(values: Any) -> Any:
    return None if values is None else np.array(list(values), dtype=np.int64)


def _flat(rows: list[list[Any]], dtype: Any = np.intp) -> Array:
    return np.array([each for row in rows for each in row], dtype=dtype)


def _offsets(rows: list[list[Any]]) -> Array:
    return np.cumsum([0, *(len(row) for row in rows)])


def _not_exportable(what: str) -> EngineError:
    return EngineError(
        "RESTRAINTS_NOT_EXPORTABLE",
        f"These restraints cannot be exported, as the layout has no place for {what}. Compute their "
        "gradients in the mesh.",
        field="macromolecule",
    )
