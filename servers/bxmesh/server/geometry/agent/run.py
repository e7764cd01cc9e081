"""One calculation under way in a worker's thread, as the function that does it sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import Message
from numpy.typing import NDArray

from bxmesh.geometry.v1 import bundle_pb2
from bxmesh.server.geometry.agent.steps import Steps
from bxmesh.server.geometry.engine.model import BuiltModel

__all__ = ["Answer", "Calculator", "Run"]

_R = TypeVar("_R", bound=Message)

Answer = tuple[Message, Mapping[str, NDArray[Any]]]
"""The summary that closes an answer, and its tensors by name, in the order in which they are sent."""


class _Keep(Protocol):
    def __call__(
        self, content: bytes, kind: bundle_pb2.BundleKind.ValueType, media_type: str
    ) -> str: ...


@dataclass(frozen=True)
class Run(Generic[_R]):
    """A request, the model it is about, and the ways to whoever waits.

    cctbx is not for several threads: the calculation has the models' lock, except in `give_way`.
    """

    model: BuiltModel
    request: _R
    coordinates: NDArray[Any] | None
    """float32 or float64 [N, 3] in angstrom, in the order of the file; None for the model's own."""
    steps: Steps
    """Times and announces: `with run.steps.step("map"):`."""
    tell: Callable[[Message], None]
    """Sends what a stream shows before its end, such as a MinimizationStep; it may be lost."""
    is_over: Callable[[], bool]
    """Whether nobody waits for more any more: then the best so far is the answer."""
    give_way: Callable[[], None]
    """Lets others have the engine; what takes longer than seconds calls it that often."""
    read: Callable[[str], bytes]
    """The content of a bundle that the request names; raises MeshError NOT_FOUND."""
    keep: _Keep
    """Stores a file for the caller as long as results are kept; returns the bundle's id."""


Calculator = Callable[[Run[Any]], Answer]
"""Does a calculation; raises MeshError for what cannot be done."""
