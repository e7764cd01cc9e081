"""What keeps clients from taking more than their part: of places, of time, and of guesses."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from bxmesh.server.http.problems import refusal

__all__ = ["Places", "Refusals"]

_PERIOD_SECONDS = 60.0
_MOST_ADDRESSES = 10_000


class Places:
    """So many at a time; who comes when all are taken is refused at once."""

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self.taken = 0
        """How many are."""

    @contextmanager
    def take(self) -> Iterator[None]:
        """Takes a place for the block. Raises BxmeshError UNAVAILABLE when there is none."""
        if self.taken >= self._most:
            raise refusal(
                grpc.StatusCode.UNAVAILABLE,
                "GATEWAY_FULL",
                f"All {self._most} places for {self._what} are taken. Try again in a moment.",
                retry_after=1.0,
            )
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class Refusals:
    """Wrong keys by address. To the mesh all come from the gateway, so it must not be asked for long.

    Addresses on this machine are never refused, as in the mesh itself.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def check(self, address: str) -> None:
        """Raises BxmeshError RESOURCE_EXHAUSTED for an address that has sent too many."""
        began, count = self._counts.get(_source(address), (0.0, 0))
        left = began + _PERIOD_SECONDS - time.monotonic()
        if count >= self._most and left > 0:
            raise refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "TOO_MANY_REFUSALS",
                "Too many wrong keys came from this address. Try again later.",
                retry_after=left,
            )

    def note(self, address: str) -> None:
        """Counts a wrong key."""
        source = _source(address)
        if not source:
            return
        now = time.monotonic()
        began, count = self._counts.pop(source, (now, 0))
        if now - began > _PERIOD_SECONDS:
            began, count = now, 0
        self._counts[source] = (began, count + 1)
        if len(self._counts) > _MOST_ADDRESSES:
            self._counts.popitem(last=False)


def _source(address: str) -> str:
    """What stands for a host: for IPv6 its /64. Empty for this machine."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if parsed.is_loopback:
        return ""
    if parsed.version == 6:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
