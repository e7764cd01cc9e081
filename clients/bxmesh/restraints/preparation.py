"""What the first evaluation on a machine would wait for, done beforehand."""

from __future__ import annotations

import numpy as np

from bxmesh.restraints.evaluator import Evaluator
from bxmesh.restraints.layout import FIELDS, LAYOUT_VERSION, Tensors
from bxmesh.restraints.restraints import Restraints

__all__ = ["compile_kernels"]


def compile_kernels() -> None:
    """Compiles all that an Evaluator runs, or reads it where it is on disk: some 20 s, or half one.

    Afterwards nothing more is compiled or read, whatever the restraints.
    """
    evaluator = Evaluator(Restraints(_one_atom()), threads=1)
    for _ in range(2):  # The second one compares with the first.
        evaluator(np.zeros((1, 1, 3)))


def _one_atom() -> Tensors:
    """Returns the least that restraints can be: an atom in a box."""
    one = {"N": 1, "S": 1, "T": 1, "K": 0}
    tensors = {}
    for name, field in FIELDS.items():
        shape = [
            one.get(each[0], 0) + each.count("+") if isinstance(each, str) else each
            for each in field.shape
        ]
        tensors[name] = np.zeros(shape, field.dtype)
    box = np.eye(3)[np.newaxis]
    filled = {
        "layout_version": [LAYOUT_VERSION],
        "atom_mask": [True],
        "orthogonalization": 100 * box[0],
        "fractionalization": box[0] / 100,
        "symmetry_rotations": box,
        "max_bond_distance": [100],
        "nonbonded_function": [1, 1, 1, 4],
        "nonbonded_distance": [[3]],
        "nonbonded_distance_1_4": [[3]],
    }
    for name, values in filled.items():
        tensors[name][:] = values
    return tensors
