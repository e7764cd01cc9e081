"""The evaluator of exported restraints in cctbx's place: batches, and no list of pairs that is old."""

from bxmesh.server.geometry.engine import cctbx_first  # noqa: F401  isort: skip

import numpy as np

from bxmesh.restraints import TERMS, Evaluation, Evaluator, Restraints, Status
from bxmesh.server.geometry.engine.coordinates import check_places
from bxmesh.server.geometry.engine.errors import SampleError
from bxmesh.server.geometry.engine.types import Floats, GeometryResult, Mask, SampleStatus, Term

__all__ = ["FastGeometry"]

_PROBLEMS = {
    Status.NON_FINITE: (
        SampleStatus.NON_FINITE,
        "The coordinates, the geometry energy or its gradients are not finite.",
    ),
    Status.OUT_OF_RANGE: (
        SampleStatus.OUT_OF_RANGE,
        "A coordinate is too far from the origin.",
    ),
    Status.EXPLODED: (
        SampleStatus.EXPLODED,
        "Bonded atoms are too far apart for restraints to hold them.",
    ),
    Status.CROWDED: (
        SampleStatus.FAILED,
        "So many atoms share a place that there are millions of pairs of neighbours.",
    ),
}
_COUNTED_BY = {
    "bond": ("bond_ideal", "symmetry_bond_ideal"),
    "planarity": ("planarity_origin",),
}


class FastGeometry:
    """The geometry restraints of one model, evaluated in batches by bxmesh.restraints."""

    def __init__(self, restraints: Restraints) -> None:
        self._evaluator = Evaluator(restraints)
        self.equals_cctbx = not len(restraints["special_atoms"])
        """Whether results are cctbx's; images of atoms that left a special position are not."""
        self._mask: Mask = restraints["atom_mask"]
        self._counts = {
            name: sum(len(restraints[of]) for of in _COUNTED_BY.get(name, (f"{name}_ideal",)))
            for name in TERMS
            if name != "nonbonded"
        }

    @property
    def batch(self) -> int:
        """How many samples to evaluate together at most."""
        return self._evaluator.places

    @property
    def nbytes(self) -> int:
        """The memory that it keeps between evaluations, in bytes."""
        return self._evaluator.nbytes

    def evaluate(
        self, samples: Floats, *, per_term: bool = False
    ) -> list[GeometryResult | SampleError]:
        """Return for each of `samples` [B, N, 3] what `GeometryTarget.evaluate` does, or raises."""
        found = self._evaluator(samples, per_term=per_term)
        return [self._result(sites, found, number) for number, sites in enumerate(samples)]

    def _result(
        self, sites: Floats, found: Evaluation, number: int
    ) -> GeometryResult | SampleError:
        # The evaluator looks at atoms with restraints alone.
        check = check_places(sites)
        if check.status is not SampleStatus.OK:
            return SampleError(check.status, check.message)
        if found.statuses[number] is not Status.OK:
            return SampleError(*_PROBLEMS[found.statuses[number]])
        counts = {**self._counts, "nonbonded": int(found.pairs[number])}
        gradients = found.gradients[number]
        return GeometryResult(
            float(found.energies[number]),
            {
                name: Term(float(found.terms[name][number]), count)
                for name, count in counts.items()
                if count or name in ("bond", "nonbonded")
            },
            gradients,
            float(np.sqrt(np.vdot(gradients, gradients))),
            self._mask,
            {name: own[number] for name, own in found.term_gradients.items()},
        )
