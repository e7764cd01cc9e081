"""Which bundles an identity holds: an index, beside the bundles that say who holds them.

The description of a bundle is the truth. A mark in the index is made before it is described as
held and removed after it no longer is, both under the lock of its shard; so what a process that
was killed leaves is a mark too many, which counts for nothing until a sweep removes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bxmesh.geometry.v1.bundle_pb2 import Bundle, BundleHolder
from bxmesh.server.security.quotas import Allowance

from .directory import StoreDirectory, digest_of

__all__ = ["Holdings"]


class Holdings:
    """The bundles of each holder in a store."""

    def __init__(self, directory: StoreDirectory) -> None:
        self._directory = directory

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
        bundles = {bundle.bundle_id: bundle.size_bytes for bundle in self._of(allowance)}
        if bundle_id in bundles:
            return lambda size: None
        held = sum(bundles.values())

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

    def _of(self, allowance: Allowance) -> Iterator[Bundle]:
        folder = self._directory.holders / allowance.identity_id
        with suppress(FileNotFoundError):
            for path in folder.iterdir():
                bundle = self._held(allowance.identity_id, path.name)
                if bundle is not None:
                    yield bundle

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
