"""A check of MTZ headers ahead of the C library, which trusts them and can loop or crash."""

from collections.abc import Iterator
from typing import Literal

from bxmesh.server.geometry.engine.errors import EngineError

_RECORD = 80
_WORD = 4
_DATA_START = 80
_LONG_OFFSET = -1


def check(content: bytes) -> None:
    """Raise EngineError with REFLECTIONS_UNREADABLE unless header and data agree in size."""
    start = _header_start(content)
    if start is None:
        raise _damaged("its header is not where it should be")
    records = list(_records(content, start))
    if not records or not records[-1].startswith(b"END"):
        raise _damaged("its header has no end")
    counts = [record.split()[1:4] for record in records if record.startswith(b"NCOL")]
    if len(counts) != 1 or not all(count.isdigit() for count in counts[0]):
        raise _damaged("its header does not tell the number of columns")
    columns, reflections = int(counts[0][0]), int(counts[0][1])
    described = sum(record.startswith(b"COLUMN ") for record in records)
    if columns != described or start != _DATA_START + columns * reflections * _WORD:
        raise _damaged("it has not as many data as its header says")
    _check_symmetry(records)


def _header_start(content: bytes) -> int | None:
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for order in orders:
        offset = int.from_bytes(content[4:8], order, signed=True)
        if offset == _LONG_OFFSET:
            offset = int.from_bytes(content[12:20], order, signed=True)
        start = (offset - 1) * _WORD
        if start >= _DATA_START and content[start : start + 4] == b"VERS":
            return start
    return None


def _records(content: bytes, start: int) -> Iterator[bytes]:
    for place in range(start, len(content) - _RECORD + 1, _RECORD):
        record = content[place : place + _RECORD]
        yield record
        if record.startswith(b"END"):
            return


def _check_symmetry(records: list[bytes]) -> None:
    fields = [record.split() for record in records if record.startswith(b"SYMINF")]
    operators = sum(record.startswith(b"SYMM ") for record in records)
    if len(fields) != 1 or len(fields[0]) < 2 or fields[0][1] != str(operators).encode():
        raise _damaged("its header does not list its symmetry operators")


def _damaged(why: str) -> EngineError:
    return EngineError(
        "REFLECTIONS_UNREADABLE",
        f"The MTZ file is damaged or cut off: {why}. Upload the whole file.",
        field="reflections",
    )
