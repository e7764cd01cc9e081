"""Bundles belong to whoever stored them; others see them only when they are shared."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from bxmesh.client.errors import from_rpc_error
from bxmesh.geometry.v1 import bundle_pb2 as pb
from bxmesh.security.v1.visibility_pb2 import VISIBILITY_ALL, VISIBILITY_OWNER, VISIBILITY_TEAM
from tests.geometry.test_bundle_rpcs import Mesh, chunk, header, key, mesh, name_of

__all__ = ["mesh"]

ANNA, BEN, CARL = "anna@blue", "ben@blue", "carl@red"
DATA = b"a map of anna's"
NAME = name_of(DATA)


async def upload(mesh: Mesh, who: str, **fields: Any) -> pb.UploadBundleResponse:
    answer: pb.UploadBundleResponse = await mesh.stub.UploadBundle(
        iter([header(**fields), chunk(0, DATA)]), metadata=key(who)
    )
    return answer


async def sees(mesh: Mesh, who: str) -> bool:
    """Whether somebody sees the bundle, in whatever way they look."""
    listed = await mesh.call("ListBundles", pb.ListBundlesRequest(), who)
    seen = NAME in [bundle.bundle_id for bundle in listed.bundles]
    try:
        await mesh.call("GetBundle", pb.GetBundleRequest(bundle_id=NAME), who)
        got = True
    except grpc.aio.AioRpcError as error:
        assert from_rpc_error(error).reason == "BUNDLE_NOT_FOUND"
        got = False
    try:
        call = mesh.stub.DownloadBundle(pb.DownloadBundleRequest(bundle_id=NAME), metadata=key(who))
        content = b"".join([answer.chunk.data async for answer in call])
        assert content == DATA
    except grpc.aio.AioRpcError as error:
        assert from_rpc_error(error).reason == "BUNDLE_NOT_FOUND"
        content = b""
    assert seen == got == bool(content)
    return got


@pytest.mark.parametrize(
    ("visibility", "seers"),
    [
        (0, {ANNA}),
        (VISIBILITY_OWNER, {ANNA}),
        (VISIBILITY_TEAM, {ANNA, BEN}),
        (VISIBILITY_ALL, {ANNA, BEN, CARL}),
    ],
)
async def test_a_bundle_is_seen_by_whom_it_is_shared_with(
    mesh: Mesh, visibility: Any, seers: set[str]
) -> None:
    for later in (False, True):
        if later:
            if not visibility:
                return
            await upload(mesh, ANNA)
            await mesh.call(
                "ShareBundle", pb.ShareBundleRequest(bundle_id=NAME, visibility=visibility), ANNA
            )
        else:
            await upload(mesh, ANNA, visibility=visibility)
        assert {who for who in (ANNA, BEN, CARL) if await sees(mesh, who)} == seers
        assert await sees(mesh, "operator")
        await mesh.call("DeleteBundle", pb.DeleteBundleRequest(bundle_id=NAME), ANNA)


async def test_whoever_has_the_content_holds_it_too(mesh: Mesh) -> None:
    await upload(mesh, ANNA, visibility=VISIBILITY_OWNER)
    answer = await upload(mesh, CARL)
    # That she has it, he does not learn.
    assert not answer.existed
    assert [one.identity_id for one in answer.bundle.holders] == ["carl"]
    assert answer.bundle.owner == "carl"
    assert await sees(mesh, CARL)
    assert not await sees(mesh, BEN)
    await mesh.call("DeleteBundle", pb.DeleteBundleRequest(bundle_id=NAME), CARL)
    assert not await sees(mesh, CARL)
    assert await sees(mesh, ANNA)
    await mesh.call("DeleteBundle", pb.DeleteBundleRequest(bundle_id=NAME), ANNA)
    assert not await sees(mesh, "operator")


async def test_to_see_is_not_to_change(mesh: Mesh) -> None:
    await upload(mesh, ANNA, visibility=VISIBILITY_ALL)
    for method, request, reason in (
        ("DeleteBundle", pb.DeleteBundleRequest(bundle_id=NAME), "NOT_YOURS"),
        (
            "DeleteBundle",
            pb.DeleteBundleRequest(bundle_id=NAME, request_id="r"),
            "NOT_YOURS",
        ),
        (
            "ShareBundle",
            pb.ShareBundleRequest(bundle_id=NAME, visibility=VISIBILITY_OWNER),
            "BUNDLE_NOT_FOUND",
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await mesh.call(method, request, BEN)
        assert from_rpc_error(raised.value).reason == reason
    assert await sees(mesh, CARL)
    # An operator may.
    await mesh.call("DeleteBundle", pb.DeleteBundleRequest(bundle_id=NAME), "operator")
    assert not await sees(mesh, ANNA)


async def test_what_is_unseen_is_not_deleted_as_if_it_had_been(mesh: Mesh) -> None:
    await upload(mesh, ANNA)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await mesh.call("DeleteBundle", pb.DeleteBundleRequest(bundle_id=NAME), BEN)
    assert from_rpc_error(raised.value).reason == "BUNDLE_NOT_FOUND"
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await mesh.call("DeleteBundle", pb.DeleteBundleRequest(bundle_id=NAME, request_id="r"), BEN)
    assert from_rpc_error(raised.value).reason == "BUNDLE_NOT_FOUND"
    assert await sees(mesh, ANNA)
