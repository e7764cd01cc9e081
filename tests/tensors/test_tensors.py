"""Arrays to messages and chunks and back, and everything that must be refused."""

from __future__ import annotations

import hashlib
import itertools
import zlib
from typing import Any

import numpy as np
import pytest

from bxmesh.tensor.v1 import tensor_pb2
from bxmesh.tensor.v1.tensor_pb2 import Tensor, TensorChunk, TensorHeader, TensorSpec
from bxmesh.tensors import (
    DEFAULT_CHUNK_BYTES,
    MAX_CHUNK_BYTES,
    MIN_CHUNK_BYTES,
    TensorAssembler,
    TensorError,
    chunk_bytes_or_default,
    from_buffer,
    from_message,
    size_bytes,
    to_buffer,
    to_chunks,
    to_message,
    to_spec,
)

MIB = 1024 * 1024
DTYPES = ["f4", "f8", "i4", "i8", "?", "u1", "c8", "c16"]
SHAPES = [(), (0,), (1,), (7,), (3, 0, 2), (5, 3), (2, 5, 3), (1,) * 8]
RANDOM = np.random.default_rng(20261121)


def values(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if dtype in ("c8", "c16"):
        real, imaginary = RANDOM.normal(size=(2, *shape))
        return np.asarray(real + 1j * imaginary, dtype)
    if dtype == "?":
        return np.asarray(RANDOM.random(shape) > 0.5)
    return np.asarray(RANDOM.normal(scale=100, size=shape)).astype("i8").astype(dtype)


def refused(reason: str) -> Any:
    return pytest.raises(TensorError, check=lambda error: error.reason == reason)


def assemble(chunks: Any, max_bytes: int = MIB) -> list[Any]:
    assembler = TensorAssembler(max_bytes)
    tensors = [tensor for chunk in chunks if (tensor := assembler.feed(chunk)) is not None]
    assembler.finish()
    return tensors


def chunk(name: str, offset: int, data: bytes, header: TensorHeader | None = None) -> TensorChunk:
    return TensorChunk(name=name, offset=offset, data=data, crc32=zlib.crc32(data), header=header)


def header(name: str = "x", shape: tuple[int, ...] = (4,), total: int = 16) -> TensorHeader:
    spec = TensorSpec(name=name, data_type=tensor_pb2.DATA_TYPE_FLOAT32, shape=shape)
    return TensorHeader(spec=spec, total_bytes=total, chunk_bytes=8)


@pytest.mark.parametrize(("dtype", "shape"), list(itertools.product(DTYPES, SHAPES)))
def test_message_round_trip(dtype: str, shape: tuple[int, ...]) -> None:
    array = values(dtype, shape)
    message = Tensor.FromString(to_message(array, "x", "angstrom").SerializeToString())
    assert (message.spec.name, message.spec.unit) == ("x", "angstrom")
    back = from_message(message, max_bytes=MIB)
    assert back.dtype == array.dtype
    assert back.shape == shape
    assert back.tobytes() == array.tobytes()
    assert not back.flags.writeable


@pytest.mark.parametrize(("dtype", "shape"), list(itertools.product(DTYPES, SHAPES)))
@pytest.mark.parametrize("chunk_bytes", [1, 7, MIN_CHUNK_BYTES])
def test_chunks_round_trip(dtype: str, shape: tuple[int, ...], chunk_bytes: int) -> None:
    array = values(dtype, shape)
    chunks = list(to_chunks(array, to_spec(array, "x"), chunk_bytes))
    assert [c.HasField("header") for c in chunks] == [True] + [False] * (len(chunks) - 1)
    assert all(len(c.data) == chunk_bytes for c in chunks[:-1])
    [(spec, back)] = assemble(chunks)
    assert spec == to_spec(array, "x")
    assert (back.dtype, back.shape) == (array.dtype, shape)
    assert back.tobytes() == array.tobytes()
    assert not back.flags.writeable


def test_nan_and_infinity_pass_unchanged() -> None:
    array = np.array([np.nan, np.inf, -np.inf, -0.0])
    assert from_message(to_message(array, "x"), max_bytes=MIB).tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=">f8").reshape(4, 6),
        np.arange(24.0).reshape(4, 6).T,
        np.arange(48.0)[::2],
        np.asfortranarray(np.arange(24, dtype=">i4").reshape(4, 6)),
    ],
)
def test_byte_order_and_strides_are_put_right(array: np.ndarray) -> None:
    message = to_message(array, "x")
    assert message.data == array.astype(array.dtype.newbyteorder("<")).tobytes(order="C")
    assert np.array_equal(from_message(message, max_bytes=MIB), array)
    assert bytes(to_buffer(array)) == message.data


def test_views_share_their_bytes() -> None:
    array = np.arange(6.0).reshape(2, 3)
    assert np.shares_memory(np.frombuffer(to_buffer(array), np.float64), array)
    data = array.tobytes()
    view = from_buffer(data, to_spec(array, "x"), max_bytes=MIB)
    assert np.shares_memory(view, np.frombuffer(data, np.float64))


@pytest.mark.parametrize(
    "array", [np.array(["a"]), np.array([1], "i2"), np.array([object()]), np.zeros(2, "f2")]
)
def test_foreign_types_are_refused(array: np.ndarray) -> None:
    with refused("TENSOR_DATA_TYPE"):
        to_message(array, "x")


def test_nine_dimensions_are_refused() -> None:
    with refused("TENSOR_SHAPE"):
        to_message(np.zeros((1,) * 9), "x")
    with refused("TENSOR_SHAPE"):
        from_message(
            Tensor(spec=TensorSpec(data_type=tensor_pb2.DATA_TYPE_UINT8, shape=[1] * 9), data=b"1"),
            max_bytes=MIB,
        )


@pytest.mark.parametrize(
    ("data_type", "shape", "data", "reason"),
    [
        (tensor_pb2.DATA_TYPE_UNSPECIFIED, [1], b"1", "TENSOR_DATA_TYPE"),
        (99, [1], b"1", "TENSOR_DATA_TYPE"),
        (tensor_pb2.DATA_TYPE_FLOAT32, [-1], b"", "TENSOR_SHAPE"),
        (tensor_pb2.DATA_TYPE_FLOAT32, [-1, -4], b"\0" * 16, "TENSOR_SHAPE"),
        (tensor_pb2.DATA_TYPE_FLOAT32, [2**62, 4], b"", "TENSOR_SHAPE"),
        (tensor_pb2.DATA_TYPE_FLOAT32, [0, 2**62], b"", "TENSOR_SHAPE"),
        (tensor_pb2.DATA_TYPE_UINT8, [2**32, 2**32], b"", "TENSOR_SHAPE"),
        (tensor_pb2.DATA_TYPE_UINT8, [MIB + 1], b"", "TENSOR_TOO_LARGE"),
        (tensor_pb2.DATA_TYPE_FLOAT64, [3], b"\0" * 23, "TENSOR_TRUNCATED"),
        (tensor_pb2.DATA_TYPE_FLOAT64, [], b"", "TENSOR_TRUNCATED"),
        (tensor_pb2.DATA_TYPE_FLOAT64, [3], b"\0" * 25, "TENSOR_SHAPE"),
        (tensor_pb2.DATA_TYPE_BOOL, [2], b"\1\2", "TENSOR_DATA_TYPE"),
    ],
)
def test_malformed_messages(data_type: Any, shape: list[int], data: bytes, reason: str) -> None:
    spec = TensorSpec(name="sites", data_type=data_type, shape=shape)
    with refused(reason) as caught:
        from_message(Tensor(spec=spec, data=data), max_bytes=MIB)
    assert "sites" in caught.value.message


def test_empty_message_is_refused() -> None:
    with refused("TENSOR_DATA_TYPE"):
        from_message(Tensor(), max_bytes=MIB)


def test_size_bytes() -> None:
    assert size_bytes(header(shape=(2, 3)).spec, max_bytes=24) == 24
    with refused("TENSOR_TOO_LARGE"):
        size_bytes(header(shape=(2, 3)).spec, max_bytes=23)


def test_to_chunks_takes_bytes() -> None:
    array = np.arange(1000.0)
    spec = to_spec(array, "x")
    for content in (array.tobytes(), memoryview(array.tobytes()), bytearray(array.tobytes())):
        assert list(to_chunks(content, spec, 512)) == list(to_chunks(array, spec, 512))


def test_to_chunks_refuses_content_unlike_its_spec() -> None:
    spec = to_spec(np.zeros(3), "x")
    for content in (np.zeros(4), np.zeros(3, "f4"), np.zeros((3, 1)), b"\0" * 23):
        with refused("TENSOR_SHAPE"):
            to_chunks(content, spec)


def test_chunks_of_several_tensors_may_alternate() -> None:
    arrays = [np.arange(100.0) + n for n in range(3)]
    streams = [to_chunks(a, to_spec(a, f"x{n}"), 64 + n) for n, a in enumerate(arrays)]
    mixed = [c for group in itertools.zip_longest(*streams) for c in group if c is not None]
    tensors = {spec.name: array for spec, array in assemble(mixed)}
    assert sorted(tensors) == ["x0", "x1", "x2"]
    assert all(np.array_equal(tensors[f"x{n}"], a) for n, a in enumerate(arrays))


def test_a_name_may_come_again_once_complete() -> None:
    array = np.arange(10.0)
    chunks = list(to_chunks(array, to_spec(array, "x"), 32))
    assert len(assemble(chunks * 2)) == 2


def test_header_without_data() -> None:
    data = b"\1" * 16
    [(_, array)] = assemble([chunk("x", 0, b"", header()), chunk("x", 0, data)])
    assert array.tobytes() == data


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([chunk("x", 0, b"1234")], "TENSOR_HEADER"),
        ([chunk("y", 0, b"1234", header("x"))], "TENSOR_HEADER"),
        ([chunk("x", 0, b"1234", header()), chunk("x", 0, b"", header())], "TENSOR_HEADER"),
        ([chunk("x", 0, b"1234", header()), chunk("y", 4, b"1234")], "TENSOR_HEADER"),
        ([chunk("x", 4, b"1234", header())], "TENSOR_OFFSET"),
        ([chunk("x", 0, b"1234", header()), chunk("x", 8, b"1234")], "TENSOR_OFFSET"),
        ([chunk("x", 0, b"1234", header()), chunk("x", 0, b"1234")], "TENSOR_OFFSET"),
        ([chunk("x", 0, b"1234", header()), chunk("x", 4, b"")], "TENSOR_OFFSET"),
        ([chunk("x", 0, b"1" * 17, header())], "TENSOR_OFFSET"),
        ([TensorChunk(name="x", data=b"1", crc32=1, header=header())], "TENSOR_CHECKSUM"),
        ([TensorChunk(name="x", data=b"1", header=header())], "TENSOR_CHECKSUM"),
        ([chunk("x", 0, b"", header(total=15))], "TENSOR_SHAPE"),
        ([chunk("x", 0, b"", header(shape=(-4,)))], "TENSOR_SHAPE"),
        ([chunk("x", 0, b"", header(shape=(MIB,), total=4 * MIB))], "TENSOR_TOO_LARGE"),
        ([chunk("x", 0, b"", header())], "TENSOR_TRUNCATED"),
        ([chunk("x", 0, b"1" * 15, header())], "TENSOR_TRUNCATED"),
    ],
)
def test_malformed_chunks(chunks: list[TensorChunk], reason: str) -> None:
    with refused(reason):
        assemble(chunks)


def test_unfinished_tensors_share_the_limit() -> None:
    assembler = TensorAssembler(31)
    assembler.feed(chunk("x", 0, b"", header("x")))
    with refused("TENSOR_TOO_LARGE"):
        assembler.feed(chunk("y", 0, b"", header("y")))
    assert assembler.feed(chunk("x", 0, b"1" * 16)) is not None
    assert assembler.feed(chunk("y", 0, b"1" * 16, header("y"))) is not None


def test_unfinished_tensors_are_counted() -> None:
    assembler = TensorAssembler(MIB)
    for n in range(64):
        assembler.feed(chunk(f"x{n}", 0, b"", header(f"x{n}")))
    with refused("TENSOR_TOO_LARGE"):
        assembler.feed(chunk("one more", 0, b"", header("one more")))


def test_digest_is_checked_where_there_is_one() -> None:
    array = np.arange(100.0)
    spec = to_spec(array, "x")
    digest = f"sha256:{hashlib.sha256(array.tobytes()).hexdigest()}"
    assert len(assemble(to_chunks(array, spec, 64, digest=digest))) == 1
    with refused("TENSOR_CHECKSUM"):
        assemble(to_chunks(array + 1, spec, 64, digest=digest))


def test_chunk_bytes_or_default() -> None:
    assert chunk_bytes_or_default(0) == DEFAULT_CHUNK_BYTES
    for chosen in (MIN_CHUNK_BYTES, MAX_CHUNK_BYTES):
        assert chunk_bytes_or_default(chosen) == chosen
    for chosen in (-1, 1, MIN_CHUNK_BYTES - 1, MAX_CHUNK_BYTES + 1):
        with refused("TENSOR_CHUNK_BYTES"):
            chunk_bytes_or_default(chosen)
