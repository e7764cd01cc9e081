"""Which bundles an identity holds: an index, beside the bundles that say who holds them.

The description of a bundle is the truth. A mark in the index is made before it is described as
held and removed after it no longer is, both under the lock of its shard; so what a process that
was killed leaves is a mark too many, until a sweep removes it. To count is to list the marks: the
size of content never changes and its end only moves away, so each description is read once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bxmesh.geometry.v1.bundle_pb2 import Bundle, BundleHolder
from bxmesh.server.security.quotas import Allowance

from .directory import StoreDirectory, digest_of

__all__ = ["Holdings"]

_MOST_KNOWN = 200_000


class Holdings:
    """The bundles of each holder in a store."""

    def __init__(self, directory: StoreDirectory) -> None:
        self._directory = directory
        self._known: dict[tuple[str, str], tuple[int, int]] = {}
        """The sizes of what is held, and when it ends in Unix nanoseconds, by holder and digest."""

    def mark(self, bundle: Bundle) -> None:
        """Notes who holds a bundle, or is about to. Needs the shard's lock."""
        for path in self._marks(bundle.bundle_id, bundle.holders):
            try:
                path.touch()
            except FileNotFoundError:
                path.parent.mkdir(exist_ok=True)
                path.touch()

    def marked(self, bundle: Bundle) -> bool:
        """Whether all who hold a bundle are noted."""
        return all(path.exists() for path in self._marks(bundle.bundle_id, bundle.holders))

    def unmark(self, bundle_id: str, holders: Iterable[BundleHolder]) -> None:
        """Notes who no longer holds a bundle. Needs the shard's lock."""
        for path in self._marks(bundle_id, holders):
            path.unlink(missing_ok=True)

    def room(self, allowance: Allowance | None, bundle_id: str = "") -> Callable[[int], None]:
        """Counts what an identity holds; returns what raises MeshError RESOURCE_EXHAUSTED
        (QUOTA_EXCEEDED) for a size that would be more than its allowance.

        A bundle that it holds already takes no room.
        """
        if allowance is None:
            return lambda size: None
        sizes = self._sizes(allowance.identity_id)
        if bundle_id.removeprefix("sha256:") in sizes:
            return lambda size: None
        held = sum(sizes.values())

        def check(size: int) -> None:
            if held + size > allowance.most:
                raise allowance.refusal(held, size)

        return check

    @contextmanager
    def within(self, allowance: Allowance | None, bundle_id: str, size: int) -> Iterator[None]:
        """Lets an identity come to hold a bundle within the block, alone among all processes.

        Raises like `room`.
        """
        if allowance is None:
            yield
            return
        with self._directory.lock(f"holder-{allowance.identity_id}"):
            self.room(allowance, bundle_id)(size)
            yield

    def sweep(self) -> None:
        """Removes marks that stand for nothing."""
        for folder in self._directory.holders.iterdir():
            for path in folder.iterdir():
                if self._held(folder.name, path.name) is not None:
                    continue
                with self._directory.lock(path.name[:2]):
                    if self._held(folder.name, path.name) is None:
                        path.unlink(missing_ok=True)

    def _sizes(self, identity_id: str) -> dict[str, int]:
        try:
            folder = self._directory.holders / identity_id
            digests = [path.name for path in folder.iterdir()]
        except FileNotFoundError:
            return {}
        now, sizes = time.time_ns(), {}
        for digest in digests:
            size, ends = self._known.get((identity_id, digest), (0, 0))
            if ends <= now:
                bundle = self._held(identity_id, digest)
                if bundle is None:
                    continue
                size, ends = bundle.size_bytes, bundle.expire_time.ToNanoseconds()
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                self._known[identity_id, digest] = size, ends
            sizes[digest] = size
        return sizes

    def _held(self, identity_id: str, digest: str) -> Bundle | None:
        bundle = self._directory.load(self._directory.home(f"sha256:{digest}"))
        if bundle is None or bundle.expire_time.ToNanoseconds() <= time.time_ns():
            return None
        return bundle if any(one.identity_id == identity_id for one in bundle.holders) else None

    def _marks(self, bundle_id: str, holders: Iterable[BundleHolder]) -> Iterator[Path]:
        digest = digest_of(bundle_id)
        for one in holders:
            if one.identity_id:
                yield self._directory.holders / one.identity_id / digest
