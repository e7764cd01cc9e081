"""How much a store holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from ..errors import resource_exhausted

__all__ = ["Quota", "Usage"]

_SECONDS_BETWEEN_COUNTS = 10.0
_MOST_TIME_SPENT_COUNTING = 0.01


class Usage(NamedTuple):
    """What a store holds."""

    bundles: int
    bytes: int
    """The length of all content together."""


class Quota:
    """A limit on the bytes in a store, kept to within what other processes add between counts."""

    def __init__(self, max_total_bytes: int | None, count: Callable[[], Usage]) -> None:
        self._max_total_bytes = max_total_bytes
        self._count = count
        self._used = 0
        self._count_again_at = 0.0

    def check(self, size: int) -> None:
        """Lets `size` more bytes pass. RESOURCE_EXHAUSTED if there is no room for them."""
        if self._max_total_bytes is None:
            return
        started = time.monotonic()
        if started >= self._count_again_at:
            self._used = self._count().bytes
            ended = time.monotonic()
            self._count_again_at = ended + max(
                _SECONDS_BETWEEN_COUNTS, (ended - started) / _MOST_TIME_SPENT_COUNTING
            )
        if self._used + size > self._max_total_bytes:
            raise resource_exhausted(
                f"the bundle store may hold {self._max_total_bytes} bytes and has no room for"
                f" {size} more; delete bundles or try again later",
                reason="STORE_FULL",
                subject="bundle store",
            )

    def add(self, size: int) -> None:
        """Counts bytes that this process stored, or removed if negative."""
        self._used += size
