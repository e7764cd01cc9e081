"""The RPCs that store and hand out bundles."""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import BinaryIO, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration

from bxmesh.geometry.v1 import bundle_pb2
from bxmesh.geometry.v1.bundle_pb2 import (
    Bundle,
    BundleChunk,
    DeleteBundleRequest,
    DeleteBundleResponse,
    DownloadBundleRequest,
    DownloadBundleResponse,
    GetBundleRequest,
    GetBundleResponse,
    ListBundlesRequest,
    ListBundlesResponse,
    ShareBundleRequest,
    ShareBundleResponse,
    UploadBundleHeader,
    UploadBundleRequest,
    UploadBundleResponse,
)
from bxmesh.tensors import TensorError, chunk_bytes_or_default

from ..bundles import BundleStore, BundleWriter
from ..errors import MeshError, deadline_exceeded, invalid_argument, resource_exhausted
from ..interceptors.authentication import current_identity
from ..security.addresses import address_of
from ..security.events import IGNORED, AuditEvent, SecurityEvents
from ..security.quotas import UNLIMITED, Quotas
from .sharing import holder, require_held, seen_by, seen_by_caller, shown

__all__ = ["BundleLimits", "BundleRpcs"]

_DEFAULT_PAGE_SIZE = 100
_UPLOADED_KINDS = frozenset(
    {
        bundle_pb2.BUNDLE_KIND_MACROMOLECULE,
        bundle_pb2.BUNDLE_KIND_REFLECTIONS,
        bundle_pb2.BUNDLE_KIND_RESTRAINTS,
        bundle_pb2.BUNDLE_KIND_COORDINATES,
        bundle_pb2.BUNDLE_KIND_MAP,
    }
)
_WRITE_BYTES = 1024 * 1024
_READAHEAD_BYTES = 8 * 1024 * 1024
_CANCELLATION_SECONDS = 0.01
_LONGEST_DURATION_SECONDS = 315_576_000_000

T = TypeVar("T")


@dataclass(frozen=True)
class BundleLimits:
    """How much one server process does at once for bundles."""

    max_transfers: int = 64
    """Uploads and downloads at once."""
    idle_seconds: float = 60.0
    """How long a transfer may stand still before it is given up."""


class BundleRpcs:
    """The six bundle methods of GeometryService."""

    def __init__(
        self,
        store: BundleStore,
        limits: BundleLimits | None = None,
        events: SecurityEvents = IGNORED,
        quotas: Quotas = UNLIMITED,
    ) -> None:
        self._events = events
        self._quotas = quotas
        self._store = store
        self._limits = limits or BundleLimits()
        self._transfers = 0

    async def UploadBundle(
        self,
        request_iterator: AsyncIterator[UploadBundleRequest],
        context: grpc.aio.ServicerContext[UploadBundleRequest, UploadBundleResponse],
    ) -> UploadBundleResponse:
        """Stores what arrives; an upload that breaks off leaves nothing."""
        requests = aiter(request_iterator)
        telling = self._quotas.telling(
            current_identity().id,
            "/bxmesh.geometry.v1.GeometryService/UploadBundle",
            address=address_of(context.peer()),
        )
        with telling, self._transfer(), ExitStack() as stack:
            async with self._watch():
                first = await anext(requests, None)
            if first is None or first.WhichOneof("part") != "header":
                raise invalid_argument("header", "must come first", reason="UPLOAD_HEADER_MISSING")
            begin = self._begin(first.header)
            try:
                writer = await _in_thread(lambda: stack.enter_context(begin()))
                await self._receive(requests, writer)
                if not (first.header.size_bytes or first.header.bundle_id):
                    # When a client vanishes, gRPC ends the stream first and cancels the call just
                    # after; without a size or digest to check, only that tells it from the end.
                    await asyncio.sleep(_CANCELLATION_SECONDS)
                bundle, existed = await _in_thread(writer.commit)
            finally:
                await _in_thread(stack.close)
        # Whether others had it before is not to be found out by uploading it.
        mine = bundle.owner == current_identity().id
        return UploadBundleResponse(bundle=shown(bundle), existed=existed and mine)

    async def DownloadBundle(
        self,
        request: DownloadBundleRequest,
        context: grpc.aio.ServicerContext[DownloadBundleRequest, DownloadBundleResponse],
    ) -> None:
        """Sends the bundle and its content from the offset on."""
        try:
            chunk_bytes = chunk_bytes_or_default(request.chunk_bytes)
        except TensorError as error:
            raise invalid_argument(
                "chunk_bytes", error.message, reason="CHUNK_BYTES_INVALID"
            ) from None
        with self._transfer():
            bundle = seen_by_caller(self._store, request.bundle_id)
            if request.offset > bundle.size_bytes:
                raise _out_of_range(request.offset, bundle)
            with self._store.open(request.bundle_id) as file:
                await context.write(DownloadBundleResponse(bundle=shown(bundle)))
                async with self._watch() as moved:
                    for response in _chunks(file, request.offset, chunk_bytes):
                        await context.write(response)
                        moved()

    async def GetBundle(
        self,
        request: GetBundleRequest,
        context: grpc.aio.ServicerContext[GetBundleRequest, GetBundleResponse],
    ) -> GetBundleResponse:
        """Describes a bundle."""
        return GetBundleResponse(bundle=shown(seen_by_caller(self._store, request.bundle_id)))

    async def ListBundles(
        self,
        request: ListBundlesRequest,
        context: grpc.aio.ServicerContext[ListBundlesRequest, ListBundlesResponse],
    ) -> ListBundlesResponse:
        """Lists a page of bundles."""
        page_size = request.page_size or _DEFAULT_PAGE_SIZE
        sees = partial(seen_by, current_identity())
        bundles, next_page_token = await _in_thread(
            lambda: self._store.list(request.kind, page_size, request.page_token, sees)
        )
        return ListBundlesResponse(bundles=map(shown, bundles), next_page_token=next_page_token)

    async def DeleteBundle(
        self,
        request: DeleteBundleRequest,
        context: grpc.aio.ServicerContext[DeleteBundleRequest, DeleteBundleResponse],
    ) -> DeleteBundleResponse:
        """Deletes a bundle, once per request id."""
        request_key = f"{current_identity().id} {request.request_id}" if request.request_id else ""
        try:
            mine = require_held(self._store, request.bundle_id)
        except MeshError as error:
            # It may have been deleted by this very request before.
            if error.reason != "BUNDLE_NOT_FOUND" or not request_key:
                raise
            mine = current_identity().id
        await _in_thread(
            lambda: self._store.delete(request.bundle_id, holder=mine, request_key=request_key)
        )
        self._events.note(
            AuditEvent(
                "bundle.deleted",
                current_identity().id,
                address_of(context.peer()),
                "/bxmesh.geometry.v1.GeometryService/DeleteBundle",
                f"bundle/{request.bundle_id}",
                details={"whose": "its own" if mine else "everybody's"},
            )
        )
        return DeleteBundleResponse()

    async def ShareBundle(
        self,
        request: ShareBundleRequest,
        context: grpc.aio.ServicerContext[ShareBundleRequest, ShareBundleResponse],
    ) -> ShareBundleResponse:
        """Says who else sees a bundle of the caller's."""
        mine = holder(current_identity(), request.visibility)
        bundle = await _in_thread(lambda: self._store.share(request.bundle_id, mine))
        return ShareBundleResponse(bundle=shown(bundle))

    def _begin(self, header: UploadBundleHeader) -> Callable[[], BundleWriter]:
        if header.kind not in _UPLOADED_KINDS:
            raise invalid_argument(
                "header.kind",
                f"{bundle_pb2.BundleKind.Name(header.kind)} is made by the mesh only.",
                reason="KIND_NOT_UPLOADED",
            )
        identity = current_identity()
        if header.kind == bundle_pb2.BUNDLE_KIND_REFLECTIONS:
            identity.require("experimental_data_processing")
        mine = holder(identity, header.visibility)
        lifetime = _lifetime(header.lifetime) if header.HasField("lifetime") else None
        allowance = self._quotas.allowance("max_bundle_bytes", identity.id)
        return lambda: self._store.writer(
            header.kind,
            media_type=header.media_type,
            display_name=header.display_name,
            expected_id=header.bundle_id,
            expected_size=header.size_bytes or None,
            holder=mine,
            lifetime=lifetime,
            allowance=allowance,
        )

    async def _receive(
        self, requests: AsyncIterator[UploadBundleRequest], writer: BundleWriter
    ) -> None:
        received = 0
        pending = bytearray()
        async with self._watch() as moved:
            async for request in requests:
                moved()
                if request.WhichOneof("part") != "chunk":
                    raise invalid_argument(
                        request.WhichOneof("part") or "part",
                        "only chunks may follow the first message",
                        reason="UPLOAD_CHUNK_MISSING",
                    )
                pending += _checked(request.chunk, received)
                received += len(request.chunk.data)
                if len(pending) >= _WRITE_BYTES:
                    await _in_thread(partial(writer.write, bytes(pending)))
                    pending.clear()
        await _in_thread(partial(writer.write, bytes(pending)))

    @contextmanager
    def _transfer(self) -> Iterator[None]:
        if self._transfers >= self._limits.max_transfers:
            raise resource_exhausted(
                f"{self._limits.max_transfers} transfers are under way; try again later",
                retry_after=1.0,
                reason="TOO_MANY_TRANSFERS",
                subject="transfers",
            )
        self._transfers += 1
        try:
            yield
        finally:
            self._transfers -= 1

    @asynccontextmanager
    async def _watch(self) -> AsyncIterator[Callable[[], None]]:
        now = asyncio.get_running_loop().time
        idle = self._limits.idle_seconds
        try:
            async with asyncio.timeout(idle) as timeout:
                yield lambda: timeout.reschedule(now() + idle)
        except TimeoutError:
            raise deadline_exceeded(
                f"nothing has moved for {idle:g} seconds; begin again, a download at the offset"
                " reached",
                reason="TRANSFER_STALLED",
            ) from None


async def _in_thread(function: Callable[[], T]) -> T:
    """Runs to its end even if the caller is cancelled, who may then clean up after it."""
    running = asyncio.get_running_loop().run_in_executor(None, function)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def _checked(chunk: BundleChunk, received: int) -> bytes:
    data = chunk.data
    if chunk.offset != received:
        raise invalid_argument(
            "chunk.offset", f"must be {received}, not {chunk.offset}", reason="UPLOAD_GAP"
        )
    if zlib.crc32(data) != chunk.crc32:
        raise MeshError(
            grpc.StatusCode.DATA_LOSS,
            "UPLOAD_CHECKSUM",
            f"the chunk at {received} has a wrong CRC-32; send the content again",
            field_violations=[("chunk.crc32", "is not the CRC-32 of chunk.data")],
        )
    return data


def _chunks(file: BinaryIO, offset: int, chunk_bytes: int) -> Iterator[DownloadBundleResponse]:
    file.seek(offset)
    ahead = offset
    while True:
        if offset + _READAHEAD_BYTES // 2 > ahead:
            _read_ahead(file, ahead)
            ahead += _READAHEAD_BYTES
        data = file.read(chunk_bytes)
        if not data:
            return
        # Set field by field: a chunk given to the constructor would be copied twice more.
        response = DownloadBundleResponse()
        chunk = response.chunk
        chunk.offset = offset
        chunk.data = data
        chunk.crc32 = zlib.crc32(data)
        yield response
        offset += len(data)


def _read_ahead(file: BinaryIO, offset: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), offset, _READAHEAD_BYTES, os.POSIX_FADV_WILLNEED)


def _lifetime(duration: Duration) -> timedelta:
    if duration.seconds < 0 or duration.nanos < 0 or not (duration.seconds or duration.nanos):
        raise invalid_argument(
            "header.lifetime", "must be more than zero", reason="LIFETIME_INVALID"
        )
    seconds = min(duration.seconds, _LONGEST_DURATION_SECONDS)
    return timedelta(seconds=seconds, microseconds=duration.nanos / 1000)


def _out_of_range(offset: int, bundle: Bundle) -> MeshError:
    return MeshError(
        grpc.StatusCode.OUT_OF_RANGE,
        "BUNDLE_OFFSET",
        f"{bundle.bundle_id} has {bundle.size_bytes} bytes; it cannot be read from {offset}",
        field_violations=[("offset", f"must be at most {bundle.size_bytes}")],
    )
