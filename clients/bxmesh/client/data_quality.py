"""What measured reflections say of themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bxmesh.geometry.v1 import calculations_pb2 as pb

__all__ = ["DataReport", "ResolutionShell"]


@dataclass(frozen=True)
class ResolutionShell:
    """A shell of resolution."""

    d_max: float
    """The low limit, in angstrom."""
    d_min: float
    """The high limit, in angstrom."""
    reflections: int
    """How many there are."""
    completeness: float
    """0 to 1."""
    i_over_sigma: float | None
    """The mean; None without sigmas."""


@dataclass(frozen=True)
class DataReport:
    """How good the reflections of a model are. What is None cannot be said: `unavailable` says why."""

    labels: str
    """The columns that are used."""
    french_wilson: bool
    """Whether amplitudes were made of intensities."""
    reflections: int
    """How many there are."""
    d_max: float
    """The low limit, in angstrom."""
    d_min: float
    """The high limit, in angstrom."""
    completeness: float
    """0 to 1."""
    i_over_sigma: float | None
    """The mean of I/sigma."""
    free_fraction: float | None
    """The fraction that is set aside for R-free."""
    wilson_b: float | None
    """The B of the Wilson plot, in square angstrom."""
    anisotropic_b: tuple[float, ...]
    """Its tensor in the Cartesian frame (11, 22, 33, 12, 13, 23); empty for none."""
    anisotropy: float | None
    """The largest of its eigenvalues less the smallest."""
    second_moment: float | None
    """<I²>/<I>² of acentric reflections: 2 untwinned, 1.5 perfectly twinned."""
    mean_l: float | None
    """<|L|>: 0.5 untwinned, 0.375 perfectly twinned."""
    mean_l2: float | None
    """<L²>: 0.333 untwinned, 0.2 perfectly twinned."""
    twin_laws: tuple[str, ...]
    """The laws by which the lattice allows twinning."""
    shells: tuple[ResolutionShell, ...]
    """From low resolution to high."""
    unavailable: tuple[str, ...]
    """What could not be said, each with the reason."""

    @classmethod
    def from_message(cls, message: pb.DataReport) -> DataReport:
        """Returns the report that the message holds."""
        return cls(
            labels=message.labels,
            french_wilson=message.french_wilson,
            reflections=message.reflections,
            d_max=message.d_max,
            d_min=message.d_min,
            completeness=message.completeness,
            i_over_sigma=_present(message, "i_over_sigma"),
            free_fraction=_present(message, "free_fraction"),
            wilson_b=_present(message, "wilson_b"),
            anisotropic_b=tuple(message.anisotropic_b),
            anisotropy=_present(message, "anisotropy"),
            second_moment=_present(message, "second_moment"),
            mean_l=_present(message, "mean_l"),
            mean_l2=_present(message, "mean_l2"),
            twin_laws=tuple(message.twin_laws),
            shells=tuple(
                ResolutionShell(
                    shell.d_max,
                    shell.d_min,
                    shell.reflections,
                    shell.completeness,
                    _present(shell, "i_over_sigma"),
                )
                for shell in message.shells
            ),
            unavailable=tuple(message.unavailable),
        )


def _present(message: Any, name: str) -> float | None:
    return getattr(message, name) if message.HasField(name) else None
