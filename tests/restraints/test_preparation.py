"""What is compiled beforehand is all that runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.restraints.plain import Exported, crystal_with_symmetry_bond

_SCRIPT = """
import gc, sys
import numpy as np
from numba.core.dispatcher import Dispatcher
from bxmesh.restraints import Evaluator, Restraints
from bxmesh.restraints.preparation import compile_kernels

def compiled():
    return {
        each.py_func.__qualname__: len(each.signatures)
        for each in gc.get_objects() if isinstance(each, Dispatcher)
    }

compile_kernels(lambda message: None)
before = compiled()
assert before["planarity_energy"] == 1
restraints = Restraints.load(sys.argv[1])
batch = np.random.default_rng(0).normal(0, 20, (3, restraints.n_atoms, 3))
batch.flags.writeable = False
for given in (batch, batch.astype("f4"), np.asfortranarray(batch), batch[0]):
    for isolated in (False, True):
        Evaluator(restraints, isolated=isolated)(given, per_term=True)
assert compiled() == before
"""


def test_nothing_is_compiled_afterwards(exported: Callable[..., Exported], tmp_path: Path) -> None:
    """A confined worker could not keep what it compiles, nor be waited for."""
    exported(crystal_with_symmetry_bond()).restraints.save(tmp_path / "restraints.npz")
    subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(tmp_path / "restraints.npz")], check=True, timeout=300
    )
