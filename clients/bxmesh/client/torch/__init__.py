"""The mesh for PyTorch: targets as modules, coordinates as tensors, minimisation, guidance,
restraints.

Needs the extra `torch`: pip install 'bxmesh[torch]'.
"""

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "bxmesh.client.torch needs PyTorch, which is not installed: pip install 'bxmesh[torch]'",
        name="torch",
    ) from error

from bxmesh.client.torch.atom37 import ATOM37, from_atom37, to_atom37
from bxmesh.client.torch.atom_map import AtomMap, AtomName
from bxmesh.client.torch.guidance import (
    BoltzPotential,
    Guidance,
    SampleworksReward,
    constant,
    cosine,
    exponential,
    linear,
)
from bxmesh.client.torch.minimizer import MinimizationStep, Minimized, Minimizer
from bxmesh.client.torch.superposition import superpose
from bxmesh.client.torch.targets import CombinedTarget, GeometryEnergy, Target, XrayTarget
from bxmesh.client.torch.translator import CoordinateTranslator, MemoryUsage
from bxmesh.restraints.torch import RestraintModule

__all__ = [
    "ATOM37",
    "AtomMap",
    "AtomName",
    "BoltzPotential",
    "CombinedTarget",
    "CoordinateTranslator",
    "GeometryEnergy",
    "Guidance",
    "MemoryUsage",
    "MinimizationStep",
    "Minimized",
    "Minimizer",
    "RestraintModule",
    "SampleworksReward",
    "Target",
    "XrayTarget",
    "constant",
    "cosine",
    "exponential",
    "from_atom37",
    "linear",
    "superpose",
    "to_atom37",
]
