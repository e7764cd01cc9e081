"""Input files as bytes: decompression within bounds and decoding."""

import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bxmesh.server.geometry.engine.errors import EngineError

MAX_FILE_BYTES = 512 * 1024 * 1024
"""The largest file that is read, after decompression."""

# What bgzip makes of the largest file; each member costs a copy of what is left.
_MOST_GZIP_MEMBERS = 10_000
_GZIP_MAGIC = b"\x1f\x8b"
_TEXT_CONTROLS = frozenset(b"\t\n\r\f\x1a")


def decompress(data: bytes, *, field: str, limit: int = MAX_FILE_BYTES) -> bytes:
    """Return `data`, unpacked when it is gzipped.

    Raises EngineError with EMPTY_FILE, FILE_TOO_LARGE or BROKEN_GZIP.
    """
    if not data:
        raise EngineError("EMPTY_FILE", f"The {field} file is empty.", field=field)
    content = _gunzip(data, field, limit) if data.startswith(_GZIP_MAGIC) else data
    if len(content) > limit:
        raise EngineError(
            "FILE_TOO_LARGE",
            f"The {field} file has more than {limit // 1024**2} MiB when unpacked.",
            field=field,
        )
    if not content.strip():
        raise EngineError("EMPTY_FILE", f"The {field} file is empty.", field=field)
    return content


def decode(content: bytes, *, field: str, reason: str) -> str:
    """Return `content` as text; raises EngineError with `reason` when it is not text."""
    controls = {byte for byte in set(content) if byte < 0x20} - _TEXT_CONTROLS
    if controls:
        raise EngineError(
            reason, f"The {field} file is not text; give the file itself.", field=field
        )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


@contextmanager
def as_path(content: bytes, name: str) -> Iterator[Path]:
    """Give `content` a file for a reader that takes only paths."""
    with tempfile.TemporaryDirectory(prefix="bxmesh-") as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        yield path


def _gunzip(data: bytes, field: str, limit: int) -> bytes:
    content = bytearray()
    rest = data
    try:
        for _ in range(_MOST_GZIP_MEMBERS):
            member = zlib.decompressobj(wbits=31)
            content += member.decompress(rest, limit + 1 - len(content))
            if not member.eof and len(content) <= limit:
                raise zlib.error("incomplete stream")
            rest = member.unused_data
            if not rest.startswith(_GZIP_MAGIC) or len(content) > limit:
                return bytes(content)
        raise zlib.error("too many streams one after the other")
    except zlib.error as error:
        raise EngineError(
            "BROKEN_GZIP", f"The gzipped {field} file is damaged ({error}).", field=field
        ) from error
