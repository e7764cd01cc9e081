"""Uploads and downloads over a real connection, whole, broken and hostile."""

from __future__ import annotations

import asyncio
import hashlib
import os
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from bxmesh.geometry.v1 import bundle_pb2
from bxmesh.geometry.v1.bundle_pb2 import (
    BundleChunk,
    DeleteBundleRequest,
    DownloadBundleRequest,
    GetBundleRequest,
    ListBundlesRequest,
    UploadBundleHeader,
    UploadBundleRequest,
)
from bxmesh.geometry.v1.geometry_service_pb2_grpc import (
    GeometryServiceServicer,
    GeometryServiceStub,
    add_GeometryServiceServicer_to_server,
)
from bxmesh.server.bundles import BundleStore
from bxmesh.server.geometry.bundle_rpcs import BundleLimits, BundleRpcs
from bxmesh.server.interceptors import AuthenticationInterceptor, server_interceptors
from bxmesh.server.security.authorization import authorize
from bxmesh.server.security.identities import EVERYTHING, Identity
from bxmesh.server.security.permissions import PERMISSIONS

DAY = timedelta(days=1)
MAP = bundle_pb2.BUNDLE_KIND_MAP
CHUNK_BYTES = 64 * 1024
DATA = os.urandom(1_000_000)


class Service(BundleRpcs, GeometryServiceServicer):  # type: ignore[misc]
    pass


class Anyone:
    async def authenticate(self, credential: str) -> Identity | None:
        # anna@blue is anna of the team blue, who is nobody's operator.
        name, _, team = credential.partition("@")
        rights = frozenset(PERMISSIONS) - {"mesh_operate"} if team else frozenset({EVERYTHING})
        return Identity(name, "user", rights, team=team)

    def renew(self, identity: Identity) -> Identity | None:
        return identity


@dataclass
class Mesh:
    root: Path
    store: BundleStore
    service: Service
    stub: Any
    address: str

    def upload(self, requests: Iterable[UploadBundleRequest] | AsyncIterator[Any]) -> Any:
        return self.stub.UploadBundle(requests, metadata=key("ann"))

    def download(self, bundle_id: str, **request: Any) -> Any:
        return self.stub.DownloadBundle(
            DownloadBundleRequest(bundle_id=bundle_id, **request), metadata=key("ann")
        )

    def call(self, method: str, request: Any, who: str = "ann") -> Any:
        return getattr(self.stub, method)(request, metadata=key(who))

    async def is_empty(self) -> bool:
        """Waits a moment until nothing is stored, unfinished or under way."""
        for _ in range(200):
            left = [*self.root.glob("sha256/*/*"), *self.root.glob("incoming/*")]
            if not left and not self.service._transfers:
                return True
            await asyncio.sleep(0.01)
        return False


def key(who: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {who}"),)


@asynccontextmanager
async def serve(directory: Path, **limits: Any) -> AsyncIterator[Mesh]:
    root = directory / "bundles"
    store = BundleStore(root, DAY, 7 * DAY, 2 * len(DATA))
    service = Service(store, BundleLimits(**limits))  # type: ignore[abstract]
    server = grpc.aio.server(
        interceptors=server_interceptors(AuthenticationInterceptor([Anyone()], authorize))
    )
    add_GeometryServiceServicer_to_server(service, server)
    address = f"unix:{directory}/socket"
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield Mesh(root, store, service, GeometryServiceStub(channel), address)
    await server.stop(None)


@pytest.fixture
async def mesh(short_dir: Path) -> AsyncIterator[Mesh]:
    async with serve(short_dir) as mesh:
        yield mesh


def open_contents() -> list[Path]:
    opened = [link.resolve() for link in Path("/proc/self/fd").iterdir()]
    return [path for path in opened if path.name.startswith("content")]


def name_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def header(**fields: Any) -> UploadBundleRequest:
    return UploadBundleRequest(header=UploadBundleHeader(**{"kind": MAP} | fields))


def chunk(offset: int, data: bytes, crc32: int | None = None) -> UploadBundleRequest:
    crc32 = zlib.crc32(data) if crc32 is None else crc32
    return UploadBundleRequest(chunk=BundleChunk(offset=offset, data=data, crc32=crc32))


def pieces(data: bytes, size: int = CHUNK_BYTES) -> Iterator[UploadBundleRequest]:
    for offset in range(0, len(data), size):
        yield chunk(offset, data[offset : offset + size])


async def refusal(call: Any) -> tuple[grpc.StatusCode, str, str]:
    """Returns code, reason and message of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    status = rpc_status.from_call(caught.value)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert [detail.Unpack(info) for detail in status.details].count(True) == 1
    return caught.value.code(), info.reason, status.message


async def content(call: Any, offset: int = 0) -> tuple[bundle_pb2.Bundle, list[bytes]]:
    responses = aiter(call)
    first = await anext(responses)
    assert first.WhichOneof("part") == "bundle"
    chunks = []
    async for response in responses:
        piece = response.chunk
        assert piece.offset == offset
        assert piece.crc32 == zlib.crc32(piece.data)
        offset += len(piece.data)
        chunks.append(piece.data)
    return first.bundle, chunks


async def test_what_is_uploaded_can_be_downloaded(mesh: Mesh) -> None:
    announced = header(
        bundle_id=name_of(DATA),
        size_bytes=len(DATA),
        display_name="a.map",
        lifetime=Duration(seconds=3600),
    )
    answer = await mesh.upload([announced, *pieces(DATA)])
    assert not answer.existed
    bundle = answer.bundle
    assert bundle.bundle_id == name_of(DATA)
    assert (bundle.size_bytes, bundle.owner, bundle.display_name) == (len(DATA), "ann", "a.map")
    assert bundle.expire_time.seconds - bundle.create_time.seconds == 3600
    described, chunks = await content(mesh.download(bundle.bundle_id))
    assert described == bundle
    assert b"".join(chunks) == DATA
    assert [len(data) for data in chunks[:-1]] == [131072] * (len(chunks) - 1)
    again = await mesh.upload([header(), *pieces(DATA, 10_000)])
    assert again.existed
    assert again.bundle.owner == "ann"


@pytest.mark.parametrize("data", [b"", b"x"])
async def test_small_content(mesh: Mesh, data: bytes) -> None:
    answer = await mesh.upload([header(), *pieces(data)])
    assert answer.bundle.bundle_id == name_of(data)
    _, chunks = await content(mesh.download(answer.bundle.bundle_id))
    assert b"".join(chunks) == data


@pytest.mark.parametrize(
    ("requests", "code", "reason"),
    [
        ([], "INVALID_ARGUMENT", "UPLOAD_HEADER_MISSING"),
        (list(pieces(DATA)), "INVALID_ARGUMENT", "UPLOAD_HEADER_MISSING"),
        ([header(), *pieces(DATA), header()], "INVALID_ARGUMENT", "UPLOAD_CHUNK_MISSING"),
        ([header(), chunk(1, DATA[:9])], "INVALID_ARGUMENT", "UPLOAD_GAP"),
        ([header(), chunk(0, b"1"), chunk(0, b"1")], "INVALID_ARGUMENT", "UPLOAD_GAP"),
        ([header(), chunk(0, b"1"), chunk(2, b"1")], "INVALID_ARGUMENT", "UPLOAD_GAP"),
        ([header(), chunk(0, DATA[:9], crc32=5)], "DATA_LOSS", "UPLOAD_CHECKSUM"),
        ([header(), chunk(0, DATA[:9], crc32=0)], "DATA_LOSS", "UPLOAD_CHECKSUM"),
        (
            [header(bundle_id=name_of(b"y")), *pieces(DATA)],
            "DATA_LOSS",
            "BUNDLE_DIGEST_MISMATCH",
        ),
        ([header(size_bytes=9), chunk(0, b"12345678")], "DATA_LOSS", "BUNDLE_SIZE_MISMATCH"),
        ([header(size_bytes=9), chunk(0, b"1234567890")], "DATA_LOSS", "BUNDLE_SIZE_MISMATCH"),
        ([header(size_bytes=1 << 40)], "RESOURCE_EXHAUSTED", "BUNDLE_TOO_LARGE"),
        (
            [header(), *(chunk(n << 20, bytes(1 << 20)) for n in range(3))],
            "RESOURCE_EXHAUSTED",
            "BUNDLE_TOO_LARGE",
        ),
        ([header(kind=0)], "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ([header(bundle_id="../x")], "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ([header(), UploadBundleRequest()], "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ([header(), chunk(0, bytes((1 << 20) + 1))], "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ([header(lifetime=Duration())], "INVALID_ARGUMENT", "LIFETIME_INVALID"),
        ([header(lifetime=Duration(seconds=-(1 << 38)))], "INVALID_ARGUMENT", "LIFETIME_INVALID"),
    ],
)
async def test_a_bad_upload_leaves_nothing(
    mesh: Mesh, requests: list[UploadBundleRequest], code: str, reason: str
) -> None:
    refused = await refusal(mesh.upload(requests))
    assert (refused[0].name, refused[1]) == (code, reason)
    assert await mesh.is_empty()


async def test_any_lifetime_is_cut_to_the_maximum(mesh: Mesh) -> None:
    endless = header(lifetime=Duration(seconds=315_576_000_000, nanos=999_999_999))
    bundle = (await mesh.upload([endless, *pieces(DATA)])).bundle
    kept = bundle.expire_time.seconds - bundle.create_time.seconds
    assert kept == 7 * DAY.total_seconds()


@pytest.mark.parametrize("sent", [0, 1, 300_000, len(DATA)])
async def test_a_client_that_cancels_its_upload_leaves_nothing(mesh: Mesh, sent: int) -> None:
    for _ in range(10):
        call = mesh.stub.UploadBundle(metadata=key("ann"))
        await call.write(header())
        for request in pieces(DATA[:sent]):
            await call.write(request)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert await mesh.is_empty()


@pytest.mark.parametrize("sent", [1, 300_000])
async def test_a_client_that_vanishes_leaves_nothing(mesh: Mesh, sent: int) -> None:
    for _ in range(10):
        channel = grpc.aio.insecure_channel(
            mesh.address, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        call = GeometryServiceStub(channel).UploadBundle(metadata=key("ann"))
        await call.write(header())
        for request in pieces(DATA[:sent]):
            await call.write(request)
        await channel.close()
    assert await mesh.is_empty()


async def test_a_stalled_upload_is_given_up(short_dir: Path) -> None:
    async with serve(short_dir, idle_seconds=0.05) as mesh:
        call = mesh.stub.UploadBundle(metadata=key("ann"))
        await call.write(header())
        await call.write(chunk(0, b"1"))
        code, reason, _ = await refusal(call)
        assert (code, reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "TRANSFER_STALLED")
        assert await mesh.is_empty()


async def test_transfers_are_bounded(short_dir: Path) -> None:
    async with serve(short_dir, max_transfers=2) as mesh:
        bundle, _ = mesh.store.put(DATA, MAP)
        open_calls = [mesh.stub.UploadBundle(metadata=key("ann")) for _ in range(2)]
        for call in open_calls:
            await call.write(header())
        for _ in range(200):
            if mesh.service._transfers == 2:
                break
            await asyncio.sleep(0.01)
        for call in (mesh.upload([header()]), mesh.download(bundle.bundle_id)):
            code, reason, _ = await refusal(call)
            assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_TRANSFERS")
        for call in open_calls:
            await call.done_writing()
            await call
        await content(mesh.download(bundle.bundle_id))


@pytest.mark.parametrize("chunk_bytes", [16384, 131072, 1048576])
@pytest.mark.parametrize("offset", [0, 1, 131072, 999_999, 1_000_000])
async def test_a_download_goes_on_at_any_offset(mesh: Mesh, offset: int, chunk_bytes: int) -> None:
    bundle, _ = mesh.store.put(DATA, MAP)
    call = mesh.download(bundle.bundle_id, offset=offset, chunk_bytes=chunk_bytes)
    _, chunks = await content(call, offset)
    assert b"".join(chunks) == DATA[offset:]
    assert all(len(data) == chunk_bytes for data in chunks[:-1])


async def test_bad_downloads(mesh: Mesh) -> None:
    bundle, _ = mesh.store.put(DATA, MAP)
    code, reason, message = await refusal(mesh.download(bundle.bundle_id, offset=len(DATA) + 1))
    assert (code, reason) == (grpc.StatusCode.OUT_OF_RANGE, "BUNDLE_OFFSET")
    assert str(len(DATA)) in message
    code, reason, _ = await refusal(mesh.download(name_of(b"unknown")))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "BUNDLE_NOT_FOUND")
    bad: list[dict[str, Any]] = [{"chunk_bytes": 1}, {"chunk_bytes": 1 << 21}, {"offset": -1}]
    for request in bad:
        code, _, _ = await refusal(mesh.download(bundle.bundle_id, **request))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
    code, _, _ = await refusal(mesh.download("../../etc/passwd"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_expired_bundle_is_not_found(mesh: Mesh) -> None:
    bundle, _ = mesh.store.put(b"x", MAP, lifetime=timedelta(milliseconds=1))
    await asyncio.sleep(0.002)
    code, reason, message = await refusal(mesh.download(bundle.bundle_id))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "BUNDLE_NOT_FOUND")
    assert "expired" in message


async def test_deleting_does_not_disturb_a_download(mesh: Mesh) -> None:
    data = os.urandom(16 << 20)
    mesh.store.max_bundle_bytes = len(data)
    bundle, _ = mesh.store.put(data, MAP)
    responses = aiter(mesh.download(bundle.bundle_id))
    await anext(responses)
    assert open_contents()
    received = [(await anext(responses)).chunk.data]
    await mesh.call("DeleteBundle", DeleteBundleRequest(bundle_id=bundle.bundle_id))
    code, _, _ = await refusal(mesh.download(bundle.bundle_id))
    assert code is grpc.StatusCode.NOT_FOUND
    received += [response.chunk.data async for response in responses]
    assert b"".join(received) == data


async def test_an_abandoned_download_ends(mesh: Mesh) -> None:
    data = os.urandom(16 << 20)
    mesh.store.max_bundle_bytes = len(data)
    bundle, _ = mesh.store.put(data, MAP)
    for _ in range(10):
        call = mesh.download(bundle.bundle_id)
        await call.read()
        await call.read()
        call.cancel()
    mesh.store.delete(bundle.bundle_id)
    assert await mesh.is_empty()
    assert not open_contents()


async def test_a_stalled_download_is_given_up(short_dir: Path) -> None:
    async with serve(short_dir, idle_seconds=0.05) as mesh:
        data = bytes(16 << 20)
        mesh.store.max_bundle_bytes = len(data)
        bundle, _ = mesh.store.put(data, MAP)
        responses = aiter(mesh.download(bundle.bundle_id))
        await anext(responses)
        mesh.store.delete(bundle.bundle_id)
        assert await mesh.is_empty()
        code, reason, _ = await refusal(responses)
        assert (code, reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "TRANSFER_STALLED")


async def test_get_list_and_delete(mesh: Mesh) -> None:
    bundles = sorted(
        (mesh.store.put(bytes([n]), MAP)[0] for n in range(5)), key=lambda b: b.bundle_id
    )
    wanted = bundles[0]
    answer = await mesh.call("GetBundle", GetBundleRequest(bundle_id=wanted.bundle_id))
    assert answer.bundle == wanted
    page = await mesh.call("ListBundles", ListBundlesRequest(kind=MAP, page_size=3))
    rest = await mesh.call("ListBundles", ListBundlesRequest(page_token=page.next_page_token))
    assert [*page.bundles, *rest.bundles] == bundles
    assert not rest.next_page_token
    code, reason, _ = await refusal(mesh.call("ListBundles", ListBundlesRequest(page_token="x")))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")
    deletion = DeleteBundleRequest(request_id="1", bundle_id=wanted.bundle_id)
    for _ in range(2):
        await mesh.call("DeleteBundle", deletion)
    code, reason, _ = await refusal(mesh.call("DeleteBundle", deletion, who="bob"))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "BUNDLE_NOT_FOUND")
    call = mesh.call("GetBundle", GetBundleRequest(bundle_id=wanted.bundle_id))
    assert (await refusal(call))[1] == "BUNDLE_NOT_FOUND"
