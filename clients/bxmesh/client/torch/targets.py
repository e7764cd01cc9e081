"""Targets of crystallography as modules: coordinates in, energies out, gradients backward."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any, ClassVar, Literal, Self, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bxmesh.client.models import Model
from bxmesh.client.names import invalid
from bxmesh.client.options import GradientOptions
from bxmesh.client.options import Target as TargetName
from bxmesh.client.steps import Step
from bxmesh.client.sync import Mesh, Session
from bxmesh.client.torch.atom_map import AtomMap
from bxmesh.client.torch.autograd import Evaluated, energies_of, on_wire
from bxmesh.client.values import SampleValue

__all__ = ["CombinedTarget", "GeometryEnergy", "OnFailure", "Target", "XrayTarget"]

OnFailure = Literal["nan", "raise"]

_MOST_PREFETCHED = 8
_MOST_MASKS = 16


class Target(torch.nn.Module):
    """A target of a model on the mesh, computed in sessions of its own.

    `target(coordinates)` takes [N, 3] in the order of the model's file, or any batch [..., N, 3], in
    angstrom, and returns the energy of each sample, [...]; with an atom map, or with a mask [R, 37]
    beside [..., R, 37, 3], it takes the caller's layout, and gradients come back in it. Half
    precision is computed in float32; energies are float32, or float64 for float64 coordinates.

    A sample that cannot be computed has the energy NaN and zero gradients (`on_failure="nan"`), or
    raises InvalidInput ("raise"). Sessions are opened at the first use; a batch is divided among
    them. Any thread may use a target, inside a running event loop too.
    """

    name: ClassVar[TargetName]
    """What the mesh calls it."""

    def __init__(
        self,
        mesh: Mesh,
        model: Model | str,
        *,
        atom_map: AtomMap | None = None,
        on_failure: OnFailure = "nan",
        sessions: int = 1,
        timeout: float | None = None,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__()
        if sessions < 1:
            raise invalid("sessions", f"{sessions} sessions are too few; 1 is the least")
        if on_failure not in ("nan", "raise"):
            raise invalid("on_failure", f'on_failure is "nan" or "raise", not {on_failure!r}')
        if not isinstance(mesh, Mesh):
            raise invalid(
                "mesh", f"a target needs a Mesh, without asyncio, not {type(mesh).__name__}"
            )
        self.atom_map = atom_map
        """The caller's layout; None for the model's own."""
        self._steps: list[Step] = []
        self._mesh = mesh
        self.model = model
        """The model, or its name."""
        self._on_failure = on_failure
        self._timeout = timeout
        options["target"] = self.name
        self._options = options
        self._count = sessions
        self._lock = threading.RLock()
        self._sessions: list[Session] = []
        self._closed = False
        self._scaled_at: NDArray[Any] | None = None
        self._prefetched: list[tuple[NDArray[Any], list[Future[Step]]]] = []
        self._masks: dict[bytes, AtomMap] = {}

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Returns a target with sessions of its own on the same mesh, as for a moving average of a
        network."""
        copied = type(self)(
            self._mesh,
            self.model,
            atom_map=self.atom_map,
            on_failure=self._on_failure,
            sessions=self._count,
            timeout=self._timeout,
            **self._options,
        )
        copied._scaled_at = self._scaled_at
        return copied.train(self.training)

    def extra_repr(self) -> str:
        """What `print` shows."""
        name = self.model.model_id if isinstance(self.model, Model) else self.model
        return f"{name}, atom_map={self.atom_map!r}"

    @property
    def samples(self) -> tuple[SampleValue, ...]:
        """What the mesh said of the last batch, sample by sample: terms, R factors, status."""
        return _samples(self._steps)

    def open(self) -> list[Session]:
        """Opens the sessions unless they are open, with the X-ray scales that were asked for last."""
        with self._lock:
            if self._closed:
                raise invalid("target", "the target is closed; make another")
            while len(self._sessions) < self._count:
                session = self._mesh.session(self.model, timeout=self._timeout, **self._options)
                session.__enter__()
                try:
                    if self._scaled_at is not None:
                        session.step(self._scaled_at, refresh_scales=True)
                except BaseException:
                    session.close()
                    raise
                self._sessions.append(session)
            return list(self._sessions)

    def reopen(self) -> None:
        """Gives up the sessions, as after a mesh that was lost for good, and opens new ones."""
        with self._lock:
            self._end_sessions()
            self.open()

    def close(self) -> None:
        """Ends the sessions; what was prefetched is dropped."""
        with self._lock:
            self._closed = True
            self._end_sessions()

    def prefetch(self, coordinates: Tensor, mask: Tensor | None = None) -> None:
        """Begins to compute what `target(coordinates)` will ask for, and does not wait for it.

        The next call with equal coordinates takes the answer. Of more than eight that nobody took, the
        oldest is dropped.
        """
        with torch.no_grad():
            array = on_wire(self._sites(coordinates, mask))
        # The caller may change its tensor before the answer is there.
        array = array.reshape(-1, *array.shape[-2:]).copy()
        pending = self._begin(array)
        with self._lock:
            self._prefetched.append((array, pending))
            for _, dropped in self._prefetched[:-_MOST_PREFETCHED]:
                _cancel(dropped)
            del self._prefetched[:-_MOST_PREFETCHED]

    def refresh_scales(self, coordinates: Tensor, mask: Tensor | None = None) -> None:
        """Determines the X-ray scales anew at one set of coordinates; they are frozen otherwise."""
        with torch.no_grad():
            array = on_wire(self._sites(coordinates, mask)).copy()
        if array.ndim != 2:
            raise invalid("coordinates", f"one sample is due, not a batch {list(array.shape)}")
        with self._lock:
            try:
                _wait([s.begin(array, refresh_scales=True) for s in self.open()])
            except BaseException:
                # Some may have new scales and others not; those that are opened next have the old ones.
                self._end_sessions()
                raise
            self._scaled_at = array
            self._drop_prefetched()

    def forward(self, coordinates: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns energies [...] of coordinates [..., N, 3], or in the layout of the atom map."""
        return energies_of(self._sites(coordinates, mask), self._evaluate)

    def _sites(self, coordinates: Tensor, mask: Tensor | None) -> Tensor:
        if not isinstance(coordinates, Tensor) or not coordinates.is_floating_point():
            what = getattr(coordinates, "dtype", type(coordinates).__name__)
            raise invalid("coordinates", f"a tensor of floating-point numbers is due, not {what}")
        atom_map = self.atom_map if mask is None else self._map_of(mask)
        sites = coordinates if atom_map is None else atom_map.to_model(coordinates)
        if sites.ndim < 2 or sites.shape[-1] != 3:
            raise invalid("coordinates", f"[..., N, 3] is due, not {list(sites.shape)}")
        return sites

    def _map_of(self, mask: Tensor) -> AtomMap:
        own = self.atom_map
        if own is not None:
            mask = mask.to(own.mask.device).bool()
            if mask.shape != own.mask.shape or bool((own.mask & ~mask).any()):
                raise invalid("mask", "the mask lacks atoms of the atom map that was given")
            return own
        key = np.packbits(mask.bool().cpu().numpy()).tobytes()
        with self._lock:
            if key not in self._masks:
                if len(self._masks) >= _MOST_MASKS:
                    self._masks.clear()
                self._masks[key] = AtomMap.atom37(self.model, mask)
            return self._masks[key]

    def _evaluate(self, batch: NDArray[Any]) -> Evaluated:
        steps = self._steps = _wait(self._taken(batch) or self._begin(batch))
        if self._on_failure == "raise" and not all(step.ok for step in steps):
            _raise_first_failure(steps)
        arrays = [step.arrays[f"{self.name}_sites"] for step in steps]
        gradients = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return Evaluated([e for step in steps for e in step.energies(self.name)], gradients)

    def _begin(self, batch: NDArray[Any]) -> list[Future[Step]]:
        sessions = self.open()
        if len(sessions) == 1:
            return [sessions[0].begin(batch)]
        parts = np.array_split(batch, min(len(sessions), max(1, len(batch))))
        return [session.begin(part) for session, part in zip(sessions, parts, strict=False)]

    def _taken(self, batch: NDArray[Any]) -> list[Future[Step]] | None:
        with self._lock:
            for index, (array, pending) in enumerate(self._prefetched):
                if array.dtype == batch.dtype and np.array_equal(array, batch):
                    del self._prefetched[index]
                    return pending
        return None

    def _drop_prefetched(self) -> None:
        for _, pending in self._prefetched:
            _cancel(pending)
        self._prefetched.clear()

    def _end_sessions(self) -> None:
        self._drop_prefetched()
        while self._sessions:
            self._sessions.pop().close()


class GeometryEnergy(Target):
    """The geometry restraints' energy."""

    name = "geometry"


class XrayTarget(Target):
    """The agreement with the measured reflections, per reflection, with frozen scales."""

    name = "xray"


class CombinedTarget(Target):
    """geometry_weight × geometry + xray_weight × X-ray; see GradientOptions for the weights."""

    name = "combined"


def _wait(pending: list[Future[Step]]) -> list[Step]:
    try:
        return [future.result() for future in pending]
    except BaseException:
        _cancel(pending)
        raise


def _cancel(pending: list[Future[Step]]) -> None:
    for future in pending:
        future.cancel()


def _raise_first_failure(steps: list[Step]) -> None:
    for index, sample in enumerate(_samples(steps)):
        if not sample.ok:
            raise invalid(
                "coordinates",
                f"sample {index} cannot be computed: {sample.message}",
                f"SAMPLE_{sample.status.upper()}",
            )


def _samples(steps: list[Step]) -> tuple[SampleValue, ...]:
    return tuple(sample for step in steps for sample in step.samples)
