"""One set of gradient options applied to one model, sample by sample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bxmesh.geometry.v1 import gradients_pb2
from bxmesh.server.errors import invalid_argument
from bxmesh.server.geometry.agent.steps import Steps, UnobservedSteps
from bxmesh.server.geometry.agent.warm_models import engine_call, one_sample_call
from bxmesh.server.geometry.conversions import (
    geometry_value,
    status_of,
    unit_of,
    xray_options,
    xray_value,
)
from bxmesh.server.geometry.engine import EngineError, GeometryResult, SampleError
from bxmesh.server.geometry.engine.fast import FastGeometry
from bxmesh.server.geometry.engine.model import BuiltModel
from bxmesh.server.geometry.engine.types import TERMS, Mask
from bxmesh.server.geometry.engine.xray import XrayTarget

Array = NDArray[Any]
_SHAPES = {"sites": (3,), "adp_aniso": (6,)}
_UNOBSERVED = UnobservedSteps()


class Evaluation:
    """Computes energies and gradients of a model at given coordinates.

    `scales` are X-ray scales of its own; without them the model's are used, which stay as they were at the
    coordinates of the file. Not for several threads: hold the models' lock.
    """

    def __init__(
        self,
        model: BuiltModel,
        options: gradients_pb2.GradientOptions,
        scales: XrayTarget | None = None,
    ) -> None:
        self.model = model
        self._selected = (
            engine_call(lambda: model.select(options.selection)) if options.selection else None
        )
        self.scales = scales
        self._options = options
        target = options.target or (
            gradients_pb2.TARGET_COMBINED
            if model.summary.data is not None
            else gradients_pb2.TARGET_GEOMETRY
        )
        self.has_geometry = target != gradients_pb2.TARGET_XRAY
        self.has_xray = target != gradients_pb2.TARGET_GEOMETRY
        self._combined = target == gradients_pb2.TARGET_COMBINED
        self._xray = xray_options(options)
        if not self.has_xray and self._xray.with_respect_to != {"sites"}:
            raise invalid_argument(
                "options.with_respect_to",
                "geometry depends on sites only; ask for the X-ray target for the others.",
                reason="PARAMETER_NOT_IN_TARGET",
            )
        self._weights: tuple[float, float] | None = None
        self._fast: FastGeometry | None = None

    @property
    def engine(self) -> gradients_pb2.Engine.ValueType:
        """What evaluates geometry, once it is prepared."""
        return gradients_pb2.ENGINE_FAST if self._fast else gradients_pb2.ENGINE_CCTBX

    @property
    def batch(self) -> int:
        """How many samples to evaluate together at most, so that others get their turns."""
        return self._fast.batch if self._fast and not self.has_xray else 1

    @property
    def tensors(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """The tensors per sample: name → (shape, unit)."""
        atoms = len(self.model.atoms)
        wanted = sorted(self._xray.with_respect_to, reverse=True)
        sites = "sites" in wanted
        tensors: dict[str, tuple[tuple[int, ...], str]] = {}
        if self.has_geometry and sites:
            tensors["geometry_sites"] = ((atoms, 3), unit_of("sites"))
            for term in TERMS if self._options.gradients_per_term else ():
                tensors[f"geometry_{term}_sites"] = ((atoms, 3), unit_of("sites"))
        if self.has_xray:
            for parameter in wanted:
                shape = (atoms, *_SHAPES.get(parameter, ()))
                tensors[f"xray_{parameter}"] = (shape, unit_of(parameter))
        if self._combined and sites:
            tensors["combined_sites"] = ((atoms, 3), unit_of("sites"))
        return tensors

    def prepare(self, steps: Steps) -> None:
        """Builds what evaluations need, before the first of them; raises MeshError."""
        if self.has_geometry:
            engine_call(lambda: self.model.prepare("geometry", on_step=steps.step))
            self._fast = self._fast_geometry(steps)
        if self.has_xray and self.scales is None:
            engine_call(lambda: self.model.prepare("xray", self._xray, steps.step))
        if self._combined and self._weights is None:
            self._weights = self._choose_weights(steps)

    def _fast_geometry(self, steps: Steps) -> FastGeometry | None:
        asked = self._options.engine
        if asked == gradients_pb2.ENGINE_FAST:
            return one_sample_call(lambda: self.model.fast_geometry(steps.step))
        if asked == gradients_pb2.ENGINE_CCTBX:
            return None
        try:
            fast = self.model.fast_geometry(steps.step)
        except (EngineError, SampleError):
            return None
        return fast if fast.equals_cctbx else None

    def refresh_scales(self, sites: Array) -> None:
        """Gives this evaluation X-ray scales of its own, determined at `sites` float64 [N, 3]."""
        self.scales = engine_call(lambda: self.model.scaled_at(sites))

    def evaluate(
        self, sites: Array | None, steps: Steps = _UNOBSERVED
    ) -> tuple[gradients_pb2.SampleValue, dict[str, Array]]:
        """The values and the gradients at `sites`, float64 [N, 3], or at the file's coordinates.

        As `evaluate_batch` otherwise.
        """
        (result,) = self.evaluate_batch(None if sites is None else sites[np.newaxis], steps)
        return result

    def evaluate_batch(
        self, samples: Array | None, steps: Steps = _UNOBSERVED
    ) -> list[tuple[gradients_pb2.SampleValue, dict[str, Array]]]:
        """The values and the gradients at `samples`, float64 [B, N, 3], or the file's coordinates.

        Bad coordinates are told in the value's status and have no gradients. Raises MeshError when the
        model itself does not allow the target.
        """
        geometries = self._geometries(samples, steps)
        results = []
        for sites, geometry in zip([None] if samples is None else samples, geometries, strict=True):
            try:
                results.append(self._evaluate(sites, geometry, steps))
            except SampleError as error:
                status = status_of(error.status)
                value = gradients_pb2.SampleValue(status=status, message=error.message)
                results.append((value, {}))
        return results

    def _geometries(
        self, samples: Array | None, steps: Steps
    ) -> list[GeometryResult | SampleError | None]:
        if not self.has_geometry:
            return [None] * (1 if samples is None else len(samples))
        if samples is None:
            samples = self.model.atoms.sites[np.newaxis]
        per_term = self._options.gradients_per_term
        if self._fast is not None:
            with steps.step("energies"):
                return [*self._fast.evaluate(samples, per_term=per_term)]
        return [self._geometry(sites, steps, per_term=per_term) for sites in samples]

    def _geometry(
        self, sites: Array, steps: Steps, *, per_term: bool
    ) -> GeometryResult | SampleError:
        try:
            return engine_call(lambda: self.model.geometry(sites, steps.step, per_term=per_term))
        except SampleError as error:
            return error

    def _evaluate(
        self, sites: Array | None, geometry: GeometryResult | SampleError | None, steps: Steps
    ) -> tuple[gradients_pb2.SampleValue, dict[str, Array]]:
        if isinstance(geometry, SampleError):
            raise geometry
        value = gradients_pb2.SampleValue(status=gradients_pb2.SAMPLE_STATUS_OK)
        gradients: dict[str, Array] = {}
        if geometry is not None:
            gradients["geometry_sites"] = self._of_selected(geometry.gradients)
            for term, own in geometry.term_gradients.items():
                gradients[f"geometry_{term}_sites"] = self._of_selected(own)
            value.geometry.CopyFrom(geometry_value(geometry))
            if self._selected is not None:
                value.geometry.gradient_norm = _norm(gradients["geometry_sites"])
        if self.has_xray:
            xray = engine_call(
                lambda: self.model.xray(sites, self._xray, steps.step, scales=self.scales)
            )
            for parameter, gradient in xray.gradients.items():
                gradients[f"xray_{parameter}"] = self._of_selected(gradient)
            sites_gradient = gradients.get("xray_sites")
            value.xray.CopyFrom(
                xray_value(xray, _norm(sites_gradient) if sites_gradient is not None else 0.0)
            )
        if self._combined:
            self._combine(value, gradients, steps)
        return value, gradients

    @property
    def moved(self) -> Mask:
        """[N], True for the atoms that a minimization moves: selected, and with restraints."""
        mask = self.model.atom_mask
        return mask if self._selected is None else mask & self._selected

    def _of_selected(self, gradient: Array) -> Array:
        if self._selected is None:
            return gradient
        kept = gradient.copy()
        kept[~self._selected] = 0.0
        return kept

    def _combine(
        self, value: gradients_pb2.SampleValue, gradients: dict[str, Array], steps: Steps
    ) -> None:
        if self._weights is None:
            self._weights = self._choose_weights(steps)
        geometry_weight, xray_weight = self._weights
        combined = gradients_pb2.CombinedValue(
            value=geometry_weight * value.geometry.energy + xray_weight * value.xray.value,
            geometry_weight=geometry_weight,
            xray_weight=xray_weight,
        )
        if "xray_sites" in gradients:
            gradients["combined_sites"] = (
                geometry_weight * gradients["geometry_sites"]
                + xray_weight * gradients["xray_sites"]
            )
            combined.gradient_norm = _norm(gradients["combined_sites"])
        value.combined.CopyFrom(combined)

    def _choose_weights(self, steps: Steps) -> tuple[float, float]:
        geometry_weight = self._options.geometry_weight or 1.0
        if self._options.xray_weight:
            return geometry_weight, self._options.xray_weight
        (geometry,) = self._geometries(None, steps)
        if isinstance(geometry, SampleError):
            raise geometry
        assert geometry is not None
        xray = engine_call(lambda: self.model.xray(None, self._xray_sites(), steps.step))
        norm = _norm(xray.gradients["sites"])
        ratio = geometry.gradient_norm / norm if norm > 0 else 1.0
        return geometry_weight, ratio * geometry_weight

    def _xray_sites(self) -> Any:
        return replace(self._xray, with_respect_to=frozenset({"sites"}))


def gradient_dtype(options: gradients_pb2.GradientOptions, given: np.dtype[Any] | None) -> str:
    """The element type of an answer: as asked for, else that of the coordinates, else float64."""
    if options.precision == gradients_pb2.PRECISION_FLOAT32:
        return "<f4"
    if options.precision == gradients_pb2.PRECISION_UNSPECIFIED and given == np.float32:
        return "<f4"
    return "<f8"


def stack(
    evaluation: Evaluation, gradients: Iterable[dict[str, Array]], samples: int, dtype: str
) -> dict[str, Array]:
    """The tensors of several samples as [samples, …]; a sample without gradients is zero."""
    arrays = {
        name: np.zeros((samples, *shape), dtype=dtype)
        for name, (shape, _) in evaluation.tensors.items()
    }
    for index, sample in enumerate(gradients):
        for name, array in arrays.items():
            if name in sample:
                array[index] = sample[name]
    return arrays


def _norm(gradient: Array) -> float:
    return float(np.sqrt(np.vdot(gradient, gradient)))
