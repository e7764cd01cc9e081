"""The evaluators of restraints, all to be called as the one on processors."""

from typing import Any

import torch
from numpy.typing import NDArray

from bxmesh.restraints import Evaluation, Evaluator, Restraints
from bxmesh.restraints.torch import RestraintModule

# Threads that wait for each other by spinning take all the time there is when others use the processors.
torch.set_num_threads(1)


class TorchEvaluator:
    """A module for arrays."""

    # PyTorch's `atan2` rounds otherwise in the lanes of a vector register than behind the last full one.
    batch_rounding = 1e-14

    def __init__(self, restraints: Restraints, **keywords: Any) -> None:
        self._module = RestraintModule(restraints, **keywords)

    def __call__(self, coordinates: NDArray[Any], *, per_term: bool = False) -> Evaluation:
        result = self._module.evaluate(torch.tensor(coordinates), per_term=per_term)
        return Evaluation(
            energies=result.energies.numpy(),
            terms={name: energies.numpy() for name, energies in result.terms.items()},
            gradients=result.gradients.numpy(),
            statuses=result.statuses,
            pairs=result.pairs.numpy(),
            term_gradients={name: each.numpy() for name, each in result.term_gradients.items()},
        )


BACKENDS = {"numba": Evaluator, "torch": TorchEvaluator}
Backend = type[Evaluator] | type[TorchEvaluator]
