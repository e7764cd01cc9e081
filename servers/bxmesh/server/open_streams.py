"""The long streams that a server must end before it stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from bxmesh.server.errors import MeshError, unavailable

__all__ = ["OpenStreams"]

_AGAIN_SECONDS = 0.2


class _Stream:
    """A stream that is served by a task, and how it is ended."""

    def __init__(self, task: asyncio.Task[object]) -> None:
        self._task = task
        self._cancels = 0
        self._next: asyncio.TimerHandle | None = None

    def end(self) -> None:
        """Ends it."""
        # More than once: redis-py may swallow a cancellation while it sends.
        self._cancels += 1
        self._task.cancel()
        self._next = asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self.end)

    def close(self) -> bool:
        """Takes back what `end` did; returns whether it is only that which ended the stream."""
        if self._next is None:
            return False
        self._next.cancel()
        self._next = None
        for _ in range(self._cancels):
            self._task.uncancel()
        return not self._task.cancelling()


class OpenStreams:
    """Knows the open streams and ends them."""

    def __init__(self) -> None:
        self._open: set[_Stream] = set()
        self._ended = False

    @contextlib.asynccontextmanager
    async def stream(self) -> AsyncIterator[None]:
        """Holds while a stream is served; raises MeshError UNAVAILABLE when it must end."""
        if self._ended:
            raise _stopping()
        task = asyncio.current_task()
        assert task is not None
        stream = _Stream(task)
        self._open.add(stream)
        try:
            yield
        except asyncio.CancelledError:
            if stream.close():
                raise _stopping() from None
            raise
        finally:
            self._open.discard(stream)
            stream.close()

    def end(self) -> None:
        """Ends all streams, for good."""
        self._ended = True
        for stream in self._open:
            stream.end()


def _stopping() -> MeshError:
    return unavailable(
        "This server stops. Resume at another one.", retry_after=1.0, reason="SERVER_STOPPING"
    )
