"""Bundles: uploads, downloads that resume, pages."""

from __future__ import annotations

import gzip
import os
from datetime import timedelta

import pytest

from bxmesh.client import InternalError, InvalidInput, NotFound, Unavailable

pytestmark = pytest.mark.asyncio
CONTENT = os.urandom(1_500_000)
PDB = b"CRYST1   10.000   10.000   10.000  90.00  90.00  90.00 P 1\nATOM      1  CA  ALA A   1\n"


async def test_upload_arrives_whole_with_its_digest(server, mesh):
    bundle = await mesh.bundles.upload(CONTENT, kind="map", name="a map")
    assert server.contents[bundle.bundle_id] == CONTENT
    assert (bundle.kind, bundle.size_bytes, bundle.display_name) == ("map", len(CONTENT), "a map")
    assert bundle.expire_time - bundle.create_time <= timedelta(days=1)


async def test_content_that_is_there_is_not_sent_again(server, mesh):
    first = await mesh.bundles.upload(PDB)
    assert await mesh.bundles.upload(PDB) == first
    assert server.calls["UploadBundle"] == 1


async def test_content_that_would_expire_too_early_is_sent_again(server, mesh):
    await mesh.bundles.upload(PDB)
    await mesh.bundles.upload(PDB, lifetime=timedelta(days=30))
    assert server.calls["UploadBundle"] == 2


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.pdb", b"anything", "macromolecule"),
        ("a.mtz.gz", b"anything", "reflections"),
        ("", b"MTZ \0\0", "reflections"),
        ("", b"\x93NUMPY\x01\x00", "coordinates"),
        ("", PDB, "macromolecule"),
        ("a.cif", b"data_x\nloop_\n_atom_site.id\n1\n", "macromolecule"),
        ("a.cif", b"data_x\nloop_\n_refln.index_h\n1\n", "reflections"),
        ("a.cif", b"data_comp_LIG\nloop_\n_chem_comp_atom.comp_id\nLIG\n", "restraints"),
        ("a.cif.gz", gzip.compress(b"data_x\nloop_\n_atom_site.id\n1\n", mtime=0), "macromolecule"),
    ],
)
async def test_kind_is_guessed(mesh, tmp_path, name, content, kind):
    source = content
    if name:
        source = tmp_path / name
        source.write_bytes(content)
    assert (await mesh.bundles.upload(source)).kind == kind


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8bnot gzip at all"])
async def test_unknown_content_asks_for_its_kind(mesh, content):
    with pytest.raises(InvalidInput, match="kind"):
        await mesh.bundles.upload(content)


async def test_missing_file_is_named(mesh, tmp_path):
    with pytest.raises(InvalidInput, match=r"none\.pdb cannot be read") as raised:
        await mesh.bundles.upload(tmp_path / "none.pdb")
    assert raised.value.reason == "UNREADABLE_FILE"


async def test_upload_is_repeated_while_unavailable(server, mesh):
    server.unavailable["UploadBundle"] = 2
    bundle = await mesh.bundles.upload(CONTENT, kind="map")
    assert server.contents[bundle.bundle_id] == CONTENT
    assert server.calls["UploadBundle"] == 3


async def test_download_goes_on_where_it_broke_off(server, mesh):
    bundle = await mesh.bundles.upload(CONTENT, kind="map")
    server.break_download_at = [400_000, 300_000]
    assert await mesh.bundles.download(bundle.bundle_id) == CONTENT
    chunk = 128 * 1024
    assert [request.offset for request in server.requests] == [0, 4 * chunk, 7 * chunk]
    assert await server.ended("DownloadBundle")


async def test_download_to_a_file(server, mesh, tmp_path):
    bundle = await mesh.bundles.upload(CONTENT, kind="map")
    path = await mesh.bundles.download(bundle.bundle_id, tmp_path / "map")
    assert path.read_bytes() == CONTENT


async def test_damaged_download_leaves_no_file(server, mesh, tmp_path):
    bundle = await mesh.bundles.upload(CONTENT, kind="map")
    server.damage = b"xyz"
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(InternalError, match="damaged"):
        await mesh.bundles.download(bundle.bundle_id, target / "map")
    assert list(target.iterdir()) == []


async def test_unknown_bundle_is_not_found_without_retries(server, mesh, tmp_path):
    with pytest.raises(NotFound, match="no such bundle"):
        await mesh.bundles.download("sha256:" + "0" * 64)
    assert server.calls["DownloadBundle"] == 1


async def test_retries_are_bounded(server, mesh):
    server.unavailable["GetBundle"] = 100
    with pytest.raises(Unavailable, match="not now"):
        await mesh.bundles.get("sha256:" + "0" * 64)
    assert server.calls["GetBundle"] == 5


async def test_list_follows_the_pages(mesh):
    stored = {(await mesh.bundles.upload(bytes([i]), kind="map")).bundle_id for i in range(5)}
    listed = [bundle.bundle_id async for bundle in mesh.bundles.list(page_size=2)]
    assert listed == sorted(stored)


async def test_delete_carries_a_request_id(server, mesh):
    bundle = await mesh.bundles.upload(PDB)
    server.unavailable["DeleteBundle"] = 1
    await mesh.bundles.delete(bundle.bundle_id)
    ids = {request.request_id for request in server.requests}
    assert len(server.requests) == 2
    assert len(ids) == 1
    assert len(ids.pop()) == 32


async def test_every_call_carries_the_key(server, mesh):
    await mesh.bundles.upload(PDB)
    assert server.metadata["UploadBundle"]["authorization"] == "Bearer bxm_secret"
    assert "secret" not in repr(mesh) + repr(mesh.bundles) + repr(vars(mesh))
