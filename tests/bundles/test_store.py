"""The bundle store, used by several processes and killed in the middle."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from bxmesh.geometry.v1 import bundle_pb2
from bxmesh.geometry.v1.bundle_pb2 import BundleHolder
from bxmesh.server.bundles import BundleStore
from bxmesh.server.errors import MeshError

DAY = timedelta(days=1)
MAP = bundle_pb2.BUNDLE_KIND_MAP
MODEL = bundle_pb2.BUNDLE_KIND_MACROMOLECULE


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return open_store(tmp_path)


def open_store(root: Path, **changes: Any) -> BundleStore:
    settings: dict[str, Any] = {
        "default_lifetime": DAY,
        "max_lifetime": 7 * DAY,
        "max_bundle_bytes": 1 << 20,
    }
    return BundleStore(root / "bundles", **settings | changes)


def name_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def refused(code: grpc.StatusCode, reason: str) -> Any:
    return pytest.raises(
        MeshError, check=lambda error: (error.code, error.reason) == (code, reason)
    )


def not_found() -> Any:
    return refused(grpc.StatusCode.NOT_FOUND, "BUNDLE_NOT_FOUND")


def unfinished(root: Path) -> list[Path]:
    bundles = root / "bundles"
    return [*(bundles / "incoming").iterdir(), *(bundles / "trash").iterdir()]


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("data", [b"", b"ATOM", bytes(range(256)) * 1024])
def test_what_is_put_can_be_read(
    store: BundleStore, tmp_path: Path, data: bytes, durable: bool
) -> None:
    bundle, existed = store.put(
        data,
        MODEL,
        display_name="a.pdb",
        derived_from=["b"],
        holder=BundleHolder(identity_id="ann"),
        durable=durable,
    )
    assert not existed
    assert bundle.bundle_id == name_of(data)
    assert bundle.size_bytes == len(data)
    assert (bundle.media_type, bundle.display_name) == ("chemical/x-pdb", "a.pdb")
    assert (list(bundle.derived_from), bundle.owner) == (["b"], "ann")
    assert bundle.expire_time.seconds - bundle.create_time.seconds == DAY.total_seconds()
    assert store.get(bundle.bundle_id) == bundle
    assert store.read(bundle.bundle_id) == data
    assert store.path(bundle.bundle_id).read_bytes() == data
    with store.open(bundle.bundle_id) as file:
        file.seek(2)
        assert file.read() == data[2:]
    assert not unfinished(tmp_path)


def test_writing_in_pieces(store: BundleStore, tmp_path: Path) -> None:
    pieces = [os.urandom(1000) for _ in range(10)]
    data = b"".join(pieces)
    with store.writer(MAP, expected_id=name_of(data), expected_size=len(data)) as writer:
        for piece in pieces:
            writer.write(piece)
        with not_found():
            store.get(name_of(data))
        bundle, existed = writer.commit()
    assert not existed
    assert bundle.media_type == "application/octet-stream"
    assert store.read(bundle.bundle_id) == data
    assert not unfinished(tmp_path)


def test_the_same_content_is_one_bundle(store: BundleStore, tmp_path: Path) -> None:
    first, _ = store.put(b"x", MODEL, holder=BundleHolder(identity_id="ann"), lifetime=DAY)
    again, existed = store.put(b"x", MAP, holder=BundleHolder(identity_id="bob"), lifetime=2 * DAY)
    assert existed
    assert (again.kind, again.owner, again.create_time) == (MODEL, "ann", first.create_time)
    assert again.expire_time.seconds - first.expire_time.seconds >= DAY.total_seconds()
    with store.writer(MAP, lifetime=DAY) as writer:
        writer.write(b"x")
        earlier, existed = writer.commit()
        with pytest.raises(ValueError, match="closed"):
            writer.write(b"y")
    assert existed
    assert earlier.expire_time == again.expire_time
    assert store.get(first.bundle_id) == again
    assert store.usage() == (1, 1)
    assert not unfinished(tmp_path)


def test_lifetimes_are_cut_to_the_maximum(store: BundleStore) -> None:
    bundle, _ = store.put(b"x", MAP, lifetime=1000 * DAY)
    kept = bundle.expire_time.seconds - bundle.create_time.seconds
    assert kept == 7 * DAY.total_seconds()


def test_an_expired_bundle_is_gone_and_can_come_again(store: BundleStore) -> None:
    bundle, _ = store.put(b"x", MAP, lifetime=timedelta(milliseconds=1))
    time.sleep(0.002)
    with not_found() as caught:
        store.get(bundle.bundle_id)
    assert "expired" in caught.value.message
    for use in (store.path, store.read, store.delete):
        with not_found():
            use(bundle.bundle_id)
    assert store.list() == ([], "")
    assert store.usage() == (0, 0)
    again, existed = store.put(b"x", MODEL, holder=BundleHolder(identity_id="bob"))
    assert not existed
    assert (again.kind, again.owner) == (MODEL, "bob")
    assert store.sweep() == (0, 0)
    assert store.read(bundle.bundle_id) == b"x"


def test_sweep_removes_what_expired(store: BundleStore, tmp_path: Path) -> None:
    kept, _ = store.put(b"kept", MAP)
    gone, _ = store.put(b"gone", MAP, lifetime=timedelta(milliseconds=1))
    time.sleep(0.002)
    assert store.sweep() == (1, 0)
    assert [home.name for home in (tmp_path / "bundles/sha256").glob("*/*")] == [
        kept.bundle_id.removeprefix("sha256:")
    ]
    with not_found():
        store.get(gone.bundle_id)


def test_deletion_does_not_disturb_a_reader(store: BundleStore, tmp_path: Path) -> None:
    bundle, _ = store.put(b"0123456789", MAP)
    with store.open(bundle.bundle_id) as file:
        assert file.read(5) == b"01234"
        store.delete(bundle.bundle_id)
        assert file.read() == b"56789"
    for use in (store.get, store.delete):
        with not_found():
            use(bundle.bundle_id)
    with not_found(), store.open(bundle.bundle_id):
        pass
    assert not unfinished(tmp_path)


def test_deleting_again_with_the_same_key_succeeds(store: BundleStore, tmp_path: Path) -> None:
    bundle, _ = store.put(b"x", MAP)
    store.delete(bundle.bundle_id, request_key="ann 1")
    store.delete(bundle.bundle_id, request_key="ann 1")
    with not_found():
        store.delete(bundle.bundle_id, request_key="ann 2")
    store.put(b"x", MAP)
    store.delete(bundle.bundle_id, request_key="ann 1")
    assert store.read(bundle.bundle_id) == b"x"
    [remembered] = (tmp_path / "bundles/deletions").iterdir()
    os.utime(remembered, (0, 0))
    store.sweep()
    store.delete(bundle.bundle_id, request_key="ann 1")
    with not_found():
        store.get(bundle.bundle_id)


@pytest.mark.parametrize(
    "bundle_id",
    [
        "",
        "sha256:",
        "../../etc/passwd",
        "sha256:../../../../etc/passwd",
        "sha256:" + "../" * 21 + "a",
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 64 + "\n",
        "sha256:" + "a" * 64 + "/content",
        "sha512:" + "a" * 64,
        "sha256:" + "\u0663" * 64,
    ],
)
def test_what_is_not_a_name_is_refused(store: BundleStore, bundle_id: str) -> None:
    uses: list[Callable[[str], Any]] = [store.get, store.path, store.read, store.delete]
    for use in uses:
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "BUNDLE_ID_INVALID"):
            use(bundle_id)
    if bundle_id:
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "BUNDLE_ID_INVALID"):
            store.writer(MAP, expected_id=bundle_id)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
            store.list(page_token=bundle_id)


def test_pages(store: BundleStore) -> None:
    bundles = [store.put(str(n).encode(), MAP if n % 3 else MODEL)[0] for n in range(30)]
    for kind in (bundle_pb2.BUNDLE_KIND_UNSPECIFIED, MAP, MODEL):
        wanted = sorted(b.bundle_id for b in bundles if not kind or b.kind == kind)
        for page_size in (1, 7, len(wanted), 1000):
            seen: list[str] = []
            token = ""
            for _ in range(len(wanted)):
                page, token = store.list(kind, page_size, token)
                assert 0 < len(page) <= page_size
                seen += [bundle.bundle_id for bundle in page]
                if not token:
                    break
            assert seen == wanted


def test_wrong_expectations_leave_nothing(store: BundleStore, tmp_path: Path) -> None:
    with (
        refused(grpc.StatusCode.DATA_LOSS, "BUNDLE_DIGEST_MISMATCH"),
        store.writer(MAP, expected_id=name_of(b"y")) as writer,
    ):
        writer.write(b"x")
        writer.commit()
    for data in (b"x", b"xxx"):
        with (
            refused(grpc.StatusCode.DATA_LOSS, "BUNDLE_SIZE_MISMATCH"),
            store.writer(MAP, expected_size=2) as writer,
        ):
            writer.write(data)
            writer.commit()
    with store.writer(MAP) as writer:
        writer.write(b"never committed")
    assert store.usage() == (0, 0)
    assert not unfinished(tmp_path)


def test_limits_leave_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path, max_bundle_bytes=100, max_total_bytes=150)
    too_large = (grpc.StatusCode.RESOURCE_EXHAUSTED, "BUNDLE_TOO_LARGE")
    full = (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL")
    with refused(*too_large):
        store.put(b"x" * 101, MAP)
    with refused(*too_large):
        store.writer(MAP, expected_size=101)
    with refused(*too_large), store.writer(MAP) as writer:
        writer.write(b"x" * 60)
        writer.write(b"x" * 60)
    bundle, _ = store.put(b"x" * 100, MAP)
    with refused(*full):
        store.put(b"y" * 51, MAP)
    with refused(*full), store.writer(MAP) as writer:
        writer.write(b"y" * 40)
        writer.write(b"y" * 40)
    assert store.usage() == (1, 100)
    store.delete(bundle.bundle_id)
    store.put(b"y" * 100, MAP)
    assert store.usage() == (1, 100)
    assert not unfinished(tmp_path)


def test_a_crash_of_the_machine_leaves_no_half_bundle(store: BundleStore) -> None:
    data = b"x" * 1000
    for damage in ("content", "bundle.pb"):
        bundle, _ = store.put(data, MAP, durable=False)
        os.truncate(store.path(bundle.bundle_id).with_name(damage), 0)
        with not_found():
            store.read(bundle.bundle_id)
        assert not store.put(data, MAP)[1]
        assert store.read(bundle.bundle_id) == data
        os.truncate(store.path(bundle.bundle_id).with_name(damage), 10)
        assert store.sweep() == (1, 0)


FILL_THE_DISK = """
import resource, signal, sys
from datetime import timedelta
from pathlib import Path
from bxmesh.geometry.v1 import bundle_pb2
from bxmesh.server.bundles import BundleStore
from bxmesh.server.errors import MeshError

day = timedelta(days=1)
store = BundleStore(Path(sys.argv[1]), day, day, 1 << 30)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
reasons = []
for write in ("put", "writer"):
    try:
        if write == "put":
            store.put(bytes(200_000), bundle_pb2.BUNDLE_KIND_MAP)
        else:
            with store.writer(bundle_pb2.BUNDLE_KIND_MAP) as writer:
                for _ in range(200):
                    writer.write(bytes(1000))
                writer.commit()
    except MeshError as error:
        reasons.append(error.reason)
print(*reasons)
"""


def test_a_full_disk_leaves_nothing(store: BundleStore, tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, str(tmp_path / "bundles")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == ["STORE_FULL", "STORE_FULL"]
    assert store.usage() == (0, 0)
    assert not unfinished(tmp_path)


def upload_forever(root: Path, begun: Any) -> None:
    with open_store(root).writer(MAP) as writer:
        writer.write(b"x" * 100_000)
        begun.set()
        time.sleep(60)


def test_a_killed_writer_leaves_nothing(store: BundleStore, tmp_path: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    begun = processes.Event()
    process = processes.Process(target=upload_forever, args=(tmp_path, begun))
    process.start()
    assert begun.wait(30)
    assert store.sweep() == (0, 0)
    assert len(unfinished(tmp_path)) == 1
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert store.sweep() == (0, 1)
    assert not unfinished(tmp_path)


def work(root: Path, seed: int, contents: list[bytes], seconds: float) -> None:
    """Does everything at once; every read must be right, every fresh upload must be there."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    store = open_store(root)
    names = [name_of(data) for data in contents]
    until = time.monotonic() + seconds
    turn = seed
    while time.monotonic() < until:
        turn = turn * 1103515245 + 12345 & 0x7FFFFFFF
        n, action = turn // 65536 % len(contents), turn // 1048576 % 8
        try:
            if action < 3:
                bundle, _ = store.put(contents[n], MAP, durable=action == 0)
                assert bundle.bundle_id == names[n]
            elif action == 3:
                store.put(contents[n], MAP, durable=False, lifetime=timedelta(milliseconds=1))
            elif action < 6:
                assert store.read(names[n]) == contents[n]
            elif action == 6:
                store.delete(names[n])
            else:
                store.sweep()
        except MeshError as error:
            assert error.reason == "BUNDLE_NOT_FOUND", error


def test_processes_do_not_disturb_each_other(store: BundleStore, tmp_path: Path) -> None:
    contents = [os.urandom(size) for size in (10, 1000, 50_000)]
    processes = multiprocessing.get_context("spawn")
    workers = [
        processes.Process(target=work, args=(tmp_path, seed, contents, 1.5)) for seed in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    time.sleep(0.002)
    assert store.sweep().unfinished == 0
    assert not unfinished(tmp_path)
    assert all(store.read(bundle.bundle_id) in contents for bundle in store.list()[0])


def keep_for(root: Path, days: int) -> None:
    store = open_store(root, max_lifetime=1000 * DAY)
    for n in range(50):
        store.put(b"shared", MAP, durable=False, lifetime=(days * 50 + n) * DAY)


def test_expiry_never_moves_back(store: BundleStore, tmp_path: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    workers = [processes.Process(target=keep_for, args=(tmp_path, n)) for n in range(4)]
    started = time.time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    kept = store.get(name_of(b"shared")).expire_time.seconds - started
    assert kept >= 199 * DAY.total_seconds() - 1
