"""Batches of coordinates as bundles: NumPy files (.npy)."""

from __future__ import annotations

import io
import math
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bxmesh.geometry.v1 import bundle_pb2, gradients_pb2
from bxmesh.server.bundles import BundleStore
from bxmesh.server.errors import invalid_argument
from bxmesh.tensors import TensorError, from_message, size_bytes, to_buffer

_LEAST_ITEM_BYTES = 4
# What is larger goes through the store, so that the append-only file of Redis stays small.
_INLINE_BYTES = 64 * 1024


def load_coordinates(store: BundleStore, bundle_id: str) -> NDArray[Any]:
    """The array [N, 3] or [B, N, 3] in a bundle, mapped and not read.

    Raises MeshError NOT_FOUND for an unknown bundle, INVALID_ARGUMENT for one that is no such
    array.
    """
    path = store.path(bundle_id)
    try:
        array: Any = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy raises anything over the header of a hostile file.
        raise invalid_argument(
            "coordinates.bundle_id",
            "this bundle is not a NumPy file (.npy) of numbers.",
            reason="COORDINATES_UNREADABLE",
        ) from error
    if array.ndim not in (2, 3):
        raise invalid_argument(
            "coordinates.bundle_id",
            f"the array has {array.ndim} dimensions; it must be [N, 3] or [B, N, 3].",
            reason="COORDINATES_SHAPE",
        )
    return np.asarray(array)


def save_coordinates(
    store: BundleStore,
    array: NDArray[Any],
    *,
    holder: bundle_pb2.BundleHolder | None = None,
    lifetime: timedelta | None = None,
) -> str:
    """Stores an array, by default as long as an upload; returns the bundle's id."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, np.lib.format.header_data_from_array_1_0(np.ascontiguousarray(array))
    )
    with store.writer(
        bundle_pb2.BUNDLE_KIND_COORDINATES,
        media_type="application/x-npy",
        holder=holder,
        lifetime=lifetime,
        durable=False,
    ) as writer:
        writer.write(header.getvalue())
        writer.write(to_buffer(array))
        bundle, _ = writer.commit()
    return bundle.bundle_id


def handed_over(
    store: BundleStore,
    given: gradients_pb2.Coordinates,
    *,
    max_bytes: int,
    holder: bundle_pb2.BundleHolder,
    lifetime: timedelta,
) -> tuple[gradients_pb2.Coordinates, tuple[int, ...]]:
    """Coordinates as a worker gets them, and their shape: () for none, which is the model's own.

    Raises MeshError for what is no [N, 3] or [B, N, 3]; that somebody sees a bundle is to be checked
    before. What is large goes through the store, so that Redis stays small.
    """
    handed = gradients_pb2.Coordinates()
    match given.WhichOneof("source"):
        case "bundle_id":
            handed.CopyFrom(given)
            shape = load_coordinates(store, given.bundle_id).shape
        case "tensor":
            shape = tuple(given.tensor.spec.shape)
            try:
                size_bytes(given.tensor.spec, max_bytes=max_bytes)
                if len(given.tensor.data) > _INLINE_BYTES:
                    array = from_message(given.tensor, max_bytes=max_bytes)
                    handed.bundle_id = save_coordinates(
                        store, array, holder=holder, lifetime=lifetime
                    )
                else:
                    handed.tensor.CopyFrom(given.tensor)
            except TensorError as error:
                raise invalid_argument("coordinates", str(error), reason=error.reason) from error
        case _:
            return handed, ()
    check_shape(shape, max_bytes)
    return handed, shape


def check_shape(shape: tuple[int, ...], max_bytes: int) -> None:
    """Raises MeshError for what is neither [N, 3] nor [B, N, 3], for nothing, and for too much."""
    if len(shape) not in (2, 3) or shape[-1] != 3 or not all(shape):
        raise invalid_argument(
            "coordinates",
            f"their shape is {list(shape)}; it must be [N, 3] or [B, N, 3].",
            reason="COORDINATES_SHAPE",
        )
    if math.prod(shape) * _LEAST_ITEM_BYTES > max_bytes:
        raise invalid_argument(
            "coordinates",
            f"the batch is too large; {max_bytes} bytes are the most at once.",
            reason="COORDINATES_TOO_LARGE",
        )
