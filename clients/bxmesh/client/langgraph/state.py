"""What the nodes read and write."""

from __future__ import annotations

from typing import Any, TypedDict

from numpy.typing import NDArray

__all__ = ["MeshState"]


class MeshState(TypedDict, total=False):
    """The state of a graph over the mesh: plain values and arrays, which checkpoints can hold.

    Extend it with what your graph has besides.
    """

    macromolecule: str
    """A file, or the name of a bundle; what a model node reads."""
    reflections: str
    """Likewise; without it there is geometry only."""
    model_id: str
    """The model; what all other nodes read."""
    notices: list[str]
    """What the caller should know of the model, one sentence each."""
    coordinates: NDArray[Any]
    """[N, 3] in angstrom, or [B, N, 3] for gradients alone; those of the model without it."""
    energies: list[float]
    """The values of the target for each sample; NaN for one that was not computed."""
    gradients: dict[str, NDArray[Any]]
    """By name, such as geometry_sites: [N, 3] or [B, N, 3] per angstrom."""
    minimized: str
    """Why the minimization ended: converged, max_evaluations, diverged or cancelled."""
    refined_bundle_id: str
    """The input's file with the minimized coordinates, as a bundle; empty where there is none."""
    figures: dict[str, float]
    """What a validation found: deviations, shares, outliers, R factors, by name."""
    outliers: list[str]
    """The worst outliers, one sentence each, the worst first."""
