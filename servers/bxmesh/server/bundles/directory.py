"""The directory under a store: its layout, its locks, and how files come and go as a whole.

sha256/ab/<digest>/content, bundle.pb    the bundles
incoming/<name>/                         what is being written, its content locked by its writer
trash/<name>/                            what is being removed
locks/<shard>, locks/incoming            taken to change a shard, to begin writing
locks/holder-<identity>                  taken before a shard's to keep a holder to its allowance
deletions/<key>                          deletions that may be asked for again
holders/<identity>/<digest>              the bundles of a holder, and maybe some that it held before
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError

from bxmesh.geometry.v1.bundle_pb2 import Bundle

from ..errors import invalid_argument, resource_exhausted

__all__ = [
    "CONTENT",
    "METADATA",
    "Incoming",
    "StoreDirectory",
    "Swept",
    "digest_of",
    "storing",
    "sync",
]

CONTENT = "content"
METADATA = "bundle.pb"

_BUNDLE_ID = re.compile(r"sha256:([0-9a-f]{64})")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Swept(NamedTuple):
    """What a sweep removed."""

    bundles: int
    """Bundles that had expired or were damaged."""
    unfinished: int
    """Leftovers of writers that died."""


class StoreDirectory:
    """The directory of one store, shared by any number of processes."""

    def __init__(self, root: Path) -> None:
        self.bundles = root / "sha256"
        self.deletions = root / "deletions"
        self.holders = root / "holders"
        self._incoming = root / "incoming"
        self._trash = root / "trash"
        self._locks = root / "locks"
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (
            self.bundles,
            self.deletions,
            self.holders,
            self._incoming,
            self._trash,
            self._locks,
        ):
            directory.mkdir(exist_ok=True)

    def home(self, bundle_id: str) -> Path:
        """Returns where a bundle lives or would live. INVALID_ARGUMENT for what is not a name."""
        digest = digest_of(bundle_id)
        return self.bundles / digest[:2] / digest

    def homes(self, after: str = "") -> Iterator[Path]:
        """Yields the places of all bundles with digests after `after`, in their order."""
        for shard in sorted(self.bundles.iterdir()):
            if shard.name >= after[:2]:
                yield from sorted(home for home in shard.iterdir() if home.name > after)

    @contextmanager
    def lock(self, name: str, *, shared: bool = False) -> Iterator[None]:
        """Holds a lock among all processes; the death of the holder releases it."""
        descriptor = os.open(self._locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def load(self, home: Path) -> Bundle | None:
        """Returns the bundle that lives there, None if there is none or a crash has damaged it."""
        try:
            bundle = Bundle.FromString((home / METADATA).read_bytes())
            size = (home / CONTENT).stat().st_size
        except (FileNotFoundError, DecodeError):
            return None
        whole = bundle.bundle_id == f"sha256:{home.name}" and bundle.size_bytes == size
        return bundle if whole else None

    def update(self, home: Path, bundle: Bundle, *, durable: bool) -> None:
        """Replaces the description of a bundle at once. Needs the shard's lock."""
        following = home / f"{METADATA}.next"
        following.write_bytes(bundle.SerializeToString())
        if durable:
            sync(following)
        following.replace(home / METADATA)

    def place(self, incoming: Incoming, home: Path, *, durable: bool) -> None:
        """Makes an incoming directory a bundle. Needs the shard's lock."""
        shard = home.parent
        try:
            incoming.path.rename(home)
        except FileNotFoundError:
            shard.mkdir(exist_ok=True)
            incoming.path.rename(home)
        if durable:
            sync(shard)
            sync(self.bundles)

    def begin(self) -> Incoming:
        """Returns a new incoming directory, locked against the sweep until it is closed."""
        path = self._incoming / secrets.token_hex(16)
        # Under this lock no sweep can meet a directory whose content is not locked yet.
        with self.lock("incoming", shared=True):
            path.mkdir()
            try:
                return Incoming(path)
            except OSError:
                shutil.rmtree(path, ignore_errors=True)
                raise

    def discard(self, path: Path) -> None:
        """Removes a directory: out of sight at once, then for good. Open files stay readable."""
        trash = self._trash / secrets.token_hex(16)
        with suppress(FileNotFoundError):
            path.rename(trash)
        # NFS keeps what somebody has open; a later sweep takes it.
        shutil.rmtree(trash, ignore_errors=True)

    def sweep_unfinished(self) -> int:
        """Removes what dead writers and dead sweeps left behind; returns how many there were."""
        with self.lock("incoming"):
            dead = [path for path in self._incoming.iterdir() if not _has_writer(path)]
        for path in dead:
            self.discard(path)
        for path in self._trash.iterdir():
            shutil.rmtree(path, ignore_errors=True)
        return len(dead)


class Incoming:
    """A directory that becomes a bundle as a whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = (path / CONTENT).open("xb")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def describe(self, bundle: Bundle, *, durable: bool) -> None:
        """Completes the directory: all content and the description are in their files."""
        self.file.flush()
        metadata = self.path / METADATA
        metadata.write_bytes(bundle.SerializeToString())
        if durable:
            os.fsync(self.file.fileno())
            sync(metadata)
            sync(self.path)

    def close(self) -> None:
        """Gives the lock back; removes what has not become a bundle."""
        # Buffered bytes of an abandoned file may fail to be written once more.
        with suppress(OSError):
            self.file.close()
        shutil.rmtree(self.path, ignore_errors=True)


def digest_of(bundle_id: str) -> str:
    """Returns the 64 hexadecimal digits of a bundle's name. INVALID_ARGUMENT if it is not one."""
    match = _BUNDLE_ID.fullmatch(bundle_id)
    if match is None:
        raise invalid_argument(
            "bundle_id",
            'a bundle is named "sha256:" and 64 lower-case hexadecimal digits',
            reason="BUNDLE_ID_INVALID",
        )
    return match[1]


def sync(path: Path) -> None:
    """Waits until a file or a directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storing() -> Iterator[None]:
    """Turns a full disk into RESOURCE_EXHAUSTED."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise resource_exhausted(
            "the bundle store has no room left; delete bundles or try again later",
            reason="STORE_FULL",
            subject="bundle store",
        ) from error


def _has_writer(path: Path) -> bool:
    try:
        file = (path / CONTENT).open("rb")
    except FileNotFoundError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
