"""What the first evaluation on a machine would wait for, done beforehand.

`python -m bxmesh.restraints.preparation` does it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

import numpy as np

from bxmesh.restraints.evaluator import Evaluator
from bxmesh.restraints.layout import FIELDS, LAYOUT_VERSION, Tensors
from bxmesh.restraints.restraints import Restraints

__all__ = ["COMPILING", "compile_kernels"]


COMPILING = "Compiling the evaluator of restraints, once: about half a minute."
_SLOW_SECONDS = 3.0


def compile_kernels(tell: Callable[[str], object]) -> None:
    """Compiles all that an Evaluator runs, or reads it where it is on disk: some 20 s, or half one.

    Afterwards nothing more is compiled or read, whatever the restraints. `tell` gets COMPILING when it
    has to be waited for.
    """
    slow = threading.Timer(_SLOW_SECONDS, tell, [COMPILING])
    slow.daemon = True
    slow.start()
    try:
        evaluator = Evaluator(Restraints(_one_atom()), threads=1)
        for _ in range(2):  # The second one compares with the first.
            evaluator(np.zeros((1, 1, 3)))
    finally:
        slow.cancel()
        slow.join()


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


if __name__ == "__main__":
    compile_kernels(lambda message: print(message, file=sys.stderr, flush=True))
