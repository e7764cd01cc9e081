"""Coordinates between torch, NumPy, the contract's tensors, cctbx's flex arrays and bundles."""

from __future__ import annotations

import io
import sys
import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bxmesh.client.bundles import BundleKind
from bxmesh.client.names import invalid
from bxmesh.client.sync import Mesh
from bxmesh.tensor.v1 import tensor_pb2
from bxmesh.tensors import TensorError, from_message, to_message

__all__ = ["CoordinateTranslator", "MemoryUsage"]

_MAX_BYTES = 4 * 1024 * 1024
_FLEX_MODULES = ("cctbx.array_family.flex", "scitbx.array_family.flex")


@dataclass(frozen=True)
class MemoryUsage:
    """What a translator keeps."""

    bundles: int
    """Bundles whose coordinates are kept."""
    bytes: int
    """The memory of their coordinates."""
    bytes_by_device: dict[str, int]
    """The same by device, such as "cpu" or "cuda:0"."""


class CoordinateTranslator:
    """Translates coordinates, and anything else that is numbers, from one library to another.

    A source is a torch tensor, a NumPy array or what NumPy can read, a tensor message of the
    contract, a flex.vec3_double ([N, 3]) or a flex.double ([N]). The type and the device are those
    of the source unless given. Memory is shared where both sides can have it: between NumPy and
    torch on the host, when neither type nor device changes and the array is writable, row-major and
    in the machine's byte order. flex arrays are copied, and so is read-only memory on its way to torch.
    """

    def __init__(
        self,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        *,
        most_bundles: int = 16,
    ) -> None:
        self.dtype = dtype
        """The type of the tensors; that of the source when None."""
        self.device = None if device is None else torch.device(device)
        """Where the tensors are; where the source is, or the host, when None."""
        self._most_bundles = most_bundles
        self._bundles: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def to_torch(self, source: Any) -> Tensor:
        """Returns a source as a tensor; a tensor keeps its place in autograd's graph."""
        if isinstance(source, Tensor):
            return source.to(self.device, self.dtype)
        array = self.to_numpy(source)
        if (
            not array.flags.writeable
            or not array.dtype.isnative
            or min(array.strides, default=0) < 0
        ):
            array = array.astype(array.dtype.newbyteorder("="), order="C")
        try:
            tensor = torch.from_numpy(array)
        except TypeError as error:
            raise invalid("source", f"torch has no type for {array.dtype}") from error
        return tensor.to(self.device, self.dtype)

    def to_numpy(self, source: Any) -> NDArray[Any]:
        """Returns a source as an array on the host, in its own type; bfloat16 becomes float32."""
        if isinstance(source, Tensor):
            tensor = source.detach().cpu()
            if tensor.dtype == torch.bfloat16:
                tensor = tensor.float()
            host: NDArray[Any] = tensor.numpy()
            return host
        if isinstance(source, tensor_pb2.Tensor):
            try:
                return from_message(source, max_bytes=_MAX_BYTES)
            except TensorError as error:
                raise invalid("source", error.message, error.reason) from error
        if hasattr(source, "as_double") and hasattr(source, "as_numpy_array"):
            flat: NDArray[Any] = source.as_double().as_numpy_array()
            return flat.reshape(len(source), -1) if len(flat) > len(source) else flat
        array = np.asarray(source)
        if array.dtype.kind not in "fiubc":
            raise invalid("source", f"{type(source).__name__} holds no numbers ({array.dtype})")
        return array

    def to_message(
        self, source: Any, name: str = "coordinates", unit: str = "angstrom"
    ) -> tensor_pb2.Tensor:
        """Returns a source as a tensor of the contract; half precision becomes float32."""
        array = self._without_half(source)
        if array.nbytes > _MAX_BYTES:
            raise invalid(
                "source",
                f"{array.nbytes} bytes are too many for one message ({_MAX_BYTES}); register a bundle",
                "TENSOR_TOO_LARGE",
            )
        try:
            return to_message(array, name, unit)
        except TensorError as error:
            raise invalid("source", error.message, error.reason) from error

    def to_flex(self, source: Any) -> Any:
        """Returns a source [N, 3] as a flex.vec3_double, where the caller has imported cctbx."""
        flex = next((sys.modules[name] for name in _FLEX_MODULES if name in sys.modules), None)
        if flex is None:
            raise invalid(
                "flex", "import cctbx.array_family.flex first, before torch: this package does not"
            )
        array = self.to_numpy(source)
        if array.ndim != 2 or array.shape[1] != 3:
            raise invalid("source", f"a vec3_double is [N, 3], not {list(array.shape)}")
        return flex.vec3_double(flex.double(np.ascontiguousarray(array, np.float64).ravel()))

    def register_bundle(
        self, mesh: Mesh, source: Any, *, kind: BundleKind | None = None, name: str | None = None
    ) -> str:
        """Stores a file (a path), its bytes, or coordinates as a bundle; returns its name.

        Coordinates are [N, 3] or [B, N, 3] in angstrom, in any form that `to_torch` takes.
        """
        if isinstance(source, (str, Path, bytes)):
            return mesh.bundles.upload(source, kind=kind, name=name).bundle_id
        array = self._without_half(source)
        if array.ndim not in (2, 3) or array.shape[-1] != 3:
            shape = list(array.shape)
            raise invalid("source", f"coordinates are [N, 3] or [B, N, 3], not {shape}")
        content = io.BytesIO()
        np.save(content, np.ascontiguousarray(array), allow_pickle=False)
        bundle = mesh.bundles.upload(
            content.getvalue(), kind=kind or "coordinates", name=name or "coordinates.npy"
        )
        return bundle.bundle_id

    def load_bundle(self, mesh: Mesh, bundle_id: str) -> Tensor:
        """Returns the coordinates in a bundle: of `coordinates` the array, of a `macromolecule` its
        sites [N, 3] in the order of the file. They are kept, as a bundle never changes."""
        with self._lock:
            if (kept := self._bundles.get(bundle_id)) is not None:
                self._bundles.move_to_end(bundle_id)
                return kept.clone()
        match kind := mesh.bundles.get(bundle_id).kind:
            case "coordinates":
                array = _read_npy(mesh.bundles.download(bundle_id))
            case "macromolecule":
                atoms = mesh.create_model(bundle_id, include_atoms=True).atoms
                if atoms is None:
                    raise invalid("bundle_id", "the macromolecule has more than 50,000 atoms")
                array = atoms.sites
            case _:
                raise invalid("bundle_id", f"a bundle of kind {kind} has no coordinates")
        tensor = self.to_torch(array)
        with self._lock:
            self._bundles[bundle_id] = tensor
            while len(self._bundles) > self._most_bundles:
                self._bundles.popitem(last=False)
        return tensor.clone()

    def _without_half(self, source: Any) -> NDArray[Any]:
        array = self.to_numpy(source)
        return array.astype(np.float32) if array.dtype == np.float16 else array

    def get_memory_usage(self) -> MemoryUsage:
        """Returns what is kept of bundles."""
        by_device: Counter[str] = Counter()
        with self._lock:
            for tensor in self._bundles.values():
                by_device[str(tensor.device)] += tensor.element_size() * tensor.numel()
            return MemoryUsage(len(self._bundles), by_device.total(), dict(by_device))

    def clear(self) -> None:
        """Forgets what is kept of bundles."""
        with self._lock:
            self._bundles.clear()


def _read_npy(content: bytes) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise invalid("bundle_id", f"the bundle is no NumPy file of numbers: {error}") from error
    return array
