"""Minimisation with torch's optimisers: the state is here, the energies come from the mesh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import tenacity
import torch
from torch import Tensor

from bxmesh.client.errors import BxmeshError, Unavailable
from bxmesh.client.names import invalid
from bxmesh.client.torch.targets import Target

__all__ = ["MinimizationStep", "Minimized", "Minimizer", "Reason"]

T = TypeVar("T")
Reason = Literal["gradient", "energy", "steps"]

_LBFGS: dict[str, Any] = {"line_search_fn": "strong_wolfe", "max_iter": 1, "max_eval": 20}
_WORSE = 10.0


@dataclass(frozen=True)
class MinimizationStep:
    """How far a minimisation is."""

    step: int
    """Steps done, over all runs."""
    energy: Tensor
    """The energy of each sample [B], a scalar for one, where the step began."""
    gradient_rms: float
    """The gradient there as the root mean square over atoms, of the worst sample, per angstrom."""
    evaluations: int
    """Energies asked for, over all runs."""


@dataclass(frozen=True)
class Minimized:
    """The best that was found."""

    coordinates: Tensor
    """In the shape that was given, each sample at its best."""
    energy: Tensor
    """The energy there, [B] or a scalar; NaN for a sample that never could be computed."""
    steps: int
    """Steps done, over all runs."""
    evaluations: int
    """Energies asked for, over all runs."""
    reason: Reason
    """Why it ended: the gradient is small, the energy no longer falls, or the steps were used up."""

    @property
    def converged(self) -> bool:
        """Whether it ended before its steps were used up."""
        return self.reason != "steps"


class Minimizer:
    """Minimises a target from given coordinates with an optimiser of torch.

    The target is a module that gives energies [...] of coordinates [..., N, 3]. The optimiser and its
    state live here, so that a mesh that was away, or lost for good and started anew, costs no
    progress: the evaluation is repeated in new sessions, for `patience` seconds at most. `run` may be
    called again and goes on. Samples of a batch are minimised together.
    """

    def __init__(
        self,
        target: Callable[[Tensor], Tensor],
        coordinates: Tensor,
        optimizer: type[torch.optim.Optimizer] = torch.optim.LBFGS,
        *,
        gradient_tolerance: float = 1e-3,
        energy_tolerance: float = 1e-8,
        stalled_steps: int = 5,
        refresh_scales_every: int = 0,
        patience: float = 60.0,
        **options: Any,
    ) -> None:
        """Takes the tolerances at which it has converged (the gradient's rms per atom; the relative
        fall of the energy over `stalled_steps` steps), how often X-ray scales are determined anew (0
        for never), and the optimiser's options. LBFGS searches its lines unless told otherwise."""
        if optimizer is torch.optim.LBFGS:
            options = {**_LBFGS, **options}
        self.coordinates = coordinates.detach().clone().requires_grad_(True)
        """Where it is."""
        self.optimizer = optimizer([self.coordinates], **options)
        """The optimiser; its learning rate may be changed between runs."""
        self._target = target
        self._gradient_tolerance = gradient_tolerance
        self._energy_tolerance = energy_tolerance
        self._stalled_steps = stalled_steps
        self._refresh_every = refresh_scales_every
        self._patience = patience
        self._best = self.coordinates.detach().clone()
        self._best_energy: Tensor | None = None
        self._worst = 0.0
        self._lowest: list[float] = []
        self._steps = 0
        self._evaluations = 0

    def run(
        self, steps: int, on_step: Callable[[MinimizationStep], object] | None = None
    ) -> Minimized:
        """Makes steps until it has converged; tells each. What `on_step` raises ends the run, and the
        next one goes on from there."""
        reason: Reason = "steps"
        for _ in range(steps):
            self._refresh_scales()
            first: list[tuple[Tensor, float]] = []

            def closure(first: list[tuple[Tensor, float]] = first) -> Tensor:
                energy = self._evaluate()
                if not first:
                    first.append((energy, self._gradient_rms(energy.ndim)))
                return self._loss

            self.optimizer.step(closure)  # type: ignore[arg-type]
            energy, gradient_rms = first[0]
            self._steps += 1
            if on_step is not None:
                on_step(MinimizationStep(self._steps, energy, gradient_rms, self._evaluations))
            if gradient_rms <= self._gradient_tolerance and bool(torch.isfinite(energy).all()):
                reason = "gradient"
                break
            if self._stalls():
                reason = "energy"
                break
        self._evaluate()
        return self.best(reason)

    def best(self, reason: Reason = "steps") -> Minimized:
        """Returns the best so far."""
        if self._best_energy is None:
            raise invalid("steps", "nothing was evaluated yet; run some steps")
        return Minimized(
            self._best.clone(), self._best_energy.clone(), self._steps, self._evaluations, reason
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns what `load_state_dict` needs to go on in another process; torch.save keeps it."""
        return {
            "coordinates": self.coordinates.detach().clone(),
            "optimizer": self.optimizer.state_dict(),
            "best": self._best.clone(),
            "best_energy": self._best_energy,
            "worst": self._worst,
            "steps": self._steps,
            "evaluations": self._evaluations,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state."""
        with torch.no_grad():
            self.coordinates.copy_(state["coordinates"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._best = state["best"].clone()
        self._best_energy = state["best_energy"]
        self._worst = state["worst"]
        self._steps = state["steps"]
        self._evaluations = state["evaluations"]

    def _evaluate(self) -> Tensor:
        """Sets the loss and the gradient; returns the energies, NaN for samples that failed."""
        self.optimizer.zero_grad()
        energy = self._resiliently(lambda: self._target(self.coordinates))
        finite = torch.isfinite(energy)
        energy_now = energy.detach()
        if bool(finite.any()):
            self._worst = max(self._worst, float(energy_now[finite].abs().max()))
        # A line search has to turn back from where a sample fails, and cannot from infinity.
        loss = torch.where(finite, energy, _WORSE * self._worst).sum()
        loss.backward()
        gradient = self.coordinates.grad
        assert gradient is not None
        gradient.masked_fill_(~_beside(finite, gradient), 0)
        self._loss = loss.detach()
        self._evaluations += 1
        self._keep_best(energy_now)
        return energy_now

    def _keep_best(self, energy: Tensor) -> None:
        if self._best_energy is None:
            self._best_energy = torch.full_like(energy, torch.nan)
        better = (energy < self._best_energy) | (
            torch.isfinite(energy) & torch.isnan(self._best_energy)
        )
        here = self.coordinates.detach()
        self._best_energy = torch.where(better, energy, self._best_energy)
        self._best = torch.where(_beside(better, here), here, self._best)

    def _gradient_rms(self, batch_ndim: int) -> float:
        gradient = self.coordinates.grad
        assert gradient is not None
        atoms = tuple(range(batch_ndim, gradient.ndim - 1))
        return float(gradient.square().sum(-1).mean(atoms).sqrt().max())

    def _stalls(self) -> bool:
        assert self._best_energy is not None
        self._lowest.append(float(self._best_energy.nansum()))
        recent = self._lowest[-self._stalled_steps - 1 :]
        fell = recent[0] - recent[-1]
        enough = len(recent) > self._stalled_steps
        return enough and fell <= self._energy_tolerance * abs(recent[-1])

    def _refresh_scales(self) -> None:
        if not self._refresh_every or self._steps % self._refresh_every:
            return
        if not isinstance(self._target, Target):
            raise invalid("refresh_scales_every", "only a target of the mesh has X-ray scales")
        target, here = self._target, self.coordinates.detach()
        depth = 2 if target.atom_map is None else len(target.atom_map.shape) + 1
        one = here.reshape(-1, *here.shape[-depth:])[0]
        self._resiliently(lambda: target.refresh_scales(one))
        # Energies under other scales are not to be compared.
        self._best_energy, self._lowest = None, []

    def _resiliently(self, call: Callable[[], T]) -> T:
        policy = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_lost),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=2),
            stop=tenacity.stop_after_delay(self._patience),
            reraise=True,
        )
        for attempt in policy:
            with attempt:
                if attempt.retry_state.attempt_number > 1 and isinstance(self._target, Target):
                    self._target.reopen()
                return call()
        raise AssertionError("a retry policy ends with a result or an error")


def _is_lost(error: BaseException) -> bool:
    # A session that is closed was reopened by someone else, or else the target says that it is closed.
    return isinstance(error, Unavailable) or (
        isinstance(error, BxmeshError) and error.reason in ("SESSION_NOT_FOUND", "SESSION_CLOSED")
    )


def _beside(flags: Tensor, coordinates: Tensor) -> Tensor:
    return flags.reshape(*flags.shape, *[1] * (coordinates.ndim - flags.ndim))
