"""TorchRef's geometry target, in a process and an environment of its own: `python … MODEL.pdb`.

Takes jitters in Å, one a line, and answers each when energy and gradients are there. It has no batches. Its
Ramachandran target is left out, as cctbx's defaults have none.
"""

import sys
import warnings
from functools import cache
from itertools import count
from typing import Any

import numpy as np

warnings.simplefilter("ignore")

import torch  # noqa: E402
from torchref.model.model import Model  # noqa: E402
from torchref.refinement.targets.combined import TotalGeometryTarget  # noqa: E402

PLACES = 24


def main() -> None:
    """Evaluates whenever it is told to."""
    model = Model()
    model.load_pdb(sys.argv[1])
    target = TotalGeometryTarget(model)
    targets = [part for name, part in target.items() if name != "ramachandran"]
    sites = next(each for name, each in model.named_parameters() if name.startswith("xyz."))
    deposited = sites.detach().clone()
    random = np.random.default_rng(0)
    steps = count()

    @cache
    def places(jitter: float) -> list[torch.Tensor]:
        moves = random.normal(0, jitter, (PLACES, *deposited.shape))
        return [deposited + torch.tensor(move, dtype=deposited.dtype) for move in moves]

    def step(jitter: float) -> None:
        with torch.no_grad():
            sites.copy_(places(jitter)[next(steps) % PLACES])
        sites.grad = None
        for part in targets:
            part.maintenance()
        total: Any = sum(part() for part in targets)
        total.backward()
        assert torch.isfinite(sites.grad).all()

    # It says other things on its way.
    print("=", len(model.xyz()), flush=True)
    for line in sys.stdin:
        step(float(line))
        print("=", flush=True)


main()
