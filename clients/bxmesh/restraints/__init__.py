"""Geometry restraints of cctbx as tensors, evaluated in batches without cctbx.

`Evaluator` needs the extra `fast`: pip install 'bxmesh[fast]'.
"""

from typing import TYPE_CHECKING, Any

from bxmesh.restraints.errors import RestraintsError
from bxmesh.restraints.layout import LAYOUT_VERSION, TERMS
from bxmesh.restraints.restraints import Restraints
from bxmesh.restraints.status import Status

if TYPE_CHECKING:
    from bxmesh.restraints.evaluator import Evaluation, Evaluator

__all__ = [
    "LAYOUT_VERSION",
    "TERMS",
    "Evaluation",
    "Evaluator",
    "Restraints",
    "RestraintsError",
    "Status",
]


def __getattr__(name: str) -> Any:
    # numba takes a second to import and is not everybody's: only those who evaluate need it.
    if name in ("Evaluation", "Evaluator"):
        from bxmesh.restraints import evaluator

        return getattr(evaluator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
