"""The steps of a calculation: timed, traced, and told to whoever waits."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from opentelemetry import trace

from bxmesh.geometry.v1 import gradients_pb2

_tracer = trace.get_tracer("bxmesh.engine")

# What a warm model does in milliseconds is over before anyone could read of it.
_WORTH_TELLING = frozenset(
    {"read_bundles", "parse", "read_reflections", "build_restraints", "scale", "map", "write"}
)


class Steps:
    """Collects how long each step of one calculation took."""

    def __init__(self, announce: Callable[[str], None] | None = None) -> None:
        self._announce = announce
        self._announced: set[str] = set()
        self._seconds: dict[str, float] = {}

    def step(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Stands around one step."""
        return self._observed(name)

    @contextlib.contextmanager
    def _observed(self, name: str) -> Iterator[None]:
        if self._announce is not None and name in _WORTH_TELLING and name not in self._announced:
            self._announced.add(name)
            self._announce(name)
        began = time.perf_counter()
        with _tracer.start_as_current_span(f"engine {name}"):
            try:
                yield
            finally:
                took = time.perf_counter() - began
                self._seconds[name] = self._seconds.get(name, 0.0) + took

    @property
    def times(self) -> list[gradients_pb2.StepTime]:
        """Seconds per step, in the order in which they first came."""
        return [
            gradients_pb2.StepTime(step=name, seconds=seconds)
            for name, seconds in self._seconds.items()
        ]


class UnobservedSteps(Steps):
    """Steps that nobody looks at, for what is called a thousand times a second."""

    _nothing = contextlib.nullcontext()

    def step(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Stands around one step and does nothing."""
        return self._nothing
