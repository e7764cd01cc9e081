"""Bundles: upload, download, look up, delete."""

from __future__ import annotations

import asyncio
import hashlib
import io
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, cast, overload
from uuid import uuid4

import grpc

from bxmesh.client.connection import Connection, translated
from bxmesh.client.content import Content, opened
from bxmesh.client.errors import InternalError, NotFound
from bxmesh.client.names import EnumNames
from bxmesh.geometry.v1 import bundle_pb2 as pb
from bxmesh.security.v1 import visibility_pb2

__all__ = ["AsyncBundles", "Bundle", "BundleKind", "Visibility"]

BundleKind = Literal[
    "macromolecule",
    "reflections",
    "restraints",
    "coordinates",
    "gradients",
    "structure_factors",
    "map",
    "validation_report",
    "restraint_tensors",
    "model",
]

Visibility = Literal["owner", "team", "all"]

VISIBILITIES = EnumNames(visibility_pb2.Visibility, "VISIBILITY_")
KINDS = EnumNames(pb.BundleKind, "BUNDLE_KIND_")

_KEPT_AT_LEAST = timedelta(minutes=30)


@dataclass(frozen=True)
class Bundle:
    """One immutable piece of content, named by the digest of its bytes."""

    bundle_id: str
    """sha256: and 64 hexadecimal digits."""
    kind: BundleKind
    """What it holds."""
    media_type: str
    """The media type of the bytes."""
    size_bytes: int
    """The length of the content."""
    display_name: str
    """A name for people."""
    derived_from: tuple[str, ...]
    """The bundles that it was derived from; empty for uploads."""
    owner: str
    """The identity that stored it first."""
    create_time: datetime
    """When it was stored first."""
    expire_time: datetime
    """When it will be deleted."""

    @classmethod
    def from_message(cls, message: pb.Bundle) -> Bundle:
        """Returns the bundle that the message describes."""
        return cls(
            bundle_id=message.bundle_id,
            kind=cast(BundleKind, KINDS.name(message.kind)),
            media_type=message.media_type,
            size_bytes=message.size_bytes,
            display_name=message.display_name,
            derived_from=tuple(message.derived_from),
            owner=message.owner,
            create_time=message.create_time.ToDatetime(tzinfo=UTC),
            expire_time=message.expire_time.ToDatetime(tzinfo=UTC),
        )


class AsyncBundles:
    """The bundles on the mesh."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def upload(
        self,
        source: str | Path | bytes,
        *,
        kind: BundleKind | None = None,
        name: str | None = None,
        lifetime: timedelta | None = None,
    ) -> Bundle:
        """Stores a file or bytes; content that the mesh already has is not sent again.

        The kind is guessed from the file's extension and content where it is not given; the name
        is the file's. The mesh chooses the lifetime unless one is given, and cuts a too long one.
        """
        async with opened(source) as content:
            header = pb.UploadBundleHeader(
                kind=KINDS.number(kind or await content.kind()),
                display_name=content.name if name is None else name,
                bundle_id=content.digest,
                size_bytes=content.size,
            )
            if lifetime is not None:
                header.lifetime.FromTimedelta(lifetime)
            existing = await self._existing(header, lifetime or _KEPT_AT_LEAST)
            if existing is not None:
                return existing
            return await self._connection.retried(lambda: self._send(header, content))

    async def _existing(self, header: pb.UploadBundleHeader, lifetime: timedelta) -> Bundle | None:
        try:
            bundle = await self.get(header.bundle_id)
        except NotFound:
            return None
        lasts = bundle.expire_time >= datetime.now(UTC) + lifetime
        return bundle if lasts and bundle.kind == KINDS.name(header.kind) else None

    async def _send(self, header: pb.UploadBundleHeader, content: Content) -> Bundle:
        request_id = uuid4().hex

        async def requests() -> AsyncIterator[pb.UploadBundleRequest]:
            yield pb.UploadBundleRequest(request_id=request_id, header=header)
            offset = 0
            async for data in content.chunks():
                chunk = pb.BundleChunk(offset=offset, data=data, crc32=zlib.crc32(data))
                yield pb.UploadBundleRequest(chunk=chunk)
                offset += len(data)

        call = self._connection.geometry.UploadBundle(
            requests(),
            timeout=self._connection.timeouts.transfer,
            metadata=self._connection.metadata,
        )
        try:
            with translated():
                return Bundle.from_message((await call).bundle)
        finally:
            call.cancel()

    @overload
    async def download(self, bundle_id: str, path: None = None) -> bytes: ...

    @overload
    async def download(self, bundle_id: str, path: str | Path) -> Path: ...

    async def download(self, bundle_id: str, path: str | Path | None = None) -> bytes | Path:
        """Returns the content of a bundle, or writes it to a file and returns its path.

        A download that breaks off goes on where it was. The file appears when it is complete and
        has the bundle's digest. Raises NotFound for an unknown or expired bundle.
        """
        if path is None:
            memory = io.BytesIO()
            await self._receive(bundle_id, memory.write)
            return memory.getvalue()
        path = Path(path)
        part = path.with_name(f"{path.name}.{uuid4().hex}.part")
        stream = await asyncio.to_thread(part.open, "xb")
        try:
            with stream:
                await self._receive(bundle_id, stream.write)
            return await asyncio.to_thread(part.replace, path)
        finally:
            with suppress(FileNotFoundError):
                await asyncio.to_thread(part.unlink)

    async def _receive(self, bundle_id: str, write: Callable[[bytes], object]) -> None:
        sink = _Sink(write)
        await self._connection.retried(lambda: self._receive_rest(bundle_id, sink))
        if sink.digest != bundle_id:
            raise InternalError(
                f"the content of {bundle_id} arrived damaged; download it again",
                code=grpc.StatusCode.DATA_LOSS,
                reason="DIGEST_MISMATCH",
            )

    async def _receive_rest(self, bundle_id: str, sink: _Sink) -> None:
        call = self._connection.geometry.DownloadBundle(
            pb.DownloadBundleRequest(bundle_id=bundle_id, offset=sink.size),
            timeout=self._connection.timeouts.transfer,
            metadata=self._connection.metadata,
        )
        try:
            with translated():
                async for response in call:
                    if response.HasField("chunk"):
                        sink.take(response.chunk)
        finally:
            call.cancel()

    async def get(self, bundle_id: str) -> Bundle:
        """Returns the description of a bundle. Raises NotFound for an unknown or expired one."""
        request = pb.GetBundleRequest(bundle_id=bundle_id)
        response = await self._connection.unary(self._connection.geometry.GetBundle, request)
        return Bundle.from_message(response.bundle)

    async def list(
        self, kind: BundleKind | None = None, page_size: int = 0
    ) -> AsyncIterator[Bundle]:
        """Yields the bundles in the order of their names, those of one kind where it is given."""
        request = pb.ListBundlesRequest(kind=KINDS.number(kind), page_size=page_size)
        async for response in self._connection.pages(
            self._connection.geometry.ListBundles, request
        ):
            for message in response.bundles:
                yield Bundle.from_message(message)

    async def delete(self, bundle_id: str) -> None:
        """Deletes a bundle. Raises NotFound when there is none."""
        request = pb.DeleteBundleRequest(request_id=uuid4().hex, bundle_id=bundle_id)
        await self._connection.unary(self._connection.geometry.DeleteBundle, request)

    async def share(self, bundle_id: str, visibility: Visibility) -> Bundle:
        """Says who else sees a bundle, or a model, of the caller's: nobody (`owner`), its `team` or
        `all`. Raises NotFound for one that the caller has not stored."""
        request = pb.ShareBundleRequest(
            bundle_id=bundle_id, visibility=VISIBILITIES.number(visibility)
        )
        response = await self._connection.unary(self._connection.geometry.ShareBundle, request)
        return Bundle.from_message(response.bundle)


class _Sink:
    """Hashes and writes what arrives.

    Both happen at once, while the chunk is still in the processor's cache: handing it to a thread
    costs more than it saves.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def take(self, chunk: pb.BundleChunk) -> None:
        if chunk.offset != self.size:
            raise InternalError(
                f"the content goes on at {self.size}, not at {chunk.offset}",
                code=grpc.StatusCode.DATA_LOSS,
                reason="CHUNK_OFFSET",
            )
        data = chunk.data
        self._hash.update(data)
        self._write(data)
        self.size += len(data)
