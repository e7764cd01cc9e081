"""Maps that cover a whole unit cell, as CCP4 files (MRC2014)."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cctbx import crystal

from bxmesh.server.geometry.engine import files
from bxmesh.server.geometry.engine.errors import EngineError
from bxmesh.server.geometry.engine.types import UnitCell

_FIELD = "map"
_HEADER_BYTES = 1024
_MAGIC = slice(208, 212)
_TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_MOST_POINTS = 2**27
_LINE = 80
_FLOAT = 2
_VERSION = 20140
_LITTLE_ENDIAN = 0x4444


@dataclass(frozen=True, eq=False)
class CellMap:
    """A map over a unit cell."""

    values: npt.NDArray[np.float32]
    """[A, B, C], points along a, b and c from the origin of the cell."""
    unit_cell: UnitCell
    """Lengths in Å and angles in degrees."""


def read(data: bytes) -> CellMap:
    """Return the map in `data`, gzipped or not, whatever the order of its axes.

    Raises EngineError: MAP_UNREADABLE, MAP_TOO_LARGE, MAP_INCOMPLETE for one that does not cover
    the unit cell, MAP_NOT_FINITE.
    """
    content = files.decompress(data, field=_FIELD)
    if len(content) < _HEADER_BYTES or content[_MAGIC] != b"MAP ":
        raise _unreadable("it is no CCP4 or MRC file")
    for order in "<>":
        header = np.frombuffer(content, f"{order}i4", 256)
        if header[3] in _TYPES and set(header[16:19]) == {1, 2, 3}:
            return _read(content, order, header)
    raise _unreadable("its header is damaged, or the type of its values is not known here")


def write(
    values: npt.NDArray[np.float32],
    symmetry: crystal.symmetry,
    title: str,
    mean: float,
    sigma: float,
) -> bytes:
    """Return a map [A, B, C] as a file: columns along a, rows along b, sections along c."""
    operations = b"".join(
        operation.as_xyz().upper().encode().ljust(_LINE) for operation in symmetry.space_group()
    )
    header = np.zeros(256, "<i4")
    header[0:3] = header[7:10] = values.shape
    header[3] = _FLOAT
    header[10:16] = np.array(symmetry.unit_cell().parameters(), "<f4").view("<i4")
    header[16:19] = 1, 2, 3
    header[19:22] = np.array([values.min(), values.max(), mean], "<f4").view("<i4")
    header[22] = symmetry.space_group().type().number()
    header[23] = len(operations)
    header[26] = int.from_bytes(b"CCP4", "little")
    header[27] = _VERSION
    header[52] = int.from_bytes(b"MAP ", "little")
    header[53] = _LITTLE_ENDIAN
    header[54] = np.array(sigma, "<f4").view("<i4")
    header[55] = 1
    start = header.tobytes()[: -10 * _LINE] + title.encode().ljust(10 * _LINE)
    return b"".join([start, operations, values.astype("<f4").tobytes(order="F")])


def _read(content: bytes, order: str, header: npt.NDArray[np.int32]) -> CellMap:
    extent = [int(number) for number in header[:3]]
    axes = [int(number) - 1 for number in header[16:19]]
    if min(extent) < 1 or math.prod(extent) > _MOST_POINTS:
        raise EngineError(
            "MAP_TOO_LARGE",
            f"The map has {' × '.join(map(str, extent))} points; 1 to {_MOST_POINTS} are taken.",
            field=_FIELD,
        )
    start = _HEADER_BYTES + int(header[23])
    kind = np.dtype(f"{order}{_TYPES[int(header[3])]}")
    if start < _HEADER_BYTES or len(content) - start != math.prod(extent) * kind.itemsize:
        raise _unreadable("it has not as many values as its header says")
    columns, rows, sections = extent
    stored = np.frombuffer(content, kind, offset=start).reshape(sections, rows, columns)
    # The last axis runs along the columns, which are `axes[0]`.
    values = stored.transpose([2 - axes.index(axis) for axis in range(3)]).astype(np.float32)
    intervals = tuple(int(number) for number in header[7:10])
    if values.shape != intervals:
        raise EngineError(
            "MAP_INCOMPLETE",
            f"The map has {list(values.shape)} points and its unit cell {list(intervals)}: give "
            "one that covers the whole unit cell, no more and no less.",
            field=_FIELD,
        )
    if not np.isfinite(values).all():
        raise EngineError(
            "MAP_NOT_FINITE", "The map has values that are NaN or infinite.", field=_FIELD
        )
    first = [int(header[4 + axes.index(axis)]) % values.shape[axis] for axis in range(3)]
    cell = np.frombuffer(content, f"{order}f4", 6, offset=40)
    return CellMap(np.roll(values, first, axis=(0, 1, 2)), tuple(cell.tolist()))


def _unreadable(why: str) -> EngineError:
    return EngineError(
        "MAP_UNREADABLE", f"The map cannot be read: {why}. Upload the whole file.", field=_FIELD
    )
