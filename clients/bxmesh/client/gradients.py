"""Energies and gradients as they come back from the mesh."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bxmesh.client.names import invalid
from bxmesh.client.options import ENGINES, Target
from bxmesh.client.values import GeometryValue, SampleValue, XrayValue
from bxmesh.geometry.v1 import gradients_pb2 as pb

__all__ = ["Evaluation", "Gradients", "as_coordinates"]

T = TypeVar("T")


class Evaluation:
    """Values and gradients at one set of coordinates [N, 3] or at a batch [B, N, 3]."""

    def __init__(
        self, arrays: Mapping[str, NDArray[Any]], samples: Iterable[pb.SampleValue]
    ) -> None:
        self.arrays = dict(arrays)
        """The gradients by name: geometry_sites, xray_sites, combined_sites, xray_adp_iso, …."""
        self._messages = sorted(samples, key=lambda message: message.sample)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}{list(a.shape)}" for name, a in self.arrays.items())
        return f"{type(self).__name__}({shapes})"

    @cached_property
    def samples(self) -> tuple[SampleValue, ...]:
        """The values, one per sample of the batch."""
        return tuple(SampleValue.from_message(message) for message in self._messages)

    @property
    def sample(self) -> SampleValue:
        """The values of the first sample, which is the only one outside of a batch."""
        return self.samples[0]

    @property
    def ok(self) -> bool:
        """Whether every sample was computed."""
        return all(m.status == pb.SAMPLE_STATUS_OK for m in self._messages)

    def energies(self, target: Target) -> list[float]:
        """The value of a target for each sample; NaN for one that was not computed."""
        field = "energy" if target == "geometry" else "value"
        return [
            getattr(getattr(m, target), field) if m.status == pb.SAMPLE_STATUS_OK else np.nan
            for m in self._messages
        ]

    @property
    def geometry_sites(self) -> NDArray[Any]:
        """The gradient of the restraints' energy, [N, 3] or [B, N, 3] per angstrom."""
        return self._array("geometry_sites")

    @property
    def xray_sites(self) -> NDArray[Any]:
        """The gradient of the X-ray target, [N, 3] or [B, N, 3] per angstrom."""
        return self._array("xray_sites")

    @property
    def combined_sites(self) -> NDArray[Any]:
        """The gradient of the weighted sum, [N, 3] or [B, N, 3] per angstrom."""
        return self._array("combined_sites")

    @property
    def geometry(self) -> GeometryValue:
        """Geometry of the first sample."""
        return _present(self.sample.geometry, "geometry")

    @property
    def xray(self) -> XrayValue:
        """X-ray of the first sample."""
        return _present(self.sample.xray, "X-ray")

    @property
    def energy(self) -> float:
        """The restraints' energy of the first sample."""
        return self.geometry.energy

    @property
    def r_work(self) -> float:
        """R-work of the first sample."""
        return self.xray.r_work

    @property
    def r_free(self) -> float | None:
        """R-free of the first sample; None without free flags."""
        return self.xray.r_free

    def _array(self, name: str) -> NDArray[Any]:
        return _present(self.arrays.get(name), name)


class Gradients(Evaluation):
    """The answer to one calculation."""

    def __init__(
        self,
        arrays: Mapping[str, NDArray[Any]],
        samples: Iterable[pb.SampleValue],
        summary: pb.GradientsSummary,
        trace_id: str,
    ) -> None:
        super().__init__(arrays, samples)
        self.step_times = {time.step: time.seconds for time in summary.step_times}
        """Seconds per step, over all workers."""
        self.bundle_ids = tuple(summary.bundle_ids)
        """The bundles that hold these gradients, in the order of their samples."""
        self.worker_ids = tuple(summary.worker_ids)
        """The workers that took part."""
        self.engine = ENGINES.name(summary.engine)
        """The engine that evaluated geometry."""
        self.trace_id = trace_id
        """The trace of the call, 32 hexadecimal digits."""


def as_coordinates(coordinates: ArrayLike, places: tuple[str, ...] = ("N",)) -> NDArray[Any]:
    """Returns coordinates as float32 or float64 [N, 3] or [B, N, 3]. InvalidInput for others.

    `places` are the axes that a layout has in the place of N.
    """
    array = np.asarray(coordinates)
    if array.dtype.kind in "iu":
        array = array.astype(np.float64)
    if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
        raise invalid("coordinates", f"coordinates are float32 or float64, not {array.dtype}")
    if array.ndim - len(places) not in (1, 2) or array.shape[-1] != 3:
        shape, axes = list(array.shape), ", ".join(places)
        raise invalid("coordinates", f"coordinates are [{axes}, 3] or [B, {axes}, 3], not {shape}")
    return array


def _present(value: T | None, what: str) -> T:
    if value is None:
        raise invalid("target", f"there is no {what} here: the target does not have it")
    return value
