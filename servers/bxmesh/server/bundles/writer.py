"""Writing one bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import grpc

from bxmesh.geometry.v1.bundle_pb2 import Bundle

from ..errors import MeshError, resource_exhausted
from .directory import Incoming, storing

__all__ = ["BundleWriter"]


class Publish(Protocol):
    """Makes an incoming directory a bundle; says also whether it was there before."""

    def __call__(
        self, incoming: Incoming, bundle: Bundle, *, durable: bool
    ) -> tuple[Bundle, bool]: ...


class BundleWriter:
    """Writes one bundle, which exists from the commit on; leaving without one leaves nothing.

    Not for use by several threads at once.
    """

    def __init__(
        self,
        incoming: Incoming,
        bundle: Bundle,
        publish: Publish,
        check: Callable[[int], None],
        *,
        max_bytes: int,
        expected_size: int | None,
        durable: bool,
    ) -> None:
        """Takes what raises MeshError when there is no room for so many bytes."""
        self._incoming = incoming
        self._bundle = bundle
        self._publish = publish
        self._check = check
        self._max_bytes = max_bytes
        self._expected_size = expected_size
        self._durable = durable
        self._sha256 = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()

    def write(self, data: bytes | memoryview) -> None:
        """Appends bytes. RESOURCE_EXHAUSTED over a limit, DATA_LOSS over the expected size."""
        size = self._size + len(data)
        if size > self._max_bytes:
            raise too_large(self._max_bytes)
        if self._expected_size is not None and size > self._expected_size:
            raise _wrong_size(f"more than {self._expected_size}", self._expected_size)
        self._check(size)
        with storing():
            self._incoming.file.write(data)
        self._sha256.update(data)
        self._size = size

    def commit(self) -> tuple[Bundle, bool]:
        """Returns the bundle and whether it was there already.

        DATA_LOSS for another size or digest than expected.
        """
        if self._expected_size is not None and self._size != self._expected_size:
            raise _wrong_size(str(self._size), self._expected_size)
        expected_id = self._bundle.bundle_id
        bundle_id = f"sha256:{self._sha256.hexdigest()}"
        if expected_id and expected_id != bundle_id:
            raise MeshError(
                grpc.StatusCode.DATA_LOSS,
                "BUNDLE_DIGEST_MISMATCH",
                f"the content is {bundle_id}, not {expected_id}; send it again",
            )
        self._bundle.bundle_id = bundle_id
        self._bundle.size_bytes = self._size
        try:
            with storing():
                return self._publish(self._incoming, self._bundle, durable=self._durable)
        finally:
            self._incoming.close()

    def abort(self) -> None:
        """Removes what has not been committed."""
        self._incoming.close()


def too_large(max_bytes: int) -> MeshError:
    """Returns the error for content over the limit."""
    return resource_exhausted(
        f"a bundle may have at most {max_bytes} bytes",
        reason="BUNDLE_TOO_LARGE",
        subject="bundle",
    )


def _wrong_size(size: str, expected: int) -> MeshError:
    return MeshError(
        grpc.StatusCode.DATA_LOSS,
        "BUNDLE_SIZE_MISMATCH",
        f"the content has {size} bytes, not the {expected} announced; send it again",
    )
