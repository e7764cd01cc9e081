"""Restraints of no molecule: every kind, between a few atoms at random, in a small crystal."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bxmesh.restraints import LAYOUT_VERSION, Restraints
from bxmesh.restraints.layout import FIELDS

Floats = NDArray[np.float64]

CELL = np.array([11.0, 13.0, 12.0])
GROUPS = {
    "P 1": [((1, 1, 1), (0, 0, 0))],
    "P 2": [((1, 1, 1), (0, 0, 0)), ((-1, 1, -1), (0, 0, 0))],
    "P 21": [((1, 1, 1), (0, 0, 0)), ((-1, 1, -1), (0, 0.5, 0))],
    "P 21 21 21": [
        ((1, 1, 1), (0, 0, 0)),
        ((-1, -1, 1), (0.5, 0, 0.5)),
        ((-1, 1, -1), (0, 0.5, 0.5)),
        ((1, -1, -1), (0.5, 0.5, 0)),
    ],
}
_COUNTS = {"B": 6, "Y": 2, "A": 5, "D": 6, "C": 3, "P": 3, "L": 2, "T": 3, "E": 10}


def invented(
    seed: int, atoms: int = 12, group: str = "P 21", *, special: bool = False, masked: int = 1
) -> tuple[Restraints, Floats]:
    """Returns restraints of at least 10 atoms and more that have none, and sites [N, 3]."""
    random = np.random.default_rng(seed)
    total = atoms + masked
    sites = random.normal(0, 1.2 * atoms ** (1 / 3), (total, 3)) + random.uniform(-30, 30, 3)
    restrained = np.sort(random.permutation(total)[:atoms])
    draw = _Draw(random, restrained, sites / CELL)
    rotations = np.array([np.diag(each) for each, _ in GROUPS[group]])
    translations = np.array([each for _, each in GROUPS[group]], dtype=float)
    lengths = {**_COUNTS, "N": total, "S": len(rotations)}
    tensors: dict[str, Any] = {
        "layout_version": [LAYOUT_VERSION],
        "atom_mask": np.isin(np.arange(total), restrained),
        "unit_cell": [*CELL, 90, 90, 90],
        "orthogonalization": np.diag(CELL),
        "fractionalization": np.diag(1 / CELL),
        "symmetry_rotations": rotations,
        "symmetry_translations": translations,
        "max_bond_distance": [1000],
        "nonbonded_function": [16, random.uniform(0.8, 1), *_exponents(random)],
        **draw.special(special),
        **draw.images("symmetry_bond", lengths["Y"], rotations, translations),
        **draw.close(lengths["E"], rotations, translations),
        **draw.planes(lengths),
    }
    for name, size, members in (
        ("bond", 6, 2),
        ("angle", 5, 3),
        ("dihedral", 6, 4),
        ("chirality", 3, 4),
    ):
        tensors[f"{name}_atoms"] = draw.atoms(size, members)
    counts = random.integers(0, 3, lengths["D"])
    tensors["dihedral_alternative_offsets"] = np.cumsum([0, *counts])
    tensors["dihedral_alternatives"] = random.uniform(-180, 180, counts.sum())
    tensors["dihedral_periodicity"] = random.integers(-3, 4, lengths["D"])
    tensors["nonbonded_type"] = np.where(tensors["atom_mask"], random.integers(0, 3, total), -1)
    for name in ("nonbonded_distance", "nonbonded_distance_1_4"):
        table = random.uniform(2, 4, (3, 3))
        tensors[name] = (table + table.T) / 2
    for name in ("model", "conformer", "symmetry_exclusion"):
        tensors[f"nonbonded_{name}"] = random.integers(0, 3, total) * (random.random(total) < 0.3)
    for name in sorted(FIELDS.keys() - tensors.keys()):
        shape = tuple(lengths.get(each, each) for each in FIELDS[name].shape)
        tensors[name] = draw.parameter(name, shape, FIELDS[name].dtype)
        if name.startswith("symmetry_bond"):  # Both atoms see the same bond.
            tensors[name][1::2] = tensors[name][::2]
    return Restraints({name: np.array(tensors[name], FIELDS[name].dtype) for name in FIELDS}), sites


def _exponents(random: np.random.Generator) -> tuple[float, float]:
    choices = [(1.0, 4.0), (2.0, 3.0), (1.5, 2.5)]
    return choices[random.integers(len(choices))]


class _Draw:
    def __init__(
        self, random: np.random.Generator, restrained: NDArray[Any], places: Floats
    ) -> None:
        self._random, self._restrained, self._places = random, restrained, places

    def atoms(self, count: int, members: int) -> NDArray[Any]:
        return np.array(
            [self._random.choice(self._restrained, members, replace=False) for _ in range(count)]
        )

    def parameter(self, name: str, shape: tuple[Any, ...], dtype: str) -> NDArray[Any]:
        random = self._random
        if dtype == "|b1":
            return random.random(shape) < 0.5
        if name.endswith("origin"):
            return np.zeros(shape)
        kind = name.rsplit("_", 1)[1]
        low, high = {
            "weight": (0.1, 5),
            "slack": (-2 if "dihedral" in name else 0, 0.1 if "bond" in name else 2),
            "limit": (1, 20),
            "ideal": (1, 4) if "bond" in name or "chir" in name else (0, 170),
        }[kind]
        return random.uniform(low, high, shape)

    def special(self, any_atom: bool) -> dict[str, Any]:
        """An atom of which the operators save the first lead to no other images."""
        atoms = self._restrained[:1] if any_atom else []
        return {
            "special_atoms": atoms,
            "special_offsets": np.arange(len(atoms) + 1),
            "special_operators": np.zeros(len(atoms)),
        }

    def images(self, name: str, count: int, rotations: Any, translations: Any) -> dict[str, Any]:
        """Atoms and images of others, as each sees the other; `count` is even."""
        rows = []
        for _ in range(count // 2):
            i, j, operator, shift = self._near_image(rotations, translations)
            rotation, translation = rotations[operator], translations[operator]
            # The group's rotations are their own inverses.
            back = np.rint(-rotation @ (translation + shift) - translation)
            rows += [(i, j, operator, shift), (j, i, operator, back)]
        return {
            f"{name}_atoms": [(i, j) for i, j, *_ in rows],
            f"{name}_operator": [operator for *_, operator, _ in rows],
            f"{name}_shift": [shift for *_, shift in rows],
        }

    def _near_image(self, rotations: Any, translations: Any) -> tuple[int, int, int, Floats]:
        """Returns an atom, another, and the operator and cells that move that near it."""
        found = []
        for i, j in self.atoms(10, 2):
            operator = int(self._random.integers(len(rotations)))
            step = self._places[i] - rotations[operator] @ self._places[j] - translations[operator]
            shift = np.rint(step)
            found.append((np.linalg.norm(CELL * (step - shift)), i, j, operator, shift))
        _, *nearest = min(found, key=lambda each: float(each[0]))
        return tuple(nearest)

    def close(self, count: int, rotations: Any, translations: Any) -> dict[str, Any]:
        half = self.images("close", count // 2 // 2 * 2, rotations, translations)
        rest = count - len(half["close_atoms"])
        pairs = np.sort(self.atoms(rest // 2, 2))
        both = np.concatenate([pairs, pairs[:, ::-1]])
        bonds = self._random.integers(1, 4, count // 2)
        within = bonds[: rest // 2]
        return {
            "close_atoms": np.concatenate([half["close_atoms"], both]),
            "close_operator": np.concatenate([half["close_operator"], np.zeros(rest)]),
            "close_shift": np.concatenate([half["close_shift"], np.zeros((rest, 3))]),
            "close_bonds": np.concatenate([np.repeat(bonds[rest // 2 :], 2), within, within]),
        }

    def planes(self, lengths: dict[str, int]) -> dict[str, Any]:
        """Planes, and pairs of planes that have no atom in common."""
        random = self._random
        sizes = {"planarity": random.integers(4, 9, lengths["P"])}
        members = {"planarity": [self.atoms(1, size)[0] for size in sizes["planarity"]]}
        shuffled = self.atoms(lengths["L"], 10)
        for side, atoms in (("first", shuffled[:, :5]), ("second", shuffled[:, 5:])):
            name = f"parallelity_{side}"
            sizes[name] = random.integers(4, 6, lengths["L"])
            members[name] = [row[:size] for row, size in zip(atoms, sizes[name], strict=True)]
        return {
            "planarity_weight": random.uniform(1, 50, sizes["planarity"].sum()),
            **{f"{name}_offsets": np.cumsum([0, *sizes[name]]) for name in sizes},
            **{f"{name}_atoms": np.concatenate(members[name]) for name in sizes},
        }
