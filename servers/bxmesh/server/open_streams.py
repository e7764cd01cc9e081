"""The long streams that a server must end before it stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from bxmesh.server.errors import MeshError, unavailable

__all__ = ["OpenStreams"]


class OpenStreams:
    """Knows the open streams and ends them."""

    def __init__(self) -> None:
        self._open: set[asyncio.Timeout] = set()
        self._ended = False

    @contextlib.asynccontextmanager
    async def stream(self) -> AsyncIterator[None]:
        """Holds while a stream is served; raises MeshError UNAVAILABLE when it must end."""
        if self._ended:
            raise _stopping()
        end = asyncio.timeout(None)
        try:
            async with end:
                self._open.add(end)
                try:
                    yield
                finally:
                    self._open.discard(end)
        except TimeoutError:
            if not end.expired():
                raise
            raise _stopping() from None

    def end(self) -> None:
        """Ends all streams, for good."""
        self._ended = True
        for end in self._open:
            end.reschedule(asyncio.get_running_loop().time())
        self._open.clear()


def _stopping() -> MeshError:
    return unavailable(
        "This server stops. Resume at another one.", retry_after=1.0, reason="SERVER_STOPPING"
    )
