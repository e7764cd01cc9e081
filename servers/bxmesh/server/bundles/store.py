"""Bundles in a directory: immutable content named by its digest."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

from google.protobuf.timestamp_pb2 import Timestamp

from bxmesh.geometry.v1 import bundle_pb2
from bxmesh.geometry.v1.bundle_pb2 import Bundle, BundleHolder, BundleKind

from ..errors import MeshError, invalid_argument, not_found
from ..security.quotas import Allowance
from .directory import (
    CONTENT,
    METADATA,
    Incoming,
    StoreDirectory,
    Swept,
    digest_of,
    storing,
    sync,
)
from .holdings import Holdings
from .usage import Quota, Usage
from .writer import BundleWriter, too_large

__all__ = ["BundleStore"]

_DELETIONS_REMEMBERED = timedelta(days=1)

_MEDIA_TYPES = {
    bundle_pb2.BUNDLE_KIND_MACROMOLECULE: "chemical/x-pdb",
    bundle_pb2.BUNDLE_KIND_REFLECTIONS: "application/x-mtz",
    bundle_pb2.BUNDLE_KIND_RESTRAINTS: "chemical/x-cif",
}
_ANY_MEDIA_TYPE = "application/octet-stream"


class BundleStore:
    """Bundles in a directory that any number of processes share."""

    def __init__(
        self,
        root: Path,
        default_lifetime: timedelta,
        max_lifetime: timedelta,
        max_bundle_bytes: int,
        max_total_bytes: int | None = None,
    ) -> None:
        self.max_bundle_bytes = max_bundle_bytes
        self._directory = StoreDirectory(root)
        self._holdings = Holdings(self._directory)
        self._default_lifetime = default_lifetime
        self._max_lifetime = max_lifetime
        self._quota = Quota(max_total_bytes, self.usage)

    def writer(
        self,
        kind: BundleKind.ValueType,
        *,
        media_type: str = "",
        display_name: str = "",
        expected_id: str = "",
        expected_size: int | None = None,
        derived_from: Sequence[str] = (),
        holder: BundleHolder | None = None,
        lifetime: timedelta | None = None,
        durable: bool = True,
        allowance: Allowance | None = None,
    ) -> BundleWriter:
        """Begins a bundle; use it in a `with`. A durable one is on the disk when it is committed.

        The default lifetime holds where there is none, the maximum where it is longer. What would
        be more than the holder's allowance is refused, at the latest by the commit, with
        RESOURCE_EXHAUSTED (QUOTA_EXCEEDED).
        """
        if expected_id:
            digest_of(expected_id)
        room = self._holdings.room(allowance, expected_id)

        def check(size: int) -> None:
            self._quota.check(size)
            room(size)

        def publish(incoming: Incoming, bundle: Bundle, *, durable: bool) -> tuple[Bundle, bool]:
            with self._holdings.within(allowance, bundle.bundle_id, bundle.size_bytes):
                return self._publish(incoming, bundle, durable=durable)

        if expected_size is not None:
            self._require_small(expected_size)
            check(expected_size)
        bundle = self._describe(
            kind, media_type, display_name, derived_from, holder, lifetime, expected_id
        )
        with storing():
            incoming = self._directory.begin()
        return BundleWriter(
            incoming,
            bundle,
            publish,
            check,
            max_bytes=self.max_bundle_bytes,
            expected_size=expected_size,
            durable=durable,
        )

    def put(
        self,
        data: bytes | memoryview,
        kind: BundleKind.ValueType,
        *,
        media_type: str = "",
        display_name: str = "",
        derived_from: Sequence[str] = (),
        holder: BundleHolder | None = None,
        lifetime: timedelta | None = None,
        durable: bool = True,
        allowance: Allowance | None = None,
    ) -> tuple[Bundle, bool]:
        """Stores bytes; returns the bundle and whether it was there already. Raises like `writer` and
        the writer."""
        self._require_small(len(data))
        self._quota.check(len(data))
        bundle_id = f"sha256:{hashlib.sha256(data).hexdigest()}"
        bundle = self._describe(
            kind, media_type, display_name, derived_from, holder, lifetime, bundle_id
        )
        bundle.size_bytes = len(data)
        home = self._directory.home(bundle_id)
        with storing(), self._holdings.within(allowance, bundle_id, len(data)):
            with self._directory.lock(home.parent.name):
                existing = self._renew(home, bundle, durable=durable)
            if existing is not None:
                return existing, True
            with closing(self._directory.begin()) as incoming:
                incoming.file.write(data)
                return self._publish(incoming, bundle, durable=durable)

    def get(self, bundle_id: str) -> Bundle:
        """Describes a bundle. NOT_FOUND for an unknown or expired one."""
        bundle = self._directory.load(self._directory.home(bundle_id))
        if bundle is None:
            raise _unknown(bundle_id)
        if _is_expired(bundle):
            raise _expired(bundle)
        return bundle

    def path(self, bundle_id: str) -> Path:
        """Returns the file with a bundle's content, which a deletion may take away at any time."""
        self.get(bundle_id)
        return self._directory.home(bundle_id) / CONTENT

    @contextmanager
    def open(self, bundle_id: str) -> Iterator[BinaryIO]:
        """Opens a bundle's content, unbuffered; a deletion meanwhile does not disturb it."""
        try:
            file = self.path(bundle_id).open("rb", buffering=0)
        except FileNotFoundError:
            raise _unknown(bundle_id) from None
        with file:
            yield file

    def read(self, bundle_id: str) -> bytes:
        """Returns a bundle's content. NOT_FOUND for an unknown or expired one."""
        with self.open(bundle_id) as file:
            return file.read()

    def list(
        self,
        kind: BundleKind.ValueType = bundle_pb2.BUNDLE_KIND_UNSPECIFIED,
        page_size: int = 100,
        page_token: str = "",
        sees: Callable[[Bundle], bool] = lambda bundle: True,
    ) -> tuple[list[Bundle], str]:
        """Returns a page of the bundles that somebody sees in the order of their names, and the
        token of the next page."""
        page: list[Bundle] = []
        for home in self._directory.homes(after=_page_start(page_token)):
            bundle = self._current(home)
            if bundle is None or (kind and kind != bundle.kind):
                continue
            if not sees(bundle):
                continue
            if len(page) == page_size:
                return page, page[-1].bundle_id
            page.append(bundle)
        return page, ""

    def share(self, bundle_id: str, holder: BundleHolder) -> Bundle:
        """Changes with whom a holder shares a bundle. NOT_FOUND when it does not hold it."""
        home = self._directory.home(bundle_id)
        with self._directory.lock(home.parent.name):
            bundle = self.get(bundle_id)
            if all(one.identity_id != holder.identity_id for one in bundle.holders):
                raise _unknown(bundle_id)
            if _hold(bundle, holder):
                self._directory.update(home, bundle, durable=True)
        return bundle

    def delete(self, bundle_id: str, *, holder: str | None = None, request_key: str = "") -> None:
        """Deletes a bundle; whoever has it open can go on reading. NOT_FOUND if there is none.

        With a holder only its hold is given up, as long as there are others. Asked again with the
        same key within a day, it succeeds and does nothing.
        """
        home = self._directory.home(bundle_id)
        remembered = (
            self._directory.deletions
            / hashlib.sha256(f"{bundle_id} {request_key}".encode()).hexdigest()
        )
        with self._directory.lock(home.parent.name):
            if request_key and remembered.exists():
                return
            bundle = self.get(bundle_id)
            others = [one for one in bundle.holders if one.identity_id != holder]
            if holder is not None and len(others) == len(bundle.holders):
                raise _unknown(bundle_id)
            leaving = [one for one in bundle.holders if holder in (None, one.identity_id)]
            kept = holder is not None and bool(others)
            if kept:
                del bundle.holders[:]
                bundle.holders.extend(others)
                self._directory.update(home, bundle, durable=True)
            else:
                self._directory.discard(home)
            self._holdings.unmark(bundle_id, leaving)
            if request_key:
                # A full disk must not keep anybody from deleting.
                with suppress(OSError):
                    remembered.touch()
        if not kept:
            self._quota.add(-bundle.size_bytes)

    def sweep(self) -> Swept:
        """Removes expired bundles and what killed processes left behind."""
        removed = 0
        for home in self._directory.homes():
            bundle = self._current(home)
            if bundle is not None and self._holdings.marked(bundle):
                continue
            with self._directory.lock(home.parent.name):
                bundle = self._current(home)
                if bundle is not None:
                    # A crash of the host has lost a mark. A full disk must not end the sweep.
                    with suppress(OSError):
                        self._holdings.mark(bundle)
                elif home.exists():
                    self._directory.discard(home)
                    removed += 1
        self._holdings.sweep()
        forgotten_before = time.time() - _DELETIONS_REMEMBERED.total_seconds()
        for path in self._directory.deletions.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < forgotten_before:
                    path.unlink()
        return Swept(removed, self._directory.sweep_unfinished())

    def usage(self) -> Usage:
        """Counts the bundles that are not expired, and their bytes."""
        sizes = [
            bundle.size_bytes
            for home in self._directory.homes()
            if (bundle := self._current(home)) is not None
        ]
        return Usage(len(sizes), sum(sizes))

    def _describe(
        self,
        kind: BundleKind.ValueType,
        media_type: str,
        display_name: str,
        derived_from: Sequence[str],
        holder: BundleHolder | None,
        lifetime: timedelta | None,
        bundle_id: str,
    ) -> Bundle:
        chosen = self._default_lifetime if lifetime is None else lifetime
        kept = min(chosen, self._max_lifetime) // timedelta(microseconds=1) * 1000
        now = time.time_ns()
        return Bundle(
            bundle_id=bundle_id,
            kind=kind,
            media_type=media_type or _MEDIA_TYPES.get(kind, _ANY_MEDIA_TYPE),
            display_name=display_name,
            derived_from=derived_from,
            owner=holder.identity_id if holder else "",
            holders=[holder] if holder else [],
            create_time=_timestamp(now),
            expire_time=_timestamp(now + kept),
        )

    def _publish(self, incoming: Incoming, bundle: Bundle, *, durable: bool) -> tuple[Bundle, bool]:
        home = self._directory.home(bundle.bundle_id)
        incoming.describe(bundle, durable=durable)
        with self._directory.lock(home.parent.name):
            existing = self._renew(home, bundle, durable=durable)
            if existing is not None:
                return existing, True
            if home.exists():
                self._directory.discard(home)
            self._holdings.mark(bundle)
            self._directory.place(incoming, home, durable=durable)
        self._quota.add(bundle.size_bytes)
        return bundle, False

    def _renew(self, home: Path, new: Bundle, *, durable: bool) -> Bundle | None:
        bundle = self._current(home)
        if bundle is None:
            return None
        self._holdings.mark(new)
        longer = new.expire_time.ToNanoseconds() > bundle.expire_time.ToNanoseconds()
        if longer:
            bundle.expire_time.CopyFrom(new.expire_time)
        held = [_hold(bundle, holder) for holder in new.holders]
        if longer or any(held):
            self._directory.update(home, bundle, durable=durable)
        if durable:
            # It may have been stored first as a result that could be computed again.
            for path in (home / CONTENT, home / METADATA, home, home.parent, home.parent.parent):
                sync(path)
        return bundle

    def _require_small(self, size: int) -> None:
        if size > self.max_bundle_bytes:
            raise too_large(self.max_bundle_bytes)

    def _current(self, home: Path) -> Bundle | None:
        bundle = self._directory.load(home)
        return None if bundle is None or _is_expired(bundle) else bundle


def _hold(bundle: Bundle, holder: BundleHolder) -> bool:
    """Enters a holder; one that says nothing of visibility leaves it. Returns what has changed."""
    for present in bundle.holders:
        if present.identity_id == holder.identity_id:
            if not holder.visibility or present == holder:
                return False
            present.CopyFrom(holder)
            return True
    bundle.holders.add().CopyFrom(holder)
    bundle.owner = bundle.owner or holder.identity_id
    return True


def _timestamp(nanoseconds: int) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromNanoseconds(nanoseconds)
    return timestamp


def _is_expired(bundle: Bundle) -> bool:
    expires: int = bundle.expire_time.ToNanoseconds()
    return expires <= time.time_ns()


def _page_start(page_token: str) -> str:
    if not page_token:
        return ""
    try:
        return digest_of(page_token)
    except MeshError:
        raise invalid_argument(
            "page_token", "is not the next_page_token of a page", reason="PAGE_TOKEN_INVALID"
        ) from None


def _unknown(bundle_id: str) -> MeshError:
    return not_found(f"there is no bundle {bundle_id}; upload it first", reason="BUNDLE_NOT_FOUND")


def _expired(bundle: Bundle) -> MeshError:
    return not_found(
        f"bundle {bundle.bundle_id} expired at {bundle.expire_time.ToJsonString()};"
        " upload it again",
        reason="BUNDLE_NOT_FOUND",
    )
