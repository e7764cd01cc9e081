"""Restraints in PyTorch, on any device: energies that autograd knows.

Needs the extra `torch`: pip install 'bxmesh[torch]'. Neither cctbx nor numba is needed.
"""

from bxmesh.restraints.torch.evaluation import Evaluation
from bxmesh.restraints.torch.module import RestraintModule

__all__ = ["Evaluation", "RestraintModule"]
