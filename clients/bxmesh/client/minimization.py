"""Minimizations: steps on the way, and where they end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from numpy.typing import NDArray

from bxmesh.client.options import ENGINES
from bxmesh.client.values import SampleValue
from bxmesh.geometry.v1 import calculations_pb2 as pb

__all__ = ["Ending", "Minimization", "MinimizationStep", "OnStep"]

Ending = Literal["converged", "max_evaluations", "diverged", "cancelled"]
"""Why a minimization ended."""


@dataclass(frozen=True)
class MinimizationStep:
    """A better place than those before."""

    evaluation: int
    """Evaluations so far."""
    macro_cycle: int
    """The round, from 1."""
    value: SampleValue
    """Energies, target and R factors there."""
    rms_displacement: float
    """From the start, in angstrom, over the atoms that move."""

    @classmethod
    def from_message(cls, message: pb.MinimizationStep) -> MinimizationStep:
        """Returns the step that the message describes."""
        return cls(
            message.evaluation,
            message.macro_cycle,
            SampleValue.from_message(message.value),
            message.rms_displacement,
        )


OnStep = Callable[[MinimizationStep], object]
"""Is shown steps when they come, at most ten a second."""


@dataclass(frozen=True)
class Minimization:
    """How a minimization ended."""

    reason: Ending
    """Why it ended."""
    start: MinimizationStep
    """The first step."""
    best: MinimizationStep
    """The best step, whose coordinates these are."""
    sites: NDArray[Any] = field(repr=False)
    """float64 [N, 3] in angstrom, in the order of the file."""
    coordinates_bundle_id: str
    """The coordinates as a bundle."""
    macromolecule_bundle_id: str
    """The input's file with these coordinates, as a bundle; empty when there is none."""
    macromolecule_problem: str
    """Why there is none."""
    engine: str
    """What evaluated geometry."""

    @classmethod
    def from_message(cls, message: pb.MinimizationSummary, sites: NDArray[Any]) -> Minimization:
        """Returns the minimization that the message closes."""
        return cls(
            cast(Ending, message.reason),
            MinimizationStep.from_message(message.start),
            MinimizationStep.from_message(message.best),
            sites,
            message.coordinates_bundle_id,
            message.macromolecule_bundle_id,
            message.macromolecule_problem,
            ENGINES.name(message.engine),
        )
