"""NumPy arrays to and from the tensors of the contract, whole or in chunks."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bxmesh.tensor.v1 import tensor_pb2
from bxmesh.tensor.v1.tensor_pb2 import Tensor, TensorChunk, TensorHeader, TensorSpec

__all__ = [
    "DEFAULT_CHUNK_BYTES",
    "MAX_CHUNK_BYTES",
    "MIN_CHUNK_BYTES",
    "AssembledTensor",
    "TensorAssembler",
    "TensorError",
    "chunk_bytes_or_default",
    "from_buffer",
    "from_message",
    "size_bytes",
    "to_buffer",
    "to_chunks",
    "to_message",
    "to_spec",
]

DEFAULT_CHUNK_BYTES = 128 * 1024
"""The data in one chunk unless the caller chose, in bytes."""
MIN_CHUNK_BYTES = 16 * 1024
"""The least data that a caller may choose for a chunk, in bytes."""
MAX_CHUNK_BYTES = 1024 * 1024
"""The most data in one chunk, in bytes."""

Bytes = bytes | bytearray | memoryview

_MAX_DIMENSIONS = 8
_MAX_INDEX = 2**63 - 1
_MAX_OPEN = 64

_DTYPES: dict[tensor_pb2.DataType.ValueType, np.dtype[Any]] = {
    tensor_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    tensor_pb2.DATA_TYPE_INT32: np.dtype("<i4"),
    tensor_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    tensor_pb2.DATA_TYPE_BOOL: np.dtype("?"),
    tensor_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
    tensor_pb2.DATA_TYPE_COMPLEX64: np.dtype("<c8"),
    tensor_pb2.DATA_TYPE_COMPLEX128: np.dtype("<c16"),
}
_DATA_TYPES = {dtype.str: data_type for data_type, dtype in _DTYPES.items()}


class TensorError(ValueError):
    """A tensor that is not what it says.

    `reason` is TENSOR_DATA_TYPE, TENSOR_SHAPE, TENSOR_TOO_LARGE, TENSOR_TRUNCATED, TENSOR_CHECKSUM,
    TENSOR_HEADER, TENSOR_OFFSET or TENSOR_CHUNK_BYTES.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class AssembledTensor(NamedTuple):
    """A tensor whose chunks have all arrived."""

    spec: TensorSpec
    array: NDArray[Any]
    """Read-only, in the type and shape of the spec."""


def to_message(array: NDArray[Any], name: str, unit: str = "") -> Tensor:
    """Returns the array as one message. TensorError for a type or shape that no tensor can have."""
    array = _on_wire(array)
    return Tensor(spec=to_spec(array, name, unit), data=array.tobytes())


def from_message(tensor: Tensor, *, max_bytes: int) -> NDArray[Any]:
    """Returns a read-only view of a tensor. TensorError for anything that does not fit together."""
    return from_buffer(tensor.data, tensor.spec, max_bytes=max_bytes)


def to_spec(array: NDArray[Any], name: str, unit: str = "") -> TensorSpec:
    """Returns what the bytes of the array mean."""
    if array.ndim > _MAX_DIMENSIONS:
        raise TensorError(
            "TENSOR_SHAPE", f"{name!r} has {array.ndim} dimensions; {_MAX_DIMENSIONS} is the most"
        )
    data_type = _DATA_TYPES.get(array.dtype.newbyteorder("<").str)
    if data_type is None:
        raise TensorError("TENSOR_DATA_TYPE", f"{name!r} is {array.dtype}, which no tensor can be")
    return TensorSpec(name=name, data_type=data_type, shape=array.shape, unit=unit)


def to_buffer(array: NDArray[Any]) -> memoryview:
    """Returns the bytes of the array, little-endian and row-major, copied only if necessary."""
    return _on_wire(array).reshape(-1).view(np.uint8).data


def from_buffer(buffer: Bytes, spec: TensorSpec, *, max_bytes: int) -> NDArray[Any]:
    """Returns a read-only array over bytes as the spec describes them. TensorError: they differ."""
    expected = size_bytes(spec, max_bytes=max_bytes)
    view = memoryview(buffer)
    if view.nbytes != expected:
        raise TensorError(
            "TENSOR_TRUNCATED" if view.nbytes < expected else "TENSOR_SHAPE",
            f"{spec.name!r} of shape {list(spec.shape)} needs {expected} bytes, not {view.nbytes}",
        )
    array: NDArray[Any] = np.frombuffer(view, _DTYPES[spec.data_type]).reshape(spec.shape)
    if spec.data_type == tensor_pb2.DATA_TYPE_BOOL and (array.view(np.uint8) > 1).any():
        raise TensorError("TENSOR_DATA_TYPE", f"{spec.name!r} has booleans other than 0 and 1")
    array.flags.writeable = False
    return array


def size_bytes(spec: TensorSpec, *, max_bytes: int) -> int:
    """Returns the length of a tensor in bytes. TensorError for an impossible or too large spec."""
    dtype = _DTYPES.get(spec.data_type)
    if dtype is None:
        raise TensorError(
            "TENSOR_DATA_TYPE", f"{spec.name!r} has no known data type ({spec.data_type})"
        )
    shape = spec.shape
    if len(shape) > _MAX_DIMENSIONS or any(length < 0 for length in shape):
        raise TensorError("TENSOR_SHAPE", f"{spec.name!r} has an impossible shape {list(shape)}")
    # NumPy multiplies the lengths even of an array that a zero among them leaves empty.
    if math.prod(filter(None, shape)) * dtype.itemsize > _MAX_INDEX:
        raise TensorError("TENSOR_SHAPE", f"{spec.name!r} has an impossible shape {list(shape)}")
    size: int = math.prod(shape) * dtype.itemsize
    if size > max_bytes:
        raise TensorError(
            "TENSOR_TOO_LARGE", f"{spec.name!r} needs {size} bytes; {max_bytes} is the most"
        )
    return size


def to_chunks(
    content: NDArray[Any] | Bytes,
    spec: TensorSpec,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    *,
    digest: str = "",
) -> Iterator[TensorChunk]:
    """Yields a tensor in chunks of `chunk_bytes` bytes, the header on the first of them.

    Content is an array of the spec's type and shape, or its bytes as they go on the wire.
    """
    if isinstance(content, np.ndarray):
        own = to_spec(content, spec.name)
        if own.data_type != spec.data_type or own.shape != spec.shape:
            raise TensorError(
                "TENSOR_SHAPE",
                f"{spec.name!r} is {content.dtype} {list(content.shape)}, unlike its spec",
            )
        content = to_buffer(content)
    view = memoryview(content)
    total = size_bytes(spec, max_bytes=_MAX_INDEX)
    if view.nbytes != total:
        raise TensorError(
            "TENSOR_SHAPE",
            f"{spec.name!r} of shape {list(spec.shape)} needs {total} bytes, not {view.nbytes}",
        )
    header = TensorHeader(spec=spec, total_bytes=total, chunk_bytes=chunk_bytes, digest=digest)
    return _chunks(view, header)


def chunk_bytes_or_default(chunk_bytes: int) -> int:
    """Returns the chunk size that a caller chose, 0 for the default; TensorError out of range."""
    if not chunk_bytes:
        return DEFAULT_CHUNK_BYTES
    if not MIN_CHUNK_BYTES <= chunk_bytes <= MAX_CHUNK_BYTES:
        raise TensorError(
            "TENSOR_CHUNK_BYTES",
            f"chunks of {chunk_bytes} bytes; {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES} are possible",
        )
    return chunk_bytes


class TensorAssembler:
    """Puts tensors together from their chunks, which may alternate between tensors."""

    def __init__(self, max_bytes: int) -> None:
        """Takes the most bytes that all unfinished tensors may have together."""
        self._max_bytes = max_bytes
        self._open_bytes = 0
        self._open: dict[str, _Unfinished] = {}

    def feed(self, chunk: TensorChunk) -> AssembledTensor | None:
        """Takes the next chunk; returns its tensor if it is the last. TensorError refuses it."""
        name = chunk.name
        if chunk.HasField("header"):
            self._begin(name, chunk.header)
        unfinished = self._open.get(name)
        if unfinished is None:
            raise TensorError("TENSOR_HEADER", f"a chunk of {name!r} came before its header")
        unfinished.write(chunk)
        if unfinished.received < unfinished.total:
            return None
        del self._open[name]
        self._open_bytes -= unfinished.total
        return unfinished.finish()

    def finish(self) -> None:
        """Says that no more chunks come. TensorError TENSOR_TRUNCATED if a tensor is incomplete."""
        for name, unfinished in self._open.items():
            raise TensorError(
                "TENSOR_TRUNCATED",
                f"{name!r} ended after {unfinished.received} of {unfinished.total} bytes",
            )

    def _begin(self, name: str, header: TensorHeader) -> None:
        if name != header.spec.name:
            raise TensorError(
                "TENSOR_HEADER", f"a chunk of {name!r} has the header of {header.spec.name!r}"
            )
        if name in self._open:
            raise TensorError("TENSOR_HEADER", f"{name!r} began again before it was complete")
        if len(self._open) >= _MAX_OPEN:
            raise TensorError("TENSOR_TOO_LARGE", f"more than {_MAX_OPEN} tensors at once")
        size = size_bytes(header.spec, max_bytes=self._max_bytes - self._open_bytes)
        if header.total_bytes != size:
            raise TensorError(
                "TENSOR_SHAPE",
                f"{name!r} of shape {list(header.spec.shape)} needs {size} bytes,"
                f" not {header.total_bytes}",
            )
        self._open[name] = _Unfinished(header, size)
        self._open_bytes += size


class _Unfinished:
    def __init__(self, header: TensorHeader, total: int) -> None:
        self.header = header
        self.total = total
        self.received = 0
        # Pages are only taken from the system as data arrive in them.
        self.buffer = np.empty(total, np.uint8)

    def write(self, chunk: TensorChunk) -> None:
        name, data = chunk.name, chunk.data
        if chunk.offset != self.received:
            raise TensorError(
                "TENSOR_OFFSET", f"{name!r} goes on at {self.received}, not at {chunk.offset}"
            )
        if not data and not chunk.HasField("header"):
            raise TensorError("TENSOR_OFFSET", f"{name!r} has an empty chunk at {self.received}")
        end = self.received + len(data)
        if end > self.total:
            raise TensorError(
                "TENSOR_OFFSET", f"{name!r} has {self.total} bytes; a chunk reaches to {end}"
            )
        if zlib.crc32(data) != chunk.crc32:
            raise TensorError(
                "TENSOR_CHECKSUM", f"{name!r} has a wrong checksum in the chunk at {self.received}"
            )
        self.buffer.data[self.received : end] = data
        self.received = end

    def finish(self) -> AssembledTensor:
        spec, digest = self.header.spec, self.header.digest
        if digest and digest != f"sha256:{hashlib.sha256(self.buffer.data).hexdigest()}":
            raise TensorError("TENSOR_CHECKSUM", f"{spec.name!r} does not have its digest")
        return AssembledTensor(spec, from_buffer(self.buffer.data, spec, max_bytes=self.total))


def _on_wire(array: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C")


def _chunks(view: memoryview, header: TensorHeader) -> Iterator[TensorChunk]:
    name, total, step = header.spec.name, header.total_bytes, header.chunk_bytes
    data = bytes(view[:step])
    yield TensorChunk(header=header, name=name, data=data, crc32=zlib.crc32(data))
    for offset in range(step, total, step):
        data = bytes(view[offset : offset + step])
        yield TensorChunk(name=name, offset=offset, data=data, crc32=zlib.crc32(data))
