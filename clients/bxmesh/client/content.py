"""What is uploaded: bytes or a file, with its digest and what it seems to hold."""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bxmesh.client.errors import InvalidInput
from bxmesh.client.names import invalid

__all__ = ["BUNDLE_ID", "Content", "opened"]

BUNDLE_ID = re.compile(r"sha256:[0-9a-f]{64}")

_CHUNK_BYTES = 128 * 1024
_READ_BYTES = 4 * 1024 * 1024
_EXTENSIONS = {
    ".pdb": "macromolecule",
    ".ent": "macromolecule",
    ".mmcif": "macromolecule",
    ".mtz": "reflections",
    ".npy": "coordinates",
    ".ccp4": "map",
    ".map": "map",
    ".mrc": "map",
}
_SIGNS = (
    (re.compile(rb"\AMTZ "), "reflections"),
    (re.compile(rb"\A\x93NUMPY"), "coordinates"),
    (re.compile(rb"^\s*_atom_site\.", re.MULTILINE | re.IGNORECASE), "macromolecule"),
    (re.compile(rb"^\s*_refln[._]", re.MULTILINE | re.IGNORECASE), "reflections"),
    (re.compile(rb"^\s*_chem_(?:comp|link|mod)", re.MULTILINE | re.IGNORECASE), "restraints"),
    (re.compile(rb"^(?:CRYST1|ATOM  |HETATM)", re.MULTILINE), "macromolecule"),
)


@dataclass(frozen=True)
class Content:
    """Bytes that can be read more than once."""

    stream: io.BufferedIOBase
    name: str
    """The file's name; empty for bytes."""
    size: int
    """In bytes."""
    digest: str
    """The bundle's name: sha256: and 64 hexadecimal digits."""

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yields the content from its start in pieces of 128 KiB."""
        await asyncio.to_thread(self.stream.seek, 0)
        while block := await asyncio.to_thread(self.stream.read, _READ_BYTES):
            for offset in range(0, len(block), _CHUNK_BYTES):
                yield block[offset : offset + _CHUNK_BYTES]

    async def kind(self) -> str:
        """Returns the kind of bundle that name and content suggest. InvalidInput for none."""
        kind = _EXTENSIONS.get(Path(self.name.lower().removesuffix(".gz")).suffix)
        kind = kind or await asyncio.to_thread(self._kind_by_content)
        if kind is None:
            what = self.name or "the content"
            raise invalid("kind", f"what {what} holds cannot be told; say it with kind")
        return kind

    def _kind_by_content(self) -> str | None:
        self.stream.seek(0)
        head = self.stream.read(_READ_BYTES)
        if head.startswith(b"\x1f\x8b"):
            try:
                head = zlib.decompressobj(wbits=31).decompress(head, _READ_BYTES)
            except zlib.error:
                return None
        return next((kind for sign, kind in _SIGNS if sign.search(head)), None)


@asynccontextmanager
async def opened(source: str | Path | bytes) -> AsyncIterator[Content]:
    """Opens a path or bytes for uploading. InvalidInput for a file that cannot be read."""
    try:
        stream = await asyncio.to_thread(_open, source)
    except OSError as error:
        raise _unreadable(source, error) from error
    with stream:
        try:
            digest = await asyncio.to_thread(hashlib.file_digest, stream, "sha256")
        except OSError as error:
            raise _unreadable(source, error) from error
        name = "" if isinstance(source, bytes) else Path(source).name
        yield Content(stream, name, stream.seek(0, io.SEEK_END), f"sha256:{digest.hexdigest()}")


def _open(source: str | Path | bytes) -> io.BufferedIOBase:
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")


def _unreadable(source: str | Path | bytes, error: OSError) -> InvalidInput:
    return invalid("path", f"{source!s} cannot be read: {error.strerror}", "UNREADABLE_FILE")
