"""The calls that may have to be ended before they end by themselves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType

from bxmesh.server.errors import MeshError, unavailable

__all__ = ["EndableBlock", "OpenStreams"]

_AGAIN_SECONDS = 0.2


class EndableBlock:
    """A `with` block in a task that can be ended from outside, with an error for its caller."""

    __slots__ = ("_cancels", "_error", "_next", "_task")

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task: asyncio.Task[object] = task
        self._error: MeshError | None = None
        self._cancels = 0
        self._next: asyncio.TimerHandle | None = None

    def __enter__(self) -> EndableBlock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._next is None:
            return
        self._next.cancel()
        self._next = None
        for _ in range(self._cancels):
            self._task.uncancel()
        if kind is asyncio.CancelledError and not self._task.cancelling():
            assert self._error is not None
            raise self._error from None

    def end(self, error: MeshError) -> None:
        """Ends the block, which raises the error unless something else ended it already."""
        if self._error is None:
            self._error = error
            self._cancel()

    def _cancel(self) -> None:
        # More than once: redis-py may swallow a cancellation while it sends.
        self._cancels += 1
        self._task.cancel()
        self._next = asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._cancel)


class OpenStreams:
    """Knows the open streams and ends them before the server stops."""

    def __init__(self) -> None:
        self._open: set[EndableBlock] = set()
        self._ended = False

    def __len__(self) -> int:
        return len(self._open)

    @contextlib.asynccontextmanager
    async def stream(self) -> AsyncIterator[None]:
        """Holds while a stream is served; raises MeshError UNAVAILABLE when it must end."""
        if self._ended:
            raise _stopping()
        with EndableBlock() as block:
            self._open.add(block)
            try:
                yield
            finally:
                self._open.discard(block)

    def end(self) -> None:
        """Ends all streams, for good."""
        self._ended = True
        for block in self._open:
            block.end(_stopping())


def _stopping() -> MeshError:
    return unavailable(
        "This server stops. Resume at another one.", retry_after=1.0, reason="SERVER_STOPPING"
    )
