"""Minimize: coordinates go downhill, step by step, and the best are kept."""

from __future__ import annotations

# SciPy crashes the process when it is loaded before cctbx.
import bxmesh.server.geometry.engine.model  # noqa: F401

# isort: split
import io
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from bxmesh.geometry.v1 import bundle_pb2, gradients_pb2
from bxmesh.geometry.v1 import calculations_pb2 as pb
from bxmesh.server.errors import MeshError, invalid_argument
from bxmesh.server.geometry.agent.evaluation import Evaluation
from bxmesh.server.geometry.agent.run import Answer, Run
from bxmesh.server.geometry.agent.warm_models import engine_call

__all__ = ["MOST_EVALUATIONS", "minimization"]

MOST_EVALUATIONS = 500
"""Of a minimization that names no bound."""

_TOLERANCE = 1e-3
_TOLD_SECONDS = 0.1
_TURN_SECONDS = 0.2
# A line search halves its steps; what is impossible so often in a row has no way down.
_MOST_FAILURES = 20
# Above all values there are, and yet one that a line search can reckon with.
_IMPOSSIBLE = 1e30
# As many corrections as cctbx's own minimizer keeps would do; more cost next to nothing.
_CORRECTIONS = 10

_MEDIA_TYPES = {"pdb": "chemical/x-pdb", "mmcif": "chemical/x-mmcif"}


class _Ended(Exception):  # noqa: N818 - it is no error
    def __init__(self, reason: str) -> None:
        self.reason = reason


def minimization(run: Run[pb.MinimizeRequest]) -> Answer:
    """Minimizes the target over the atoms that have restraints; the others stay where they are."""
    request = run.request
    if request.options.with_respect_to not in ([], [gradients_pb2.PARAMETER_SITES]):
        raise invalid_argument(
            "options.with_respect_to", "a minimization moves sites alone; leave it out."
        )
    descent = _Descent(run)
    reason = "max_evaluations"
    cycles = max(1, request.macro_cycles)
    with run.steps.step("minimize"):
        for cycle in range(1, cycles + 1):
            try:
                reason = descent.go_down(cycle)
            except _Ended as ended:
                reason = ended.reason
                if reason in ("cancelled", "diverged"):
                    break
    return descent.answer(reason)


class _Descent:
    def __init__(self, run: Run[pb.MinimizeRequest]) -> None:
        self._run = run
        self._model = run.model
        self._evaluation = Evaluation(run.model, run.request.options)
        self._evaluation.prepare(run.steps)
        self._moved = self._evaluation.moved
        if not self._moved.any():
            raise invalid_argument(
                "options.selection", "none of the selected atoms has restraints, so none can move."
            )
        self._start = np.array(
            run.model.atoms.sites if run.coordinates is None else run.coordinates, dtype=np.float64
        )
        self._evaluations = 0
        self._failures = 0
        self._told = self._turned = time.monotonic()
        self._tolerance = 0.0
        self._most = 0
        self._cycle = 1
        self._first: pb.MinimizationStep | None = None
        self._best: pb.MinimizationStep | None = None
        self._best_value = np.inf
        self._best_sites = self._start

    def go_down(self, cycle: int) -> str:
        """Goes down from the best so far with scales determined there; says why it ended."""
        request = self._run.request
        self._cycle = cycle
        self._most = self._evaluations + (request.max_evaluations or MOST_EVALUATIONS)
        if self._evaluation.has_xray:
            self._evaluation.refresh_scales(self._best_sites)
        # With other scales it is another function.
        self._best_value = np.inf
        self._failures = 0
        self._tolerance = 0.0
        minimize(
            self._value,
            self._best_sites[self._moved].ravel(),
            jac=True,
            method="L-BFGS-B",
            options={
                "maxcor": _CORRECTIONS,
                "maxiter": self._most,
                # One more than are allowed: the one that is too many is noticed below.
                "maxfun": self._most + 1,
                "ftol": 0.0,
                "gtol": 0.0,
            },
        )
        # It found no lower value along its way.
        return "converged"

    def _value(self, moved: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        """The target and its gradient, as they are minimized."""
        run = self._run
        if run.is_over():
            raise _Ended("cancelled")
        if self._evaluations >= self._most:
            raise _Ended("max_evaluations")
        self._give_way()
        sites = self._start.copy()
        sites[self._moved] = moved.reshape(-1, 3)
        self._evaluations += 1
        value, gradients = self._evaluation.evaluate(sites)
        if value.status != gradients_pb2.SAMPLE_STATUS_OK:
            return self._impossible(value, moved)
        self._failures = 0
        target, gradient = _target(value, gradients)
        gradient = gradient[self._moved]
        rms = float(np.sqrt(np.mean(gradient**2)))
        if not self._tolerance:
            self._tolerance = run.request.gradient_tolerance or _TOLERANCE * rms
        if target < self._best_value:
            self._keep(target, sites, value)
        if rms <= self._tolerance:
            raise _Ended("converged")
        return target, gradient.ravel()

    def _impossible(
        self, value: gradients_pb2.SampleValue, moved: NDArray[Any]
    ) -> tuple[float, NDArray[Any]]:
        if not np.isfinite(self._best_value):
            raise invalid_argument(
                "coordinates",
                f"there is no way down from here: {value.message}",
                reason=gradients_pb2.SampleStatus.Name(value.status).removeprefix("SAMPLE_STATUS_"),
            )
        self._failures += 1
        if self._failures >= _MOST_FAILURES:
            raise _Ended("diverged")
        return _IMPOSSIBLE, np.zeros_like(moved)

    def _keep(self, target: float, sites: NDArray[Any], value: gradients_pb2.SampleValue) -> None:
        moved = sites[self._moved] - self._start[self._moved]
        step = pb.MinimizationStep(
            evaluation=self._evaluations,
            macro_cycle=self._cycle,
            value=value,
            rms_displacement=float(np.sqrt(np.mean(np.sum(moved**2, axis=1)))),
        )
        self._best_value, self._best_sites, self._best = target, sites, step
        self._first = self._first or step
        if step is self._first or time.monotonic() - self._told > _TOLD_SECONDS:
            self._told = time.monotonic()
            self._run.tell(step)

    def _give_way(self) -> None:
        if time.monotonic() - self._turned > _TURN_SECONDS:
            self._run.give_way()
            self._turned = time.monotonic()

    def answer(self, reason: str) -> Answer:
        """The best coordinates, in both forms."""
        run = self._run
        file = io.BytesIO()
        np.save(file, self._best_sites, allow_pickle=False)
        summary = pb.MinimizationSummary(
            reason=reason,
            start=self._first,
            best=self._best,
            engine=self._evaluation.engine,
            coordinates_bundle_id=run.keep(
                file.getvalue(), bundle_pb2.BUNDLE_KIND_COORDINATES, "application/x-npy"
            ),
        )
        try:
            content = engine_call(lambda: self._model.file_with(self._best_sites))
        except MeshError as error:
            # The coordinates are good nevertheless.
            summary.macromolecule_problem = error.message
        else:
            summary.macromolecule_bundle_id = run.keep(
                content,
                bundle_pb2.BUNDLE_KIND_MACROMOLECULE,
                _MEDIA_TYPES[self._model.summary.format],
            )
        return summary, {"sites": self._best_sites}


def _target(
    value: gradients_pb2.SampleValue, gradients: Mapping[str, NDArray[Any]]
) -> tuple[float, NDArray[Any]]:
    if value.HasField("combined"):
        return value.combined.value, gradients["combined_sites"]
    if value.HasField("xray"):
        return value.xray.value, gradients["xray_sites"]
    return value.geometry.energy, gradients["geometry_sites"]
