"""What identities hold: counted once, held to an allowance by all processes, and right after a crash."""

from __future__ import annotations

import multiprocessing
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from bxmesh.geometry.v1.bundle_pb2 import BundleHolder
from bxmesh.server.bundles import BundleStore
from bxmesh.server.errors import MeshError
from bxmesh.server.security.quotas import Allowance
from tests.bundles.test_store import MAP, name_of, open_store, refused, unfinished

ANN, BOB = (BundleHolder(identity_id=name) for name in ("ann", "bob"))
MOMENT = timedelta(milliseconds=1)


def allowed(most: int) -> Allowance:
    return Allowance("max_bundle_bytes", "ann", most)


def too_much() -> Any:
    return refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")


def marks(root: Path, holder: str = "ann") -> set[str]:
    return {f"sha256:{path.name}" for path in (root / "bundles" / "holders" / holder).iterdir()}


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return open_store(tmp_path)


def test_what_is_too_much_is_refused_and_leaves_nothing(store: BundleStore, tmp_path: Path) -> None:
    store.put(b"123456", MAP, holder=ANN, allowance=allowed(10))
    with too_much(), store.writer(MAP, holder=ANN, expected_size=5, allowance=allowed(10)):
        pass
    with too_much(), store.writer(MAP, holder=ANN, allowance=allowed(10)) as writer:
        writer.write(b"1234")
        writer.write(b"5")
    with too_much(), store.writer(MAP, holder=ANN, allowance=allowed(10)) as writer:
        writer.write(b"abcd")
        # Another one was faster.
        store.put(b"12", MAP, holder=ANN, allowance=allowed(10))
        writer.commit()
    with too_much():
        store.put(b"12345", MAP, holder=ANN, allowance=allowed(10))
    assert not unfinished(tmp_path)
    assert store.usage() == (2, 8)
    assert marks(tmp_path) == {name_of(b"123456"), name_of(b"12")}


def test_content_counts_once_and_for_each_holder(store: BundleStore, tmp_path: Path) -> None:
    store.put(b"1234", MAP, holder=BOB)
    for _ in range(2):
        store.put(b"1234", MAP, holder=ANN, allowance=allowed(4))
    name = name_of(b"1234")
    with store.writer(MAP, expected_id=name, holder=ANN, allowance=allowed(4)) as writer:
        writer.write(b"1234")
        writer.commit()
    with too_much():
        store.put(b"1", MAP, holder=ANN, allowance=allowed(4))
    store.delete(name, holder="ann")
    assert (marks(tmp_path), marks(tmp_path, "bob")) == (set(), {name})
    store.put(b"5678", MAP, holder=ANN, allowance=allowed(4))
    store.delete(name)
    assert marks(tmp_path, "bob") == set()


def test_what_another_process_changes_is_seen(store: BundleStore, tmp_path: Path) -> None:
    other = open_store(tmp_path)
    for _ in range(2):
        store.put(b"1234", MAP, holder=ANN, allowance=allowed(4))
        with too_much():
            other.put(b"5678", MAP, holder=ANN, allowance=allowed(4))
        other.delete(name_of(b"1234"), holder="ann")
        other.put(b"5678", MAP, holder=ANN, allowance=allowed(4))
        with too_much():
            store.put(b"1234", MAP, holder=ANN, allowance=allowed(4))
        store.delete(name_of(b"5678"), holder="ann")


def test_what_has_expired_makes_room(store: BundleStore, tmp_path: Path) -> None:
    store.put(b"1234", MAP, holder=ANN, lifetime=MOMENT)
    time.sleep(0.002)
    store.put(b"5678", MAP, holder=ANN, allowance=allowed(4))
    assert len(marks(tmp_path)) == 2
    assert store.sweep() == (1, 0)
    assert marks(tmp_path) == {name_of(b"5678")}


def test_a_sweep_mends_the_marks_after_a_crash(store: BundleStore, tmp_path: Path) -> None:
    store.put(b"1234", MAP, holder=ANN)
    folder = tmp_path / "bundles" / "holders" / "ann"
    (folder / name_of(b"1234").removeprefix("sha256:")).unlink()
    (folder / name_of(b"never placed").removeprefix("sha256:")).touch()
    assert store.sweep() == (0, 0)
    assert marks(tmp_path) == {name_of(b"1234")}
    with too_much():
        store.put(b"5", MAP, holder=ANN, allowance=allowed(4))


def fill(root: Path) -> None:
    store = open_store(root)
    for _ in range(10):
        try:
            store.put(os.urandom(100), MAP, holder=ANN, durable=False, allowance=allowed(1000))
        except MeshError as error:
            assert error.reason == "QUOTA_EXCEEDED"


def test_processes_keep_to_an_allowance_together(store: BundleStore, tmp_path: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    workers = [processes.Process(target=fill, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 3
    assert store.usage() == (10, 1000)
